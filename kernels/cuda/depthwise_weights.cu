// Depthwise convolution, backward weights, NCHW: dw[k] is the correlation of plane k/(K/C) of x with plane k of dy,
// summed over images. depthwise_cuda; for NHWC see depthwise_nhwc_weights.cu.
//
// A block takes RECTANGLE x RECTANGLE taps of one filter and a share of the images and tiles. It brings a tile of dy
// and the patch of x that it saw to shared memory; each thread keeps all sums of the rectangle in registers and goes
// through RUN outputs below each other: per column of taps (RUN - 1) * STRIDE + RECTANGLE loads for RUN * RECTANGLE
// multiply-adds. At the end the block adds its threads' sums, by shuffles and then from shared memory, and writes them
// as one part; partial_sums.cu adds the parts. Two stages in a fixed order: no atomics, the same bits at every run.
//
// Launch: 256 threads; blocks: parts x rectangles x K. Variants: RECTANGLE 3, 5, 7 (larger filters are cut into
// rectangles of 7) with STRIDE 1 or 2; 3 and, where strides are enormous, 1 with STRIDE 0, a variable.
// Bound: memory for one rectangle (8 bytes per output, 3x3: 5.5 shared loads per output); then the load unit, 12 loads
// for 49 multiply-adds at 7x7.
// Test: pytest tests/cuda_on_cpu -k depthwise
#include "conv.cuh"
#include "device.cuh"
#include "axis.cuh"
#include "depthwise.cuh"

#ifndef RECTANGLE
#define RECTANGLE 3
#endif
#define RUN 4
#define SUMS (RECTANGLE * RECTANGLE)

extern "C" __global__ void __launch_bounds__(THREADS, RECTANGLE == 3 ? 3 : 2)
depthwise_weights(
    const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ sums, Conv f, Tiling t
) {
    DYNAMIC_SHARED(float, shared);
    __shared__ float of_warps[THREADS / 32][SUMS];
    const int height = t.runs * RUN, width = t.width;
    float* const gradients = shared;  // [plane][height][width]
    float* const patch = shared + t.filters;

    const int multiplier = f.k / f.c;
    const int across = (f.s + RECTANGLE - 1) / RECTANGLE, down = (f.r + RECTANGLE - 1) / RECTANGLE;
    int block = blockIdx.x;
    const int part = block % t.parts;
    block /= t.parts;
    const int tap_w = block % across * RECTANGLE;
    block /= across;
    const int tap_h = block % down * RECTANGLE, k = block / down;
    const int taps_h = min(RECTANGLE, f.r - tap_h), taps_w = min(RECTANGLE, f.s - tap_w);

    const int column = threadIdx.x % width, run = threadIdx.x / width % t.runs, plane = threadIdx.x / width / t.runs;
    float sum[RECTANGLE][RECTANGLE];
#pragma unroll
    for (int r = 0; r < RECTANGLE; ++r)
#pragma unroll
        for (int s = 0; s < RECTANGLE; ++s) sum[r][s] = 0.0f;

    const int groups = (f.n + t.planes - 1) / t.planes;  // of images
    const int tiles = groups * t.phases_h * t.phases_w * t.row_tiles * t.column_tiles;
    for (int number = part; number < tiles; number += t.parts) {
        const PhaseTile tile = phase_tile_of((unsigned)number, t);
        const Axis rows = rows_axis<false>(f, tile.phase_h), columns = columns_axis<false>(f, tile.phase_w);
        const int first_row = tile.row * height, first_column = tile.column * width;
        if (first_row >= rows.outputs || first_column >= columns.outputs) continue;  // the same for the whole block
        const int first = tile.rest * t.planes, planes = min(t.planes, f.n - first);

        const Window in_rows = rows_of(rows, first_row, height, tap_h, taps_h);
        const Window in_columns = window_of(columns, first_column, width, tap_w, taps_w);
        const Source source = {x + (long long)(k / multiplier) * f.h * f.w, (long long)f.c * f.h * f.w, f.h, f.w};
        const int shift = load_patch(patch, t, source, in_rows, in_columns, planes, first, 1, 1, 0);

        Digits d = digits_of(threadIdx.x, width, height);
        const Digits step = digits_of(THREADS, width, height);
#pragma unroll 1
        for (int i = threadIdx.x; i < planes * height * width; i += THREADS) {
            const int row = first_row + d.middle, q = first_column + d.low;
            const bool inside = row < rows.outputs && q < columns.outputs;
            const long long at = ((long long)(first + d.high) * f.k + k) * f.p * f.q
                                 + (long long)(rows.first_out + row * rows.step_out) * f.q
                                 + columns.first_out + q * columns.step_out;
            cp_async_4(gradients + i, inside ? dy + at : dy, inside);
            advance(d, step, width, height);
        }
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();

        if (plane < planes) {
            float gradient[RUN];
#pragma unroll
            for (int o = 0; o < RUN; ++o) gradient[o] = gradients[(plane * height + run * RUN + o) * width + column];
            const float* const seen = patch + plane * t.plane + run * RUN * in_rows.stride * t.pitch + shift
                                      + column * in_columns.stride;
#pragma unroll
            for (int s = 0; s < RECTANGLE; ++s) {
                if (s >= taps_w) continue;
#if STRIDE > 0
                float value[(RUN - 1) * STRIDE + RECTANGLE];  // rows beyond taps_h add to sums that nobody reads
#pragma unroll
                for (int i = 0; i < (RUN - 1) * STRIDE + RECTANGLE; ++i) value[i] = seen[i * t.pitch + s];
#pragma unroll
                for (int r = 0; r < RECTANGLE; ++r)
#pragma unroll
                    for (int o = 0; o < RUN; ++o) sum[r][s] = fmaf(value[o * STRIDE + r], gradient[o], sum[r][s]);
#else
#pragma unroll
                for (int r = 0; r < RECTANGLE; ++r) {
                    if (r >= taps_h) continue;
#pragma unroll
                    for (int o = 0; o < RUN; ++o) {
                        sum[r][s] = fmaf(seen[(o * in_rows.stride + r) * t.pitch + s], gradient[o], sum[r][s]);
                    }
                }
#endif
            }
        }
        __syncthreads();
    }

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
        for (int r = 0; r < RECTANGLE; ++r)
#pragma unroll
            for (int s = 0; s < RECTANGLE; ++s) sum[r][s] += __shfl_xor_sync(~0u, sum[r][s], distance);
    }
    if (lane == 0) {
#pragma unroll
        for (int r = 0; r < RECTANGLE; ++r)
#pragma unroll
            for (int s = 0; s < RECTANGLE; ++s) of_warps[warp][r * RECTANGLE + s] = sum[r][s];
    }
    __syncthreads();
    const int tap = threadIdx.x, r = tap / RECTANGLE, s = tap % RECTANGLE;
    if (r >= taps_h || s >= taps_w) return;
    float total = 0.0f;
    for (int i = 0; i < THREADS / 32; ++i) total += of_warps[i][tap];
    sums[(((long long)part * f.k + k) * f.r + tap_h + r) * f.s + tap_w + s] = total;
}
