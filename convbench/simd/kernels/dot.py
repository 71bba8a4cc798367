"""The products of `amx.blocks` for units without tiles: the same panels, the same tables, by `bits.narrow_brgemm`.

A block has one tile of rows here. Bytes are multiplied unsigned by signed; a signed A is stored 128 larger, see
`_dot_simd`.
"""

from __future__ import annotations

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter
from convbench.simd.kernels import amx, bits
from convbench.simd.target import Target

#: narrow_brgemm's name of each kind of product.
KINDS = {"s8s8": "u8s8", "u8s8": "u8s8", "bf16": "bf16"}


@kernel
def blocks(target: Target, vectors: int) -> Emitter:
    """As amx.blocks; `unit` is the address of the narrow_brgemm that multiplies, `row_c` is not used."""
    e = Emitter(target, f"dot_blocks_{target.name}_{vectors}", amx.ARGUMENTS)
    (table, count, a, row_a, b, segments, segment_count, steps, chunk, rows, sums, c, _,
     end, constants, columns, first, unit) = e.args  # fmt: skip
    width = vectors * e.lanes
    with e.loop(count, name="block") as turn:
        block = e.at(e.pointer(table, I64), e.mul(turn.index, amx.BLOCK))
        offset, results, entries = (e.load_int(e.at(block, i)) for i in (1, 3, 4))
        amx.call_address(e, unit, (
            rows, e.i(width), e.add(a, e.mul(offset, 4)), row_a, b, e.i(width), segments, segment_count,
            e.mul(steps, chunk), sums, e.i(width), e.i(0),
        ))  # fmt: skip
        amx.call_address(e, end, (results, columns, first, entries, sums, c, constants))
    return e


def rows_for(target: Target, kind: str, vectors: int) -> int:
    """Most rows of a tile."""
    return bits.shape_for(target, KINDS[kind], vectors).rows
