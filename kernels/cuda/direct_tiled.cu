// Direct convolution from shared memory: direct_tiled_cuda, three passes, both layouts, every shape.
//
// Forward and backward data (direct_tiled_data). A block computes TILE_ROWS x 16 pixels of CHANNEL_TILE channels. For
// a few input channels at a time it brings the patch of the input that those pixels see, halo included, and the
// filters' taps to shared memory; then each thread adds up 4 pixels x CHANNELS channels in registers:
//
//   for each channel, tap:   4 loads from the patch, CHANNELS from the filters (the same for the warp)
//                            4 * CHANNELS multiply-adds
//
// so an input element is read from global memory once for all taps and CHANNEL_TILE channels. axis.cuh turns strides
// and dilation of both passes into dense correlations; filters larger than what fits are taken in windows of taps. The
// filters come packed as [G][reduced channel][R][S][channel, padded to CHANNEL_TILE] (direct_tiled_filter).
//
// Backward weights (direct_tiled_weights). A block computes CHANNEL_TILE output channels x 128 taps (of a few input
// channels), keeps 4 * CHANNELS sums a thread and walks over tiles of 8 x 8 pixels, patch and gradients in shared
// memory. Blocks share the pixels; their sums are added by partial_sums.cu in a fixed order: no atomics, and the same
// bits at every run.
//
// Idea: tiling and register blocking as in any dense linear algebra; for direct convolution see Georganas et al. 2018
// (arXiv 1808.05567), section II. Launch: 256 threads, one dimension of blocks; shared memory as the host counts it
// (direct_cuda.py chooses window and channels so that 48 KB suffice).
// Variants: PASS, layout, CHANNELS (a thread's) and CHANNEL_WARPS: 8 x 8 for 64 channels of a group, 8 x 2 for 16,
// 1 x 1 for one; a sweep compares 16 x 8, 16 x 4 and 8 x 4 with them.
// Bound: 8 x 8: six shared loads (8 cycles of the load unit) for 32 multiply-adds a lane (8 cycles of the SM): 50 to
// 65 % of the fp32 peak where C/G and K/G are multiples of 64; bank conflicts halve that at stride 2.
// Test: pytest tests/cuda_on_cpu -k direct_tiled
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"
#include "axis.cuh"
#include "box.cuh"
#include "vectors.cuh"

#ifndef CHANNELS
#define CHANNELS 8
#endif
#ifndef CHANNEL_WARPS
#define CHANNEL_WARPS 8
#endif
#ifndef PASS
#define PASS 0  // 0: y from x, 1: dx from dy, 2: dw from x and dy
#endif
#define BACKWARD (PASS == 1)

#define WARPS 8
#define THREADS (32 * WARPS)
#define CHANNEL_TILE (CHANNELS * CHANNEL_WARPS)
#define PIXEL_WARPS (WARPS / CHANNEL_WARPS)
#define TILE_ROWS (8 * PIXEL_WARPS)
#define TILE_COLUMNS 16
#define GRADIENT_ROWS 8
#define GRADIENT_COLUMNS 8
#define TAP_TILE 128

// What the host chose. window: taps of a patch; channels: reduced channels of a chunk; plane, pitch: floats from
// channel to channel and row to row of the patch; phases: of axis.cuh; row_tiles, column_tiles: of the largest phase.
struct Tiling {
    int window_h, window_w, channels, plane, pitch;
    int phases_h, phases_w, row_tiles, column_tiles;
    int parts;  // backward weights: blocks that share the pixels
};

// `channels` channels of one image's patch into shared memory, zeros where it leaves the image.
__device__ __forceinline__ void load_patch(
    float* patch, const Tiling& t, const float* image, const Steps& steps, int channels, const Window& rows,
    const Window& columns, int height, int width
) {
    const int total = channels * rows.count * columns.count;
    Box box(channels, rows.count, columns.count, threadIdx.x, THREADS);
    for (int i = threadIdx.x; i < total; i += THREADS) {
        const int c = box.channel(), row = box.row(), column = box.column();
        const int h = rows.first + row * rows.step, v = columns.first + column * columns.step;
        const bool inside = h >= 0 && h < height && v >= 0 && v < width;
        const float* from = inside ? image + c * steps.channel + h * steps.row + v * steps.column : image;
        cp_async_4(patch + c * t.plane + row * t.pitch + column, from, inside);
        box.next();
    }
}

#if PASS < 2

// packed[G][reduced][R][S][padded] from w: reduced channels are those of the input forward, of the output backward.
extern "C" __global__ void __launch_bounds__(THREADS)
direct_tiled_filter(const float* __restrict__ w, float* __restrict__ packed, Conv f, int padded) {
    const int of_c = f.c / f.groups, of_k = f.k / f.groups;
    const int reduced = BACKWARD ? of_k : of_c, made = BACKWARD ? of_c : of_k;
    const long long total = (long long)f.groups * reduced * f.r * f.s * padded;
    const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= total) return;
    const int channel = (int)(i % padded);
    long long rest = i / padded;
    const int s = (int)(rest % f.s);
    rest /= f.s;
    const int r = (int)(rest % f.r);
    rest /= f.r;
    const int other = (int)(rest % reduced), group = (int)(rest / reduced);
    const int k = group * of_k + (BACKWARD ? other : channel), c = BACKWARD ? channel : other;
    packed[i] = channel < made ? w[at(steps_w(f), k, c, r, s)] : 0.0f;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
direct_tiled_data(
    const float* __restrict__ in, const float* __restrict__ packed, float* __restrict__ out, Conv f, Tiling t
) {
    DYNAMIC_SHARED(float, shared);
    float* const filters = shared;  // [channel][window_h][window_w][CHANNEL_TILE]
    float* const patch = shared + t.channels * t.window_h * t.window_w * CHANNEL_TILE;  // [channel][row][column]

    const int reduced = (BACKWARD ? f.k : f.c) / f.groups, made = (BACKWARD ? f.c : f.k) / f.groups;
    const int channel_tiles = (made + CHANNEL_TILE - 1) / CHANNEL_TILE, padded = channel_tiles * CHANNEL_TILE;
    const Steps from = BACKWARD ? steps_y(f) : steps_x(f), to = BACKWARD ? steps_x(f) : steps_y(f);
    const int in_h = BACKWARD ? f.p : f.h, in_w = BACKWARD ? f.q : f.w;

    long long block = blockIdx.x;
    const int channel_tile = (int)(block % channel_tiles);
    block /= channel_tiles;
    const int group = (int)(block % f.groups);
    block /= f.groups;
    const PhaseTile tile = phase_tile_of(block, t);
    const int image = tile.rest;
    const Axis rows = rows_axis<BACKWARD>(f, tile.phase_h), columns = columns_axis<BACKWARD>(f, tile.phase_w);
    const int first_row = tile.row * TILE_ROWS, first_column = tile.column * TILE_COLUMNS;
    if (first_row >= rows.outputs || first_column >= columns.outputs) return;  // a phase smaller than the largest

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp / CHANNEL_WARPS * 8 + lane / 8, column = lane % 8;  // of the first of four pixels
    const int channel = warp % CHANNEL_WARPS * CHANNELS;

    float sum[4][CHANNELS];
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) sum[j][i] = 0.0f;

    const float* const from_image = in + image * from.image + (long long)group * reduced * from.channel;
    for (int first = 0; first < reduced; first += t.channels) {
        const int channels = min(t.channels, reduced - first);
        for (int tap_h = 0; tap_h < rows.taps; tap_h += t.window_h) {
            const int taps_h = min(t.window_h, rows.taps - tap_h);
            const Window in_rows = window_of(rows, first_row, TILE_ROWS, tap_h, taps_h);
            for (int tap_w = 0; tap_w < columns.taps; tap_w += t.window_w) {
                const int taps_w = min(t.window_w, columns.taps - tap_w);
                const Window in_columns = window_of(columns, first_column, TILE_COLUMNS, tap_w, taps_w);
                load_patch(
                    patch, t, from_image + first * from.channel, from, channels, in_rows, in_columns, in_h, in_w
                );
                const int vectors = CHANNELS % 4 == 0 ? CHANNEL_TILE / 4 : CHANNEL_TILE;
                const int lines = channels * taps_h * taps_w, each = THREADS / vectors;
                Digits d = digits_of(threadIdx.x / vectors, taps_w, taps_h);
                const Digits step = digits_of(each, taps_w, taps_h);
                for (int i = threadIdx.x / vectors; i < lines; i += each) {
                    const int r = rows.first_tap + (tap_h + d.middle) * rows.step_tap;
                    const int s = columns.first_tap + (tap_w + d.low) * columns.step_tap;
                    const long long line = ((long long)(group * reduced + first + d.high) * f.r + r) * f.s + s;
                    const float* source = packed + line * padded + channel_tile * CHANNEL_TILE;
#if CHANNELS % 4 == 0
                    const int v = threadIdx.x % vectors * 4;
                    cp_async_16(filters + i * CHANNEL_TILE + v, source + v, true);
#else
                    const int v = threadIdx.x % vectors;
                    cp_async_4(filters + i * CHANNEL_TILE + v, source + v, true);
#endif
                    advance(d, step, taps_w, taps_h);
                }
                cp_async_commit();
                cp_async_wait<0>();
                __syncthreads();

                const int down = 4 * in_rows.stride * t.pitch, right = 8 * in_columns.stride;
                const float* weights = filters + channel;
                for (int c = 0; c < channels; ++c) {
                    for (int r = 0; r < taps_h; ++r) {
                        const float* seen = patch + c * t.plane + (row * in_rows.stride + r) * t.pitch
                                            + column * in_columns.stride;
                        for (int s = 0; s < taps_w; ++s) {
                            const float value[4] = {seen[s], seen[s + right], seen[s + down], seen[s + down + right]};
                            float weight[CHANNELS];
                            load_floats(weight, weights);
                            weights += CHANNEL_TILE;
#pragma unroll
                            for (int j = 0; j < 4; ++j)
#pragma unroll
                                for (int i = 0; i < CHANNELS; ++i) sum[j][i] = fmaf(value[j], weight[i], sum[j][i]);
                        }
                    }
                }
                __syncthreads();
            }
        }
    }

    const int first_made = channel_tile * CHANNEL_TILE + channel;
    float* const to_image = out + image * to.image + (long long)group * made * to.channel;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int i = first_row + row + j / 2 * 4, o = first_column + column + j % 2 * 8;
        if (i >= rows.outputs || o >= columns.outputs) continue;
        float* const pixel = to_image + (rows.first_out + i * rows.step_out) * to.row
                             + (columns.first_out + o * columns.step_out) * to.column;
#pragma unroll
        for (int m = 0; m < CHANNELS; ++m) {
            if (first_made + m < made) pixel[(first_made + m) * to.channel] = sum[j][m];
        }
    }
}

#else

// sums[parts * PIXEL_WARPS][dw]: each warp of pixels of each block writes its own.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
direct_tiled_weights(
    const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ sums, Conv f, Tiling t
) {
    DYNAMIC_SHARED(float, shared);
    // [pixel][CHANNEL_TILE], lines 4 floats apart so that neighbouring pixels lie in other banks
    const int line = CHANNEL_TILE + 4;
    float* const gradients = shared;
    float* const patch = shared + GRADIENT_ROWS * GRADIENT_COLUMNS * line;

    const int of_c = f.c / f.groups, of_k = f.k / f.groups;
    const int channel_tiles = (of_k + CHANNEL_TILE - 1) / CHANNEL_TILE;
    const int windows_h = (f.r + t.window_h - 1) / t.window_h, windows_w = (f.s + t.window_w - 1) / t.window_w;
    const int chunks = (of_c + t.channels - 1) / t.channels;
    long long block = blockIdx.x;
    const int part = (int)(block % t.parts);
    block /= t.parts;
    const int channel_tile = (int)(block % channel_tiles);
    block /= channel_tiles;
    const int tap_w = (int)(block % windows_w) * t.window_w;
    block /= windows_w;
    const int tap_h = (int)(block % windows_h) * t.window_h;
    block /= windows_h;
    const int first = (int)(block % chunks) * t.channels, group = (int)(block / chunks);
    const int channels = min(t.channels, of_c - first);
    const int taps_h = min(t.window_h, f.r - tap_h), taps_w = min(t.window_w, f.s - tap_w);
    const int made = min(CHANNEL_TILE, of_k - channel_tile * CHANNEL_TILE);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int channel = warp % CHANNEL_WARPS * CHANNELS, pixel_warp = warp / CHANNEL_WARPS;
    int seen[4];  // where the four taps of this thread, lane + 32 j, look in the patch
    float sum[4][CHANNELS];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int tap = lane + 32 * j;
        const Digits d = digits_of(tap < channels * taps_h * taps_w ? tap : 0, taps_w, taps_h);
        seen[j] = d.high * t.plane + d.middle * t.pitch + d.low;
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) sum[j][i] = 0.0f;
    }

    const Steps in_x = steps_x(f), in_y = steps_y(f);
    const long long tiles = (long long)f.n * t.phases_h * t.phases_w * t.row_tiles * t.column_tiles;
    for (long long number = part; number < tiles; number += t.parts) {
        const PhaseTile tile = phase_tile_of(number, t);
        const int first_row = tile.row * GRADIENT_ROWS, first_column = tile.column * GRADIENT_COLUMNS;
        const int image = tile.rest;
        const Axis rows = rows_axis<false>(f, tile.phase_h), columns = columns_axis<false>(f, tile.phase_w);
        const int height = min(GRADIENT_ROWS, rows.outputs - first_row);
        const int width = min(GRADIENT_COLUMNS, columns.outputs - first_column);
        if (height <= 0 || width <= 0) continue;  // the same for the whole block

        const Window in_rows = window_of(rows, first_row, height, tap_h, taps_h);
        const Window in_columns = window_of(columns, first_column, width, tap_w, taps_w);
        const float* const from_x = x + image * in_x.image + (long long)(group * of_c + first) * in_x.channel;
        load_patch(patch, t, from_x, in_x, channels, in_rows, in_columns, f.h, f.w);

        const float* const from_y = dy + image * in_y.image
                                    + (long long)(group * of_k + channel_tile * CHANNEL_TILE) * in_y.channel;
        Box box(CHANNEL_TILE, height, width, threadIdx.x, THREADS);
        for (int i = threadIdx.x; i < CHANNEL_TILE * width * height; i += THREADS) {
            const int k = box.channel(), row = box.row(), column = box.column();
            const int p = rows.first_out + (first_row + row) * rows.step_out;
            const int q = columns.first_out + (first_column + column) * columns.step_out;
            const float* from = k < made ? from_y + k * in_y.channel + p * in_y.row + q * in_y.column : dy;
            cp_async_4(gradients + (row * GRADIENT_COLUMNS + column) * line + k, from, k < made);
            box.next();
        }
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();

        for (int row = pixel_warp; row < height; row += PIXEL_WARPS) {
            const float* across = patch + row * in_rows.stride * t.pitch;
            const float* gradient = gradients + row * GRADIENT_COLUMNS * line + channel;
            for (int column = 0; column < width; ++column) {
                float value[4], from_above[CHANNELS];
#pragma unroll
                for (int j = 0; j < 4; ++j) value[j] = across[seen[j]];
                load_floats(from_above, gradient);
                across += in_columns.stride;
                gradient += line;
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int i = 0; i < CHANNELS; ++i) sum[j][i] = fmaf(value[j], from_above[i], sum[j][i]);
            }
        }
        __syncthreads();
    }

    const Steps in_w = steps_w(f);
    float* const to = sums + (long long)(part * PIXEL_WARPS + pixel_warp) * f.k * in_w.image;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int tap = lane + 32 * j;
        if (tap >= channels * taps_h * taps_w) continue;
        const Digits d = digits_of(tap, taps_w, taps_h);
#pragma unroll
        for (int i = 0; i < CHANNELS; ++i) {
            if (channel + i >= made) continue;
            const int k = group * of_k + channel_tile * CHANNEL_TILE + channel + i;
            to[at(in_w, k, first + d.high, tap_h + d.middle, tap_w + d.low)] = sum[j][i];
        }
    }
}

#endif
