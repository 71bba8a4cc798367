// c (n x n) = a b in 16x16 tiles. BUG 1: no barrier between filling the tiles and reading them. 2: none between reading
// them and filling them anew. 3: sums start from whatever is there.
#include "conv.cuh"
#include "device.cuh"

#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void __launch_bounds__(256)
tiled_product(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int n) {
    __shared__ float left[16][16], right[16][16];
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
#if BUG == 3
    float sum;
#else
    float sum = 0.f;
#endif
    for (int k = 0; k < n; k += 16) {
        left[y][x] = a[row * n + k + x];
        right[y][x] = b[(k + y) * n + column];
#if BUG != 1
        __syncthreads();
#endif
        for (int i = 0; i < 16; i++) sum += left[y][i] * right[i][x];
#if BUG != 2
        __syncthreads();
#endif
    }
    c[row * n + column] = sum;
}
