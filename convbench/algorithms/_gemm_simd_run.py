"""prepare() of direct_simd and pointwise_simd: kernels, tables and buffers for one problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms._gemm_simd import Geometry, Plan, plan
from convbench.algorithms._gemm_simd_tasks import P, pack_task, tile_task
from convbench.algorithms._simd import address_of
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run
from convbench.simd.driver import Runner
from convbench.simd.kernels import gemm, gemm_pixels, pack
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target

#: Filters of more bytes than this are fetched ahead: smaller ones stay in the second-level cache by themselves.
AHEAD_BYTES = 512 << 10


def shape_of(problem: Problem, target: Target) -> gemm.Shape:
    """Block of the micro-kernel: how wide panels are, and how many pixels are multiplied at once."""
    vectors = gemm.vectors_for(target, Geometry.of(problem).filters)
    return gemm.Shape(gemm_pixels.rows_for(target, vectors), vectors, 2)


def plan_of(problem: Problem, target: Target, threads: int) -> Plan:
    """Tables for this vector unit."""
    shape = shape_of(problem, target)
    return plan(problem, shape.columns(target), shape.rows, threads)


def prepare_products(problem: Problem, context: Context, weights: Any, target: Target) -> Run:
    """Forward and backward data: run(a, b, out), or run(a, out) where the filter is given now."""
    made, shape, g = plan_of(problem, target, context.threads), shape_of(problem, target), Geometry.of(problem)
    tables = _tables(made)
    context.account(tables.nbytes, "tables")
    packed = context.empty(made.packed_floats, np.float32)
    packed.fill(0)  # the last panel's columns that do not exist
    per_thread = -(-(made.strip_floats + made.result_floats) // 16) * 16 + 16
    scratch = context.empty(per_thread * context.threads, np.float32)
    order = _packing_order(made, problem)
    context.account(order.nbytes, "order of the filter")
    jobs = g.images * g.groups * len(made.tiles)
    chunks = 1 if jobs >= 8 * context.threads or context.threads == 1 else min(made.panels, context.threads)
    strip = -(-made.strip_floats // 16) * 16
    values: dict[P, int] = {
        P.PACKED: address_of(packed), P.TILES: tables.ctypes.data, P.SCRATCH: address_of(scratch),
        P.PER_THREAD: per_thread, P.STRIP: strip, P.NCHW: made.nchw, P.PADDED: made.padded,
        P.GROUPS: g.groups, P.TILE_COUNT: len(made.tiles), P.CHUNKS: chunks, P.PANELS: made.panels,
        P.WIDTH: made.width, P.CHANNELS: g.channels, P.FILTERS: g.filters, P.TAPS: g.taps, P.BLOCK: made.block,
        P.A_HEIGHT: g.a_height, P.A_WIDTH: g.a_width, P.HEIGHT: g.height, P.OUT_WIDTH: g.width, P.LEFT: made.left,
        P.COLUMNS: made.columns, P.ROWS_OF_BLOCK: shape.rows,
        P.KERNEL: gemm_pixels.pixels(target, shape).address, P.TRANSPOSE: transpose(target).address,
        P.AHEAD: int(packed.nbytes > AHEAD_BYTES),
        P.PACK_TABLE: order.ctypes.data, **_packing(problem, target),
    }  # fmt: skip
    parameters = np.zeros(int(P.COUNT), np.int64)
    for place, value in values.items():
        parameters[int(place)] = value
    products, packing = (Runner(t, parameters, context.threads) for t in (tile_task, pack_task))
    kept = (packed, scratch, tables, order)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        parameters[int(P.W)] = address_of(b)
        packing(g.groups * made.panels)
        run_packed(a, out)

    def run_packed(a: np.ndarray, out: np.ndarray, kept: Any = kept) -> None:
        parameters[int(P.A)], parameters[int(P.OUT)] = address_of(a), address_of(out)
        products(jobs * chunks)

    if weights is None:
        return run
    parameters[int(P.W)] = address_of(weights)
    packing(g.groups * made.panels)
    return run_packed


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


def _packing_order(made: Plan, problem: Problem) -> np.ndarray:
    """Where each (channel, tap) of the filter lies in a panel, in the order in which the kernel reads the filter."""
    g = made.geometry
    channel, tap = np.arange(g.channels)[:, None], np.arange(g.taps)[None, :]
    first = channel // made.block * made.block
    here = np.minimum(made.block, g.channels - first)
    if problem.pass_ is Pass.BACKWARD_DATA:
        tap = g.taps - 1 - tap
    places = (g.taps * first + tap * here + channel - first) * made.width  # (channels, taps)
    if problem.pass_ is Pass.FORWARD and problem.layout == "nhwc":
        places = places.T
    return np.ascontiguousarray(places.ravel(), dtype=np.int64)


def _packing(problem: Problem, target: Target) -> dict[P, int]:
    """How pack_task reads the filter: the matrices it consists of, and the kernel."""
    g, s = Geometry.of(problem), problem.shape
    taps, size = s.r * s.s, s.r * s.s * s.cg
    group = s.kg * size
    if problem.pass_ is Pass.FORWARD:  # rows k of length size, turned
        return {
            P.PACK: pack.turn(target).address, P.PACK_ROWS: 0, P.PACK_COLUMNS: size, P.PACK_ROW_FROM: size,
            P.PACK_STEP: size, P.PACK_REPEAT: 1, P.PACK_NEXT: 0, P.PACK_GROUP: group,
        }  # fmt: skip
    if problem.layout == "nhwc" or taps == 1:  # rows (k, tap) run along the panel
        return {
            P.PACK: pack.place(target).address, P.PACK_ROWS: g.channels * taps, P.PACK_COLUMNS: 0,
            P.PACK_ROW_FROM: s.cg, P.PACK_STEP: 1, P.PACK_REPEAT: 1, P.PACK_NEXT: 0, P.PACK_GROUP: group,
        }  # fmt: skip
    return {  # for each k a matrix (c, tap)
        P.PACK: pack.turn(target).address, P.PACK_ROWS: 0, P.PACK_COLUMNS: taps, P.PACK_ROW_FROM: taps,
        P.PACK_STEP: taps, P.PACK_REPEAT: g.channels, P.PACK_NEXT: size, P.PACK_GROUP: group,
    }  # fmt: skip
