// Winograd convolution F(2x2,3x3), fused: one kernel from x to y; transformed tiles stay in shared memory, registers.
// Lavin and Gray, arXiv 1509.09308, section 5 (a block of 16 batched products, filters transformed in advance).
//
// A block of 256 threads computes OUTPUTS (64) channels of y for TILES (32) tiles of 2 x 2 results, DEPTH channels of x
// at a time: U, the transformed filter, comes by asynchronous copies; the 4 x 4 windows of x come to registers while
// the products of the step before run, are transformed and go to shared memory as V. A warp makes the products of two
// of the 16 frequencies, 64 x 32 results each; a thread 2 x 8 x 8 of them. At the end results are exchanged through
// shared memory, transformed back and written.
//
//   U      [group][block of 64 outputs][c, up to a multiple of 8][frequency][64]    zero beyond the last c and k
//   us     [2][DEPTH][16][64]     read 16 bytes a lane, 8 outputs apart by lane / 4
//   vs     [2][16][DEPTH][32]     read 16 bytes a lane, by lane % 4
// Conv: what is computed, as a forward convolution of stride 1. For backward data x is dy, and c and k, h and p, w and
// q have changed places, pad is 2 - pad (it may be negative), and the filter is read turned by 180 degrees.
// Backward weights: winograd_nonfused.cu, whose sums over all tiles leave nothing to fuse.
// Limits: stride 1, dilation 1, 3 x 3 filter. DEPTH 8: 96 KiB of dynamic shared memory; DEPTH 4: 48 KiB (sm_75;
// elsewhere a sweep compares the two).
//
// Launch: 256 threads; grid.x = groups * blocks of tiles * blocks of outputs, the last fastest: blocks at work together
// read the same x, and U lies in the L2 (4 MiB for 256 x 256 channels).
// Banks: U is 8 distinct pieces of 16 bytes a warp, V 4; stores of V are 32 neighbouring words (NCHW), or, lanes being
// 8 channels by 4 tiles (NHWC), the pieces of row c are exchanged by c, so that the 8 channels meet 8 times 4 banks.
// The strides 48 and 72 of the exchange give each 8 lanes all banks.
//
// Bound: arithmetic, then the L2. Of 1243 instructions of the main loop (sm_90) 1024 are products: 82 % of an H200's
// peak at most, 55 TFLOP/s, which is 124 TFLOP/s of direct convolution. A channel is 16 * 64 * 32 FMA, 256 cycles of a
// multiprocessor at peak, and reads 4 KiB of U and 1 KiB of x: at that speed 3.8 TB/s out of the L2, close to what it
// gives. One block a multiprocessor (registers, shared memory); fewer than 132 blocks (one image of 14 x 14) leave some
// of them idle.
// Test: pytest tests/cuda_on_cpu -k winograd_f2
#define TILE 2
#define TAPS 3
#ifndef NHWC
#define NHWC 0
#endif
#ifndef DEPTH
#define DEPTH 8
#endif
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"
#include "winograd.cuh"

#define OUTPUTS 64
#define TILES 32
#define FREQUENCIES 16
#define THREADS 256
#define LINE (FREQUENCIES * OUTPUTS)  // of U, for one channel of x

// Rows of V for channel c: which 16-byte piece lies where.
#define PIECE(piece, c) (NHWC ? (piece) ^ (c) : (piece))

// U = G w G^T. 128 threads: 32 outputs by 4 inputs; the grid's z walks over groups.
extern "C" __global__ void __launch_bounds__(128) winograd_f2_filter(
    const float* __restrict__ w, float* __restrict__ u, Conv conv, int turned) {
    const float matrix[ALPHA][TAPS] = WINOGRAD_G;
    const int depth = conv.c / conv.groups, outputs = conv.k / conv.groups;
    const int depth_8 = (depth + 7) / 8 * 8, blocks = (outputs + OUTPUTS - 1) / OUTPUTS;
    const int k = blockIdx.x * 32 + threadIdx.x % 32;  // up to a multiple of 64
    for (int group = blockIdx.z; group < conv.groups; group += gridDim.z)
        for (int c = blockIdx.y * 4 + threadIdx.x / 32; c < depth_8; c += gridDim.y * 4) {
            float half[TAPS][ALPHA];
            transform_filter(matrix, w, turned, group, depth, outputs, c, k, c < depth && k < outputs, half);
            float* target = u + (((Long)group * blocks + k / OUTPUTS) * depth_8 + c) * LINE + k % OUTPUTS;
#pragma unroll
            for (int f = 0; f < FREQUENCIES; f++)
                target[f * OUTPUTS] = transform_down(matrix, half, f / ALPHA, f % ALPHA);
        }
}

// The 16 products of a tile and channel, `stride` apart in shared memory, transformed back; results that exist are
// written.
static __device__ __forceinline__ void write_tile(
    const float* products, int stride, float* __restrict__ corner, const Steps& steps, int rows, int columns) {
    const float matrix[TILE][ALPHA] = WINOGRAD_AT;
    float half[ALPHA][TILE];
#pragma unroll
    for (int i = 0; i < ALPHA; i++) {
        float line[ALPHA];
#pragma unroll
        for (int j = 0; j < ALPHA; j++) line[j] = products[(i * ALPHA + j) * stride];
        transform_line(matrix, line, half[i]);
    }
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        const float left = transform_down(matrix, half, i, 0), right = transform_down(matrix, half, i, 1);
        if (i >= rows) break;
#if !NHWC
        if (steps.row % 2 == 0) {  // pairs are whole and aligned, and a warp writes whole lines
            *(float2*)(corner + i * steps.row) = make_float2(left, right);
            continue;
        }
#endif
        corner[i * steps.row] = left;
        if (columns > 1) corner[i * steps.row + steps.column] = right;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) winograd_f2(
    const float* __restrict__ x, const float* __restrict__ u, float* __restrict__ y, Conv conv) {
    DYNAMIC_SHARED(float, shared);
    float* const us = shared;
    float* const vs = shared + 2 * DEPTH * LINE;
    const int depth = conv.c / conv.groups, outputs = conv.k / conv.groups;
    const int blocks_k = (outputs + OUTPUTS - 1) / OUTPUTS, depth_8 = (depth + 7) / 8 * 8;
    const int across = (conv.q + TILE - 1) / TILE, down = (conv.p + TILE - 1) / TILE;
    const Long tiles = (Long)conv.n * down * across;
    const int blocks_t = (int)((tiles + TILES - 1) / TILES);
    const int block_k = blockIdx.x % blocks_k, rest = blockIdx.x / blocks_k;
    const Long first = (Long)(rest % blocks_t) * TILES;
    const int group = rest / blocks_t;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    // Which window of x this thread transforms: channel `own_c` of each step, the own_tile-th tile.
#if NHWC
    const int own_c = threadIdx.x % DEPTH, own_tile = threadIdx.x / DEPTH;
#else
    const int own_c = warp, own_tile = lane;
#endif
    const bool transforms = own_c < DEPTH && own_tile < TILES;  // with DEPTH 4, half the threads
    const Steps steps_x = steps_of(conv.c, conv.h, conv.w);
    const float* window = x;
    unsigned inside = 0;  // bit 4 i + j: element (i, j) of the window lies in the image
    if (transforms && first + own_tile < tiles) {
        const Tile tile = tile_of(conv, first + own_tile);
        const int top = tile.row - conv.pad_h, left = tile.column - conv.pad_w;
        window += at(steps_x, tile.image, group * depth + own_c, top, left);
#pragma unroll
        for (int e = 0; e < FREQUENCIES; e++) {
            const bool row = (unsigned)(top + e / 4) < (unsigned)conv.h;
            if (row && (unsigned)(left + e % 4) < (unsigned)conv.w) inside |= 1u << e;
        }
    }
    float* const own_v = vs + own_c * TILES + PIECE(own_tile / 4, own_c) * 4 + own_tile % 4;
    const float* from_u = u + ((Long)group * blocks_k + block_k) * depth_8 * LINE + threadIdx.x * 4;

    float elements[ALPHA][ALPHA];
    auto load = [&](int c, int buffer) {
        float* to = us + buffer * DEPTH * LINE + threadIdx.x * 4;
#pragma unroll
        for (int i = 0; i < DEPTH; i++) cp_async_16(to + i * LINE, from_u + (Long)(c + i) * LINE, true);
        cp_async_commit();
        const unsigned mask = c + own_c < depth ? inside : 0;
        const float* from = window + c * steps_x.channel;
#pragma unroll
        for (int i = 0; i < ALPHA; i++) {
            const float* element = from;
#pragma unroll
            for (int j = 0; j < ALPHA; j++) {
                elements[i][j] = mask >> (4 * i + j) & 1 ? __ldg(element) : 0.f;
                element += steps_x.column;
            }
            from += steps_x.row;
        }
    };
    auto transform = [&](int buffer) {
        const float matrix[ALPHA][ALPHA] = WINOGRAD_BT;
        if (!transforms) return;
        float half[ALPHA][ALPHA];
#pragma unroll
        for (int i = 0; i < ALPHA; i++) transform_line(matrix, elements[i], half[i]);
#pragma unroll
        for (int f = 0; f < FREQUENCIES; f++)
            own_v[(buffer * FREQUENCIES + f) * DEPTH * TILES] = transform_down(matrix, half, f / ALPHA, f % ALPHA);
    };

    // A thread's results: frequencies 2 warp + a; outputs 4 high + i and 32 more; tiles 4 low + j and 16 more.
    const int high = lane / 4, low = lane % 4;
    float sums[2][8][8];
#pragma unroll
    for (int a = 0; a < 2; a++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sums[a][i][j] = 0.f;

    load(0, 0);
    transform(0);
    cp_async_wait<0>();
    __syncthreads();
    int buffer = 0;
    for (int c = 0; c < depth; c += DEPTH) {
        const bool more = c + DEPTH < depth;
        if (more) load(c + DEPTH, buffer ^ 1);
        const float* line_u = us + buffer * DEPTH * LINE + 2 * warp * OUTPUTS + high * 4;
        const float* line_v = vs + (buffer * FREQUENCIES + 2 * warp) * DEPTH * TILES;
#pragma unroll
        for (int l = 0; l < DEPTH; l++)
#pragma unroll
            for (int a = 0; a < 2; a++) {
                const float* part_u = line_u + l * LINE + a * OUTPUTS;
                const float* part_v = line_v + (a * DEPTH + l) * TILES;
                const float4 u0 = *(const float4*)part_u, u1 = *(const float4*)(part_u + 32);
                const float4 v0 = *(const float4*)(part_v + PIECE(low, l) * 4);
                const float4 v1 = *(const float4*)(part_v + PIECE(low + 4, l) * 4);
                const float left[8] = {u0.x, u0.y, u0.z, u0.w, u1.x, u1.y, u1.z, u1.w};
                const float right[8] = {v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w};
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[a][i][j] = fmaf(left[i], right[j], sums[a][i][j]);
            }
        buffer ^= 1;
        if (more) transform(buffer);
        cp_async_wait<0>();
        __syncthreads();
    }

    const Steps steps_y = steps_of(conv.k, conv.p, conv.q);
#pragma unroll
    for (int pass = 0; pass < 4; pass++) {
#if NHWC
        // A quarter of the tiles, [16][8 tiles][64 outputs, 72]; then a warp has a tile, lanes lie along outputs.
        const int stride = 8 * 72;
#pragma unroll
        for (int a = 0; a < 2; a++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int j = 2 * pass + half;
                float* to = shared + (2 * warp + a) * stride + (low + 4 * half) * 72 + high * 4;
                *(float4*)to = make_float4(sums[a][0][j], sums[a][1][j], sums[a][2][j], sums[a][3][j]);
                *(float4*)(to + 32) = make_float4(sums[a][4][j], sums[a][5][j], sums[a][6][j], sums[a][7][j]);
            }
        __syncthreads();
        const int j = 2 * pass + warp / 4;
        const Long number = first + 4 * (warp % 4) + j % 4 + j / 4 * 16;
        if (number < tiles) {
            const Tile tile = tile_of(conv, number);
#pragma unroll
            for (int k = lane; k < OUTPUTS; k += 32) {
                const int channel = block_k * OUTPUTS + k;
                if (channel >= outputs) continue;
                write_tile(shared + warp * 72 + k, stride,
                           y + at(steps_y, tile.image, group * outputs + channel, tile.row, tile.column), steps_y,
                           conv.p - tile.row, conv.q - tile.column);
            }
        }
#else
        // A quarter of the outputs, [16][16 outputs][32 tiles, 48]; then lanes lie along tiles.
        const int stride = 16 * 48;
#pragma unroll
        for (int a = 0; a < 2; a++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float (&row)[8] = sums[a][2 * pass + half];
                float* to = shared + (2 * warp + a) * stride + (high + 8 * half) * 48 + low * 4;
                *(float4*)to = make_float4(row[0], row[1], row[2], row[3]);
                *(float4*)(to + 16) = make_float4(row[4], row[5], row[6], row[7]);
            }
        __syncthreads();
        if (first + lane < tiles) {
            const Tile tile = tile_of(conv, first + lane);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int i = 2 * pass + half;
                const int channel = block_k * OUTPUTS + 4 * warp + i % 4 + i / 4 * 32;
                if (channel >= outputs) continue;
                write_tile(shared + (warp + 8 * half) * 48 + lane, stride,
                           y + at(steps_y, tile.image, group * outputs + channel, tile.row, tile.column), steps_y,
                           conv.p - tile.row, conv.q - tile.column);
            }
        }
#endif
        __syncthreads();
    }
}
