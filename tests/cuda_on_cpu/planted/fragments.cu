// c (16x8) = a (16x16) b^T (8x16) in half precision by one warp. BUG 1: two registers of a in each other's place.
// 2: b as if it were stored by columns.
#include "conv.cuh"
#include "device.cuh"

#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void __launch_bounds__(32)
fragments(const __half* __restrict__ a, const __half* __restrict__ b, float* __restrict__ c) {
    __shared__ __align__(16) __half left[16 * 16];
    __shared__ __align__(16) __half right[8 * 16];
    const int lane = threadIdx.x;
    cp_async_16(left + 8 * lane, a + 8 * lane, true);
    if (lane < 16) cp_async_16(right + 8 * lane, b + 8 * lane, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    unsigned x[4], y[2];
    ldmatrix_x4(x, left + lane % 16 * 16 + lane / 16 * 8);
#if BUG == 2
    ldmatrix_x2_trans(y, right + lane % 8 * 16 + lane / 8 % 2 * 8);
#else
    ldmatrix_x2(y, right + lane % 8 * 16 + lane / 8 % 2 * 8);
#endif
#if BUG == 1
    const unsigned z = x[1];
    x[1] = x[2], x[2] = z;
#endif
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    mma_f16_16816(sum, x, y);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
