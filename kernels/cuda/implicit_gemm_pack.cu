// What implicit GEMM needs before and after its product: the filter in the product's order, activations with channels
// innermost and padded, and the sum of the parts into which a long sum was cut.
//
//   pack_filter       w[K,C/G,R,S] or w[K,R,S,C/G] -> TRANSPOSED 1: [group][tap][depth][row_length]
//                                                     TRANSPOSED 0: [group][row][tap][depth_length]
//                     Forward: rows are k, the depth is c; backward data: rows are c of the group, the depth is k of
//                     the group. Taps in the order of tap_position(). What lies beyond rows and depth stays as it is.
//   pack_activations  x[N,C,H,W] or x[N,H,W,C] -> [N,H,W][group][length of a group's channels], zeros beyond them
//   add_parts         parts[count][elements] -> out[elements], summed in float in the order of the parts, then rounded
//                     to OUTPUT: 16 half, 17 bfloat16 (partial_sums.cu does it for float); OUTPUT 8: all in int32
//
// BYTES: of an element (1, 2 or 4); values are only moved. Tiles of 32 x 32 go through shared memory with 33 columns, so
// that both sides of a transposition are read and written in whole lines. Launch: pack_filter grid (groups * tiles of
// K/G, tiles of C/G * R * S); pack_activations grid (images * groups * tiles of pixels, tiles of channels); both blocks
// of 32 x 8. add_parts: blocks of 256. Bound: memory; an H200 moves a filter of 512 x 512 x 3 x 3 floats in about 6 us.
//
// Test: pytest tests/cuda_on_cpu -k implicit_gemm
#include "conv.cuh"
#include "device.cuh"
#include "implicit_gemm.cuh"

#ifndef BYTES
#define BYTES 4
#endif
#ifndef TRANSPOSED
#define TRANSPOSED 1
#endif
#ifndef OUTPUT
#define OUTPUT 0
#endif

#if !OUTPUT

#if BYTES == 1
typedef unsigned char Word;
#elif BYTES == 2
typedef unsigned short Word;
#else
typedef unsigned Word;
#endif

extern "C" __global__ void __launch_bounds__(256)
pack_filter(const Word* __restrict__ w, Word* __restrict__ packed, Conv f, int pass, int nhwc, int length) {
    __shared__ Word tile[32][33];
    const int cg = f.c / f.groups, kg = f.k / f.groups, taps = f.r * f.s, columns = cg * taps;
    const int tiles_k = (kg + 31) / 32, group = blockIdx.x / tiles_k;
    const int k0 = blockIdx.x % tiles_k * 32, j0 = blockIdx.y * 32;
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int k = k0 + i, j = j0 + threadIdx.x;
        if (k < kg && j < columns) tile[i][threadIdx.x] = w[(long long)(group * kg + k) * columns + j];
    }
    __syncthreads();
    // neighbouring threads write along k where the result has k innermost
    const bool along_k = (pass == FORWARD) == (TRANSPOSED == 1);
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int at_k = along_k ? threadIdx.x : i, at_j = along_k ? i : threadIdx.x;
        const int k = k0 + at_k, j = j0 + at_j;
        if (k >= kg || j >= columns) continue;
        const int c = nhwc ? j % cg : j / taps, tap = nhwc ? j / cg : j % taps;
        const int position = tap_position(f, pass, tap / f.s, tap % f.s);
        const int row = pass == FORWARD ? k : c, depth = pass == FORWARD ? c : k;
#if TRANSPOSED
        const int depths = pass == FORWARD ? cg : kg;
        const long long to = ((long long)(group * taps + position) * depths + depth) * length + row;
#else
        const int rows = pass == FORWARD ? kg : cg;
        const long long to = ((long long)(group * rows + row) * taps + position) * length + depth;
#endif
        packed[to] = tile[at_k][at_j];
    }
}

extern "C" __global__ void __launch_bounds__(256)
pack_activations(const Word* __restrict__ x, Word* __restrict__ packed, int pixels, int channels, int groups,
                 int length, int nhwc) {
    __shared__ Word tile[32][33];
    const int tiles = (pixels + 31) / 32, pixel0 = blockIdx.x % tiles * 32, channel0 = blockIdx.y * 32;
    const int image = blockIdx.x / tiles / groups, group = blockIdx.x / tiles % groups;
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int pixel = pixel0 + (nhwc ? i : threadIdx.x), channel = channel0 + (nhwc ? threadIdx.x : i);
        const long long wide = (long long)channels * groups;
        const long long from = nhwc ? ((long long)image * pixels + pixel) * wide + group * channels + channel
                                    : (image * wide + group * channels + channel) * pixels + pixel;
        const Word value = pixel < pixels && channel < channels ? x[from] : (Word)0;
        tile[pixel - pixel0][channel - channel0] = value;
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
        const int pixel = pixel0 + i, channel = channel0 + threadIdx.x;
        if (pixel >= pixels || channel >= length) continue;
        packed[(((long long)image * pixels + pixel) * groups + group) * length + channel] = tile[i][threadIdx.x];
    }
}

#else

#if OUTPUT == 8
typedef int Output, Sum;
__device__ __forceinline__ Output rounded(int x) { return x; }
#elif OUTPUT == 16
typedef __half Output;
typedef float Sum;
__device__ __forceinline__ Output rounded(float x) { return __float2half_rn(x); }
#else
typedef __nv_bfloat16 Output;
typedef float Sum;
__device__ __forceinline__ Output rounded(float x) { return __float2bfloat16_rn(x); }
#endif

extern "C" __global__ void __launch_bounds__(256)
add_parts(const Sum* __restrict__ parts, Output* __restrict__ out, long long elements, int count) {
    const long long i = (long long)blockIdx.x * 256 + threadIdx.x;
    if (i >= elements) return;
    Sum sum = parts[i];
    for (int part = 1; part < count; ++part) sum += parts[part * elements + i];
    out[i] = rounded(sum);
}

#endif  // OUTPUT
