// Neighbouring floats, 16 bytes at a time where their number allows that.
#pragma once
#include "device.cuh"

// COUNT floats from shared memory; a multiple of four lies at a multiple of 16 bytes.
template <int COUNT>
__device__ __forceinline__ void load_floats(float (&to)[COUNT], const float* from) {
    if constexpr (COUNT % 4 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + i);
            to[i] = four.x;
            to[i + 1] = four.y;
            to[i + 2] = four.z;
            to[i + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) to[i] = from[i];
    }
}

// One or four floats from global memory, or zeros.
template <int COUNT>
__device__ __forceinline__ void load_or_zero(float (&to)[COUNT], const float* from, bool inside) {
    static_assert(COUNT == 1 || COUNT == 4, "one access");
    if constexpr (COUNT == 4) {
        const float4 four = inside ? *reinterpret_cast<const float4*>(from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
    } else {
        to[0] = inside ? *from : 0.0f;
    }
}
