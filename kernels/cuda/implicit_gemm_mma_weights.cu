// Implicit GEMM on tensor cores, backward weights: implicit_gemm_{tf32,3xtf32,fp16,bf16,int8}_cuda.
//
//   dw[k][r, s, c] = sum over pixels (image, p, q) of dy[pixel][k] * x[image, p * stride_h + r * dilation_h - pad_h,
//                                                                      q * stride_w + s * dilation_w - pad_w][c]
//
// (Chetlur et al. 2014, arXiv 1410.0759, section 3.2.) Both operands are nhwc with the channels of a group in multiples
// of 16 bytes (x_depth, dy_depth; implicit_gemm_pack.cu pads), so tiles of shared memory are rows of channels, one a
// pixel: the sum runs down the rows, and the fragments of mma.sync must be read transposed. ARITHMETIC as in
// implicit_gemm_mma.cu.
//
//   bytes   64 pixels a tile. ldmatrix.trans brings pairs of channels, of two pixels in a register; two such registers
//           hold four pixels of two neighbouring channels, which two PRMT take apart. The pixels of a register come in
//           the same order for both operands. So row i of tile t is channel 16 * t + 2 * i (its upper half 1 further),
//           columns are dealt out likewise, and the results of two column tiles are four neighbours. Rows of 64
//           channels are half as long as the banks: chunk j of row i lies at j ^ (i / 2 % 4), else at j ^ (i % 8).
//   halves  32 pixels a tile; chunk j of row i lies at j ^ (i % 8), so that the eight rows that ldmatrix.trans reads
//           are in different banks.
//   floats  16 pixels a tile, rows BLOCK + 8 floats long. ldmatrix transposes 16-bit elements only. Instead rows and
//           columns of the product are dealt out so that what a lane needs for one pixel lies together: row i of
//           tile t is 4 * i + t % 4 (+ 32 * (t / 4)), and one LDS.128 brings it for four tiles; 8 lanes of it hit 32
//           banks. The results of four column tiles are neighbours for the same reason, and are stored as float4.
//
// A thread copies chunks of one pixel: the pixel's (image, p, q) is counted on without division, the chunks' taps and
// addresses are computed once. cp.async, STAGES tiles in flight, zeros outside the image and beyond the last pixel.
//
// Launch: grid (tiles_m * tiles_n * groups, parts), BLOCK_M / WARP_M * BLOCK_N / WARP_N warps, STAGES * BLOCK_K rows of
// shared memory for both operands. There are few tiles and long sums, so the sum is usually cut into parts: sums to
// `parts` + part * out_elements, added by another kernel in a fixed order. Halves, 128 x 128: 4 warps of 64 x 64, 64 KB
// in four stages, 2 blocks an SM, at most 255 registers. Floats: 8 warps of 64 x 32, 69 KB, 1 block. Bound: mma.sync;
// floats: 128 bytes of shared memory a clock at its full rate.
//
// Test: pytest tests/cuda_on_cpu -k implicit_gemm
#include "conv.cuh"
#include "device.cuh"
#include "implicit_gemm.cuh"

#ifndef ARITHMETIC
#define ARITHMETIC 16
#endif
#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N 128
#endif
#ifndef WARP_M
#define WARP_M 64
#endif
#ifndef WARP_N
#define WARP_N 64
#endif
#ifndef STAGES
#define STAGES 4
#endif

#include "implicit_gemm_mma.cuh"

#define BYTES (ARITHMETIC == 8)
#define HALVES (ARITHMETIC == 16 || ARITHMETIC == 17)
#define FLOATS (ARITHMETIC >= 32)
#define BLOCK_K (4 * CHUNK)
#define WARPS_M (BLOCK_M / WARP_M)
#define THREADS (BLOCK_M / WARP_M * BLOCK_N / WARP_N * 32)
#define TILES_M (WARP_M / 16)
#define TILES_N (WARP_N / 8)
#define PITCH_M (FLOATS ? BLOCK_M + 8 : BLOCK_M)  // elements from row to row
#define PITCH_N (FLOATS ? BLOCK_N + 8 : BLOCK_N)
#define STAGE_ELEMENTS (BLOCK_K * (PITCH_M + PITCH_N))
#define LANES (THREADS / BLOCK_K)  // threads that copy one pixel
#define COPIES_M (BLOCK_M / CHUNK / LANES)
#define COPIES_N (BLOCK_N / CHUNK / LANES)
#define STEPS 2  // m16n8k32 for bytes, m16n8k16 for halves, m16n8k8 for floats
#define BLOCKS_PER_SM (THREADS == 256 ? 1 : BLOCK_M == 128 ? 2 : 3)

// Where a chunk of a row of PITCH elements lies, in elements.
template <int PITCH>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
    const int swizzle = PITCH / CHUNK < 8 ? row / 2 % 4 : row % 8;
    return (FLOATS ? chunk : chunk ^ swizzle) * CHUNK;
}

// A chunk some chunks further in the row: their number has none of the bits of the first chunk's.
__device__ __forceinline__ int further(int at, int chunks) {
    return FLOATS ? at + chunks * CHUNK : at ^ chunks * CHUNK;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
implicit_gemm_mma_weights(const Element* __restrict__ x, const Element* __restrict__ dy, Result* __restrict__ out,
                          Sum* __restrict__ parts, Conv f, int pass, int nhwc, int tiles_m, int tiles_n, int x_depth,
                          int dy_depth, long long out_elements) {
    DYNAMIC_SHARED(Element, shared);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int cg = f.c / f.groups, kg = f.k / f.groups;

    // ---- which tile; columns of the product are (r, s, c) with c as it is stored
    int block = blockIdx.x;
    const int n0 = block % tiles_n * BLOCK_N;
    block /= tiles_n;
    const int m0 = block % tiles_m * BLOCK_M, group = block / tiles_m;
    const int size_n = f.r * f.s * x_depth;
    const int tiles = (int)(((long long)f.n * f.p * f.q + BLOCK_K - 1) / BLOCK_K);
    const int tile0 = (int)((long long)tiles * blockIdx.y / gridDim.y);
    const int tile1 = (int)((long long)tiles * (blockIdx.y + 1) / gridDim.y);

    // ---- copies: this thread's chunks of one pixel
    const int copy_row = thread / LANES, copy_lane = thread % LANES;
    const int pixel_stride = f.groups * x_depth, row_stride = f.w * pixel_stride;
    int tap_u[COPIES_N], tap_v[COPIES_N], tap_offset[COPIES_N];
#pragma unroll
    for (int i = 0; i < COPIES_N; ++i) {
        const int column = n0 + (copy_lane + i * LANES) * CHUNK;
        const Digits d = digits_of(column, x_depth, f.s);
        tap_u[i] = column < size_n ? d.high * f.dilation_h : OUTSIDE;
        tap_v[i] = d.middle * f.dilation_w;
        tap_offset[i] = d.high * f.dilation_h * row_stride + tap_v[i] * pixel_stride + d.low;
    }
    unsigned dy_there = 0;  // bit i: channels of chunk i exist
#pragma unroll
    for (int i = 0; i < COPIES_M; ++i) {
        dy_there |= (unsigned)(m0 + (copy_lane + i * LANES) * CHUNK < dy_depth) << i;
    }
    Digits pixel = digits_of(tile0 * BLOCK_K + copy_row, f.q, f.p);
    const Digits tile_digits = digits_of(BLOCK_K, f.q, f.p);
    const Element* dy_at = dy + ((long long)tile0 * BLOCK_K + copy_row) * f.groups * dy_depth + group * dy_depth + m0
                           + copy_lane * CHUNK;

    auto load = [&](int stage) {
        const int to_m = stage * STAGE_ELEMENTS + copy_row * PITCH_M + chunk_at<PITCH_M>(copy_row, copy_lane);
        const int to_n = stage * STAGE_ELEMENTS + BLOCK_K * PITCH_M + copy_row * PITCH_N
                         + chunk_at<PITCH_N>(copy_row, copy_lane);
        const bool within = pixel.high < f.n;
        const int u = pixel.middle * f.stride_h - f.pad_h, v = pixel.low * f.stride_w - f.pad_w;
        const Element* const x_at = x + ((long long)pixel.high * f.h + u) * row_stride + v * pixel_stride
                                    + group * x_depth;
#pragma unroll
        for (int i = 0; i < COPIES_M; ++i) {
            cp_async_16(shared + further(to_m, i * LANES), dy_at + i * LANES * CHUNK,
                        within && (dy_there >> i & 1));
        }
#pragma unroll
        for (int i = 0; i < COPIES_N; ++i) {
            const bool valid = within && lies_inside(tap_u[i], u, f.h) && lies_inside(tap_v[i], v, f.w);
            cp_async_16(shared + further(to_n, i * LANES), x_at + tap_offset[i], valid);
        }
        dy_at += (long long)BLOCK_K * f.groups * dy_depth;
        advance(pixel, tile_digits, f.q, f.p);
    };

    // ---- fragments
    const int warp_m = warp % WARPS_M * WARP_M, warp_n = warp / WARPS_M * WARP_N;
    unsigned a[2][TILES_M][4], b[2][TILES_N / 2][4];
    auto read = [&](int to, int stage, int step) {
#if BYTES
        const int at_m = stage * STAGE_ELEMENTS + step * 32 * PITCH_M
                         + (lane * PITCH_M + chunk_at<PITCH_M>(lane, warp_m / CHUNK));
        const int at_n = stage * STAGE_ELEMENTS + (BLOCK_K * PITCH_M + step * 32 * PITCH_N)
                         + (lane * PITCH_N + chunk_at<PITCH_N>(lane, warp_n / CHUNK));
        unsigned pairs[4];  // of channels, from pixels 0 to 7, 8 to 15, 16 to 23, 24 to 31
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
            ldmatrix_x4_trans(pairs, shared + further(at_m, i));
            a[to][i][0] = __byte_perm(pairs[0], pairs[1], 0x6420), a[to][i][1] = __byte_perm(pairs[0], pairs[1], 0x7531);
            a[to][i][2] = __byte_perm(pairs[2], pairs[3], 0x6420), a[to][i][3] = __byte_perm(pairs[2], pairs[3], 0x7531);
        }
#pragma unroll
        for (int j = 0; j < TILES_N / 2; ++j) {
            ldmatrix_x4_trans(pairs, shared + further(at_n, j));
            b[to][j][0] = __byte_perm(pairs[0], pairs[1], 0x6420), b[to][j][1] = __byte_perm(pairs[2], pairs[3], 0x6420);
            b[to][j][2] = __byte_perm(pairs[0], pairs[1], 0x7531), b[to][j][3] = __byte_perm(pairs[2], pairs[3], 0x7531);
        }
#elif HALVES
        const int row_m = lane % 8 + lane / 16 * 8, row_n = lane % 16;
        const int at_m = stage * STAGE_ELEMENTS + step * 16 * PITCH_M
                         + (row_m * PITCH_M + chunk_at<PITCH_M>(row_m, warp_m / 8 + lane / 8 % 2));
        const int at_n = stage * STAGE_ELEMENTS + (BLOCK_K * PITCH_M + step * 16 * PITCH_N)
                         + (row_n * PITCH_N + chunk_at<PITCH_N>(row_n, warp_n / 8 + lane / 16));
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) ldmatrix_x4_trans(a[to][i], shared + further(at_m, i * 2));
#pragma unroll
        for (int j = 0; j < TILES_N / 2; ++j) ldmatrix_x4_trans(b[to][j], shared + further(at_n, j * 2));
#else
        const Element* const tile_m = shared + stage * STAGE_ELEMENTS;
        const Element* const tile_n = tile_m + BLOCK_K * PITCH_M;
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {  // pixels lane % 4, and 4 further
            const int row = step * 8 + lane % 4 + upper * 4;
            const Element* const row_m = tile_m + row * PITCH_M + warp_m + lane / 4 * 4;
            const Element* const row_n = tile_n + row * PITCH_N + warp_n + lane / 4 * 4;
#pragma unroll
            for (int i = 0; i < TILES_M; i += 2) {
                const uint4 four = *reinterpret_cast<const uint4*>(row_m + i * 16);
                a[to][i][2 * upper] = four.x, a[to][i][2 * upper + 1] = four.y;
                a[to][i + 1][2 * upper] = four.z, a[to][i + 1][2 * upper + 1] = four.w;
            }
#pragma unroll
            for (int j = 0; j < TILES_N; j += 4) {
                const uint4 four = *reinterpret_cast<const uint4*>(row_n + j * 8);
                b[to][j / 2][upper] = four.x, b[to][j / 2][2 + upper] = four.y;
                b[to][j / 2 + 1][upper] = four.z, b[to][j / 2 + 1][2 + upper] = four.w;
            }
        }
#endif
    };

    // ---- the sum
    Sum sums[TILES_M][TILES_N][4];
    accumulate<STAGES, STEPS>(sums, a, b, tile1 - tile0, load, read);
    cp_async_wait_all();

    // ---- results: a thread has pairs (halves) or fours of neighbouring columns, which share their tap
    const int taps = f.r * f.s, column_step = nhwc ? 1 : taps;
    constexpr int TOGETHER = HALVES ? 2 : 4, GROUPS = 2 * TILES_N / TOGETHER;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
#if BYTES
        const int n = n0 + warp_n + g * 16 + lane % 4 * 4;
#elif HALVES
        const int n = n0 + warp_n + g * 8 + lane % 4 * 2;
#else
        const int n = n0 + warp_n + (lane % 4 * 2 + g % 2) * 4 + g / 2 * 32;
#endif
        const int tap = n / x_depth, c = n % x_depth;
        const int room = n < size_n ? cg - c : 0;
        const int column = nhwc ? tap * cg + c : c * taps + tap;
#pragma unroll
        for (int i = 0; i < 2 * TILES_M; ++i) {  // tile i / 2, upper or lower row
#if BYTES
            const int m = m0 + warp_m + i / 2 * 16 + lane / 4 * 2 + i % 2;
#elif HALVES
            const int m = m0 + warp_m + i / 2 * 16 + lane / 4 + i % 2 * 8;
#else
            const int m = m0 + warp_m + lane / 4 * 4 + i % 4 + i / 4 * 32;
#endif
            if (m >= kg) continue;
            Sum values[TOGETHER];
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) {
#if BYTES
                values[j] = sums[i / 2][2 * g + j % 2][i % 2 * 2 + j / 2];
#elif HALVES
                values[j] = sums[i / 2][g][i % 2 * 2 + j];
#else
                values[j] = sums[i / 2][g / 2 * 4 + j][i % 2 * 2 + g % 2];
#endif
            }
            const long long to = (long long)(group * kg + m) * (taps * cg) + column;
            if (gridDim.y > 1) {
                store(parts + blockIdx.y * out_elements + to, values, room, column_step, nhwc && cg % TOGETHER == 0);
            } else {
                store(out + to, values, room, column_step, nhwc && cg % TOGETHER == 0);
            }
        }
    }
}
