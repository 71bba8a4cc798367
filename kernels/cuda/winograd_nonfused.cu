// Winograd convolution F(TILE x TILE, TAPS x TAPS), not fused: the transforms on both sides of ALPHA^2 products.
// Lavin and Gray, arXiv 1509.09308, section 4; points: winograd_matrices.cuh. Products: sgemm_batched.cu, or cuBLAS.
//
// A tile is TILE x TILE results of one image; it needs ALPHA x ALPHA inputs, ALPHA = TILE + TAPS - 1, and a transformed
// tile has ALPHA^2 "frequencies" f. Tiles are numbered along rows, then columns, then images; a launch works on the
// `tiles` tiles from `first` on, so that what goes from kernel to kernel can stay in the L2. With g the group and c, k
// the channels inside it, tensors between the kernels are, NHWC 0 and NHWC 1:
//   U, filter    [f][g][c][K4]                         the same
//   V, input     [f][g][c][T4]                         [f][g][t][C4]
//   M, products  [split][f][g][k][T4] = sum_c U V      [split][f][g][t][K4]
//   W, dy        [f][g][k][T4]                         [f][g][t][K4]      backward weights
//   D, products  [split][f][g][k][C4] = sum_t W V      the same
// X4: the number rounded up to a multiple of 4, so that rows are read 16 bytes at a time; what is beyond is zero in U,
// V and W. Threads of a warp lie along the last axis: stores, and in NHWC 1 loads as well, are whole lines.
// Conv: what is computed, as a forward convolution of stride 1. For backward data x is dy, and c and k, h and p, w and
// q have changed places, pad is TAPS - 1 - pad (it may be negative), and the filter is read turned by 180 degrees.
// Limits: stride 1, dilation 1, TAPS x TAPS filter; tiles of a launch times channels below 2^31.
//
// Bound: memory. F(4x4,3x3) moves 144 bytes of V or M for each tile and channel, reads or writes 16 elements of x or y,
// and does 300 operations: 33 ps of an H200's 4.3 TB/s against 5 ps of its 67 TFLOP/s. x in NCHW is read with lanes 4
// elements apart, each line by 4 loads, which the L1 serves.
//
// Launch: 128 threads, one transformed tile (or filter) each; see convbench/algorithms/_winograd_cuda.py for the grids.
// Test: pytest tests/cuda_on_cpu -k winograd_nonfused
#ifndef TILE
#define TILE 4
#endif
#ifndef TAPS
#define TAPS 3
#endif
#ifndef NHWC
#define NHWC 0
#endif
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"
#include "winograd.cuh"

#define THREADS 128
#define RESIDENT (ALPHA > 6 ? 3 : 4)  // blocks of a multiprocessor: 8 x 8 elements need 168 registers

static __device__ __forceinline__ int round_up_4(int n) { return (n + 3) & ~3; }

// All elements of a transformed tile go to memory, `step` elements apart.
template <int LINES>
static __device__ __forceinline__ void store_frequencies(
    const float (&matrix)[ALPHA][LINES], const float (&half)[LINES][ALPHA], float* __restrict__ target, Long step) {
#pragma unroll
    for (int i = 0; i < ALPHA; i++)
#pragma unroll
        for (int j = 0; j < ALPHA; j++) {
            *target = transform_down(matrix, half, i, j);
            target += step;
        }
}

// The other way, all splits added up. Loads that do not wait for each other are what hides the memory's latency.
static __device__ __forceinline__ void load_frequencies(
    const float* __restrict__ source, Long step, int splits, float (&elements)[ALPHA][ALPHA]) {
    const float* first = source;
#pragma unroll
    for (int f = 0; f < ALPHA * ALPHA; f++) {
        elements[f / ALPHA][f % ALPHA] = __ldg(first);
        first += step;
    }
    if (splits == 1) return;
#pragma unroll
    for (int i = 0; i < ALPHA; i++) {  // line by line: more addresses than these the registers would not hold
        const float* line = source + i * ALPHA * step;
#pragma unroll 1
        for (int s = 1; s < splits; s++) {
            line += ALPHA * ALPHA * step;
#pragma unroll
            for (int j = 0; j < ALPHA; j++) elements[i][j] += __ldg(line + j * step);
        }
    }
}

// Which element a thread has: channel of all groups, tile of the launch; and where frequency 0 of it lies, how far the
// next is. NHWC 0: the grid's y walks over channels. NHWC 1: x covers (tile, group, channel). depth: channels a group.
struct Slot {
    int channel, tile;
    bool inside, zero;  // inside: there is such an element; zero: it is beyond the last tile or channel
    Long offset, step;
};

#if NHWC
#define EACH_CHANNEL(channels) const int channel = 0;
#else
#define EACH_CHANNEL(channels) for (int channel = blockIdx.y; channel < (channels); channel += gridDim.y)
#endif

static __device__ __forceinline__ Slot slot_of(int channel_index, int tiles, int groups, int depth) {
    Slot slot;
#if NHWC
    const int padded = round_up_4(depth);
    const Long e = (Long)blockIdx.x * THREADS + threadIdx.x;
    const int line = (int)(e / padded);  // (tile, group)
    const int c = (int)(e - (Long)line * padded);
    slot.tile = line / groups;
    const int group = line - slot.tile * groups;
    slot.inside = slot.tile < tiles;
    slot.zero = c >= depth;
    slot.channel = group * depth + c;
    slot.offset = ((Long)group * tiles + slot.tile) * padded + c;
    slot.step = (Long)groups * tiles * padded;
#else
    const int row = round_up_4(tiles);
    slot.tile = blockIdx.x * THREADS + threadIdx.x;
    slot.channel = channel_index;
    slot.inside = slot.tile < row;
    slot.zero = slot.tile >= tiles;
    slot.offset = (Long)slot.channel * row + slot.tile;
    slot.step = (Long)groups * depth * row;
#endif
    return slot;
}

// A SIZE x SIZE window of x with its first element at (top, left), outside the image zero, transformed and stored.
template <int SIZE>
static __device__ __forceinline__ void transform_window(
        const float* __restrict__ plane, const Steps& steps, int height, int width, int top, int left, bool zero,
    const float (&matrix)[ALPHA][SIZE], float* __restrict__ target, Long step) {
    float half[SIZE][ALPHA];
    unsigned columns = 0;  // bit mask of what lies inside the image
#pragma unroll
    for (int j = 0; j < SIZE; j++)
        if (!zero && (unsigned)(left + j) < (unsigned)width) columns |= 1u << j;
    const float* source = plane + top * steps.row + left * steps.column;
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
        const unsigned valid = (unsigned)(top + i) < (unsigned)height ? columns : 0;
        float line[SIZE];
#pragma unroll
        for (int j = 0; j < SIZE; j++) line[j] = valid >> j & 1 ? __ldg(source + j * (int)steps.column) : 0.f;
        transform_line(matrix, line, half[i]);
        source += steps.row;
    }
    store_frequencies(matrix, half, target, step);
}

// U = G w G^T. Threads: 32 outputs of a group by 4 inputs; the grid's z walks over groups, y over inputs.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) winograd_filter(
    const float* __restrict__ w, float* __restrict__ u, Conv conv, int turned) {
    const float matrix[ALPHA][TAPS] = WINOGRAD_G;
    const int depth = conv.c / conv.groups, outputs = conv.k / conv.groups, row = round_up_4(outputs);
    const int k = blockIdx.x * 32 + (threadIdx.x & 31);
    if (k >= row) return;
    for (int group = blockIdx.z; group < conv.groups; group += gridDim.z)
        for (int c = blockIdx.y * 4 + (threadIdx.x >> 5); c < depth; c += gridDim.y * 4) {
            float half[TAPS][ALPHA];
            transform_filter(matrix, w, turned, group, depth, outputs, c, k, k < outputs, half);
            store_frequencies(matrix, half, u + ((Long)group * depth + c) * row + k, (Long)conv.groups * depth * row);
        }
}

// V = BT x BT^T.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) winograd_input(
    const float* __restrict__ x, float* __restrict__ v, Conv conv, Long first, int tiles) {
    const float matrix[ALPHA][ALPHA] = WINOGRAD_BT;
    EACH_CHANNEL(conv.c) {
        const Slot slot = slot_of(channel, tiles, conv.groups, conv.c / conv.groups);
        if (!slot.inside) return;
        const Tile tile = tile_of(conv, first + (slot.zero ? 0 : slot.tile));
        const Steps steps = steps_of(conv.c, conv.h, conv.w);
        const float* plane = x + at(steps, tile.image, slot.zero ? 0 : slot.channel, 0, 0);
        transform_window(plane, steps, conv.h, conv.w, tile.row - conv.pad_h, tile.column - conv.pad_w, slot.zero,
                         matrix, v + slot.offset, slot.step);
    }
}

// W = GRADIENT_G dy GRADIENT_G^T: tiles of the result's gradient are the taps of backward weights.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) winograd_gradient(
    const float* __restrict__ dy, float* __restrict__ w, Conv conv, Long first, int tiles) {
    const float matrix[ALPHA][TILE] = WINOGRAD_GRADIENT_G;
    EACH_CHANNEL(conv.k) {
        const Slot slot = slot_of(channel, tiles, conv.groups, conv.k / conv.groups);
        if (!slot.inside) return;
        const Tile tile = tile_of(conv, first + (slot.zero ? 0 : slot.tile));
        const Steps steps = steps_of(conv.k, conv.p, conv.q);
        const float* plane = dy + at(steps, tile.image, slot.zero ? 0 : slot.channel, 0, 0);
        transform_window(plane, steps, conv.p, conv.q, tile.row, tile.column, slot.zero, matrix, w + slot.offset,
                         slot.step);
    }
}

// Y = AT (sum over splits of M) AT^T, as much of each tile as there is.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) winograd_output(
    const float* __restrict__ m, float* __restrict__ y, Conv conv, Long first, int tiles, int splits) {
    const float matrix[TILE][ALPHA] = WINOGRAD_AT;
    EACH_CHANNEL(conv.k) {
        const Slot slot = slot_of(channel, tiles, conv.groups, conv.k / conv.groups);
        if (!slot.inside || slot.zero) return;
        float elements[ALPHA][ALPHA], half[ALPHA][TILE];
        load_frequencies(m + slot.offset, slot.step, splits, elements);
#pragma unroll
        for (int i = 0; i < ALPHA; i++) transform_line(matrix, elements[i], half[i]);
        const Tile tile = tile_of(conv, first + slot.tile);
        const Steps steps = steps_of(conv.k, conv.p, conv.q);
        float* corner = y + at(steps, tile.image, slot.channel, tile.row, tile.column);
#pragma unroll
        for (int i = 0; i < TILE; i++) {
            if (tile.row + i >= conv.p) break;
            float row[TILE];
#pragma unroll
            for (int j = 0; j < TILE; j++) row[j] = transform_down(matrix, half, i, j);
#if !NHWC && TILE % 2 == 0
            // Whole tiles on aligned rows leave in 16 or 8 bytes a lane, and a warp writes whole lines.
            if (conv.q % (TILE % 4 == 0 ? 4 : 2) == 0 && tile.column + TILE <= conv.q) {
#if TILE % 4 == 0
                for (int j = 0; j < TILE; j += 4)
                    *(float4*)(corner + i * steps.row + j) = make_float4(row[j], row[j + 1], row[j + 2], row[j + 3]);
#else
#pragma unroll
                for (int j = 0; j < TILE; j += 2)
                    *(float2*)(corner + i * steps.row + j) = make_float2(row[j], row[j + 1]);
#endif
                continue;
            }
#endif
#pragma unroll
            for (int j = 0; j < TILE; j++)
                if (tile.column + j < conv.q) corner[i * steps.row + j * steps.column] = row[j];
        }
    }
}

// dW = GRADIENT_AT (sum over splits of D) GRADIENT_AT^T. Threads along the inputs of a group; y walks over outputs.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) winograd_weights(
    const float* __restrict__ d, float* __restrict__ dw, Conv conv, int splits) {
    const float matrix[TAPS][ALPHA] = WINOGRAD_GRADIENT_AT;
    const int depth = conv.c / conv.groups, row = round_up_4(depth);
    const int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= depth) return;
    const Long step = (Long)conv.k * row;
    for (int k = blockIdx.y; k < conv.k; k += gridDim.y) {
        float elements[ALPHA][ALPHA], half[ALPHA][TAPS];
        load_frequencies(d + (Long)k * row + c, step, splits, elements);
#pragma unroll
        for (int i = 0; i < ALPHA; i++) transform_line(matrix, elements[i], half[i]);
#if NHWC
        float* target = dw + (Long)k * TAPS * TAPS * depth + c;
        const Long tap_stride = depth;
#else
        float* target = dw + ((Long)k * depth + c) * TAPS * TAPS;
        const Long tap_stride = 1;
#endif
#pragma unroll
        for (int i = 0; i < TAPS; i++)
#pragma unroll
            for (int j = 0; j < TAPS; j++) target[(i * TAPS + j) * tap_stride] = transform_down(matrix, half, i, j);
    }
}
