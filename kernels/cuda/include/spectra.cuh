// Spectra as matrices, one for each frequency and group, so that a batched real matrix product multiplies them.
//
// For complex a (m x k) and b (k x n), with a row of a read as 2k floats (real, imaginary, real, ...) and a row of b
// written twice, as (real, imaginary, ...) and, turned by i, (-imaginary, real, ...), the real product
// (m x 2k) (2k x 2n) is the complex product, real and imaginary parts side by side: 8 m n k operations, none wasted.
// Sums over images of x conj(dy) come the same way from dy with its parts in two rows and x twice, the second time
// turned by -i.
//
// A spectrum belongs to (i, j): image and channel, or output channel and input channel of a filter. Roles, with
// [frequency][group] before each:
//   PLAIN    x or dy:           [image][channel]                 complex
//   FORWARD  conjugate of w:    [channel][twice][filter]         complex, the second turned by i
//   BACKWARD w:                 [filter][twice][channel]         complex, the second turned by i
//   PARTS    dy for dw:         [image][real, imaginary][channel]
//   TURNED   x for dw:          [image][twice][channel]          complex, the second turned by -i
//   GRADIENT dw:                [filter][channel]                complex
#pragma once
#include "device.cuh"

#define PLAIN 0
#define FORWARD 1
#define BACKWARD 2
#define PARTS 3
#define TURNED 4
#define GRADIENT 5

// rows, columns: of one matrix, in complex numbers, written twice or not.
struct Matrices {
    int role, groups, rows, columns;
};

// The number of the row that (i, j) belongs to, counted over frequencies and groups, and its column.
struct Cell {
    long long row;
    int column;
};

__device__ __forceinline__ Cell cell_of(const Matrices& m, int frequency, int i, int j) {
    int group, row, column;
    if (m.role == FORWARD) {
        group = i / m.columns;
        row = j;
        column = i - group * m.columns;
    } else if (m.role == BACKWARD || m.role == GRADIENT) {
        group = i / m.rows;
        row = i - group * m.rows;
        column = j;
    } else {
        group = j / m.columns;
        row = i;
        column = j - group * m.columns;
    }
    Cell cell;
    cell.row = ((long long)frequency * m.groups + group) * m.rows + row;
    cell.column = column;
    return cell;
}

__device__ __forceinline__ void store_spectrum(float* matrices, const Matrices& m, const Cell& cell, float2 v) {
    if (m.role == PARTS) {
        float* const to = matrices + 2 * cell.row * m.columns + cell.column;
        to[0] = v.x;
        to[m.columns] = v.y;
        return;
    }
    float2* const to = reinterpret_cast<float2*>(matrices);
    if (m.role == PLAIN) {
        to[cell.row * m.columns + cell.column] = v;
        return;
    }
    if (m.role == FORWARD) v.y = -v.y;
    float2* const twice = to + 2 * cell.row * m.columns + cell.column;
    twice[0] = v;
    twice[m.columns] = m.role == TURNED ? make_float2(v.y, -v.x) : make_float2(-v.y, v.x);
}

// PLAIN or GRADIENT.
__device__ __forceinline__ float2 load_spectrum(const float* matrices, const Matrices& m, const Cell& cell) {
    return reinterpret_cast<const float2*>(matrices)[cell.row * m.columns + cell.column];
}
