// Part of emulator.h: how kernels call what runs in the background on Hopper (include/tma.cuh, wgmma.cuh). What it does
// is in bulk.h.
#pragma once

// What the emulator keeps in the 128 bytes of a tensor map: the parameters that it was encoded from. Axes are counted
// from the innermost one; those that are not there have size and box 1. EMULATOR_IM2COL: axes c, w, h, n; box: channels
// and pixels of a copy; lower, upper, step along w and h.
enum { EMULATOR_TILED = 1, EMULATOR_IM2COL = 2 };
struct EmulatorTensorMap {
    const char* address;
    int mode, item_bytes;
    int size[4], box[4];
    int lower[2], upper[2], step[2];
    int unused[14];
};

// A copy in bulk: where to, coordinates, offsets of im2col along w and h, the mbarrier that it arrives at.
struct EmulatorBulk {
    void *to, *mbarrier;
    int mode, at[4], offset[2];
    const char* file;
    int line;
};

extern "C" {
void emulator_mbarrier_init(void* mbarrier, int arrivals, const char* file, int line);
void emulator_mbarrier_arrive(void* mbarrier, int bytes, const char* file, int line);
void emulator_mbarrier_wait(void* mbarrier, unsigned parity, const char* file, int line);
void emulator_bulk(const EmulatorTensorMap* map, const EmulatorBulk* what);
void emulator_later(void (*work)(void* d, const void* a, const void* b), void* d, const void* a, const void* b);
void emulator_later_commit();
void emulator_later_wait(int groups);
}
