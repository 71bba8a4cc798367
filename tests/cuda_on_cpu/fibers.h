// Part of runtime.cpp: stacks of threads and the switch between them; what sanitizers are told of it.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

// ---- sanitizers

extern "C" {
#ifdef EMULATOR_THREAD
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_write_range(void*, unsigned long);
#endif
#ifdef EMULATOR_ADDRESS
void __sanitizer_start_switch_fiber(void**, const void*, std::size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*);
#endif
}

namespace {

#ifdef EMULATOR_THREAD
constexpr bool SANITIZED = true, STACK_EACH = true;  // threads that share a stack would seem to race on it
void acquire(void* object) { __tsan_acquire(object); }
void release(void* object) { __tsan_release(object); }
void written(void* place, std::size_t bytes) { __tsan_write_range(place, bytes); }
#else
#ifdef EMULATOR_ADDRESS
constexpr bool SANITIZED = true, STACK_EACH = false;
#else
constexpr bool SANITIZED = false, STACK_EACH = false;
#endif
void acquire(void*) {}
void release(void*) {}
void written(void*, std::size_t) {}
#endif

// ---- fibers

constexpr std::size_t STACK_BYTES = 256 << 10, PAGE_BYTES = 4096;

struct Fiber {
    void* stack = nullptr;  // lowest address; below it lies a page that must not be touched
#ifdef EMULATOR_UCONTEXT
    ucontext_t context;
#else
    void* top = nullptr;
#endif
    const void* bottom = nullptr;  // what AddressSanitizer is told, of the machine's own stack too
    std::size_t bytes = 0;
    void *fake = nullptr, *tsan = nullptr;
};

#ifndef EMULATOR_UCONTEXT
extern "C" void emulator_switch(void** save, void* to);
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");
#endif

}  // namespace
