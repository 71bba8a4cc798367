// One axis of a convolution, forward or backward data, with any stride and dilation, as dense correlations.
//
// The outputs of an axis fall into phases such that within one phase neighbouring outputs read neighbouring inputs:
//
//   out[first_out + i * step_out] =
//       sum over t < taps of w[first_tap + t * step_tap] * in[first_in + step_in * (i * stride + t)]
//
// for i < outputs, where inputs outside the tensor count as zero. Forward, dilation d and stride s with g = gcd(s, d):
// d/g phases, each with stride s/g. Backward data is the transpose: s*d/g phases (the taps that meet an output repeat
// with s/g), each with stride 1, its taps backwards. A phase may have no taps: its outputs are zero.
#pragma once
#include "conv.cuh"
#include "device.cuh"

struct Axis {
    int outputs, taps, stride;
    int first_out, step_out;
    int first_tap, step_tap;
    int first_in, step_in;
};

__device__ __forceinline__ int greatest_divisor(int a, int b) {
    while (b != 0) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// Forward: `size` outputs.
__device__ __forceinline__ Axis forward_axis(int phase, int size, int taps, int stride, int pad, int dilation) {
    if (taps == 1) dilation = stride;
    const int g = greatest_divisor(stride, dilation), phases = dilation / g;
    Axis a;
    a.outputs = (size - phase + phases - 1) / phases;
    a.taps = taps;
    a.stride = stride / g;
    a.first_out = phase;
    a.step_out = phases;
    a.first_tap = 0;
    a.step_tap = 1;
    a.first_in = phase * stride - pad;
    a.step_in = dilation;
    return a;
}

// Backward data: `size` elements of dx.
__device__ __forceinline__ Axis backward_axis(int phase, int size, int taps, int stride, int pad, int dilation) {
    if (taps == 1) dilation = stride;
    const int g = greatest_divisor(stride, dilation), every = stride / g, phases = every * dilation;
    int first = 0;  // the first tap that reaches this phase
    while (first < every && (phase + pad - first * dilation) % stride != 0) ++first;
    const int count = first < every && first < taps ? (taps - 1 - first) / every + 1 : 0;
    Axis a;
    a.outputs = phase < size ? (size - phase + phases - 1) / phases : 0;
    a.taps = count;
    a.stride = 1;
    a.first_out = phase;
    a.step_out = phases;
    a.first_tap = first + (count - 1) * every;
    a.step_tap = -every;
    a.step_in = dilation / g;
    a.first_in = count > 0 ? (phase + pad - first * dilation) / stride - a.step_in * (count - 1) : 0;
    return a;
}

// The rows and columns of a convolution: of y, and of dw as well (forward), or of dx (backward).
template <bool OF_INPUT>
__device__ __forceinline__ Axis rows_axis(const Conv& f, int phase) {
    return OF_INPUT ? backward_axis(phase, f.h, f.r, f.stride_h, f.pad_h, f.dilation_h)
                    : forward_axis(phase, f.p, f.r, f.stride_h, f.pad_h, f.dilation_h);
}

template <bool OF_INPUT>
__device__ __forceinline__ Axis columns_axis(const Conv& f, int phase) {
    return OF_INPUT ? backward_axis(phase, f.w, f.s, f.stride_w, f.pad_w, f.dilation_w)
                    : forward_axis(phase, f.q, f.s, f.stride_w, f.pad_w, f.dilation_w);
}

// One tile of one phase; rest: of which image, or which planes.
struct PhaseTile {
    int column, row, phase_w, phase_h, rest;
};

// Tiles are numbered along columns, then rows, phases of columns, phases of rows; counts: a kernel's Tiling.
template <class Number, class Counts>
__device__ __forceinline__ PhaseTile phase_tile_of(Number number, const Counts& counts) {
    PhaseTile tile;
    tile.column = (int)(number % counts.column_tiles);
    number /= counts.column_tiles;
    tile.row = (int)(number % counts.row_tiles);
    number /= counts.row_tiles;
    tile.phase_w = (int)(number % counts.phases_w);
    number /= counts.phases_w;
    tile.phase_h = (int)(number % counts.phases_h);
    tile.rest = (int)(number / counts.phases_h);
    return tile;
}

// A patch along one axis: element i holds the input at first + i * step; output o, tap t reads element o * stride + t.
struct Window {
    int first, step, stride, count;
};

// Taps begin .. begin + taps of an axis, for outputs from `output` on.
__device__ __forceinline__ Window dense_window_of(const Axis& a, int output, int outputs, int begin, int taps) {
    Window v;
    v.first = a.first_in + a.step_in * (output * a.stride + begin);
    v.step = a.step_in;
    v.stride = a.stride;
    v.count = (outputs - 1) * v.stride + taps;
    return v;
}

// The same; with one tap, what lies between two outputs is left out.
__device__ __forceinline__ Window window_of(const Axis& a, int output, int outputs, int begin, int taps) {
    Window v = dense_window_of(a, output, outputs, begin, taps);
    if (taps == 1) {
        v.step = a.step_in * a.stride;
        v.stride = 1;
        v.count = outputs;
    }
    return v;
}
