// Geometry that the implicit_gemm kernels share: which matrix product a pass is, and where its elements lie.
//
// Every pass is, for each group, a product of a matrix that is never stored with a dense one. The gathered operand
// takes its elements from an image: place i along an axis and tap t meet the image at
//
//     i * step + first + t * tap_step        (zero outside the image)
//
//   forward            rows (image, p, q)    columns of the sum (r, s, c)    dense: the filter
//   backward data      rows (image, i, j)    columns of the sum (r, s, k)    dense: the filter
//   backward weights   columns of the sum (image, p, q)    rows (r, s, c)    dense: dy
//
// Backward data with stride: the pixels of dx whose coordinate has one remainder modulo the stride are reached by the
// same taps, every stride / gcd(stride, dilation)-th of them, and are a dense correlation of their own: a phase. So no
// product with an inserted zero is ever computed. A phase that no tap reaches has an empty sum.
#pragma once
#include "conv.cuh"
#include "device.cuh"
#include "digits.cuh"

enum Pass { FORWARD = 0, BACKWARD_DATA = 1, BACKWARD_WEIGHTS = 2 };

// Added to a coordinate, it lies outside of every image; the sum of two of them too.
#define OUTSIDE (1 << 30)

__device__ __forceinline__ bool lies_inside(int place, int tap, int size) {
    return (unsigned)place + (unsigned)tap < (unsigned)size;
}

// One axis of the gathered operand.
struct Line {
    int places;               // rows of the product along this axis
    int size;                 // of the image that is read
    int step, first;          // see above
    int taps, tap_step;
    int out_first, out_step;  // place i is element out_first + i * out_step of the result
    int tap_position;         // taps of this axis in the phases before this one
};

__device__ __forceinline__ int greatest_common_divisor(int a, int b) {
    while (b != 0) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// The first tap that reaches a phase; `taps` where none does. Others follow in steps of stride / gcd.
__device__ __forceinline__ int first_tap(int phase, int taps, int stride, int pad, int dilation) {
    int tap = 0;
    while (tap < taps && (phase + pad - tap * dilation) % stride != 0) ++tap;
    return tap;
}

__device__ __forceinline__ int taps_of_phase(int phase, int taps, int stride, int pad, int dilation) {
    const int first = first_tap(phase, taps, stride, pad, dilation);
    return first < taps ? (taps - 1 - first) / (stride / greatest_common_divisor(stride, dilation)) + 1 : 0;
}

__device__ __forceinline__ Line line_forward(int size, int places, int taps, int stride, int pad, int dilation) {
    Line line;
    line.places = places;
    line.size = size;
    line.step = stride;
    line.first = -pad;
    line.taps = taps;
    line.tap_step = dilation;
    line.out_first = 0;
    line.out_step = 1;
    line.tap_position = 0;
    return line;
}

// size: of dx; source: of dy.
__device__ __forceinline__ Line line_backward(int phase, int size, int source, int taps, int stride, int pad,
                                              int dilation) {
    const int divisor = greatest_common_divisor(stride, dilation);
    const int first = first_tap(phase, taps, stride, pad, dilation);
    Line line;
    line.places = phase < size ? (size - phase + stride - 1) / stride : 0;
    line.size = source;
    line.step = 1;
    line.taps = first < taps ? (taps - 1 - first) / (stride / divisor) + 1 : 0;
    line.first = line.taps > 0 ? (phase + pad - first * dilation) / stride : 0;
    line.tap_step = -(dilation / divisor);
    line.out_first = phase;
    line.out_step = stride;
    line.tap_position = 0;
    for (int before = 0; before < phase; ++before) {
        line.tap_position += taps_of_phase(before, taps, stride, pad, dilation);
    }
    return line;
}

__device__ __forceinline__ Line rows_of(const Conv& f, int pass, int phase) {
    return pass == BACKWARD_DATA ? line_backward(phase, f.h, f.p, f.r, f.stride_h, f.pad_h, f.dilation_h)
                                 : line_forward(f.h, f.p, f.r, f.stride_h, f.pad_h, f.dilation_h);
}

__device__ __forceinline__ Line columns_of(const Conv& f, int pass, int phase) {
    return pass == BACKWARD_DATA ? line_backward(phase, f.w, f.q, f.s, f.stride_w, f.pad_w, f.dilation_w)
                                 : line_forward(f.w, f.q, f.s, f.stride_w, f.pad_w, f.dilation_w);
}

// Where tap (r, s) stands in a packed filter: taps of one phase are neighbours, in the order of the phases.
__device__ __forceinline__ int tap_position(const Conv& f, int pass, int r, int s) {
    if (pass != BACKWARD_DATA) return r * f.s + s;
    const int every_h = f.stride_h / greatest_common_divisor(f.stride_h, f.dilation_h);
    const int every_w = f.stride_w / greatest_common_divisor(f.stride_w, f.dilation_w);
    const int phase_h = ((r * f.dilation_h - f.pad_h) % f.stride_h + f.stride_h) % f.stride_h;
    const int phase_w = ((s * f.dilation_w - f.pad_w) % f.stride_w + f.stride_w) % f.stride_w;
    const Line h = rows_of(f, pass, phase_h), w = columns_of(f, pass, phase_w);
    return h.tap_position * f.s + h.taps * w.tap_position + r / every_h * w.taps + s / every_w;
}

// Places and taps are counted as digits (digits.cuh), so that the next tile costs additions and no division. Forward:
// (r, s, c); backward weights: (image, p, q). The high digit has no end: what lies beyond it is beyond the sum.

// Element of the result (forward, backward data) that row `row` of a phase's product has in channel 0.
__device__ __forceinline__ long long result_base(int row, const Line& h, const Line& w, int channels, int height,
                                                 int width, int nhwc) {
    const Digits d = digits_of(row, w.places, h.places);
    const long long y = h.out_first + d.middle * h.out_step, x = w.out_first + d.low * w.out_step;
    const long long image = (long long)d.high * height * width * channels;
    return nhwc ? image + (y * width + x) * channels : image + y * width + x;
}
