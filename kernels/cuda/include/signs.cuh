// Convolution of signs, +1 or -1, out of counted bits: what its kernels share.
//
// A sign is a bit, 1 for +1: sign(x) = +1 where x >= 0, so for -0.0 too, and -1 for NaN. Of n signs a and b, popc(a)
// and popc(b) of them +1, sum(a b) = n - 2 popc(a ^ b), and popc(a ^ b) = popc(a) + popc(b) - 2 popc(a & b):
//
//   sum(a b) = n - 2 popc(a) - 2 popc(b) + 4 popc(a & b)
//
// Bits beyond the channels of a group are 0 on both sides, pixels outside the image are 0 on one: neither counts in
// popc(a & b). n and popc(a) are summed over the taps that lie inside the image, which are a box of the filter; popc(b)
// over that box comes from a table of prefix sums. So padding contributes nothing.
#pragma once
#include "implicit_gemm.cuh"

// Of the channels of one group at one pixel: how many are +1, and the mean of their absolute values.
struct Pixel {
    int ones;
    float mean;
};

// The bits of a filter's taps before (r, s) in both directions: table[(r * (S + 1) + s) * K + k].
__device__ __forceinline__ int table_at(const Conv& f, int r, int s) {
    return (r * (f.s + 1) + s) * f.k;
}

// What all results of one pixel share. Places in the table: bits up to the last tap inside, less those above and those
// to the left of the box, which both hold those before; 0 where there is nothing.
struct Window {
    int last, above, left, before;
    int constant;  // n - 2 popc(a)
    float mean;    // of |x| under the filter, padding counted as 0
};

// Taps [begin, end) of one axis that lie inside the image; the first meets `place`.
__device__ __forceinline__ int2 taps_inside(int place, int taps, int step, int size) {
    const int begin = place < 0 ? (-place + step - 1) / step : 0;
    const int end = place < size ? (size - 1 - place) / step + 1 : 0;
    return make_int2(min(begin, taps), min(end, taps));
}

// For a row of the product that exists. pixels: [N, H, W, G].
__device__ __forceinline__ Window window_of(const Conv& f, const Pixel* pixels, const Row& row, int group) {
    const int2 r = taps_inside(row.u, f.r, f.dilation_h, f.h), s = taps_inside(row.v, f.s, f.dilation_w, f.w);
    Window window = {0, 0, 0, 0, 0, 0.0f};
    if (r.x >= r.y || s.x >= s.y) return window;
    int ones = 0;
    float sum = 0.0f;
    for (int i = r.x; i < r.y; ++i) {
        const long long line = (long long)row.image * f.h + row.u + i * f.dilation_h;
        for (int j = s.x; j < s.y; ++j) {
            const Pixel pixel = pixels[(line * f.w + row.v + j * f.dilation_w) * f.groups + group];
            ones += pixel.ones;
            sum += pixel.mean;
        }
    }
    window.last = table_at(f, r.y, s.y);
    window.above = r.x > 0 ? table_at(f, r.x, s.y) : 0;
    window.left = s.x > 0 ? table_at(f, r.y, s.x) : 0;
    window.before = r.x > 0 && s.x > 0 ? table_at(f, r.x, s.x) : 0;
    window.constant = (r.y - r.x) * (s.y - s.x) * (f.c / f.groups) - 2 * ones;
    window.mean = sum / (float)(f.r * f.s);
    return window;
}

// Sums of the products of signs, times what a result is scaled with. common: popc(a & b) of columns n on; table and
// scales: of the group's first filter. Columns beyond size_n repeat the last.
template <int COUNT>
__device__ __forceinline__ void finish_signs(float (&results)[COUNT], const int (&common)[COUNT], const Window& window,
                                             const int* table, const float* scales, int n, int size_n, int scaled) {
    int ones[COUNT];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) ones[j] = table[window.last + min(n + j, size_n - 1)];
    if (window.above | window.left) {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            const int* const column = table + min(n + j, size_n - 1);
            ones[j] += column[window.before] - column[window.above] - column[window.left];
        }
    }
#pragma unroll
    for (int j = 0; j < COUNT; ++j) results[j] = (float)(window.constant - 2 * ones[j] + 4 * common[j]);
    if (scaled) {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) results[j] *= scales[min(n + j, size_n - 1)] * window.mean;
    }
}
