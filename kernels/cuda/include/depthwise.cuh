// What the NCHW depthwise kernels share: how a patch of planes comes to shared memory.
#pragma once
#include "axis.cuh"
#include "device.cuh"
#include "digits.cuh"

#ifndef THREADS
#define THREADS 256
#endif
#ifndef STRIDE
#define STRIDE 1
#endif

#if STRIDE > 0  // the distance of two outputs' rows is compiled in
#define rows_of dense_window_of
#else
#define rows_of window_of
#endif

// What the host chose. planes, runs, width: threads of a block along planes, runs of rows and columns; window: taps of
// a patch; plane, pitch: floats from plane to plane and row to row of the patch; filters: floats before the patch;
// phases: of axis.cuh; row_tiles, column_tiles: of the largest phase; fours: rows may be copied 16 bytes at a time;
// parts: backward weights, blocks that share the pixels.
struct Tiling {
    int planes, runs, width;
    int window_h, window_w, plane, pitch, filters;
    int phases_h, phases_w, row_tiles, column_tiles;
    int fours, parts;
};

// Planes of height x width elements, `step` floats apart.
struct Source {
    const float* planes;
    long long step;
    int height, width;
};

// Starts copies of the windows of planes (first + i) * times + offset, or (first + i) / divided, i < planes, zeros
// outside; returns the column of the patch at which the window begins (copies of 16 bytes begin at a multiple of four).
__device__ __forceinline__ int load_patch(
    float* patch, const Tiling& t, const Source& source, const Window& rows, const Window& columns, int planes,
    int first, int times, int divided, int offset
) {
    const bool fours = t.fours && columns.step == 1;
    const int shift = fours ? columns.first & 3 : 0;
    const int wide = fours ? (shift + columns.count + 3) / 4 : columns.count;
    Digits d = digits_of(threadIdx.x, wide, rows.count);
    const Digits step = digits_of(THREADS, wide, rows.count);
#pragma unroll 1  // copies run in the background: there is nothing to wait for
    for (int i = threadIdx.x; i < wide * rows.count * planes; i += THREADS) {
        const int h = rows.first + d.middle * rows.step, number = first + d.high;
        const int from_plane = (divided == 1 ? number * times : number / divided) + offset;
        const float* const plane = source.planes + from_plane * source.step;
        float* const to = patch + d.high * t.plane + d.middle * t.pitch;
        const int v = columns.first - shift + d.low * (fours ? 4 : columns.step);
        const bool inside = h >= 0 && h < source.height && v >= 0 && v < source.width;
        const float* const from = inside ? plane + (long long)h * source.width + v : plane;
        if (fours) {
            cp_async_16(to + 4 * d.low, inside ? from : source.planes, inside);
        } else {
            cp_async_4(to + d.low, from, inside);
        }
        advance(d, step, wide, rows.count);
    }
    return shift;
}
