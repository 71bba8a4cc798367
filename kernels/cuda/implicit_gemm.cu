// Implicit GEMM in fp32 without tensor cores: implicit_gemm_cuda, three passes, both layouts, every shape.
//
// Convolution as a product of matrices whose larger operand is never stored: its elements are fetched from the image
// while the tile is loaded (Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning", arXiv 1410.0759,
// section 3.2). include/implicit_gemm.cuh says which matrix is which in each pass.
//
// A block computes BLOCK_M x BLOCK_N results, a warp 32 x 64, a thread 8 x 8. Tiles of BLOCK_K products go through
// shared memory, [k][row] for both operands, in STAGES stages that cp.async fills in the background, with zeros for
// what lies outside the image. Fragments are read one step ahead of the products that need them. LOADS says how
// elements of the gathered operand are found:
//
//   TAPS    Forward and backward data, channels of a group in multiples of 16: a tile lies within one tap. A thread
//           fetches two columns of the sum, 8 apart, for several rows. 4-byte copies, one addition for two of them.
//   DIGITS  Anything. A thread fetches one column. 4-byte copies, one addition each; backward weights: as QUADS.
//   QUADS   Backward weights, nhwc, channels of a group in multiples of 4: 16-byte copies. A thread's column is a
//           pixel, and each of its rows a tap and channel, looked up in shared memory: two additions and comparisons.
//
// A column's digits, (r, s, c) or (image, p, q), are counted on with additions. Forward and backward data: which rows
// are inside the image is found out when a thread's column enters another tap. Registers are for sums and fragments:
// what is needed once a tap or after the sum waits in shared memory (rows' places, struct Product), and rows' addresses
// are 32-bit distances from the block's first image.
//
// Neighbouring threads copy neighbouring elements: along channels in nhwc, along pixels in nchw. Rows of shared memory
// are BLOCK + 4 floats long: 4-byte copies of 8 columns x 4 rows hit 32 banks, and so do the 8 threads that write 16
// bytes each. Reads: 4 different float4 of one and 8 neighbouring ones of the other operand a warp.
//
// dense: forward and backward data: the filter as implicit_gemm_pack.cu writes it, [group][tap, channel][row_length];
// backward weights: dy. parts > 1 (grid.y): the sum is cut into parts, each written to `out` + part * out_elements;
// another kernel adds them in order. 32-bit numbers: rows and columns of the product, and what one image has.
//
// Launch: grid (tiles_m * tiles_n * groups * phases, parts), blocks of BLOCK_M * BLOCK_N / 64 threads, STAGES *
// STAGE_FLOATS floats of shared memory, and 3 KB that are declared here. Tiles along the filters are neighbours, so
// that what they share of the image comes from memory once and then from L2. Of 132 KB of registers two blocks of 128 x
// 128 take 128 KB: 16 warps an SM. Bound: issue slots. TAPS, a warp and 16 columns: 1024 FFMA, 64 LDS.128 and about 80
// for copies, addresses and the loop, so 87 % of an H200's 67 TFLOP/s at most. L2 to SM: 8 bytes a clock, a third of
// what it gives. Before sm_80 copies are loads and stores (device.cuh), which overlap with other warps only.
//
// Test: pytest tests/cuda_on_cpu -k implicit_gemm
#include "conv.cuh"
#include "device.cuh"
#include "implicit_gemm.cuh"

#define DIGITS 0
#define TAPS 1
#define QUADS 2

#ifndef BLOCK_M
#define BLOCK_M 128
#endif
#ifndef BLOCK_N
#define BLOCK_N 128
#endif
#ifndef LOADS
#define LOADS 1
#endif
#ifndef WEIGHTS  // 1: backward weights
#define WEIGHTS 0
#endif
#ifndef STAGES
#define STAGES 3
#endif

#define BLOCK_K (LOADS == DIGITS ? 8 : 16)
#define THREADS (BLOCK_M * BLOCK_N / 64)
#define BLOCKS_PER_SM (THREADS == 256 ? 2 : THREADS == 128 ? 3 : 5)  // registers: 128, 168, 200
#define PITCH_M (BLOCK_M + 4)
#define PITCH_N (BLOCK_N + 4)
#define STAGE_FLOATS (BLOCK_K * (PITCH_M + PITCH_N))

// How the threads share the copies: LANES of them along the rows of one column.
#define GATHERED_ROWS (WEIGHTS ? BLOCK_N : BLOCK_M)
#define GATHERED_PITCH (WEIGHTS ? PITCH_N : PITCH_M)
#define GATHERED_LANES (THREADS / (LOADS == QUADS ? 16 : 8))
#define GATHERED_WIDTH (LOADS == QUADS ? 4 : 1)
#define GATHERED_STEP (GATHERED_LANES * GATHERED_WIDTH)
#define GATHERED_COPIES (GATHERED_ROWS / GATHERED_STEP)
#define DENSE_ROWS (WEIGHTS ? BLOCK_M : BLOCK_N)
#define DENSE_PITCH (WEIGHTS ? PITCH_M : PITCH_N)
#define DENSE_LANES (THREADS / BLOCK_K)
#define DENSE_WIDTH (WEIGHTS && LOADS == DIGITS ? 1 : 4)
#define DENSE_STEP (DENSE_LANES * DENSE_WIDTH)
#define DENSE_COPIES (DENSE_ROWS / DENSE_STEP)
#define DENSE_BIT 8  // of what is known of the rows that a thread copies

#if WEIGHTS && LOADS == TAPS || !WEIGHTS && LOADS == QUADS
#error "TAPS is for forward and backward data, QUADS for backward weights"
#endif

template <int WIDTH>
__device__ __forceinline__ void copy(float* to, const float* from, bool valid) {
    if (WIDTH == 4) {
        cp_async_16(to, from, valid);
    } else {
        cp_async_4(to, from, valid);
    }
}

// Eight of a column's rows: four neighbours, and four more `apart` floats further.
__device__ __forceinline__ void read_rows(float (&to)[8], const float* from, int apart) {
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + apart);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
implicit_gemm(const float* __restrict__ source, const float* __restrict__ dense, float* __restrict__ out, Conv f,
              int pass, int nhwc, int tiles_m, int tiles_n, int row_length, long long out_elements) {
    DYNAMIC_SHARED(float, shared);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const bool channels_last = LOADS == QUADS || nhwc;

    // ---- which tile of which product; the gathered operand's strides
    __shared__ Product product;
#if WEIGHTS
    if (thread == 0) find_weights_product(product, f, tiles_m, tiles_n, BLOCK_M, BLOCK_N, BLOCK_K);
    __syncthreads();
    const int source_channels = f.c;
#else
    if (thread == 0) {
        const int depth = (pass == FORWARD ? f.c : f.k) / f.groups;
        find_product(product, f, pass, tiles_m, tiles_n, depth, BLOCK_M, BLOCK_N, BLOCK_K);
    }
    __syncthreads();
    if (product.m0 >= product.size_m) return;  // phases differ in size
    const int source_channels = pass == FORWARD ? f.c : f.k;
#endif
    const int tiles = (product.length + BLOCK_K - 1) / BLOCK_K;
    const int tile0 = (int)((long long)tiles * blockIdx.y / gridDim.y);
    const int tile1 = (int)((long long)tiles * (blockIdx.y + 1) / gridDim.y);
    const int plane = product.h.size * product.w.size;
    const int stride_c = channels_last ? 1 : plane, stride_pixel = channels_last ? source_channels : 1;

    // ---- what is known of each row of the gathered operand
#if WEIGHTS
    __shared__ int4 places[BLOCK_N];  // of its tap: (u, v), and the element there, from a pixel's
#pragma unroll 1
    for (int i = thread; i < BLOCK_N; i += THREADS) {
        int r, s, c;  // dw is [k][r][s][c] or [k][c][r][s]: a column of the product is an element of it
        const int column = product.n0 + i, cg = f.c / f.groups;
        if (nhwc) {
            const Digits d = digits_of(column, cg, f.s);
            r = d.high, s = d.middle, c = d.low;
        } else {
            const Digits d = digits_of(column, f.s, f.r);
            c = d.high, r = d.middle, s = d.low;
        }
        const int u = r * f.dilation_h, v = s * f.dilation_w;
        places[i] = make_int4(column < product.size_n ? u : OUTSIDE, v, (u * f.w + v) * stride_pixel + c * stride_c, 0);
    }
    const float* const base = source + (long long)product.group * (f.c / f.groups) * stride_c;
#else
    __shared__ const float* bases[2];       // where the image of the block's first row begins, and 8 channels further
    __shared__ int2 strides;                // stride_c, stride_pixel
    __shared__ long long results[BLOCK_M];  // see Row
    __shared__ int2 corners[BLOCK_M];       // (u, v) of Row
    __shared__ int firsts[BLOCK_M];         // the element there, from that image
    if (thread == 0) strides = make_int2(stride_c, stride_pixel);
    const int image0 = product.m0 / (product.h.places * product.w.places);
#pragma unroll 1
    for (int i = thread; i < BLOCK_M; i += THREADS) {
        const Row row = row_of(product, product.m0 + i, nhwc);
        results[i] = row.result;
        corners[i] = make_int2(row.u, row.v);
        firsts[i] = row.result < 0 ? 0 : (row.image - image0) * plane * source_channels
                                         + (row.u * product.w.size + row.v) * stride_pixel;
    }
    if (thread < 2) {
        bases[thread] = source + (long long)image0 * plane * source_channels
                        + ((long long)product.group * product.depth + 8 * thread) * stride_c;
    }
#endif
    __syncthreads();

    // ---- the gathered operand: this thread's rows and its column of the sum
    const bool along_rows = WEIGHTS ? channels_last : !channels_last;  // whether rows are neighbours in memory
    const int gathered_k = along_rows ? thread / GATHERED_LANES : thread % 8;
    const int gathered_row = along_rows ? thread % GATHERED_LANES * GATHERED_WIDTH : thread / 8;
    Digits column = digits_of(tile0 * BLOCK_K + gathered_k, product.depth, product.middle);
    unsigned there = 0;  // bit i: row i lies inside the image for this tap; DENSE_BIT + i: row i of `dense` exists
#if !WEIGHTS
    int first[GATHERED_COPIES];
#pragma unroll
    for (int i = 0; i < GATHERED_COPIES; ++i) first[i] = firsts[gathered_row + i * GATHERED_STEP];
    int offset = 0;  // of the column from a row's first element
    auto enter_tap = [&] {
        const int u = column.high * product.h.tap_step, v = column.middle * product.w.tap_step;
        const bool within = column.high < product.h.taps;
        offset = (u * product.w.size + v) * strides.y + column.low * strides.x;
        there &= (unsigned)-(1 << DENSE_BIT);
#pragma unroll
        for (int i = 0; i < GATHERED_COPIES; ++i) {
            const int2 corner = corners[gathered_row + i * GATHERED_STEP];
            there |= (unsigned)(within & lies_inside(corner.x, u, product.h.size)
                                & lies_inside(corner.y, v, product.w.size)) << i;
        }
    };
    enter_tap();
#endif

    // ---- the dense operand
#if WEIGHTS
    const int dense_row = along_rows ? thread % DENSE_LANES * DENSE_WIDTH : thread / 8, dense_k = gathered_k;
    const int dense_rows = product.size_m - product.m0;
    const int dense_stride = channels_last ? 1 : f.p * f.q;  // from channel to channel of dy
    const int image_step = channels_last ? 0 : (f.k - 1) * f.p * f.q;  // more than the image's pixels are apart
    const int dense_pixel = channels_last ? f.k : 1, dense_step = BLOCK_K * dense_pixel;
    const float* dense_pointer = dense + ((long long)tile0 * BLOCK_K + dense_k) * dense_pixel
                                 + (long long)(product.group * product.size_m + product.m0 + dense_row) * dense_stride;
#else
    const int dense_row = thread % DENSE_LANES * DENSE_WIDTH, dense_k = thread / DENSE_LANES;
    const int dense_rows = row_length - product.n0;
    const long long phase_tap = (long long)product.h.tap_position * f.s + product.h.taps * product.w.tap_position;
    const long long dense_first = (product.group * (long long)(f.r * f.s) + phase_tap) * product.depth
                                  + tile0 * BLOCK_K + dense_k;
    const float* dense_pointer = dense + dense_first * row_length + product.n0 + dense_row;
    int dense_left = product.length - tile0 * BLOCK_K - dense_k;  // of the sum, from this column on
#endif
#pragma unroll
    for (int i = 0; i < DENSE_COPIES; ++i) {
        there |= (unsigned)(dense_row + i * DENSE_STEP < dense_rows) << (DENSE_BIT + i);
    }

    auto load = [&](int stage) {
        float* const tile_m = shared + stage * STAGE_FLOATS;
        float* const tile_n = tile_m + BLOCK_K * PITCH_M;
        float* const gathered = (WEIGHTS ? tile_n : tile_m) + gathered_k * GATHERED_PITCH + gathered_row;
        float* const other = (WEIGHTS ? tile_m : tile_n) + dense_k * DENSE_PITCH + dense_row;

#if WEIGHTS
        const bool within = column.high < f.n;
        const int u = column.middle * f.stride_h - f.pad_h, v = column.low * f.stride_w - f.pad_w;
        const float* const pixel = base + ((long long)column.high * (plane * f.c) + (u * f.w + v) * stride_pixel);
        const float* const dense_from = dense_pointer + (long long)column.high * image_step;
#pragma unroll
        for (int i = 0; i < GATHERED_COPIES; ++i) {
            const int4 place = places[gathered_row + i * GATHERED_STEP];
            const bool valid = within && lies_inside(place.x, u, f.h) && lies_inside(place.y, v, f.w);
            copy<GATHERED_WIDTH>(gathered + i * GATHERED_STEP, pixel + place.z, valid);
        }
        advance(column, product.step, f.q, f.p);
#else
        const float *const base = bases[0], *const base_8 = bases[1];
#pragma unroll
        for (int i = 0; i < GATHERED_COPIES; ++i) {
            const bool valid = there >> i & 1;
            const int from = first[i] + offset;
            copy<1>(gathered + i * GATHERED_STEP, base + from, valid);
            if (LOADS == TAPS) copy<1>(gathered + i * GATHERED_STEP + 8 * GATHERED_PITCH, base_8 + from, valid);
        }
        if (column.low + BLOCK_K < product.depth) {
            column.low += BLOCK_K;
            offset += BLOCK_K * strides.x;
        } else {
            advance(column, product.step, product.depth, product.middle);
            enter_tap();
        }
        const bool within = LOADS == TAPS || dense_left > 0;
        dense_left -= BLOCK_K;
        const float* const dense_from = dense_pointer;
        const int dense_stride = 1, dense_step = BLOCK_K * row_length;
#endif

#pragma unroll
        for (int i = 0; i < DENSE_COPIES; ++i) {
            copy<DENSE_WIDTH>(other + i * DENSE_STEP, dense_from + (long long)i * DENSE_STEP * dense_stride,
                              within && (there >> (DENSE_BIT + i) & 1));
        }
        dense_pointer += dense_step;
    };

    // ---- the sum
    const int thread_m = warp % (BLOCK_M / 32) * 32 + lane / 8 * 4;  // and 16 further
    const int thread_n = warp / (BLOCK_M / 32) * 64 + lane % 8 * 4;  // and 32 further
    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = 0.0f;
    }
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (tile0 + stage < tile1) load(stage);
        cp_async_commit();
    }
    int stage = 0;
#pragma unroll 1
    for (int left = tile1 - tile0; left > 0; --left) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this tile is there for all, and all have left the stage before, which is filled next
        if (left > STAGES - 1) load(stage == 0 ? STAGES - 1 : stage - 1);
        cp_async_commit();
        const float* const tile_m = shared + stage * STAGE_FLOATS + thread_m;
        const float* const tile_n = shared + stage * STAGE_FLOATS + BLOCK_K * PITCH_M + thread_n;
        float a[2][8], b[2][8];
        read_rows(a[0], tile_m, 16);
        read_rows(b[0], tile_n, 32);
#pragma unroll
        for (int k = 0; k < BLOCK_K; ++k) {
            if (k + 1 < BLOCK_K) {
                read_rows(a[(k + 1) % 2], tile_m + (k + 1) * PITCH_M, 16);
                read_rows(b[(k + 1) % 2], tile_n + (k + 1) * PITCH_N, 32);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(a[k % 2][i], b[k % 2][j], sums[i][j]);
            }
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    cp_async_wait_all();

    // ---- results: rows of the product are pixels or filters, columns channels or elements of a filter
    out += blockIdx.y * out_elements;
    const int size_n = product.size_n, n0 = product.n0;
#if WEIGHTS
    const int column_step = 1;
    const bool by_columns = size_n % 4 == 0, by_rows = false;
#else
    const int column_step = nhwc ? 1 : product.height * product.width;
    const bool by_columns = nhwc && size_n % 4 == 0;  // four channels of a pixel at once
    const bool by_rows = !nhwc && column_step % 4 == 0 && product.h.out_step * product.w.out_step == 1;  // four pixels
#endif
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
        float* row_out[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = thread_m + upper * 16 + i;
#if WEIGHTS
            const long long filter = (long long)product.group * product.size_m + product.m0 + row;
            row_out[i] = product.m0 + row < product.size_m ? out + filter * size_n : nullptr;
#else
            row_out[i] = results[row] >= 0 ? out + results[row] : nullptr;
#endif
        }
#pragma unroll
        for (int right = 0; right < 2; ++right) {
            const int n = n0 + thread_n + right * 32;
            if (by_columns) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* const s = sums[upper * 4 + i] + right * 4;
                    if (row_out[i] && n < size_n) {
                        *reinterpret_cast<float4*>(row_out[i] + n) = make_float4(s[0], s[1], s[2], s[3]);
                    }
                }
            } else if (by_rows) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int i = upper * 4, at = right * 4 + j;
                    if (row_out[0] && n + j < size_n) {
                        *reinterpret_cast<float4*>(row_out[0] + (long long)(n + j) * column_step) =
                            make_float4(sums[i][at], sums[i + 1][at], sums[i + 2][at], sums[i + 3][at]);
                    }
                }
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        if (row_out[i] && n + j < size_n) {
                            row_out[i][(long long)(n + j) * column_step] = sums[upper * 4 + i][right * 4 + j];
                        }
                    }
                }
            }
        }
    }
}
