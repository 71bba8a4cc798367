"""prepare() of the binary rows on AMX's tiles: kernels, tables and buffers for one problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms._sign_tiles import TilePlan, tile_plan
from convbench.algorithms._sign_tiles_tasks import MORE, filter_task
from convbench.algorithms._signs_simd_run import common_values, run_of
from convbench.algorithms._signs_simd_tasks import NAMES, TILE_ITEMS
from convbench.algorithms._simd import address_of
from convbench.errors import Unavailable
from convbench.problem import Problem, Semantics
from convbench.registry import Context, Run
from convbench.simd.kernels import pack, sign_bytes, signs
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target


def plan_of(problem: Problem, target: Target, threads: int) -> TilePlan:
    """Tables for panels of one or two tiles."""
    return tile_plan(problem, vectors_of(problem, target) * target.lanes, threads)


def vectors_of(problem: Problem, target: Target) -> int:
    """Tiles of columns in a panel."""
    return 2 if problem.shape.kg > target.lanes else 1


def rows_words(found: TilePlan) -> int:
    """Of one thread's columns of the filter on their way into a panel, and of sums for each tap, twice."""
    made = found.made
    return -(-(made.panel_words + 2 * made.shape.r * made.shape.s) // 16) * 16


def estimate(problem: Problem, target: Target) -> int:
    """Bytes of all buffers and tables, in one thread."""
    found, scaled = plan_of(problem, target, 1), problem.semantics is Semantics.XNOR
    words = sum(found.made.shared(scaled)) + sum(found.made.scratch(scaled)) + rows_words(found)
    return 4 * words + 8 * (found.table_items() + found.made.panel_words // found.made.width)


def prepare_tiles(problem: Problem, context: Context, weights: Any, target: Target) -> Run:
    """run(a, b, out), or run(a, out) where the filter is given now. Asks the system for the right to AMX's tiles."""
    if not target.tiles("amx-int8"):
        raise Unavailable("this machine has no AMX-INT8, or its system does not let this process use it")
    s, scaled, vectors = problem.shape, problem.semantics is Semantics.XNOR, vectors_of(problem, target)
    found = plan_of(problem, target, context.threads)
    made = found.made
    packed, _, alpha = (context.empty(n, np.int32) for n in made.shared(scaled))
    per_thread = sum(made.scratch(scaled))
    scratch = context.empty(per_thread * context.threads, np.int32)
    rows = context.empty(rows_words(found) * context.threads, np.int32)
    for array in (packed, rows):  # bytes of channels that do not exist have to be 0 in the filter
        array.fill(0)
    tables, places = _tables(found)
    order = np.arange(made.panel_words // made.width, dtype=np.int64) * made.width
    context.account(tables.nbytes + order.nbytes, "tables")
    jobs, values = common_values(problem, made, context.threads)
    from_planes = made.nchw and s.r * s.s > 1
    values |= {
        "packed": address_of(packed), "alpha": address_of(alpha), **places, "scratch": address_of(scratch),
        "per_thread": per_thread, "pairs": made.steps.size, "rows": address_of(rows), "per_rows": rows_words(found),
        "place": pack.turn(target).address, "place_table": order.ctypes.data,
        "product": sign_bytes.products(target, vectors, scaled).address,
        "signs": (sign_bytes.planes if made.nchw else sign_bytes.pixels)(target, scaled).address,
        "filter_signs": (sign_bytes.planes if from_planes else sign_bytes.pixels)(target, scaled).address,
        "windows": signs.windows(target).address, "transpose": transpose(target).address,
    }  # fmt: skip
    names = (*NAMES, *MORE)
    parameters = np.zeros(len(names), np.int64)
    for name, value in values.items():
        parameters[names.index(name)] = value
    return run_of(
        parameters, filter_task, s.groups * made.panels, jobs, context.threads, weights,
        kept=(packed, alpha, scratch, rows, tables, order),
    )  # fmt: skip


def _tables(found: TilePlan) -> tuple[np.ndarray, dict[str, int]]:
    """All tables in one array, which must not move, and the addresses of those that tasks read."""
    made = found.made
    flat = np.zeros(found.table_items(), np.int64)
    free = TILE_ITEMS * len(made.tiles)

    def keep(part: np.ndarray) -> int:
        nonlocal free
        flat[free : free + part.size] = part.ravel()
        free += part.size
        return int(flat.ctypes.data + 8 * (free - part.size))

    stride = made.width if made.nchw else made.shape.k
    starts = []
    for kind in found.kinds:
        way = keep(sign_bytes.configuration(kind.rows, found.chunk).view(np.int64))
        records = [
            [len(at), at[0], at[-1], len(pairs), keep(pairs)] for at, pairs in kind.blocks
        ]  # fmt: skip
        head = [way, kind.rows, kind.row_a, found.chunk, stride]
        starts.append(keep(np.array([head, *records], np.int64)))
    steps = keep(made.steps)
    for i, tile in enumerate(made.tiles):
        entry = (tile.first, tile.count, made.rows_of(tile), len(found.kinds[tile.kind].blocks), starts[tile.kind])
        flat[TILE_ITEMS * i : TILE_ITEMS * (i + 1)] = entry
    return flat, {"tiles": flat.ctypes.data, "steps": steps}
