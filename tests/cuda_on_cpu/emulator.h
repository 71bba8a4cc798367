// CUDA C++ for a C++ compiler: the words that kernels/cuda uses, each with what it does on a GPU. The threads of a
// block are fibers, which runtime.cpp schedules; what is a load or a store of the kernel stays inline here, so that
// sanitizers see it with the kernel's line. See README.md for what is modelled and what is not.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

// ---- words of the language

#ifdef EMULATOR_LIST_KERNELS  // build.py preprocesses the file once to find its kernels
#define __global__ __emulated_kernel__
#define __launch_bounds__(...) __emulated_bounds__(__VA_ARGS__)
#else
#define __global__ __attribute__((unused))
#define __launch_bounds__(...)
#endif
#define __device__ __attribute__((unused))
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// One section for all shared arrays of a file, so that it can be filled with NaN before each block.
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator_dynamic_shared())

#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- vectors

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define EMULATOR_VECTOR(type, name, bytes)                                                  \
    struct alignas(2 * (bytes)) name##2 { type x, y; };                                     \
    struct name##3 { type x, y, z; };                                                       \
    struct alignas(4 * (bytes) < 16 ? 4 * (bytes) : 16) name##4 { type x, y, z, w; };       \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }             \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMULATOR_VECTOR(signed char, char, 1)
EMULATOR_VECTOR(unsigned char, uchar, 1)
EMULATOR_VECTOR(short, short, 2)
EMULATOR_VECTOR(unsigned short, ushort, 2)
EMULATOR_VECTOR(int, int, 4)
EMULATOR_VECTOR(unsigned, uint, 4)
EMULATOR_VECTOR(float, float, 4)
EMULATOR_VECTOR(long long, longlong, 8)
EMULATOR_VECTOR(unsigned long long, ulonglong, 8)
EMULATOR_VECTOR(double, double, 8)
#undef EMULATOR_VECTOR

// ---- what runtime.cpp provides

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "background.h"

extern "C" {
[[noreturn]] void emulator_fail(const char* message, const char* file, int line);
void* emulator_dynamic_shared();
int emulator_barrier(int kind, int value, const char* file, int line);
void emulator_warp_sync(unsigned mask, const char* file, int line);
std::uint64_t emulator_shuffle(int kind, unsigned mask, std::uint64_t value, int by, int width, const char* file,
                               int line);
unsigned emulator_ballot(unsigned mask, bool value, const char* file, int line);
void emulator_check_copy(const void* to, const void* from, unsigned bytes, bool valid, const char* file, int line);
void emulator_copy(void* to, const void* from, unsigned bytes, bool valid);
void emulator_copy_commit();
void emulator_copy_wait(int groups);
void emulator_check_row(const void* row, int tiles, const char* file, int line);
int emulator_lane();
void emulator_ldmatrix(unsigned* result, const unsigned (&row)[4], int tiles, bool transposed, const char* file,
                       int line);
void emulator_mma(int kind, void* d, const unsigned* a, const unsigned* b, const char* file, int line);
}

// ---- barriers, votes, shuffles

inline void __syncthreads(EMULATOR_PLACE) { emulator_barrier(0, 0, file, line); }
inline int __syncthreads_count(int value, EMULATOR_PLACE) { return emulator_barrier(1, value != 0, file, line); }
inline int __syncthreads_or(int value, EMULATOR_PLACE) { return emulator_barrier(2, value != 0, file, line); }
inline int __syncthreads_and(int value, EMULATOR_PLACE) { return emulator_barrier(3, value != 0, file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_PLACE) { emulator_warp_sync(mask, file, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap(EMULATOR_PLACE) { emulator_fail("__trap()", file, line); }

inline unsigned __ballot_sync(unsigned mask, int value, EMULATOR_PLACE) {
    return emulator_ballot(mask, value != 0, file, line);
}
inline int __any_sync(unsigned mask, int value, EMULATOR_PLACE) {
    return emulator_ballot(mask, value != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int value, EMULATOR_PLACE) {
    return emulator_ballot(mask, value == 0, file, line) == 0;
}

template <class T>
inline T emulator_shuffled(int kind, unsigned mask, T value, int by, int width, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "shuffles move 2, 4 or 8 bytes");
    std::uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emulator_shuffle(kind, mask, bits, by, width, file, line);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_PLACE) {
    return emulator_shuffled(0, mask, value, lane, width, file, line);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_PLACE) {
    return emulator_shuffled(1, mask, value, int(by), width, file, line);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATOR_PLACE) {
    return emulator_shuffled(2, mask, value, int(by), width, file, line);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, EMULATOR_PLACE) {
    return emulator_shuffled(3, mask, value, by, width, file, line);
}

// ---- 16-bit floats

#ifdef __F16C__
typedef short emulator_v8hi __attribute__((vector_size(16)));
typedef float emulator_v4sf __attribute__((vector_size(16)));
inline float emulator_half_to_float(std::uint16_t bits) {
    return __builtin_ia32_vcvtph2ps(emulator_v8hi{short(bits), 0, 0, 0, 0, 0, 0, 0})[0];
}
inline std::uint16_t emulator_float_to_half(float x) {
    return std::uint16_t(__builtin_ia32_vcvtps2ph(emulator_v4sf{x, 0, 0, 0}, 0)[0]);
}
#else
inline float emulator_half_to_float(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x;
    if (exponent == 31) {
        std::uint32_t word = 0x7f800000u | std::uint32_t(mantissa) << 13;
        __builtin_memcpy(&x, &word, 4);
    } else {
        x = exponent ? std::ldexp(float(1024 + mantissa), exponent - 25) : std::ldexp(float(mantissa), -24);
    }
    return bits >> 15 ? -x : x;
}
inline std::uint16_t emulator_float_to_half(float x) {  // to nearest, ties to even
    std::uint32_t word;
    __builtin_memcpy(&word, &x, 4);
    const std::uint16_t sign = std::uint16_t(word >> 16 & 0x8000);
    const float size = std::fabs(x);
    if (x != x) return std::uint16_t(sign | 0x7e00);
    if (size >= 65520.f) return std::uint16_t(sign | 0x7c00);
    if (size < 0x1p-14f) return std::uint16_t(sign | std::uint16_t(std::nearbyint(size * 0x1p24f)));
    word &= 0x7fffffff;
    word += 0xfff + (word >> 13 & 1);
    return std::uint16_t(sign | ((word >> 13) - (112 << 10)));
}
#endif
inline float emulator_bfloat16_to_float(std::uint16_t bits) {
    const std::uint32_t word = std::uint32_t(bits) << 16;
    float x;
    __builtin_memcpy(&x, &word, 4);
    return x;
}
inline std::uint16_t emulator_float_to_bfloat16(float x) {  // to nearest, ties to even
    std::uint32_t word;
    __builtin_memcpy(&word, &x, 4);
    if (x != x) return 0x7fff;
    return std::uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

#define EMULATOR_FLOAT16(type, pair, to, from)                                                        \
    struct alignas(2) type {                                                                          \
        std::uint16_t bits;                                                                           \
        type() = default;                                                                             \
        type(float x) : bits(from(x)) {}                                                              \
        operator float() const { return to(bits); }                                                   \
    };                                                                                                \
    struct alignas(4) pair {                                                                          \
        type x, y;                                                                                    \
        pair() = default;                                                                             \
        pair(type a, type b) : x(a), y(b) {}                                                          \
    };                                                                                                \
    inline type __hadd(type a, type b) { return type(float(a) + float(b)); }                          \
    inline type __hsub(type a, type b) { return type(float(a) - float(b)); }                          \
    inline type __hmul(type a, type b) { return type(float(a) * float(b)); }                          \
    inline type __hfma(type a, type b, type c) { return type(float(double(a) * double(b) + double(c))); } \
    inline type __hneg(type a) { a.bits ^= 0x8000; return a; }                                        \
    inline pair __hadd2(pair a, pair b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }              \
    inline pair __hsub2(pair a, pair b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }              \
    inline pair __hmul2(pair a, pair b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }              \
    inline pair __hfma2(pair a, pair b, pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    inline float __low2float(pair a) { return a.x; }                                                  \
    inline float __high2float(pair a) { return a.y; }

EMULATOR_FLOAT16(__half, __half2, emulator_half_to_float, emulator_float_to_half)
EMULATOR_FLOAT16(__nv_bfloat16, __nv_bfloat162, emulator_bfloat16_to_float, emulator_float_to_bfloat16)
#undef EMULATOR_FLOAT16
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float2half2_rn(float x) { return {__half(x), __half(x)}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline std::uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(std::uint16_t bits) { __half x; x.bits = bits; return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {__nv_bfloat16(x), __nv_bfloat16(x)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {x.x, x.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) { return x.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) { return x.y; }
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(std::uint16_t bits) { __nv_bfloat16 x; x.bits = bits; return x; }

// ---- arithmetic

#define EMULATOR_MIN_MAX(type)                                       \
    inline type min(type a, type b) { return b < a ? b : a; }        \
    inline type max(type a, type b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline long long min(int a, long long b) { return min((long long)a, b); }
inline long long min(long long a, int b) { return min(a, (long long)b); }
inline long long max(int a, long long b) { return max((long long)a, b); }
inline long long max(long long a, int b) { return max(a, (long long)b); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float __fadd_rn(float a, float b) { return a + b; }  // the build switches contraction off
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float rsqrtf(float a) { return 1.f / sqrtf(a); }
inline float __saturatef(float a) { return a >= 0.f ? (a <= 1.f ? a : 1.f) : 0.f; }
inline float __cosf(float x) { return cosf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float cospif(float x) { return float(cos(M_PI * double(x))); }
inline float sinpif(float x) { return float(sin(M_PI * double(x))); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }

inline int __float_as_int(float x) { int bits; __builtin_memcpy(&bits, &x, 4); return bits; }
inline unsigned __float_as_uint(float x) { unsigned bits; __builtin_memcpy(&bits, &x, 4); return bits; }
inline float __int_as_float(int bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
inline float __uint_as_float(unsigned bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(std::uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(std::int64_t(a) * b >> 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const std::uint64_t bytes = std::uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = selector >> 4 * i & 15;
        unsigned byte = unsigned(bytes >> 8 * (nibble & 7)) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += int((signed char)(a >> 8 * i)) * int((signed char)(b >> 8 * i));
    return c;
}

// ---- memory

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcg(T* p, T value) { *p = value; }
template <class T> inline void __stcs(T* p, T value) { *p = value; }

// Atomic on one word; blocks run one after another, but sanitizers must see that these are atomic.
template <class T, class Next> inline T emulator_atomic(T* place, Next next) {
    T old, value;
    __atomic_load(place, &old, __ATOMIC_RELAXED);
    do value = next(old);
    while (!__atomic_compare_exchange(place, &old, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
#define EMULATOR_ATOMICS(type)                                                                                     \
    inline type atomicAdd(type* p, type v) { return emulator_atomic(p, [v](type o) -> type { return o + v; }); }   \
    inline type atomicExch(type* p, type v) { return emulator_atomic(p, [v](type) { return v; }); }                \
    inline type atomicMax(type* p, type v) { return emulator_atomic(p, [v](type o) { return o < v ? v : o; }); }   \
    inline type atomicMin(type* p, type v) { return emulator_atomic(p, [v](type o) { return v < o ? v : o; }); }   \
    inline type atomicCAS(type* p, type c, type v) {                                                               \
        return emulator_atomic(p, [=](type o) { return o == c ? v : o; });                                         \
    }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMICS(float)
EMULATOR_ATOMICS(double)
#undef EMULATOR_ATOMICS
inline int atomicOr(int* p, int v) { return emulator_atomic(p, [v](int o) { return o | v; }); }
inline int atomicAnd(int* p, int v) { return emulator_atomic(p, [v](int o) { return o & v; }); }
inline unsigned atomicOr(unsigned* p, unsigned v) { return emulator_atomic(p, [v](unsigned o) { return o | v; }); }
inline unsigned atomicAnd(unsigned* p, unsigned v) { return emulator_atomic(p, [v](unsigned o) { return o & v; }); }

// ---- the instructions of device.cuh

inline constexpr bool copies_are_asynchronous() { return true; }

template <class Word>
inline void emulator_copy_later(void* to, const void* from, bool valid, const char* file, int line) {
    emulator_check_copy(to, from, sizeof(Word), valid, file, line);
#ifdef __SANITIZE_ADDRESS__
    static_cast<volatile char*>(to)[0], static_cast<volatile char*>(to)[sizeof(Word) - 1];
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    if (valid) static_cast<const volatile char*>(from)[0], static_cast<const volatile char*>(from)[sizeof(Word) - 1];
#endif
    emulator_copy(to, from, sizeof(Word), valid);
}
inline void cp_async_16(void* to, const void* from, bool valid, EMULATOR_PLACE) {
    emulator_copy_later<uint4>(to, from, valid, file, line);
}
inline void cp_async_4(void* to, const void* from, bool valid, EMULATOR_PLACE) {
    emulator_copy_later<unsigned>(to, from, valid, file, line);
}
inline void cp_async_commit() { emulator_copy_commit(); }
template <int N> inline void cp_async_wait() { emulator_copy_wait(N); }
inline void cp_async_wait_all() { emulator_copy_commit(), emulator_copy_wait(0); }

template <int TILES>
inline void emulator_ldmatrix_of(unsigned (&r)[TILES], const void* row, bool transposed, const char* file, int line) {
    unsigned words[4] = {};
    if (emulator_lane() < 8 * TILES) {  // the other lanes' addresses are ignored
        emulator_check_row(row, TILES, file, line);
        __builtin_memcpy(words, row, 16);
    }
    emulator_ldmatrix(r, words, TILES, transposed, file, line);
}
inline void ldmatrix_x1(unsigned (&r)[1], const void* row, EMULATOR_PLACE) {
    emulator_ldmatrix_of(r, row, false, file, line);
}
inline void ldmatrix_x2(unsigned (&r)[2], const void* row, EMULATOR_PLACE) {
    emulator_ldmatrix_of(r, row, false, file, line);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* row, EMULATOR_PLACE) {
    emulator_ldmatrix_of(r, row, false, file, line);
}
inline void ldmatrix_x1_trans(unsigned (&r)[1], const void* row, EMULATOR_PLACE) {
    emulator_ldmatrix_of(r, row, true, file, line);
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row, EMULATOR_PLACE) {
    emulator_ldmatrix_of(r, row, true, file, line);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, EMULATOR_PLACE) {
    emulator_ldmatrix_of(r, row, true, file, line);
}

// kind: 0 f16, 1 bf16, 2 tf32, 3 s8, 4 b1 with and, 5 b1 with xor
#define EMULATOR_MMA(name, kind, type)                                                                             \
    inline void name(type(&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_PLACE) {                \
        emulator_mma(kind, d, a, b, file, line);                                                                   \
    }
EMULATOR_MMA(mma_f16_16816, 0, float)
EMULATOR_MMA(mma_bf16_16816, 1, float)
EMULATOR_MMA(mma_tf32_1688, 2, float)
EMULATOR_MMA(mma_s8_16832, 3, int)
inline void mma_s8_8816(int (&d)[2], unsigned a, unsigned b, EMULATOR_PLACE) {  // the upper left of m16n8k32
    int all[4] = {d[0], d[1], 0, 0};
    const unsigned rows[4] = {a, 0, 0, 0}, columns[2] = {b, 0};
    emulator_mma(3, all, rows, columns, file, line);
    d[0] = all[0], d[1] = all[1];
}
EMULATOR_MMA(mma_b1_and_168256, 4, int)
EMULATOR_MMA(mma_b1_xor_168256, 5, int)
#undef EMULATOR_MMA

inline unsigned to_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinity and NaN stay
    return (bits + 0x1000u) & 0xffffe000u;
}
