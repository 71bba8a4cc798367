// Runs one kernel: blocks one after another, and the threads of a block as fibers of one thread of the machine. A thread
// runs until it waits for others; which one is next is the order's business, so that a result that depends on it shows.
//
// Three builds: plain (in the process of the tests; a fault of the kernel becomes a message), and one each beside
// AddressSanitizer and ThreadSanitizer (EMULATOR_ADDRESS, EMULATOR_THREAD), which are told about fibers and barriers.
// This file itself is never instrumented.

#include "launch.h"

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#include <vector>

#include "emulator.h"

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

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

void fiber_main();

// ---- the state of the launch

struct Place {
    const char* file = "";
    int line = 0;
    bool operator==(const Place& other) const { return line == other.line && (file == other.file || !std::strcmp(file, other.file)); }
};

enum class State : std::uint8_t { FRESH, READY, AT_BARRIER, IN_WARP, DONE };
enum class Op : std::uint8_t { SYNC, SHUFFLE, VOTE, LDMATRIX, MMA };
const char* const OP_NAMES[] = {"__syncwarp", "a shuffle", "a vote", "ldmatrix", "mma"};

constexpr unsigned MOST_COPIES = 512;

struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    bool valid;
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
    int arrived = 0, kind = 0, count = 0;
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
const EmulatorKernel* kernel;
const EmulatorLibrary* library;
const EmulatorLaunch* launch;
void** arguments;
char *dynamic_shared, *shared_memory;
char start_sync, end_sync;  // what ThreadSanitizer orders blocks by, and not the threads of one block
bool running, failed;
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
    return text(" (block %u,%u,%u, thread %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
}

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
    void* memory = mmap(nullptr, STACK_BYTES + PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
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
        std::string what = thread.state == State::AT_BARRIER ? "__syncthreads" : OP_NAMES[int(warp.op[t % LANES])];
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
    const int next = pick();
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

// ---- what warps do together

int shuffle_source(int kind, int lane, int by, int width) {
    const int first = lane & ~(width - 1), last = lane | (width - 1);
    int source = lane;
    if (kind == 0) return first | (by & (width - 1));
    if (kind == 1) source = lane - by;
    if (kind == 2) source = lane + by;
    if (kind == 3) return (source = lane ^ by) > last ? lane : source;
    return source < first || source > last ? lane : source;
}

float truncated(double x) {  // toward zero, as tensor cores round their sums
    float result = float(x);
    if (std::fabs(double(result)) > std::fabs(x) && std::isfinite(result)) result = std::nextafterf(result, 0.f);
    return result;
}

// Registers of mma.m16n8k*: register i of a holds, in lane l, row l / 4 + 8 (i % 2) and the elements of column
// (l % 4) * each + 4 * each * (i / 2) on; register i of b column l / 4 and the rows likewise; d element i row
// l / 4 + 8 (i / 2), column 2 (l % 4) + i % 2. `each` is how many elements a register has.
template <int EACH, class Decode>
void multiply_floats(Warp& warp, Decode decode) {
    constexpr int K = 8 * EACH;
    double a[16][K], b[K][8];
    for (int lane = 0; lane < LANES; lane++)
        for (int e = 0; e < EACH; e++) {
            const int at = lane % 4 * EACH + e;
            for (int i = 0; i < 4; i++) a[lane / 4 + 8 * (i % 2)][at + 4 * EACH * (i / 2)] = decode(warp.words[lane][i], e);
            for (int i = 0; i < 2; i++) b[at + 4 * EACH * i][lane / 4] = decode(warp.words[lane][4 + i], e);
        }
    double sum[16][8] = {};
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++) sum[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            unsigned& word = warp.words[lane][6 + i];
            word = __float_as_uint(truncated(sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] + double(__uint_as_float(word))));
        }
}

template <class Dot>
void multiply_integers(Warp& warp, Dot dot) {  // dot: of two registers
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4, column = 2 * (lane % 4) + i % 2;
            unsigned sum = warp.words[lane][6 + i];
            for (int t = 0; t < 4; t++)
                for (int half = 0; half < 2; half++)
                    sum += unsigned(dot(warp.words[4 * row + t][i / 2 + 2 * half], warp.words[4 * column + t][4 + half]));
            warp.words[lane][6 + i] = sum;
        }
}

void multiply(Warp& warp, int kind) {
    switch (kind) {
        case 0: return multiply_floats<2>(warp, [](unsigned w, int e) { return double(emulator_half_to_float(std::uint16_t(w >> 16 * e))); });
        case 1: return multiply_floats<2>(warp, [](unsigned w, int e) { return double(emulator_bfloat16_to_float(std::uint16_t(w >> 16 * e))); });
        case 2: return multiply_floats<1>(warp, [](unsigned w, int) { return double(__uint_as_float(w & 0xffffe000u)); });
        case 3: return multiply_integers(warp, [](unsigned a, unsigned b) { return __dp4a(int(a), int(b), 0); });
        case 4: return multiply_integers(warp, [](unsigned a, unsigned b) { return __popc(a & b); });
        default: return multiply_integers(warp, [](unsigned a, unsigned b) { return __popc(a ^ b); });
    }
}

void load_tiles(Warp& warp, int tiles, bool transposed) {
    std::uint16_t cells[4][8][8];
    for (int lane = 0; lane < 8 * tiles; lane++) __builtin_memcpy(cells[lane / 8][lane % 8], warp.words[lane], 16);
    for (int lane = 0; lane < LANES; lane++)
        for (int t = 0; t < tiles; t++) {
            const int row = lane / 4, column = 2 * (lane % 4);
            const unsigned low = transposed ? cells[t][column][row] : cells[t][row][column];
            const unsigned high = transposed ? cells[t][column + 1][row] : cells[t][row][column + 1];
            warp.words[lane][t] = low | high << 16;
        }
}

void carry_out(Warp& warp, Op op, unsigned lanes, int lane) {
    if (op == Op::SHUFFLE) {
        std::uint64_t result[LANES];
        for (int l = 0; l < LANES; l++) {
            const int source = warp.detail[l];
            result[l] = lanes >> l & 1 ? (lanes >> source & 1 ? warp.bits[source] : ~0ull) : 0;  // no such lane: poison
        }
        for (int l = 0; l < LANES; l++)
            if (lanes >> l & 1) warp.bits[l] = result[l];
    } else if (op == Op::VOTE) {
        unsigned ballot = 0;
        for (int l = 0; l < LANES; l++)
            if (lanes >> l & 1) ballot |= unsigned(warp.bits[l]) << l;
        for (int l = 0; l < LANES; l++)
            if (lanes >> l & 1) warp.bits[l] = ballot;
    } else if (op == Op::LDMATRIX) {
        load_tiles(warp, warp.detail[lane] & 7, warp.detail[lane] & 8);
    } else if (op == Op::MMA) {
        multiply(warp, warp.detail[lane]);
    } else {
        warp.generation++;
    }
}

// Whether all lanes that `lane` waits for have arrived at the same place; if so, does what they came for.
void complete(Warp& warp, int first, int lane) {
    const bool needs_all = warp.op[lane] == Op::MMA || warp.op[lane] == Op::LDMATRIX;
    const unsigned lanes = needs_all ? ~0u : warp.mask[lane] & warp.exist & ~warp.exited;
    if ((warp.waiting & lanes) != lanes) return;
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1)
            if (warp.op[l] != warp.op[lane] || warp.mask[l] != warp.mask[lane] || !(threads[first + l].place == threads[first + lane].place)) return;
    carry_out(warp, warp.op[lane], lanes, lane);
    warp.waiting &= ~lanes;
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) make_ready(first + l);
}

Warp& warp_of_current() { return warps[current / LANES]; }

void meet(Op op, unsigned mask, int detail, const char* file, int line) {
    const int lane = current % LANES;
    Warp& warp = warp_of_current();
    if (!(mask >> lane & 1)) emulator_fail(text("%s with mask %08x by lane %d, which is not in it", OP_NAMES[int(op)], mask, lane).c_str(), file, line);
    if ((op == Op::MMA || op == Op::LDMATRIX) && (warp.exist & ~warp.exited) != ~0u)
        emulator_fail(text("%s needs all 32 lanes, and some do not exist or have exited,", OP_NAMES[int(op)]).c_str(), file, line);
    threads[current].state = State::IN_WARP;
    threads[current].place = {file, line};
    warp.op[lane] = op, warp.mask[lane] = mask, warp.detail[lane] = detail;
    warp.waiting |= 1u << lane;
    complete(warp, current / LANES * LANES, lane);
    suspend();
}

// ---- copies in the background

void land(Copy& copy) {
    written(copy.to, copy.bytes);
    if (!copy.valid) {
        for (unsigned i = 0; i < copy.bytes; i += 4) *reinterpret_cast<volatile unsigned*>(static_cast<char*>(copy.to) + i) = 0;
        return;
    }
    for (unsigned i = 0; i < copy.bytes; i += 4)
        *reinterpret_cast<volatile unsigned*>(static_cast<char*>(copy.to) + i) = *reinterpret_cast<const volatile unsigned*>(static_cast<const char*>(copy.from) + i);
}

bool is_shared(const void* place, std::size_t bytes) {
    const char* p = static_cast<const char*>(place);
    return (p >= dynamic_shared && p + bytes <= dynamic_shared + launch->shared_bytes) || (p >= library->shared_begin && p + bytes <= library->shared_end);
}

// ---- faults

sigjmp_buf out_of_fault;
constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGVTALRM};
struct sigaction former[sizeof FAULTS / sizeof *FAULTS];
stack_t former_stack;

void on_fault(int signal, siginfo_t* info, void*) {
    const char* what = signal == SIGFPE      ? "division of an integer by zero"
                       : signal == SIGVTALRM ? "the kernel does not end"
                       : signal == SIGILL    ? "an illegal instruction: code that cannot be reached was"
                                             : "an access to memory that is not there";
    message = what;
    if (signal == SIGSEGV || signal == SIGBUS) message += text(": address %p", info->si_addr);
    message += where();
    failed = true;
    siglongjmp(out_of_fault, 1);
}

void catch_faults() {
    static char stack[64 << 10];
    stack_t own{};
    own.ss_sp = stack, own.ss_size = sizeof stack;
    sigaltstack(&own, &former_stack);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (std::size_t i = 0; i < std::size(FAULTS); i++) sigaction(FAULTS[i], &action, &former[i]);
    const itimerval limit{{0, 0}, {long(launch->seconds), 0}};
    setitimer(ITIMER_VIRTUAL, &limit, nullptr);
}

void leave_faults() {
    const itimerval none{};
    setitimer(ITIMER_VIRTUAL, &none, nullptr);
    for (std::size_t i = 0; i < std::size(FAULTS); i++) sigaction(FAULTS[i], &former[i], nullptr);
    sigaltstack(&former_stack, nullptr);
}

// ---- blocks

void start_block() {
    acquire(&end_sync);
    if (library->shared_end > library->shared_begin) poison(library->shared_begin, std::size_t(library->shared_end - library->shared_begin));
    if (SANITIZED) poison(shared_memory, launch->shared_bytes);
    else poison(shared_memory, launch->shared_bytes + 2 * GUARD_BYTES);
    release(&start_sync);
    for (int t = 0; t < total; t++) {
        Thread& thread = threads[t];
        thread.state = State::FRESH;
        thread.copies_begin = thread.copies_end = thread.groups_begin = thread.groups_end = thread.open = 0;
    }
    ready_warps = 0;
    for (int w = 0; w * LANES < total; w++) {
        Warp& warp = warps[w];
        warp.exist = total - w * LANES >= LANES ? ~0u : (1u << (total - w * LANES)) - 1;
        warp.ready = warp.exist, warp.exited = warp.waiting = 0;
        ready_warps |= 1u << w;
    }
    barrier.arrived = 0;
    finished = 0;
    warp_in_turn = choose(ready_warps);
}

void check_guards() {
    if (SANITIZED) return;
    for (std::size_t i = 0; i < 2 * GUARD_BYTES; i++) {
        const bool after = i >= GUARD_BYTES;
        const std::size_t at = after ? launch->shared_bytes + i : GUARD_BYTES - 1 - i;
        if (static_cast<unsigned char>(shared_memory[at]) != POISON) {
            message = text("a write %zu bytes %s dynamic shared memory of %u bytes", after ? i - GUARD_BYTES : i + 1,
                           after ? "after the end of" : "before", launch->shared_bytes);
            message += text(" (block %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
            failed = true;
            return;
        }
    }
}

void run_block() {
    start_block();
    const int first = pick();
    threads[first].fiber = take_fiber();
    enter(first);
    switch_to(machine, *threads[first].fiber);
    if (!failed) check_guards();
    if (STACK_EACH) free_all_fibers();
}

void run_blocks() {
    const std::uint64_t count = std::uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
    std::vector<unsigned> shuffled;
    if (launch->order > 1) {
        shuffled.resize(count);
        std::iota(shuffled.begin(), shuffled.end(), 0u);
        for (std::uint64_t i = count; i > 1; i--) std::swap(shuffled[i - 1], shuffled[next_random() % i]);
    }
    for (std::uint64_t i = 0; i < count && !failed; i++) {
        const std::uint64_t b = launch->order == 0 ? i : launch->order == 1 ? count - 1 - i : shuffled[i];
        blockIdx.x = unsigned(b % launch->grid[0]);
        blockIdx.y = unsigned(b / launch->grid[0] % launch->grid[1]);
        blockIdx.z = unsigned(b / launch->grid[0] / launch->grid[1]);
        run_block();
    }
    acquire(&end_sync);
}

std::string refusal() {  // what a GPU would refuse to launch
    const std::uint64_t count = std::uint64_t(launch->block[0]) * launch->block[1] * launch->block[2];
    if (!count || count > MOST_THREADS || launch->block[2] > 64) return text("%llu threads in a block", (unsigned long long)count);
    if (int(count) > kernel->most_threads) return text("%llu threads in a block, more than __launch_bounds__ promises: %d", (unsigned long long)count, kernel->most_threads);
    if (!launch->grid[0] || !launch->grid[1] || !launch->grid[2] || launch->grid[0] > 0x7fffffff || launch->grid[1] > 65535 || launch->grid[2] > 65535)
        return text("a grid of %u,%u,%u blocks", launch->grid[0], launch->grid[1], launch->grid[2]);
    const std::size_t fixed = std::size_t(library->shared_end - library->shared_begin);
    if (fixed > 48 << 10) return text("%zu bytes of static shared memory, more than 48 KiB", fixed);
    if (launch->shared_bytes + fixed > launch->shared_limit) return text("%u + %zu bytes of shared memory, more than %u", launch->shared_bytes, fixed, launch->shared_limit);
    return "";
}

void set_up() {
    blockDim = {launch->block[0], launch->block[1], launch->block[2]};
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    total = int(blockDim.x * blockDim.y * blockDim.z);
    for (int t = 0; t < total; t++) {
        const unsigned u = unsigned(t);
        threads[t].index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
        threads[t].fiber = nullptr;
    }
    random_state = 0x9e3779b97f4a7c15ull * (launch->order + 1);
    const std::size_t bytes = launch->shared_bytes + (SANITIZED ? 0 : 2 * GUARD_BYTES);
    void* memory = nullptr;
    if (bytes && posix_memalign(&memory, 128, bytes)) std::abort();
    shared_memory = static_cast<char*>(memory);
    dynamic_shared = shared_memory + (SANITIZED ? 0 : GUARD_BYTES);
#ifdef EMULATOR_THREAD
    machine.tsan = __tsan_get_current_fiber();
    while (fiber_count < total) new_fiber();
    free_all_fibers();
#endif
}

}  // namespace

// ---- what kernels call

extern "C" {

void emulator_fail(const char* what, const char* file, int line) {
    give_up(*threads[current].fiber, text("%s at %s:%d", what, base_name(file), line) + where());
}

void* emulator_dynamic_shared() { return dynamic_shared; }

int emulator_lane() { return current % LANES; }

int emulator_barrier(int kind, int value, const char* file, int line) {
    Thread& thread = threads[current];
    thread.place = {file, line};
    if (!barrier.arrived++) {
        barrier.place = thread.place, barrier.count = 0;
    } else if (!(barrier.place == thread.place)) {
        emulator_fail(text("threads of a block wait at different barriers: others at %s:%d, this one", base_name(barrier.place.file), barrier.place.line).c_str(), file, line);
    }
    const unsigned turn = barrier.generation & 1;
    barrier.count += value;
    release(&barrier.sync[turn]);
    thread.state = State::AT_BARRIER;
    if (barrier.arrived == total) {
        barrier.result[turn] = kind == 1 ? barrier.count : kind == 2 ? barrier.count > 0 : barrier.count == total;
        barrier.arrived = 0;
        barrier.generation++;
        for (int t = 0; t < total; t++) make_ready(t);
        warp_in_turn = choose(ready_warps);
    }
    suspend();
    acquire(&barrier.sync[turn]);
    return barrier.result[turn];
}

void emulator_warp_sync(unsigned mask, const char* file, int line) {
    Warp& warp = warp_of_current();
    const unsigned turn = warp.generation & 1;
    release(&warp.sync[turn]);
    meet(Op::SYNC, mask, 0, file, line);
    acquire(&warp.sync[turn]);
}

std::uint64_t emulator_shuffle(int kind, unsigned mask, std::uint64_t value, int by, int width, const char* file, int line) {
    if (width < 1 || width > LANES || (width & (width - 1))) emulator_fail("the width of a shuffle must be 1, 2, 4, 8, 16 or 32", file, line);
    const int lane = current % LANES;
    Warp& warp = warp_of_current();
    warp.bits[lane] = value;
    meet(Op::SHUFFLE, mask, shuffle_source(kind, lane, by, width), file, line);
    return warp.bits[lane];
}

unsigned emulator_ballot(unsigned mask, bool value, const char* file, int line) {
    const int lane = current % LANES;
    Warp& warp = warp_of_current();
    warp.bits[lane] = value;
    meet(Op::VOTE, mask, 0, file, line);
    return unsigned(warp.bits[lane]);
}

void emulator_check_row(const void* row, int, const char* file, int line) {
    if (reinterpret_cast<std::uintptr_t>(row) % 16) emulator_fail("ldmatrix from an address that is no multiple of 16", file, line);
    if (!SANITIZED && !is_shared(row, 16)) emulator_fail("ldmatrix from outside shared memory", file, line);
}

void emulator_ldmatrix(unsigned* result, const unsigned (&row)[4], int tiles, bool transposed, const char* file, int line) {
    const int lane = current % LANES;
    Warp& warp = warp_of_current();
    for (int i = 0; i < 4; i++) warp.words[lane][i] = row[i];
    meet(Op::LDMATRIX, ~0u, tiles | (transposed ? 8 : 0), file, line);
    for (int i = 0; i < tiles; i++) result[i] = warp.words[lane][i];
}

void emulator_mma(int kind, void* d, const unsigned* a, const unsigned* b, const char* file, int line) {
    const int lane = current % LANES;
    unsigned* words = warp_of_current().words[lane];
    for (int i = 0; i < 4; i++) words[i] = a[i];
    for (int i = 0; i < 2; i++) words[4 + i] = b[i];
    __builtin_memcpy(words + 6, d, 16);
    meet(Op::MMA, ~0u, kind, file, line);
    __builtin_memcpy(d, words + 6, 16);
}

void emulator_check_copy(const void* to, const void* from, unsigned bytes, bool valid, const char* file, int line) {
    if (reinterpret_cast<std::uintptr_t>(to) % bytes || (valid && reinterpret_cast<std::uintptr_t>(from) % bytes))
        emulator_fail(text("cp.async of %u bytes from or to an address that is no multiple of them", bytes).c_str(), file, line);
    if (!SANITIZED && !is_shared(to, bytes)) emulator_fail("cp.async to outside shared memory", file, line);
    if (valid && is_shared(from, bytes)) emulator_fail("cp.async from shared memory", file, line);
}

// Copies land when they are waited for, in descending order at once, in random orders the one or the other.
void emulator_copy(void* to, const void* from, unsigned bytes, bool valid) {
    Thread& thread = threads[current];
    Copy copy{to, from, bytes, valid};
    written(to, bytes);  // from now on, at any time
    if (launch->order == 1 || (launch->order > 1 && next_random() & 1)) {
        land(copy);
        return;
    }
    if (thread.copies_end - thread.copies_begin == MOST_COPIES) emulator_fail("too many copies in flight: wait for some", "cp.async", 0);
    thread.copies[thread.copies_end++ % MOST_COPIES] = copy;
    thread.open++;
}

void emulator_copy_commit() {
    Thread& thread = threads[current];
    if (thread.groups_end - thread.groups_begin == MOST_COPIES) emulator_fail("too many groups of copies in flight: wait for some", "cp.async", 0);
    thread.groups[thread.groups_end++ % MOST_COPIES] = thread.open;
    thread.open = 0;
}

void emulator_copy_wait(int groups) {
    Thread& thread = threads[current];
    for (; thread.groups_end - thread.groups_begin > unsigned(groups); thread.groups_begin++)
        for (unsigned i = thread.groups[thread.groups_begin % MOST_COPIES]; i; i--) land(thread.copies[thread.copies_begin++ % MOST_COPIES]);
}

#if !defined(EMULATOR_ADDRESS) && !defined(EMULATOR_THREAD)
// Called by code that is compiled with -fsanitize=alignment, before an access that is not aligned for its type.
void __ubsan_handle_type_mismatch_v1_abort(const char* const* place, std::uintptr_t pointer) {
    const auto line = *reinterpret_cast<const std::uint32_t*>(place + 1);
    emulator_fail(text("an access to %p, which is not aligned for its type,", reinterpret_cast<void*>(pointer)).c_str(), place[0], int(line));
}
#endif

int emulator_launch(const EmulatorLibrary* of, const EmulatorKernel* which, const EmulatorLaunch* how, void** values, char* report, std::size_t size) {
    library = of, kernel = which, launch = how, arguments = values;
    failed = false;
    message = refusal();
    if (!message.empty()) {
        std::snprintf(report, size, "%s: cannot be launched: %s", kernel->name, message.c_str());
        return 1;
    }
    set_up();
    if (!SANITIZED) {
        if (!sigsetjmp(out_of_fault, 1)) {
            catch_faults();
            run_blocks();
        }
        leave_faults();
    } else {
        run_blocks();
    }
    std::free(shared_memory);
    if (failed) {  // the fibers stand somewhere inside the kernel
        for (int i = 0; i < fiber_count; i++) prepare(fibers[i]);
        free_all_fibers();
        std::snprintf(report, size, "%s: %s", kernel->name, message.c_str());
    }
    return failed;
}

}  // extern "C"
