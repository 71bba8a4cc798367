// What the Winograd kernels share: two-sided transforms of tiles in registers, and where a tile lies. TILE and TAPS are
// macros of the kernel file; matrices: winograd_matrices.cuh.
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
