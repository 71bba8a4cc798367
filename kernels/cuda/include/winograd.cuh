// What the Winograd kernels share: two-sided transforms of tiles in registers, and where a tile lies. TILE, TAPS and
// NHWC are macros of the kernel file; matrices: winograd_matrices.cuh.
#pragma once
#include "conv.cuh"
#include "winograd_matrices.cuh"

#define ALPHA (TILE + TAPS - 1)

typedef long long Long;

// Adds coefficient * value to sum. Coefficients are constants once loops are unrolled: zeros and ones cost nothing.
static __device__ __forceinline__ void accumulate(float& sum, bool& any, float coefficient, float value) {
    if (coefficient == 0.f) return;
    sum = any ? fmaf(coefficient, value, sum) : coefficient * value;
    any = true;
}

// The first half of matrix * tile * matrix^T: a line of the tile, transformed.
template <int SIZE, int COLUMNS>
static __device__ __forceinline__ void transform_line(
    const float (&matrix)[SIZE][COLUMNS], const float (&line)[COLUMNS], float (&half)[SIZE]) {
#pragma unroll
    for (int j = 0; j < SIZE; j++) {
        bool any = false;
        half[j] = 0.f;
#pragma unroll
        for (int l = 0; l < COLUMNS; l++) accumulate(half[j], any, matrix[j][l], line[l]);
    }
}

// The second half: element (i, j) out of the transformed lines.
template <int SIZE, int LINES>
static __device__ __forceinline__ float transform_down(
    const float (&matrix)[SIZE][LINES], const float (&half)[LINES][SIZE], int i, int j) {
    float sum = 0.f;
    bool any = false;
#pragma unroll
    for (int l = 0; l < LINES; l++) accumulate(sum, any, matrix[i][l], half[l][j]);
    return sum;
}

// The first half of G w G^T for output k and input c, both of `group`, or zeros. In memory the filter is [k][c] going
// forward, [c][k] for backward data (turned: by 180 degrees too); groups are part of the first.
static __device__ __forceinline__ void transform_filter(
    const float (&matrix)[ALPHA][TAPS], const float* __restrict__ w, int turned, int group, int depth, int outputs,
    int c, int k, bool valid, float (&half)[TAPS][ALPHA]) {
    const Long first = turned ? (Long)group * depth + c : (Long)group * outputs + k;
    const int second = turned ? k : c, seconds = turned ? outputs : depth;
#pragma unroll
    for (int i = 0; i < TAPS; i++) {
        float line[TAPS];
#pragma unroll
        for (int j = 0; j < TAPS; j++) {
            const int tap = turned ? TAPS * TAPS - 1 - (i * TAPS + j) : i * TAPS + j;
#if NHWC
            const Long element = (first * TAPS * TAPS + tap) * seconds + second;
#else
            const Long element = (first * seconds + second) * TAPS * TAPS + tap;
#endif
            line[j] = valid ? __ldg(w + element) : 0.f;
        }
        transform_line(matrix, line, half[i]);
    }
}

// Where a tile lies: its image and its first result's row and column.
struct Tile {
    int image, row, column;
};

static __device__ __forceinline__ Tile tile_of(const Conv& conv, Long number) {
    const int across = (conv.q + TILE - 1) / TILE, down = (conv.p + TILE - 1) / TILE;
    const Long line = number / across;
    Tile tile;
    tile.column = (int)(number - line * across) * TILE;
    tile.image = (int)(line / down);
    tile.row = (int)(line - (Long)tile.image * down) * TILE;
    return tile;
}
