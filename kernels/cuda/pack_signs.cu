// Signs of float32 tensors as bits along the channels, and the sums that go with them: binary_popc_cuda, xnor_popc_cuda.
//
//   pack_signs_*       x[N,C,H,W] or x[N,H,W,C] -> signs[N,H,W,G][depth], bit c % 32 of word c / 32 is channel c of the
//                      group, 1 where x >= 0, zeros beyond the channels; pixels[N,H,W,G]: how many are 1, and mean |x|
//   pack_filter_signs  w[K,C/G,R,S] or w[K,R,S,C/G] -> signs[K][R S][depth]; table[(R + 1)(S + 1)][K]: prefix sums of
//                      how many bits of a tap are 1 (signs.cuh); scales[K]: mean |w| of a filter
//
// Rastegari et al. 2016, "XNOR-Net" (arXiv 1603.05279), section 3.2; Courbariaux et al. 2016 (arXiv 1602.02830).
//
// nhwc: a warp reads 32 neighbouring channels of a pixel and votes (ballot), one word a vote. nchw: neighbouring lanes
// have neighbouring pixels, so that loads are whole lines; a lane puts its own word together, and words go through
// shared memory so that stores are 32 bytes of a pixel. Filters: a warp votes on the channels of a tap.
//
// depth: words of a group, a multiple of 4. Launch: pack_signs_* grid (images * groups * tiles of 32 pixels), blocks of
// 32 x 8. pack_filter_signs: a block of 256 a filter. Bound: memory, 4 bytes read for each bit written.
//
// Test: pytest tests/cuda_on_cpu -k signs
#include "conv.cuh"
#include "device.cuh"
#include "signs.cuh"

#define WARPS 8
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// A warp's 32 neighbouring channels as one word; total: of each lane's absolute values.
__device__ __forceinline__ unsigned vote(const float* from, long long step, int channel, int channels, float& total) {
    const bool exists = channel < channels;
    const float value = exists ? from[channel * step] : 0.0f;
    total += fabsf(value);
    return __ballot_sync(ALL_LANES, exists && value >= 0.0f);
}

// Which pixels and channels a block has: 32 pixels of one image, one group.
struct Part {
    int first_pixel, pixels, image, group;
};

__device__ __forceinline__ Part part_of_block(int plane, int groups) {
    const int tiles = (plane + 31) / 32, pixel = blockIdx.x % tiles * 32;
    return {pixel, min(32, plane - pixel), (int)blockIdx.x / tiles / groups, (int)blockIdx.x / tiles % groups};
}

extern "C" __global__ void __launch_bounds__(256)
pack_signs_nhwc(const float* __restrict__ x, unsigned* __restrict__ signs, Pixel* __restrict__ pixels, int plane,
                int channels, int groups, int depth) {
    const Part part = part_of_block(plane, groups);
    const int lane = threadIdx.x;
    for (int i = threadIdx.y; i < part.pixels; i += WARPS) {
        const long long place = ((long long)part.image * plane + part.first_pixel + i) * groups + part.group;
        const float* const from = x + place * channels;
        unsigned* const to = signs + place * depth;
        int ones = 0;
        float total = 0.0f;
#pragma unroll 2
        for (int j = 0; j < depth; j += 4) {
            unsigned words[4];
#pragma unroll
            for (int next = 0; next < 4; ++next) {
                words[next] = vote(from, 1, (j + next) * 32 + lane, channels, total);
                ones += __popc(words[next]);
            }
            if (lane == 0) *reinterpret_cast<uint4*>(to + j) = make_uint4(words[0], words[1], words[2], words[3]);
        }
        total = sum_of_warp(total);
        if (lane == 0) pixels[place] = {ones, total / (float)channels};
    }
}

extern "C" __global__ void __launch_bounds__(256)
pack_signs_nchw(const float* __restrict__ x, unsigned* __restrict__ signs, Pixel* __restrict__ pixels, int plane,
                int channels, int groups, int depth) {
    __shared__ unsigned words[32][WARPS + 1];
    __shared__ int counts[WARPS][32];
    __shared__ float sums[WARPS][32];
    const Part part = part_of_block(plane, groups);
    const int lane = threadIdx.x, warp = threadIdx.y;
    const bool exists = lane < part.pixels;
    const float* const from = x + (long long)(part.image * groups + part.group) * channels * plane + part.first_pixel;
    const long long place = ((long long)part.image * plane + part.first_pixel) * groups + part.group;
    int ones = 0;
    float total = 0.0f;
    for (int j0 = 0; j0 < depth; j0 += WARPS) {
        const int channel = (j0 + warp) * 32, bits = exists ? min(32, channels - channel) : 0;
        const float* at = from + (long long)channel * plane + lane;
        unsigned word = 0;
#pragma unroll 8
        for (int bit = 0; bit < bits; ++bit, at += plane) {
            word |= (unsigned)(*at >= 0.0f) << bit;
            total += fabsf(*at);
        }
        ones += __popc(word);
        words[lane][warp] = word;
        __syncthreads();
        const int pixel = warp * 4 + lane / 8, j = j0 + lane % 8;
        if (pixel < part.pixels && j < depth) signs[(place + pixel * groups) * depth + j] = words[pixel][lane % 8];
        __syncthreads();
    }
    counts[warp][lane] = ones;
    sums[warp][lane] = total;
    __syncthreads();
    if (warp > 0 || !exists) return;
    for (int other = 1; other < WARPS; ++other) {
        ones += counts[other][lane];
        total += sums[other][lane];
    }
    pixels[place + lane * groups] = {ones, total / (float)channels};
}

extern "C" __global__ void __launch_bounds__(256)
pack_filter_signs(const float* __restrict__ w, unsigned* __restrict__ signs, int* __restrict__ table,
                  float* __restrict__ scales, Conv f, int depth, int nhwc) {
    __shared__ float sums[WARPS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, k = blockIdx.x;
    const int channels = f.c / f.groups, taps = f.r * f.s;
    const float* const filter = w + (long long)k * channels * taps;
    float total = 0.0f;
    for (int tap = warp; tap < taps; tap += WARPS) {
        const float* const from = nhwc ? filter + (long long)tap * channels : filter + tap;
        int ones = 0;
#pragma unroll 4
        for (int j = 0; j < depth; ++j) {
            const unsigned word = vote(from, nhwc ? 1 : taps, j * 32 + lane, channels, total);
            ones += __popc(word);
            if (lane == 0) signs[((long long)k * taps + tap) * depth + j] = word;
        }
        if (lane == 0) table[table_at(f, tap / f.s + 1, tap % f.s + 1) + k] = ones;
    }
    for (int r = thread; r <= f.r; r += 256) table[table_at(f, r, 0) + k] = 0;
    for (int s = thread; s <= f.s; s += 256) table[table_at(f, 0, s) + k] = 0;
    total = sum_of_warp(total);
    if (lane == 0) sums[warp] = total;
    __syncthreads();
    if (thread == 0) {
        for (int other = 1; other < WARPS; ++other) total += sums[other];
        scales[k] = total / ((float)channels * (float)taps);
    }
    for (int r = thread + 1; r <= f.r; r += 256) {  // along rows of the filter, then down its columns
        int before = 0;
        for (int s = 1; s <= f.s; ++s) before = table[table_at(f, r, s) + k] += before;
    }
    __syncthreads();
    for (int s = thread + 1; s <= f.s; s += 256) {
        int before = 0;
        for (int r = 1; r <= f.r; ++r) before = table[table_at(f, r, s) + k] += before;
    }
}
