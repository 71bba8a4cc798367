"""Filters into panels: rows of P columns in the order in which brgemm reads them, from either layout.

A filter's matrix has one row for each output channel of the product; `turn` transposes it 16 x 16 (lanes x lanes) in
registers, `place` copies rows that already run along the panel. Where each row of a panel goes is read from a table, so
that the order of taps and channels, and a turned filter, cost nothing. A filter in float16 (`source_type`) becomes
float32 on the way.
"""

from __future__ import annotations

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter, Value
from convbench.simd.kernels.gemm_pixels import prefetch
from convbench.simd.kernels.stored import element, load
from convbench.simd.kernels.transpose import in_registers, turned_part
from convbench.simd.target import Target

#: rows, columns: of the source. from_, to, table: addresses; row_from: elements between the source's rows.
ARGUMENTS = ("rows", "columns", "from_", "row_from", "to", "table")

RUN = 4  # tiles beside each other that are read before the next rows: whole pages are not left half-read


@kernel
def turn(target: Target, source_type: str = "float32") -> Emitter:
    """to[table[j] + i] = from_[i row_from + j] for i < rows, j < columns."""
    e = Emitter(target, f"pack_turn_{target.name}{_suffix(source_type)}", ARGUMENTS)
    rows, columns, source, row_from, to, table = e.args
    lanes = e.lanes
    with e.loop(columns, step=RUN * lanes, name="run") as run, e.loop(rows, step=lanes, name="i") as i:
        width = e.minimum(e.sub(columns, run.index), RUN * lanes)
        with e.loop(width, step=lanes, name="j") as j:
            column = e.add(run.index, j.index)
            _tile(
                e,
                source_type,
                e.at(e.pointer(source, element(source_type)), e.mul(row_from, i.index), column),
                row_from,
                (e.sub(rows, i.index), e.sub(columns, column)),
                e.at(e.pointer(to), i.index),
                e.at(e.pointer(table, I64), column),
            )
    return e


def _suffix(source_type: str) -> str:
    return "" if source_type == "float32" else f"_{source_type}"


def _tile(
    e: Emitter, source_type: str, tile: Value, row_from: Value, left: tuple[Value, Value], to: Value, places: Value
) -> None:
    rows, columns = left

    def whole() -> list[Value]:
        vectors = []
        for m in range(e.lanes):
            place = e.at(tile, e.mul(row_from, m))
            prefetch(e, e.at(place, RUN * e.lanes), write=False)
            vectors.append(load(e, source_type, place))
        for m, vector in enumerate(in_registers(e, vectors)):
            e.store(vector, e.at(to, e.load_int(e.at(places, m))))
        return []

    def part() -> list[Value]:
        zero = e.i(0)
        for m, vector in enumerate(turned_part(e, tile, row_from, rows, columns, source_type)):
            exists = e.less(m, columns)
            place = e.load_int(e.at(places, e.b.select(exists, e.i(m), zero)))
            e.store(vector, e.at(to, place), e.mask(e.b.select(exists, rows, zero)))
        return []

    e.choose(e.b.and_(e.less(e.lanes - 1, rows), e.less(e.lanes - 1, columns)), whole, part)


@kernel
def place(target: Target, source_type: str = "float32") -> Emitter:
    """to[table[i] + j] = from_[i row_from + j] for i < rows, j < columns."""
    e = Emitter(target, f"pack_place_{target.name}{_suffix(source_type)}", ARGUMENTS)
    rows, columns, source, row_from, to, table = e.args
    with e.loop(rows, name="i") as i:
        row = e.at(e.pointer(source, element(source_type)), e.mul(row_from, i.index))
        out = e.at(e.pointer(to), e.load_int(e.at(e.pointer(table, I64), i.index)))
        with e.loop(columns, step=e.lanes, name="j") as j:
            mask = e.mask(e.sub(columns, j.index))
            e.store(load(e, source_type, e.at(row, j.index), mask), e.at(out, j.index), mask)
    return e


#: to[i width + j] = from_[i row_from + j] for i < rows, j < columns <= width.
PANEL = ("rows", "columns", "from_", "row_from", "to")


@kernel
def panel(target: Target, vectors: int) -> Emitter:
    """Rows that lie far apart into a panel vectors * lanes wide; what follows each is fetched for the next panel."""
    e = Emitter(target, f"pack_panel_{target.name}_{vectors}", PANEL)
    rows, columns, source, row_from, to = e.args
    lanes = e.lanes

    def copied(masks: list[Value | None]) -> list[Value]:
        with e.loop(rows, name="i") as i:
            row = e.at(e.pointer(source), e.mul(row_from, i.index))
            out = e.at(e.pointer(to), e.mul(i.index, vectors * lanes))
            for v in range(0, vectors, max(1, 16 // lanes)):
                prefetch(e, e.at(row, (vectors + v) * lanes), write=False)
            values = [e.load(e.at(row, v * lanes), mask) for v, mask in enumerate(masks)]
            for v, value in enumerate(values):
                e.store(value, e.at(out, v * lanes))
        return []

    whole = e.b.icmp_signed(">=", columns, e.i(vectors * lanes))
    masks: list[Value | None] = [e.mask(e.sub(columns, v * lanes)) for v in range(vectors)]
    e.choose(whole, lambda: copied([None] * vectors), lambda: copied(masks))
    return e
