"""prepare() of the quantised rows, forward and backward data: an operand becomes a grid, a filter panels, in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.algorithms import _quantised_simd_tasks as tasks
from convbench.algorithms._quantised_simd_operands import Operand, Result, kind_of
from convbench.algorithms._quantised_simd_plan import ClassPlan, ProductPlan, product_plan
from convbench.algorithms._simd import address_of
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, with_packing
from convbench.simd.driver import Runner, Task
from convbench.simd.kernels import amx, part_sums, quantize, roundings
from convbench.simd.kernels.part_sums import Scheme
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target

#: Channels of a backward-data filter in nchw that are turned by one task.
TURNED_CHANNELS = 16


def plan_of(problem: Problem, target: Target, threads: int) -> ProductPlan:
    """Tables for this vector unit."""
    return product_plan(problem, part_sums.scheme_for(target, kind_of(problem)), threads)


def prepare_products(problem: Problem, context: Context, weights: Any, target: Target) -> Run:
    """Forward and backward data: run(a, b, out), or run(a, out) where the filter is given now; `pack` of either is
    all that comes before the products."""
    made = plan_of(problem, target, context.threads)
    a_operand, b_operand = (Operand(problem, which, context, target) for which in (0, 1))
    result = Result(problem, context)
    grid = zeros(context, made.grid_bytes * part_count(made.scheme.a))
    panels = Panels(problem, context, target, made, b_operand)
    fill_grid = Step(tasks.grid_task, tasks.GRID_NAMES, _grid(problem, made, a_operand, grid, target), context)
    values, kept = _products(problem, made, context, target, (grid, panels.packed, result))
    products = Step(tasks.product_task, tasks.PRODUCT_NAMES, values, context)
    g = made.geometry
    jobs = g.images * g.groups * len(made.chunks) * made.shares

    def quantise_input(a: np.ndarray, kept: Any = kept) -> None:
        a_operand.measure(a)
        result.settle(a_operand, b_operand, panels.column_sums)
        fill_grid(g.images * made.height.size, source=a, blank_value=a_operand.zero + 128)

    def run_packed(a: np.ndarray, out: np.ndarray) -> None:
        quantise_input(a)
        products(jobs, out=out)

    def quantise(a: np.ndarray, b: np.ndarray) -> None:
        panels.fill(b)
        quantise_input(a)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        quantise(a, b)
        products(jobs, out=out)

    if weights is None:
        return with_packing(run, quantise)
    panels.fill(weights)
    return with_packing(run_packed, quantise_input)


def workspace(problem: Problem, target: Target) -> int:
    """Bytes of prepare_products in one thread."""
    made = plan_of(problem, target, 1)
    g, s = made.geometry, made.scheme
    total = made.grid_bytes * part_count(s.a) + _scratch(made)[-1]
    total += (g.groups * made.panels * made.panel_bytes + _column_bytes(made)) * part_count(s.b)
    tables = sum(c.segments.nbytes + c.entries.nbytes + 200 for c in made.classes)
    return total + tables + 16 * len(made.chunks) + 16 * (problem.elements // quantize.SQUARES_COUNT + problem.shape.k)


def part_count(parts: str) -> int:
    """How many parts numbers lie in."""
    return quantize.PARTS[parts][1]


def zeros(context: Context, n_bytes: int) -> np.ndarray:
    """Bytes of workspace that are 0: what is never written to is padding."""
    array = context.empty(max(n_bytes, 64), np.uint8)
    array.fill(0)
    return array


class Step:
    """Tasks with a table of named parameters; arrays and numbers that change are given at each call."""

    def __init__(self, task: Task, names: tuple[str, ...], values: dict[str, int], context: Context) -> None:
        self._names, self._table = names, np.array([values.get(name, 0) for name in names], np.int64)
        unknown = set(values) - set(names)
        assert not unknown, f"no parameters: {unknown}"
        self._runner = Runner(task, self._table, context.threads)

    def __call__(self, count: int, **changed: Any) -> None:
        for name, value in changed.items():
            if name in self._names:
                number = address_of(value) if isinstance(value, np.ndarray) else value
                self._table[self._names.index(name)] = number
        self._runner(count)


def _grid(problem: Problem, made: ProductPlan, operand: Operand, grid: np.ndarray, target: Target) -> dict[str, int]:
    g, nchw = made.geometry, problem.layout == "nchw"
    fill = (quantize.turned if nchw else quantize.straight)(target, operand.mode, made.scheme.a)
    padded_with = quantize.blank(target).address if operand.mode == "int8" else 0
    return {
        "grid": address_of(grid), "plane": made.grid_bytes, "nchw": nchw, "groups": g.groups, "channels": g.channels,
        "height": g.a_height, "width": g.a_width, "grid_height": made.height.size, "grid_width": made.width.size,
        "origin_h": made.height.origin, "origin_w": made.width.origin, "pixel": made.pixel_bytes,
        "element": made.element, "fill": fill.address, "constants": address_of(operand.constants),
        "blank": padded_with,
    }  # fmt: skip


def _column_bytes(made: ProductPlan) -> int:
    """Of the quantised filter before it is turned into panels, in one part."""
    return made.geometry.groups * made.geometry.filters * made.column_bytes


class Panels:
    """The filter: quantised into columns, then turned into panels. column_sums: of each column, for INT8."""

    def __init__(
        self, problem: Problem, context: Context, target: Target, made: ProductPlan, operand: Operand
    ) -> None:
        g, parts = made.geometry, part_count(made.scheme.b)
        self._operand, self._made = operand, made
        plane, plane_to = _column_bytes(made), g.groups * made.panels * made.panel_bytes
        self._columns, self.packed = zeros(context, parts * plane), zeros(context, parts * plane_to)
        self.column_sums = np.zeros(g.groups * g.filters, np.int32)
        self._row_sums = quantize.row_sums(target) if operand.mode == "int8_filter" else None
        way = _way(problem, made)
        self._tasks = way.tasks
        values = way.values | {
            "to": address_of(self._columns), "plane": plane, "constants": address_of(operand.constants),
            "constant": operand.stride,
            "fill": (quantize.turned if way.turned else quantize.straight)(target, operand.mode, made.scheme.b).address,
        }  # fmt: skip
        self._quantise = Step(tasks.column_task, tasks.COLUMN_NAMES, values, context)
        self._entries = np.concatenate([c.entries for c in made.classes])
        context.account(self._entries.nbytes, "order of the filter")
        turning = {
            "source": address_of(self._columns), "plane": plane, "parts": parts, "to": address_of(self.packed),
            "plane_to": plane_to, "columns": g.filters, "panels": made.panels, "width": made.scheme.width,
            "column": way.column, "tap": way.tap, "batch": g.filters * made.column_bytes, "panel": made.panel_bytes,
            "entries": address_of(self._entries), "entry_count": len(self._entries),
            "transpose": transpose(target).address,
        }  # fmt: skip
        self._turn = Step(tasks.panel_task, tasks.PANEL_NAMES, turning, context)

    def fill(self, w: np.ndarray) -> None:
        """Quantises and packs a filter."""
        made = self._made
        self._operand.measure(w)
        self._quantise(self._tasks, source=w)
        if self._row_sums is not None:
            columns, length = len(self.column_sums), made.column_bytes
            self._row_sums(columns, length, address_of(self._columns), length, address_of(self.column_sums))
        self._turn(made.geometry.groups * made.panels)


@dataclass(frozen=True)
class _Way:
    """How a filter is read: parameters of column_task and how many tasks; bytes between columns and between taps."""

    values: dict[str, int]
    tasks: int
    turned: bool
    column: int
    tap: int


def _way(problem: Problem, made: ProductPlan) -> _Way:
    s, g, pixel = problem.shape, made.geometry, made.pixel_bytes
    taps, channels, nhwc = g.taps, made.channels, problem.layout == "nhwc"
    size = s.cg * taps  # of a filter
    if problem.pass_ is Pass.FORWARD:  # filter by filter
        values = {
            "inner": 1, "from_outer": size, "to_outer": taps * pixel, "index_outer": size, "row_to": channels,
        }  # fmt: skip
        if nhwc:
            values |= {"rows": taps, "columns": s.cg, "row_from": s.cg, "index_row": 1, "index_column": taps}
        else:
            values |= {"rows": s.cg, "columns": taps, "row_from": taps, "index_row": taps, "index_column": 1}
        values["last_columns"] = values["columns"]
        return _Way(values, s.k, not nhwc, taps * pixel, pixel)
    values = {"rows": s.kg, "row_from": size, "row_to": channels, "from_outer": s.kg * size, "index_row": size,
              "to_outer": size * pixel, "index_outer": s.kg * size}  # fmt: skip
    if nhwc:  # group and tap: channels are columns
        values |= {"inner": taps, "columns": s.cg, "last_columns": s.cg, "from_inner": s.cg, "to_inner": s.cg * pixel,
                   "index_inner": 1, "index_column": taps}  # fmt: skip
        return _Way(values, s.groups * taps, True, pixel, s.cg * pixel)
    inner = -(-s.cg // TURNED_CHANNELS)  # group and some channels: (channel, tap) are columns
    some = min(TURNED_CHANNELS, s.cg) * taps
    values |= {"inner": inner, "columns": some, "last_columns": size - (inner - 1) * some, "from_inner": some,
               "to_inner": some * pixel, "index_inner": some, "index_column": 1}  # fmt: skip
    return _Way(values, s.groups * inner, True, taps * pixel, pixel)


def _products(
    problem: Problem, made: ProductPlan, context: Context, target: Target,
    buffers: tuple[np.ndarray, np.ndarray, Result],
) -> tuple[dict[str, int], Any]:  # fmt: skip
    """Parameters of product_task, and what has to stay alive."""
    grid, packed, result = buffers
    g, s = made.geometry, made.scheme
    held, results, per_thread = _scratch(made)
    scratch = context.empty(per_thread * context.threads, np.uint8)
    kernels = kernel_table(target, s, result.how)
    units = [amx.configuration(part_sums.TILE_ROWS, c.chunk) for c in made.classes] if s.how == "tiles" else []
    classes = np.array([_class_row(made, c, units[i] if units else None) for i, c in enumerate(made.classes)], np.int64)
    chunks = np.array(made.chunks, np.int64)
    context.account(classes.nbytes + chunks.nbytes + sum(c.segments.nbytes for c in made.classes), "tables")
    tiles = s.how == "tiles"
    values = {
        "grid": address_of(grid), "plane_a": made.grid_bytes, "packed": address_of(packed),
        "plane_b": g.groups * made.panels * made.panel_bytes, "nchw": problem.layout == "nchw", "groups": g.groups,
        "filters": g.filters, "height": g.height, "width": g.width, "image": made.image_bytes,
        "panel": made.panel_bytes, "panels": made.panels, "panel_width": s.width, "block_panels": s.panels,
        "block_rows": s.rows, "tiles": s.rows // part_sums.TILE_ROWS if tiles else 1, "kernels": address_of(kernels),
        "classes": address_of(classes), "class_count": len(classes), "chunks": address_of(chunks),
        "chunk_count": len(chunks), "shares": made.shares, "scratch": address_of(scratch), "per_thread": per_thread,
        "held": held, "results": results, "constants": address_of(result.constants),
        "configure": part_sums.configure(target).address if tiles else 0,
        "release": part_sums.release(target).address if tiles else 0, "transpose": transpose(target).address,
    }  # fmt: skip
    return values, (scratch, kernels, units, classes, chunks, made, buffers)


def kernel_table(target: Target, scheme: Scheme, how: str) -> np.ndarray:
    """Addresses of the KERNELS of each size of a block, row tiles first."""
    tiles = range(1, scheme.rows // part_sums.TILE_ROWS + 1) if scheme.how == "tiles" else (1,)
    table = [
        (
            part_sums.block(target, scheme, m, n).address, roundings.keep(target, scheme, m, n).address,
            roundings.finish(target, scheme, m, n, how, False).address,
            roundings.finish(target, scheme, m, n, how, True).address,
        )
        for m in tiles for n in range(1, scheme.panels + 1)
    ]  # fmt: skip
    return np.array(table, np.int64)


def _class_row(made: ProductPlan, c: ClassPlan, unit: np.ndarray | None) -> tuple[int, ...]:
    """The integers of one class, in the order of the tasks' K_ names."""
    pixel, width = made.pixel_bytes, made.width.size
    line, step = c.rows.step * width * pixel, c.columns.step
    start = (c.rows.start * width + c.columns.start) * pixel
    wrap, rest = divmod(c.rows.step * width, step)
    rows, count, most = c.rows.count, c.columns.count, made.scheme.rows
    flat = rest == 0 and -(-((rows - 1) * wrap + count) // most) <= rows * -(-count // most)
    return (
        rows, count, start, line, step * pixel, wrap, c.rows.out, c.rows.out_step, c.columns.out, c.columns.out_step,
        address_of(c.segments), len(c.segments), c.per_call, c.steps, c.chunk,
        0 if unit is None else address_of(unit), int(flat),
    )  # fmt: skip


def _scratch(made: ProductPlan) -> tuple[int, int, int]:
    """Offsets of what is held and of the results in a thread's scratch, and its size, in bytes."""
    s, g = made.scheme, made.geometry
    size = s.rows * s.columns
    held = 4 * size * len(s.shifts)
    results = held + 8 * size
    rows = max(end - first for first, end in made.chunks)
    total = results + 4 * rows * g.width * s.columns
    return held, results, -(-total // 64) * 64
