// Batched matrix product in single precision: C[b] = A[b] B[b], or C[b] += A[b] B[b], for the products of Winograd
// convolution. Tiles in registers and shared memory as in Volkov and Demmel, "Benchmarking GPUs to tune dense linear
// algebra" (SC 2008), and Nath, Tomov and Dongarra, "An improved MAGMA GEMM for Fermi GPUs" (2010).
//
// A block of threads makes a TILE_M x TILE_N tile of C, a thread 8 x 8 of it, TILE_K steps of the sum at a time. Each
// operand lies in memory in one of two ways, chosen by a macro:
//   A_ROWS 0: A^T, k x m: one step of the sum is a row.        A_ROWS 1: A, m x k: the sum runs along a row.
//   B_ROWS 0: B, k x n.                                        B_ROWS 1: B^T, n x k.
// Rows are read 16 bytes at a time, so every row stride (row_*), step and address is a multiple of 4 elements, and rows
// are readable up to the next multiple of 4. Where the sum runs along rows, what is there beyond k must be zero in both
// operands, or zero in one and finite in the other. C is written up to the next multiple of 4 columns.
//
// splits > 1: each of them takes `length` steps of the sum (a multiple of TILE_K) and writes a C of its own, step_split
// after the one before; who reads C adds them up. A split without steps writes zeros.
// Launch: TILE_M * TILE_N / 64 threads; dynamic shared memory for STAGES tiles of both operands; grid.x = batch *
// splits * tiles of n * tiles of m, the last fastest: blocks at work together share columns of B and, a batch being
// small, all of A.
//
// Shared memory: STAGES tiles of each operand, 48 KiB at 128 x 128 x 16. Rows of the sum (0) lie as they come: a warp
// is 4 x 8 threads, and 8 threads read 8 neighbouring float4 or all the same one. Rows of m or n (1) are 64 bytes,
// whose four 16-byte pieces are exchanged by (row / 2) & 3: eight neighbouring rows then cover all banks.
// Registers: two blocks of 256 threads or three of 128 share a multiprocessor. With A_ROWS 1, 128 registers are not
// enough: no variant of 256 threads.
// Bound: arithmetic. A warp does 64 FMA, 16 cycles of a multiprocessor, for 4 loads of at most 4 wavefronts each (one
// or two where its threads share addresses). Of 1171 instructions of a stage (sm_90) 1024 are FMA: 87 % of the peak at
// most. Tiles of 128 x 128 do 16 FMA for each byte they read: 2.1 TB/s out of the L2 at an H200's 33.5 T FMA/s; 128 x
// 64 needs 3.1.
// Test: pytest tests/cuda_on_cpu -k sgemm_batched
#ifndef TILE_M
#define TILE_M 128
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef A_ROWS
#define A_ROWS 0
#endif
#ifndef B_ROWS
#define B_ROWS 0
#endif
#if B_ROWS && !A_ROWS
#error exchange the operands: A_ROWS 0 with B_ROWS 1 is not there
#endif
#include "device.cuh"

#define TILE_K 16
#define STAGES 3
#define THREADS (TILE_M * TILE_N / 64)
// Threads of the block side by side: 8 in a warp along n, the rest of the tile's width by warps.
#define WARPS_N (TILE_N < 64 ? 1 : TILE_N / 64)
#define LANES_N (TILE_N < 64 ? TILE_N / 8 : 8)
#define LANES_M (32 / LANES_N)

typedef long long Long;

// Where a thread's 8 rows or columns lie in the tile, seen from the warp's first: `lanes` threads share this axis.
// Steps of the sum as rows: two runs of 4. Otherwise 8 that are `lanes` apart.
#define POSITION(rows, lanes, lane, i) \
    ((rows) ? (lane) + (i) * (lanes) : (lane) * 4 + ((i) & 3) + ((i) >> 2) * (lanes) * 4)

// What a thread copies of an operand in each stage: COPIES pieces of 16 bytes, each LINES lines after the one before.
// A line is a step of the sum, or with ROWS a row or column of the tile.
template <int SIZE, bool ROWS>
struct Stream {
    static const int PIECES = ROWS ? TILE_K / 4 : SIZE / 4;  // of a line
    static const int COPIES = SIZE * TILE_K / 4 / THREADS, LINES = THREADS / PIECES;
    const float* source;
    int limit;  // lines (ROWS) or columns (otherwise) that are left from this thread's first on

    __device__ __forceinline__ Stream(const float* operand, int stride, int first, int extent, int from) {
        const int line = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        source = ROWS ? operand + (Long)(first + line) * stride + from + piece * 4
                      : operand + (Long)(from + line) * stride + first + piece * 4;
        limit = extent - first - (ROWS ? line : piece * 4);
    }

    // remaining: steps of the sum from this stage's first on.
    __device__ __forceinline__ void fetch(float* stage, int stride, int remaining) {
        const int line = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const int at = line + i * LINES;
            const bool valid = ROWS ? i * LINES < limit && piece * 4 < remaining : at < remaining && limit > 0;
            const int place = ROWS ? at * TILE_K + ((piece ^ (at >> 1 & 3)) << 2) : at * SIZE + piece * 4;
            cp_async_16(stage + place, source + (Long)(i * LINES) * stride, valid);
        }
        source += ROWS ? (Long)TILE_K : (Long)TILE_K * stride;
    }
};

#if A_ROWS
// Four steps of the sum, from `step` on, for the i-th of a thread's rows of m or n; `tile` is at the thread's first.
// The 16-byte pieces of row r are exchanged by (r / 2) & 3; the bits that the lane gives to it are not those of i.
template <int LANES>
static __device__ __forceinline__ float4 four_steps(const float* tile, int lane, int i, int step) {
    const int piece = step / 4 ^ (i * LANES >> 1 & 3) ^ (lane >> 1 & 3);
    return *(const float4*)(tile + i * LANES * TILE_K + piece * 4);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, THREADS < 256 ? 384 / THREADS : 2) sgemm_batched(
    const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int m, int n, int k, int row_a,
    int row_b, int row_c, Long step_a, Long step_b, Long step_c, int splits, int length, Long step_split, int add) {
    DYNAMIC_SHARED(float, shared_a);  // STAGES tiles of A, then as many of B
    float* const shared_b = shared_a + STAGES * TILE_M * TILE_K;
    const int tiles_m = (m + TILE_M - 1) / TILE_M, tiles_n = (n + TILE_N - 1) / TILE_N;
    int rest = blockIdx.x;
    const int first_m = rest % tiles_m * TILE_M;
    rest /= tiles_m;
    const int first_n = rest % tiles_n * TILE_N;
    rest /= tiles_n;
    const int split = rest % splits, batch = rest / splits;
    a += batch * step_a;
    b += batch * step_b;
    c += batch * step_c + split * step_split;
    const int from = split * length, to = min(k, from + length);
    int remaining = to - from;  // steps that are not yet fetched
    Stream<TILE_M, A_ROWS> stream_a(a, row_a, first_m, m, from);
    Stream<TILE_N, B_ROWS> stream_b(b, row_b, first_n, n, from);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int lane_m = lane / LANES_N, lane_n = lane % LANES_N;
    const int warp_m = warp / WARPS_N * LANES_M * 8, warp_n = warp % WARPS_N * LANES_N * 8;

    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0.f;

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (remaining > 0) {
            stream_a.fetch(shared_a + s * TILE_M * TILE_K, row_a, remaining);
            stream_b.fetch(shared_b + s * TILE_N * TILE_K, row_b, remaining);
        }
        cp_async_commit();
        remaining -= TILE_K;
    }
    int now = 0, next = STAGES - 1;
    for (; remaining > -(STAGES - 1) * TILE_K; remaining -= TILE_K) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this stage has landed for all, and all have done with the one that is fetched into now
        if (remaining > 0) {
            stream_a.fetch(shared_a + next * TILE_M * TILE_K, row_a, remaining);
            stream_b.fetch(shared_b + next * TILE_N * TILE_K, row_b, remaining);
        }
        cp_async_commit();
        const float *tile_a = shared_a + now * TILE_M * TILE_K, *tile_b = shared_b + now * TILE_N * TILE_K;
#pragma unroll 2
        for (int step = 0; step < TILE_K; step += 4) {
            float left[8][4];  // [row][step]
#if A_ROWS
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float4 part = four_steps<LANES_M>(tile_a + (warp_m + lane_m) * TILE_K, lane_m, i, step);
                left[i][0] = part.x, left[i][1] = part.y, left[i][2] = part.z, left[i][3] = part.w;
            }
#endif
#if B_ROWS
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float4 part = four_steps<LANES_N>(tile_b + (warp_n + lane_n) * TILE_K, lane_n, j, step);
                const float right[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
                for (int l = 0; l < 4; l++)
#pragma unroll
                    for (int i = 0; i < 8; i++) sums[i][j] = fmaf(left[i][l], right[l], sums[i][j]);
            }
#else
#pragma unroll
            for (int l = 0; l < 4; l++) {
#if !A_ROWS
                const float* line_a = tile_a + (step + l) * TILE_M + warp_m + lane_m * 4;
                const float4 above = *(const float4*)line_a, below = *(const float4*)(line_a + LANES_M * 4);
                left[0][l] = above.x, left[1][l] = above.y, left[2][l] = above.z, left[3][l] = above.w;
                left[4][l] = below.x, left[5][l] = below.y, left[6][l] = below.z, left[7][l] = below.w;
#endif
                const float* line_b = tile_b + (step + l) * TILE_N + warp_n + lane_n * 4;
                const float4 near = *(const float4*)line_b, far = *(const float4*)(line_b + LANES_N * 4);
                const float right[8] = {near.x, near.y, near.z, near.w, far.x, far.y, far.z, far.w};
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[i][j] = fmaf(left[i][l], right[j], sums[i][j]);
            }
#endif
        }
        now = now + 1 == STAGES ? 0 : now + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = first_m + warp_m + POSITION(A_ROWS, LANES_M, lane_m, i);
        if (row >= m) continue;
        float* target = c + (Long)row * row_c;
#if B_ROWS
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int column = first_n + warp_n + POSITION(1, LANES_N, lane_n, j);
            if (column < n) target[column] = (add ? target[column] : 0.f) + sums[i][j];
        }
#else
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            const int column = first_n + warp_n + POSITION(0, LANES_N, lane_n, j);
            if (column >= n) continue;
            float4 sum = make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
            if (add) {
                const float4 old = *(const float4*)(target + column);
                sum = make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w);
            }
            *(float4*)(target + column) = sum;
        }
#endif
    }
}
