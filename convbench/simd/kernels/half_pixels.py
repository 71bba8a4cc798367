"""Products and sums in float16 itself, for units with AVX512_FP16: gemm_pixels.pixels over pairs of channels.

C[c(m) + n] (+)= sum over segments s, sum over k < depth:  dot(A[a(m) + a(s) + k], B[b(s) + k P + n])

A and B hold 32-bit words, each two float16: a channel of even number in the lower half, and the next one. A word of A
is broadcast (by the load itself, which a single float16 would not be), and one multiply-add takes 32 products; even and
odd channels have accumulators of their own. These are float16 too. After LIMIT products at most each is widened and
added to C, which is float32: what is rounded to 11 bits is never the sum of more.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I32, I64, Emitter, Value
from convbench.simd.kernels.gemm import Shape
from convbench.simd.kernels.gemm_pixels import LINE, PIXELS, _blocks, prefetch
from convbench.simd.kernels.stored import F16, I16, narrowed, widened
from convbench.simd.kernels.transpose import conversions as single_conversions
from convbench.simd.kernels.transpose import in_registers
from convbench.simd.target import Target

#: Products that an accumulator in float16 takes before it is added to one in float32. Even.
LIMIT = 128


def has_instruction(target: Target) -> bool:
    """Whether the unit multiplies and adds float16."""
    return target.name == "avx512" and target.has("avx512fp16")


@kernel
def pixels(target: Target, shape: Shape) -> Emitter:
    """The kernel for panels of shape.columns(target) words; arguments: gemm_pixels.PIXELS, offsets in words.

    Rows of C are written whole, up to the panel's width.
    """
    e = Emitter(target, f"half_pixels_{target.name}_{shape.rows}x{shape.vectors}", PIXELS)
    turn_bytes = e.mul(e.b.sdiv(e.mul(e.args[6], e.args[7]), e.i(2)), LINE)

    def block(index: Value, first: Value, count: int) -> None:
        start = e.mul(turn_bytes, index)
        wanted = e.less(start, e.args[11])
        place = e.b.select(wanted, e.add(e.args[10], start), e.args[4])
        pairs = e.at(e.pointer(e.args[2], I64), e.mul(first, 2))
        _block(e, shape, count, pairs, place, e.b.select(wanted, e.i(LINE), e.i(0)))

    _blocks(e, e.args[0], shape.rows, block)
    return e


def _block(e: Emitter, shape: Shape, rows: int, pairs: Value, fetch: Value, fetch_step: Value) -> None:
    _, _, _, a, b, segments, count, depth, c, accumulate, _, _ = e.args
    a_rows = [e.at(e.pointer(a), e.load_int(e.at(pairs, 2 * m))) for m in range(rows)]
    c_rows = [e.at(e.pointer(c), e.load_int(e.at(pairs, 2 * m + 1))) for m in range(rows)]
    places = [e.at(row, v * e.lanes) for row in c_rows for v in range(shape.vectors)]
    _clear(e, accumulate, places)
    table = e.pointer(segments, I64)
    halves = ir.VectorType(F16, 2 * e.lanes)
    zeros = [ir.Constant(halves, [F16(0)] * (2 * e.lanes))] * len(places)
    fitting = e.b.sdiv(e.i(LIMIT), depth)
    together = e.b.select(e.less(0, fitting), fitting, e.i(1))  # short segments between two additions to C
    pieces = e.b.sdiv(e.add(depth, LIMIT - 1), e.i(LIMIT))  # additions to C within a long one
    groups = e.b.sdiv(e.sub(e.add(count, together), 1), together)
    with e.loop(groups, [fetch], name="group") as group:
        first = e.mul(group.index, together)
        with e.loop(pieces, group.carried, name="piece") as piece:
            start = e.mul(piece.index, LIMIT)
            length = e.minimum(e.sub(depth, start), LIMIT)
            with e.loop(e.minimum(together, e.sub(count, first)), [*zeros, *piece.carried], name="segment") as segment:
                pair = e.at(table, e.mul(e.add(first, segment.index), 2))
                offset = e.add(e.load_int(pair), start)
                a_at = [e.at(row, offset) for row in a_rows]
                b_at = e.at(e.pointer(b), e.load_int(e.at(pair, 1)), e.mul(start, shape.columns(e.target)))
                segment.result = _segment(e, shape, a_at, b_at, length, segment.carried, fetch_step)
            for half, to in zip(segment.result, places, strict=False):
                _add(e, half, to)
            piece.result = segment.result[-1:]
        group.result = piece.result


def _segment(
    e: Emitter, shape: Shape, a_at: list[Value], b_at: Value, length: Value, state: list[Value], fetch_step: Value
) -> list[Value]:
    """`length` steps of k; state: the accumulators, and what is fetched next."""
    vectors, width = shape.vectors, shape.columns(e.target)
    *held, place = state
    halves = held[0].type
    fused = e.declare(f"llvm.fma.v{2 * e.lanes}f16", ir.FunctionType(halves, [halves] * 3))

    def step(now: list[Value], k: Value, further: int) -> list[Value]:
        *acc, b_k = now
        words = [e.load(e.at(b_k, further * width + v * e.lanes)) for v in range(vectors)]
        panel = [e.b.bitcast(word, halves) for word in words]
        for m, row in enumerate(a_at):
            value = e.b.bitcast(e.broadcast(e.at(row, k, further)), halves)
            for v in range(vectors):
                acc[m * vectors + v] = e.b.call(fused, [value, panel[v], acc[m * vectors + v]])
        return [*acc, b_k]

    even = e.mul(e.b.sdiv(length, e.i(2)), 2)
    with e.loop(even, [*held, b_at, place], step=2, name="k") as k:
        prefetch(e, e.pointer(k.carried[-1]), write=False)
        now = step(step(k.carried[:-1], k.index, 0), k.index, 1)
        k.result = [*now[:-1], e.at(now[-1], 2 * width), e.add(k.carried[-1], fetch_step)]
    with e.loop(e.sub(length, even), k.result[:-1], name="rest") as rest:
        now = step(rest.carried, e.add(even, rest.index), 0)
        rest.result = [*now[:-1], e.at(now[-1], width)]
    return [*rest.result[:-1], k.result[-1]]


def _clear(e: Emitter, accumulate: Value, places: list[Value]) -> None:
    """Zeros in C, unless it is added to."""

    def zero() -> list[Value]:
        for to in places:
            e.store(e.splat_constant(0.0), to)
        return []

    e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), list, zero)


def _add(e: Emitter, half: Value, to: Value) -> None:
    """Both sums of each word, of its even and of its odd channels, widened and added to C."""
    words = e.b.bitcast(half, ir.VectorType(I32, e.lanes))
    low, high = (widened(e, e.b.trunc(part, ir.VectorType(I16, e.lanes))) for part in (words, _upper(e, words)))
    e.store(e.fadd(e.load(to), e.fadd(low, high)), to)


def _upper(e: Emitter, words: Value) -> Value:
    return e.b.lshr(words, ir.Constant(words.type, [16] * e.lanes))


def _paired(e: Emitter, low: Value, high: Value) -> Value:
    """Words out of two vectors of float16 bits, as float32 so that kernels of float32 can move them."""
    kind = ir.VectorType(I32, e.lanes)
    upper = e.b.shl(e.b.zext(high, kind), ir.Constant(kind, [16] * e.lanes))
    return e.b.bitcast(e.b.or_(e.b.zext(low, kind), upper), e.vector)


#: rows: of words. to[w width + n] = the float16 of from_[2 w width + n] and from_[(2 w + 1) width + n], in float32.
PAIR = ("rows", "width", "from_", "to")


@kernel
def pair(target: Target) -> Emitter:
    """Rows of a float32 panel into half as many rows of words; width: a multiple of the lanes."""
    e = Emitter(target, f"half_pair_{target.name}", PAIR)
    rows, width, source, to = e.args
    with e.loop(rows, name="row") as i, e.loop(width, step=e.lanes, name="n") as n:
        even = e.at(e.pointer(source), e.mul(e.mul(i.index, 2), width), n.index)
        low, high = (narrowed(e, e.load(place)) for place in (even, e.at(even, width)))
        e.store(_paired(e, low, high), e.at(e.pointer(to), e.mul(i.index, width), n.index))
    return e


#: rows, columns: of the source, in float16. row_from: in float16; row_to: in words. The last word of an odd number of
#: channels has 0 in its upper half.
WORDS = ("rows", "columns", "from_", "row_from", "to", "row_to")


@kernel
def copy_words(target: Target) -> Emitter:
    """to[i row_to + w] = (from_[i row_from + 2 w], from_[i row_from + 2 w + 1]): rows are pixels."""
    e = Emitter(target, f"half_copy_{target.name}", WORDS)
    rows, columns, source, row_from, to, row_to = e.args
    lanes = 2 * e.lanes
    row_to = e.mul(row_to, 2)
    tight = e.b.and_(e.b.icmp_signed("==", row_from, columns), e.b.icmp_signed("==", row_to, columns))
    length = e.b.select(tight, e.mul(rows, columns), columns)
    even = e.mul(e.b.sdiv(e.add(length, 1), e.i(2)), 2)
    with e.loop(e.b.select(tight, e.minimum(rows, 1), rows), name="row") as i:
        line = e.at(e.pointer(source, I16), e.mul(row_from, i.index))
        out = e.at(e.pointer(to, I16), e.mul(row_to, i.index))
        with e.loop(even, step=lanes, name="j") as j:
            value = _load_bits(e, lanes, e.at(line, j.index), e.sub(length, j.index))
            place = e.b.bitcast(e.at(out, j.index), value.type.as_pointer())
            mask = _mask(e, lanes, e.sub(even, j.index))
            kind = ir.FunctionType(ir.VoidType(), [value.type, place.type, I32, mask.type])
            masked = e.declare(f"llvm.masked.store.v{lanes}i16.p0", kind)
            e.b.call(masked, [value, place, ir.Constant(I32, 2), mask])
    return e


@kernel
def turn_words(target: Target) -> Emitter:
    """to[j row_to + w] = (from_[2 w row_from + j], from_[(2 w + 1) row_from + j]): rows are channels."""
    e = Emitter(target, f"half_turn_{target.name}", WORDS)
    rows, columns, source, row_from, to, row_to = e.args
    lanes, zero = e.lanes, e.i(0)
    words = e.b.sdiv(e.add(rows, 1), e.i(2))
    with e.loop(words, step=lanes, name="i") as i, e.loop(columns, step=lanes, name="j") as j:
        left = e.sub(columns, j.index)
        tile = e.at(e.pointer(source, I16), j.index)
        vectors = []
        for m in range(lanes):
            bits = []
            for odd in (0, 1):
                row = e.add(e.mul(e.add(i.index, m), 2), odd)
                exists = e.less(row, rows)
                place = e.at(tile, e.mul(row_from, e.b.select(exists, row, zero)))
                bits.append(_load_bits(e, lanes, place, e.b.select(exists, left, zero)))
            vectors.append(_paired(e, *bits))
        mask = e.mask(e.sub(words, i.index))
        for m, vector in enumerate(in_registers(e, vectors)):
            exists = e.less(m, left)
            place = e.at(e.pointer(to), e.mul(row_to, e.add(j.index, e.b.select(exists, e.i(m), zero))), i.index)
            none = ir.Constant(mask.type, [0] * lanes)
            e.store(vector, place, e.b.select(exists, mask, none))
    return e


def _mask(e: Emitter, lanes: int, count: Value) -> Value:
    """Lanes 0 .. count - 1 of `lanes` on."""
    kind = ir.VectorType(I32, lanes)
    number = e.b.trunc(e.minimum(count, lanes), I32)
    first = e.b.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(I32, 0))
    splat = e.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * lanes))
    return e.b.icmp_signed("<", ir.Constant(kind, list(range(lanes))), splat)


def _load_bits(e: Emitter, lanes: int, pointer: Value, count: Value) -> Value:
    """The first `count` of so many 16-bit elements; the others are 0 and not read."""
    kind, mask = ir.VectorType(I16, lanes), _mask(e, lanes, count)
    place = e.b.bitcast(pointer, kind.as_pointer())
    masked = e.declare(
        f"llvm.masked.load.v{lanes}i16.p0", ir.FunctionType(kind, [place.type, I32, mask.type, kind])
    )
    return e.b.call(masked, [place, ir.Constant(I32, 2), mask, ir.Constant(kind, [0] * lanes)])


def conversions(target: Target) -> dict[str, int]:
    """As transpose.conversions: activations of float16 into strips of words, results of float32 out of their buffer."""
    given = single_conversions(target, "float16")
    return given | {"transpose": turn_words(target).address, "convert": copy_words(target).address}
