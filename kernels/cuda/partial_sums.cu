// Second stage of sums that many blocks share: adds the parts in a fixed order, so that every run gives the same bits.
//
//   out[i] = sum over j < parts of sums[j][i]
//
// Pairs of neighbouring parts are added first, eight parts at a time, so that errors grow with the logarithm of eight
// and loads do not wait for one another. Launch: 256 threads a block, one element each. Bound: memory, parts + 1
// floats an element. Used for backward weights by direct_tiled_cuda and depthwise_cuda.
// Test: pytest tests/cuda_on_cpu -k partial_sums
#include "conv.cuh"
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(256)
partial_sums(const float* __restrict__ sums, float* __restrict__ out, long long elements, int parts) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= elements) return;
    float total = 0.0f;
    int j = 0;
    for (; j + 8 <= parts; j += 8) {
        float part[8];
#pragma unroll
        for (int m = 0; m < 8; ++m) part[m] = sums[(j + m) * elements + i];
        total += ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    }
    for (; j < parts; ++j) total += sums[j * elements + i];
    out[i] = total;
}
