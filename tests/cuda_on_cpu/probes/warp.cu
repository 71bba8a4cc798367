// What the lanes of one warp, and the warps of one block, say to each other. Run: pytest tests/cuda_on_cpu -k warp
#include "conv.cuh"
#include "device.cuh"

// out[mode][lane]: modes 0 shfl, 1 up, 2 down, 3 xor.
extern "C" __global__ void __launch_bounds__(64)
shuffles(const int* __restrict__ in, int* __restrict__ out, int by, int width) {
    const int value = in[threadIdx.x], threads = blockDim.x;
    out[threadIdx.x] = __shfl_sync(0xffffffffu, value, by, width);
    out[threads + threadIdx.x] = __shfl_up_sync(0xffffffffu, value, by, width);
    out[2 * threads + threadIdx.x] = __shfl_down_sync(0xffffffffu, value, by, width);
    out[3 * threads + threadIdx.x] = __shfl_xor_sync(0xffffffffu, value, by, width);
}

// Values of 8 and 2 bytes, and of two classes, from the lane above.
extern "C" __global__ void __launch_bounds__(32)
shuffled_types(double* __restrict__ wide, long long* __restrict__ whole, __half* __restrict__ narrow) {
    const int lane = threadIdx.x;
    wide[lane] = __shfl_down_sync(0xffffffffu, lane + 0.25, 1);
    whole[lane] = __shfl_down_sync(0xffffffffu, 1ll << lane, 1);
    narrow[lane] = __shfl_down_sync(0xffffffffu, __float2half(float(lane)), 1);
}

// The even and the odd lanes apart, and one lane that reads from outside its mask.
extern "C" __global__ void __launch_bounds__(32) masks(int* __restrict__ out) {
    const int lane = threadIdx.x;
    if (lane % 2 == 0) out[lane] = __shfl_sync(0x55555555u, 100 + lane, 2);
    else out[lane] = __shfl_sync(0xaaaaaaaau, 200 + lane, 3);
    if (lane < 4) out[32 + lane] = __shfl_sync(0x0000000fu, lane, lane == 3 ? 9 : 1);
}

extern "C" __global__ void __launch_bounds__(64) votes(const int* __restrict__ in, unsigned* __restrict__ out) {
    const int value = in[threadIdx.x], threads = blockDim.x;
    out[threadIdx.x] = __ballot_sync(0xffffffffu, value);
    out[threads + threadIdx.x] = __any_sync(0xffffffffu, value);
    out[2 * threads + threadIdx.x] = __all_sync(0xffffffffu, value);
    out[3 * threads + threadIdx.x] = __syncthreads_count(value);
    out[4 * threads + threadIdx.x] = __syncthreads_or(value);
    out[5 * threads + threadIdx.x] = __syncthreads_and(value);
}

// Lanes hand a value on through shared memory, ordered by __syncwarp alone.
extern "C" __global__ void __launch_bounds__(64) handed_on(int* __restrict__ out) {
    __shared__ int box[64];
    const int base = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    int value = threadIdx.x;
    for (int i = 0; i < 5; i++) {
        box[threadIdx.x] = value;
        __syncwarp();
        value = box[base + (lane + 1) % 32];
        __syncwarp();
    }
    out[threadIdx.x] = value;
}

// Some lanes leave before the others shuffle: they are out of the count.
extern "C" __global__ void __launch_bounds__(32) left_early(int* __restrict__ out) {
    if (threadIdx.x >= 20) return;
    out[threadIdx.x] = __shfl_sync(0xffffffffu, int(threadIdx.x), 7);
}

// The order of threads and of blocks, as tickets.
extern "C" __global__ void __launch_bounds__(128) tickets(int* __restrict__ counter, int* __restrict__ out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1);
}

extern "C" __global__ void __launch_bounds__(64)
atomics(int* __restrict__ whole, float* __restrict__ real, unsigned* __restrict__ bits,
        unsigned long long* __restrict__ wide) {
    const int i = threadIdx.x;
    atomicAdd(&whole[0], i);
    atomicMax(&whole[1], i);
    atomicMin(&whole[2], -i);
    if (atomicCAS(&whole[3], 0, i + 1) == 0) atomicExch(&whole[4], 7);
    atomicAdd(real, 0.5f);
    atomicOr(&bits[0], 1u << i % 32);
    atomicAnd(&bits[1], ~(1u << i % 32));
    atomicAdd(wide, 1ull << 32);
}

// Threads, blocks and sizes in three dimensions.
extern "C" __global__ void __launch_bounds__(1024) places(int* __restrict__ out) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] = block * 10000 + thread;
}

// Static and dynamic shared memory as a block finds it, and leaves it.
extern "C" __global__ void __launch_bounds__(32) found_in_shared(float* __restrict__ out) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, moving);
    const int at = (blockIdx.x * 32 + threadIdx.x) * 2;
    out[at] = fixed[threadIdx.x];
    out[at + 1] = moving[threadIdx.x];
    fixed[threadIdx.x] = moving[threadIdx.x] = 1.f;
}

// Conversions and bit operations, one result each.
extern "C" __global__ void __launch_bounds__(1)
words(float x, int n, float* __restrict__ out, unsigned* __restrict__ bits) {
    out[0] = __half2float(__float2half(x));
    out[1] = __bfloat162float(__float2bfloat16(x));
    out[2] = __uint_as_float(to_tf32(x));
    out[3] = __fmaf_rn(x, x, -__fmul_rn(x, x));
    out[4] = __low2float(__floats2half2_rn(x, 1.f)) + __high2float(__floats2half2_rn(x, 1.f));
    out[5] = rsqrtf(4.f) + cospif(1.f) + sinpif(0.5f);
    bits[0] = __popc(n);
    bits[1] = __clz(n);
    bits[2] = __ffs(n);
    bits[3] = __brev(n);
    bits[4] = __byte_perm(0x33221100u, 0x77665544u, 0x7610u);
    bits[5] = __dp4a(0x01fe037f, 0x020304ff, 5);
    bits[6] = __umulhi(0x80000000u, n);
    bits[7] = __half_as_ushort(__float2half(x)) << 16 | __bfloat16_as_ushort(__float2bfloat16(x));
}
