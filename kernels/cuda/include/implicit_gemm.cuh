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

// Forward or backward data as the blocks of one launch see it. It lies in shared memory: what is needed once a tap, or
// after the sum, takes no registers meanwhile.
struct Product {
    Line h, w;
    int m0, n0, group;           // first row and column of the block's tile
    int size_m, size_n, length;  // rows, columns, products of an element
    int depth, middle;           // digits of a column of the sum: (tap row, `middle` taps, `depth` channels)
    Digits step;                 // a tile of the sum as such a number
    int channels, height, width; // of the result, all groups
};

// For one thread of a block. depth: channels of a group that are summed over, as they are stored.
__device__ __forceinline__ void find_product(Product& product, const Conv& f, int pass, int tiles_m, int tiles_n,
                                             int depth, int block_m, int block_n, int block_k) {
    int block = blockIdx.x;
    product.n0 = block % tiles_n * block_n;
    block /= tiles_n;
    product.m0 = block % tiles_m * block_m;
    block /= tiles_m;
    product.group = block % f.groups;
    const int phase = block / f.groups;
    const Line h = rows_of(f, pass, phase / f.stride_w), w = columns_of(f, pass, phase % f.stride_w);
    product.h = h, product.w = w;
    product.size_m = f.n * h.places * w.places;
    product.size_n = (pass == FORWARD ? f.k : f.c) / f.groups;
    product.length = h.taps * w.taps * depth;
    product.depth = depth;
    product.middle = max(w.taps, 1);
    product.step = digits_of(block_k, depth, product.middle);
    product.channels = product.size_n * f.groups;
    product.height = pass == FORWARD ? f.p : f.h;
    product.width = pass == FORWARD ? f.q : f.w;
}

// The same for backward weights: columns of the product are elements of a filter, those of the sum (image, p, q).
__device__ __forceinline__ void find_weights_product(Product& product, const Conv& f, int tiles_m, int tiles_n,
                                                     int block_m, int block_n, int block_k) {
    int block = blockIdx.x;
    product.n0 = block % tiles_n * block_n;
    block /= tiles_n;
    product.m0 = block % tiles_m * block_m;
    product.group = block / tiles_m;
    product.h = rows_of(f, FORWARD, 0), product.w = columns_of(f, FORWARD, 0);
    product.size_m = f.k / f.groups;
    product.size_n = f.c / f.groups * f.r * f.s;
    product.length = f.n * f.p * f.q;
    product.depth = f.q, product.middle = f.p;
    product.step = digits_of(block_k, f.q, f.p);
    product.channels = f.k, product.height = f.p, product.width = f.q;
}

// Row `row` of a product: its image, the pixel (u, v) of that which its first tap meets, and the element of the result
// that it has in the group's channel 0. Beyond the last row: u OUTSIDE, result -1.
struct Row {
    int image, u, v;
    long long result;
};

__device__ __forceinline__ Row row_of(const Product& product, int row, int nhwc) {
    const Line &h = product.h, &w = product.w;
    const Digits d = digits_of(row, w.places, h.places);
    const bool exists = row < product.size_m;
    const long long height = product.height, width = product.width;
    const long long y = h.out_first + d.middle * h.out_step, x = w.out_first + d.low * w.out_step;
    const long long pixel = y * width + x, first = (long long)product.group * product.size_n;
    const long long image = d.high * height * width * product.channels;
    Row found;
    found.image = d.high;
    found.u = exists ? d.middle * h.step + h.first : OUTSIDE;
    found.v = d.low * w.step + w.first;
    found.result = !exists ? -1 : nhwc ? image + pixel * product.channels + first
                                       : image + first * height * width + pixel;
    return found;
}
