// im2col: every window of the input written out as a column of a matrix, so that BLAS does the convolution; and its
// transpose, col2im. im2col_cuda, three passes, both layouts. Chellapilla, Puri, Simard 2006, section 3; Caffe.
//
//   NHWC = 0: columns[N][C][R][S][P*Q] (forward and backward data: one matrix C/G*R*S x P*Q per image and group), or,
//             with BY_IMAGE = 0, [C][R][S][N][P*Q] (backward weights: the images lie side by side in one matrix)
//   NHWC = 1: columns[N][P*Q][G][R][S][C/G] (one matrix for all images)
//
// im2col         reads each input element R*S times, from L1 but for the first, and writes R*S floats for it: bound by
//                these writes. NCHW: a thread is a pixel and walks over taps and channels, so that a warp writes 128
//                bytes of one row; NHWC: a block is a pixel, its threads run along the row, VECTOR channels at a time.
// im2col_back    col2im as a gather: a thread owns an element of dx and adds the columns that hold it. No atomics, the
//                same bits at every run. Bound by reading the columns once.
// im2col_beside  dy[N][K][P*Q] -> [K][N][P*Q], the other operand of backward weights when BY_IMAGE = 0.
//
// All of them work on the images of one chunk; the host cuts the batch so that the columns stay bounded. Pointers are
// those of the chunk's first image, and f.n is its number of images.
// Launch: blocks of 256 threads. im2col, NCHW: x: blocks of pixels of all images, y: channels, as many as are launched
// (each goes on to the next); NHWC: x: pixels of all images.
// Test: pytest tests/cuda_on_cpu -k im2col
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"

#ifndef VECTOR
#define VECTOR 1  // NHWC: channels of one load and store; 4 needs C/G % 4 == 0
#endif
#ifndef BY_IMAGE
#define BY_IMAGE 1
#endif

#if VECTOR == 4
typedef float4 Vector;
__device__ __forceinline__ Vector nothing() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }
#else
typedef float Vector;
__device__ __forceinline__ Vector nothing() { return 0.0f; }
#endif

extern "C" __global__ void __launch_bounds__(256)
im2col(const float* __restrict__ x, float* __restrict__ columns, Conv f) {
    const int pixels = f.p * f.q, taps = f.r * f.s;
#if NHWC
    const int pixel = blockIdx.x % pixels, image = blockIdx.x / pixels;
    const int p = pixel / f.q, q = pixel % f.q;
    const int vectors = f.c / f.groups / VECTOR, total = f.groups * taps * vectors;
    const Steps from = steps_x(f);
    Vector* const to = reinterpret_cast<Vector*>(columns) + (long long)blockIdx.x * total;
    for (int i = threadIdx.x; i < total; i += blockDim.x) {
        const int v = i % vectors, tap = i / vectors % taps, group = i / vectors / taps;
        const int h = p * f.stride_h - f.pad_h + tap / f.s * f.dilation_h;
        const int w = q * f.stride_w - f.pad_w + tap % f.s * f.dilation_w;
        const bool inside = h >= 0 && h < f.h && w >= 0 && w < f.w;
        const float* source = x + at(from, image, (group * vectors + v) * VECTOR, h, w);
        to[i] = inside ? *reinterpret_cast<const Vector*>(source) : nothing();
    }
#else
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)f.n * pixels) return;
    const int pixel = (int)(i % pixels), image = (int)(i / pixels);
    const int top = pixel / f.q * f.stride_h - f.pad_h, left = pixel % f.q * f.stride_w - f.pad_w;
    const long long plane = (long long)f.h * f.w;
    const long long row = BY_IMAGE ? pixels : (long long)f.n * pixels;  // from tap to tap
    for (int c = blockIdx.y; c < f.c; c += gridDim.y) {
        const float* const from = x + ((long long)image * f.c + c) * plane;
        float* to = columns + (BY_IMAGE ? ((long long)image * f.c + c) * taps * row + pixel : c * taps * row + i);
        for (int r = 0; r < f.r; ++r) {
            const int h = top + r * f.dilation_h;
            const bool inside = h >= 0 && h < f.h;
            for (int s = 0; s < f.s; ++s) {
                const int w = left + s * f.dilation_w;
                *to = inside && w >= 0 && w < f.w ? from[(long long)h * f.w + w] : 0.0f;
                to += row;
            }
        }
    }
#endif
}

#if BY_IMAGE

extern "C" __global__ void __launch_bounds__(256)
im2col_back(const float* __restrict__ columns, float* __restrict__ dx, Conv f) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)f.n * f.c * f.h * f.w) return;
    const Place o = place_of(i, f.c, f.h, f.w);
    const int taps = f.r * f.s;
    float sum = 0.0f;
    for (int r = 0; r < f.r; ++r) {
        const int h = o.row + f.pad_h - r * f.dilation_h;  // = p * stride_h where tap r of window p reaches the row
        if (h < 0 || h % f.stride_h != 0 || h / f.stride_h >= f.p) continue;
        for (int s = 0; s < f.s; ++s) {
            const int w = o.column + f.pad_w - s * f.dilation_w;
            if (w < 0 || w % f.stride_w != 0 || w / f.stride_w >= f.q) continue;
            const int pixel = h / f.stride_h * f.q + w / f.stride_w, tap = r * f.s + s;
#if NHWC
            const long long row = (long long)o.image * f.p * f.q + pixel;
            const int of_c = f.c / f.groups, group = o.channel / of_c, within = o.channel - group * of_c;
            sum += columns[row * f.c * taps + ((long long)group * taps + tap) * of_c + within];
#else
            const long long row = ((long long)o.image * f.c + o.channel) * taps + tap;
            sum += columns[row * f.p * f.q + pixel];
#endif
        }
    }
    dx[i] = sum;
}

#else

extern "C" __global__ void __launch_bounds__(256)
im2col_beside(const float* __restrict__ dy, float* __restrict__ beside, Conv f) {
    const int pixels = f.p * f.q;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (long long)f.n * f.k * pixels) return;
    const int pixel = (int)(i % pixels);
    const long long row = i / pixels;
    const int image = (int)(row % f.n), channel = (int)(row / f.n);
    beside[i] = dy[((long long)image * f.k + channel) * pixels + pixel];
}

#endif
