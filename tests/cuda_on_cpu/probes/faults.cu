// Kernels that do what must not be done; each ends as an error of the launch. Run: pytest tests/cuda_on_cpu -k faults
#include "conv.cuh"
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(64) follow(float* pointer, long long by) {
    if (threadIdx.x == 5) pointer[by] = 1.f;
}

extern "C" __global__ void __launch_bounds__(64) divide(int* out, int by) { out[threadIdx.x] = 7 / by; }

extern "C" __global__ void __launch_bounds__(64) never_ends(int* out) {
    volatile int* flag = out;
    while (*flag == 0) {
    }
}

__device__ __noinline__ int deep(int n) {
    volatile char room[1000];
    room[n % 1000] = 1;
    return n ? deep(n - 1) + room[n % 1000] : 0;
}
extern "C" __global__ void __launch_bounds__(64) too_deep(int* out, int n) { out[threadIdx.x] = deep(n); }

extern "C" __global__ void __launch_bounds__(64) traps() {
    if (threadIdx.x == 3) __trap();
}

extern "C" __global__ void __launch_bounds__(64) different_barriers(int* out) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void __launch_bounds__(64) one_warp_only(int* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void __launch_bounds__(32) lane_is_missing(int* out) {
    if (threadIdx.x != 9) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
    __syncwarp();
}

extern "C" __global__ void __launch_bounds__(32) not_in_its_mask(int* out) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0);
}

extern "C" __global__ void __launch_bounds__(64) half_a_warp_multiplies(float* out) {
    if (threadIdx.x % 32 >= 16) return;
    float d[4] = {0.f, 0.f, 0.f, 0.f};
    const unsigned a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    mma_f16_16816(d, a, b);
    out[threadIdx.x] = d[0];
}

extern "C" __global__ void __launch_bounds__(32) tile_off_by_8(unsigned* out) {
    __shared__ __align__(16) unsigned rows[32 * 4 + 2];
    unsigned r[4];
    ldmatrix_x4(r, rows + 4 * threadIdx.x + 2);
    out[threadIdx.x] = r[0];
}

extern "C" __global__ void __launch_bounds__(32) copies_to_global(float* out) { cp_async_16(out, out + 4, true); }

extern "C" __global__ void __launch_bounds__(32) too_much_shared(float* out) {
    DYNAMIC_SHARED(float, box);
    box[threadIdx.x] = 0.f;
    out[threadIdx.x] = box[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(32) odd_width(int* out) {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0, 12);
}
