// Hopper's products of a warpgroup, 128 threads (sm_90a): operands in shared memory, sums in registers.
//
//   wgmma_64x128x16(d, a, b)   d (64 x 128) += a (64 x 16) b^T (128 x 16); 16: of halves, 17: of bfloat16 (ARITHMETIC)
//   wgmma_begin()              before the first product that uses registers which were written otherwise
//   wgmma_commit()             closes the group of products that this warpgroup started
//   wgmma_wait<N>()            waits for all but the last N groups; their operands may be overwritten then
//   copies_before_wgmma()      what this thread copied to shared memory can be read by products after the next barrier
//
// a, b: rows of 128 bytes, chunk j (16 bytes) of row i at j ^ (i % 8), from an address that is a multiple of 1024 plus
// 32 for each earlier step of 16 columns. Thread t of the warpgroup has, in d[4 * j + 2 * y + x], row t / 32 * 16 + t %
// 32 / 4 + 8 * y and column 8 * j + t % 4 * 2 + x. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions",
// 128-byte swizzling.
#pragma once
#include "device.cuh"

#if defined(__CUDACC__)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Matrix descriptor: address / 16; leading offset (not used by this layout); 1024 bytes from 8 rows to the next 8; how
// chunks are swizzled: 128 bytes.
__device__ __forceinline__ unsigned long long wgmma_descriptor(const void* rows) {
    const unsigned long long address = (shared_address(rows) & 0x3ffff) >> 4;
    return address | 1ull << 16 | (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void copies_before_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define WGMMA_SUMS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]),  \
        "+f"(d[i + 7])

#define WGMMA_64x128x16(name, types)                                                                                 \
    __device__ __forceinline__ void name(float (&d)[64], const void* a, const void* b) {                             \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." types                                            \
                     " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"\
                     "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,"\
                     "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1, 1, 1, 0, 0;"            \
                     : WGMMA_SUMS_8(0), WGMMA_SUMS_8(8), WGMMA_SUMS_8(16), WGMMA_SUMS_8(24), WGMMA_SUMS_8(32),       \
                       WGMMA_SUMS_8(40), WGMMA_SUMS_8(48), WGMMA_SUMS_8(56)                                          \
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)));                                          \
    }
WGMMA_64x128x16(wgmma_f16_64x128x16, "f16.f16")
WGMMA_64x128x16(wgmma_bf16_64x128x16, "bf16.bf16")

#endif

#else  // the emulator: products happen at once, each thread its own results, out of the swizzled rows

inline void wgmma_begin() {}
inline void wgmma_commit() {}
template <int N> inline void wgmma_wait() {}
inline void copies_before_wgmma() {}

template <class T> inline float wgmma_element(const void* rows, int row, int k) {
    std::uintptr_t address = reinterpret_cast<std::uintptr_t>(rows) + row * 128 + k * sizeof(T);
    address ^= (address >> 7 & 7) << 4;
    return float(*reinterpret_cast<const T*>(address));
}

template <class T> inline void wgmma_emulated(float (&d)[64], const void* a, const void* b) {
    const int thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4;
    for (int y = 0; y < 2; y++) {
        float left[16];
        for (int k = 0; k < 16; k++) left[k] = wgmma_element<T>(a, row + 8 * y, k);
        for (int j = 0; j < 16; j++) {
            for (int x = 0; x < 2; x++) {
                double sum = d[4 * j + 2 * y + x];
                const int column = 8 * j + thread % 4 * 2 + x;
                for (int k = 0; k < 16; k++) sum += double(left[k]) * wgmma_element<T>(b, column, k);
                d[4 * j + 2 * y + x] = float(sum);
            }
        }
    }
}
inline void wgmma_f16_64x128x16(float (&d)[64], const void* a, const void* b) { wgmma_emulated<__half>(d, a, b); }
inline void wgmma_bf16_64x128x16(float (&d)[64], const void* a, const void* b) {
    wgmma_emulated<__nv_bfloat16>(d, a, b);
}

#endif
