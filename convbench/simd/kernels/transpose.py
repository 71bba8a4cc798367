"""Transposes of matrices of any size, 16 x 16 (lanes x lanes) float32 in registers: NCHW rows to NHWC and back.

Source and result may lie in memory as float16 each: elements are converted on the way, see `stored.py`.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I32, Emitter, Value
from convbench.simd.kernels.stored import convert, element, load, store
from convbench.simd.target import Target

#: to[j, i] = from_[i, j] for i < rows, j < columns. Addresses, counts, and row strides in elements.
ARGUMENTS = ("rows", "columns", "from_", "row_from", "to", "row_to")


@kernel
def transpose(target: Target, source_type: str = "float32", result_type: str = "float32") -> Emitter:
    """to[j, i] = from_[i, j]. Reads and writes nothing outside the two matrices."""
    types = (source_type, result_type)
    suffix = "" if types == ("float32", "float32") else "_{}_{}".format(*types)
    e = Emitter(target, f"transpose_{target.name}{suffix}", ARGUMENTS)
    rows, columns, source, row_from, to, row_to = e.args
    lanes = e.lanes
    with e.loop(rows, step=lanes, name="i") as i:
        rows_left = e.sub(rows, i.index)
        with e.loop(columns, step=lanes, name="j") as j:
            columns_left = e.sub(columns, j.index)
            tile = e.at(e.pointer(source, element(source_type)), e.mul(row_from, i.index), j.index)
            out = e.at(e.pointer(to, element(result_type)), e.mul(row_to, j.index), i.index)
            whole = e.b.and_(e.less(lanes - 1, rows_left), e.less(lanes - 1, columns_left))
            e.choose(
                whole,
                lambda tile=tile, out=out: _whole(e, types, tile, row_from, out, row_to),
                lambda tile=tile, out=out, left=(rows_left, columns_left): _part(
                    e, types, tile, row_from, out, row_to, *left
                ),
            )
    return e


def conversions(target: Target, dtype: str) -> dict[str, int]:
    """Bytes of an element, and addresses of the kernels between activations of a dtype and strips of float32.

    transpose, convert: into a strip, from nchw and from nhwc; transpose_out, convert_out: out of one. float32 is never
    converted: 0.
    """
    if dtype == "float32":
        turned = transpose(target).address
        return {"size": 4, "transpose": turned, "transpose_out": turned, "convert": 0, "convert_out": 0}
    return {
        "size": 2,
        "transpose": transpose(target, dtype, "float32").address,
        "transpose_out": transpose(target, "float32", dtype).address,
        "convert": convert(target, dtype, "float32").address,
        "convert_out": convert(target, "float32", dtype).address,
    }


def _whole(
    e: Emitter, types: tuple[str, str], tile: Value, row_from: Value, out: Value, row_to: Value
) -> list[Value]:
    vectors = [load(e, types[0], e.at(tile, e.mul(row_from, m))) for m in range(e.lanes)]
    for m, vector in enumerate(in_registers(e, vectors)):
        store(e, types[1], vector, e.at(out, e.mul(row_to, m)))
    return []


def _part(
    e: Emitter, types: tuple[str, str], tile: Value, row_from: Value, out: Value, row_to: Value, rows: Value,
    columns: Value,
) -> list[Value]:  # fmt: skip
    zero = e.i(0)
    for m, vector in enumerate(turned_part(e, tile, row_from, rows, columns, types[0])):
        exists = e.less(m, columns)
        mask = e.mask(e.b.select(exists, rows, zero))
        store(e, types[1], vector, e.at(out, e.b.select(exists, e.mul(row_to, m), zero)), mask)
    return []


def turned_part(
    e: Emitter, tile: Value, row_from: Value, rows: Value, columns: Value, source_type: str = "float32"
) -> list[Value]:
    """The transpose of a tile that may have fewer than lanes x lanes elements, in registers.

    Rows that do not exist are read as nothing (an empty mask at the tile's own address).
    """
    zero, vectors = e.i(0), []
    for m in range(e.lanes):
        exists = e.less(m, rows)
        mask = e.mask(e.b.select(exists, columns, zero))
        vectors.append(load(e, source_type, e.at(tile, e.b.select(exists, e.mul(row_from, m), zero)), mask))
    return in_registers(e, vectors)


def in_registers(e: Emitter, vectors: list[Value]) -> list[Value]:
    """The transpose of a lanes x lanes matrix held in registers: log2(lanes) rounds of two-input shuffles.

    In round d, rows m and m + d (where bit d of m is 0) exchange the lanes whose bit d differs from the row's.
    """
    n, rows, d = e.lanes, list(vectors), 1
    while d < n:
        low = [lane if not lane & d else n + lane - d for lane in range(n)]
        high = [lane + d if not lane & d else n + lane for lane in range(n)]
        swapped = list(rows)
        for m in range(n):
            if not m & d:
                swapped[m] = _shuffle(e, rows[m], rows[m + d], low)
                swapped[m + d] = _shuffle(e, rows[m], rows[m + d], high)
        rows, d = swapped, 2 * d
    return rows


def _shuffle(e: Emitter, x: Value, y: Value, lanes: list[int]) -> Value:
    return e.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))
