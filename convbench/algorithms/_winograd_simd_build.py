"""Kernels, buffers and the parameter table of a fused Winograd convolution: forward and backward data."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms import _winograd_simd as loops
from convbench.algorithms._cook_toom import Matrix
from convbench.algorithms._simd import address_of
from convbench.algorithms._winograd_simd_plan import LINE, STRIP_CHANNELS, Plan, choose, geometry
from convbench.algorithms._winograd_simd_product import panel_product
from convbench.problem import Problem
from convbench.registry import Context, Run
from convbench.simd import target as targets
from convbench.simd.driver import Runner
from convbench.simd.kernels.transform import transform2d
from convbench.simd.kernels.transpose import conversions
from convbench.simd.target import Target


def build(
    problem: Problem, context: Context, weights: Any, tile: int, taps: int, target: Target | None = None, **forced: int
) -> Run:
    """run(a, b, out), or run(a, out) where weights are given. forced: see `choose`; phases: bits of DO_*."""
    target = target or targets.host()
    phases = forced.pop("phases", -1)
    plan = choose(geometry(problem, tile, taps), target, context.threads, weights is None, **forced)
    return _Convolution(plan, target, context, weights, phases, problem.dtype).run


class _Convolution:
    """Owns what the loops point to."""

    def __init__(
        self, plan: Plan, target: Target, context: Context, weights: Any, phases: int, dtype: str
    ) -> None:
        self.plan = plan
        raw = weights is None
        table = np.zeros(len(loops.NAMES), np.int64)
        self.table = table
        self._buffers(context, raw)
        self._kernels(target, dtype)
        self._sizes()
        table[loops.RAW], table[loops.PHASES] = raw, phases
        threads = context.threads
        steps = plan.geometry.groups * -(-plan.panels // plan.together)
        if plan.split:
            table[loops.PARTS] = min(threads, plan.geometry.tiles)
            work = [
                (Runner(loops.input_task, table, threads), plan.geometry.groups * int(table[loops.PARTS])),
                (Runner(loops.panel_task, table, threads), steps),
            ]
        else:
            work = [(Runner(loops.block_task, table, threads), plan.geometry.groups * plan.blocks)]
        filters = plan.geometry.groups * plan.panels
        if raw and not plan.fly:
            work.insert(0, (Runner(loops.filter_task, table, threads), filters))
        if not raw:
            weights = np.ascontiguousarray(weights)
            table[loops.W] = address_of(weights)
            table[loops.RAW] = 1  # the filter is read here, whatever comes later
            Runner(loops.pack_task if plan.fly else loops.filter_task, table, threads)(filters)
            table[loops.RAW] = 0
        self.work = work
        self.run: Run = self._with_weights if raw else self._without_weights

    def _buffers(self, context: Context, raw: bool) -> None:
        plan, table = self.plan, self.table
        private = plan.private()
        per_thread = sum(private.values()) + LINE
        scratch = context.empty((context.threads, per_thread), np.float32)
        names = {
            "table": loops.TABLE, "zeros": loops.ZEROS, "dump": loops.DUMP, "m": loops.BUFFER_M, "v": loops.BUFFER_V,
            "strip_in": loops.STRIP_IN, "strip_out": loops.STRIP_OUT, "u": loops.BUFFER_U, "taps": loops.BUFFER_TAPS,
            "turned": loops.TURNED,
        }  # fmt: skip
        offset = 0
        for name, size in private.items():
            table[names[name]] = address_of(scratch) + 4 * offset
            if name == "zeros":
                scratch[:, offset : offset + size] = 0.0
            offset += size
        table[loops.PER_THREAD] = per_thread
        self.kept = [scratch]
        if plan.split:
            self.kept.append(context.empty((plan.geometry.groups, plan.v_size()), np.float32))
            table[loops.BUFFER_V] = address_of(self.kept[-1])
        if not (raw and plan.fly):
            self.kept.append(context.empty(plan.kept_filters(), np.float32))
            table[loops.FILTERS] = address_of(self.kept[-1])

    def _kernels(self, target: Target, dtype: str) -> None:
        """Transforms read and write nhwc themselves; nchw goes through strips of float32."""
        table, transform = self.table, self.plan.geometry.transform
        g = _floats(transform.g)
        if self.plan.geometry.backward:
            g = tuple(row[::-1] for row in g)  # the filter turned by 180 degrees
        own = "float32" if self.plan.geometry.layout == "nchw" else dtype
        self.kernels = {
            loops.INPUT_KERNEL: transform2d(target, _floats(transform.bt), True, False, "winograd_in", own),
            loops.FILTER_KERNEL: transform2d(target, g, False, False, "winograd_filter"),
            loops.OUTPUT_KERNEL: transform2d(
                target, _floats(transform.at), False, True, "winograd_out", "float32", own
            ),
            loops.PRODUCT_KERNEL: panel_product(target, self.plan.shape, self.plan.lines_ahead),
        }
        for place, kernel in self.kernels.items():
            table[place] = kernel.address
        for name, value in conversions(target, dtype).items():
            if name != "convert_out":
                table[loops.NAMES.index(name.upper())] = value

    def _sizes(self) -> None:
        plan, g = self.plan, self.plan.geometry
        strip_in, strip_out = plan.strip_in, plan.strip_out
        values = {
            "NCHW": g.layout == "nchw", "BACKWARD": g.backward, "GROUPS": g.groups, "C": g.c, "K": g.k, "H": g.h,
            "WIDTH": g.w, "P": g.p, "Q": g.q, "TOP": g.top, "LEFT": g.left, "STRIDE": g.stride, "TAPS_H": g.taps[0],
            "TAPS_W": g.taps[1], "M": g.transform.m, "ALPHA": g.transform.alpha, "TAPS": g.transform.r,
            "DOWN": g.down, "ACROSS": g.across, "TILES": g.tiles, "BLOCKS": plan.blocks, "PANEL": plan.width,
            "PANELS": plan.panels, "TOGETHER": plan.together, "CHUNK": plan.chunk, "DEPTH": g.depth,
            "ROWS": plan.shape.rows, "FLY": plan.fly, "SPLIT": plan.split, "ROW_V": plan.row_v,
            "PLANE_V": plan.plane_v, "V_SIZE": plan.v_size(), "ROW_M": plan.row_m, "PLANE_M": plan.plane_m,
            "PLANE_U": plan.plane_u, "STRIP_ROW_IN": strip_in[1] * strip_in[2], "STRIP_PIXEL_IN": strip_in[2],
            "STRIP_ROW_OUT": strip_out[1] * strip_out[2], "STRIP_PIXEL_OUT": strip_out[2],
            "STRIP_CHANNELS": STRIP_CHANNELS,
        }  # fmt: skip
        for name, value in values.items():
            self.table[loops.NAMES.index(name)] = value

    def _with_weights(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        table = self.table
        table[loops.X], table[loops.W], table[loops.Y] = address_of(a), address_of(b), address_of(out)
        for runner, count in self.work:
            runner(count)

    def _without_weights(self, a: np.ndarray, out: np.ndarray) -> None:
        self.table[loops.X], self.table[loops.Y] = address_of(a), address_of(out)
        for runner, count in self.work:
            runner(count)


def _floats(matrix: Matrix) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)
