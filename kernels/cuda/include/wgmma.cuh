// Hopper's products of a warpgroup, 128 threads (sm_90a): operands in shared memory, sums in registers.
//
//   wgmma_f16_64x128x16(d, a, b)   d (64 x 128) += a (64 x 16) b^T (128 x 16); also 64x64x16, 64x256x16, and bf16
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

#define WGMMA_64x64x16(name, types)                                                                                  \
    __device__ __forceinline__ void name(float (&d)[32], const void* a, const void* b) {                             \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." types                                             \
                     " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"\
                     "%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"                                            \
                     : WGMMA_SUMS_8(0), WGMMA_SUMS_8(8), WGMMA_SUMS_8(16), WGMMA_SUMS_8(24)                          \
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)));                                          \
    }
WGMMA_64x64x16(wgmma_f16_64x64x16, "f16.f16")
WGMMA_64x64x16(wgmma_bf16_64x64x16, "bf16.bf16")

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

#define WGMMA_64x256x16(name, types)                                                                                 \
    __device__ __forceinline__ void name(float (&d)[128], const void* a, const void* b) {                            \
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." types                                            \
                     " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"\
                     "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,"\
                     "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,"\
                     "%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,"\
                     "%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,"  \
                     "%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, %128, %129, 1, 1, 1, 0, 0;"           \
                     : WGMMA_SUMS_8(0), WGMMA_SUMS_8(8), WGMMA_SUMS_8(16), WGMMA_SUMS_8(24), WGMMA_SUMS_8(32),       \
                       WGMMA_SUMS_8(40), WGMMA_SUMS_8(48), WGMMA_SUMS_8(56), WGMMA_SUMS_8(64), WGMMA_SUMS_8(72),     \
                       WGMMA_SUMS_8(80), WGMMA_SUMS_8(88), WGMMA_SUMS_8(96), WGMMA_SUMS_8(104), WGMMA_SUMS_8(112),   \
                       WGMMA_SUMS_8(120)                                                                             \
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)));                                          \
    }
WGMMA_64x256x16(wgmma_f16_64x256x16, "f16.f16")
WGMMA_64x256x16(wgmma_bf16_64x256x16, "bf16.bf16")

#endif

#else  // the emulator: each thread its own results, out of the swizzled rows, when they are waited for or before

inline void wgmma_begin() {}
inline void wgmma_commit() { emulator_later_commit(); }
template <int N> inline void wgmma_wait() { emulator_later_wait(N); }
inline void copies_before_wgmma() {}

template <class T> inline void wgmma_row(float (&values)[16], const void* rows, int row) {
    for (int chunk = 0; chunk < 2; chunk++) {
        std::uintptr_t address = reinterpret_cast<std::uintptr_t>(rows) + row * 128 + chunk * 16;
        address ^= (address >> 7 & 7) << 4;
        for (int i = 0; i < 8; i++) values[8 * chunk + i] = float(reinterpret_cast<const T*>(address)[i]);
    }
}

template <class T, int N> inline void wgmma_emulated(void* sums, const void* a, const void* b) {
    float* const d = static_cast<float*>(sums);
    const int thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4;
    float left[2][16], right[16];
    for (int y = 0; y < 2; y++) wgmma_row<T>(left[y], a, row + 8 * y);
    for (int j = 0; j < N / 8; j++) {
        for (int x = 0; x < 2; x++) {
            wgmma_row<T>(right, b, 8 * j + thread % 4 * 2 + x);
            for (int y = 0; y < 2; y++) {
                double sum = d[4 * j + 2 * y + x];
                for (int k = 0; k < 16; k++) sum += double(left[y][k]) * right[k];
                d[4 * j + 2 * y + x] = float(sum);
            }
        }
    }
}

inline void wgmma_check(const void* rows, const char* file, int line) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(rows);
    if (address % 32 || address % 1024 >= 128) emulator_fail("wgmma of rows from no multiple of 1024", file, line);
}

#define WGMMA_EMULATED(name, type, columns)                                                    \
    inline void name(float (&d)[columns / 2], const void* a, const void* b, EMULATOR_PLACE) {  \
        wgmma_check(a, file, line);                                                            \
        wgmma_check(b, file, line);                                                            \
        emulator_later(wgmma_emulated<type, columns>, d, a, b);                                \
    }
WGMMA_EMULATED(wgmma_f16_64x64x16, __half, 64)
WGMMA_EMULATED(wgmma_bf16_64x64x16, __nv_bfloat16, 64)
WGMMA_EMULATED(wgmma_f16_64x128x16, __half, 128)
WGMMA_EMULATED(wgmma_bf16_64x128x16, __nv_bfloat16, 128)
WGMMA_EMULATED(wgmma_f16_64x256x16, __half, 256)
WGMMA_EMULATED(wgmma_bf16_64x256x16, __nv_bfloat16, 256)

#endif
