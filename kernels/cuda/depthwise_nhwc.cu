// Depthwise convolution, forward and backward data, NHWC: channels lie side by side, and so do the lanes of a warp.
// depthwise_cuda; for NCHW see depthwise.cu.
//
// A thread takes VECTOR neighbouring channels and RUN x 2 outputs, reads inputs straight from global memory, 16 bytes
// at a time (neighbours of its tile find them in L1), and the filter as [R][S][K], packed by depthwise_filter so that
// lanes read neighbouring addresses. Down a column of the filter, TAPS taps at a time: (RUN - 1) * STRIDE + TAPS loads
// of inputs for each column of outputs, TAPS of filters for both. axis.cuh turns strides and dilation of both passes
// into dense correlations. In backward data with K/C > 1 a thread adds up K/C planes.
//
// Launch: (lanes of channels) x (threads of pixels), 128 in all. x: images x phases x tiles, y: channels.
// Variants: VECTOR 4 where K = C is a multiple of 4, else 1; STRIDE 1, 2 or, as a variable, 0; BACKWARD.
// Bound: memory for small filters: 8 bytes per output, and at 3x3 45 loads of L1 for 8 outputs: 5.7 outputs per cycle
// and SM where an H200's share of 4.3 TB/s is 2.4. Large filters are bound by L1, at about a third of the fp32 peak.
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
#ifndef BACKWARD
#define BACKWARD 0
#endif
#define THREADS 128
#define RUN 4
#define COLUMNS 2
#define TAPS 3

struct Lanes {
    float of[VECTOR];
};

__device__ __forceinline__ Lanes load(const float* from, bool inside) {
    Lanes v;
    load_or_zero(v.of, from, inside);
    return v;
}

__device__ __forceinline__ void store(float* to, const Lanes& v) {
#if VECTOR == 4
    *reinterpret_cast<float4*>(to) = make_float4(v.of[0], v.of[1], v.of[2], v.of[3]);
#else
    *to = v.of[0];
#endif
}

__device__ __forceinline__ void multiply_add(Lanes& sum, const Lanes& a, const Lanes& b) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) sum.of[i] = fmaf(a.of[i], b.of[i], sum.of[i]);
}

// packed[R][S][K] = w[K][R][S][1]
extern "C" __global__ void __launch_bounds__(THREADS)
depthwise_filter(const float* __restrict__ w, float* __restrict__ packed, Conv f) {
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x, taps = (long long)f.r * f.s;
    if (i < taps * f.k) packed[i] = w[i % f.k * taps + i / f.k];
}

// row_tiles, column_tiles: tiles of RUN rows and of COLUMNS * blockDim.y columns in the largest phase.
struct Tiling {
    int phases_h, phases_w, row_tiles, column_tiles;
};

extern "C" __global__ void __launch_bounds__(THREADS, VECTOR == 4 ? 3 : 5)
depthwise_nhwc(
    const float* __restrict__ in, const float* __restrict__ packed, float* __restrict__ out, Conv f, Tiling t
) {
    const PhaseTile tile = phase_tile_of((long long)blockIdx.x, t);
    const int image = tile.rest;
    const Axis rows = rows_axis<BACKWARD>(f, tile.phase_h), columns = columns_axis<BACKWARD>(f, tile.phase_w);
#if BACKWARD
    const int in_h = f.p, in_w = f.q, out_h = f.h, out_w = f.w, in_channels = f.k, out_channels = f.c;
#else
    const int in_h = f.h, in_w = f.w, out_h = f.p, out_w = f.q, in_channels = f.c, out_channels = f.k;
#endif
    const int multiplier = f.k / f.c;
    const int channel = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
    const int row = tile.row * RUN, column = (tile.column * blockDim.y + threadIdx.y) * COLUMNS;
    if (channel >= out_channels || row >= rows.outputs || column >= columns.outputs) return;

    Lanes sum[COLUMNS][RUN];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
        for (int o = 0; o < RUN; ++o)
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) sum[j][o].of[i] = 0.0f;

    const float* const from_image = in + (long long)image * in_h * in_w * in_channels;
    for (int other = 0; other < (BACKWARD ? multiplier : 1); ++other) {
        const int source = BACKWARD ? channel * multiplier + other : channel / multiplier;
        const int k = BACKWARD ? source : channel;
        for (int s = 0; s < columns.taps; ++s) {
            for (int r = 0; r < rows.taps; r += TAPS) {
                const int first = rows.first_in + rows.step_in * (row * rows.stride + r);
                const long long tap = (long long)(rows.first_tap + r * rows.step_tap) * f.s
                                      + columns.first_tap + s * columns.step_tap;
                Lanes weight[TAPS];
#pragma unroll
                for (int i = 0; i < TAPS; ++i) {
                    const bool inside = r + i < rows.taps;
                    const long long at = inside ? (tap + i * rows.step_tap * f.s) * f.k + k : 0;
                    weight[i] = load(packed + at, inside);
                }
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    const int v = columns.first_in + columns.step_in * ((column + j) * columns.stride + s);
                    const bool within = v >= 0 && v < in_w;
                    const float* const from = from_image + (long long)v * in_channels + source;
#if STRIDE > 0
                    Lanes value[(RUN - 1) * STRIDE + TAPS];
#pragma unroll
                    for (int i = 0; i < (RUN - 1) * STRIDE + TAPS; ++i) {
                        const int h = first + rows.step_in * i;
                        value[i] = load(from + (long long)h * in_w * in_channels, within && h >= 0 && h < in_h);
                    }
#pragma unroll
                    for (int i = 0; i < TAPS; ++i) {
                        if (r + i >= rows.taps) continue;
#pragma unroll
                        for (int o = 0; o < RUN; ++o) multiply_add(sum[j][o], value[o * STRIDE + i], weight[i]);
                    }
#else
#pragma unroll
                    for (int i = 0; i < TAPS; ++i) {
                        if (r + i >= rows.taps) continue;
#pragma unroll
                        for (int o = 0; o < RUN; ++o) {
                            const int h = first + rows.step_in * (o * rows.stride + i);
                            const bool inside = within && h >= 0 && h < in_h;
                            multiply_add(sum[j][o], load(from + (long long)h * in_w * in_channels, inside), weight[i]);
                        }
                    }
#endif
                }
            }
        }
    }

    float* const to_image = out + (long long)image * out_h * out_w * out_channels + channel;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        if (column + j >= columns.outputs) continue;
        const int q = columns.first_out + (column + j) * columns.step_out;
#pragma unroll
        for (int o = 0; o < RUN; ++o) {
            if (row + o >= rows.outputs) continue;
            const int p = rows.first_out + (row + o) * rows.step_out;
            store(to_image + ((long long)p * out_w + q) * out_channels, sum[j][o]);
        }
    }
}
