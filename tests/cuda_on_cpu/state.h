// Part of runtime.cpp: what is known of the launch, its blocks, warps and threads; words for messages.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

#include "emulator.h"
#include "fibers.h"
#include "launch.h"

namespace {

struct Place {
    const char* file = "";
    int line = 0;
    bool operator==(const Place& other) const {
        return line == other.line && (file == other.file || !std::strcmp(file, other.file));
    }
};

enum class State : std::uint8_t { FRESH, READY, AT_BARRIER, IN_WARP, AT_MBARRIER, DONE };
enum class Op : std::uint8_t { SYNC, SHUFFLE, VOTE, LDMATRIX, MMA };
const char* const OP_NAMES[] = {"__syncwarp", "a shuffle", "a vote", "ldmatrix", "mma"};

constexpr unsigned MOST_COPIES = 512, MOST_WORKS = 64;

struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    bool valid;
};

struct Work {  // of wgmma, which runs in the background
    void (*run)(void* d, const void* a, const void* b);
    void* d;
    const void *a, *b;
};

struct Thread {
    Fiber* fiber = nullptr;
    State state = State::DONE;
    Place place;
    uint3 index{};
    // Copies in flight, oldest first, and how many of them each committed group has that was not waited for. Rings; no
    // memory is allocated while a fiber runs, for ThreadSanitizer would order or accuse threads by it.
    Copy copies[MOST_COPIES];
    unsigned groups[MOST_COPIES];
    unsigned copies_begin, copies_end, groups_begin, groups_end;
    unsigned open;                       // copies after the last commit
    Work works[MOST_WORKS];              // likewise
    unsigned work_groups[MOST_WORKS];
    unsigned works_begin, works_end, work_groups_begin, work_groups_end, works_open;
    const void* mbarrier;                // that it waits at
};

constexpr int LANES = 32, MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / LANES;

struct Warp {
    unsigned exist = 0, exited = 0, ready = 0, waiting = 0;
    unsigned mask[LANES];
    Op op[LANES];
    int detail[LANES];                   // kind of mma; tiles of ldmatrix; source lane of a shuffle
    std::uint64_t bits[LANES];           // of shuffles and votes: what goes in, what comes out
    unsigned words[LANES][12];           // of ldmatrix and mma: a, b, d
    char sync[2];                        // what ThreadSanitizer orders __syncwarp by
    unsigned generation = 0;
};

struct Barrier {
    int arrived = 0, count = 0;
    unsigned generation = 0;
    int result[2] = {0, 0};
    char sync[2];
    Place place;
};

constexpr std::size_t GUARD_BYTES = 256;
constexpr unsigned char POISON = 0xff;  // NaN in every float type, -1 in integers

Fiber fibers[MOST_THREADS], machine;
Fiber* free_fibers[MOST_THREADS];
int fiber_count, free_count;
Thread threads[MOST_THREADS];
Warp warps[MOST_WARPS];
Barrier barrier;
unsigned ready_warps;
int current, total, finished, warp_in_turn;
unsigned bulk_count;  // bulk copies in flight
const EmulatorKernel* kernel;
const EmulatorLibrary* library;
const EmulatorLaunch* launch;
void** arguments;
char *dynamic_shared, *shared_memory;
char start_sync, end_sync;  // what ThreadSanitizer orders blocks by, and not the threads of one block
bool failed;
std::string message;
std::uint64_t random_state;

unsigned next_random() {  // xorshift64*
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return unsigned(random_state * 0x2545f4914f6cdd1dull >> 32);
}

void poison(void* begin, std::size_t bytes) {  // not memset, which sanitizers replace by their own
    auto* p = static_cast<volatile unsigned char*>(begin);
    std::size_t i = 0;
    for (; i < bytes && (reinterpret_cast<std::uintptr_t>(p + i) & 7); i++) p[i] = POISON;
    for (; i + 8 <= bytes; i += 8) *reinterpret_cast<volatile std::uint64_t*>(p + i) = ~0ull;
    for (; i < bytes; i++) p[i] = POISON;
}

std::string text(const char* format, ...) {
    char buffer[1000];
    va_list list;
    va_start(list, format);
    std::vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    return buffer;
}

const char* base_name(const char* file) {
    const char* slash = std::strrchr(file, '/');
    return slash ? slash + 1 : file;
}

std::string where() {
    const uint3 b = blockIdx, t = threadIdx;
    return text(" (block %u,%u,%u, thread %u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
}

[[noreturn]] void fail(const std::string& what, const char* file, int line) { emulator_fail(what.c_str(), file, line); }

}  // namespace
