"""Packing signs: a bit for each number, 1 where it is not >= 0 (negative or NaN), channels in pairs of words.

pixels   from_[j row_from + c]   channels of a pixel lie together
planes   from_[c row_from + j]   planes of one channel each

Both write, for each pixel j and each 64 channels, the words x (bits of the first 32) and x ^ y (y: of the others) that
`carry_save.products` reads; bits behind the last channel are 0. On the way they can sum |x| over the channels of each
pixel, and `windows` averages such sums under a filter. `counts` and `borders` belong to padding, whose bits are 0.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I32, I64, Emitter, Value
from convbench.simd.target import Target

#: Words of a pair, and the channels in it.
PAIR, PAIR_CHANNELS = 2, 64
#: to: address of words; pixel: words from one pixel to the next; step: from one word of a pixel to the next. sums:
#: address of a float32 for each pixel, written where |x| is summed.
ARGUMENTS = ("pixels", "channels", "from_", "row_from", "to", "pixel", "step", "sums")


def words_of(channels: int) -> int:
    """Words of a pixel."""
    return PAIR * -(-channels // PAIR_CHANNELS)


@kernel
def pixels(target: Target, summed: bool) -> Emitter:
    """The kernel for channels that lie together."""
    e = Emitter(target, f"sign_pixels{'_summed' if summed else ''}_{target.name}", ARGUMENTS)
    count, channels, from_, row_from, to, pixel, step, sums = e.args
    whole = e.mul(e.b.sdiv(channels, e.i(PAIR_CHANNELS)), PAIR_CHANNELS)
    parts = PAIR_CHANNELS // e.lanes
    left = e.sub(channels, whole)
    masks = [e.mask(e.sub(left, part * e.lanes)) for part in range(parts)]
    with e.loop(count, name="pixel") as j:
        source = e.at(e.pointer(from_), e.mul(row_from, j.index))
        place = e.at(e.pointer(to, I32), e.mul(pixel, j.index))

        def pair(at: Value, place: Value, state: list[Value], masked: bool) -> list[Value]:
            vectors = [e.load(e.at(at, p * e.lanes), masks[p] if masked else None) for p in range(parts)]
            bits = joined_masks(e, [is_negative(e, vector) for vector in vectors])
            both = e.b.bitcast(bits, I64)
            both = e.b.xor(both, e.b.shl(both, e.i(32)))
            e.b.store(e.b.trunc(both, I32), place, align=4)
            e.b.store(e.b.trunc(e.b.lshr(both, e.i(32)), I32), e.at(place, step), align=4)
            return [added(e, [*state, *(magnitudes(e, vector) for vector in vectors)])] if summed else []

        start = [e.splat_constant(0.0)] if summed else []
        with e.loop(whole, [place, *start], step=PAIR_CHANNELS, name="pair") as c:
            now, *state = c.carried
            c.result = [e.at(now, e.mul(step, PAIR)), *pair(e.at(source, c.index), now, state, masked=False)]
        now, *state = c.result
        rest = e.at(source, whole)
        total = e.choose(e.less(0, left), lambda now=now, state=state, rest=rest: pair(rest, now, state, True),
                         lambda state=state: state)  # fmt: skip
        if summed:
            e.b.store(sum_across(e, total[0]), e.at(e.pointer(sums), j.index), align=4)
    return e


@kernel
def planes(target: Target, summed: bool) -> Emitter:
    """The kernel for planes: a lane is a pixel, so that a channel is one bit of a vector of words."""
    e = Emitter(target, f"sign_planes{'_summed' if summed else ''}_{target.name}", ARGUMENTS)
    count, channels, from_, row_from, to, pixel, step, sums = e.args
    words = ir.VectorType(I32, e.lanes)
    held = [e.b.alloca(words) for _ in range(PAIR)]
    with e.loop(count, step=e.lanes, name="pixels") as j:
        mask = e.mask(e.sub(count, j.index))
        source = e.at(e.pointer(from_), j.index)
        place = e.at(e.pointer(to, I32), e.mul(pixel, j.index))
        start = [e.splat_constant(0.0)] if summed else []
        with e.loop(channels, [place, *start], step=PAIR_CHANNELS, name="pair") as c:
            now, *state = c.carried
            parts = []
            for word in range(PAIR):
                first = e.add(c.index, 32 * word)
                bits, *state = _word(e, e.at(source, e.mul(row_from, first)), e.sub(channels, first), mask, state)
                parts.append(bits)
            e.b.store(parts[0], held[0])
            e.b.store(e.b.xor(*parts), held[1])
            with e.loop(e.minimum(e.sub(count, j.index), e.lanes), name="lane") as lane:
                to_lane = e.at(now, e.mul(pixel, lane.index))
                for i, from_stack in enumerate(held):
                    one = e.b.load(e.at(e.b.bitcast(from_stack, I32.as_pointer()), lane.index), align=4)
                    e.b.store(one, e.at(to_lane, e.mul(step, i)), align=4)
            c.result = [e.at(now, e.mul(step, PAIR)), *state]
        if summed:
            e.store(c.result[1], e.at(e.pointer(sums), j.index), mask)
    return e


def _word(e: Emitter, source: Value, left: Value, mask: Value, state: list[Value]) -> list[Value]:
    """Bits of up to 32 channels from `source` on, and the sum of their magnitudes where `state` holds one."""
    row_from, words = e.args[3], ir.VectorType(I32, e.lanes)
    nothing = ir.Constant(words, [0] * e.lanes)

    def one(at: Value, bit: Value, bits: Value, state: list[Value]) -> list[Value]:
        vector = e.load(at, mask)
        bits = e.b.or_(bits, e.b.select(is_negative(e, vector), bit, nothing))
        return [bits, *([added(e, [*state, magnitudes(e, vector)])] if state else [])]

    def whole() -> list[Value]:
        now = [nothing, *state]
        for c in range(32):
            bit = ir.Constant(words, [1 << c if c < 31 else -(1 << 31)] * e.lanes)
            now = one(e.at(source, e.mul(row_from, c)), bit, now[0], now[1:])
        return now

    def some() -> list[Value]:
        first = ir.Constant(words, [1] * e.lanes)
        with e.loop(left, [first, nothing, *state], name="channel") as c:
            bit, bits, *sums = c.carried
            at = e.at(source, e.mul(row_from, c.index))
            c.result = [e.b.add(bit, bit), *one(at, bit, bits, sums)]
        return c.result[1:]

    return e.choose(e.less(31, left), whole, some)


def is_negative(e: Emitter, vector: Value) -> Value:
    """Lanes that are not >= 0."""
    return e.b.fcmp_unordered("<", vector, e.splat_constant(0.0))


def joined_masks(e: Emitter, masks: list[Value]) -> Value:
    """Masks one behind the other."""
    while len(masks) > 1:
        n = masks[0].type.count
        order = ir.Constant(ir.VectorType(I32, 2 * n), list(range(2 * n)))
        masks = [e.b.shuffle_vector(x, y, order) for x, y in zip(masks[::2], masks[1::2], strict=True)]
    return masks[0]


def magnitudes(e: Emitter, vector: Value) -> Value:
    """|x|, lane by lane."""
    words = ir.VectorType(I32, e.lanes)
    return e.b.bitcast(e.b.and_(e.b.bitcast(vector, words), ir.Constant(words, [0x7FFFFFFF] * e.lanes)), e.vector)


def added(e: Emitter, vectors: list[Value]) -> Value:
    """The sum of vectors, lane by lane."""
    total, *rest = vectors
    for vector in rest:
        total = e.fadd(total, vector)
    return total


def sum_across(e: Emitter, vector: Value) -> Value:
    """The sum of the lanes: halves are added to halves."""
    n = e.lanes
    while n > 1:
        n //= 2
        order = ir.Constant(ir.VectorType(I32, e.lanes), [(i + n) % e.lanes for i in range(e.lanes)])
        vector = e.fadd(vector, e.b.shuffle_vector(vector, vector, order))
    return e.b.extract_element(vector, ir.Constant(I32, 0))


# ---- averages

#: One row of averages: to[q] = factor * (sum over i < r, j < s of from_[i row_from + q stride + j dilation]),
#: q < width.
#: columns: of from_ that are read. held: address of as many float32. factor: the bits of a float32.
WINDOWS = ("r", "row_from", "s", "stride", "dilation", "columns", "width", "from_", "held", "to", "factor")


@kernel
def windows(target: Target) -> Emitter:
    """The kernel: first down, then across."""
    e = Emitter(target, f"windows_{target.name}", WINDOWS)
    r, row_from, s, stride, dilation, columns, width, from_, held, to, factor = e.args
    number = e.b.bitcast(e.b.trunc(factor, I32), e.vector.element)
    every = e.splat(number)
    source, sums, result = e.pointer(from_), e.pointer(held), e.pointer(to)
    with e.loop(columns, step=e.lanes, name="down") as j:
        mask = e.mask(e.sub(columns, j.index))
        with e.loop(r, [e.splat_constant(0.0)], name="i") as i:
            line = e.at(source, e.mul(row_from, i.index), j.index)
            i.result = [e.fadd(i.carried[0], e.load(line, mask))]
        e.store(i.result[0], e.at(sums, j.index), mask)

    def together() -> list[Value]:
        with e.loop(width, step=e.lanes, name="across") as q:
            mask = e.mask(e.sub(width, q.index))
            with e.loop(s, [e.splat_constant(0.0)], name="j") as j:
                value = e.load(e.at(sums, q.index, e.mul(dilation, j.index)), mask)
                j.result = [e.fadd(j.carried[0], value)]
            e.store(e.fmul(j.result[0], every), e.at(result, q.index), mask)
        return []

    def one_by_one() -> list[Value]:
        with e.loop(width, name="each") as q:
            with e.loop(s, [ir.Constant(e.vector.element, 0.0)], name="j") as j:
                at = e.at(sums, e.mul(stride, q.index), e.mul(dilation, j.index))
                j.result = [e.b.fadd(j.carried[0], e.b.load(at, align=4))]
            e.b.store(e.b.fmul(j.result[0], number), e.at(result, q.index), align=4)
        return []

    e.choose(e.b.icmp_signed("==", stride, e.i(1)), together, one_by_one)
    return e


# ---- padding

#: What `products` starts from: base[i, n] = constant of class i + 2 (sum over its missing taps of counts[tap, n]).
#: classes: address of `number` times CLASS integers: constant, how many taps are missing, address of their numbers.
BORDERS = ("number", "classes", "counts", "base", "row_base")
CLASS = 3
#: counts[tap, n] = bits that are 1 in the words of one tap and filter, in a panel b.
COUNTS = ("taps", "pairs", "b", "counts")


@kernel
def counts(target: Target, vectors: int) -> Emitter:
    """The kernel for panels of `vectors` registers."""
    e = Emitter(target, f"sign_counts_{target.name}_{vectors}", COUNTS)
    taps, pairs, b, to = e.args
    words, width = ir.VectorType(I32, e.lanes), vectors * e.lanes
    ones = e.declare(f"llvm.ctpop.v{e.lanes}i32", ir.FunctionType(words, [words]))
    zeros = [ir.Constant(words, [0] * e.lanes)] * vectors
    with e.loop(taps, name="tap") as tap:
        panel = e.at(e.pointer(b), e.mul(e.mul(tap.index, pairs), PAIR * width))
        with e.loop(pairs, [*zeros, panel], name="pair") as k:
            *state, at = k.carried
            for v in range(vectors):
                x, xy = (e.b.bitcast(e.load(e.at(at, row * width + v * e.lanes)), words) for row in range(PAIR))
                state[v] = e.b.add(state[v], e.b.add(e.b.call(ones, [x]), e.b.call(ones, [e.b.xor(x, xy)])))
            k.result = [*state, e.at(at, PAIR * width)]
        for v in range(vectors):
            place = e.at(e.pointer(to), e.mul(tap.index, width), v * e.lanes)
            e.store(e.b.bitcast(k.result[v], e.vector), place)
    return e


@kernel
def borders(target: Target, vectors: int) -> Emitter:
    """The kernel for panels of `vectors` registers."""
    e = Emitter(target, f"sign_borders_{target.name}_{vectors}", BORDERS)
    number, classes, from_, base, row_base = e.args
    words, width = ir.VectorType(I32, e.lanes), vectors * e.lanes
    with e.loop(number, name="class") as i:
        entry = e.at(e.pointer(classes, I64), e.mul(i.index, CLASS))
        constant = e.splat(e.b.trunc(e.load_int(entry), I32))
        missing = e.pointer(e.load_int(e.at(entry, 2)), I64)
        with e.loop(e.load_int(e.at(entry, 1)), [constant] * vectors, name="tap") as tap:
            row = e.at(e.pointer(from_), e.mul(e.load_int(e.at(missing, tap.index)), width))
            state = []
            for v, value in enumerate(tap.carried):
                more = e.b.bitcast(e.load(e.at(row, v * e.lanes)), words)
                state.append(e.b.add(value, e.b.add(more, more)))
            tap.result = state
        for v, value in enumerate(tap.result):
            place = e.at(e.pointer(base), e.mul(row_base, i.index), v * e.lanes)
            e.store(e.b.bitcast(value, e.vector), place)
    return e


# ---- binary weights

#: to[i] = factor * (sum of |from_|) with the sign of from_[i], i < count. factor: the bits of a float32.
BINARISE = ("count", "from_", "to", "factor")


@kernel
def binarise(target: Target) -> Emitter:
    """The kernel for one filter."""
    e = Emitter(target, f"binarise_{target.name}", BINARISE)
    count, from_, to, factor = e.args
    source, result = e.pointer(from_), e.pointer(to)
    with e.loop(count, [e.splat_constant(0.0)], step=e.lanes, name="sum") as i:
        vector = e.load(e.at(source, i.index), e.mask(e.sub(count, i.index)))
        i.result = [e.fadd(i.carried[0], magnitudes(e, vector))]
    mean = e.b.fmul(sum_across(e, i.result[0]), e.b.bitcast(e.b.trunc(factor, I32), e.vector.element))
    plus, minus = e.splat(mean), e.fneg(e.splat(mean))
    with e.loop(count, step=e.lanes, name="sign") as i:
        mask = e.mask(e.sub(count, i.index))
        negative = is_negative(e, e.load(e.at(source, i.index), mask))
        e.store(e.b.select(negative, minus, plus), e.at(result, i.index), mask)
    return e
