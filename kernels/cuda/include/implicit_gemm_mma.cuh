// What the implicit GEMM kernels on tensor cores share: element types, products of a warp's fragments, stores.
// ARITHMETIC: 1 signs as bits, 8 int8, 16 half, 17 bfloat16, 32 TF32, 96 three products of TF32 (see implicit_gemm_mma.cu).
#pragma once
#include "device.cuh"

// Sum: what products are added in, also where a sum is cut into parts; Result: what is stored.
#if ARITHMETIC == 1
typedef unsigned Element;  // 32 signs
typedef int Sum;
typedef float Result;
#elif ARITHMETIC == 8
typedef signed char Element;
typedef int Sum, Result;
#elif ARITHMETIC == 16
typedef __half Element, Result;
typedef float Sum;
#elif ARITHMETIC == 17
typedef __nv_bfloat16 Element, Result;
typedef float Sum;
#else
typedef float Element, Sum, Result;
#endif
#define CHUNK ((int)(16 / sizeof(Element)))  // elements of 16 bytes

template <int M, int N>
__device__ __forceinline__ void clear(Sum (&sums)[M][N][4]) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0;
    }
}

template <int M, int N>
__device__ __forceinline__ void add_and_clear(float (&sums)[M][N][4], float (&more)[M][N][4]) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                sums[i][j][k] += more[i][j][k];
                more[i][j][k] = 0.0f;
            }
        }
    }
}

#if ARITHMETIC == 96
// x = big + small + something below small's last place
template <int COUNT>
__device__ __forceinline__ void split(unsigned (&big)[COUNT], unsigned (&small)[COUNT], const unsigned* x) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float value = __uint_as_float(x[i]);
        big[i] = to_tf32(value);
        small[i] = to_tf32(value - __uint_as_float(big[i]));
    }
}
#endif

#if ARITHMETIC == 1 && POPC
// sums += popc(a & b) without tensor cores: what a lane needs of rows and columns, registers of other lanes hold (as the
// PTX ISA lays them out for m16n8k256).
template <int M, int N>
__device__ __forceinline__ void count(int (&sums)[M][N][4], const unsigned (&a)[M][4], const unsigned (&b)[N / 2][4]) {
    const int lane = threadIdx.x % 32;
    unsigned rows[2 * M][8];  // lane / 4 of each tile, and 8 further
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
#pragma unroll
        for (int word = 0; word < 8; ++word) {
            rows[i][word] = __shfl_sync(0xffffffffu, a[i / 2][i % 2 + word / 4 * 2], lane / 4 * 4 + word % 4);
        }
    }
#pragma unroll
    for (int j = 0; j < 2 * N; ++j) {  // columns lane % 4 * 2 of each tile, and their neighbours
        const int column = lane % 4 * 2 + j % 2;
#pragma unroll
        for (int word = 0; word < 8; ++word) {
            const unsigned other = __shfl_sync(0xffffffffu, b[j / 4][j / 2 % 2 * 2 + word / 4], column * 4 + word % 4);
#pragma unroll
            for (int i = 0; i < 2 * M; ++i) sums[i / 2][j / 2][i % 2 * 2 + j % 2] += __popc(rows[i][word] & other);
        }
    }
}
#endif

// sums += a b: M tiles of 16 rows, N of 8 columns. b holds pairs of column tiles.
template <int M, int N>
__device__ __forceinline__ void multiply(Sum (&sums)[M][N][4], const unsigned (&a)[M][4],
                                         const unsigned (&b)[N / 2][4]) {
#if ARITHMETIC == 1 && POPC
    count(sums, a, b);
#elif ARITHMETIC == 96
    unsigned b_big[N][2], b_small[N][2];
#pragma unroll
    for (int j = 0; j < N; ++j) split(b_big[j], b_small[j], &b[j / 2][j % 2 * 2]);
#pragma unroll
    for (int i = 0; i < M; ++i) {
        unsigned a_big[4], a_small[4];
        split(a_big, a_small, a[i]);
#pragma unroll
        for (int j = 0; j < N; ++j) mma_tf32_1688(sums[i][j], a_small, b_big[j]);
#pragma unroll
        for (int j = 0; j < N; ++j) mma_tf32_1688(sums[i][j], a_big, b_small[j]);
#pragma unroll
        for (int j = 0; j < N; ++j) mma_tf32_1688(sums[i][j], a_big, b_big[j]);
    }
#else
    unsigned columns[N][2];
#pragma unroll
    for (int j = 0; j < N; ++j) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            columns[j][k] = b[j / 2][j % 2 * 2 + k];
#if ARITHMETIC == 32
            columns[j][k] = to_tf32(__uint_as_float(columns[j][k]));
#endif
        }
    }
#pragma unroll
    for (int i = 0; i < M; ++i) {
        unsigned rows[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            rows[k] = a[i][k];
#if ARITHMETIC == 32
            rows[k] = to_tf32(__uint_as_float(rows[k]));
#endif
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
#if ARITHMETIC == 8 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
            mma_s8_quarters(sums[i][j], rows, columns[j]);
#elif ARITHMETIC == 8
            mma_s8_16832(sums[i][j], rows, columns[j]);
#elif ARITHMETIC == 1
            mma_b1_and_168256(sums[i][j], rows, columns[j]);
#elif ARITHMETIC == 16
            mma_f16_16816(sums[i][j], rows, columns[j]);
#elif ARITHMETIC == 17
            mma_bf16_16816(sums[i][j], rows, columns[j]);
#else
            mma_tf32_1688(sums[i][j], rows, columns[j]);
#endif
        }
    }
#endif
}

// sums = the products of `tiles` tiles, which load(stage) brings into COUNT stages, one after another, and
// read(to, stage, step) takes from there to a[to], b[to]; each step of a tile is read while the one before is
// multiplied.
template <int COUNT, int STEPS_A_TILE, int M, int N, class Load, class Read>
__device__ __forceinline__ void accumulate(Sum (&sums)[M][N][4], const unsigned (&a)[2][M][4],
                                           const unsigned (&b)[2][N / 2][4], int tiles, Load& load, Read& read) {
    clear(sums);
#if ARITHMETIC == 96
    float tile_sums[M][N][4];
    clear(tile_sums);
#endif
#pragma unroll 1
    for (int stage = 0; stage < COUNT - 1; ++stage) {
        if (stage < tiles) load(stage);
        cp_async_commit();
    }
    cp_async_wait<COUNT - 2>();
    __syncthreads();
    if (tiles > 0) read(0, 0, 0);
    int stage = 0;
#pragma unroll 1
    for (int left = tiles; left > 0; --left) {
        const int following = stage + 1 == COUNT ? 0 : stage + 1;
#pragma unroll
        for (int step = 0; step < STEPS_A_TILE; ++step) {
            if (step == STEPS_A_TILE - 1) {
                cp_async_wait<COUNT - 2>();
                __syncthreads();  // the next tile is there for all, and all have read what they need of this one
                if (left > 1) read((step + 1) % 2, following, 0);
            } else {
                read((step + 1) % 2, stage, step + 1);
            }
            if (step == 0) {  // into the stage before this one, which all left before the last barrier
                if (left > COUNT - 1) load(stage == 0 ? COUNT - 1 : stage - 1);
                cp_async_commit();
            }
#if ARITHMETIC == 96
            multiply(tile_sums, a[step % 2], b[step % 2]);
#else
            multiply(sums, a[step % 2], b[step % 2]);
#endif
        }
#if ARITHMETIC == 96
        add_and_clear(sums, tile_sums);
#endif
        stage = following;
    }
}

// ---- stores of a thread's neighbouring results; room: how many of them exist; together: they are neighbours in
// memory, and aligned, so that up to 16 bytes may go at once

__device__ __forceinline__ int rounded(int x, const int*) { return x; }
__device__ __forceinline__ float rounded(float x, const float*) { return x; }
__device__ __forceinline__ __half rounded(float x, const __half*) { return __float2half_rn(x); }
__device__ __forceinline__ __nv_bfloat16 rounded(float x, const __nv_bfloat16*) { return __float2bfloat16_rn(x); }

template <int BYTES> struct Word;
template <> struct Word<4> { typedef unsigned Type; };
template <> struct Word<8> { typedef uint2 Type; };
template <> struct Word<16> { typedef uint4 Type; };

template <class T, class Value, int COUNT>
__device__ __forceinline__ void store(T* to, const Value (&values)[COUNT], int room, int step, bool together) {
    constexpr int BYTES = COUNT * (int)sizeof(T) < 16 ? COUNT * (int)sizeof(T) : 16, WIDTH = BYTES / (int)sizeof(T);
    if (together) {
#pragma unroll
        for (int i = 0; i < COUNT; i += WIDTH) {
            union {
                typename Word<BYTES>::Type all;
                T each[WIDTH];
            } packed;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) packed.each[j] = rounded(values[i + j], to);
            if (i < room) *reinterpret_cast<typename Word<BYTES>::Type*>(to + i) = packed.all;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if (i < room) to[(long long)i * step] = rounded(values[i], to);
    }
}
