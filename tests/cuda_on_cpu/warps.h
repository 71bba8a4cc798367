// Part of runtime.cpp: what the lanes of a warp do together: shuffles, votes, ldmatrix, mma.
#pragma once

#include "schedule.h"

namespace {

int shuffle_source(int kind, int lane, int by, int width) {
    const int first = lane & ~(width - 1), last = lane | (width - 1);
    int source = lane;
    if (kind == 0) return first | (by & (width - 1));
    if (kind == 1) source = lane - by;
    if (kind == 2) source = lane + by;
    if (kind == 3) return (source = lane ^ by) > last ? lane : source;
    return source < first || source > last ? lane : source;
}

float truncated(double x) {  // toward zero, as tensor cores round their sums
    float result = float(x);
    if (std::fabs(double(result)) > std::fabs(x) && std::isfinite(result)) result = std::nextafterf(result, 0.f);
    return result;
}

// Registers of mma.m16n8k*: register i of a holds, in lane l, row l / 4 + 8 (i % 2) and the elements of column
// (l % 4) * each + 4 * each * (i / 2) on; register i of b column l / 4 and the rows likewise; d element i row
// l / 4 + 8 (i / 2), column 2 (l % 4) + i % 2. `each` is how many elements a register has.
template <int EACH, class Decode>
void multiply_floats(Warp& warp, Decode decode) {
    constexpr int K = 8 * EACH;
    double a[16][K], b[K][8];
    for (int lane = 0; lane < LANES; lane++)
        for (int e = 0; e < EACH; e++) {
            const int at = lane % 4 * EACH + e;
            const unsigned* words = warp.words[lane];
            for (int i = 0; i < 4; i++) a[lane / 4 + 8 * (i % 2)][at + 4 * EACH * (i / 2)] = decode(words[i], e);
            for (int i = 0; i < 2; i++) b[at + 4 * EACH * i][lane / 4] = decode(words[4 + i], e);
        }
    double sum[16][8] = {};
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++) sum[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            unsigned& word = warp.words[lane][6 + i];
            const double product = sum[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
            word = __float_as_uint(truncated(product + double(__uint_as_float(word))));
        }
}

template <class Dot>
void multiply_integers(Warp& warp, Dot dot) {  // dot: of two registers
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4, column = 2 * (lane % 4) + i % 2;
            unsigned sum = warp.words[lane][6 + i];
            for (int t = 0; t < 4; t++)
                for (int half = 0; half < 2; half++) {
                    const unsigned a = warp.words[4 * row + t][i / 2 + 2 * half];
                    sum += unsigned(dot(a, warp.words[4 * column + t][4 + half]));
                }
            warp.words[lane][6 + i] = sum;
        }
}

void multiply(Warp& warp, int kind) {
    switch (kind) {
        case 0: return multiply_floats<2>(warp, [](unsigned w, int e) {
            return double(emulator_half_to_float(std::uint16_t(w >> 16 * e)));
        });
        case 1: return multiply_floats<2>(warp, [](unsigned w, int e) {
            return double(emulator_bfloat16_to_float(std::uint16_t(w >> 16 * e)));
        });
        case 2: return multiply_floats<1>(warp, [](unsigned w, int) {
            return double(__uint_as_float(w & 0xffffe000u));
        });
        case 3: return multiply_integers(warp, [](unsigned a, unsigned b) { return __dp4a(int(a), int(b), 0); });
        case 4: return multiply_integers(warp, [](unsigned a, unsigned b) { return __popc(a & b); });
        default: return multiply_integers(warp, [](unsigned a, unsigned b) { return __popc(a ^ b); });
    }
}

void load_tiles(Warp& warp, int tiles, bool transposed) {
    std::uint16_t cells[4][8][8];
    for (int lane = 0; lane < 8 * tiles; lane++) __builtin_memcpy(cells[lane / 8][lane % 8], warp.words[lane], 16);
    for (int lane = 0; lane < LANES; lane++)
        for (int t = 0; t < tiles; t++) {
            const int row = lane / 4, column = 2 * (lane % 4);
            const unsigned low = transposed ? cells[t][column][row] : cells[t][row][column];
            const unsigned high = transposed ? cells[t][column + 1][row] : cells[t][row][column + 1];
            warp.words[lane][t] = low | high << 16;
        }
}

void carry_out(Warp& warp, Op op, unsigned lanes, int lane) {
    if (op == Op::SHUFFLE) {
        std::uint64_t result[LANES];
        for (int l = 0; l < LANES; l++) {
            const int source = warp.detail[l];
            result[l] = lanes >> l & 1 ? (lanes >> source & 1 ? warp.bits[source] : ~0ull) : 0;  // no such lane: poison
        }
        for (int l = 0; l < LANES; l++)
            if (lanes >> l & 1) warp.bits[l] = result[l];
    } else if (op == Op::VOTE) {
        unsigned ballot = 0;
        for (int l = 0; l < LANES; l++)
            if (lanes >> l & 1) ballot |= unsigned(warp.bits[l]) << l;
        for (int l = 0; l < LANES; l++)
            if (lanes >> l & 1) warp.bits[l] = ballot;
    } else if (op == Op::LDMATRIX) {
        load_tiles(warp, warp.detail[lane] & 7, warp.detail[lane] & 8);
    } else if (op == Op::MMA) {
        multiply(warp, warp.detail[lane]);
    } else {
        warp.generation++;
    }
}

// Whether all lanes that `lane` waits for have arrived at the same place; if so, does what they came for.
void complete(Warp& warp, int first, int lane) {
    const bool needs_all = warp.op[lane] == Op::MMA || warp.op[lane] == Op::LDMATRIX;
    const unsigned lanes = needs_all ? ~0u : warp.mask[lane] & warp.exist & ~warp.exited;
    if ((warp.waiting & lanes) != lanes) return;
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) {
            const bool same_place = threads[first + l].place == threads[first + lane].place;
            if (warp.op[l] != warp.op[lane] || warp.mask[l] != warp.mask[lane] || !same_place) return;
        }
    carry_out(warp, warp.op[lane], lanes, lane);
    warp.waiting &= ~lanes;
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) make_ready(first + l);
}

Warp& warp_of_current() { return warps[current / LANES]; }

void meet(Op op, unsigned mask, int detail, const char* file, int line) {
    const int lane = current % LANES;
    Warp& warp = warp_of_current();
    const char* name = OP_NAMES[int(op)];
    if (!(mask >> lane & 1))
        fail(text("%s with mask %08x by lane %d, which is not in it", name, mask, lane), file, line);
    if ((op == Op::MMA || op == Op::LDMATRIX) && (warp.exist & ~warp.exited) != ~0u)
        fail(text("%s needs all 32 lanes, and some do not exist or have exited,", name), file, line);
    threads[current].state = State::IN_WARP;
    threads[current].place = {file, line};
    warp.op[lane] = op, warp.mask[lane] = mask, warp.detail[lane] = detail;
    warp.waiting |= 1u << lane;
    complete(warp, current / LANES * LANES, lane);
    suspend();
}

}  // namespace
