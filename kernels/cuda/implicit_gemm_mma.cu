// Implicit GEMM on tensor cores, forward and backward data: implicit_gemm_{tf32,3xtf32,fp16,bf16,int8}_cuda,
// implicit_gemm_wgmma_{fp16,bf16}_cuda; forward: binary_popc_cuda, xnor_popc_cuda.
//
// As implicit_gemm.cu (Chetlur et al. 2014, arXiv 1410.0759, section 3.2), with mma.sync in place of FFMA. Source:
// nhwc, the channels of a group `depth` apart and `depth` a multiple of 16 bytes; implicit_gemm_pack.cu makes that of
// anything else. Filter: [group][row][tap][depth]. ARITHMETIC says what is multiplied:
//
//    1  signs as bits, 32 in an element (pack_signs.cu makes them, signs.cuh says what is counted): m16n8k256, which
//       counts a & b; sums of signs as floats, times scales[k] and the mean of |x| under the filter where `scaled` is
//       not 0 (Rastegari et al. 2016, "XNOR-Net", arXiv 1603.05279, section 3.2). POPC 1: by POPC and shuffles
//    8  signed bytes: m16n8k32 (before sm_80 four m8n8k16, which have the same registers), sums and results in int32
//   16  half, 17 bfloat16: m16n8k16, float sums, results in the same type
//   32  float rounded to TF32 (cvt.rna): m16n8k8
//   96  float as the sum of two TF32 numbers: small*big + big*small + big*big, three m16n8k8, the product of the small
//       parts left out (Markidis et al. 2018, arXiv 1803.04014). Tensor cores truncate when they add, which shows in
//       long sums (Ootomo and Yokota 2022, arXiv 2203.03341): sums of a tile of 32 columns start at zero and are added
//       by FADD.
//
// A block computes BLOCK_M x BLOCK_N results, a warp WARP_M x WARP_N. Tiles are rows of 128 bytes, eight chunks of 16:
// 1024 bits, 128 bytes, 64 halves or 32 floats of the sum, so all arithmetics share the copies: cp.async, STAGES tiles
// in flight, zeros for what is outside the image or beyond the sum. A thread copies one chunk column; its (r, s, c) is
// counted on, and which of its rows are inside the image is found out once a tap. A fragment (ldmatrix) is read one
// step ahead of its products. Registers are for sums and fragments: what is needed once a tap or after the sum waits in
// shared memory.
//
// Shared memory without conflicts: chunk j of row i of the source lies at j ^ (i % 8), so that the eight rows of an
// 8 x 8 tile have eight different chunks; copies write whole rows. Rows of the filter are dealt out to the 8 x 8
// tiles so that a thread's results are neighbours: column j of tile t is row j * TILES_N + t, its chunks at
// ^ (row / TILES_N % 8). So each thread has 2 * TILES_N neighbouring results of a pixel and stores 16 bytes at once.
//
// Launch: grid (tiles_m * tiles_n * groups * phases, parts) with tiles_n innermost, BLOCK_M / WARP_M * BLOCK_N / WARP_N
// warps, STAGES * (BLOCK_M + BLOCK_N) * 128 + BLOCK_M * 20 bytes of shared memory (the latter for the rows' places; 24
// more for signs).
// parts > 1: sums to `parts` + part * out_elements, to be added by another kernel.
//
// 128 x 256, 8 warps of 64 x 64: 192 KB in four stages, one block an SM; 128 x 128, 4 warps: 96 KB in three, two
// blocks. Both: 8 warps an SM, at most 255 registers, 128 of them sums and 64 fragments. A step of 16 halves is 32 mma
// and 8 ldmatrix a warp: 64 bytes of shared memory a clock at full rate, of 128. L2 to SM: 48 KB for 2^21
// multiply-adds, 29 bytes a clock at the 620 TFLOP/s that mma.sync may reach on an H200. Bound: mma.sync, some 62 % of
// what wgmma reaches. 96 keeps two sets of sums: 128 x 128 by 8 warps of 64 x 32. 64 x 64: 4 warps of 32 x 32, for few
// pixels.
//
// WGMMA 1 (sm_90a, halves): wgmma.mma_async reads both operands out of shared memory, 64 rows a warpgroup, the products
// of a tile run while the next is waited for. Copies by cp.async as above, in issue slots that wgmma leaves free;
// bound: what L2 gives, 48 bytes a clock at the full rate of the tensor cores. WARP_M 16, WARP_N BLOCK_N. Rows of the
// filter are dealt out so that a thread has 32 neighbouring results; 1024 bytes more of shared memory, because tiles
// begin at multiples of that.
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
#define STAGES 3
#endif

#ifndef WGMMA
#define WGMMA 0
#endif
#ifndef POPC
#define POPC 0
#endif

#include "implicit_gemm_mma.cuh"
#if ARITHMETIC == 1
#include "signs.cuh"
#endif
#if WGMMA
#include "wgmma.cuh"
#if ARITHMETIC == 16
#define WGMMA_PRODUCT wgmma_f16_64x128x16
#else
#define WGMMA_PRODUCT wgmma_bf16_64x128x16
#endif
#endif

#define BLOCK_K (8 * CHUNK)
#define WARPS_M (BLOCK_M / WARP_M)
#define THREADS (BLOCK_M / WARP_M * BLOCK_N / WARP_N * 32)
#define TILES_M (WARP_M / 16)  // of mma.sync; a warp of wgmma has 16 rows and all columns
#define TILES_N (WARP_N / 8)
#define ROW_BYTES 128
#define STAGE_BYTES ((BLOCK_M + BLOCK_N) * ROW_BYTES)
#define COPY_ROWS (THREADS / 8)  // rows that the block copies at once, eight threads each
#define SOURCE_COPIES (BLOCK_M / COPY_ROWS)
#define FILTER_COPIES (BLOCK_N / COPY_ROWS)
#define FILTER_BIT 8             // of what is known of the rows that a thread copies
#define STEPS 4                  // of two chunks: m16n8k32 for bytes, m16n8k16 for halves, m16n8k8 for floats
#if WGMMA
// Which row of the filter's tile lies in row i of shared memory.
#define FILTER_ROW(i) ((i) / 128 * 128 + (i) % 8 / 2 * 32 + (i) % 128 / 8 * 2 + (i) % 2)
#define FILTER_SWIZZLE(i) ((i) % 8)
#define AHEAD (STAGES - 2)  // tiles that are copied before they are needed
#else
#define FILTER_ROW(i) (i)
#define FILTER_SWIZZLE(i) ((i) / TILES_N % 8)
#define AHEAD (STAGES - 1)
#endif
#define BLOCKS_PER_SM (THREADS == 256 ? 1 : BLOCK_M == 128 || POPC ? 2 : 3)  // 255, 255, 168 registers

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
implicit_gemm_mma(const Element* __restrict__ source, const Element* __restrict__ filter, Result* __restrict__ out,
                  Sum* __restrict__ parts, Conv f, int pass, int nhwc, int tiles_m, int tiles_n, int depth,
                  long long out_elements
#if ARITHMETIC == 1
                  , const Pixel* __restrict__ of_pixels, const int* __restrict__ table,
                  const float* __restrict__ scales, int scaled
#endif
                  ) {
    DYNAMIC_SHARED(unsigned char, dynamic);
#if WGMMA  // its swizzling counts rows from multiples of 1024 bytes
    unsigned char* const shared = dynamic + (1024 - reinterpret_cast<size_t>(dynamic) % 1024) % 1024;
#else
    unsigned char* const shared = dynamic;
#endif
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

    // ---- which tile of which product
    __shared__ Product product;
    __shared__ int filter_row;  // chunks from one row of the filter to the next
    if (thread == 0) {
        find_product(product, f, pass, tiles_m, tiles_n, depth, BLOCK_M, BLOCK_N, BLOCK_K);
        filter_row = f.r * f.s * (depth / CHUNK);
    }
    __syncthreads();
    if (product.m0 >= product.size_m) return;  // phases differ in size
    const int tiles = (product.length + BLOCK_K - 1) / BLOCK_K;
    const int tile0 = (int)((long long)tiles * blockIdx.y / gridDim.y);
    const int tile1 = (int)((long long)tiles * (blockIdx.y + 1) / gridDim.y);

    // ---- rows: their results, the pixels that their first taps meet, and where those lie, in chunks
    long long* const results = reinterpret_cast<long long*>(shared + STAGES * STAGE_BYTES);
    int2* const corners = reinterpret_cast<int2*>(results + BLOCK_M);
    int* const pixels = reinterpret_cast<int*>(corners + BLOCK_M);
#if ARITHMETIC == 1
    Window* const windows = reinterpret_cast<Window*>(pixels + BLOCK_M);
#endif
#pragma unroll 1
    for (int i = thread; i < BLOCK_M; i += THREADS) {
        const Row row = row_of(product, product.m0 + i, nhwc);
        const int pixel = (row.image * product.h.size + row.u) * product.w.size + row.v;
        results[i] = row.result;
        corners[i] = make_int2(row.u, row.v);
#if ARITHMETIC == 1
        if (row.result >= 0) windows[i] = window_of(f, of_pixels, row, product.group);
#endif
        pixels[i] = row.result < 0 ? 0 : (pixel * f.groups + product.group) * (depth / CHUNK);
    }
    __syncthreads();

    // ---- copies: one chunk column of every COPY_ROWS-th row
    const int chunk = thread % 8, copy_row = thread / 8;
    int pixel[SOURCE_COPIES];
#pragma unroll
    for (int i = 0; i < SOURCE_COPIES; ++i) pixel[i] = pixels[copy_row + i * COPY_ROWS];
    Digits column = digits_of(tile0 * BLOCK_K + chunk * CHUNK, depth, product.middle);
    int offset = 0;      // of the column from a row's first pixel, in chunks
    unsigned there = 0;  // bit i: row i lies inside the image for this tap; FILTER_BIT + i: row i of the filter exists
#pragma unroll
    for (int i = 0; i < FILTER_COPIES; ++i) {
        there |= (unsigned)(product.n0 + FILTER_ROW(copy_row + i * COPY_ROWS) < product.size_n) << (FILTER_BIT + i);
    }
    // (bits of FILTER_ROW are those of its argument in another order, so that it may be taken of parts)
    const int tap0 = product.h.tap_position * f.s + product.h.taps * product.w.tap_position;
    int filter_at = ((product.group * product.size_n + product.n0 + FILTER_ROW(copy_row)) * f.r * f.s + tap0)
                    * (depth / CHUNK) + tile0 * 8 + chunk;

    auto enter_tap = [&] {
        const int u = column.high * product.h.tap_step, v = column.middle * product.w.tap_step;
        const bool within = column.high < product.h.taps;
        offset = (u * product.w.size + v) * f.groups * (depth / CHUNK) + column.low / CHUNK;
        there = within ? there & (unsigned)-(1 << FILTER_BIT) : 0;
#pragma unroll
        for (int i = 0; i < SOURCE_COPIES; ++i) {
            const int2 corner = corners[copy_row + i * COPY_ROWS];
            there |= (unsigned)(within & lies_inside(corner.x, u, product.h.size)
                                & lies_inside(corner.y, v, product.w.size)) << i;
        }
    };
    enter_tap();

    auto load = [&](int stage) {
        const int to = stage * STAGE_BYTES + copy_row * ROW_BYTES;
#pragma unroll
        for (int i = 0; i < SOURCE_COPIES; ++i) {
            cp_async_16(shared + (to + ((chunk ^ copy_row % 8) << 4)) + i * COPY_ROWS * ROW_BYTES,
                        source + (long long)(pixel[i] + offset) * CHUNK, there >> i & 1);
        }
        const int row_chunks = filter_row;
        const int swizzled = to + ((chunk ^ FILTER_SWIZZLE(copy_row)) << 4);
#pragma unroll
        for (int i = 0; i < FILTER_COPIES; ++i) {
            const int row = BLOCK_M + i * COPY_ROWS;
            cp_async_16(shared + (swizzled ^ FILTER_SWIZZLE(i * COPY_ROWS) << 4) + row * ROW_BYTES,
                        filter + (long long)(filter_at + FILTER_ROW(i * COPY_ROWS) * row_chunks) * CHUNK,
                        there >> (FILTER_BIT + i) & 1);
        }
        filter_at += 8;
        if (column.low + BLOCK_K < depth) {
            column.low += BLOCK_K;
            offset += 8;
        } else {
            advance(column, product.step, depth, product.middle);
            enter_tap();
        }
    };

    const int warp_m = warp % WARPS_M * WARP_M;
#if WGMMA
    // ---- the sum: two warpgroups, 64 rows each, read both operands where they lie
    float sums[BLOCK_N / 128][64];
#pragma unroll
    for (int half = 0; half < BLOCK_N / 128; ++half) {
#pragma unroll
        for (int i = 0; i < 64; ++i) sums[half][i] = 0.0f;
    }
#pragma unroll 1
    for (int stage = 0; stage < AHEAD; ++stage) {
        if (tile0 + stage < tile1) load(stage);
        cp_async_commit();
    }
    int stage = 0, next = AHEAD;
#pragma unroll 1
    for (int tile = tile0; tile < tile1; ++tile) {
        cp_async_wait<AHEAD - 1>();
        copies_before_wgmma();
        __syncthreads();  // this tile is there for all; the products of the tile before the last are done
        const unsigned char* const rows_m = shared + stage * STAGE_BYTES + warp / 4 * 64 * ROW_BYTES;
        const unsigned char* const rows_n = shared + stage * STAGE_BYTES + BLOCK_M * ROW_BYTES;
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
#pragma unroll
            for (int half = 0; half < BLOCK_N / 128; ++half) {
                WGMMA_PRODUCT(sums[half], rows_m + step * 32, rows_n + half * 128 * ROW_BYTES + step * 32);
            }
        }
        wgmma_commit();
        if (tile + AHEAD < tile1) load(next);
        cp_async_commit();
        wgmma_wait<1>();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    wgmma_wait<0>();
#else
    // ---- fragments: ldmatrix takes the address of one row of an 8 x 8 tile from each lane
    const int warp_n = warp / WARPS_M * WARP_N;
    const int lane_m = (warp_m + lane % 16) * ROW_BYTES + (((lane / 16) ^ (lane % 8)) << 4);
    const int lane_n = (BLOCK_M + warp_n + lane % 8 * TILES_N + lane / 16) * ROW_BYTES
                       + (((lane / 8 % 2) ^ (lane % 8)) << 4);
    unsigned a[2][TILES_M][4], b[2][TILES_N / 2][4];
    auto read = [&](int to, int stage, int step) {  // rows begin at multiples of 128 bytes: ^ changes the chunk alone
        const unsigned char* const chunks_m = shared + ((lane_m + stage * STAGE_BYTES) ^ (2 * step << 4));
        const unsigned char* const chunks_n = shared + ((lane_n + stage * STAGE_BYTES) ^ (2 * step << 4));
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
            ldmatrix_x4(a[to][i], chunks_m + i * 16 * ROW_BYTES);
        }
#pragma unroll
        for (int j = 0; j < TILES_N / 2; ++j) {
            ldmatrix_x4(b[to][j], chunks_n + j * 2 * ROW_BYTES);
        }
    };

    // ---- the sum
    Sum sums[TILES_M][TILES_N][4];
    accumulate<STAGES, STEPS>(sums, a, b, tile1 - tile0, load, read);
#endif
    cp_async_wait_all();

    // ---- results: rows lane / 4 and 8 further of each tile, 2 * TILES_N neighbouring columns of each
    const int size_n = product.size_n, column_step = nhwc ? 1 : product.height * product.width;
    const bool whole = nhwc && size_n % (gridDim.y > 1 ? 4 : 16 / (int)sizeof(Result)) == 0;  // 16 bytes at a time
    parts += blockIdx.y * out_elements;
#if WGMMA
    constexpr int TOGETHER = 32, PIECES = BLOCK_N / 128;  // neighbouring columns of one thread, and how often
    const int warp_n = 0;
#else
    constexpr int TOGETHER = 2 * TILES_N, PIECES = 1;
#endif
#pragma unroll
    for (int i = 0; i < TILES_M * PIECES; ++i) {
        const int n = product.n0 + warp_n + i / TILES_M * 128 + lane % 4 * TOGETHER;
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
            const int row = warp_m + i % TILES_M * 16 + lane / 4 + lower * 8;
            const long long place = results[row];
            if (place < 0) continue;
            Sum values[TOGETHER];
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) {
#if WGMMA
                values[j] = sums[i][j / 2 * 4 + 2 * lower + j % 2];
#else
                values[j] = sums[i][j % TILES_N][2 * lower + j / TILES_N];
#endif
            }
#if ARITHMETIC == 1
            float of_signs[TOGETHER];
            finish_signs(of_signs, values, windows[row], table + product.group * size_n, scales + product.group * size_n,
                         n, size_n, scaled);
            store(out + place + (long long)n * column_step, of_signs, size_n - n, column_step, whole);
#else
            if (gridDim.y > 1) {
                store(parts + place + (long long)n * column_step, values, size_n - n, column_step, whole);
            } else {
                store(out + place + (long long)n * column_step, values, size_n - n, column_step, whole);
            }
#endif
        }
    }
}
