"""Backward weights by Winograd's F(r x r, m x m), in the simd tier: dw = A^T [sum over tiles (B^T x B) (G dy G^T)] A.

Tiles of m x m values of dy are the taps, the r x r filter is the result (Lavin and Gray, arXiv 1509.09308). Each
frequency is a sum of outer products of two vectors of channels, one for each tile. Channels of dy are rows of the
products, channels of x their columns, so that dw is written in vectors; exchanged (`swapped`) where few channels of
x would leave vectors empty. Two orders, by an estimate of their cost:

fused: few tiles. All tiles are transformed once; then, for a few rows and columns after the other, all frequencies
over all tiles and at once the transform of the sums, which never leave the cache.
pairs: many tiles. For each pair of blocks of channels, chunks of tiles are transformed and multiplied in the cache,
where the sums of the pair stay. Tiles are transformed again for each pair; nothing goes through memory but x and dy.

Errors, as the largest ratio to eps sqrt(min(n, 1024)) sqrt(max of x^2 * dy^2 over the filter), over 13 shapes (1 to 512
channels, 5 to 224 points a side, up to 8 images): F(3x3,2x2) 1.4, F(3x3,4x4) 6.2, F(3x3,6x6) 25, F(5x5,2x2) 14,
F(5x5,4x4) 33. Chunks of tiles are summed apart and added up: with one running sum over all tiles F(3x3,2x2) had 5.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convbench.algorithms._cook_toom import CookToom, Matrix, cook_toom
from convbench.algorithms._simd import address_of
from convbench.problem import Problem
from convbench.registry import Context

#: What blocks, their sums and their strips may take of a thread's second-level cache.
CACHE_BYTES = 1 << 20
#: Vectors of columns beside each other in the products: the widest blocks.
WIDEST = 4
#: Rows of the products of all frequencies that are held at a time, at most.
MOST_ROWS = 8
#: Tiles that go through a strip together where edges or the layout require one, and channels of x or dy with them.
RUN, STRIP_VECTORS = 8, 4


@dataclass(frozen=True)
class Plan:
    """Sizes of one problem. kb, cb: rows and columns of a pair, multiples of `lanes`; tiles: of a chunk."""

    problem: Problem
    transform: CookToom
    lanes: int
    down: int
    across: int
    fused: bool = False
    kb: int = 0
    cb: int = 0
    tiles: int = 0
    swapped: bool = False

    @property
    def rows(self) -> int:
        """Channels of a group that are rows of the products: dy's, or x's where they are swapped."""
        return self.problem.shape.cg if self.swapped else self.problem.shape.kg

    @property
    def columns(self) -> int:
        """Channels of a group that are columns of the products."""
        return self.problem.shape.kg if self.swapped else self.problem.shape.cg

    @property
    def total(self) -> int:
        """Tiles of all images."""
        return self.problem.shape.n * self.down * self.across

    @property
    def planes(self) -> int:
        """Frequencies."""
        return self.transform.alpha**2

    def vectors(self, channels: int) -> int:
        """Vectors that hold so many channels."""
        return -(-channels // self.lanes)

    @property
    def plane(self) -> int:
        """Elements between frequencies of a vector of channels: an odd number of lines, so that they do not alias."""
        return (self.tiles | 1) * self.lanes

    @property
    def sums(self) -> tuple[int, int, int]:
        """(elements, between rows, between frequencies) of the sums of a thread."""
        if self.fused:
            plane = MOST_ROWS * WIDEST * self.lanes + 16
            return self.planes * plane, WIDEST * self.lanes, plane
        plane = self.kb * self.cb + 16
        return self.planes * plane, self.cb, plane

    @property
    def shared(self) -> tuple[int, int]:
        """Elements of the transformed columns and rows (x and dy) that all threads share."""
        if not self.fused:
            return 0, 0
        one = self.problem.shape.groups * self.planes * self.plane
        return self.vectors(self.columns) * one, self.vectors(self.rows) * one

    @property
    def own(self) -> tuple[int, int, int, int]:
        """Elements of transformed columns and rows, of sums, and of a result to be turned, that each thread has."""
        vector = 0 if self.fused else self.planes * self.plane
        sums, row, _ = self.sums
        turned = self.kb if self.swapped else int(self.problem.layout == "nchw")
        result = turned * self.problem.shape.r ** 2 * row
        return self.vectors(self.cb) * vector, self.vectors(self.kb) * vector, sums, result

    @property
    def strip(self) -> int:
        """Elements of a strip of tiles on their way into planes."""
        m, alpha = self.transform.r, self.transform.alpha
        chunk = STRIP_VECTORS if self.fused else max(self.vectors(self.kb), self.vectors(self.cb))
        return alpha * ((RUN - 1) * m + alpha) * chunk * self.lanes

    @property
    def pairs(self) -> tuple[int, int]:
        """Blocks of rows and of columns of a group."""
        return -(-self.rows // self.kb), -(-self.columns // self.cb)

    @property
    def widths(self) -> set[int]:
        """Vectors of the panels that the columns of all pairs are cut into."""
        sizes = {self.vectors(min(self.cb, self.columns)), self.vectors(self.columns % self.cb)} - {0}
        panels = {n: -(-n // WIDEST) for n in sizes}
        return {width for n, count in panels.items() for width in (n // count, -(-n // count))}

    @property
    def flops(self) -> dict[str, float]:
        """What one call executes, by phase."""
        from convbench.simd.kernels.transform import operations

        s, t, (pairs_k, pairs_c) = self.problem.shape, self.transform, self.pairs
        of_x, of_dy = operations(_floats(t.bt)) * 2 * t.alpha, operations(_floats(t.g)) * (t.r + t.alpha)
        again_x, again_dy = (1, 1) if self.fused else (pairs_c, pairs_k) if self.swapped else (pairs_k, pairs_c)
        return {
            "input_transform": 1.0 * self.total * (s.c * again_x * of_x + s.k * again_dy * of_dy),
            "multiply": 2.0 * self.planes * self.total * s.groups * s.kg * s.cg,
            "output_transform": 1.0 * s.k * s.cg * operations(_floats(t.at)) * (t.alpha + t.m),
        }


def plan(problem: Problem, tile: int, taps: int, lanes: int, threads: int = 1) -> Plan:
    """The order and the blocks of least cost."""
    s = problem.shape
    start = Plan(problem, cook_toom(taps, tile), lanes, -(-s.p // tile), -(-s.q // tile))
    candidates = []
    vector_bytes = 4 * start.planes * start.total * lanes
    wide = 2 * CACHE_BYTES // 3 // (vector_bytes * WIDEST) * WIDEST or CACHE_BYTES // (vector_bytes * WIDEST) * WIDEST
    if wide:
        n = start.vectors(s.cg)
        cb = -(-n // -(-n // wide)) * lanes
        candidates.append(replace(start, fused=True, kb=lanes, cb=cb, tiles=start.total))
    for swapped in (False, True):
        start = replace(start, swapped=swapped)
        for kb in range(1, min(8, start.vectors(start.rows)) + 1):
            for cb in range(1, min(8, start.vectors(start.columns)) + 1):
                sums = 4 * start.planes * kb * cb * lanes**2
                tiles = (CACHE_BYTES - sums) // (4 * start.planes * (kb + cb) * lanes)
                if tiles >= 8 or kb * cb == 1:
                    tiles = min(max(tiles, 8), start.total)
                    candidates.append(replace(start, kb=kb * lanes, cb=cb * lanes, tiles=tiles))
    return min(candidates, key=lambda candidate: cost(candidate, threads))


def cost(plan: Plan, threads: int) -> float:
    """Cycles of a core, roughly: multiply-adds, transforms, sums that are read and written again, memory."""
    s, lanes, planes, total = plan.problem.shape, plan.lanes, plan.planes, plan.total
    pairs_k, pairs_c = plan.pairs
    k = min(plan.kb, plan.rows)
    kv, cv = plan.vectors(k), plan.vectors(min(plan.cb, plan.columns))
    turns = -(-s.groups * pairs_k * pairs_c // threads)  # pairs that the busiest thread computes
    multiply = planes * total * k * cv / 2 * 1.3
    collect = k * cv * planes * (6 if plan.swapped else 3)
    transform = total * planes * 9
    if plan.fused:
        stream = planes * total * kv * lanes * 4 / 8
        vectors = s.groups * (plan.vectors(plan.columns) + plan.vectors(plan.rows))
        once = vectors * (transform + planes * total * lanes * 4 / 6)
        return turns * (max(multiply, stream) + collect) + once / threads
    again = -(-total // plan.tiles) * planes * k * cv * lanes * 8 / 64
    return turns * (multiply + collect + (kv + cv) * transform + again)


def backward_weights_bytes(problem: Problem, tile: int, taps: int) -> int:
    """Workspace: what all threads share, and what two of them have."""
    p = plan(problem, tile, taps, _lanes())
    return 4 * (sum(p.shared) + 2 * (sum(p.own) + p.strip)) + (16 << 10)


def backward_weights_flops(problem: Problem, tile: int, taps: int) -> dict[str, float]:
    """Executed operations by phase, in one thread. (More threads may transform some tiles once more.)"""
    return plan(problem, tile, taps, _lanes()).flops


def prepare_backward_weights(
    problem: Problem, context: Context, tile: int, taps: int, target: Any = None, chosen: Plan | None = None
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """run(x, dy, dw). target: a vector unit, the host's widest without; chosen: a plan, the best without."""
    from convbench.algorithms import _winograd_simd_weights_tasks as tasks
    from convbench.simd.driver import Runner
    from convbench.simd.target import host

    target = target or host()
    p = chosen or plan(problem, tile, taps, target.lanes, context.threads)
    table = _table(p, target)
    buffers = _buffers(p, table, context)
    products = Runner(tasks.pair, table, context.threads)
    inputs = Runner(tasks.transform_unit, table, context.threads) if p.fused else None
    s, (pairs_k, pairs_c) = problem.shape, p.pairs
    rows = s.n * p.down
    units = rows * s.groups * int(table[tasks.CHUNKS_OF_GROUP] + table[tasks.ROWS + tasks.CHUNKS_OF_GROUP])
    of_x, of_dy = (tasks.ROWS, tasks.COLUMNS) if p.swapped else (tasks.COLUMNS, tasks.ROWS)

    def run(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        table[of_x + tasks.ADDRESS], table[of_dy + tasks.ADDRESS] = address_of(x), address_of(dy)
        table[tasks.OUT] = address_of(dw)
        if inputs is not None:
            inputs(units)
        products(s.groups * pairs_k * pairs_c)

    run.parameters, run.buffers = table, buffers  # type: ignore[attr-defined]
    return run


def _lanes() -> int:
    from convbench.simd.target import host

    return host().lanes


def _floats(matrix: Matrix) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _table(p: Plan, target: Any) -> np.ndarray:
    """Sizes, strides and kernels; addresses of buffers and operands come later."""
    from convbench.algorithms import _winograd_simd_weights_tasks as tasks
    from convbench.simd.kernels.outer import most_rows, outer, outer_panel
    from convbench.simd.kernels.tiles import collect, spread, touch
    from convbench.simd.kernels.transpose import conversions

    s, t, table = p.problem.shape, p.transform, np.zeros(tasks.LENGTH, np.int64)
    of_x, of_dy = (tasks.ROWS, tasks.COLUMNS) if p.swapped else (tasks.COLUMNS, tasks.ROWS)
    for base, channels, of_group, size, padding, matrix, name in (
        (of_x, s.c, s.cg, (s.h, s.w), (s.padding[0], s.padding[2]), t.bt, "x"),
        (of_dy, s.k, s.kg, (s.p, s.q), (0, 0), t.g, "dy"),
    ):
        chunk = STRIP_VECTORS * p.lanes
        operand = {
            tasks.CHANNELS: channels, tasks.OF_GROUP: of_group, tasks.HEIGHT: size[0], tasks.WIDTH: size[1],
            tasks.TOP: padding[0], tasks.LEFT: padding[1], tasks.TAPS: len(matrix[0]),
            tasks.KERNEL: spread(target, _floats(matrix), name).address, tasks.VECTORS_OF_GROUP: p.vectors(of_group),
            tasks.PLANE: p.plane, tasks.JUMP: p.planes * p.plane, tasks.CHUNK: chunk,
            tasks.CHUNKS_OF_GROUP: -(-of_group // chunk),
        }  # fmt: skip
        for key, value in operand.items():
            table[base + key] = value
    pairs_k, pairs_c = p.pairs
    _, row_c, plane_c = p.sums
    kernels = conversions(target, p.problem.dtype)
    result = "float32" if p.swapped or p.problem.layout == "nchw" else p.problem.dtype  # turned afterwards, or in place
    whole = {
        tasks.PHASES: tasks.INPUT | tasks.MULTIPLY | tasks.OUTPUT, tasks.NCHW: int(p.problem.layout == "nchw"),
        tasks.STEP: t.r, tasks.PLANES: p.planes, tasks.LANES: p.lanes, tasks.DOWN: p.down, tasks.ACROSS: p.across,
        tasks.TOTAL: p.total, tasks.RUN: RUN, tasks.TRANSPOSE: kernels["transpose"],
        tasks.SIZE: kernels["size"], tasks.CONVERT: kernels["convert"], tasks.TRANSPOSE_OUT: kernels["transpose_out"],
        tasks.UNITS_OF_COLUMNS: s.n * p.down * s.groups * table[tasks.CHUNKS_OF_GROUP], tasks.KG: s.kg,
        tasks.CG: s.cg, tasks.SWAPPED: int(p.swapped),
        tasks.SIZE2: s.r * s.s, tasks.COLLECT: collect(target, _floats(t.at), "dw", result).address,
        tasks.PAIRS_K: pairs_k, tasks.PAIRS_C: pairs_c, tasks.KB: p.kb, tasks.CB: p.cb, tasks.WIDEST: WIDEST,
        tasks.SHARED: int(p.fused), tasks.FUSED: int(p.fused), tasks.BLOCK_TILES: p.tiles,
        tasks.ROW_C: row_c, tasks.PLANE_C: plane_c, tasks.ALPHA: t.alpha,
        tasks.WRITE: touch(target).address,
    }  # fmt: skip
    for v in p.widths:
        if p.fused:
            whole[tasks.OUTER + v - 1] = outer(target, v).address
            whole[tasks.ROWS_OF + v - 1] = min(MOST_ROWS, most_rows(target, v))
        else:
            whole[tasks.OUTER_PANEL + v - 1] = outer_panel(target, v).address
    for key, value in whole.items():
        table[key] = value
    return table


def _buffers(p: Plan, table: np.ndarray, context: Context) -> list[np.ndarray]:
    """Takes the workspace and writes its addresses into the table."""
    from convbench.algorithms import _winograd_simd_weights_tasks as tasks

    columns, rows, sums, result = p.own
    own = columns + rows + sums + result
    buffers = [context.empty(max(1, size), np.float32) for size in (*p.shared, own * context.threads)]
    buffers.append(context.empty(p.strip * context.threads, np.float32))
    table[tasks.TILES], table[tasks.ROWS + tasks.TILES] = 0, 4 * columns
    if p.fused:
        table[tasks.TILES], table[tasks.ROWS + tasks.TILES] = address_of(buffers[0]), address_of(buffers[1])
    table[tasks.SUMS], table[tasks.RESULT] = 4 * (columns + rows), 4 * (columns + rows + sums)
    table[tasks.SCRATCH], table[tasks.SCRATCH_BYTES] = address_of(buffers[2]), 4 * own
    table[tasks.STRIP], table[tasks.STRIP_BYTES] = address_of(buffers[3]), 4 * p.strip
    return buffers
