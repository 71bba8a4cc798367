"""Transforms Y = M X M^T of whole rows of tiles: into planes of vectors of channels, and back out of them.

The matrix is a constant of the kernel, as in transform.py; here tiles, their pixels and the results lie at fixed
strides, so that no table of addresses is needed.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I32, Emitter, Value
from convbench.simd.kernels.stored import element, store
from convbench.simd.kernels.transform import Matrix, linear
from convbench.simd.target import Target

#: X[i, j] of tile t at from_ + t tile + i row + j pixel, `channels` of them next to each other. Y of the v-th vector
#: of channels at to + v jump + t lanes, its elements `plane` apart. Strides in elements. Lanes beyond `channels` are
#: written as the transform of zeros.
SPREAD = ("tiles", "channels", "from_", "tile", "row", "pixel", "to", "plane", "jump")
#: X of row m and of column n at from_ + m row_from + n, its elements `plane_from` apart; vectors of columns are read
#: whole. Y at to + m row_to + n, its elements `plane_to` apart; columns beyond `columns` are not written.
COLLECT = ("rows", "columns", "from_", "row_from", "plane_from", "to", "row_to", "plane_to")
#: Lines that hold `columns` floats of each row, to be written soon: they are fetched, and nothing waits for them.
TOUCH = ("rows", "columns", "from_", "row")
LINE = 16  # floats


@kernel
def touch(target: Target) -> Emitter:
    """The kernel that asks for lines which are going to be written: TOUCH."""
    e = Emitter(target, f"touch_{target.name}", TOUCH)
    rows, columns, source, row = e.args
    byte = ir.IntType(8)
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), I32, I32, I32])
    prefetch = e.declare("llvm.prefetch.p0", kind)
    flags = [ir.Constant(I32, value) for value in (1, 3, 1)]  # for writing, into the first level, data
    with e.loop(rows, name="row") as m, e.loop(columns, step=LINE, name="line") as n:
        place = e.at(e.pointer(source), e.mul(row, m.index), n.index)
        e.b.call(prefetch, [e.b.bitcast(place, byte.as_pointer()), *flags])
    return e


@kernel
def spread(target: Target, matrix: Matrix, name: str) -> Emitter:
    """The kernel that transforms tiles of columns x columns pixels into planes: SPREAD."""
    e = Emitter(target, f"spread_{name}_{target.name}", SPREAD)
    tiles, channels, source, tile, row, pixel, to, plane, jump = e.args
    whole = e.mul(e.b.sdiv(channels, e.i(e.lanes)), e.lanes)
    rest = e.sub(channels, whole)
    some = e.minimum(rest, 1)
    mask = e.mask(rest)
    taps = len(matrix[0])
    with e.loop(tiles, name="tile") as t:
        first = e.at(e.pointer(source), e.mul(tile, t.index))
        out = e.at(e.pointer(to), e.mul(t.index, e.lanes))

        def one(channel: Value, vector: Value, chosen: Value | None) -> None:
            start, end = e.at(first, channel), e.at(out, e.mul(jump, vector))
            half = []  # one column of M X after the other
            for j in range(taps):
                x = [e.load(e.at(start, e.add(e.mul(row, i), e.mul(pixel, j))), chosen) for i in range(taps)]
                half.append(linear(e, matrix, x))
            for i in range(len(matrix)):
                for j, value in enumerate(linear(e, matrix, [column[i] for column in half])):
                    e.store(value, e.at(end, e.mul(plane, i * len(matrix) + j)))

        with e.loop(whole, step=e.lanes, name="channel") as c:
            one(c.index, e.b.sdiv(c.index, e.i(e.lanes)), None)
        with e.loop(some, name="rest"):
            one(whole, e.b.sdiv(whole, e.i(e.lanes)), mask)
    return e


@kernel
def collect(target: Target, matrix: Matrix, name: str, result_type: str = "float32") -> Emitter:
    """The kernel that transforms planes (columns x columns of them) into rows x rows values: COLLECT."""
    suffix = "" if result_type == "float32" else f"_{result_type}"
    e = Emitter(target, f"collect_{name}_{target.name}{suffix}", COLLECT)
    rows, columns, source, row_from, plane_from, to, row_to, plane_to = e.args
    size, taps = len(matrix), len(matrix[0])
    with e.loop(rows, name="row") as m, e.loop(columns, step=e.lanes, name="column") as n:
        left = e.sub(columns, n.index)
        mask = e.mask(left)
        start = e.at(e.pointer(source), e.mul(row_from, m.index), n.index)
        end = e.at(e.pointer(to, element(result_type)), e.mul(row_to, m.index), n.index)
        half = []
        for j in range(taps):
            half.append(linear(e, matrix, [e.load(e.at(start, e.mul(plane_from, i * taps + j))) for i in range(taps)]))
        values = [value for i in range(size) for value in linear(e, matrix, [column[i] for column in half])]

        def write(chosen: Value | None, values: list[Value] = values, end: Value = end) -> list[Value]:
            for index, value in enumerate(values):
                store(e, result_type, value, e.at(end, e.mul(plane_to, index)), chosen)
            return []

        if target.free_masks:
            write(mask)
        else:
            e.choose(
                e.less(e.lanes - 1, left), lambda write=write: write(None), lambda write=write, mask=mask: write(mask)
            )
    return e
