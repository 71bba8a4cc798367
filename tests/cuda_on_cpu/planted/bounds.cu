// y[i] = x[i] + x[i + 1], the last one y[n - 1] = x[n - 1]. BUG 1: reads x[n]. 2: leaves the last one out. 3: writes
// y[n]. 4: reads pairs as float2 from odd places. 5: an index of 32 bits overflows.
#include "conv.cuh"
#include "device.cuh"

#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void __launch_bounds__(64)
neighbours(const float* __restrict__ x, float* __restrict__ y, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
#if BUG == 1
    if (i < n) {
        const float next = x[i + 1];
        y[i] = i < n - 1 ? x[i] + next : x[i];
    }
#elif BUG == 2
    if (i < n - 1) y[i] = x[i] + x[i + 1];
#elif BUG == 3
    if (i <= n) y[i] = i < n - 1 ? x[i] + x[i + 1] : i < n ? x[i] : 0.f;
#elif BUG == 4
    if (i < n - 1) {
        const float2 pair = *reinterpret_cast<const float2*>(x + i);
        y[i] = pair.x + pair.y;
    }
    if (i == n - 1) y[i] = x[i];
#elif BUG == 5
    const int far = i * 100000000;
    if (i < n) y[i] = i < n - 1 && far != 1 ? x[i] + x[i + 1] : x[i];
#else
    if (i < n) y[i] = i < n - 1 ? x[i] + x[i + 1] : x[i];
#endif
}

// y = x, turned round within 64 elements, through dynamic shared memory. The launch gives it 16 bytes too few.
extern "C" __global__ void __launch_bounds__(64) turned(const float* __restrict__ x, float* __restrict__ y) {
    DYNAMIC_SHARED(float, box);
    box[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = box[63 - threadIdx.x];
}

// The same through a static array, filled by the first `count` threads: more than 64 of them write past its end. A
// compiler that cannot see through the pointer knows nothing of the array's size.
extern "C" __global__ void __launch_bounds__(128)
turned_fixed(const float* __restrict__ x, float* __restrict__ y, int count) {
    __shared__ float box[64];
    float* volatile place = box;
    float* p = place;
    if (threadIdx.x < count) p[threadIdx.x] = x[threadIdx.x % 64];
    __syncthreads();
    if (threadIdx.x < 64) y[threadIdx.x] = p[63 - threadIdx.x];
}
