// Part of runtime.cpp: mbarriers, bulk copies by tensor maps that arrive at them, and work of a thread in the
// background (wgmma). An mbarrier is the 64-bit word in shared memory that a kernel names:
//
//   bits 0-11 arrivals of a phase, 12-23 those missing in this phase, 24 parity of this phase, 25-31 MAGIC,
//   32-63 bytes that are expected and have not landed (negative where they landed before they were expected)
//
// so that what overwrites it, or nobody made, shows.
#pragma once

#include "schedule.h"

namespace {

constexpr unsigned MAGIC = 0x5a, MOST_ARRIVALS = 0xfff;

struct Mbarrier {
    unsigned arrivals, missing, parity;
    int bytes;
};

bool is_shared(const void* place, std::size_t bytes);

Mbarrier mbarrier_at(const void* word, const char* file, int line) {
    if (reinterpret_cast<std::uintptr_t>(word) % 8) fail("an mbarrier at no multiple of 8", file, line);
    if (!SANITIZED && !is_shared(word, 8)) fail("an mbarrier outside shared memory", file, line);
    const std::uint64_t bits = *static_cast<const volatile std::uint64_t*>(word);
    if ((bits >> 25 & 0x7f) != MAGIC) fail("what was initialised as no mbarrier, or overwritten, is used", file, line);
    return {unsigned(bits & 0xfff), unsigned(bits >> 12 & 0xfff), unsigned(bits >> 24 & 1), int(bits >> 32)};
}

void store_mbarrier(void* word, const Mbarrier& b) {
    const std::uint64_t low = b.arrivals | b.missing << 12 | b.parity << 24 | MAGIC << 25;
    *static_cast<volatile std::uint64_t*>(word) = low | std::uint64_t(unsigned(b.bytes)) << 32;
}

// The phase ends where nothing is missing: whoever waits for that may go on.
void end_phase(void* word, Mbarrier b) {
    if (b.missing == 0 && b.bytes == 0) {
        b.parity ^= 1;
        b.missing = b.arrivals;
        for (int t = 0; t < total; t++)
            if (threads[t].state == State::AT_MBARRIER && threads[t].mbarrier == word) make_ready(t);
    }
    store_mbarrier(word, b);
}

// ---- copies

struct Bulk {
    EmulatorTensorMap map;
    EmulatorBulk what;
};

constexpr unsigned MOST_BULKS = 256;
Bulk bulks[MOST_BULKS];  // in flight, oldest first

// Bytes of a row of 128 in memory, of which those beyond `end` elements do not exist; nullptr: none does.
void land_row(char* to, const char* from, int first, int end, int item_bytes) {
    const int there = from ? end - first : 0;
    for (int chunk = 0; chunk < 8; chunk++) {
        std::uintptr_t place = reinterpret_cast<std::uintptr_t>(to) + 16 * chunk;
        place ^= (place >> 7 & 7) << 4;  // the swizzle counts rows of 128 bytes by their addresses
        for (int byte = 0; byte < 16; byte++) {
            const int element = (16 * chunk + byte) / item_bytes;
            *reinterpret_cast<volatile char*>(place + byte) = element < there ? from[16 * chunk + byte] : 0;
        }
    }
}

// A box of up to four axes, innermost first; zeros outside of the tensor.
void land_tile(const EmulatorTensorMap& m, const EmulatorBulk& b) {
    char* to = static_cast<char*>(b.to);
    for (int z = 0; z < m.box[3]; z++)
        for (int y = 0; y < m.box[2]; y++)
            for (int x = 0; x < m.box[1]; x++, to += 128) {
                const int at[3] = {b.at[1] + x, b.at[2] + y, b.at[3] + z};
                bool inside = b.at[0] >= 0;
                for (int i = 0; i < 3; i++) inside = inside && at[i] >= 0 && at[i] < m.size[i + 1];
                const long long place = ((long long)(at[2]) * m.size[2] + at[1]) * m.size[1] + at[0];
                const long long element = place * m.size[0] + b.at[0];
                land_row(to, inside ? m.address + element * m.item_bytes : nullptr, b.at[0], m.size[0], m.item_bytes);
            }
}

// Pixels one after another: along w in steps within the bounding box, then along h, then the next image; each is
// read `offset` further. Axes: c, w, h, n.
void land_pixels(const EmulatorTensorMap& m, const EmulatorBulk& b) {
    char* to = static_cast<char*>(b.to);
    int at[2] = {b.at[1], b.at[2]}, image = b.at[3];
    for (int pixel = 0; pixel < m.box[1]; pixel++, to += 128) {
        const int w = at[0] + b.offset[0], h = at[1] + b.offset[1];
        const bool inside = b.at[0] >= 0 && w >= 0 && w < m.size[1] && h >= 0 && h < m.size[2] && image < m.size[3];
        const long long place = ((long long)(image) * m.size[2] + h) * m.size[1] + w;
        const long long element = place * m.size[0] + b.at[0];
        land_row(to, inside ? m.address + element * m.item_bytes : nullptr, b.at[0], m.size[0], m.item_bytes);
        for (int axis = 0; axis < 2; axis++) {
            at[axis] += m.step[axis];
            if (at[axis] < m.size[axis + 1] + m.upper[axis]) break;
            at[axis] = m.lower[axis];
            if (axis == 1) image++;
        }
    }
}

int bytes_of(const EmulatorTensorMap& m) {
    return 128 * (m.mode == EMULATOR_TILED ? m.box[1] * m.box[2] * m.box[3] : m.box[1]);
}

void land_bulk(unsigned which) {
    const Bulk bulk = bulks[which];
    for (unsigned i = which + 1; i < bulk_count; i++) bulks[i - 1] = bulks[i];
    bulk_count--;
    if (bulk.map.mode == EMULATOR_TILED) land_tile(bulk.map, bulk.what);
    else land_pixels(bulk.map, bulk.what);
    Mbarrier b = mbarrier_at(bulk.what.mbarrier, bulk.what.file, bulk.what.line);
    b.bytes -= bytes_of(bulk.map);
    end_phase(bulk.what.mbarrier, b);
}

// Nobody can run: what is in flight has all the time it needs. The oldest lands, in random orders any.
bool land_one() {
    if (!bulk_count) return false;
    land_bulk(launch->order > 1 ? next_random() % bulk_count : 0);
    return true;
}

void check_bulk(const EmulatorTensorMap& m, const EmulatorBulk& b) {
    const auto refuse = [&](const char* what) { fail(what, b.file, b.line); };
    if (m.mode != b.mode) refuse("a bulk copy by a tensor map of another mode, or none,");
    if (m.box[0] * m.item_bytes != 128) refuse("a bulk copy whose rows are not 128 bytes");
    if (reinterpret_cast<std::uintptr_t>(b.to) % 128) refuse("a bulk copy to no multiple of 128");
    if (!SANITIZED && !is_shared(b.to, std::size_t(bytes_of(m)))) refuse("a bulk copy to outside shared memory");
    if (m.mode == EMULATOR_TILED) return;
    for (int i = 0; i < 2; i++) {
        if (b.offset[i] < 0 || b.offset[i] > 255) refuse("an im2col offset that 8 bits do not hold");
        const int from = b.at[i + 1] - m.lower[i], end = m.size[i + 1] + m.upper[i] - m.lower[i];
        if (from < 0 || from >= end || from % m.step[i]) refuse("an im2col copy from no pixel of its bounding box");
    }
}

void check_bulks() {  // when a block ends
    if (!bulk_count) return;
    const EmulatorBulk& left = bulks[0].what;
    message = text("%u bulk copies are in flight when the block ends, one from %s:%d", bulk_count,
                   base_name(left.file), left.line);
    failed = true;
}

}  // namespace

// ---- what kernels call

extern "C" {

void emulator_mbarrier_init(void* mbarrier, int arrivals, const char* file, int line) {
    if (arrivals < 1 || unsigned(arrivals) > MOST_ARRIVALS)
        fail(text("an mbarrier of %d arrivals", arrivals), file, line);
    if (reinterpret_cast<std::uintptr_t>(mbarrier) % 8) fail("an mbarrier at no multiple of 8", file, line);
    if (!SANITIZED && !is_shared(mbarrier, 8)) fail("an mbarrier outside shared memory", file, line);
    store_mbarrier(mbarrier, {unsigned(arrivals), unsigned(arrivals), 0, 0});
}

void emulator_mbarrier_arrive(void* mbarrier, int bytes, const char* file, int line) {
    Mbarrier b = mbarrier_at(mbarrier, file, line);
    if (!b.missing) fail("more arrivals at an mbarrier than a phase of it has", file, line);
    release(mbarrier);
    b.missing--;
    b.bytes += bytes;
    end_phase(mbarrier, b);
}

void emulator_mbarrier_wait(void* mbarrier, unsigned parity, const char* file, int line) {
    while (mbarrier_at(mbarrier, file, line).parity == parity) {
        Thread& thread = threads[current];
        thread.state = State::AT_MBARRIER;
        thread.place = {file, line};
        thread.mbarrier = mbarrier;
        suspend();
    }
    acquire(mbarrier);
}

// Bulk copies land when nobody can run, in descending order at once, in random orders at any time.
void emulator_bulk(const EmulatorTensorMap* map, const EmulatorBulk* what) {
    check_bulk(*map, *what);
    mbarrier_at(what->mbarrier, what->file, what->line);
    if (bulk_count == MOST_BULKS) fail("too many bulk copies in flight", what->file, what->line);
    written(what->to, std::size_t(bytes_of(*map)));  // from now on, at any time, until the mbarrier says so
    release(what->mbarrier);
    bulks[bulk_count++] = {*map, *what};
    if (launch->order == 1 || (launch->order > 1 && !(next_random() & 3))) land_bulk(bulk_count - 1);
}

// Work in the background is done when it is waited for, in descending order at once, in random orders the one or the
// other; the work of one thread in the order in which it was given.
void emulator_later(void (*run)(void*, const void*, const void*), void* d, const void* a, const void* b) {
    Thread& thread = threads[current];
    const bool none = thread.works_begin == thread.works_end;
    if (launch->order == 1 || (launch->order > 1 && none && next_random() & 1)) return run(d, a, b);
    if (thread.works_end - thread.works_begin == MOST_WORKS) fail("too much wgmma in flight: wait", "wgmma", 0);
    thread.works[thread.works_end++ % MOST_WORKS] = {run, d, a, b};
    thread.works_open++;
}

void emulator_later_commit() {
    Thread& thread = threads[current];
    if (thread.work_groups_end - thread.work_groups_begin == MOST_WORKS)
        fail("too many groups of wgmma in flight: wait", "wgmma", 0);
    thread.work_groups[thread.work_groups_end++ % MOST_WORKS] = thread.works_open;
    thread.works_open = 0;
}

void emulator_later_wait(int groups) {
    Thread& thread = threads[current];
    for (; thread.work_groups_end - thread.work_groups_begin > unsigned(groups); thread.work_groups_begin++)
        for (unsigned i = thread.work_groups[thread.work_groups_begin % MOST_WORKS]; i; i--) {
            const Work work = thread.works[thread.works_begin++ % MOST_WORKS];
            work.run(work.d, work.a, work.b);
        }
}

}  // extern "C"
