// Depthwise convolution, forward and backward data, NCHW: each input channel has K/C filters of its own, nothing is
// summed over channels. depthwise_cuda; for NHWC see depthwise_nhwc.cu.
//
// A block takes a tile of a plane (or several whole planes where they are small), copies the patch that it sees, halo
// included, to shared memory in the background, 16 bytes at a time where rows allow that, and computes RUN outputs
// below each other per thread. Down a column of the filter, TAPS taps at a time:
//
//   (RUN - 1) * STRIDE + TAPS loads of inputs, TAPS / 4 of filters, for RUN * TAPS multiply-adds
//
// Neighbouring lanes own neighbouring columns: shared loads meet no bank twice at stride 1, results are stored in whole
// lines. axis.cuh turns strides and dilation into dense correlations; a filter whose patch does not fit is taken in
// windows of taps. In backward data with K/C > 1 the patches of K/C planes follow one another.
//
// Launch: 128 threads, one output run each; blocks: planes x phases x tiles. Variants: RUN, TAPS 4, 4 for filters up to
// 4 rows and 8, 8 above (a sweep compares 8, 4 and 4, 4); STRIDE 1, 2 or, as a variable, 0; BACKWARD.
// Bound: memory up to about 7x7: 8 bytes per output, and at 3x3 6 shared loads, 5 outputs per cycle of an H200's SM
// where its share of the copy bandwidth, 4.3 TB/s, is 2.4: 80 % of that bandwidth is the goal. From 9x9 on the load
// unit: 17 loads for 64 multiply-adds, 90 % of the fp32 peak at best.
// Test: pytest tests/cuda_on_cpu -k depthwise
#include "conv.cuh"
#include "device.cuh"
#include "axis.cuh"

#define THREADS 128
#include "depthwise.cuh"
#include "vectors.cuh"

#ifndef RUN
#define RUN 4
#endif
#ifndef TAPS
#define TAPS 4
#endif
#ifndef BACKWARD
#define BACKWARD 0
#endif

// filters[plane][column][row, padded to TAPS]: a window of the filters of all planes of the block.
__device__ __forceinline__ void load_filters(
    float* filters, const float* w, const Conv& f, const Axis& rows, const Axis& columns, int tap_h, int tap_w,
    int taps_h, int taps_w, int first_plane, int planes, int other
) {
    const int multiplier = f.k / f.c, channels = BACKWARD ? f.c : f.k;
    const int height = (taps_h + TAPS - 1) / TAPS * TAPS;
#pragma unroll 1
    for (int i = threadIdx.x; i < planes * taps_w * height; i += THREADS) {
        const int r = i % height, s = i / height % taps_w, plane = i / height / taps_w;
        const int channel = (first_plane + plane) % channels;
        const int k = BACKWARD ? channel * multiplier + other : channel;
        const int row = rows.first_tap + (tap_h + r) * rows.step_tap;
        const int column = columns.first_tap + (tap_w + s) * columns.step_tap;
        filters[i] = r < taps_h ? w[((long long)k * f.r + row) * f.s + column] : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RUN == 4 ? 7 : 6)
depthwise_data(const float* __restrict__ in, const float* __restrict__ w, float* __restrict__ out, Conv f, Tiling t) {
    DYNAMIC_SHARED(float, shared);
    float* const filters = shared;
    float* const patch = shared + t.filters;

    const int multiplier = f.k / f.c;
    const int in_h = BACKWARD ? f.p : f.h, in_w = BACKWARD ? f.q : f.w;
    const int out_h = BACKWARD ? f.h : f.p, out_w = BACKWARD ? f.w : f.q;
    const int all_planes = f.n * (BACKWARD ? f.c : f.k);

    const PhaseTile tile = phase_tile_of(blockIdx.x, t);
    const Axis rows = rows_axis<BACKWARD>(f, tile.phase_h), columns = columns_axis<BACKWARD>(f, tile.phase_w);
    const int first_row = tile.row * t.runs * RUN, first_column = tile.column * t.width;
    if (first_row >= rows.outputs || first_column >= columns.outputs) return;  // a phase smaller than the largest
    const int first_plane = tile.rest * t.planes, planes = min(t.planes, all_planes - first_plane);

    const int column = threadIdx.x % t.width, run = threadIdx.x / t.width % t.runs;
    const int plane = threadIdx.x / t.width / t.runs;
    const bool active = plane < planes;
    float sum[RUN];
#pragma unroll
    for (int o = 0; o < RUN; ++o) sum[o] = 0.0f;

    for (int other = 0; other < (BACKWARD ? multiplier : 1); ++other) {
        for (int tap_h = 0; tap_h < rows.taps; tap_h += t.window_h) {
            const int taps_h = min(t.window_h, rows.taps - tap_h);
            const Window in_rows = rows_of(rows, first_row, t.runs * RUN, tap_h, taps_h);
            for (int tap_w = 0; tap_w < columns.taps; tap_w += t.window_w) {
                const int taps_w = min(t.window_w, columns.taps - tap_w);
                const Window in_columns = window_of(columns, first_column, t.width, tap_w, taps_w);
                const Source source = {in, (long long)in_h * in_w, in_h, in_w};
                // plane i of the block reads plane (first + i) / multiplier, or (first + i) * multiplier + other
                const int shift = load_patch(
                    patch, t, source, in_rows, in_columns, planes, first_plane, BACKWARD ? multiplier : 1,
                    BACKWARD ? 1 : multiplier, other
                );
                load_filters(filters, w, f, rows, columns, tap_h, tap_w, taps_h, taps_w, first_plane, planes, other);
                cp_async_commit();
                cp_async_wait<0>();
                __syncthreads();
                if (active) {
                    const int height = (taps_h + TAPS - 1) / TAPS * TAPS;
                    const float* weights = filters + plane * taps_w * height;
                    const float* seen = patch + plane * t.plane + run * RUN * in_rows.stride * t.pitch + shift
                                        + column * in_columns.stride;
                    for (int s = 0; s < taps_w; ++s, ++seen) {
                        for (int r = 0; r < taps_h; r += TAPS, weights += TAPS) {
                            float weight[TAPS];
                            load_floats(weight, weights);
#if STRIDE > 0
                            float value[(RUN - 1) * STRIDE + TAPS];
#pragma unroll
                            for (int i = 0; i < (RUN - 1) * STRIDE + TAPS; ++i) value[i] = seen[(r + i) * t.pitch];
#pragma unroll
                            for (int i = 0; i < TAPS; ++i) {
                                if (r + i >= taps_h) continue;
#pragma unroll
                                for (int o = 0; o < RUN; ++o) sum[o] = fmaf(value[o * STRIDE + i], weight[i], sum[o]);
                            }
#else
#pragma unroll
                            for (int i = 0; i < TAPS; ++i) {
                                if (r + i >= taps_h) continue;
#pragma unroll
                                for (int o = 0; o < RUN; ++o) {
                                    sum[o] = fmaf(seen[(o * in_rows.stride + r + i) * t.pitch], weight[i], sum[o]);
                                }
                            }
#endif
                        }
                    }
                }
                __syncthreads();
            }
        }
    }

    const int q = first_column + column;
    if (!active || q >= columns.outputs) return;
    float* const to = out + (long long)(first_plane + plane) * out_h * out_w + columns.first_out + q * columns.step_out;
#pragma unroll
    for (int o = 0; o < RUN; ++o) {
        const int p = first_row + run * RUN + o;
        if (p < rows.outputs) to[(long long)(rows.first_out + p * rows.step_out) * out_w] = sum[o];
    }
}
