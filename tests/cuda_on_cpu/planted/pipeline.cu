// Of each row of 128: out[i] = 2 x[i] + x[(i + 4) % 128], through two stages of shared memory that cp.async fills
// ahead. Dynamic shared memory: 2 x 512 bytes. BUG 1: waits for one group too few. 2: no barrier after the wait.
// 3: no barrier before a stage is filled again.
#include "conv.cuh"
#include "device.cuh"

#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void __launch_bounds__(128)
pipeline(const float* __restrict__ x, float* __restrict__ out, int rows) {
    DYNAMIC_SHARED(float, stages);
    const int t = threadIdx.x;
    if (t < 32) cp_async_16(stages + 4 * t, x + 4 * t, true);
    cp_async_commit();
    for (int row = 0; row < rows; row++) {
        const int next = row + 1;
        if (t < 32 && next < rows) cp_async_16(stages + next % 2 * 128 + 4 * t, x + next * 128 + 4 * t, true);
        cp_async_commit();
        cp_async_wait<BUG == 1 ? 2 : 1>();
#if BUG != 2
        __syncthreads();
#endif
        const float* stage = stages + row % 2 * 128;
        out[row * 128 + t] = 2.f * stage[t] + stage[(t + 4) % 128];
#if BUG != 3
        __syncthreads();
#endif
    }
}
