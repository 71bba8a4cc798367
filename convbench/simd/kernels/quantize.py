"""float32 to whole numbers of 8, 10 or 16 bits, stored as the parts that products are made of; and what scales need.

Definitions: `convbench/formats.py`. A fill kernel takes a matrix of float32, quantises each element (MODES) and stores
it in parts (PARTS), as it stands or turned (rows become columns), so that one pair of kernels serves both layouts of
activations and filters.

extremes   least and largest element, 0 included
beyond     how many elements reach each of four thresholds
squares    sum of the squares of quantised elements
row_sums   sums of rows of int8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import llvmlite.ir as ir

from convbench import formats
from convbench.simd.compiler import kernel
from convbench.simd.emit import F32, I8, I32, I64, Emitter, Value
from convbench.simd.kernels.transpose import in_registers
from convbench.simd.target import Target

I16 = ir.IntType(16)
#: How elements are quantised; of what `constants` point to, the 32-bit words.
#:   int8          clip(rint(v c0) + c1, -128, 127) + 128: c0 the inverse scale, c1 the zero point
#:   int8_filter   clip(rint(v c0), -127, 127)
#:   fixed16       clip(rint(v 2^12), -2^15, 2^15 - 1)
#:   stochastic    the same, rounded up where the 24 bits drawn at the element's index say so; c0 is `rounding_key`
#:   dynamic       clip(rint(v c0), -2^9, 2^9 - 1)
MODES = ("int8", "int8_filter", "fixed16", "stochastic", "dynamic")
#: How a whole number v lies in memory. A second part lies `plane` bytes behind the first.
#:   byte    v in 8 bits                   bytes   v >> 8 (signed), v & 255 (unsigned)
#:   short   v in 16 bits                  shorts  (v + 128) >> 8, and what is left, from -128 to 127, in 16 bits each
PARTS = {"byte": (I8, 1), "bytes": (I8, 2), "short": (I16, 1), "shorts": (I16, 2)}

#: rows, columns: of the source, whose rows lie row_from and whose columns column_from elements apart. row_to: elements
#: of a part between the rows of the result (turned: between its columns, which are the source's rows). The logical
#: index of element (i, j) is index + i index_row + j index_column; it counts modulo 2^32.
FILL = (
    "rows", "columns", "from_", "row_from", "column_from", "to", "row_to", "plane", "constants", "index", "index_row",
    "index_column",
)  # fmt: skip
#: count floats at from_; what comes out goes to `to`.
REDUCE = ("count", "from_", "constants", "to")
THRESHOLDS = 4
#: Elements of one call of `squares`: its 32-bit sums of squares of 10-bit numbers stay below 2^31 with 4 lanes too.
SQUARES_COUNT = 16384


def mixed(e: Emitter, word: Value) -> Value:
    """`rounding.mix32` of every lane."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = e.b.xor(word, e.b.lshr(word, every(word, shift)))
        word = e.b.mul(word, every(word, factor))
    return e.b.xor(word, e.b.lshr(word, every(word, 16)))


def drawn(e: Emitter, key: Value, index: Value) -> Value:
    """24 random bits for each index, as `rounding.bits24`; key: `rounding_key` in every lane."""
    return e.b.lshr(mixed(e, e.b.xor(index, key)), every(index, 8))


def rounding_key(seed: int) -> int:
    """What the seed, and the upper half of an index below 2^32, contribute to the hash."""
    from convbench.rounding import mix32

    return int(mix32(int(mix32(seed))))


def every(like: Value, number: float) -> Value:
    """A constant in every lane of a vector like this one."""
    kind = like.type
    return ir.Constant(kind, [number if not isinstance(kind.element, ir.IntType) else int(number)] * kind.count)


def rounded(e: Emitter, value: Value, how: str) -> Value:
    """rint or floor of every lane."""
    kind, bits = value.type, "f32" if value.type.element == F32 else "f64"
    return e.b.call(e.declare(f"llvm.{how}.v{kind.count}{bits}", ir.FunctionType(kind, [kind])), [value])


def clipped(e: Emitter, value: Value, low: float, high: float) -> Value:
    """Between low and high."""
    low_, high_ = every(value, low), every(value, high)
    value = e.b.select(e.b.fcmp_ordered("<", value, low_), low_, value)
    return e.b.select(e.b.fcmp_ordered(">", value, high_), high_, value)


def constant_word(e: Emitter, constants: Value, number: int, kind: ir.Type = F32) -> Value:
    """A word of the constants in every lane."""
    return e.broadcast(e.at(e.pointer(constants, kind), number))


def quantised(e: Emitter, mode: str, constants: Value) -> Callable[[Value, Value], Value]:
    """The function (float32 vector, vector of indices) -> int32 vector of a mode; what it needs is loaded here."""
    words = ir.VectorType(I32, e.lanes)
    limit = 2.0 ** (formats.FIXED_BITS - 1)
    step = e.splat_constant(2.0**formats.FIXED_FRACTION)
    held = constant_word(e, constants, 0, I32 if mode == "stochastic" else F32) if mode != "fixed16" else step
    zero = constant_word(e, constants, 1) if mode == "int8" else None

    def whole(value: Value, index: Value) -> Value:
        if mode == "int8":
            near = clipped(e, e.fadd(rounded(e, e.fmul(value, held), "rint"), zero), -128, 127)
            return e.b.add(e.b.fptosi(near, words), ir.Constant(words, [128] * e.lanes))
        if mode == "int8_filter":
            return e.b.fptosi(clipped(e, rounded(e, e.fmul(value, held), "rint"), -127, 127), words)
        if mode == "stochastic":
            scaled = clipped(e, e.fmul(value, step), -limit, limit - 1)
            below = rounded(e, scaled, "floor")
            chance = e.fmul(e.b.uitofp(drawn(e, held, index), e.vector), e.splat_constant(2.0**-24))
            up = e.b.fcmp_ordered("<", chance, e.fsub(scaled, below))
            return e.b.add(e.b.fptosi(below, words), e.b.zext(up, words))
        limits = limit if mode == "fixed16" else 2.0 ** (formats.DYNAMIC_BITS - 1)
        return e.b.fptosi(rounded(e, clipped(e, e.fmul(value, held), -limits, limits - 1), "rint"), words)

    return whole


def in_parts(e: Emitter, parts: str, value: Value) -> list[Value]:
    """The int32 vector as vectors of its parts."""
    element, count = PARTS[parts]
    narrow = ir.VectorType(element, e.lanes)
    if count == 1:
        return [e.b.trunc(value, narrow)]
    lift = every(value, 0 if parts == "bytes" else 128)
    high = e.b.ashr(e.b.add(value, lift), every(value, 8))
    low = value if parts == "bytes" else e.b.sub(value, e.b.shl(high, every(value, 8)))
    return [e.b.trunc(high, narrow), e.b.trunc(low, narrow)]


def store_narrow(e: Emitter, value: Value, pointer: Value, mask: Value | None = None) -> None:
    """A vector of bytes or shorts to a pointer; lanes that the mask turns off are not touched."""
    kind = value.type
    place, align = e.b.bitcast(pointer, kind.as_pointer()), kind.element.width // 8
    if mask is None:
        e.b.store(value, place, align=align)
        return
    function = ir.FunctionType(ir.VoidType(), [kind, place.type, I32, mask.type])
    masked = e.declare(f"llvm.masked.store.v{kind.count}i{kind.element.width}.p0", function)
    e.b.call(masked, [value, place, ir.Constant(I32, align), mask])


def _put(e: Emitter, parts: str, values: list[Value], to: Value, plane: Value, mask: Value | None) -> None:
    """The parts of a vector, `plane` bytes apart; to: pointer to the first."""
    element, _ = PARTS[parts]
    for i, value in enumerate(values):
        place = to if i == 0 else e.pointer(e.add(e.b.ptrtoint(to, I64), plane), element)
        store_narrow(e, value, place, mask)


def lanes_of(e: Emitter, first: Value, step: Value) -> Value:
    """first + lane step in every lane, from 64-bit integers, modulo 2^32."""
    words = ir.VectorType(I32, e.lanes)
    order = ir.Constant(words, list(range(e.lanes)))
    return e.b.add(e.splat(e.b.trunc(first, I32)), e.b.mul(order, e.splat(e.b.trunc(step, I32))))


@kernel
def straight(target: Target, mode: str, parts: str) -> Emitter:
    """to[i, j] = quantised from_[i, j]."""
    e = Emitter(target, f"quantize_{mode}_{parts}_{target.name}", FILL)
    rows, columns, source, row_from, column_from, to, row_to, plane, constants, index, index_row, index_column = e.args
    whole, element = quantised(e, mode, constants), PARTS[parts][0]
    lanes = e.lanes
    complete = e.mul(e.b.sdiv(columns, e.i(lanes)), lanes)
    left = e.mask(e.sub(columns, complete))

    def some(i: Value, j: Value, together: bool, mask: Value | None) -> None:
        read = e.at(e.pointer(source), e.mul(row_from, i), j if together else e.mul(column_from, j))
        value = e.load(read, mask) if together else _gathered(e, read, column_from, mask)
        first = e.add(index, e.mul(index_row, i), e.mul(index_column, j))
        number = whole(value, lanes_of(e, first, index_column))
        _put(e, parts, in_parts(e, parts, number), e.at(e.pointer(to, element), e.mul(row_to, i), j), plane, mask)

    def rows_of(together: bool) -> list[Value]:
        with e.loop(rows, name="i") as i:
            with e.loop(complete, step=lanes, name="j") as j:
                some(i.index, j.index, together, None)
            with e.loop(e.minimum(e.sub(columns, complete), 1), name="rest"):
                some(i.index, complete, together, left)
        return []

    e.choose(e.b.icmp_signed("==", column_from, e.i(1)), lambda: rows_of(True), lambda: rows_of(False))
    return e


def _gathered(e: Emitter, pointer: Value, step: Value, mask: Value | None) -> Value:
    """Elements `step` apart; lanes that the mask turns off are 0 and not read."""
    value = e.splat_constant(0.0)
    for lane in range(e.lanes):
        place = e.at(pointer, e.mul(step, lane))
        if mask is not None:  # the first element is there whatever the mask says
            place = e.b.select(e.b.extract_element(mask, ir.Constant(I32, lane)), place, pointer)
        value = e.b.insert_element(value, e.b.load(place, align=4), ir.Constant(I32, lane))
    return value


@kernel
def turned(target: Target, mode: str, parts: str) -> Emitter:
    """to[j, i] = quantised from_[i, j], lanes x lanes elements in registers at a time. column_from counts as 1."""
    e = Emitter(target, f"quantize_turned_{mode}_{parts}_{target.name}", FILL)
    rows, columns, source, row_from, _, to, row_to, plane, constants, index, index_row, index_column = e.args
    whole, element = quantised(e, mode, constants), PARTS[parts][0]
    lanes = e.lanes
    with e.loop(rows, step=lanes, name="i") as i, e.loop(columns, step=lanes, name="j") as j:
        rows_left, columns_left = e.sub(rows, i.index), e.sub(columns, j.index)
        tile = e.at(e.pointer(source), e.mul(row_from, i.index), j.index)
        out = e.at(e.pointer(to, element), e.mul(row_to, j.index), i.index)
        first = e.add(index, e.mul(index_row, i.index), e.mul(index_column, j.index))

        def square(masked: bool, tile: Value = tile, out: Value = out, first: Value = first,
                   left: Sequence[Value] = (rows_left, columns_left)) -> list[Value]:  # fmt: skip
            numbers, zero = [], e.i(0)
            mask = e.mask(left[1]) if masked else None
            for m in range(lanes):
                place = e.at(tile, e.mul(row_from, e.b.select(e.less(m, left[0]), e.i(m), zero) if masked else e.i(m)))
                at = lanes_of(e, e.add(first, e.mul(index_row, m)), index_column)
                numbers.append(e.b.bitcast(whole(e.load(place, mask), at), e.vector))
            mask = e.mask(left[0]) if masked else None
            for m, vector in enumerate(in_registers(e, numbers)):
                values = in_parts(e, parts, e.b.bitcast(vector, ir.VectorType(I32, lanes)))
                if not masked:
                    _put(e, parts, values, e.at(out, e.mul(row_to, m)), plane, None)
                    continue
                exists = e.b.select(e.less(m, left[1]), e.i(1), zero)
                with e.loop(exists, name=f"column{m}"):
                    _put(e, parts, values, e.at(out, e.mul(row_to, m)), plane, mask)
            return []

        full = e.b.and_(e.less(lanes - 1, rows_left), e.less(lanes - 1, columns_left))
        e.choose(full, lambda: square(False), lambda: square(True))
    return e


# ---- reductions


def _each(
    e: Emitter, count: Value, source: Value, carried: list[Value], step: Callable[..., list[Value]]
) -> list[Value]:
    """carried through step(value, *carried) for all vectors of a run; behind its end there are zeros."""
    whole = e.mul(e.b.sdiv(count, e.i(e.lanes)), e.lanes)
    with e.loop(whole, carried, step=e.lanes, name="whole") as turn:
        turn.result = step(e.load(e.at(e.pointer(source), turn.index)), *turn.carried)
    mask = e.mask(e.sub(count, whole))
    with e.loop(e.minimum(e.sub(count, whole), 1), turn.result, name="rest") as rest:
        rest.result = step(e.load(e.at(e.pointer(source), whole), mask), *rest.carried)
    return list(rest.result)


def _across(e: Emitter, vector: Value, join: Callable[[Value, Value], Value]) -> Value:
    """All lanes joined into one scalar."""
    values = [e.b.extract_element(vector, ir.Constant(I32, lane)) for lane in range(vector.type.count)]
    while len(values) > 1:
        values = [join(values[i], values[i + 1]) for i in range(0, len(values), 2)]
    return values[0]


@kernel
def extremes(target: Target) -> Emitter:
    """to[0] = min(0, least element), to[1] = max(0, largest): float32."""
    e = Emitter(target, f"quantize_extremes_{target.name}", REDUCE)
    count, source, _, to = e.args

    def less(x: Value, y: Value) -> Value:
        return e.b.select(e.b.fcmp_ordered("<", x, y), x, y)

    def more(x: Value, y: Value) -> Value:
        return e.b.select(e.b.fcmp_ordered(">", x, y), x, y)

    zero = e.splat_constant(0.0)
    low, high = _each(e, count, source, [zero, zero], lambda v, low, high: [less(v, low), more(v, high)])
    e.b.store(_across(e, low, less), e.pointer(to), align=4)
    e.b.store(_across(e, high, more), e.at(e.pointer(to), 1), align=4)
    return e


@kernel
def beyond(target: Target) -> Emitter:
    """to[t] = elements with |v| >= constants[t] > 0, for THRESHOLDS of float32: int64. Less than 2^31 floats."""
    e = Emitter(target, f"quantize_beyond_{target.name}", REDUCE)
    count, source, constants, to = e.args
    words = ir.VectorType(I32, e.lanes)
    thresholds = [constant_word(e, constants, t) for t in range(THRESHOLDS)]
    sign = ir.Constant(words, [0x7FFFFFFF] * e.lanes)

    def counted(value: Value, *counts: Value) -> list[Value]:
        size = e.b.bitcast(e.b.and_(e.b.bitcast(value, words), sign), e.vector)
        reached = [e.b.fcmp_ordered(">=", size, threshold) for threshold in thresholds]
        return [e.b.add(c, e.b.zext(r, words)) for c, r in zip(counts, reached, strict=True)]

    found = _each(e, count, source, [ir.Constant(words, [0] * e.lanes)] * THRESHOLDS, counted)
    for t, vector in enumerate(found):
        e.b.store(_total(e, vector), e.at(e.pointer(to, I64), t), align=8)
    return e


@kernel
def squares(target: Target) -> Emitter:
    """to[0] = sum of the squares of elements quantised as "dynamic": int64. At most SQUARES_COUNT floats."""
    e = Emitter(target, f"quantize_squares_{target.name}", REDUCE)
    count, source, constants, to = e.args
    whole, words = quantised(e, "dynamic", constants), ir.VectorType(I32, e.lanes)
    none = ir.Constant(words, [0] * e.lanes)

    def added(value: Value, total: Value) -> list[Value]:
        number = whole(value, none)
        return [e.b.add(total, e.b.mul(number, number))]

    (total,) = _each(e, count, source, [none], added)
    e.b.store(_total(e, total), e.pointer(to, I64), align=8)
    return e


def _total(e: Emitter, words: Value) -> Value:
    """The sum of unsigned 32-bit lanes in 64 bits."""
    return _across(e, e.b.zext(words, ir.VectorType(I64, words.type.count)), e.b.add)


#: to[i] = sum of columns int8 at from_ + i row_from: int32.
ROW_SUMS = ("rows", "columns", "from_", "row_from", "to")


@kernel
def row_sums(target: Target) -> Emitter:
    """Sums of rows of int8. columns: a multiple of 4; rows end where the next begins, or in bytes that are 0."""
    e = Emitter(target, f"quantize_row_sums_{target.name}", ROW_SUMS)
    rows, columns, source, row_from, to = e.args
    words, octets = ir.VectorType(I32, 4), ir.VectorType(I8, 4)
    with e.loop(rows, name="i") as i:
        row = e.at(e.pointer(source, I8), e.mul(row_from, i.index))
        with e.loop(columns, [ir.Constant(words, [0] * 4)], step=4, name="j") as j:
            four = e.b.load(e.b.bitcast(e.at(row, j.index), octets.as_pointer()), align=1)
            j.result = [e.b.add(j.carried[0], e.b.sext(four, words))]
        e.b.store(_across(e, j.result[0], e.b.add), e.at(e.pointer(to, I32), i.index), align=4)
    return e


@kernel
def blank(target: Target) -> Emitter:
    """to[0 .. count - 1] = value: bytes."""
    e = Emitter(target, f"quantize_blank_{target.name}", ("count", "to", "value"))
    count, to, value = e.args
    n = target.bits // 8
    octets = ir.VectorType(I8, n)
    first = e.b.insert_element(ir.Constant(octets, ir.Undefined), e.b.trunc(value, I8), ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, n), [0] * n)
    all_ = e.b.shuffle_vector(first, ir.Constant(octets, ir.Undefined), zeros)
    whole = e.mul(e.b.sdiv(count, e.i(n)), n)
    with e.loop(whole, step=n, name="whole") as i:
        store_narrow(e, all_, e.at(e.pointer(to, I8), i.index))
    with e.loop(e.sub(count, whole), name="rest") as i:
        e.b.store(e.b.trunc(value, I8), e.at(e.pointer(to, I8), whole, i.index), align=1)
    return e
