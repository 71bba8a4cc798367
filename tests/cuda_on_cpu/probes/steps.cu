// What programs of several steps are put together from. Run: pytest tests/cuda_on_cpu/test_programs.py
#include "conv.cuh"
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(64)
twice(const float* __restrict__ x, float* __restrict__ y, long long n) {
    const long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = 2.f * x[i];
}
