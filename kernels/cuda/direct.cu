// The definition of convolution, one element of the result per thread: direct_cuda, three passes, both layouts.
//
//   y[n,k,p,q]  = sum over c,r,s of x[n, c, p*stride_h + r*dilation_h - pad_h, ...q...] * w[k,c,r,s]
//   dx[n,c,h,w] = sum over k and the taps whose window reaches (h, w), of dy[n,k,p,q] * w[k,c,r,s]
//   dw[k,c,r,s] = sum over n,p,q of x[n, c, p*stride_h + r*dilation_h - pad_h, ...q...] * dy[n,k,p,q]
//
// Read this one first. A thread knows its element from its number, walks over the products that make it, leaves out
// those on padding, and writes once: no shared memory, no barrier, no limit on filter, stride, dilation, padding or
// groups. Threads of a warp own neighbouring elements, so that results are written, and the operand that changes
// along them is read, in whole lines; the other operand is the same address for the whole warp.
//
// Launch: blocks of 256 threads, as many as it takes for one thread an element. NHWC = 0 or 1 chooses the layout.
// Bound: each multiply-add needs two loads, which L1 serves, and the address arithmetic around them: some 5 % of an
// H200's 67 TFLOP/s is to be expected, and less for backward weights, which has K*C/G*R*S threads of N*P*Q products.
// That is the point: what all other kernels of this folder add is reuse.
//
// Test: pytest tests/cuda_on_cpu -k direct
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"

extern "C" __global__ void __launch_bounds__(256)
direct_forward(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, Conv f) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)f.n * f.k * f.p * f.q) return;
    const Place o = place_of(i, f.k, f.p, f.q);
    const Steps at_x = steps_x(f), at_w = steps_w(f);
    const int channels = f.c / f.groups;
    const int first = o.channel / (f.k / f.groups) * channels;  // the first input channel of this output's group
    float sum = 0.0f;
    for (int r = 0; r < f.r; ++r) {
        const int h = o.row * f.stride_h + r * f.dilation_h - f.pad_h;
        if (h < 0 || h >= f.h) continue;
        for (int s = 0; s < f.s; ++s) {
            const int v = o.column * f.stride_w + s * f.dilation_w - f.pad_w;
            if (v < 0 || v >= f.w) continue;
            const float* from_x = x + at(at_x, o.image, first, h, v);
            const float* from_w = w + at(at_w, o.channel, 0, r, s);
#pragma unroll 4
            for (int c = 0; c < channels; ++c) {
                sum = fmaf(from_x[c * at_x.channel], from_w[c * at_w.channel], sum);
            }
        }
    }
    y[i] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
direct_backward_data(const float* __restrict__ dy, const float* __restrict__ w, float* __restrict__ dx, Conv f) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)f.n * f.c * f.h * f.w) return;
    const Place o = place_of(i, f.c, f.h, f.w);
    const Steps at_y = steps_y(f), at_w = steps_w(f);
    const int channels = f.k / f.groups, group = o.channel / (f.c / f.groups);
    const int first = group * channels, within = o.channel - group * (f.c / f.groups);
    float sum = 0.0f;
    for (int r = 0; r < f.r; ++r) {
        const int h = o.row + f.pad_h - r * f.dilation_h;  // = p * stride_h where tap r of window p reaches the row
        if (h < 0 || h % f.stride_h != 0 || h / f.stride_h >= f.p) continue;
        for (int s = 0; s < f.s; ++s) {
            const int v = o.column + f.pad_w - s * f.dilation_w;
            if (v < 0 || v % f.stride_w != 0 || v / f.stride_w >= f.q) continue;
            const float* from_y = dy + at(at_y, o.image, first, h / f.stride_h, v / f.stride_w);
            const float* from_w = w + at(at_w, first, within, r, s);
#pragma unroll 4
            for (int k = 0; k < channels; ++k) {
                sum = fmaf(from_y[k * at_y.channel], from_w[k * at_w.image], sum);
            }
        }
    }
    dx[i] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
direct_backward_weights(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ dw, Conv f) {
    const int channels = f.c / f.groups;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)f.k * channels * f.r * f.s) return;
    const Place o = place_of(i, channels, f.r, f.s);  // image: k, row: r, column: s
    const Steps at_x = steps_x(f), at_y = steps_y(f);
    const int c = o.image / (f.k / f.groups) * channels + o.channel;
    float sum = 0.0f;
    for (int n = 0; n < f.n; ++n) {
        for (int p = 0; p < f.p; ++p) {
            const int h = p * f.stride_h + o.row * f.dilation_h - f.pad_h;
            if (h < 0 || h >= f.h) continue;
            const float* from_x = x + at(at_x, n, c, h, 0);
            const float* from_y = dy + at(at_y, n, o.image, p, 0);
            for (int q = 0; q < f.q; ++q) {
                const int v = q * f.stride_w + o.column * f.dilation_w - f.pad_w;
                if (v < 0 || v >= f.w) continue;
                sum = fmaf(from_x[v * at_x.column], from_y[q * at_y.column], sum);
            }
        }
    }
    dw[i] = sum;
}
