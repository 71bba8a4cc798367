// Copies in the background: when they land. Run: pytest tests/cuda_on_cpu -k copies
#include "conv.cuh"
#include "device.cuh"

// Two groups of 16 bytes; out[0..2]: the first word of both before any wait, after wait<1>, after wait<0>.
extern "C" __global__ void __launch_bounds__(1) two_groups(const float* __restrict__ in, float* __restrict__ out) {
    __shared__ __align__(16) float box[8];
    volatile float* seen = box;
    cp_async_16(box, in, true);
    cp_async_commit();
    cp_async_16(box + 4, in + 4, true);
    cp_async_commit();
    out[0] = seen[0], out[1] = seen[4];
    cp_async_wait<1>();
    out[2] = seen[0], out[3] = seen[4];
    cp_async_wait<0>();
    out[4] = seen[0], out[5] = seen[4];
}

// A copy that was never committed: wait<0> does not cover it, wait_all does.
extern "C" __global__ void __launch_bounds__(1) not_committed(const float* __restrict__ in, float* __restrict__ out) {
    __shared__ __align__(16) float box[4];
    volatile float* seen = box;
    cp_async_16(box, in, true);
    cp_async_wait<0>();
    out[0] = seen[0];
    cp_async_wait_all();
    out[1] = seen[0];
}

// Zero fill, which must not look at the source; and four bytes at a time.
extern "C" __global__ void __launch_bounds__(32)
filled(const float* __restrict__ in, float* __restrict__ out, int valid) {
    __shared__ __align__(16) float box[32], wide[128];
    cp_async_4(box + threadIdx.x, threadIdx.x < valid ? in + threadIdx.x : nullptr, threadIdx.x < valid);
    cp_async_16(wide + 4 * threadIdx.x, threadIdx.x < valid ? in + 4 * threadIdx.x : nullptr, threadIdx.x < valid);
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = box[threadIdx.x];
    for (int i = 0; i < 4; i++) out[32 + 4 * threadIdx.x + i] = wide[4 * threadIdx.x + i];
}
