"""Convolution over narrow numbers as implicit GEMM: the engine of the int8 and bfloat16 rows, and how to build on it.

A strip of padded input, channels innermost, stays in the second-level cache as bytes or 16-bit numbers. Products of its
pixels with panels of the filter are AMX tiles where the unit has them, dot-product instructions elsewhere, ordinary
instructions at worst (`simd/kernels/amx`, `dot`, `bits`); an epilogue makes results of the sums.

A row is a `Format`, handed to `prepare_products` (forward, backward data). To make one of your own:

1. Say what is multiplied: `kind` "s8s8" or "u8s8" (int32 sums) or "bf16" (float32 sums), and the bytes of an element of
   both operands, of a strip (1 or 2) and of the result.
2. Write `fill`, which converts pixels of the operand: a kernel with the arguments `strips.ARGUMENTS`, made by
   `strips.pixels` and `strips.planes` around a function convert(e, vector, constants). `weigh` is the same for the
   filter. `blank` (arguments `strips.BLANK`) writes padding: the number that stands for zero. Channels that round a
   pixel up to whole words need not hold anything in particular, but no NaN: their weights are zero.
3. Write `end`, the epilogue, around a function finish(e, sums, vector, mask) with `ends.epilogue`; per-channel numbers
   are loaded with `ends.channel_constants`. In nchw `held` is called instead, which leaves 32-bit numbers, and `turn`
   (arguments of `transpose`) brings them to their places. An epilogue may be called twice for the same pixel.
4. Pass `constants`, an array of int64 whose address every kernel gets: scales, addresses of per-channel arrays. Item 0
   is the engine's: the address of the `offsets`, one int32 for each output channel, that `end` has to subtract when it
   is made with offsets = True. They are (bias) x (sum of the channel's weights). The engine needs them where a unit
   multiplies bytes unsigned by signed only: there the engine makes fill, blank with flip = True, which have to store an
   int8 128 larger, and sets the bias to 128. A Format of kind "u8s8" may set `bias` to its zero point; or to 1, and get
   the plain sums of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.algorithms._dot_simd_plan import Group, Plan, Unit, plan
from convbench.algorithms._dot_simd_tasks import (
    GROUP_ITEMS,
    NAMES,
    OUT,
    PANELS,
    TILE_ITEMS,
    WEIGHTS,
    A,
    pack_task,
    tile_task,
)
from convbench.algorithms._gemm_simd import Geometry
from convbench.algorithms._simd import address_of
from convbench.algorithms._tiled_run import Tasks, tiled_run
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run
from convbench.simd.compiler import Kernel
from convbench.simd.kernels import amx, bits, dot, pack
from convbench.simd.target import Target

#: What a unit without tiles adds to signed bytes.
FLIP = 128
#: Bytes of panels that each block of pixels is multiplied with before the next block: they stay in the second-level
#: cache, and the block's pixels in the first.
NEAR_PANELS_BYTES = 640 << 10


@dataclass(frozen=True)
class Format:
    """What a row brings: numbers in memory, and the kernels that convert them; see above.

    a_bytes, w_bytes, strip_bytes, out_bytes: of an element of the operands, of strips and panels, of the result.
    fill(target, from_planes, flip), weigh(target, from_planes), blank(target, flip), end(target, vectors, offsets),
    held(target, vectors, offsets), turn(target). fill_few(target, from_planes, flip, channels, pixel): a faster fill
    for images of few channels, if there is one. copies: strips hold the operand's own bytes (where nothing is flipped),
    panels the filter's, so they may be read in place. direct: sums are results as they are.
    """

    kind: str
    a_bytes: int
    w_bytes: int
    strip_bytes: int
    out_bytes: int
    fill: Callable[[Target, bool, bool], Kernel]
    weigh: Callable[[Target, bool], Kernel]
    blank: Callable[[Target, bool], Kernel]
    end: Callable[[Target, int, bool], Kernel]
    held: Callable[[Target, int, bool], Kernel]
    turn: Callable[[Target], Kernel]
    copies: bool = False
    direct: bool = False
    bias: int = 0
    fill_few: Callable[[Target, bool, bool, int, int], Kernel] | None = None

    def flips(self, target: Target) -> bool:
        """Whether strips hold int8 128 larger."""
        return self.kind == "s8s8" and not amx.has_instruction(target, self.kind)

    def bias_of(self, target: Target) -> int:
        """The byte whose products with the filter have to be subtracted; 0: none."""
        return FLIP if self.flips(target) else self.bias


def unit_of(problem: Problem, target: Target, form: Format) -> Unit:
    """Blocks of the product on this unit."""
    vectors = 2 if Geometry.of(problem).filters > target.lanes else 1
    width, direct = vectors * target.lanes, form.direct and form.bias_of(target) == 0
    if amx.has_instruction(target, form.kind):
        return Unit(amx.TILE_ROWS, 2, amx.TILE_BYTES // 4, width, form.strip_bytes, form.copies, direct)
    copies = form.copies and not form.flips(target)
    return Unit(dot.rows_for(target, form.kind, vectors), 1, 0, width, form.strip_bytes, copies, False)


def plan_of(problem: Problem, target: Target, form: Format, threads: int) -> Plan:
    """Tables for this vector unit."""
    return plan(problem, unit_of(problem, target, form), threads)


def workspace(problem: Problem, target: Target, form: Format) -> int:
    """Bytes that prepare_products takes in one thread."""
    made = plan_of(problem, target, form, 1)
    words = _packed_words(made) + _scratch_words(made) + _rows_words(made, problem, form) + made.depth
    return 4 * (words + 16 * 5 + made.geometry.filters * made.geometry.groups) + 8 * (table_items(made) + made.depth)


def executed(problem: Problem, target: Target, form: Format) -> dict[str, float]:
    """Operations of the products, junk and padding included."""
    made = plan_of(problem, target, form, 1)
    return {"multiply": 2.0 * made.geometry.images * made.geometry.groups * made.multiplied}


def prepare_products(
    problem: Problem, context: Context, weights: Any, target: Target, form: Format, constants: np.ndarray | None = None
) -> Run:
    """Forward and backward data: run(a, b, out), or run(a, out) where the filter is given now."""
    made, g = plan_of(problem, target, form, context.threads), Geometry.of(problem)
    given = np.zeros(1, np.int64) if constants is None else constants
    tables = _tables(made, target, form)
    context.account(tables.nbytes, "tables")
    packed, scratch, rows, bias, offsets = (
        _zeros(context, words)
        for words in (
            _packed_words(made), _scratch_words(made) * context.threads,
            _rows_words(made, problem, form) * context.threads, made.depth, g.filters * g.groups,
        )
    )  # fmt: skip
    bias.view(np.uint8)[:] = form.bias_of(target)
    given[0] = address_of(offsets)
    order = _packing_order(made, problem, form)
    whole = np.zeros(2, np.int64)  # one segment: all of a panel
    context.account(order.nbytes, "order of the filter")
    jobs = g.images * g.groups * len(made.tiles)
    chunks = 1 if jobs >= 8 * context.threads or context.threads == 1 else min(made.panels, context.threads)
    values: dict[str, int] = {
        "packed": address_of(packed), "tiles": tables.ctypes.data, "scratch": address_of(scratch),
        "per_thread": _scratch_words(made), "strip": made.strip_words, "sums": made.sum_words, "nchw": made.nchw,
        "groups": g.groups, "tile_count": len(made.tiles), "chunks": chunks, "panels": made.panels,
        "panels_near": 1 if made.nchw else max(1, NEAR_PANELS_BYTES // (4 * made.panel_words)),
        "width": made.unit.width, "channels": g.channels, "filters": g.filters, "panel_words": made.panel_words,
        "a_height": g.a_height, "a_width": g.a_width, "height": g.height, "out_width": g.width, "left": made.left,
        "columns": made.columns, "step_h": made.step[0], "step_w": made.step[1], "origin": made.origin,
        "pixel": made.pixel, "chunk": made.chunk, "steps": made.steps, "a_bytes": form.a_bytes,
        "strip_bytes": form.strip_bytes, "out_bytes": form.out_bytes, "constants": address_of(given),
        "w_bytes": form.w_bytes, "rows": address_of(rows), "per_rows": _rows_words(made, problem, form),
        "place": pack.turn(target).address, "place_table": order.ctypes.data, "place_columns": len(order),
        "bias": address_of(bias) if form.bias_of(target) else 0, "bias_segments": whole.ctypes.data,
        "bias_depth": made.depth, "offsets": address_of(offsets),
        **_kernels(made, target, form), **_conversion(made, problem, form, target),
    }  # fmt: skip
    parameters = np.zeros(len(NAMES), np.int64)
    for name, value in values.items():
        parameters[NAMES.index(name)] = value
    tasks = Tasks(tile_task, pack_task, A, WEIGHTS, OUT, PANELS)
    return tiled_run(
        tasks, parameters, g.groups * made.panels, jobs * chunks, context.threads, weights, made.strip_words > 0,
        kept=(packed, scratch, rows, bias, offsets, tables, order, whole, given),
    )  # fmt: skip


def _zeros(context: Context, words: int) -> np.ndarray:
    array = context.empty(max(words, 1), np.int32)
    array.fill(0)
    return array


def _packed_words(made: Plan) -> int:
    return made.geometry.groups * made.panels * made.panel_words


def _scratch_words(made: Plan) -> int:
    """Of one thread: strip, block of sums, results."""
    return -(-(made.strip_words + made.sum_words + made.result_words) // 16) * 16 + 16


def _rows_words(made: Plan, problem: Problem, form: Format) -> int:
    """Of one thread's columns of the filter on their way into a panel; 0 where they are read in place."""
    return 0 if _in_place(made, problem, form) else made.panel_words


def _in_place(made: Plan, problem: Problem, form: Format) -> bool:
    """Whether rows of the raw filter are rows of words as they are."""
    words = problem.pass_ is Pass.FORWARD and not made.nchw and made.geometry.channels * form.strip_bytes % 4 == 0
    return form.copies and words


def _kernels(made: Plan, target: Target, form: Format) -> dict[str, int]:
    flip, vectors = form.flips(target), made.unit.width // target.lanes
    tiles = amx.has_instruction(target, form.kind)
    product = amx.blocks(target, form.kind, vectors) if tiles else dot.blocks(target, vectors)
    finish = form.held if made.nchw else form.end
    found = {
        "fill": _fill(made, target, form), "blank": form.blank(target, flip), "product": product,
        "end": finish(target, vectors, form.bias_of(target) != 0), "turn": form.turn(target),
        "bias_product": bits.narrow_brgemm(target, bits.shape_for(target, "u8s8", vectors), "u8s8"),
    }  # fmt: skip
    return {name: kernel.address for name, kernel in found.items()}


def _fill(made: Plan, target: Target, form: Format) -> Kernel:
    """The kernel that fills strips: where a pixel takes one or two words, the one for just that."""
    g, flip = made.geometry, form.flips(target)
    if form.fill_few is None or made.pixel > 2 or g.groups > 1 or made.step[1] > 1 or not target.free_masks:
        return form.fill(target, made.nchw, flip)
    return form.fill_few(target, made.nchw, flip, g.channels, 4 * made.pixel // form.strip_bytes)


def _packing_order(made: Plan, problem: Problem, form: Format) -> np.ndarray:
    """Where each word (tap, channels) of a column of the filter lies in a panel."""
    g = made.geometry
    here = g.channels * form.strip_bytes // 4 if _in_place(made, problem, form) else made.words
    tap, word = np.arange(g.taps)[:, None], np.arange(here)[None, :]
    if problem.pass_ is Pass.BACKWARD_DATA:
        tap = g.taps - 1 - tap
    inside = word % made.together
    row = (word - inside) * g.taps + tap * made.together + inside  # (taps, words)
    return np.ascontiguousarray((row * made.unit.width).ravel(), dtype=np.int64)


def _conversion(made: Plan, problem: Problem, form: Format, target: Target) -> dict[str, int]:
    """How pack_task makes rows (taps, channels) of a panel's columns; `repeat` 0 and `columns`: times the columns."""
    g, s = made.geometry, problem.shape
    taps, of_tap = g.taps, made.words * 4 // form.strip_bytes
    found = {"convert_channels": g.channels, "convert_to": of_tap, "convert_group": s.kg * s.cg * taps}
    if problem.pass_ is Pass.FORWARD and not made.nchw:  # (k, tap) one behind the other
        found |= {"convert_repeat": 1, "convert_columns": taps, "convert_row": s.cg, "convert_column": taps * s.cg}
        if _in_place(made, problem, form):
            return found
        return found | {"convert": form.weigh(target, False).address}
    found["convert"] = form.weigh(target, True).address
    if problem.pass_ is Pass.FORWARD:  # for each k planes of taps
        return found | {
            "convert_pixels": taps, "convert_row": taps, "convert_next": taps * s.cg, "convert_next_to": taps * of_tap,
            "convert_column": taps * s.cg,
        }  # fmt: skip
    if made.nchw:  # for each c planes of taps, k by k
        return found | {
            "convert_pixels": taps, "convert_row": taps * s.cg, "convert_next": taps, "convert_next_to": taps * of_tap,
            "convert_column": taps,
        }  # fmt: skip
    return found | {  # for each tap planes of c, k by k
        "convert_repeat": taps, "convert_columns": 1, "convert_row": taps * s.cg, "convert_to": taps * of_tap,
        "convert_next": s.cg, "convert_next_to": of_tap, "convert_column": 1,
    }  # fmt: skip


def _tables(made: Plan, target: Target, form: Format) -> np.ndarray:
    """Tiles, then for each kind the number of its groups and their items, then what these point to.

    Addresses are absolute: the array must not move.
    """
    flat = np.zeros(table_items(made), np.int64)
    free = TILE_ITEMS * len(made.tiles)
    vectors = made.unit.width // target.lanes
    tiles = amx.has_instruction(target, form.kind)
    unit = 0
    if not tiles:
        kind = dot.KINDS[form.kind]
        unit = bits.narrow_brgemm(target, bits.shape_for(target, kind, vectors), kind).address

    def keep(part: np.ndarray) -> int:
        nonlocal free
        flat[free : free + part.size] = part.ravel()
        free += part.size
        return int(flat.ctypes.data + 8 * (free - part.size))

    def kept(group: Group) -> list[int]:
        records = np.zeros((len(group.blocks), amx.BLOCK), np.int64)
        for record, (starts, pairs) in zip(records, group.blocks, strict=True):
            record[:] = len(starts), starts[0], starts[-1], len(pairs), keep(pairs)
        way = keep(amx.configuration(group.rows, made.chunk).view(np.int64)) if tiles else unit
        segments = keep(group.segments)
        return [keep(records), len(records), segments, len(group.segments), group.rows, group.row_a, group.row_c, way]

    starts = []
    for kind_groups in made.kinds:
        starts.append(flat.ctypes.data + 8 * free)
        at = free
        free += 1 + GROUP_ITEMS * len(kind_groups)
        flat[at] = len(kind_groups)
        for i, group in enumerate(kind_groups):
            where = at + 1 + GROUP_ITEMS * i
            flat[where : where + GROUP_ITEMS] = kept(group)
    for i, tile in enumerate(made.tiles):
        row = (tile.first, tile.count, tile.top, tile.rows, starts[tile.kind])
        flat[TILE_ITEMS * i : TILE_ITEMS * (i + 1)] = row
    return flat


def table_items(made: Plan) -> int:
    """Integers in the tables of a plan."""
    total = TILE_ITEMS * len(made.tiles)
    for groups in made.kinds:
        total += 1 + sum(
            GROUP_ITEMS + 8 + group.segments.size + sum(amx.BLOCK + pairs.size for _, pairs in group.blocks)
            for group in groups
        )
    return total
