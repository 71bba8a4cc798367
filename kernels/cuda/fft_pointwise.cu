// What fft_cuda does around the vendor's FFT of whole images: padding, the product over channels, cropping.
// Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2. Three passes, both layouts, every shape.
//
//   fft_load           a tensor into [image][channel][Th][Tw] floats, each element at its place, zeros elsewhere
//   fft_to_matrices    spectra [image][channel][frequency] into one matrix per frequency and group (spectra.cuh), for
//                      the vendor's batched product; and fft_from_matrices, the way back
//   fft_multiply       groups of few channels: the product over channels right on [image][channel][frequency]
//   fft_store          [image][channel][Th][Tw] into a tensor, scaled; elements without a place are zero
//
// Coordinates: the input lies at the origin of a circle of Th x Tw points, tap r at r * dilation, output p at
// p * stride - padding; then all passes are one relation, y[m] = sum over r of x[m + r] w[r]. struct Map says which
// element of an axis lies where on the circle, and which elements are left out because they meet padding alone.
//
// Launch: 32 x 8 threads. Tensors: x: rows (NCHW: 8 a block; NHWC: one, 32 columns of it), y: NHWC: 32 channels.
// Matrices: x: 32 frequencies of one image (FORWARD: of one channel), y: 32 channels (FORWARD: filters), turned in
// shared memory so that both sides are read and written in whole lines. fft_multiply: 256 frequencies, y: images or
// filters, z: channels.
// Bound: memory. A spectrum is written and read by the FFT, by the change of layout and by the product.
// Test: pytest tests/cuda_on_cpu -k fft
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"
#include "spectra.cuh"

#define ROWS 8

// Element e lies at m (modulo length) if e * divide = m * multiply + begin and first <= e < stop.
struct Map {
    int length, multiply, divide, begin, first, stop;
};

// The element at a point of the circle, or -1.
__device__ __forceinline__ int element_at(const Map& a, int point) {
    for (int m = point; m >= point - a.length; m -= a.length) {
        const int e = m * a.multiply + a.begin;
        if (e % a.divide == 0 && e / a.divide >= a.first && e / a.divide < a.stop) return e / a.divide;
    }
    return -1;
}

// The point of the circle where an element lies, or -1.
__device__ __forceinline__ int point_of(const Map& a, int element) {
    const int m = element * a.divide - a.begin;
    if (element < a.first || element >= a.stop || m % a.multiply != 0) return -1;
    return m < 0 ? m / a.multiply + a.length : m / a.multiply;
}

extern "C" __global__ void __launch_bounds__(256)
fft_load(
    const float* __restrict__ tensor, float* __restrict__ circles, int images, int channels, int height, int width,
    Map rows, Map columns
) {
    const Steps from = steps_of(channels, height, width);
#if NHWC
    __shared__ float tile[32][33];
    const int across = (columns.length + 31) / 32;
    const int first_column = blockIdx.x % across * 32, row = blockIdx.x / across % rows.length;
    const int image = blockIdx.x / across / rows.length, first_channel = blockIdx.y * 32;
    const int h = element_at(rows, row);
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int channel = first_channel + threadIdx.x, v = element_at(columns, first_column + j);
        const bool inside = h >= 0 && v >= 0 && channel < channels && first_column + j < columns.length;
        tile[j][threadIdx.x] = inside ? tensor[at(from, image, channel, h, v)] : 0.0f;
    }
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int channel = first_channel + j, column = first_column + threadIdx.x;
        if (channel >= channels || column >= columns.length) continue;
        const long long circle = (long long)image * channels + channel;
        circles[(circle * rows.length + row) * columns.length + column] = tile[threadIdx.x][j];
    }
#else
    const long long line = (long long)blockIdx.x * ROWS + threadIdx.y, circle = line / rows.length;
    if (circle >= (long long)images * channels) return;
    const int h = element_at(rows, (int)(line % rows.length));
    const float* const plane = tensor + circle * from.channel;
    for (int column = threadIdx.x; column < columns.length; column += 32) {
        const int v = h < 0 ? -1 : element_at(columns, column);
        circles[line * columns.length + column] = v >= 0 ? plane[h * from.row + v] : 0.0f;
    }
#endif
}

extern "C" __global__ void __launch_bounds__(256)
fft_store(
    const float* __restrict__ circles, float* __restrict__ tensor, int images, int channels, int height, int width,
    Map rows, Map columns, float scale
) {
    const Steps to = steps_of(channels, height, width);
#if NHWC
    __shared__ float tile[32][33];
    const int across = (width + 31) / 32;
    const int first_column = blockIdx.x % across * 32, h = blockIdx.x / across % height;
    const int image = blockIdx.x / across / height, first_channel = blockIdx.y * 32;
    const int row = point_of(rows, h);
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int channel = first_channel + j, v = first_column + threadIdx.x;
        const int column = v < width ? point_of(columns, v) : -1;
        const long long circle = (long long)image * channels + channel;
        const bool inside = row >= 0 && column >= 0 && channel < channels;
        const long long from = (circle * rows.length + row) * columns.length + column;
        tile[j][threadIdx.x] = inside ? circles[from] * scale : 0.0f;
    }
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int channel = first_channel + threadIdx.x, v = first_column + j;
        if (channel < channels && v < width) tensor[at(to, image, channel, h, v)] = tile[threadIdx.x][j];
    }
#else
    const long long line = (long long)blockIdx.x * ROWS + threadIdx.y, circle = line / height;
    if (circle >= (long long)images * channels) return;
    const int h = (int)(line % height), row = point_of(rows, h);
    const float* const from = circles + (circle * rows.length + row) * columns.length;
    for (int v = threadIdx.x; v < width; v += 32) {
        const int column = row < 0 ? -1 : point_of(columns, v);
        tensor[circle * to.channel + h * to.row + v] = column >= 0 ? from[column] * scale : 0.0f;
    }
#endif
}

// Which spectra a block of the two kernels below turns: 32 frequencies from `frequency` on, of (outer, inner .. + 32).
struct Turn {
    int frequency, outer, inner;
};

__device__ __forceinline__ Turn turn_of(int frequencies) {
    const int tiles = (frequencies + 31) / 32;
    Turn t;
    t.frequency = blockIdx.x % tiles * 32;
    t.outer = blockIdx.x / tiles;
    t.inner = blockIdx.y * 32;
    return t;
}

// spectra: of images first .. first + images (or filters), all channels.
extern "C" __global__ void __launch_bounds__(256)
fft_to_matrices(
    const float2* __restrict__ spectra, float* __restrict__ matrices, Matrices m, int frequencies, int images,
    int channels, int first
) {
    __shared__ float2 tile[32][33];
    const Turn t = turn_of(frequencies);
    const bool by_image = m.role == FORWARD;  // neighbours in a matrix are filters
    const int count = by_image ? images : channels;
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int inner = t.inner + j, frequency = t.frequency + threadIdx.x;
        if (inner >= count || frequency >= frequencies) continue;
        const int image = by_image ? inner : t.outer, channel = by_image ? t.outer : inner;
        tile[j][threadIdx.x] = spectra[((long long)image * channels + channel) * frequencies + frequency];
    }
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int inner = t.inner + threadIdx.x, frequency = t.frequency + j;
        if (inner >= count || frequency >= frequencies) continue;
        const int i = by_image ? inner : t.outer, c = by_image ? t.outer : inner;
        store_spectrum(matrices, m, cell_of(m, frequency, first + i, c), tile[threadIdx.x][j]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
fft_from_matrices(
    const float* __restrict__ matrices, float2* __restrict__ spectra, Matrices m, int frequencies, int images,
    int channels, int first
) {
    __shared__ float2 tile[32][33];
    const Turn t = turn_of(frequencies);
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int channel = t.inner + threadIdx.x, frequency = t.frequency + j;
        if (channel >= channels || frequency >= frequencies) continue;
        tile[threadIdx.x][j] = load_spectrum(matrices, m, cell_of(m, frequency, first + t.outer, channel));
    }
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += ROWS) {
        const int channel = t.inner + j, frequency = t.frequency + threadIdx.x;
        if (channel >= channels || frequency >= frequencies) continue;
        spectra[((long long)t.outer * channels + channel) * frequencies + frequency] = tile[j][threadIdx.x];
    }
}

// sum += a b, or a conj(b)
__device__ __forceinline__ void multiply_add(float2& sum, float2 a, float2 b, bool conjugate) {
    const float imaginary = conjugate ? -b.y : b.y;
    sum.x = fmaf(a.x, b.x, fmaf(-a.y, imaginary, sum.x));
    sum.y = fmaf(a.x, imaginary, fmaf(a.y, b.x, sum.y));
}

// pass 0: y[n][k] = sum over c of x[n][c] conj(w[k][c]); 1: x[n][c] = sum over k of y[n][k] w[k][c];
// 2: w[k][c] = (what it was, if `add`, +) sum over n of x[n][c] conj(y[n][k]); each for all frequencies.
extern "C" __global__ void __launch_bounds__(256)
fft_multiply(float2* x, float2* w, float2* y, int pass, int add, Conv f, int frequencies) {
    const int frequency = blockIdx.x * 256 + threadIdx.y * 32 + threadIdx.x;
    if (frequency >= frequencies) return;
    const int of_c = f.c / f.groups, of_k = f.k / f.groups;
    const int inner = pass == 0 ? f.k : pass == 1 ? f.c : of_c, outer = pass == 2 ? f.k : f.n;
    for (int i = blockIdx.y; i < outer; i += gridDim.y) {
        for (int j = blockIdx.z; j < inner; j += gridDim.z) {
            float2* const result = pass == 0 ? y : pass == 1 ? x : w;
            float2* const to = result + ((long long)i * inner + j) * frequencies + frequency;
            float2 sum = pass == 2 && add ? *to : make_float2(0.0f, 0.0f);
            if (pass == 0) {
                for (int c = 0; c < of_c; ++c) {
                    const long long at_x = (long long)i * f.c + j / of_k * of_c + c, at_w = (long long)j * of_c + c;
                    multiply_add(sum, x[at_x * frequencies + frequency], w[at_w * frequencies + frequency], true);
                }
            } else if (pass == 1) {
                const int group = j / of_c, within = j - group * of_c;
                for (int k = group * of_k; k < (group + 1) * of_k; ++k) {
                    const long long at_y = (long long)i * f.k + k, at_w = (long long)k * of_c + within;
                    multiply_add(sum, y[at_y * frequencies + frequency], w[at_w * frequencies + frequency], false);
                }
            } else {
                const int c = i / of_k * of_c + j;
                for (int n = 0; n < f.n; ++n) {
                    const long long at_x = (long long)n * f.c + c, at_y = (long long)n * f.k + i;
                    multiply_add(sum, x[at_x * frequencies + frequency], y[at_y * frequencies + frequency], true);
                }
            }
            *to = sum;
        }
    }
}
