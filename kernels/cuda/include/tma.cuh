// Hopper's copies in bulk by the tensor memory accelerator, the mbarriers that they arrive at, and registers handed
// from warpgroup to warpgroup (sm_90a). One thread starts a copy; nobody computes an address.
//
//   TensorMap                       128 bytes: a kernel's parameter, const __grid_constant__, made by the host
//                                   (convbench/cuda/tensor_map.py); rows of 128 bytes, 128-byte swizzle
//   tma_prefetch(map)               brings the map itself near
//   tma_load_im2col(to, map, barrier, c, w, h, n, offset_w, offset_h)
//                                   pixels of the map's bounding box from (w, h, n) on, in its steps, each read
//                                   offset_w, offset_h (0 to 255) further, 128 bytes of channels from c; zeros where
//                                   there is nothing
//   tma_load_3d(to, map, barrier, x, y, z)   a box of a tiled map of three axes; zeros outside
//   mbarrier_init(barrier, arrivals)         arrivals that a phase has; phases are counted 0, 1, 0, 1
//   mbarriers_visible()             what this thread initialised is there for copies; __syncthreads must follow
//   mbarrier_arrive(barrier)        mbarrier_arrive(barrier, bytes): and expects as many bytes of copies in this phase
//   mbarrier_wait(barrier, parity)  until the phase with this parity has ended: all arrived, all bytes landed
//   registers_fewer<N>(), registers_more<N>()   of each thread of the calling warpgroup, from and to the block's pool
//
// Chunk j (16 bytes) of row i, counted from a multiple of 1024 bytes, lies at j ^ (i % 8): what wgmma.cuh reads. `to`
// is a multiple of 128. PTX ISA, "cp.async.bulk.tensor", "Im2col mode", "mbarrier", "setmaxnreg".
#pragma once
#include "device.cuh"

typedef unsigned long long Mbarrier;  // in shared memory

#if defined(__CUDACC__)

struct __align__(128) TensorMap {
    unsigned long long words[16];
};

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarriers_visible() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
    unsigned ended;
    do {  // try_wait lets the thread sleep for a while
        asm volatile("{.reg .pred ended;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, ended;}"
                     : "=r"(ended)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!ended);
}

__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void tma_load_im2col(void* to, const TensorMap& map, Mbarrier* barrier, int c, int w, int h,
                                                int n, int offset_w, int offset_h) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"((short)offset_w),
                 "h"((short)offset_h)
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d(void* to, const TensorMap& map, Mbarrier* barrier, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int N>
__device__ __forceinline__ void registers_fewer() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif

#else  // the emulator: copies land as late, or as early, as they may (tests/cuda_on_cpu/bulk.h)

using TensorMap = EmulatorTensorMap;

inline void mbarrier_init(Mbarrier* barrier, int arrivals, EMULATOR_PLACE) {
    emulator_mbarrier_init(barrier, arrivals, file, line);
}
inline void mbarriers_visible() {}
inline void mbarrier_arrive(Mbarrier* barrier, EMULATOR_PLACE) { emulator_mbarrier_arrive(barrier, 0, file, line); }
inline void mbarrier_arrive(Mbarrier* barrier, int bytes, EMULATOR_PLACE) {
    emulator_mbarrier_arrive(barrier, bytes, file, line);
}
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity, EMULATOR_PLACE) {
    emulator_mbarrier_wait(barrier, parity, file, line);
}
inline void tma_prefetch(const TensorMap&) {}

inline void tma_emulated(const TensorMap& map, const EmulatorBulk& what) {
#ifdef __SANITIZE_ADDRESS__
    int rows = map.box[1];
    if (what.mode == EMULATOR_TILED) rows *= map.box[2] * map.box[3];
    static_cast<volatile char*>(what.to)[0], static_cast<volatile char*>(what.to)[128 * rows - 1];
#endif
    emulator_bulk(&map, &what);
}
inline void tma_load_im2col(void* to, const TensorMap& map, Mbarrier* barrier, int c, int w, int h, int n, int offset_w,
                            int offset_h, EMULATOR_PLACE) {
    tma_emulated(map, {to, barrier, EMULATOR_IM2COL, {c, w, h, n}, {offset_w, offset_h}, file, line});
}
inline void tma_load_3d(void* to, const TensorMap& map, Mbarrier* barrier, int x, int y, int z, EMULATOR_PLACE) {
    tma_emulated(map, {to, barrier, EMULATOR_TILED, {x, y, z, 0}, {0, 0}, file, line});
}
template <int N> inline void registers_fewer() {}
template <int N> inline void registers_more() {}

#endif
