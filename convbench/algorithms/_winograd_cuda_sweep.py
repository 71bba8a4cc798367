"""Other programs of the Winograd rows on a GPU, for a sweep: tiles of the products, chunks, parts of sums."""

from __future__ import annotations

from collections.abc import Iterator

from convbench.algorithms._cuda_sgemm import SWEPT, TILES, tile_of
from convbench.algorithms._winograd_cuda import (
    Choice,
    Geometry,
    chunk_numbers,
    chunks,
    forward_operands,
    forward_program,
    forward_splits,
    fused_depths,
    fused_program,
    weight_splits,
    weights_operands,
    weights_program,
)
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import Program


def other_programs(g: Geometry, gpu: Gpu, vendor: bool, weights: bool) -> dict[str, Program]:
    """Not fused: what differs from the program that is chosen, one thing at a time."""
    make = weights_program if weights else forward_program
    return {name: make(g, gpu, vendor, choice) for name, choice in _choices(g, gpu, vendor, weights)}


def _choices(g: Geometry, gpu: Gpu, vendor: bool, weights: bool) -> Iterator[tuple[str, Choice]]:
    parts = chunks(g, gpu, weights)
    fewest, fitting, most = chunk_numbers(g, gpu)
    now = len(parts)
    for number in sorted({fewest, now // 2, 2 * now, fitting, 2 * fitting}):
        if fewest <= number <= most and len(chunks(g, gpu, weights, number)) == number != now:
            yield f"{number} chunks", Choice(chunks=number)
    if vendor:
        return
    tiles = max(tiles for _, tiles in parts)
    splits = (weight_splits if weights else forward_splits)(g, gpu, tiles)
    o = weights_operands(g, tiles, splits, False) if weights else forward_operands(g, tiles, splits)
    for tile in (*TILES[o.a_rows, o.b_rows], *SWEPT[o.a_rows, o.b_rows]):
        if tile != tile_of(o, gpu):
            yield f"{tile[0]}x{tile[1]}", Choice(tile=tile)
    for number in sorted({1, splits // 2, 2 * splits}):
        if 1 <= number <= o.k // 16 and number != splits:
            yield f"{number} splits", Choice(splits=number)


def other_fused_programs(g: Geometry, gpu: Gpu) -> dict[str, Program]:
    """F(2x2,3x3): fewer channels at a time, and not fused."""
    fewer = {f"depth {depth}": fused_program(g, depth) for depth in fused_depths(gpu)[1:]}
    return fewer | {"not fused": forward_program(g, gpu, False)}
