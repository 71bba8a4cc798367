"""prepare() of the popcount rows: kernels, tables and buffers for one problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms._signs_simd import Plan, plan
from convbench.algorithms._signs_simd_tasks import NAMES, OUT, PANELS, TILE_ITEMS, A, W, filter_task, tile_task
from convbench.algorithms._simd import address_of
from convbench.algorithms._tiled_run import Tasks, tiled_run
from convbench.problem import Problem, Semantics
from convbench.registry import Context, Run
from convbench.simd.driver import Task
from convbench.simd.kernels import carry_save, signs
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target


def vectors_of(problem: Problem, target: Target) -> int:
    """Registers of a panel: two, or one where the filters fit into it or registers are few."""
    return 2 if problem.shape.kg > target.lanes and target.registers >= 32 else 1


def plan_of(problem: Problem, target: Target, threads: int) -> Plan:
    """Tables for this vector unit."""
    return plan(problem, vectors_of(problem, target) * target.lanes, threads)


def estimate(problem: Problem, target: Target) -> int:
    """Bytes of all buffers and tables, in one thread."""
    made, scaled = plan_of(problem, target, 1), problem.semantics is Semantics.XNOR
    return 4 * (sum(made.shared(scaled)) + per_thread(made, scaled)) + 8 * made.table_items()


def per_thread(made: Plan, scaled: bool) -> int:
    """Words of a thread's scratch, which serves the filter first and then the image."""
    return -(-max(sum(made.scratch(scaled)), made.filter_scratch()) // 16) * 16 + 16


def prepare_signs(problem: Problem, context: Context, weights: Any, target: Target) -> Run:
    """run(a, b, out), or run(a, out) where the filter is given now."""
    s, scaled = problem.shape, problem.semantics is Semantics.XNOR
    made, vectors = plan_of(problem, target, context.threads), vectors_of(problem, target)
    packed, base, alpha = (context.empty(n, np.float32) for n in made.shared(scaled))
    scratch = context.empty(per_thread(made, scaled) * context.threads, np.float32)
    tables, places = _tables(made)
    context.account(tables.nbytes, "tables")
    jobs, values = common_values(problem, made, context.threads)
    from_planes = made.nchw and s.r * s.s > 1
    values |= {
        "packed": address_of(packed), "base": address_of(base), "alpha": address_of(alpha), **places,
        "scratch": address_of(scratch), "per_thread": per_thread(made, scaled), "pairs": made.steps.size,
        "product": carry_save.products(target, vectors, scaled).address,
        "signs": (signs.planes if made.nchw else signs.pixels)(target, scaled).address,
        "filter_signs": (signs.planes if from_planes else signs.pixels)(target, scaled).address,
        "windows": signs.windows(target).address, "counts": signs.counts(target, vectors).address,
        "borders": signs.borders(target, vectors).address, "transpose": transpose(target).address,
    }  # fmt: skip
    parameters = np.zeros(len(NAMES), np.int64)
    for name, value in values.items():
        parameters[NAMES.index(name)] = value
    return run_of(
        parameters, filter_task, s.groups * made.panels, jobs, context.threads, weights,
        kept=(packed, base, alpha, scratch, tables),
    )  # fmt: skip


def run_of(
    parameters: np.ndarray, filter_task: Task, panels: int, jobs: int, threads: int, weights: Any, kept: Any
) -> Run:
    """`tiled_run` of these tasks: strips of signs, and means, are always made."""
    tasks = Tasks(tile_task, filter_task, A, W, OUT, PANELS)
    return tiled_run(tasks, parameters, panels, jobs, threads, weights, True, kept)


def common_values(problem: Problem, made: Plan, threads: int) -> tuple[int, dict[str, int]]:
    """(number of tasks, the parameters that describe the problem and a thread's scratch)."""
    s, scaled = problem.shape, problem.semantics is Semantics.XNOR
    jobs = s.n * s.groups * len(made.tiles)
    chunks = 1 if jobs >= 4 * threads or threads == 1 else min(made.panels, threads)
    strip, means, line, averages, _ = made.scratch(scaled)
    return jobs * chunks, {
        "strip": strip, "means": means, "line": line, "averages": averages, "nchw": made.nchw, "scaled": scaled,
        "groups": s.groups, "tile_count": len(made.tiles), "chunks": chunks, "panels": made.panels,
        "width": made.width, "channels": s.cg, "filters": s.kg, "height": s.h, "a_width": s.w, "out_height": s.p,
        "out_width": s.q, "words": made.words, "left": made.left, "columns": made.columns, "top": s.padding[0],
        "class_count": len(made.classes), "r": s.r, "s": s.s, "stride_h": s.stride[0], "stride_w": s.stride[1],
        "dilation_h": s.dilation[0], "dilation_w": s.dilation[1],
        "average_factor": int(np.float32(1 / (s.cg * s.r * s.s)).view(np.int32)),
        "filter_step": s.r * s.s if made.nchw and s.r * s.s > 1 else s.cg,
    }  # fmt: skip


def _tables(made: Plan) -> tuple[np.ndarray, dict[str, int]]:
    """All tables in one array, which must not move, and the addresses of those that tasks read."""
    heads = TILE_ITEMS * len(made.tiles)
    flat = np.zeros(made.table_items(), np.int64)
    free = heads

    def keep(part: np.ndarray) -> int:
        nonlocal free
        flat[free : free + part.size] = part.ravel()
        free += part.size
        return int(flat.ctypes.data + 8 * (free - part.size))

    starts = [keep(kind) for kind in made.kinds]
    steps = keep(made.steps)
    channels = made.shape.cg
    rows = [(channels * inside, len(taps), keep(np.array(taps, np.int64))) for inside, taps in made.classes]
    classes = keep(np.array(rows, np.int64))
    for i, tile in enumerate(made.tiles):
        entry = (tile.first, tile.count, made.rows_of(tile), tile.count * made.shape.q, starts[tile.kind])
        flat[TILE_ITEMS * i : TILE_ITEMS * (i + 1)] = entry
    return flat, {"tiles": flat.ctypes.data, "steps": steps, "classes": classes}
