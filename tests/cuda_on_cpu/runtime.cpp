// Runs one kernel: blocks one after another, and the threads of a block as fibers of one thread of the machine. A
// thread runs until it waits for others; which one is next is the order's business, so that a result that depends on
// it shows.
//
// Three builds: plain (in the process of the tests; a fault of the kernel becomes a message), and one each beside
// AddressSanitizer and ThreadSanitizer (EMULATOR_ADDRESS, EMULATOR_THREAD), which are told about fibers and barriers.
// This file itself is never instrumented.

#include <csetjmp>
#include <csignal>
#include <iterator>
#include <numeric>
#include <sys/time.h>

#include "bulk.h"
#include "schedule.h"
#include "state.h"
#include "warps.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

// ---- copies in the background

void land(Copy& copy) {
    written(copy.to, copy.bytes);
    auto* to = static_cast<volatile unsigned*>(copy.to);
    auto* from = static_cast<const volatile unsigned*>(copy.from);
    for (unsigned i = 0; i < copy.bytes / 4; i++) to[i] = copy.valid ? from[i] : 0u;
}

bool is_shared(const void* place, std::size_t bytes) {
    const char* p = static_cast<const char*>(place);
    return (p >= dynamic_shared && p + bytes <= dynamic_shared + launch->shared_bytes) ||
           (p >= library->shared_begin && p + bytes <= library->shared_end);
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
    poison(library->shared_begin, std::size_t(library->shared_end - library->shared_begin));
    if (SANITIZED) poison(shared_memory, launch->shared_bytes);
    else poison(shared_memory, launch->shared_bytes + 2 * GUARD_BYTES);
    release(&start_sync);
    for (int t = 0; t < total; t++) {
        Thread& thread = threads[t];
        thread.state = State::FRESH;
        thread.copies_begin = thread.copies_end = thread.groups_begin = thread.groups_end = thread.open = 0;
        thread.works_begin = thread.works_end = thread.work_groups_begin = thread.work_groups_end = 0;
        thread.works_open = 0;
    }
    ready_warps = 0;
    for (int w = 0; w * LANES < total; w++) {
        Warp& warp = warps[w];
        warp.exist = total - w * LANES >= LANES ? ~0u : (1u << (total - w * LANES)) - 1;
        warp.ready = warp.exist, warp.exited = warp.waiting = 0;
        ready_warps |= 1u << w;
    }
    barrier.arrived = 0;
    bulk_count = 0;
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
    if (!failed) check_bulks();
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
    const unsigned *block = launch->block, *grid = launch->grid;
    const unsigned long long count = 1ull * block[0] * block[1] * block[2];
    if (!count || count > MOST_THREADS || block[2] > 64) return text("%llu threads in a block", count);
    if (int(count) > kernel->most_threads)
        return text("%llu threads in a block, more than __launch_bounds__ promises: %d", count, kernel->most_threads);
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
        return text("a grid of %u,%u,%u blocks", grid[0], grid[1], grid[2]);
    const std::size_t fixed = std::size_t(library->shared_end - library->shared_begin);
    if (fixed > 48 << 10) return text("%zu bytes of static shared memory, more than 48 KiB", fixed);
    if (launch->shared_bytes + fixed > launch->shared_limit)
        return text("%u + %zu bytes of shared memory, more than %u", launch->shared_bytes, fixed, launch->shared_limit);
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
    static Fiber none;  // a thread that is done has no fiber any more
    Fiber& from = threads[current].fiber ? *threads[current].fiber : none;
    give_up(from, text("%s at %s:%d", what, base_name(file), line) + where());
}

void* emulator_dynamic_shared() { return dynamic_shared; }

int emulator_lane() { return current % LANES; }

int emulator_barrier(int kind, int value, const char* file, int line) {
    Thread& thread = threads[current];
    thread.place = {file, line};
    if (!barrier.arrived++) {
        barrier.place = thread.place, barrier.count = 0;
    } else if (!(barrier.place == thread.place)) {
        fail(text("threads of a block wait at different barriers: others at %s:%d, this one",
                  base_name(barrier.place.file), barrier.place.line), file, line);
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

std::uint64_t emulator_shuffle(int kind, unsigned mask, std::uint64_t value, int by, int width, const char* file,
                               int line) {
    if (width < 1 || width > LANES || (width & (width - 1)))
        fail("the width of a shuffle must be 1, 2, 4, 8, 16 or 32", file, line);
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
    if (reinterpret_cast<std::uintptr_t>(row) % 16)
        fail("ldmatrix from an address that is no multiple of 16", file, line);
    if (!SANITIZED && !is_shared(row, 16)) fail("ldmatrix from outside shared memory", file, line);
}

void emulator_ldmatrix(unsigned* result, const unsigned (&row)[4], int tiles, bool transposed, const char* file,
                       int line) {
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
        fail(text("cp.async of %u bytes from or to an address that is no multiple of them", bytes), file, line);
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
    if (thread.copies_end - thread.copies_begin == MOST_COPIES)
        fail("too many copies in flight: wait for some", "cp.async", 0);
    thread.copies[thread.copies_end++ % MOST_COPIES] = copy;
    thread.open++;
}

void emulator_copy_commit() {
    Thread& thread = threads[current];
    if (thread.groups_end - thread.groups_begin == MOST_COPIES)
        fail("too many groups of copies in flight: wait for some", "cp.async", 0);
    thread.groups[thread.groups_end++ % MOST_COPIES] = thread.open;
    thread.open = 0;
}

void emulator_copy_wait(int groups) {
    Thread& thread = threads[current];
    for (; thread.groups_end - thread.groups_begin > unsigned(groups); thread.groups_begin++)
        for (unsigned i = thread.groups[thread.groups_begin % MOST_COPIES]; i; i--)
            land(thread.copies[thread.copies_begin++ % MOST_COPIES]);
}

#if !defined(EMULATOR_ADDRESS) && !defined(EMULATOR_THREAD)
// Called by code that is compiled with -fsanitize=alignment, before an access that is not aligned for its type.
void __ubsan_handle_type_mismatch_v1_abort(const char* const* place, std::uintptr_t pointer) {
    const auto line = *reinterpret_cast<const std::uint32_t*>(place + 1);
    auto* address = reinterpret_cast<void*>(pointer);
    fail(text("an access to %p, which is not aligned for its type,", address), place[0], int(line));
}
#endif

int emulator_launch(const EmulatorLibrary* of, const EmulatorKernel* which, const EmulatorLaunch* how, void** values,
                    char* report, std::size_t size) {
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
