"""prepare() of direct_simd and pointwise_simd: kernels, tables and buffers for one problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convbench.algorithms._gemm_simd import Geometry, Plan, plan
from convbench.algorithms._gemm_simd_tasks import NAMES, OUT, A, W, pack_task, tile_task
from convbench.algorithms._simd import address_of
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run
from convbench.simd.driver import Runner
from convbench.simd.kernels import gemm, gemm_pixels, half_pixels, pack
from convbench.simd.kernels.transpose import conversions
from convbench.simd.target import Target

#: Filters of more bytes than this are fetched ahead: smaller ones stay in the second-level cache by themselves.
AHEAD_BYTES = 512 << 10
#: Up to this many channels a 1x1 layer fetches the next pixels: 4 to 8 % gained on 32 to 96 channels (1 thread of a
#: Xeon with AVX-512, 2026-11), nothing or a loss from 128 on, where the processor itself has time to see the rows.
FOLLOW_CHANNELS = 96


def shape_of(problem: Problem, target: Target) -> gemm.Shape:
    """Block of the micro-kernel: how wide panels are, and how many pixels are multiplied at once."""
    vectors = gemm.vectors_for(target, Geometry.of(problem).filters)
    return gemm.Shape(gemm_pixels.rows_for(target, vectors), vectors, 2)


def plan_of(problem: Problem, target: Target, threads: int) -> Plan:
    """Tables for this vector unit."""
    shape = shape_of(problem, target)
    return plan(problem, shape.columns(target), shape.rows, threads)


def in_words(problem: Problem) -> Problem:
    """The problem whose channels are words of two of this one's, in each group."""
    s = problem.shape
    pairs = -(-Geometry.of(problem).channels // 2) * s.groups
    shape = replace(s, c=pairs) if problem.pass_ is Pass.FORWARD else replace(s, k=pairs)
    return replace(problem, shape=shape)


def prepare_products(
    problem: Problem, context: Context, weights: Any, target: Target, words: bool = False
) -> Run:
    """Forward and backward data: run(a, b, out), or run(a, out) where the filter is given now.

    words: float16 is multiplied as it is, two channels at a time.
    """
    made = plan_of(in_words(problem) if words else problem, target, context.threads)
    shape, g = shape_of(problem, target), made.geometry
    tables = _tables(made)
    context.account(tables.nbytes, "tables")
    packed = context.empty(made.packed_floats, np.float32)
    packed.fill(0)  # the last panel's columns that do not exist
    per_thread = -(-(made.strip_floats + made.result_floats) // 16) * 16 + 16
    scratch = context.empty(per_thread * context.threads, np.float32)
    order = _packing_order(made, problem, words)
    context.account(order.nbytes, "order of the filter")
    jobs = g.images * g.groups * len(made.tiles)
    chunks = 1 if jobs >= 8 * context.threads or context.threads == 1 else min(made.panels, context.threads)
    strip = -(-made.strip_floats // 16) * 16
    values: dict[str, int] = {
        "packed": address_of(packed), "tiles": tables.ctypes.data, "scratch": address_of(scratch),
        "per_thread": per_thread, "strip": strip, "nchw": made.nchw, "held": made.held, "padded": made.padded,
        "groups": g.groups, "tile_count": len(made.tiles), "chunks": chunks, "panels": made.panels,
        "width": made.width, "channels": g.channels, "filters": g.filters, "taps": g.taps, "block": made.block,
        "a_height": g.a_height, "a_width": g.a_width, "height": g.height, "out_width": g.width, "left": made.left,
        "columns": made.columns, "rows_of_block": shape.rows,
        "stored": Geometry.of(problem).channels, "ahead": int(packed.nbytes > AHEAD_BYTES),
        "pack_table": order.ctypes.data, **_packing(problem, target),
        **_kernels(made, shape, problem.dtype, target, words),
    }  # fmt: skip
    pairs = context.empty(context.threads * pair_floats(made) if words else 1, np.float32)
    pairs.fill(0)  # the channel that an odd number lacks
    values["pairs"] = address_of(pairs)
    parameters = np.zeros(len(NAMES), np.int64)
    for name, value in values.items():
        parameters[NAMES.index(name)] = value
    products, packing = (Runner(t, parameters, context.threads) for t in (tile_task, pack_task))
    kept = (packed, scratch, tables, order, pairs)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        parameters[W] = address_of(b)
        packing(g.groups * made.panels)
        run_packed(a, out)

    def run_packed(a: np.ndarray, out: np.ndarray, kept: Any = kept) -> None:
        parameters[A], parameters[OUT] = address_of(a), address_of(out)
        products(jobs * chunks)

    if weights is None:
        return run
    parameters[W] = address_of(weights)
    packing(g.groups * made.panels)
    return run_packed


def pair_floats(made: Plan) -> int:
    """Of one panel in float32, before its words are made."""
    return 2 * made.geometry.taps * made.geometry.channels * made.width


def _kernels(made: Plan, shape: gemm.Shape, dtype: str, target: Target, words: bool) -> dict[str, int]:
    """What multiplies, and what converts on the way in and out."""
    if words:
        kernel, pair = half_pixels.pixels(target, shape), half_pixels.pair(target).address
        return {"kernel": kernel.address, "pair": pair, **half_pixels.conversions(target)}
    return {"kernel": gemm_pixels.pixels(target, shape, _follows(made)).address, **conversions(target, dtype)}


def _follows(made: Plan) -> bool:
    """Whether a block's pixels are followed in memory by the next block's, and soon needed."""
    g = made.geometry
    return g.taps == 1 and g.groups == 1 and not made.padded and g.channels <= FOLLOW_CHANNELS and g.width == g.a_width


def _tables(made: Plan) -> np.ndarray:
    """Tiles, then for each kind the number of its groups and their items, then pairs; see TILE_ITEMS, GROUP_ITEMS.

    Addresses are absolute: the array must not move.
    """
    heads = 5 * len(made.tiles) + sum(1 + 7 * len(kind) for kind in made.kinds)
    pairs = sum(part.size for kind in made.kinds for group in kind for part in group[:3])
    flat = np.zeros(heads + pairs, np.int64)
    at, free, starts = 5 * len(made.tiles), heads, []

    def keep(part: np.ndarray) -> int:
        nonlocal free
        flat[free : free + part.size] = part.ravel()
        free += part.size
        return int(flat.ctypes.data + 8 * (free - part.size))

    for kind in made.kinds:
        starts.append(flat.ctypes.data + 8 * at)
        flat[at] = len(kind)
        for i, (rows, segments, last, depth, depth_last) in enumerate(kind):
            where = at + 1 + 7 * i
            flat[where : where + 7] = (
                keep(rows), len(rows), len(segments), keep(segments), depth, keep(last), depth_last
            )  # fmt: skip
        at += 1 + 7 * len(kind)
    for i, tile in enumerate(made.tiles):
        flat[5 * i : 5 * i + 5] = (tile.first, tile.count, tile.top, tile.rows, starts[tile.kind])
    return flat


def table_items(made: Plan) -> int:
    """Integers in the tables of a plan."""
    pairs = sum(part.size for kind in made.kinds for group in kind for part in group[:3])
    return 5 * len(made.tiles) + sum(1 + 7 * len(kind) for kind in made.kinds) + pairs


def _packing_order(made: Plan, problem: Problem, words: bool) -> np.ndarray:
    """Where each (channel, tap) of the filter lies in a panel, in the order in which the kernel reads the filter."""
    g, stored = made.geometry, np.arange(Geometry.of(problem).channels)[:, None]
    channel, tap = stored // 2 if words else stored, np.arange(g.taps)[None, :]
    first = channel // made.block * made.block
    here = np.minimum(made.block, g.channels - first)
    if problem.pass_ is Pass.BACKWARD_DATA:
        tap = g.taps - 1 - tap
    places = (g.taps * first + tap * here + channel - first) * made.width  # (channels, taps)
    if words:
        places = 2 * places + stored % 2 * made.width
    if problem.pass_ is Pass.FORWARD and problem.layout == "nhwc":
        places = places.T
    return np.ascontiguousarray(places.ravel(), dtype=np.int64)


def _packing(problem: Problem, target: Target) -> dict[str, int]:
    """How pack_task reads the filter: the matrices it consists of, and the kernel."""
    g, s = Geometry.of(problem), problem.shape
    taps, size, dtype = s.r * s.s, s.r * s.s * s.cg, problem.dtype
    group = s.kg * size
    if problem.pass_ is Pass.FORWARD:  # rows k of length size, turned
        return {
            "pack": pack.turn(target, dtype).address, "pack_rows": 0, "pack_columns": size, "pack_row_from": size,
            "pack_step": size, "pack_repeat": 1, "pack_next": 0, "pack_group": group,
        }  # fmt: skip
    if problem.layout == "nhwc" or taps == 1:  # rows (k, tap) run along the panel
        return {
            "pack": pack.place(target, dtype).address, "pack_rows": g.channels * taps, "pack_columns": 0,
            "pack_row_from": s.cg, "pack_step": 1, "pack_repeat": 1, "pack_next": 0, "pack_group": group,
        }  # fmt: skip
    return {  # for each k a matrix (c, tap)
        "pack": pack.turn(target, dtype).address, "pack_rows": 0, "pack_columns": taps, "pack_row_from": taps,
        "pack_step": taps, "pack_repeat": g.channels, "pack_next": size, "pack_group": group,
    }  # fmt: skip
