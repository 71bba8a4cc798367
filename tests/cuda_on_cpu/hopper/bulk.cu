// Copies in bulk by tensor maps, and mbarriers. Dynamic shared memory: 1024 bytes, rows of 128, 64 more.
// Run: pytest tests/cuda_on_cpu -k bulk
#include "device.cuh"
#include "tma.cuh"

__device__ __forceinline__ unsigned char* rows_of(unsigned char* dynamic) {
    return dynamic + (1024 - reinterpret_cast<size_t>(dynamic) % 1024) % 1024;
}

// Rows of 64 elements, out of their swizzled places.
__device__ __forceinline__ void write_rows(unsigned short* out, const unsigned char* rows, int count) {
    for (int i = threadIdx.x; i < 64 * count; i += blockDim.x) {
        const int row = i / 64, chunk = i % 64 / 8 ^ row % 8;
        out[i] = *reinterpret_cast<const unsigned short*>(rows + row * 128 + chunk * 16 + i % 8 * 2);
    }
}

__device__ __forceinline__ void start(Mbarrier* barrier, int arrivals) {
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, arrivals);
        mbarriers_visible();
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(64)
pixels(const __grid_constant__ TensorMap map, unsigned short* __restrict__ out, int count, int c, int w, int h, int n,
       int offset_w, int offset_h) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    __shared__ Mbarrier barrier;
    unsigned char* const rows = rows_of(dynamic);
    start(&barrier, 1);
    if (threadIdx.x == 0) {
        mbarrier_arrive(&barrier, 128 * count);
        tma_load_im2col(rows, map, &barrier, c, w, h, n, offset_w, offset_h);
    }
    mbarrier_wait(&barrier, 0);
    write_rows(out, rows, count);
}

extern "C" __global__ void __launch_bounds__(64)
boxes(const __grid_constant__ TensorMap map, unsigned short* __restrict__ out, int count, int x, int y, int z) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    __shared__ Mbarrier barrier;
    unsigned char* const rows = rows_of(dynamic);
    start(&barrier, 1);
    if (threadIdx.x == 0) {
        mbarrier_arrive(&barrier, 128 * count);
        tma_load_3d(rows, map, &barrier, x, y, z);
    }
    mbarrier_wait(&barrier, 0);
    write_rows(out, rows, count);
}

// out: what each thread finds of another's when a phase of 64 arrivals has ended, four times.
extern "C" __global__ void __launch_bounds__(64) phases(int* __restrict__ out) {
    __shared__ Mbarrier barrier;
    __shared__ int seen[64];
    start(&barrier, 64);
    for (int i = 0; i < 4; ++i) {
        seen[threadIdx.x] = 100 * i + threadIdx.x;
        mbarrier_arrive(&barrier);
        mbarrier_wait(&barrier, 0);
        out[64 * i + threadIdx.x] = seen[(threadIdx.x + 33) % 64];
        mbarrier_arrive(&barrier);  // all have read
        mbarrier_wait(&barrier, 1);
    }
}

// What must not be done, by number.
extern "C" __global__ void __launch_bounds__(64)
faults(const __grid_constant__ TensorMap map, unsigned short* __restrict__ out, int fault) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    __shared__ Mbarrier barrier, strange;
    unsigned char* const rows = rows_of(dynamic);
    start(&barrier, 1);
    if (threadIdx.x == 0) {
        if (fault == 1) mbarrier_arrive(&strange);
        mbarrier_arrive(&barrier, 128 * 4);
        if (fault == 2) mbarrier_arrive(&barrier);
        if (fault == 3) tma_load_im2col(rows + 64, map, &barrier, 0, 0, 0, 0, 0, 0);
        if (fault == 4) tma_load_im2col(rows, map, &barrier, 0, -1, 0, 0, 0, 0);
        if (fault == 5) tma_load_im2col(rows, map, &barrier, 0, 0, 0, 0, 256, 0);
        if (fault == 6) tma_load_3d(rows, map, &barrier, 0, 0, 0);
        if (fault == 7) tma_load_im2col(rows + 64 * 1024, map, &barrier, 0, 0, 0, 0, 0, 0);
        if (fault >= 8) tma_load_im2col(rows, map, &barrier, 0, 0, 0, 0, 0, 0);
    }
    if (fault == 8) return;  // nobody waits for the copy
    if (fault == 9) mbarrier_arrive(&barrier, 128);  // and nobody copies as much
    mbarrier_wait(&barrier, 0);
    if (fault == 10) barrier = 0;
    if (fault == 10) mbarrier_wait(&barrier, 1);
    write_rows(out, rows, 4);
}
