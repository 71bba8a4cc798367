// Convolution by overlapping tiles of TILE x TILE points, 16 or 32, with transforms of our own: fft_tile_cuda.
// Vasilache et al. 2014 (arXiv 1412.7580), sections 5 and 6 (fbfft); overlap-save.
//
//   fft_tile_forward   cuts tiles out of a tensor (x, dy, or the filters, one tile each), transforms them and writes
//                      the spectra where the product wants them (spectra.cuh): one matrix per frequency and group
//   (the vendor's batched product)
//   fft_tile_inverse   reads the products' matrices, transforms back, and stores the valid part of each tile
//
// TILE lanes of a warp transform two channels at once, as real and imaginary parts of one complex tile. Each lane holds
// a column of TILE complex numbers in registers, transforms it without talking to anybody, turns the tile in shared
// memory and transforms a row. By the symmetry of real inputs the sum of a number and its mirror is one channel's
// spectrum and their difference the other's; TILE * (TILE / 2 + 1) frequencies of each are kept. Spectra of all
// channels of the block meet in shared memory, so that lines of 64 (TILE 32) or 128 bytes (16) go to each matrix.
//
// Launch: 128 threads: 8 channels (TILE 32) or 16 of one tile. x: tiles (role FORWARD: channels of the filters), y:
// channels (FORWARD: filters), CHANNELS at a time. Variants: TILE, NHWC.
// Bound: memory. At TILE 32 two channels take 50,000 operations for 8 KB read and 9 KB written.
// Test: pytest tests/cuda_on_cpu -k fft_tile
#include "conv.cuh"
#include "device.cuh"
#include "layout.cuh"
#include "spectra.cuh"

#ifndef TILE
#define TILE 16
#endif
#define THREADS 128
#define CHANNELS (2 * THREADS / TILE)
#define HALF (TILE / 2 + 1)
#define PART 8               // columns of frequencies that are exchanged at a time
#define LINE (CHANNELS + 1)  // complex numbers from frequency to frequency: one more, so that lanes meet other banks
#define PITCH (TILE + 1)

// Tiles of a tensor's height x width: tile t begins at t * step + begin; `extent` of its points are taken from the
// tensor (or stored to it, from point `valid` on) where they lie in low .. high, the others are zero (or dropped).
struct Cut {
    int tiles, step, begin, extent, valid, low, high;
};

__device__ __forceinline__ constexpr int reversed(int i) {  // the order in which a transform leaves its results
#if TILE == 32
    return (i & 1) << 4 | (i & 2) << 2 | (i & 4) | (i & 8) >> 2 | (i & 16) >> 4;
#else
    return (i & 1) << 3 | (i & 2) << 1 | (i & 4) >> 1 | (i & 8) >> 3;
#endif
}

// v *= exp(-+ 2 pi i t / TILE): - for SIGN = -1.
template <int SIGN, int T>
__device__ __forceinline__ float2 turned(float2 v) {
    constexpr float cosines[17] = {
        1.0f, 0.98078528040f, 0.92387953251f, 0.83146961230f, 0.70710678119f, 0.55557023302f, 0.38268343236f,
        0.19509032202f, 0.0f, -0.19509032202f, -0.38268343236f, -0.55557023302f, -0.70710678119f, -0.83146961230f,
        -0.92387953251f, -0.98078528040f, -1.0f};
    constexpr int t = T * 32 / TILE;  // below 16
    constexpr float c = cosines[t], s = SIGN * cosines[t < 8 ? 8 - t : t - 8];
    if constexpr (t == 0) return v;
    if constexpr (t == 8) return make_float2(-SIGN * v.y, SIGN * v.x);
    return make_float2(fmaf(c, v.x, -s * v.y), fmaf(c, v.y, s * v.x));
}

template <int SIGN, int SPAN, int J>
__device__ __forceinline__ void butterflies(float2 (&v)[TILE]) {
#pragma unroll
    for (int start = 0; start < TILE; start += 2 * SPAN) {
        const float2 a = v[start + J], b = v[start + J + SPAN];
        v[start + J] = make_float2(a.x + b.x, a.y + b.y);
        v[start + J + SPAN] = turned<SIGN, J * (TILE / 2 / SPAN)>(make_float2(a.x - b.x, a.y - b.y));
    }
    if constexpr (J + 1 < SPAN) butterflies<SIGN, SPAN, J + 1>(v);
}

// Radix 2, decimation in frequency, in place; result k is left in v[reversed(k)]. Not normalised.
template <int SIGN, int SPAN = TILE / 2>
__device__ __forceinline__ void transform(float2 (&v)[TILE]) {
    butterflies<SIGN, SPAN, 0>(v);
    if constexpr (SPAN > 1) transform<SIGN, SPAN / 2>(v);
}

// Each lane's results become the lanes' next inputs: v[i] of lane j from result j of lane i.
__device__ __forceinline__ void turn(float2 (&v)[TILE], float2* square, int lane) {
#pragma unroll
    for (int i = 0; i < TILE; ++i) square[i * PITCH + lane] = v[reversed(i)];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < TILE; ++i) v[i] = square[lane * PITCH + i];
}

// Which tile of which image (or filter) a block is about, and where its channels (or filters) begin.
struct Work {
    int image, row, column, inner;
};

__device__ __forceinline__ Work work_of(const Cut& rows, const Cut& columns) {
    Work w;
    w.column = blockIdx.x % columns.tiles;
    w.row = blockIdx.x / columns.tiles % rows.tiles;
    w.image = blockIdx.x / columns.tiles / rows.tiles;
    w.inner = blockIdx.y * CHANNELS;
    return w;
}

extern "C" __global__ void __launch_bounds__(THREADS, TILE == 32 ? 3 : 4)
fft_tile_forward(
    const float* __restrict__ tensor, float* __restrict__ matrices, Matrices m, int images, int channels, int height,
    int width, Cut rows, Cut columns
) {
    DYNAMIC_SHARED(float2, exchange);  // [THREADS / TILE][TILE][PITCH], or [PART][TILE][LINE]
    const int lane = threadIdx.x % TILE, group = threadIdx.x / TILE;
    const Work work = work_of(rows, columns);
    const bool by_image = m.role == FORWARD;  // work.image counts channels, and inner filters
    const int count = by_image ? images : channels, inner = work.inner + 2 * group;
    const Steps from = steps_of(channels, height, width);
    const long long apart = by_image ? from.image : from.channel;
    const float* const first = tensor + work.image * (by_image ? from.channel : from.image) + inner * apart;

    float2 v[TILE];
    const int top = work.row * rows.step + rows.begin, column = work.column * columns.step + columns.begin + lane;
    const bool within = lane < columns.extent && column >= columns.low && column < columns.high;
#pragma unroll
    for (int i = 0; i < TILE; ++i) {
        const int row = top + i;
        const bool inside = within && i < rows.extent && row >= rows.low && row < rows.high;
        const float* const at = first + row * from.row + column * from.column;
        v[i] = make_float2(inside && inner < count ? at[0] : 0.0f, inside && inner + 1 < count ? at[apart] : 0.0f);
    }
    float2* const square = exchange + group * TILE * PITCH;
    transform<-1>(v);
    turn(v, square, lane);
    transform<-1>(v);

    const int mine = threadIdx.x % CHANNELS, target = work.inner + mine;
    const int outer = by_image ? work.image : blockIdx.x;
    const Cell cell = cell_of(m, 0, by_image ? target : outer, by_image ? outer : target);
#pragma unroll
    for (int begin = 0; begin < HALF; begin += PART) {
        __syncthreads();  // the squares, or the columns before these, have been read
#pragma unroll
        for (int i = begin; i < begin + PART && i < HALF; ++i) {
            const float2 a = v[reversed(i)], mirror = v[reversed((TILE - i) % TILE)];
            const int opposite = (TILE - lane) % TILE;
            const float2 b = make_float2(
                __shfl_sync(~0u, mirror.x, opposite, TILE), __shfl_sync(~0u, mirror.y, opposite, TILE)
            );
            float2* const to = exchange + ((i - begin) * TILE + lane) * LINE + 2 * group;
            to[0] = make_float2(0.5f * (a.x + b.x), 0.5f * (a.y - b.y));
            to[1] = make_float2(0.5f * (a.y + b.y), 0.5f * (b.x - a.x));
        }
        __syncthreads();
        if (target >= count) continue;
        const int frequencies = (HALF - begin < PART ? HALF - begin : PART) * TILE;
        for (int f = threadIdx.x / CHANNELS; f < frequencies; f += THREADS / CHANNELS) {
            Cell there = cell;
            there.row += (long long)(begin * TILE + f) * m.groups * m.rows;
            store_spectrum(matrices, m, there, exchange[f * LINE + mine]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, TILE == 32 ? 3 : 4)
fft_tile_inverse(
    const float* __restrict__ matrices, float* __restrict__ tensor, Matrices m, int images, int channels, int height,
    int width, Cut rows, Cut columns
) {
    DYNAMIC_SHARED(float2, exchange);  // [THREADS / TILE][TILE][PITCH], or [PART][TILE][LINE]
    const int lane = threadIdx.x % TILE, group = threadIdx.x / TILE;
    const Work work = work_of(rows, columns);
    const int mine = threadIdx.x % CHANNELS, source = work.inner + mine;
    const Cell cell = cell_of(m, 0, blockIdx.x, source);

    float2 v[TILE];
#pragma unroll
    for (int begin = 0; begin < HALF; begin += PART) {
        const int frequencies = (HALF - begin < PART ? HALF - begin : PART) * TILE;
        for (int f = threadIdx.x / CHANNELS; f < frequencies; f += THREADS / CHANNELS) {
            Cell there = cell;
            there.row += (long long)(begin * TILE + f) * m.groups * m.rows;
            exchange[f * LINE + mine] = source < channels ? load_spectrum(matrices, m, there) : make_float2(0.0f, 0.0f);
        }
        __syncthreads();
#pragma unroll
        for (int i = begin; i < begin + PART && i < HALF; ++i) {  // first channel + i * second channel
            const float2* const at = exchange + ((i - begin) * TILE + lane) * LINE + 2 * group;
            v[i] = make_float2(at[0].x - at[1].y, at[0].y + at[1].x);
            if (i == 0 || i == TILE / 2) continue;
            const float2* const mirror = exchange + ((i - begin) * TILE + (TILE - lane) % TILE) * LINE + 2 * group;
            v[(TILE - i) % TILE] = make_float2(mirror[0].x + mirror[1].y, mirror[1].x - mirror[0].y);
        }
        __syncthreads();
    }
    transform<1>(v);
    turn(v, exchange + group * TILE * PITCH, lane);
    transform<1>(v);

    const Steps to = steps_of(channels, height, width);
    const int inner = work.inner + 2 * group;
    const int top = work.row * rows.step + rows.begin, point = lane - columns.valid;
    const int column = work.column * columns.step + columns.begin + point;
    if (point < 0 || point >= columns.extent || column < columns.low || column >= columns.high) return;
    float* const first = tensor + work.image * to.image + inner * to.channel + column * to.column;
    const float scale = 1.0f / (TILE * TILE);
#pragma unroll
    for (int i = 0; i < TILE; ++i) {
        const int row = top + i - rows.valid;
        if (i < rows.valid || i >= rows.valid + rows.extent || row < rows.low || row >= rows.high) continue;
        const float2 value = v[reversed(i)];
        if (inner < channels) first[row * to.row] = value.x * scale;
        if (inner + 1 < channels) first[row * to.row + to.channel] = value.y * scale;
    }
}
