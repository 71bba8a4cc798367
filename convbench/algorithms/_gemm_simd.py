"""Implicit GEMM, forward and backward data: which pixels are multiplied with which taps, laid out in tables.

Both passes compute, for each output position, a sum over taps of (input position) x (matrix of the tap). Along one
axis that is a list of (tap, input index) for every output index; positions with the same list (up to a shift) form a
class, and a pair of classes, one per axis, is one brgemm: its taps are the segments, its pixels the rows. Taps that
fall on padding, or between the pixels of a strided gradient, are in no list, so they cost nothing and need no padded
copy. Where that would leave many classes with few pixels each (large filters on small images), the input is padded in
a strip. Operands in float16 become float32 in strips too, and results leave through a buffer.

This module plans (NumPy only); `_gemm_simd_tasks` runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from convbench.problem import Pass, Problem

K = TypeVar("K")

#: Bytes of input that one tile may need: it stays in a second-level cache of 1 MiB beside a block of the filter.
TILE_BYTES = 512 << 10
#: Where the whole filter of one group has no more bytes than this it is near anyway, and smaller tiles are better: the
#: output's lines are complete before they leave the cache.
SMALL_FILTER_BYTES = 128 << 10
#: Steps of k after which the accumulators are put down: a block of the filter then has 64 x 1152 floats. (400 lost 6 %,
#: 640 4 %; 2304 2 % where C is 512.)
DEPTH = 1152
#: Fewest channels of a segment, where there are so many.
LEAST_DEPTH = 32

Taps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Axis:
    """One spatial axis: for each output index, (place of the tap in the panel, input index), by rising input index."""

    taps: tuple[Taps, ...]

    def classes(self, first: int, end: int) -> dict[Taps, list[int]]:
        """Output indices first .. end - 1 by their list, shifted so that it starts at input 0."""
        found: dict[Taps, list[int]] = {}
        for o in range(first, end):
            base = self.base(o)
            found.setdefault(tuple((t, i - base) for t, i in self.taps[o]), []).append(o)
        return found

    def base(self, o: int) -> int:
        """The first input index that output o reads (0 where it reads none)."""
        return self.taps[o][0][1] if self.taps[o] else 0

    def reach(self, first: int, end: int) -> tuple[int, int]:
        """(lowest, one past the highest) input index read by outputs first .. end - 1; empty: (0, 0)."""
        read = [i for o in range(first, end) for _, i in (self.taps[o][:1] + self.taps[o][-1:])]
        return (min(read), max(read) + 1) if read else (0, 0)


def axis(problem: Problem, which: int, padded: bool) -> Axis:
    """Rows (0) or columns (1). padded: taps outside the input are kept."""
    s = problem.shape
    taps, size, out = (s.r, s.s)[which], (s.h, s.w)[which], (s.p, s.q)[which]
    stride, dilation, begin = s.stride[which], s.dilation[which], s.padding[2 * which]
    lists = []
    if problem.pass_ is Pass.FORWARD:
        for o in range(out):
            indices = ((t, o * stride + t * dilation - begin) for t in range(taps))
            lists.append(tuple((t, i) for t, i in indices if padded or 0 <= i < size))
    else:
        for o in range(size):
            found = []
            for t in reversed(range(taps)):  # the panel holds the filter turned, so that input indices rise
                index, between = divmod(o + begin - t * dilation, stride)
                if not between and (padded or 0 <= index < out):
                    found.append((taps - 1 - t, index))
            lists.append(tuple(found))
    return Axis(tuple(lists))


@dataclass(frozen=True)
class Geometry:
    """The product of one pass: `a` is the operand that is read by pixels, `out` the result.

    channels, filters: per group, of a and of out (C/G and K/G, exchanged for backward data).
    """

    images: int
    groups: int
    channels: int
    filters: int
    a_height: int
    a_width: int
    height: int
    width: int
    taps: int

    @staticmethod
    def of(problem: Problem) -> Geometry:
        """Of a problem's forward or backward-data pass."""
        s = problem.shape
        if problem.pass_ is Pass.FORWARD:
            return Geometry(s.n, s.groups, s.cg, s.kg, s.h, s.w, s.p, s.q, s.r * s.s)
        return Geometry(s.n, s.groups, s.kg, s.cg, s.p, s.q, s.h, s.w, s.r * s.s)


@dataclass(frozen=True)
class Tile:
    """Some output rows: input rows top .. top + rows - 1 are read; `kind`: which of the tables it uses."""

    first: int
    count: int
    top: int
    rows: int
    kind: int


@dataclass
class Plan:
    """Tables of one problem.

    left, columns: the input columns that are read. padded: taps outside the image are read (as zeros). strip: input is
    copied (nchw, padded or converted). held: results are gathered in a buffer before they are written (nchw or
    converted). block: channels between two accumulations. kinds: for each kind of tile its groups of pixels, as (pairs
    (rows, 2), segments (count, 2), segments of the last block, depth, depth of the last block).
    """

    geometry: Geometry
    nchw: bool
    padded: bool
    strip: bool
    held: bool
    left: int
    columns: int
    block: int
    width: int
    tiles: list[Tile]
    kinds: list[list[tuple[np.ndarray, np.ndarray, np.ndarray, int, int]]]

    @property
    def panels(self) -> int:
        """Panels of one group."""
        return -(-self.geometry.filters // self.width)

    @property
    def strip_floats(self) -> int:
        """Of one thread's strip of input."""
        return max(t.rows for t in self.tiles) * self.columns * self.geometry.channels if self.strip else 0

    @property
    def result_floats(self) -> int:
        """Of one thread's block of results."""
        return max(t.count for t in self.tiles) * self.geometry.width * self.width if self.held else 0

    @property
    def packed_floats(self) -> int:
        """Of the filter in panels."""
        g = self.geometry
        return g.groups * self.panels * self.width * g.taps * g.channels

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one image and group."""
        total = 0
        for tile in self.tiles:
            for pairs, _, last, _, depth in self.kinds[tile.kind]:
                blocks = -(-self.geometry.channels // self.block)
                if blocks == 1:
                    total += len(pairs) * len(last) * depth
                else:
                    total += len(pairs) * len(last) * self.geometry.channels
        return total * self.geometry.filters


@functools.lru_cache(maxsize=64)
def plan(problem: Problem, width: int, rows: int, threads: int) -> Plan:
    """The tables for panels of `width` columns and blocks of `rows` pixels, whichever of the two forms costs less."""
    exact, padded = (_Planner(problem, width, rows, threads, p) for p in (False, True))
    if problem.shape.padding == (0, 0, 0, 0) and problem.pass_ is Pass.FORWARD:
        return exact.plan()
    return exact.plan() if exact.cost() <= padded.cost() else padded.plan()


def tiles_of(
    rows: Axis, cuts: Sequence[tuple[int, int]], kind: Callable[[int, int, int], K]
) -> tuple[list[Tile], list[K]]:
    """The tiles of these cuts (first row, one past the last) and their kinds: tiles whose rows have the same taps, at
    the same distance from the first input row, share what kind(first, end, first input row) gives."""
    tiles: list[Tile] = []
    kinds: list[K] = []
    known: dict[object, int] = {}
    for first, end in cuts:
        top, bottom = rows.reach(first, end)
        key = tuple(tuple((t, i - top) for t, i in rows.taps[o]) for o in range(first, end))
        if key not in known:
            known[key] = len(kinds)
            kinds.append(kind(first, end, top))
        tiles.append(Tile(first, end - first, top, bottom - top, known[key]))
    return tiles, kinds


class _Planner:
    def __init__(self, problem: Problem, width: int, rows: int, threads: int, padded: bool) -> None:
        self.g, self.nchw = Geometry.of(problem), problem.layout == "nchw"
        self.panel, self.rows_of_block, self.threads, self.padded = width, rows, threads, padded
        self.axes = axis(problem, 0, padded), axis(problem, 1, padded)
        self.held = self.nchw or problem.dtype != "float32"
        self.strip = self.held or padded
        self.filter_columns = problem.shape.s
        left, right = self.axes[1].reach(0, self.g.width)
        self.left, self.columns = (left, right - left) if padded else (0, self.g.a_width)
        blocks = max(1, round(self.g.taps * self.g.channels / DEPTH))
        self.block = max(-(-self.g.channels // blocks), min(LEAST_DEPTH, self.g.channels))
        self.block = min(self.g.channels, -(-self.block // 16) * 16)
        self.pixel = self.g.channels if self.strip else self.g.channels * self.g.groups
        self.merge = self.block == self.g.channels == self.pixel

    def cost(self) -> float:
        """Estimated cycles of one image and panel: multiply-adds, put-down sums, segments, and the strip."""
        g, total = self.g, 0.0
        for h_taps, hs in self.axes[0].classes(0, g.height).items():
            for w_taps, ws in self.axes[1].classes(0, g.width).items():
                pixels, count = len(hs) * len(ws), len(h_taps) * len(w_taps)
                whole, rest = divmod(pixels, self.rows_of_block)
                slots = whole * self.rows_of_block + (max(rest, 2.5) if rest else 0)
                segments = len(h_taps) if self.merge else count
                total += slots * 2 * count * g.channels + (whole + bool(rest)) * (40 + 8 * segments)
        if self.strip:
            panels = -(-g.filters // self.panel)
            total += g.a_height * self.columns * g.channels * 0.2 / panels
        return total

    def plan(self) -> Plan:
        tiles, kinds = tiles_of(self.axes[0], self._cut(), self._kind)
        return Plan(
            self.g, self.nchw, self.padded, self.strip, self.held, self.left, self.columns, self.block, self.panel,
            tiles, kinds,
        )  # fmt: skip

    def _cut(self) -> list[tuple[int, int]]:
        """Output rows of the tiles: as few as the budget and the threads allow."""
        g = self.g
        panels = -(-g.filters // self.panel)
        wanted = -(-self.threads // (g.images * g.groups)) if panels < self.threads else 1
        small = g.taps * g.channels * g.filters * 4 <= SMALL_FILTER_BYTES
        budget = TILE_BYTES // 4 if small else TILE_BYTES
        number = min(wanted, g.height)
        while True:
            cuts = [(i * g.height // number, (i + 1) * g.height // number) for i in range(number)]
            reaches = (self.axes[0].reach(*cut) for cut in cuts)
            most = max(b - a for a, b in reaches) * self.columns * g.channels * 4
            results = max(b - a for a, b in cuts) * g.width * self.panel * 4
            if number >= g.height or (most <= budget and results <= TILE_BYTES):
                return cuts
            number = min(g.height, max(number + 1, number * 5 // 4))

    def _kind(self, first: int, end: int, top: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int, int]]:
        g, groups = self.g, []
        last = g.channels - (-(-g.channels // self.block) - 1) * self.block
        out_pixel = self.panel if self.held else g.filters * g.groups
        for h_taps, hs in self.axes[0].classes(first, end).items():
            for w_taps, ws in self.axes[1].classes(0, g.width).items():
                a_h = np.array([self.axes[0].base(h) - top for h in hs]) * self.columns
                a_w = np.array([self.axes[1].base(w) - self.left for w in ws])
                if not h_taps or not w_taps:
                    a_h, a_w = a_h * 0, a_w * 0
                c_h = (np.array(hs) - first) * g.width
                a = (a_h[:, None] + a_w[None, :]) * self.pixel  # (rows, columns)
                c = (c_h[:, None] + np.array(ws)[None, :]) * out_pixel
                pairs = np.stack([a.ravel(), c.ravel()], axis=1).astype(np.int64)  # (pixels, 2)
                segments, depth = self._segments(h_taps, w_taps, self.block)
                segments_last, depth_last = self._segments(h_taps, w_taps, last)
                groups.append((pairs, segments, segments_last, depth, depth_last))
        return sorted(groups, key=lambda group: -len(group[0]) * len(group[1]))

    def _segments(self, h_taps: Taps, w_taps: Taps, channels: int) -> tuple[np.ndarray, int]:
        """Pairs (offset into a, offset into a block of the panel), and the length of k in each."""
        taps, depth = w_taps, channels
        run = all(q == (p[0] + 1, p[1] + 1) for p, q in pairwise(w_taps))
        if self.merge and run and w_taps:  # neighbouring taps of a row are neighbours in memory
            taps, depth = w_taps[:1], channels * len(w_taps)
        pairs = [
            ((h * self.columns + w) * self.pixel, (t * self.filter_columns + u) * channels * self.panel)
            for t, h in h_taps
            for u, w in taps
        ]
        return np.array(pairs, np.int64).reshape(-1, 2), depth
