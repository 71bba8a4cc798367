// out[0] = sum of x by one block: each thread, then the last lane of each warp, then the last thread. BUG 1: no barrier
// before the last thread reads what the warps wrote; in ascending order the result is right. 2: the same inside a warp,
// whose lanes hand their sums on through shared memory. 3: the barrier comes after some threads have left.
#include "conv.cuh"
#include "device.cuh"

#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void __launch_bounds__(128)
reduction(const float* __restrict__ x, float* __restrict__ out, int n) {
    __shared__ float lanes[128], warps[4];
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += 128) sum += x[i];
    lanes[threadIdx.x] = sum;
#if BUG != 2
    __syncwarp();
#endif
    if (threadIdx.x % 32 == 31) {
        float all = 0.f;
        for (int i = 31; i >= 0; i--) all += lanes[threadIdx.x - i];
        warps[threadIdx.x / 32] = all;
    }
#if BUG == 3
    if (threadIdx.x % 32 < 16) return;
#endif
#if BUG != 1
    __syncthreads();
#endif
    if (threadIdx.x == 127) out[0] = warps[0] + warps[1] + warps[2] + warps[3];
}
