"""Depthwise convolution with lanes = channels: every channel has a filter of its own, so nothing is summed over them.

Three ways, all over blocks of outputs that stay in registers while the taps go by: small filters in NHWC read the
image in place and meet its edges through tables of addresses; small filters in NCHW and all large ones work on
padded strips of one channel vector, which fit in L2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convbench.algorithms._depthwise_simd_plan import (
    FEW_TAPS,
    LARGE_STRIP,
    SMALL_STRIP,
    best_patterns,
    even,
    odd,
    phase_block,
    phases,
    products,
    strip_blocks,
    weights_block,
)
from convbench.algorithms._simd import SimdImplementation, address_of
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register

if TYPE_CHECKING:
    from convbench.simd.compiler import Kernel
    from convbench.simd.kernels.depthwise import Pattern
    from convbench.simd.target import Target

@register
class DepthwiseSimd(SimdImplementation):
    """One input and one output channel in each group; any filter, stride, dilation and padding.

    error_growth 3.5: twice the largest measured, 1.75 (13x13; 1x1 to 31x31, stride 2, dilation 2, N P Q up to 50,000,
    three passes, both layouts, two seeds, ten shapes); relative L2 at most 0.21.
    """

    name = "depthwise_simd"
    error_growth = 3.5
    reference = "the definition, channels side by side in vectors"

    def limits(self, problem: Problem) -> str | None:
        """One channel to a group, on both sides."""
        s = problem.shape
        if s.cg != 1 or s.kg != 1:
            return f"depthwise: K must equal C = groups, not K={s.k} C={s.c} groups={s.groups}"
        return None

    def workspace_estimate(self, problem: Problem) -> int:
        """The packed filter (or the sums of dw), zeros and a dump, strips of one thread (and half another's)."""
        s = problem.shape
        padded = -(-s.c // 16) * 16
        if s.r * s.s > FEW_TAPS:
            strip = max(LARGE_STRIP, 16 * (s.extent[0] + 3 * s.stride[0]) * (s.extent[1] + 6 * s.stride[1]))
            if problem.pass_ is Pass.BACKWARD_WEIGHTS:
                strip += 16 * s.r * s.s
        elif problem.layout == "nchw":
            strip = max(SMALL_STRIP, 16 * (s.extent[0] + 3 * s.stride[0]) * (s.w + s.extent[1]))
        else:
            strip = padded
        return 4 * (padded * (s.r * s.s + 1) + strip * 3 // 2)

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed for raw weights too."""
        return self.workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Taps on padding are multiplied by zero, outputs of a last block beyond the edge are thrown away."""
        from convbench.simd import target

        return {"multiply": 2.0 * problem.shape.n * problem.shape.c * products(problem, target.host())}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles the kernels for this filter, stride and dilation."""
        from convbench.simd import target

        return Plan(problem, context, target.host()).run(weights)


class Plan:
    """Kernels, buffers and parameters for one problem."""

    def __init__(self, problem: Problem, context: Context, target: Target, straight: bool | None = None) -> None:
        """straight: whether straight-line kernels are to be used; by default where they are small enough."""
        from convbench.simd.kernels.depthwise import move
        from convbench.simd.kernels.transpose import transpose

        self.problem, self.context, self.target = problem, context, target
        s, lanes = problem.shape, target.lanes
        self.vectors, self.taps = -(-s.c // lanes), s.r * s.s
        self.filters = context.empty(self.vectors * self.taps * lanes, np.float32)
        self.filters.fill(0)
        self.zeros = context.empty(self.vectors * lanes, np.float32)
        self.zeros.fill(0)
        self._kernels: list[Kernel] = [transpose(target), move(target)]
        self._kept: list[np.ndarray] = []
        data = problem.pass_ is Pass.BACKWARD_DATA
        inner, outer = ((s.p, s.q), (s.h, s.w)) if data else ((s.h, s.w), (s.p, s.q))
        self.common = {
            "images": s.n, "channels": s.c, "height": inner[0], "width": inner[1], "tall": outer[0], "broad": outer[1],
            "nchw": int(problem.layout == "nchw"), "taps": self.taps, "lanes": lanes, "zeros": address_of(self.zeros),
            "filters": address_of(self.filters), "transpose": self._kernels[0].address,
            "move": self._kernels[1].address, "share": lanes, "x": 0, "y": 0,
        }  # fmt: skip
        patterns = best_patterns(problem, target) if straight is not False else None
        if patterns is not None:
            self._blocked(*patterns)
        elif problem.pass_ is Pass.BACKWARD_WEIGHTS:
            self._sliding_weights()
        else:
            self._sliding()

    def run(self, weights: Any) -> Run:
        """run(a, b, out), or run(a, out) with the filter packed here; both keep the plan, whose buffers they use."""
        table, names = self.table, self.names
        runner, count = self.runner, self.count
        x_at, y_at = names.index("x"), names.index("y")
        if self.problem.pass_ is Pass.BACKWARD_WEIGHTS:
            dw_at = names.index("dw")

            def gradient(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
                table[x_at], table[y_at], table[dw_at] = address_of(a), address_of(b), address_of(out)
                runner(count)

            return self._keeping(gradient)
        load = self._packer()

        def packed(a: np.ndarray, out: np.ndarray) -> None:
            table[x_at], table[y_at] = address_of(a), address_of(out)
            runner(count)

        def raw(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            load(b)
            packed(a, out)

        if weights is None:
            return self._keeping(raw)
        load(weights)
        return self._keeping(packed)

    def _keeping(self, run: Run) -> Run:
        """The loops hold addresses only: the buffers live as long as the function."""
        vars(run)["plan"] = self
        return run

    # ---- the three ways

    def _blocked(self, rows: Pattern, columns: Pattern) -> None:
        from convbench.algorithms import _depthwise_simd as loops
        from convbench.simd.kernels.depthwise import straight

        s, lanes, common = self.problem.shape, self.target.lanes, self.common
        weights = self.problem.pass_ is Pass.BACKWARD_WEIGHTS
        data = self.problem.pass_ is Pass.BACKWARD_DATA
        kernels = [straight(self.target, rows, columns, self.taps, s.s, table, weights) for table in (False, True)]
        self._kernels += kernels
        row_blocks, column_blocks = -(-common["tall"] // rows.size), -(-common["broad"] // columns.size)
        bases = (0, 0) if data else (-s.padding[0], -s.padding[2])
        inner = [
            b for b in range(column_blocks)
            if bases[1] + b * columns.step + columns.offsets[0] >= 0
            and bases[1] + b * columns.step + columns.offsets[-1] < common["width"]
            and (b + 1) * columns.size <= common["broad"]
        ]  # fmt: skip
        spans = [p.offsets[-1] - p.offsets[0] + 1 for p in (rows, columns)]
        x_row = odd((column_blocks - 1) * columns.step + spans[1]) * lanes
        y_row = odd(column_blocks * columns.size) * lanes
        per_row = x_row * rows.step + y_row * rows.size
        strip_rows = even(row_blocks, (SMALL_STRIP - x_row * spans[0]) // per_row)
        tasks: Any
        if common["nchw"]:
            strip_x = ((strip_rows - 1) * rows.step + spans[0]) * x_row
            per_thread = strip_x + strip_rows * rows.size * y_row
            tasks = loops.in_strips_weights if weights else loops.in_strips
            self.count = self.vectors * (1 if weights else s.n * -(-row_blocks // strip_rows))
        else:
            common["share"] = self._share(s.n * row_blocks, weights)
            entries = len(rows.offsets) * len(columns.offsets) + rows.size * columns.size
            strip_x = -(-2 * entries // 16) * 16
            per_thread = strip_x + self.vectors * lanes
            shares = -(-s.c // common["share"])
            tasks = loops.in_place_weights if weights else loops.in_place
            self.count = shares * (1 if weights else s.n * row_blocks)
        values = {
            "rows": rows.size, "columns": columns.size, "row_step": rows.step, "column_step": columns.step,
            "row_base": bases[0], "column_base": bases[1], "row_offsets": len(rows.offsets),
            "column_offsets": len(columns.offsets), "row_at": self._keep(rows.offsets),
            "column_at": self._keep(columns.offsets), "row_blocks": row_blocks, "column_blocks": column_blocks,
            "inner_first": inner[0] if inner else 0, "inner_end": inner[-1] + 1 if inner else 0,
            "strided": kernels[0].address, "tabled": kernels[1].address, "strip_rows": strip_rows, "x_row": x_row,
            "y_row": y_row, "strip_x": strip_x, "dw": 0,
        }  # fmt: skip
        self._finish(tasks, loops.BLOCKED, values, per_thread)

    def _share(self, rows: int, weights: bool) -> int:
        """Channels of one task: all, unless the threads need more tasks."""
        lanes = self.target.lanes
        threads = self.context.threads
        wanted = threads if weights else -(-4 * threads // rows) if threads > 1 else 1
        return -(-self.vectors // min(wanted, self.vectors)) * lanes

    def _sliding(self) -> None:
        from convbench.algorithms import _depthwise_simd as loops
        from convbench.simd.kernels.depthwise import sliding

        lanes, nchw = self.target.lanes, self.common["nchw"]
        tables, per_thread, strips, across = [], 0, 1, 1
        axes = [list(phases(self.problem, axis)) for axis in (0, 1)]
        for v, h in itertools.product(*axes):
            empty = not (v.taps and h.taps)
            tall, broad = (1, 1) if empty else (v.taps, h.taps)
            rows, columns, unroll = phase_block(self.target, v, h)
            kernel = sliding(self.target, rows, columns, h.stride, unroll)
            self._kernels.append(kernel)
            spans = [(n - 1) * p.dilation + 1 for p, n in ((v, tall), (h, broad))]
            row_blocks, column_blocks = -(-v.outputs // rows), -(-h.outputs // columns)

            n_rows, n_columns = strip_blocks(
                LARGE_STRIP // lanes, (row_blocks, column_blocks), (rows * v.stride, columns * h.stride),
                (spans[0] - v.stride, spans[1] - h.stride),
            )  # fmt: skip
            x_row = odd((n_columns * columns - 1) * h.stride + spans[1]) * lanes
            y_row = odd(n_columns * columns) * lanes
            strip_x = ((n_rows * rows - 1) * v.stride + spans[0]) * x_row
            per_thread = max(per_thread, strip_x + (n_rows * rows * y_row if nchw else 0))
            strips, across = max(strips, -(-row_blocks // n_rows)), max(across, -(-column_blocks // n_columns))
            width = self.problem.shape.s
            first = address_of(self.filters) + 4 * (v.first * width + h.first) * lanes
            tables.append((
                kernel.address, rows, columns, v.outputs, h.outputs, v.at, v.step, h.at, h.step, v.stride, h.stride,
                v.dilation, h.dilation, v.padding, h.padding, tall, broad, address_of(self.zeros) if empty else first,
                0 if empty else v.filter_step * width * lanes, 0 if empty else h.filter_step * lanes,
                0 if empty else self.taps, n_rows, n_columns, x_row, y_row, strip_x,
            ))  # fmt: skip
        self.count = len(tables) * self.problem.shape.n * self.vectors * strips * across
        values = {
            "phases": self._keep([x for row in tables for x in row]), "strips": strips, "strips_of_columns": across
        }  # fmt: skip
        self._finish(loops.slide, loops.SLIDING, values, per_thread)

    def _sliding_weights(self) -> None:
        from convbench.algorithms import _depthwise_simd as loops
        from convbench.simd.kernels.depthwise import sliding

        s, lanes = self.problem.shape, self.target.lanes
        rows, columns, unroll = weights_block(self.target, s)
        kernel = sliding(self.target, rows, columns, s.dilation[1], unroll)
        self._kernels.append(kernel)
        tall, broad = -(-s.r // rows) * rows, -(-s.s // columns) * columns  # of the sums

        tall_x, broad_x = (tall - 1) * s.dilation[0] + 1, (broad - 1) * s.dilation[1] + 1
        y_rows, y_columns = strip_blocks(
            LARGE_STRIP // lanes, (s.p, s.q), s.stride, (tall_x - s.stride[0], broad_x - s.stride[1])
        )
        y_rows = max(y_rows, rows)
        x_row = odd((y_columns - 1) * s.stride[1] + broad_x) * lanes
        y_row, sum_row = odd(y_columns) * lanes, odd(broad) * lanes
        strip_x = ((y_rows - 1) * s.stride[0] + tall_x) * x_row
        strip_y = strip_x + y_rows * y_row
        values = {
            "kernel": kernel.address, "rows": rows, "columns": columns, "row_stride": s.stride[0],
            "column_stride": s.stride[1], "row_dilation": s.dilation[0], "column_dilation": s.dilation[1],
            "top": s.padding[0], "left": s.padding[2], "filter_height": s.r, "filter_width": s.s, "y_rows": y_rows,
            "y_columns": y_columns, "x_row": x_row, "y_row": y_row, "sum_row": sum_row, "strip_x": strip_x,
            "strip_y": strip_y, "dw": 0,
        }  # fmt: skip
        self.count = self.vectors
        self._finish(loops.slide_weights, loops.SLIDING_WEIGHTS, values, strip_y + tall * sum_row)

    # ---- parameters

    def _finish(self, work: Any, names: Sequence[str], values: dict[str, int], per_thread: int) -> None:
        from convbench.simd.driver import Runner

        per_thread = -(-per_thread // 16) * 16
        threads = max(1, min(self.context.threads, self.count))
        self._scratch = self.context.empty(per_thread * threads, np.float32)
        values = {**self.common, **values, "per_thread": per_thread, "scratch": address_of(self._scratch)}
        self.names = list(names)
        self.table = np.array([values[name] for name in names], np.int64)
        self.runner = Runner(work, self.table, threads)

    def _keep(self, values: Sequence[int]) -> int:
        array = np.array(values, np.int64)
        self._kept.append(array)
        return address_of(array)

    def _packer(self) -> Callable[[np.ndarray], None]:
        from convbench.algorithms import _depthwise_simd as loops
        from convbench.simd.driver import Runner

        parameters = np.array(
            [0, address_of(self.filters), self.problem.shape.c, self.taps, self.target.lanes, self._kernels[0].address],
            np.int64,
        )
        runner, vectors = Runner(loops.pack, parameters, 1), self.vectors

        def load(w: np.ndarray) -> None:
            parameters[0] = address_of(w)
            runner(vectors)

        return load
