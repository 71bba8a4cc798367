// Depthwise convolution, backward weights, NHWC: channels lie side by side, and so do the lanes of a warp.
// depthwise_cuda; for NCHW see depthwise_weights.cu.
//
// A thread takes VECTOR neighbouring filters and RECTANGLE x RECTANGLE taps of them, whose sums stay in registers while
// it walks over its share of the pixels, RUN outputs below each other at a time: per column of taps
// (RUN - 1) * STRIDE + RECTANGLE loads of x for RUN * RECTANGLE multiply-adds. Threads of a block that share channels
// add their sums in shared memory, blocks leave parts for partial_sums.cu: two stages in a fixed order, no atomics.
//
// Launch: (lanes of channels) x (threads of pixels), 256 in all. x: parts x rectangles, y: channels.
// Variants: RECTANGLE 3 with VECTOR 4 where K = C is a multiple of 4, else 1; RECTANGLE 5 and 7 with VECTOR 1;
// STRIDE 1, 2 or, as a variable, 0.
// Bound: memory for one rectangle: 8 bytes per output, 22 loads of L1 for 4 outputs at 3x3.
// Test: pytest tests/cuda_on_cpu -k depthwise
#include "conv.cuh"
#include "device.cuh"
#include "axis.cuh"
#include "vectors.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif
#ifndef STRIDE
#define STRIDE 1
#endif
#ifndef RECTANGLE
#define RECTANGLE 3
#endif
#define THREADS 256
#define RUN 4

// row_tiles: runs of RUN rows in the largest phase; column_tiles: its columns; parts: blocks that share the pixels.
struct Tiling {
    int phases_h, phases_w, row_tiles, column_tiles, parts;
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
depthwise_nhwc_weights(
    const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ sums, Conv f, Tiling t
) {
    __shared__ float of_threads[THREADS][RECTANGLE * VECTOR + 1];  // one more, so that lanes meet other banks
    const int multiplier = f.k / f.c;
    const int across = (f.s + RECTANGLE - 1) / RECTANGLE;
    int block = blockIdx.x;
    const int part = block % t.parts;
    block /= t.parts;
    const int tap_w = block % across * RECTANGLE, tap_h = block / across * RECTANGLE;
    const int taps_h = min(RECTANGLE, f.r - tap_h), taps_w = min(RECTANGLE, f.s - tap_w);
    const int k = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
    const bool active = k < f.k;
    const int c = active ? k / multiplier : 0;

    float sum[RECTANGLE][RECTANGLE][VECTOR];
#pragma unroll
    for (int r = 0; r < RECTANGLE; ++r)
#pragma unroll
        for (int s = 0; s < RECTANGLE; ++s)
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) sum[r][s][i] = 0.0f;

    const int runs = f.n * t.phases_h * t.phases_w * t.row_tiles * t.column_tiles, step = t.parts * blockDim.y;
    for (int number = part * blockDim.y + threadIdx.y; active && number < runs; number += step) {
        const PhaseTile tile = phase_tile_of(number, t);
        const int column = tile.column, row = tile.row * RUN, image = tile.rest;
        const Axis rows = rows_axis<false>(f, tile.phase_h), columns = columns_axis<false>(f, tile.phase_w);
        if (row >= rows.outputs || column >= columns.outputs) continue;

        float gradient[RUN][VECTOR];
        const float* const from_y = dy + (long long)image * f.p * f.q * f.k + k;
#pragma unroll
        for (int o = 0; o < RUN; ++o) {
            const long long p = rows.first_out + (row + o) * rows.step_out;
            const int q = columns.first_out + column * columns.step_out;
            load_or_zero(gradient[o], from_y + (p * f.q + q) * f.k, row + o < rows.outputs);
        }
        const float* const from_x = x + (long long)image * f.h * f.w * f.c + c;
        const int top = rows.first_in + rows.step_in * (row * rows.stride + tap_h);
#pragma unroll
        for (int s = 0; s < RECTANGLE; ++s) {
            const int v = columns.first_in + columns.step_in * (column * columns.stride + tap_w + s);
            if (s >= taps_w || v < 0 || v >= f.w) continue;
            const float* const from = from_x + (long long)v * f.c;
#if STRIDE > 0
            float value[(RUN - 1) * STRIDE + RECTANGLE][VECTOR];
#pragma unroll
            for (int i = 0; i < (RUN - 1) * STRIDE + RECTANGLE; ++i) {
                const int h = top + rows.step_in * i;
                load_or_zero(value[i], from + (long long)h * f.w * f.c, h >= 0 && h < f.h);
            }
#pragma unroll
            for (int r = 0; r < RECTANGLE; ++r)
#pragma unroll
                for (int o = 0; o < RUN; ++o)
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) {
                        sum[r][s][i] = fmaf(value[o * STRIDE + r][i], gradient[o][i], sum[r][s][i]);
                    }
#else
#pragma unroll
            for (int r = 0; r < RECTANGLE; ++r) {
                if (r >= taps_h) continue;
#pragma unroll
                for (int o = 0; o < RUN; ++o) {
                    const int h = top + rows.step_in * (o * rows.stride + r);
                    float value[VECTOR];
                    load_or_zero(value, from + (long long)h * f.w * f.c, h >= 0 && h < f.h);
#pragma unroll
                    for (int i = 0; i < VECTOR; ++i) sum[r][s][i] = fmaf(value[i], gradient[o][i], sum[r][s][i]);
                }
            }
#endif
        }
    }

    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    const long long taps = (long long)f.r * f.s;
    float* const to = sums + (long long)part * f.k * taps;
#pragma unroll
    for (int r = 0; r < RECTANGLE; ++r) {
        if (r >= taps_h) continue;  // the same for the whole block
#pragma unroll
        for (int s = 0; s < RECTANGLE; ++s)
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) of_threads[me][s * VECTOR + i] = sum[r][s][i];
        __syncthreads();
        for (int value = threadIdx.y; active && value < taps_w * VECTOR; value += blockDim.y) {
            float total = 0.0f;
            for (int y = 0; y < blockDim.y; ++y) total += of_threads[y * blockDim.x + threadIdx.x][value];
            const int s = value / VECTOR, i = value % VECTOR;
            to[(k + i) * taps + (tap_h + r) * f.s + tap_w + s] = total;
        }
        __syncthreads();
    }
}
