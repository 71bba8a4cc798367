"""Exact sums become results: a block's sums of parts are joined in float64, rounded once, and go to their places.

A sum of products of 16-bit numbers is below 2^53 for up to 2^23 of them, so float64 holds it, and every power of two
times it, exactly. What becomes of it (`formats.py`):

scaled       INT8: (sum - zero point times the channel's filter sum) times the channel's scale, rounded to float32
nearest      clip(rint(sum 2^lift)) 2^step
stochastic   the same, rounded up where the 24 bits drawn at the result's index say so
"""

from __future__ import annotations

import functools

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import F32, I32, I64, Emitter, Value
from convbench.simd.kernels.part_sums import TILE_ROWS, Scheme
from convbench.simd.kernels.quantize import drawn, every, lanes_of, rounded
from convbench.simd.target import Target

F64 = ir.DoubleType()
HOW = ("scaled", "nearest", "stochastic")
#: Items of the table of constants: float64 powers of two, 2^(bits - 1), the rounding key, the addresses of one int32
#: (filter_sums) and one float32 (scales) for each channel of the result, and what filter sums are multiplied by before
#: they are subtracted, in float64 because the product leaves 32 bits where a sum does.
CONSTANTS = ("lift", "step", "limit", "key", "filter_sums", "scales", "zero")

#: held (float64 [row][column]) = or += the block's sums; accumulate: 0 or 1.
KEEP = ("sums", "held", "accumulate")
#: Rows of a block are places q, q + 1, ... of a line of `wrap` places, of which those from q_count on are not stored;
#: then the next line begins. Place q of line p goes to out + 4 (p row_step + q pixel_step), `columns` neighbours of it.
#: first: channel of the first column. Its logical index is index + p index_row + q index_pixel + column index_column.
FINISH = (
    "rows", "columns", "first", "q", "q_count", "wrap", "row_step", "pixel_step", "out", "sums", "constants", "index",
    "index_row", "index_pixel", "index_column",
)  # fmt: skip


@kernel
def keep(target: Target, scheme: Scheme, row_tiles: int, panels: int) -> Emitter:
    """Puts a block's sums down in float64."""
    rows, columns = _size(scheme, row_tiles, panels)
    e = Emitter(target, f"keep_{scheme.how}_{scheme.b}_{rows}x{columns}{_suffix(scheme)}_{target.name}", KEEP)
    sums, held, accumulate = e.args

    def all_rows(add: bool) -> list[Value]:
        with e.loop(e.i(rows * columns), step=e.lanes, name="i") as i:
            value = _joined(e, scheme, sums, i.index, rows * columns)
            place = e.b.bitcast(e.at(e.pointer(held, F64), i.index), value.type.as_pointer())
            e.b.store(e.b.fadd(e.b.load(place, align=8), value) if add else value, place, align=8)
        return []

    e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), lambda: all_rows(True), lambda: all_rows(False))
    return e


@kernel
def finish(target: Target, scheme: Scheme, row_tiles: int, panels: int, how: str, held: bool) -> Emitter:
    """Results of a block: of its sums of parts, or of what `keep` has put down."""
    size = _size(scheme, row_tiles, panels)
    held_or_not = "_held" if held else _suffix(scheme)
    name = f"finish_{how}_{scheme.how}_{scheme.b}_{size[0]}x{size[1]}{held_or_not}_{target.name}"
    e = Emitter(target, name, FINISH)
    rows, columns, first, q, q_count, wrap, row_step, pixel_step, out, sums, constants = e.args[:11]
    index, index_row, index_pixel, index_column = e.args[11:]
    vectors, lanes = size[1] // e.lanes, e.lanes
    masks = [e.mask(e.sub(columns, v * lanes)) for v in range(vectors)]
    ends = [_End(e, how, constants, first, v, masks[v]) for v in range(vectors)]
    with e.loop(rows, [q, out, index], name="row") as row:
        q_now, line, index_line = row.carried

        def store(
            i: Value = row.index, q_now: Value = q_now, line: Value = line, first: Value = index_line
        ) -> list[Value]:
            to = e.at(e.pointer(line), e.mul(q_now, pixel_step))
            at = e.add(first, e.mul(q_now, index_pixel))
            for v in range(vectors):
                element = e.add(e.mul(i, size[1]), v * lanes)
                if held:
                    total = _doubles(e, e.at(e.pointer(sums, F64), element))
                else:
                    total = _joined(e, scheme, sums, element, size[0] * size[1])
                index_v = lanes_of(e, e.add(at, e.mul(index_column, v * lanes)), index_column)
                e.store(ends[v].result(total, index_v), e.at(to, v * lanes), masks[v])
            return []

        e.choose(e.less(q_now, q_count), store, list)  # a place behind the line's end is not stored
        following = e.add(q_now, 1)
        over = e.b.icmp_signed("==", following, wrap)
        row.result = [
            e.b.select(over, e.i(0), following),
            e.b.select(over, e.add(line, e.mul(row_step, 4)), line),
            e.b.select(over, e.add(index_line, index_row), index_line),
        ]
    return e


def _suffix(scheme: Scheme) -> str:
    return "_whole" if scheme.whole else ""


def _size(scheme: Scheme, row_tiles: int, panels: int) -> tuple[int, int]:
    """Rows and columns of a block."""
    if scheme.how == "tiles":
        return TILE_ROWS * row_tiles, scheme.width * panels
    return scheme.rows, scheme.width


def _doubles(e: Emitter, pointer: Value) -> Value:
    kind = ir.VectorType(F64, e.lanes)
    return e.b.load(e.b.bitcast(pointer, kind.as_pointer()), align=8)


def _joined(e: Emitter, scheme: Scheme, sums: Value, element: Value, plane: int) -> Value:
    """The whole sums of some elements of a block out of its sums of parts, in float64."""
    words, doubles = ir.VectorType(I32, e.lanes), ir.VectorType(F64, e.lanes)
    parts = [e.b.bitcast(e.load(e.at(e.pointer(sums), element, i * plane)), words) for i in range(len(scheme.shifts))]
    if scheme.whole:  # what leaves 32 bits on the way comes back
        lifted = [e.b.shl(part, every(part, shift)) for part, shift in zip(parts, scheme.shifts, strict=True)]
        return e.b.sitofp(functools.reduce(e.b.add, lifted), doubles)
    total = None
    for part, shift in sorted(zip(parts, scheme.shifts, strict=True), key=lambda pair: pair[1]):
        value = e.b.sitofp(part, doubles)
        total = value if total is None else _lifted(e, value, 2.0**shift, total)
    return total


def _lifted(e: Emitter, value: Value, factor: float, more: Value) -> Value:
    """value factor + more: exact, so that it does not matter how often it is rounded."""
    times, kind = every(value, factor), value.type
    if e.target.name == "generic":
        return e.b.fadd(e.b.fmul(value, times), more)
    fma = e.declare(f"llvm.fma.v{kind.count}f64", ir.FunctionType(kind, [kind] * 3))
    return e.b.call(fma, [value, times, more])


class _End:
    """What becomes of the sums of one vector of columns."""

    def __init__(self, e: Emitter, how: str, constants: Value, first: Value, vector: int, mask: Value) -> None:
        self.e, self.how, self._table = e, how, e.pointer(constants, I64)
        self._doubles = ir.VectorType(F64, e.lanes)
        if how == "scaled":
            filter_sums = e.b.sitofp(self._of_channels("filter_sums", first, vector, mask, I32), self._doubles)
            self._offsets = e.b.fmul(filter_sums, self._double("zero"))
            self._scales = e.b.fpext(self._of_channels("scales", first, vector, mask, F32), self._doubles)
            return
        self._lift, self._step, self._limit = (self._double(name) for name in ("lift", "step", "limit"))
        if how == "stochastic":
            self._key = e.splat(e.b.trunc(e.load_int(e.at(self._table, CONSTANTS.index("key"))), I32))

    def result(self, total: Value, index: Value) -> Value:
        """float32 results of float64 sums, at logical indices."""
        e = self.e
        if self.how == "scaled":
            exact = e.b.fsub(total, self._offsets)
            return e.b.fptrunc(e.b.fmul(exact, self._scales), e.vector)
        lifted = e.b.fmul(total, self._lift)
        if self.how == "nearest":
            whole = rounded(e, lifted, "rint")
        else:
            below = rounded(e, lifted, "floor")
            distance = rounded(e, e.b.fmul(e.b.fsub(lifted, below), every(lifted, 2.0**24)), "floor")
            up = e.b.fcmp_ordered("<", e.b.uitofp(drawn(e, self._key, index), self._doubles), distance)
            whole = e.b.fadd(below, e.b.select(up, every(below, 1.0), every(below, 0.0)))
        low, high = e.b.fneg(self._limit), e.b.fsub(self._limit, every(whole, 1.0))
        whole = e.b.select(e.b.fcmp_ordered("<", whole, low), low, whole)
        whole = e.b.select(e.b.fcmp_ordered(">", whole, high), high, whole)
        return e.b.fptrunc(e.b.fmul(whole, self._step), e.vector)

    def _double(self, name: str) -> Value:
        word = self.e.load_int(self.e.at(self._table, CONSTANTS.index(name)))
        return self.e.splat(self.e.b.bitcast(word, F64))

    def _of_channels(self, name: str, first: Value, vector: int, mask: Value, element: ir.Type) -> Value:
        e = self.e
        array = e.load_int(e.at(self._table, CONSTANTS.index(name)))
        values = e.load(e.at(e.pointer(array), first, vector * e.lanes), mask)
        return e.b.bitcast(values, ir.VectorType(element, e.lanes))
