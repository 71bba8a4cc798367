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
    at = dict(zip(amx.ARGUMENTS, e.args, strict=True))
    width = vectors * e.lanes
    with e.loop(at["count"], name="block") as turn, e.loop(at["panels"], name="panel") as panel:
        block = e.at(e.pointer(at["blocks"], I64), e.mul(turn.index, amx.BLOCK))
        offset, results, entries = (e.load_int(e.at(block, i)) for i in (1, 3, 4))
        here = amx.panel_at(e, at, panel.index, width)
        amx.call_address(e, at["unit"], (
            at["rows"], e.i(width), e.add(at["a"], e.mul(offset, 4)), at["row_a"], here["b"], e.i(width),
            at["segments"], at["segment_count"], e.mul(at["steps"], at["chunk"]), at["sums"], e.i(width), e.i(0),
        ))  # fmt: skip
        amx.call_address(
            e, at["end"],
            (results, here["columns"], here["first"], entries, at["sums"], here["c"], at["constants"]),
        )  # fmt: skip
    return e


def rows_for(target: Target, kind: str, vectors: int) -> int:
    """Most rows of a tile."""
    return bits.shape_for(target, KINDS[kind], vectors).rows
