// Tiles of shared memory in registers and their products. Run: pytest tests/cuda_on_cpu -k tiles
#include "conv.cuh"
#include "device.cuh"

// out[variant][lane][4]: x1, x2, x4, then the three transposed, from four 8x8 tiles that lie one after another.
extern "C" __global__ void __launch_bounds__(32)
load_tiles(const unsigned* __restrict__ in, unsigned* __restrict__ out) {
    __shared__ __align__(16) unsigned tiles[4 * 8 * 4];
    const int lane = threadIdx.x;
    for (int i = lane; i < 4 * 8 * 4; i += 32) tiles[i] = in[i];
    __syncwarp();
    const unsigned* row = tiles + 4 * lane;
    unsigned one[1], two[2], four[4];
    ldmatrix_x1(one, row);
    out[lane * 4] = one[0];
    ldmatrix_x2(two, row);
    for (int i = 0; i < 2; i++) out[128 + lane * 4 + i] = two[i];
    ldmatrix_x4(four, row);
    for (int i = 0; i < 4; i++) out[256 + lane * 4 + i] = four[i];
    ldmatrix_x1_trans(one, row);
    out[384 + lane * 4] = one[0];
    ldmatrix_x2_trans(two, row);
    for (int i = 0; i < 2; i++) out[512 + lane * 4 + i] = two[i];
    ldmatrix_x4_trans(four, row);
    for (int i = 0; i < 4; i++) out[640 + lane * 4 + i] = four[i];
}

// Registers of the lanes as they come: a[32][4], b[32][2], d[32][4].
#define PROBE(name, type)                                                                                    \
    extern "C" __global__ void __launch_bounds__(32)                                                         \
        run_##name(const unsigned* __restrict__ a, const unsigned* __restrict__ b, type* __restrict__ d) {   \
        unsigned left[4], right[2];                                                                          \
        type sum[4];                                                                                         \
        for (int i = 0; i < 4; i++) left[i] = a[threadIdx.x * 4 + i], sum[i] = d[threadIdx.x * 4 + i];       \
        for (int i = 0; i < 2; i++) right[i] = b[threadIdx.x * 2 + i];                                       \
        name(sum, left, right);                                                                              \
        for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + i] = sum[i];                                         \
    }
PROBE(mma_f16_16816, float)
PROBE(mma_bf16_16816, float)
PROBE(mma_tf32_1688, float)
PROBE(mma_s8_16832, int)
PROBE(mma_s8_quarters, int)
PROBE(mma_b1_and_168256, int)
PROBE(mma_b1_xor_168256, int)

// c (16x8) = a (16x16) b^T (8x16), both row-major: a by ldmatrix x4, b by x2, as every product kernel does it.
extern "C" __global__ void __launch_bounds__(32)
small_product(const __half* __restrict__ a, const __half* __restrict__ b, float* __restrict__ c) {
    __shared__ __align__(16) __half left[16 * 16], right[8 * 16];
    const int lane = threadIdx.x;
    for (int i = lane; i < 16 * 16; i += 32) left[i] = a[i];
    for (int i = lane; i < 8 * 16; i += 32) right[i] = b[i];
    __syncwarp();
    unsigned x[4], y[2];
    ldmatrix_x4(x, left + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x2(y, right + lane % 8 * 16 + lane / 8 % 2 * 8);
    float sum[4] = {0.f, 0.f, 0.f, 0.f};
    mma_f16_16816(sum, x, y);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
