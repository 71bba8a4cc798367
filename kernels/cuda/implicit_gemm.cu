// Implicit GEMM in fp32 without tensor cores: implicit_gemm_cuda, three passes, both layouts, every shape.
//
// Convolution as a product of matrices whose larger operand is never stored: its elements are fetched from the image
// while the tile is loaded (Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning", arXiv 1410.0759,
// section 3.2). include/implicit_gemm.cuh says which matrix is which in each pass.
//
// A block computes BLOCK_M x BLOCK_N results, a warp 32 x 64, a thread 8 x 8. Tiles of BLOCK_K products go through
// shared memory, [k][row] for both operands, in STAGES stages that cp.async fills in the background, with zeros for
// what lies outside the image. Rows' addresses and coordinates are computed once. Fragments are read one step ahead of
// the products that need them. LOADS says how elements of the gathered operand are found:
//
//   TAPS    Forward and backward data, channels of a group in multiples of 16: a tile lies within one tap, so that
//           whether a row is inside the image is decided once a tap. 4-byte copies, one addition for two of them.
//   DIGITS  Anything. A thread fetches one column of the sum for several rows; the column's digits, (r, s, c) or
//           (image, p, q), are counted on with additions. 4-byte copies, two additions and two comparisons each.
//   QUADS   Backward weights, nhwc, channels of a group in multiples of 4: as DIGITS with 16-byte copies.
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
// STAGE_FLOATS floats of shared memory. Tiles along the filters are neighbours, so that what they share of the image
// comes from memory once and then from L2. Of 132 KB of registers two blocks of 128 x 128 take 128 KB: 16 warps an SM.
// Bound: issue slots. TAPS, a warp and 16 columns: 1024 FFMA, 64 LDS.128 and about 80 for copies, addresses and the
// loop, so 87 % of an H200's 67 TFLOP/s at most. L2 to SM: 8 bytes a clock, a third of what it gives. Before sm_80
// copies are loads and stores (device.cuh), which overlap with other warps only.
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

#define BLOCK_K (LOADS == DIGITS ? 8 : 16)
#define STAGES (LOADS == DIGITS ? 4 : 3)
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
    const int cg = f.c / f.groups, kg = f.k / f.groups;

    // ---- which tile of which product
    int block = blockIdx.x;
    const int n0 = block % tiles_n * BLOCK_N;
    block /= tiles_n;
    const int m0 = block % tiles_m * BLOCK_M;
    block /= tiles_m;
    const int group = block % f.groups;
#if WEIGHTS
    const Line h = rows_of(f, FORWARD, 0), w = columns_of(f, FORWARD, 0);
    const int size_m = kg, size_n = f.r * f.s * cg, length = f.n * f.p * f.q;
    const int gathered0 = n0, dense0 = m0, gathered_rows = size_n, dense_rows = size_m;
    const int channels = f.c, depth = cg, middle = f.p, inner = f.q;
#else
    const int phase = block / f.groups;
    const Line h = rows_of(f, pass, phase / f.stride_w), w = columns_of(f, pass, phase % f.stride_w);
    const int depth = pass == FORWARD ? cg : kg;  // channels that are summed over
    const int size_m = f.n * h.places * w.places, size_n = pass == FORWARD ? kg : cg;
    const int length = h.taps * w.taps * depth;
    const int gathered0 = m0, dense0 = n0, gathered_rows = size_m, dense_rows = row_length;
    const int channels = depth * f.groups, middle = max(w.taps, 1);
#if LOADS == DIGITS
    const int inner = depth;
#endif
#endif
    if (m0 >= size_m) return;  // phases differ in size; no barrier was reached
    const int tiles = (length + BLOCK_K - 1) / BLOCK_K;
    const int tile0 = (int)((long long)tiles * blockIdx.y / gridDim.y);
    const int tile1 = (int)((long long)tiles * (blockIdx.y + 1) / gridDim.y);

    // ---- the gathered operand: the image's strides, this thread's rows and its column
    const int stride_c = nhwc ? 1 : h.size * w.size, stride_w = nhwc ? channels : 1, stride_h = w.size * stride_w;
    const long long stride_image = (long long)h.size * w.size * channels;
    const float* const base = source + (long long)group * depth * stride_c;
#if LOADS == QUADS
    const bool along_rows = true;
#else
    const bool along_rows = WEIGHTS ? nhwc : !nhwc;  // whether rows, not columns of the sum, are neighbours in memory
#endif
    const int gathered_k = along_rows ? thread / GATHERED_LANES : thread % 8;
    const int gathered_row = along_rows ? thread % GATHERED_LANES * GATHERED_WIDTH : thread / 8;
    int row_place[GATHERED_COPIES];  // (u, v), 16 bits each
#if LOADS != TAPS
    int row_v[GATHERED_COPIES];
#endif
#if WEIGHTS
    int row_offset[GATHERED_COPIES];
#else
    const float* row_pointer[GATHERED_COPIES];
#endif
#pragma unroll
    for (int i = 0; i < GATHERED_COPIES; ++i) {
        const int row = gathered0 + gathered_row + i * GATHERED_STEP;
#if WEIGHTS
        int r, s, c;  // dw is [k][r][s][c] or [k][c][r][s]: a row of the product is an element of it
        if (nhwc) {
            const Digits d = digits_of(row, cg, f.s);
            r = d.high, s = d.middle, c = d.low;
        } else {
            const Digits d = digits_of(row, f.s, f.r);
            c = d.high, r = d.middle, s = d.low;
        }
        row_place[i] = row < gathered_rows ? r * h.tap_step : OUTSIDE;
        row_v[i] = s * w.tap_step;
        row_offset[i] = r * h.tap_step * stride_h + s * w.tap_step * stride_w + c * stride_c;
#else
        const Digits d = digits_of(row, w.places, h.places);
        const int u = d.middle * h.step + h.first, v = d.low * w.step + w.first;
        row_pointer[i] = base + d.high * stride_image
                         + ((long long)u * stride_h + v * stride_w + gathered_k * stride_c);
#if LOADS == TAPS
        row_place[i] = row < gathered_rows ? (u << 16) + v : OUTSIDE;
#else
        row_place[i] = row < gathered_rows ? u : OUTSIDE;
        row_v[i] = v;
#endif
#endif
    }
#if LOADS == TAPS
    const int tap0 = tile0 * BLOCK_K / depth;
    int channel = tile0 * BLOCK_K % depth, tap_r = tap0 / middle, tap_s = tap0 % middle;
    unsigned inside = 0;  // bit i: row i is, for this tap
    int tap_offset = 0;
    bool new_tap = true;
#else
    Digits column = digits_of(tile0 * BLOCK_K + gathered_k, inner, middle);
    const Digits tile_digits = digits_of(BLOCK_K, inner, middle);
#endif

    // ---- the dense operand
#if WEIGHTS
    const int dense_row = along_rows ? thread % DENSE_LANES * DENSE_WIDTH : thread / 8, dense_k = gathered_k;
    const int dense_stride = nhwc ? 1 : f.p * f.q;  // from channel to channel of dy
    const float* const dense_base = dense + (long long)(group * kg + dense0 + dense_row) * dense_stride;
#else
    const int dense_row = thread % DENSE_LANES * DENSE_WIDTH, dense_k = thread / DENSE_LANES;
    const long long phase_tap = (long long)h.tap_position * f.s + h.taps * w.tap_position;
    const long long dense_first = (group * (long long)(f.r * f.s) + phase_tap) * depth + tile0 * BLOCK_K + dense_k;
    const float* dense_pointer = dense + dense_first * row_length + dense0 + dense_row;
#endif

    auto load = [&](int tile, int stage) {
        float* const tile_m = shared + stage * STAGE_FLOATS;
        float* const tile_n = tile_m + BLOCK_K * PITCH_M;
        float* const gathered = (WEIGHTS ? tile_n : tile_m) + gathered_k * GATHERED_PITCH + gathered_row;
        float* const other = (WEIGHTS ? tile_m : tile_n) + dense_k * DENSE_PITCH + dense_row;

#if LOADS == TAPS
        if (new_tap) {
            const int u = tap_r * h.tap_step, v = tap_s * w.tap_step;
            inside = 0;
            tap_offset = u * stride_h + v * stride_w;
#pragma unroll
            for (int i = 0; i < GATHERED_COPIES; ++i) {
                const int row_v = (short)row_place[i], row_u = (row_place[i] - row_v) >> 16;
                const bool valid = row_place[i] != OUTSIDE && lies_inside(row_u, u, h.size)
                                   && lies_inside(row_v, v, w.size);
                inside |= (unsigned)valid << i;
            }
        }
        const int offset = tap_offset + channel * stride_c;
#pragma unroll
        for (int i = 0; i < GATHERED_COPIES; ++i) {
            const bool valid = inside >> i & 1;
            const float* const from = row_pointer[i] + offset;
            copy<1>(gathered + i * GATHERED_STEP, from, valid);
            copy<1>(gathered + i * GATHERED_STEP + 8 * GATHERED_PITCH, from + 8 * stride_c, valid);
        }
        channel += BLOCK_K;
        new_tap = channel == depth;
        if (new_tap) {
            channel = 0;
            if (++tap_s == middle) {
                tap_s = 0;
                ++tap_r;
            }
        }
        const bool within = true;
#elif WEIGHTS
        const bool within = column.high < f.n;
        const int u = within ? column.middle * h.step + h.first : OUTSIDE, v = column.low * w.step + w.first;
        const float* const pixel = base + column.high * stride_image + ((long long)u * stride_h + v * stride_w);
        const long long place = (long long)column.middle * f.q + column.low, plane = (long long)f.p * f.q;
        const float* const dense_pointer = dense_base + column.high * plane * f.k + place * (nhwc ? f.k : 1);
#pragma unroll
        for (int i = 0; i < GATHERED_COPIES; ++i) {
            const bool valid = lies_inside(row_place[i], u, h.size) && lies_inside(row_v[i], v, w.size);
            copy<GATHERED_WIDTH>(gathered + i * GATHERED_STEP, pixel + row_offset[i], valid);
        }
        advance(column, tile_digits, inner, middle);
#else
        const bool within = tile * BLOCK_K + dense_k < length;
        const int u = column.high < h.taps ? column.high * h.tap_step : OUTSIDE, v = column.middle * w.tap_step;
        const int offset = column.high * h.tap_step * stride_h + v * stride_w + (column.low - gathered_k) * stride_c;
#pragma unroll
        for (int i = 0; i < GATHERED_COPIES; ++i) {
            const bool valid = lies_inside(row_place[i], u, h.size) && lies_inside(row_v[i], v, w.size);
            copy<GATHERED_WIDTH>(gathered + i * GATHERED_STEP, row_pointer[i] + offset, valid);
        }
        advance(column, tile_digits, inner, middle);
#endif

#pragma unroll
        for (int i = 0; i < DENSE_COPIES; ++i) {
            const bool valid = within && dense0 + dense_row + i * DENSE_STEP < dense_rows;
#if WEIGHTS
            const float* const from = dense_pointer + (long long)i * DENSE_STEP * dense_stride;
#else
            const float* const from = dense_pointer + i * DENSE_STEP;
#endif
            copy<DENSE_WIDTH>(other + i * DENSE_STEP, from, valid);
        }
#if !WEIGHTS
        dense_pointer += (long long)BLOCK_K * row_length;
#endif
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
        if (tile0 + stage < tile1) load(tile0 + stage, stage);
        cp_async_commit();
    }
    int stage = 0, next = STAGES - 1;
#pragma unroll 1
    for (int tile = tile0; tile < tile1; ++tile) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this tile is there for all, and all have left the stage that is filled next
        if (tile + STAGES - 1 < tile1) load(tile + STAGES - 1, next);
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
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    cp_async_wait_all();

    // ---- results: rows of the product are pixels or filters, columns channels or elements of a filter
    out += blockIdx.y * out_elements;
#if WEIGHTS
    const int column_step = 1;
    const bool by_columns = size_n % 4 == 0, by_rows = false;
#else
    const int result_channels = size_n * f.groups;
    const int height = pass == FORWARD ? f.p : f.h, width = pass == FORWARD ? f.q : f.w;
    const int column_step = nhwc ? 1 : height * width;
    const bool by_columns = nhwc && size_n % 4 == 0;  // four channels of a pixel at once
    const bool by_rows = !nhwc && height * width % 4 == 0 && h.out_step * w.out_step == 1;  // four pixels of a channel
    out += (long long)group * size_n * column_step;
#endif
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
        float* row_out[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = m0 + thread_m + upper * 16 + i;
#if WEIGHTS
            row_out[i] = row < size_m ? out + (long long)(group * kg + row) * size_n : nullptr;
#else
            row_out[i] = row < size_m ? out + result_base(row, h, w, result_channels, height, width, nhwc) : nullptr;
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
