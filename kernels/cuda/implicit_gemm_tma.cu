// Implicit GEMM fed by Hopper's tensor memory accelerator (sm_90a), forward, and backward data of stride 1:
// implicit_gemm_tma_{fp16,bf16}_cuda.
//
// As implicit_gemm_mma.cu with WGMMA (Chetlur et al. 2014, arXiv 1410.0759, section 3.2), but no thread gathers: a TMA
// copy in im2col mode brings one tap of BLOCK_M neighbouring results, 64 channels of each, in one instruction, with
// zeros for padding, for channels beyond the last and for rows beyond the last image. Source: nhwc, channels a multiple
// of eight. Filter: [row][tap][depth], which is the nhwc filter itself forward; backward data, implicit_gemm_pack.cu
// makes it. It is copied by a tiled map of (depth, taps, rows) rather than in plain bulk: that costs a second map, and
// saves packing the filter into swizzled tiles, forward on every call. One group; a step of the sum never crosses taps,
// so that of channels that fill 64 badly the rest is multiplied by zero.
//
// ARITHMETIC 16: half, 17: bfloat16; float sums, results in the same type. Three warpgroups: one thread of the first
// starts the copies, STAGES steps ahead, and hands its warpgroup's registers on; each of the others multiplies half of
// the tile's rows, 64 by BLOCK_N columns with one wgmma for 16 products of the sum. Mbarriers: `full` of a stage
// ends a phase when its bytes have landed, `empty` when the eight warps have done its products. A warp frees a stage
// when the products of the following one are under way. Warp specialisation as in NVIDIA's CUTLASS 3; here a block has
// one tile.
//
// Results: lanes of a quad exchange theirs, so that each stores 16 bytes, eight neighbouring channels. Channels that
// are no multiple of eight are stored in pairs, or one by one.
//
// Launch: grid (tiles of rows * tiles_n, parts) with tiles_n innermost, 384 threads, 1024 + STAGES * ((BLOCK_M +
// BLOCK_N) * 128 + 16) bytes of shared memory: tiles begin at multiples of 1024. parts > 1: floats to `parts` + part *
// out_elements, to be added by another kernel. Maps: convbench/algorithms/implicit_gemm_tma_cuda.py.
//
// 128 x 256 x 64: 1024 clocks at the full rate of the tensor cores, in which shared memory gives 80 KB of 128 and L2 48
// KB, the bound. 256 x 128: the same from L2, 96 KB; 128 x 128: 512 clocks and 32 KB; 256 x 64, for 64 channels: 512
// clocks, 40 KB, and 64 KB of 64. 128 sums a thread, 64 in the last two; one block an SM, up to 192 KB in flight.
//
// Test: pytest tests/cuda_on_cpu -k tma
#include "device.cuh"
#include "digits.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#ifndef ARITHMETIC
#define ARITHMETIC 16
#endif
#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N 128
#endif
#ifndef STAGES
#define STAGES 4
#endif

#include "implicit_gemm_mma.cuh"

#define THREADS 384
#define ROW_BYTES 128
#define ROW_ELEMENTS (ROW_BYTES / (int)sizeof(Element))
#define STAGE_BYTES ((BLOCK_M + BLOCK_N) * ROW_BYTES)
#define CONSUMERS 8            // warps
#define WARPGROUP_ROWS (BLOCK_M / 2)
#define PIECES (BLOCK_M / 128)  // of 64 rows, which one wgmma multiplies

#define JOINED(a, b, c) a##b##c
#define NAME_OF(type, columns) JOINED(wgmma_##type##_64x, columns, x16)
#if ARITHMETIC == 16
#define WGMMA_PRODUCT NAME_OF(f16, BLOCK_N)
#else
#define WGMMA_PRODUCT NAME_OF(bf16, BLOCK_N)
#endif

// Which stage is next, and the parity of its phase.
struct Place {
    int stage;
    unsigned parity;
};

__device__ __forceinline__ void advance(Place& place) {
    if (++place.stage == STAGES) {
        place.stage = 0;
        place.parity ^= 1;
    }
}

// The product: results `rows` x `columns`; row (image, i, j) has its first tap at i * step + first of the image that is
// read, and tap t stands tap_step * t further, where t counts from the other end if the filter is turned round
// (backward data): TMA knows no negative offsets. chunks: of 64 channels. each: steps of the sum in one part.
struct Walk {
    int rows, columns, places_h, places_w, first_h, first_w, step_h, step_w, taps_h, taps_w, tap_step_h, tap_step_w;
    int turned, chunks, each, tiles_n;
};

// One thread: all copies of a block.
__device__ __forceinline__ void produce(const TensorMap& source, const TensorMap& filter, unsigned char* stages,
                                        Mbarrier* full, Mbarrier* empty, const Walk& f, int m0, int n0, int step0,
                                        int step1) {
    const Digits pixel = digits_of(m0, f.places_w, f.places_h);
    const int w = pixel.low * f.step_w + f.first_w, h = pixel.middle * f.step_h + f.first_h;
    Digits at = digits_of(step0, f.chunks, f.taps_w);  // (r, s, 64 channels)
    Place place = {0, 0};
#pragma unroll 1
    for (int i = step0; i < step1; ++i) {
        unsigned char* const to = stages + place.stage * STAGE_BYTES;
        mbarrier_wait(empty + place.stage, place.parity ^ 1);  // the first time round there is nothing to wait for
        mbarrier_arrive(full + place.stage, STAGE_BYTES);
        const int tap_w = f.turned ? f.taps_w - 1 - at.middle : at.middle;
        const int tap_h = f.turned ? f.taps_h - 1 - at.high : at.high;
        tma_load_im2col(to, source, full + place.stage, at.low * ROW_ELEMENTS, w, h, pixel.high, tap_w * f.tap_step_w,
                        tap_h * f.tap_step_h);
        tma_load_3d(to + BLOCK_M * ROW_BYTES, filter, full + place.stage, at.low * ROW_ELEMENTS,
                    at.high * f.taps_w + at.middle, n0);
        advance(place);
        advance(at, {1, 0, 0}, f.chunks, f.taps_w);
    }
}

// A warpgroup: its rows of the tile at `stages`, summed over the steps.
__device__ __forceinline__ void consume(float (&sums)[PIECES][BLOCK_N / 2], const unsigned char* stages, Mbarrier* full,
                                        Mbarrier* empty, int row, int lane, int steps) {
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
#pragma unroll
        for (int i = 0; i < BLOCK_N / 2; ++i) sums[piece][i] = 0.0f;
    }
    Place place = {0, 0};
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
        const unsigned char* const rows_m = stages + place.stage * STAGE_BYTES + row * ROW_BYTES;
        const unsigned char* const rows_n = stages + place.stage * STAGE_BYTES + BLOCK_M * ROW_BYTES;
        mbarrier_wait(full + place.stage, place.parity);
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < ROW_BYTES / 32; ++j) {
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                WGMMA_PRODUCT(sums[piece], rows_m + piece * 64 * ROW_BYTES + j * 32, rows_n + j * 32);
            }
        }
        wgmma_commit();
        wgmma_wait<1>();  // the products of the step before are done
        __syncwarp();
        if (i > 0 && lane == 0) mbarrier_arrive(empty + before);
        before = place.stage;
        advance(place);
    }
    wgmma_wait<0>();
}

// The word of lane `lane` of a quad for its j-th neighbour becomes word j of neighbour `lane`.
__device__ __forceinline__ void transpose_quad(unsigned (&words)[4], int lane) {
#pragma unroll
    for (int distance = 1; distance <= 2; ++distance) {
        const bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int low = distance == 1 ? 2 * i : i, high = low + distance;
            const unsigned other = __shfl_xor_sync(0xffffffffu, upper ? words[low] : words[high], distance);
            if (upper) {
                words[low] = other;
            } else {
                words[high] = other;
            }
        }
    }
}

__device__ __forceinline__ unsigned packed(float low, float high) {
    union {
        unsigned word;
        Element each[2];
    } both;
    both.each[0] = rounded(low, both.each);
    both.each[1] = rounded(high, both.each);
    return both.word;
}

// 16 bytes a lane, columns in multiples of eight. to: the row's first column of the tile; room: columns from there on.
__device__ __forceinline__ void store_whole(Element* to, const float (&sums)[BLOCK_N / 2], int upper, int lane,
                                            int room) {
#pragma unroll
    for (int i = 0; i < BLOCK_N / 32; ++i) {
        unsigned words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            words[j] = packed(sums[16 * i + 4 * j + 2 * upper], sums[16 * i + 4 * j + 2 * upper + 1]);
        }
        transpose_quad(words, lane);
        const int column = 32 * i + 8 * (lane % 4);
        if (column < room) *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

// Two columns at a time where there is an even number of them, else one.
template <class T>
__device__ __forceinline__ void store_pairs(T* to, const float (&sums)[BLOCK_N / 2], int upper, int lane, int room,
                                            bool even) {
#pragma unroll
    for (int j = 0; j < BLOCK_N / 8; ++j) {
        const int column = 8 * j + lane % 4 * 2;
        const float values[2] = {sums[4 * j + 2 * upper], sums[4 * j + 2 * upper + 1]};
        store(to + column, values, room - column, 1, even);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
implicit_gemm_tma(const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap filter,
                  Element* __restrict__ out, float* __restrict__ parts, Walk f, long long out_elements) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned char* const stages = dynamic + (1024 - reinterpret_cast<size_t>(dynamic) % 1024) % 1024;
    Mbarrier* const full = reinterpret_cast<Mbarrier*>(stages + STAGES * STAGE_BYTES);
    Mbarrier* const empty = full + STAGES;
    const int thread = threadIdx.x, lane = thread % 32;
    if (thread == 0) {
        tma_prefetch(source);
        tma_prefetch(filter);
        for (int i = 0; i < STAGES; ++i) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, CONSUMERS);
        }
        mbarriers_visible();
    }
    __syncthreads();

    const int m0 = (int)blockIdx.x / f.tiles_n * BLOCK_M, n0 = (int)blockIdx.x % f.tiles_n * BLOCK_N;
    const int step0 = blockIdx.y * f.each, step1 = min(step0 + f.each, f.taps_h * f.taps_w * f.chunks);
    if (thread < 128) {
        registers_fewer<24>();
        if (thread == 0) produce(source, filter, stages, full, empty, f, m0, n0, step0, step1);
        return;
    }
    registers_more<240>();
    float sums[PIECES][BLOCK_N / 2];
    const int group_row = (thread / 128 - 1) * WARPGROUP_ROWS;
    consume(sums, stages, full, empty, group_row, lane, step1 - step0);

    const int first = m0 + group_row + thread % 128 / 32 * 16 + lane / 4, room = f.columns - n0;
#pragma unroll
    for (int i = 0; i < 2 * PIECES; ++i) {
        const int upper = i % 2, row = first + i / 2 * 64 + 8 * upper;
        const int there = row < f.rows ? room : 0;  // lanes exchange results of rows that do not exist, too
        const long long place = (long long)row * f.columns + n0;
        if (gridDim.y > 1) {
            store_pairs(parts + blockIdx.y * out_elements + place, sums[i / 2], upper, lane, there, f.columns % 2 == 0);
        } else if (f.columns % 8 == 0) {
            store_whole(out + place, sums[i / 2], upper, lane, there);
        } else {
            store_pairs(out + place, sums[i / 2], upper, lane, there, f.columns % 2 == 0);
        }
    }
}
