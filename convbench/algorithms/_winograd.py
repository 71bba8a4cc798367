"""Winograd convolution, all three passes: what the implementations that differ in their products share.

Lavin and Gray, arXiv 1509.09308. Forward: F(m x m, r x r). Backward data: the same, over dy with the filter
turned by 180 degrees and C, K exchanged. Backward weights: F(r x r, m x m), the result is the r x r filter and
m x m tiles of dy are the taps, summed over all tiles before one transform back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._cook_toom import CookToom, cook_toom
from convbench.algorithms._winograd_limits import footprint, refusal
from convbench.algorithms._winograd_steps import (
    FilterReader,
    FilterWriter,
    Multiply,
    Source,
    TileReader,
    TileWriter,
    Tiling,
    filter_planes,
    multiply_depthwise,
)
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run

#: Tiles of a block: as many as fit here once transformed, but at least so many. Measured on a CPU, on VGG-16's
#: conv1_2, conv3_2, conv4_2: fewer than 100 tiles wait for the transformed filter (or, in backward weights, for adding
#: alpha^2 K C/G sums after each block), and blocks beyond 10 MB leave the cache; flat in between.
BLOCK_BYTES = 4 << 20
FEWEST_TILES = 200
#: NumPy's iterators take up to 8,192 elements an operand while they run, views a few KiB.
_CALL_BYTES = 192 << 10


@dataclass(frozen=True)
class Layout:
    """Everything about a problem that both the estimate and prepare() need."""

    transform: CookToom
    tiling: Tiling
    sources: tuple[Source, ...]  # x or dy; for backward weights x and dy
    filter_shape: tuple[int, int, int]  # (G, K/G, C/G)
    channels: int  # of the result: K, or C for backward data
    size: tuple[int, int]  # of the result in space


def lay_out(problem: Problem, m: int, block_bytes: int = BLOCK_BYTES) -> Layout:
    """Tiles, blocks and operands of `problem` for m x m tiles of y (backward data: of dx)."""
    s = problem.shape
    weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
    transform = cook_toom(s.r, m) if weights else cook_toom(m, s.r)
    top, left = s.padding[0], s.padding[2]
    if problem.pass_ is Pass.BACKWARD_DATA:
        size, channels, c_in = (s.h, s.w), s.c, s.k
        first = Source(problem.layout, s.k, (s.p, s.q), (s.r - 1 - top, s.s - 1 - left), transform.bt, m)
    else:
        size, channels, c_in = (s.p, s.q), s.k, s.c
        first = Source(problem.layout, s.c, (s.h, s.w), (top, left), transform.bt, m)
    second = Source(problem.layout, s.k, (s.p, s.q), (0, 0), transform.g, m)
    tile_bytes = transform.alpha**2 * (c_in + channels) * problem.item_bytes
    target = max(FEWEST_TILES, block_bytes // tile_bytes)
    tiling = Tiling.cut(s.n, -(-size[0] // m), -(-size[1] // m), target)
    sources = (first, second) if weights else (first,)
    return Layout(transform, tiling, sources, (s.groups, s.kg, s.cg), channels, size)


class Winograd(Implementation):
    """Base of the rows: a subclass gives `tile` (m), `taps` (r) and `multiplier`."""

    tile: ClassVar[int]
    taps: ClassVar[int] = 3
    block_bytes: ClassVar[int] = BLOCK_BYTES
    reader: ClassVar[type[TileReader]] = TileReader
    writer: ClassVar[type[TileWriter]] = TileWriter
    # The growth of these classes is set by the transforms, on short sums; BLAS adds long ones up in blocks. Without
    # this limit the bound would let operands rounded to half precision pass at tens of thousands of products.
    error_length = 1024

    def multiplier(self, context: Context, sums: np.ndarray | None) -> Multiply:
        """The products. `sums` is where backward weights adds up several blocks; None: nothing is added."""
        raise NotImplementedError(f"{type(self).__name__} must implement multiplier(context, sums)")

    def multiplier_bytes(self, sums_bytes: int) -> int:
        """Workspace of `multiplier` when it has to add into an array of `sums_bytes`."""
        return 0

    def depthwise_multiplier(self, context: Context) -> Multiply:
        """The products of groups of one channel on both sides, which never have to be added up in blocks here."""
        return multiply_depthwise

    def filter_turn(self, problem: Problem) -> tuple[int, ...]:
        """Buffer for filters that are turned before they are transformed; () where they are not."""
        s = problem.shape
        return FilterReader.turn_shape(problem.layout, (s.groups, s.kg, s.cg), self.taps**2)

    def limits(self, problem: Problem) -> str | None:
        """Unit stride and dilation, and the filter whose transform this is."""
        return refusal(problem, self.name.rsplit("_", 1)[0], self.taps)

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """An m x m tile; for backward weights the whole filter."""
        return footprint(problem, self.tile)

    def workspace_estimate(self, problem: Problem) -> int:
        """Exact sum of the buffers, and a little for what NumPy takes during a call."""
        plan, item = self._lay_out(problem), problem.item_bytes
        alpha = plan.transform.alpha
        shapes: list[tuple[int, ...]] = [filter_planes(plan.filter_shape, alpha, item)]
        for source in plan.sources:
            shapes += self.reader.shapes(source, plan.tiling, item)
        if problem.pass_ is not Pass.BACKWARD_WEIGHTS:
            shapes += self.writer.shapes(plan.channels, plan.transform.at, plan.tiling, item)
            turn = self.filter_turn(problem)
            shapes += [turn] if turn else []
        total = sum(math.prod(shape) for shape in shapes) * item
        if problem.pass_ is Pass.BACKWARD_WEIGHTS and len(plan.tiling.blocks()) > 1:
            total += self.multiplier_bytes(math.prod(shapes[0]) * item)
        return total + _CALL_BYTES

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Per phase, multiplications by the zeros and ones of the matrices included."""
        plan = self._lay_out(problem)
        alpha, t = plan.transform.alpha, plan.tiling.total
        groups, kg, cg = plan.filter_shape
        phases: dict[str, float] = {}
        for name, source in zip(("transform_in", "transform_dy"), plan.sources, strict=False):
            phases[name] = self.reader.flops(source, plan.tiling)
        phases["multiply"] = 2.0 * alpha**2 * t * groups * kg * cg
        filters = groups * kg * cg
        phases["transform_filter"] = 2.0 * alpha**2 * self.taps**2 * filters
        if problem.pass_ is not Pass.BACKWARD_WEIGHTS:
            phases["transform_out"] = self.writer.flops(plan.channels, plan.transform.at, plan.tiling)
        return phases

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Buffers, and with `weights` the transformed filter; the phases run block by block."""
        plan = self._lay_out(problem)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return self._prepare_weights(problem, plan, context)
        return self._prepare_tiles(problem, plan, context, weights)

    def _lay_out(self, problem: Problem) -> Layout:
        return lay_out(problem, self.tile, self.block_bytes)

    def _products(self, context: Context, plan: Layout, sums: np.ndarray | None) -> Multiply:
        """Of single channels, or of matrices."""
        _, kg, cg = plan.filter_shape
        return self.depthwise_multiplier(context) if kg == cg == 1 else self.multiplier(context, sums)

    def _prepare_tiles(self, problem: Problem, plan: Layout, context: Context, weights: Any) -> Run:
        """Forward and backward data."""
        layout, dtype, blocks = problem.layout, problem.dtype, plan.tiling.blocks()
        backward = problem.pass_ is Pass.BACKWARD_DATA
        turn = self.filter_turn(problem)
        filters = FilterReader(layout, plan.filter_shape, plan.transform.g, backward, dtype, context, turn)
        reader = self.reader(plan.sources[0], plan.tiling, dtype, context)
        writer = self.writer(layout, plan.channels, plan.size, plan.transform.at, plan.tiling, dtype, context)
        groups = plan.filter_shape[0]
        multiply = self._products(context, plan, None)
        u = filters.transformed  # (alpha^2, G, K/G, C/G)
        if backward:
            u = u.transpose(0, 1, 3, 2)

        def run_blocks(a: np.ndarray, out: np.ndarray) -> None:
            for block in blocks:
                v = reader.read(a, *block)
                v = v.reshape(*v.shape[:2], groups, -1).transpose(0, 2, 1, 3)  # (alpha^2, G, T, in)
                m = writer.products(*block[1::2])
                if layout == "nchw":
                    m = m.reshape(len(m), groups, -1, m.shape[2])  # (alpha^2, G, out, T)
                    multiply(u, v.transpose(0, 1, 3, 2), m, False)
                else:
                    m = m.reshape(*m.shape[:2], groups, -1).transpose(0, 2, 1, 3)  # (alpha^2, G, T, out)
                    multiply(v, u.transpose(0, 1, 3, 2), m, False)
                writer.write(out, *block)

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            filters.read(b)
            run_blocks(a, out)

        if weights is None:
            return run
        filters.read(context.xp.ascontiguousarray(weights))
        return run_blocks

    def _prepare_weights(self, problem: Problem, plan: Layout, context: Context) -> Run:
        """Backward weights: products of x tiles and dy tiles, summed over blocks, transformed once."""
        dtype, blocks = problem.dtype, plan.tiling.blocks()
        of_x, of_dy = (self.reader(source, plan.tiling, dtype, context) for source in plan.sources)
        writer = FilterWriter(problem.layout, plan.filter_shape, plan.transform.at, dtype, context)
        groups, kg, cg = plan.filter_shape
        sums = writer.products if len(blocks) > 1 else None
        multiply = self._products(context, plan, sums)

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            for i, block in enumerate(blocks):
                x, dy = of_x.read(a, *block), of_dy.read(b, *block)
                x = x.reshape(*x.shape[:2], groups, cg).transpose(0, 2, 1, 3)  # (alpha^2, G, T, C/G)
                dy = dy.reshape(*dy.shape[:2], groups, kg).transpose(0, 2, 3, 1)  # (alpha^2, G, K/G, T)
                multiply(dy, x, writer.products, i > 0)
            writer.write(out)

        return run
