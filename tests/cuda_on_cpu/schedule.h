// Part of runtime.cpp: which thread runs, and what is said when none can.
#pragma once

#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "state.h"

namespace {

void fiber_main();
bool land_one();

// ---- switching

void switch_to(Fiber& from, Fiber& to) {
#ifdef EMULATOR_ADDRESS
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
#ifdef EMULATOR_THREAD
    __tsan_switch_to_fiber(to.tsan, 1);  // 1: the switch itself orders nothing
#endif
#ifdef EMULATOR_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    emulator_switch(&from.top, to.top);
#endif
#ifdef EMULATOR_ADDRESS
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber) {  // so that the first switch to it enters fiber_main
#ifdef EMULATOR_UCONTEXT
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#else
    void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + STACK_BYTES - 64);
    *--top = nullptr;  // where fiber_main would return to
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.top = top;
#endif
}

Fiber* new_fiber() {
    void* memory = mmap(nullptr, STACK_BYTES + PAGE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) emulator_fail("no memory for the stacks of a block's threads", __FILE__, __LINE__);
    mprotect(memory, PAGE_BYTES, PROT_NONE);
    Fiber* fiber = &fibers[fiber_count++];
    fiber->stack = static_cast<char*>(memory) + PAGE_BYTES;
    fiber->bottom = fiber->stack, fiber->bytes = STACK_BYTES;
#ifdef EMULATOR_THREAD
    fiber->tsan = __tsan_create_fiber(0);
#endif
    prepare(*fiber);
    return fiber;
}

Fiber* take_fiber() { return free_count ? free_fibers[--free_count] : new_fiber(); }

void free_all_fibers() {
    for (free_count = 0; free_count < fiber_count; free_count++) free_fibers[free_count] = &fibers[free_count];
}

// Leaves the kernel for good: back to emulator_launch, or, beside a sanitizer, out of the process.
[[noreturn]] void give_up(Fiber& from, const std::string& why) {
    if (SANITIZED) {
        const std::string line = std::string("emulator: ") + kernel->name + ": " + why + "\n";
        if (write(2, line.data(), line.size()) < 0) _exit(4);
        _exit(3);
    }
    message = why;
    failed = true;
    switch_to(from, machine);
    std::abort();
}

// ---- scheduling

void make_ready(int thread) {
    threads[thread].state = State::READY;
    warps[thread / LANES].ready |= 1u << thread % LANES;
    ready_warps |= 1u << thread / LANES;
}

int choose(unsigned set) {  // one bit of a set that is not empty
    if (launch->order == 0) return __builtin_ctz(set);
    if (launch->order == 1) return 31 - __builtin_clz(set);
    const unsigned from = next_random() & 31, later = set >> from << from;
    return __builtin_ctz(later ? later : set);
}

int pick() {  // the next thread to run, or -1 where all wait or are done
    if (!ready_warps) return -1;
    if (launch->order > 1 || !warps[warp_in_turn].ready) warp_in_turn = choose(ready_warps);
    Warp& warp = warps[warp_in_turn];
    const int lane = choose(warp.ready);
    warp.ready &= ~(1u << lane);
    if (!warp.ready) ready_warps &= ~(1u << warp_in_turn);
    return warp_in_turn * LANES + lane;
}

std::string list_of(const std::vector<int>& numbers) {  // 0-31, 40
    std::string result;
    for (std::size_t i = 0; i < numbers.size();) {
        std::size_t j = i;
        while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) j++;
        result += text(i == j ? "%s%d" : "%s%d-%d", result.empty() ? "" : ", ", numbers[i], numbers[j]);
        i = j + 1;
    }
    return result;
}

[[noreturn]] void fail_stuck(Fiber& from) {
    struct Group {
        std::string what;
        std::vector<int> members;
    };
    std::vector<Group> groups;
    bool at_barrier = false, in_warp = false, tiles = false;
    std::vector<int> done;
    for (int t = 0; t < total; t++) {
        const Thread& thread = threads[t];
        if (thread.state == State::DONE) {
            done.push_back(t);
            continue;
        }
        at_barrier |= thread.state == State::AT_BARRIER, in_warp |= thread.state == State::IN_WARP;
        const Warp& warp = warps[t / LANES];
        tiles |= thread.state == State::IN_WARP && int(warp.op[t % LANES]) >= int(Op::LDMATRIX);
        std::string what = thread.state == State::AT_BARRIER    ? "__syncthreads"
                           : thread.state == State::AT_MBARRIER ? "a phase of an mbarrier"
                                                                : OP_NAMES[int(warp.op[t % LANES])];
        if (thread.state == State::IN_WARP) what += text(" with mask %08x", warp.mask[t % LANES]);
        what += text(" at %s:%d", base_name(thread.place.file), thread.place.line);
        std::size_t g = 0;
        while (g < groups.size() && groups[g].what != what) g++;
        if (g == groups.size()) groups.push_back({what, {}});
        groups[g].members.push_back(t);
    }
    std::string all = at_barrier && !in_warp && !done.empty() ? "__syncthreads after some threads of the block exited"
                                                              : "deadlock: a barrier that some threads do not reach";
    if (tiles && !done.empty()) all = "mma and ldmatrix need all 32 lanes, and some have exited";
    for (const Group& group : groups) all += "; threads " + list_of(group.members) + " wait in " + group.what;
    if (!done.empty()) all += "; threads " + list_of(done) + " have exited";
    all += text(" (block %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
    give_up(from, all);
}

void enter(int thread) {
    current = thread;
    threadIdx = threads[thread].index;
}

void run_next(Fiber& from) {  // another thread than the current one, whose fiber stays where it is or is free
    if (launch->order > 1 && bulk_count && !(next_random() & 15)) land_one();
    int next = pick();
    while (next < 0 && finished < total && land_one()) next = pick();
    if (next < 0) {
        if (finished < total) fail_stuck(from);
        switch_to(from, machine);
        return;
    }
    if (!threads[next].fiber) threads[next].fiber = take_fiber();
    enter(next);
    if (threads[next].fiber != &from) switch_to(from, *threads[next].fiber);
}

void suspend() {  // the current thread, which is ready or waits, until it is its turn
    run_next(*threads[current].fiber);
}

void complete(Warp&, int first, int lane);

void thread_done() {
    Thread& thread = threads[current];
    thread.state = State::DONE;
    finished++;
    Warp& warp = warps[current / LANES];
    warp.exited |= 1u << current % LANES;
    for (unsigned left = warp.waiting; left; left = warp.waiting & (left & (left - 1)))  // may have waited for this one
        complete(warp, current / LANES * LANES, __builtin_ctz(left));
}

void fiber_main() {
#ifdef EMULATOR_ADDRESS
    const void* bottom;
    std::size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!machine.bottom) machine.bottom = bottom, machine.bytes = bytes;
#endif
    for (;;) {
        acquire(&start_sync);
        kernel->call(arguments);
        release(&end_sync);
        Fiber* mine = threads[current].fiber;
        threads[current].fiber = nullptr;
        thread_done();
        if (!STACK_EACH) free_fibers[free_count++] = mine;  // taken again at once where the next thread is a fresh one
        run_next(*mine);
    }
}

}  // namespace
