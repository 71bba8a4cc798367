"""Where things lie: quantised operands as grids and panels, and the products that forward and backward data are.

Operand a becomes a grid [image][group][row][column][channel] of parts (`part_sums.Scheme`) with its padding around it,
channels rounded up to whole words. Along an axis, the outputs whose taps lie on the same phase of the stride form a
class: in steps of one output, all of them read the grid in equal steps through the same taps. Forward there is one
class; backward data has one for each phase of the stride, so no zeros are put between the pixels of a gradient. Taps
that are neighbours in a grid's row are read as one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from convbench.algorithms._gemm_simd import Geometry
from convbench.problem import Pass, Problem
from convbench.simd.kernels.part_sums import Scheme

#: Bytes of the grid, and of results on their way, that one task may use: they stay in a second-level cache.
TASK_BYTES = 512 << 10
RESULT_BYTES = 256 << 10


@dataclass(frozen=True)
class AxisClass:
    """`count` outputs out, out + out_step, ..; the i-th reads grid index start + i step + offset of every tap.

    taps: pairs (tap, offset).
    """

    count: int
    start: int
    step: int
    taps: tuple[tuple[int, int], ...]
    out: int
    out_step: int


@dataclass(frozen=True)
class GridAxis:
    """One axis of the grid: its size, where element 0 of the operand lies (maybe before it), and the classes."""

    size: int
    origin: int
    classes: tuple[AxisClass, ...]


def grid_axis(problem: Problem, which: int) -> GridAxis:
    """Rows (0) or columns (1)."""
    s = problem.shape
    taps, size, out = (s.r, s.s)[which], (s.h, s.w)[which], (s.p, s.q)[which]
    stride, dilation, pad, extent = s.stride[which], s.dilation[which], s.padding[2 * which], s.extent[which]
    if problem.pass_ is Pass.FORWARD:
        read = tuple((t, t * dilation) for t in range(taps))
        return GridAxis((out - 1) * stride + extent, pad, (AxisClass(out, 0, stride, read, 0, 1),))
    phases = []
    for u in range(stride):  # outputs h with h + pad = i stride + u: tap t reads p = i - (t dilation - u) / stride
        first, last = -(-(pad - u) // stride), (size - 1 + pad - u) // stride
        back = [(t, (t * dilation - u) // stride) for t in range(taps) if (t * dilation - u) % stride == 0]
        if first <= last:
            phases.append((u, first, last - first + 1, back))
    most = max((t for *_, back in phases for _, t in back), default=0)
    least = min(first for _, first, *_ in phases)
    classes = tuple(
        AxisClass(
            count, first - least, 1, tuple((t, most - b) for t, b in reversed(back)), first * stride + u - pad, stride
        )
        for u, first, count, back in phases
    )
    reach = max(c.start + c.count - 1 + max((o for _, o in c.taps), default=0) for c in classes)
    return GridAxis(reach + 1, most - least, classes)


def pieces(words: int, scheme: Scheme) -> tuple[int, int, int]:
    """(pieces, steps, chunk): a run of so many words as pieces of steps times chunk words that sums can take."""
    limit = scheme.bound // scheme.word
    if scheme.how != "tiles":
        parts = -(-words // limit)
        return parts, 1, -(-words // parts)
    total = -(-words // scheme.chunk_words)
    chunk = -(-words // total)
    parts = -(-total // (limit // chunk))
    return parts, -(-total // parts), chunk


@dataclass(frozen=True)
class ClassPlan:
    """One pair of classes. segments: (bytes into the grid, bytes into a panel), `steps` times `chunk` words each;
    per_call of them can be summed in 32 bits. beyond: words that are read behind the end of a run. entries: (tap, bytes
    into a panel, words) of the filter's rows."""

    rows: AxisClass
    columns: AxisClass
    segments: np.ndarray
    entries: np.ndarray
    steps: int
    chunk: int
    per_call: int
    beyond: int


@dataclass(frozen=True)
class ProductPlan:
    """Forward or backward data of one problem in one scheme."""

    geometry: Geometry
    scheme: Scheme
    height: GridAxis
    width: GridAxis
    classes: tuple[ClassPlan, ...]
    panel_bytes: int
    chunks: tuple[tuple[int, int], ...]  # output rows of a task
    shares: int  # tasks into which the panels are divided

    @property
    def element(self) -> int:
        """Bytes of an element of one part."""
        return 4 // self.scheme.word

    @property
    def channels(self) -> int:
        """Of a pixel of the grid: whole words."""
        return -(-self.geometry.channels // self.scheme.word) * self.scheme.word

    @property
    def pixel_bytes(self) -> int:
        """Of a pixel of the grid, in one part."""
        return self.channels * self.element

    @property
    def image_bytes(self) -> int:
        """Of one image of one group, in one part."""
        return self.height.size * self.width.size * self.pixel_bytes

    @property
    def grid_bytes(self) -> int:
        """Of one part: all images, and what blocks may read behind the last."""
        step = max(c.columns.step for c in self.classes) * self.pixel_bytes
        behind = self.scheme.rows * step + max(4 * c.beyond for c in self.classes)
        return -(-(self.geometry.images * self.geometry.groups * self.image_bytes + behind) // 64) * 64

    @property
    def panels(self) -> int:
        """Of one group."""
        return -(-self.geometry.filters // self.scheme.width)

    @property
    def column_bytes(self) -> int:
        """Of a filter (a column of the product) before it is turned into panels, in one part."""
        return self.geometry.taps * self.pixel_bytes

    @property
    def multiplied(self) -> float:
        """Multiply-adds of whole numbers that the blocks execute, all in all, junk included."""
        g, s, total = self.geometry, self.scheme, 0.0
        for c in self.classes:
            places = c.rows.count * c.columns.count
            total += places * len(c.segments) * c.steps * c.chunk * s.word
        return total * g.images * g.groups * self.panels * s.width * len(s.products)


def product_plan(problem: Problem, scheme: Scheme, threads: int) -> ProductPlan:
    """The tables for so many threads."""
    g = Geometry.of(problem)
    height, width = grid_axis(problem, 0), grid_axis(problem, 1)
    pixel = -(-g.channels // scheme.word) * 4
    classes: list[ClassPlan] = []
    panel = 0
    for rows in height.classes:
        for columns in width.classes:
            made, panel = _class(problem, scheme, (rows, columns), width.size * pixel, pixel, panel)
            classes.append(made)
    line = width.size * pixel * len(scheme.shifts) * max(c.step for c in height.classes)
    most = max(1, min(TASK_BYTES // line, RESULT_BYTES // (4 * g.width * scheme.columns)))
    jobs = g.images * g.groups
    number = min(g.height, max(-(-g.height // most), -(-2 * threads // jobs) if threads > 1 else 1))
    cuts = tuple((i * g.height // number, (i + 1) * g.height // number) for i in range(number))
    blocks = -(-g.filters // scheme.columns)
    shares = min(blocks, -(-threads // (jobs * number)))
    return ProductPlan(g, scheme, height, width, tuple(classes), panel, cuts, shares)


def _class(
    problem: Problem, scheme: Scheme, axes: tuple[AxisClass, AxisClass], line: int, pixel: int, panel: int
) -> tuple[ClassPlan, int]:
    """One class whose rows of a panel begin at byte `panel`; and where they end."""
    rows, columns = axes
    row_bytes = 4 * scheme.width  # of a row of a panel: one word for each column
    neighbours = all(after[1] == before[1] + 1 for before, after in pairwise(columns.taps))
    runs = [columns.taps] if neighbours and columns.taps else [(tap,) for tap in columns.taps]
    words = len(runs[0]) * pixel // 4 if runs else 1
    parts, steps, chunk = pieces(words, scheme)
    ascending = problem.pass_ is Pass.FORWARD  # neighbours in the grid are neighbours in the filter too
    segments, entries = [], []
    for tap_h, offset_h in rows.taps:
        for run in runs:
            for i in range(parts):
                at = offset_h * line + run[0][1] * pixel + i * steps * chunk * 4
                segments.append((at, panel + i * steps * chunk * row_bytes))
            group = [run] if ascending else [(tap,) for tap in run]
            for i, taps in enumerate(group):
                to = panel + i * pixel // 4 * row_bytes
                entries.append((tap_h * problem.shape.s + taps[0][0], to, len(taps) * pixel // 4))
            panel += parts * steps * chunk * row_bytes
    per_call = max(1, scheme.bound // scheme.word // (steps * chunk))
    made = ClassPlan(
        rows, columns, np.array(segments, np.int64).reshape(-1, 2), np.array(entries, np.int64).reshape(-1, 3),
        steps, chunk, per_call, parts * steps * chunk - words,
    )  # fmt: skip
    return made, panel
