"""Epilogues: the sums of a block become results, and go to their places.

A kernel with the arguments `amx.END`: for each pair (row, place) at `entries`, the row of `sums` (width words, int32 or
float32) is finished and written to out[place ...], `columns` elements of it. `first` is the output channel of the first
column; `constants` the address of a table of int64, whose item 0 is the address of one int32 for each output channel
(`offsets`), to be subtracted.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import F32, I32, I64, Emitter, Value
from convbench.simd.kernels import strips
from convbench.simd.kernels.amx import END
from convbench.simd.kernels.transpose import ARGUMENTS, in_registers, turned_part
from convbench.simd.target import Target

#: finish(e, vector of sums (int32 or float32), vector number, its mask) -> what is written.
Finish = Callable[[Emitter, Value, int, Value], Value]


def epilogue(
    target: Target, name: str, vectors: int, sums: ir.Type, result: ir.Type, constants: Callable[[Emitter], Finish]
) -> Emitter:
    """The kernel around `finish`. constants(e) loads what the columns need, once, and gives finish."""
    e = Emitter(target, f"end_{name}_{vectors}_{target.name}", END)
    rows, columns, _, entries, at, out, _ = e.args
    masks = [e.mask(e.sub(columns, v * e.lanes)) for v in range(vectors)]
    finish = constants(e)
    pairs, kind = e.pointer(entries, I64), ir.VectorType(sums, e.lanes)

    def all_rows(whole: bool) -> list[Value]:
        with e.loop(e.mul(rows, 2), step=2, name="row") as row:
            source = e.at(e.pointer(at), e.mul(e.load_int(e.at(pairs, row.index)), vectors * e.lanes))
            to = e.at(e.pointer(out, result), e.load_int(e.at(pairs, row.index, 1)))
            for v in range(vectors):
                value = e.b.bitcast(e.load(e.at(source, v * e.lanes)), kind)
                mask = None if whole else masks[v]
                strips.store_elements(e, finish(e, value, v, masks[v]), e.at(to, v * e.lanes), mask)
        return []

    full = e.b.icmp_signed(">=", columns, e.i(vectors * e.lanes))
    e.choose(full, lambda: all_rows(True), lambda: all_rows(False))
    return e


def channel_constants(e: Emitter, vectors: int, item: int, element: ir.Type) -> list[Value]:
    """One number of 32 bits for each column, out of the array whose address is an item of the table of constants."""
    _, columns, first, *_, constants = e.args
    array = e.at(e.pointer(e.load_int(e.at(e.pointer(constants, I64), item))), first)
    kind = ir.VectorType(element, e.lanes)
    masks = [e.mask(e.sub(columns, v * e.lanes)) for v in range(vectors)]
    return [e.b.bitcast(e.load(e.at(array, v * e.lanes), mask), kind) for v, mask in enumerate(masks)]


@kernel
def integers(target: Target, vectors: int, offsets: bool) -> Emitter:
    """int32 sums, less the offsets of their channels, as int32."""

    def constants(e: Emitter) -> Finish:
        subtracted = channel_constants(e, vectors, 0, I32) if offsets else []
        return lambda e, value, v, mask: e.b.sub(value, subtracted[v]) if offsets else value

    return epilogue(target, f"integers{'_offsets' if offsets else ''}", vectors, I32, I32, constants)


@kernel
def scaled(target: Target, vectors: int, offsets: bool) -> Emitter:
    """int32 sums, less the offsets of their channels, times float32 scales (item 1), as float32."""

    def constants(e: Emitter) -> Finish:
        subtracted = channel_constants(e, vectors, 0, I32) if offsets else []
        scales = channel_constants(e, vectors, 1, F32)

        def finish(e: Emitter, value: Value, v: int, mask: Value) -> Value:
            exact = e.b.sub(value, subtracted[v]) if offsets else value
            return e.fmul(e.b.sitofp(exact, e.vector), scales[v])

        return finish

    return epilogue(target, f"scaled{'_offsets' if offsets else ''}", vectors, I32, F32, constants)


@kernel
def bfloat16(target: Target, vectors: int) -> Emitter:
    """float32 sums rounded to bfloat16."""
    return epilogue(
        target, "bfloat16", vectors, F32, strips.I16, lambda e: lambda e, value, v, mask: rounded(e, value)
    )


@kernel
def unchanged(target: Target, vectors: int) -> Emitter:
    """float32 sums as they are."""
    return epilogue(target, "unchanged", vectors, F32, F32, lambda e: lambda e, value, v, mask: value)


def rounded(e: Emitter, value: Value) -> Value:
    """float32 to the bits of bfloat16: to nearest, ties to even; NaN stays NaN."""
    if e.target.has("avx512bf16"):
        bf16 = ir.VectorType(strips.I16, e.lanes)
        return _instruction(e, value, bf16)
    word = e.b.bitcast(value, ir.VectorType(I32, e.lanes))

    def every(number: int) -> Value:
        return ir.Constant(word.type, [number] * e.lanes)

    odd = e.b.and_(e.b.lshr(word, every(16)), every(1))
    near = e.b.add(word, e.b.add(odd, every(0x7FFF)))
    number = e.b.fcmp_ordered("ord", value, value)
    kept = e.b.select(number, near, e.b.or_(word, every(1 << 22)))
    return e.b.trunc(e.b.lshr(kept, every(16)), ir.VectorType(strips.I16, e.lanes))


@kernel
def turned_bfloat16(target: Target) -> Emitter:
    """to[j, i] = from_[i, j] rounded to bfloat16, from float32: as `transpose`."""
    e = Emitter(target, f"turned_bfloat16_{target.name}", ARGUMENTS)
    rows, columns, source, row_from, to, row_to = e.args
    lanes = e.lanes
    with e.loop(rows, step=lanes, name="i") as i, e.loop(columns, step=lanes, name="j") as j:
        left = e.sub(rows, i.index), e.sub(columns, j.index)
        tile = e.at(e.pointer(source), e.mul(row_from, i.index), j.index)
        out = e.at(e.pointer(to, strips.I16), e.mul(row_to, j.index), i.index)

        def whole(tile: Value = tile, out: Value = out) -> list[Value]:
            vectors = [e.load(e.at(tile, e.mul(row_from, m))) for m in range(lanes)]
            for m, vector in enumerate(in_registers(e, vectors)):
                strips.store_elements(e, rounded(e, vector), e.at(out, e.mul(row_to, m)))
            return []

        def part(tile: Value = tile, out: Value = out, left: tuple[Value, Value] = left) -> list[Value]:
            for m, vector in enumerate(turned_part(e, tile, row_from, *left)):
                exists = e.less(m, left[1])
                mask = e.mask(e.b.select(exists, left[0], e.i(0)))
                place = e.at(out, e.b.select(exists, e.mul(row_to, m), e.i(0)))
                strips.store_elements(e, rounded(e, vector), place, mask)
            return []

        e.choose(e.b.and_(e.less(lanes - 1, left[0]), e.less(lanes - 1, left[1])), whole, part)
    return e


def _instruction(e: Emitter, value: Value, kind: ir.VectorType) -> Value:
    """VCVTNEPS2BF16. (It takes subnormal numbers for 0, as the products of bfloat16 do.)"""
    result = ir.VectorType(_BF16, e.lanes)
    name = f"llvm.x86.avx512bf16.cvtneps2bf16.{e.target.bits}"
    return e.b.bitcast(e.b.call(e.declare(name, ir.FunctionType(result, [e.vector])), [value]), kind)


class _Bfloat(ir.HalfType):
    """LLVM's bfloat, which llvmlite does not name."""

    def __new__(cls) -> _Bfloat:
        """Not the one instance that llvmlite keeps of each type that it does name."""
        return object.__new__(cls)

    def __str__(self) -> str:
        return "bfloat"


_BF16 = _Bfloat()
