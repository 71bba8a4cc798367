"""Implicit GEMM over narrow numbers: which pixels are multiplied with which taps, laid out in tables of blocks.

As in `_gemm_simd`, output positions that read the same taps form a class, and a pair of classes, one per axis, is one
product: its taps are the segments, its pixels the rows. Tiles want their rows equally far apart, so the input is padded
and a tile is part of one row of pixels; or of the strip read on as one long row, where the columns that lie between the
end of a row and the next one's begin are multiplied too and thrown away, if that takes fewer tiles.

This module plans (NumPy only); offsets count 32-bit words.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from convbench.algorithms._gemm_simd import Axis, Geometry, Taps, Tile, axis, tiles_of
from convbench.problem import Pass, Problem

#: Bytes of a strip of input: it stays in a second-level cache beside panels of the filter.
STRIP_BYTES = 512 << 10
#: Where a filter has no more bytes than this it is in that cache too, and strips of half the size are better: 2 % of
#: int8's layers (1 thread of a Xeon with AMX, 2026-11). Larger filters would be read from beyond it for every strip.
SMALL_FILTER_BYTES = 640 << 10
#: Steps of a segment in tiles, where a filter has several taps.
SEGMENT_STEPS = 4
#: Pixels of so many words or more lie an odd number of cache lines apart: the same channels of pixels that lie a power
#: of two apart fall into a few sets of the first-level cache.
APART_WORDS = 128
#: Bytes of one thread's results in nchw, which are turned when a panel is through.
RESULT_BYTES = 512 << 10


@dataclass(frozen=True)
class Unit:
    """What the plan has to know of the unit and of the numbers.

    rows: most of a tile. tiles: of rows in a block (1, 2). chunk: most words of k in a step; 0: any number. width:
    columns of a panel. element_bytes: of a number in a strip. copies: strips hold the operand's own bytes. direct: sums
    may be stored as they are.
    """

    rows: int
    tiles: int
    chunk: int
    width: int
    element_bytes: int
    copies: bool
    direct: bool


@dataclass(frozen=True)
class Group:
    """The pixels of one class.

    blocks: (first word of a tile in a, of the second, pairs (row of the sums, place in the result)). rows: of a tile.
    row_a: words between them. row_c: elements between their places, if sums can be stored as they are, else 0.
    segments: (offset into a, offset into a panel) for each.
    """

    blocks: list[tuple[list[int], np.ndarray]]
    rows: int
    row_a: int
    row_c: int
    segments: np.ndarray


@dataclass
class Plan:
    """Tables of one problem.

    strip: whether input is copied. step: rows and columns of the input from one pixel of a strip to the next. origin:
    input row that index 0 of the tiles' rows stands for. left, columns: first input column of a strip, and its width in
    pixels. pixel: words from one pixel to the next. words: of a tap in a panel. chunk, steps: words of a step, steps of
    a segment. merged: a segment is all taps of a row.
    """

    geometry: Geometry
    nchw: bool
    strip: bool
    step: tuple[int, int]
    origin: int
    left: int
    columns: int
    pixel: int
    words: int
    chunk: int
    steps: int
    merged: bool
    filter_shape: tuple[int, int]
    unit: Unit
    tiles: list[Tile]
    kinds: list[list[Group]]

    @property
    def panels(self) -> int:
        """Panels of one group."""
        return -(-self.geometry.filters // self.unit.width)

    @property
    def together(self) -> int:
        """Words of a tap that lie together in a panel: these of all taps, then the next words of all taps."""
        return self.words if self.merged else self.chunk * self.steps

    @property
    def depth(self) -> int:
        """Words of k in a panel: rows of it."""
        return self.geometry.taps * self.words

    @property
    def panel_words(self) -> int:
        """Words of one panel."""
        return self.depth * self.unit.width

    @property
    def strip_words(self) -> int:
        """Of one thread's strip, and what tiles read beyond its last row; 0 where input is read in place."""
        if not self.strip:
            return 0
        return _line(max(t.rows for t in self.tiles) * self.columns * self.pixel)

    @property
    def result_words(self) -> int:
        """Of one thread's results of a panel (nchw only)."""
        return max(t.count for t in self.tiles) * self.geometry.width * self.unit.width if self.nchw else 0

    @property
    def sum_words(self) -> int:
        """Of one thread's sums: of two blocks, where a block has two tiles of rows."""
        return self.unit.tiles**2 * self.unit.rows * self.unit.width

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one image and group on numbers that exist, junk pixels and padding taps included."""
        rows = sum(
            len(starts) * group.rows * len(group.segments) * self.chunk * self.steps
            for tile in self.tiles
            for group in self.kinds[tile.kind]
            for starts, _ in group.blocks
        )
        return rows * self.geometry.channels * self.geometry.filters // self.words


def _line(words: int) -> int:
    """Rounded up to whole cache lines."""
    return -(-words // 16) * 16


@functools.lru_cache(maxsize=64)
def plan(problem: Problem, unit: Unit, threads: int) -> Plan:
    """The tables of a forward or backward-data problem."""
    return _Planner(problem, unit, threads).plan()


class _Planner:
    def __init__(self, problem: Problem, unit: Unit, threads: int) -> None:
        self.g, self.unit, self.threads = Geometry.of(problem), unit, threads
        self.nchw, s = problem.layout == "nchw", problem.shape
        self.filter_shape = (s.r, s.s)
        axes = axis(problem, 0, True), axis(problem, 1, True)
        reach = axes[0].reach(0, self.g.height), axes[1].reach(0, self.g.width)
        self.strip = self._needs_strip(reach)
        self.step = self._step(problem) if self.strip else (1, 1)
        self.axes = tuple(_stepped(a, step, low) for a, step, (low, _) in zip(axes, self.step, reach, strict=True))
        self.origin = reach[0][0] if self.step[0] > 1 else 0
        low, high = reach[1] if self.strip else (0, self.g.a_width)
        self.left, self.columns = low, max(1, -(-(high - low) // self.step[1]))
        self._steps(problem)

    def _step(self, problem: Problem) -> tuple[int, int]:
        """Only the pixels that a filter of one tap reads are copied; in planes of nchw, whole rows are."""
        s = problem.shape
        if problem.pass_ is not Pass.FORWARD:
            return (1, 1)
        return (s.stride[0] if s.r == 1 else 1, s.stride[1] if s.s == 1 and not self.nchw else 1)

    def _needs_strip(self, reach: tuple[tuple[int, int], ...]) -> bool:
        """In place: nhwc, no padding, whole words, and steps that divide the channels."""
        g, size = self.g, self.unit.element_bytes
        sizes = (g.a_height, g.a_width)
        inside = all(low >= 0 and high <= most for (low, high), most in zip(reach, sizes, strict=True))
        bytes_ = g.channels * size
        if self.nchw or not self.unit.copies or not inside or bytes_ % 4 or (g.channels * g.groups * size) % 4:
            return True
        return self.unit.chunk > 0 and bytes_ // 4 % -(-bytes_ // (4 * self.unit.chunk)) != 0

    def _steps(self, problem: Problem) -> None:
        """Words of a pixel, of a step, and how many steps a segment takes."""
        g, most = self.g, self.unit.chunk
        words = -(-g.channels * self.unit.element_bytes // 4)
        self.steps = -(-words // most) if most else 1
        self.chunk = -(-words // self.steps)
        self.words = self.chunk * self.steps
        self.pixel = self.words if self.strip else words * g.groups
        self.merged = False
        if most and g.taps > 1 and self.steps > SEGMENT_STEPS:
            self.steps = next(n for n in range(SEGMENT_STEPS, 0, -1) if self.words % (n * self.chunk) == 0)
            if self.strip and self.words >= APART_WORDS:
                self.pixel = (-(-self.words // 16) | 1) * 16
            return
        taps = self.filter_shape[1]
        if taps == 1 or not all(len(found) == taps and _in_a_row(found) for found in self.axes[1].taps):
            return
        if not self.strip and g.groups > 1:
            return
        total = taps * words
        steps = next(n for n in range(-(-total // most), total + 1) if total % n == 0) if most else 1
        if steps < taps * self.steps:
            self.merged, self.steps, self.chunk = True, steps, total // steps
            self.pixel = self.words = words

    def plan(self) -> Plan:
        tiles, kinds = tiles_of(self.axes[0], self._cut(), self._kind)
        return Plan(
            self.g, self.nchw, self.strip, self.step, self.origin, self.left, self.columns, self.pixel, self.words,
            self.chunk, self.steps, self.merged, self.filter_shape, self.unit, tiles, kinds,
        )  # fmt: skip

    def _cut(self) -> list[tuple[int, int]]:
        """Output rows of the tiles: as few as the budgets and the threads allow."""
        g = self.g
        panels = -(-g.filters // self.unit.width)
        number = min(-(-self.threads // (g.images * g.groups)) if panels < self.threads else 1, g.height)
        small = g.taps * g.channels * g.filters * self.unit.element_bytes <= SMALL_FILTER_BYTES
        budget = STRIP_BYTES // 2 if small else STRIP_BYTES
        while True:
            cuts = [(i * g.height // number, (i + 1) * g.height // number) for i in range(number)]
            reaches = (self.axes[0].reach(*cut) for cut in cuts)
            strip = max(b - a for a, b in reaches) * self.columns * self.pixel * 4
            results = max(b - a for a, b in cuts) * g.width * self.unit.width * 4
            if number >= g.height or (strip <= budget and (results <= RESULT_BYTES or not self.nchw)):
                return cuts
            number = min(g.height, max(number + 1, number * 5 // 4))

    def _kind(self, first: int, end: int, top: int) -> list[Group]:
        groups = []
        for h_taps, hs in self.axes[0].classes(first, end).items():
            for w_taps, ws in self.axes[1].classes(0, self.g.width).items():
                segments = self._segments(h_taps, w_taps)
                groups.append(self._group(segments, hs, ws, first, top))
        return sorted(groups, key=lambda group: -len(group.segments) * len(group.blocks))

    def _segments(self, h_taps: Taps, w_taps: Taps) -> np.ndarray:
        """All taps of some channels, then of the next: what a tap reads is near when the next tap reads it again."""
        taps = w_taps[:1] if self.merged else w_taps
        here = self.words if self.merged else self.chunk * self.steps
        pairs = [
            (
                (h * self.columns + w) * self.pixel + c,
                (c * self.g.taps + (t * self.filter_shape[1] + u) * here) * self.unit.width,
            )
            for c in range(0, self.words, here)
            for t, h in h_taps
            for u, w in taps
        ]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def _group(self, segments: np.ndarray, hs: list[int], ws: list[int], first: int, top: int) -> Group:
        g = self.g
        out_pixel = self.unit.width if self.nchw else g.filters * g.groups
        h_bases, w_bases = ([self.axes[i].base(o) for o in which] for i, which in enumerate((hs, ws)))
        if not len(segments):
            h_bases, w_bases = [top] * len(hs), [self._left()] * len(ws)
        across = w_bases[1] - w_bases[0] if len(ws) > 1 else 1
        down = h_bases[1] - h_bases[0] if len(hs) > 1 else 1
        places = ((np.array(hs) - first) * g.width)[:, None] + np.array(ws)[None, :]  # (rows, columns)
        places = places * out_pixel
        start = ((h_bases[0] - top) * self.columns + w_bases[0] - self._left()) * self.pixel
        runs = [(start + i * down * self.columns * self.pixel, places[i]) for i in range(len(hs))]
        length = (len(hs) - 1) * self.columns + len(ws)
        if across == down == 1 and self._tiles(length)[0] < len(hs) * self._tiles(len(ws))[0]:
            flat = np.full((len(hs), self.columns), -1, np.int64)
            flat[:, : len(ws)] = places
            runs = [(start, flat.ravel()[:length])]
        return self._blocks(runs, across * self.pixel, segments)

    def _left(self) -> int:
        """Index, on the axis of columns, of a strip's first pixel."""
        return 0 if self.step[1] > 1 else self.left

    def _tiles(self, length: int) -> tuple[int, int]:
        """(tiles, rows of each) that cover a run of pixels; the last one may overlap the one before."""
        number = -(-length // self.unit.rows)
        return number, -(-length // number)

    def _blocks(self, runs: list[tuple[int, np.ndarray]], row_a: int, segments: np.ndarray) -> Group:
        rows = self._tiles(len(runs[0][1]))[1]
        found: list[tuple[int, np.ndarray]] = []
        for start, places in runs:
            number = self._tiles(len(places))[0]
            for i in range(number):
                at = min(i * rows, len(places) - rows)
                found.append((start + at * row_a, places[at : at + rows]))
        blocks = []
        for part in self._beside(found, round(self.columns / rows)):
            joined = np.concatenate([places for _, places in part])
            pairs = np.stack([np.arange(len(joined)), joined], axis=1).astype(np.int64)  # (rows, 2)
            blocks.append(([at for at, _ in part], pairs[pairs[:, 1] >= 0]))
        return Group(blocks, rows, row_a, self._row_c(found), segments)

    def _beside(self, tiles: list[tuple[int, np.ndarray]], of_row: int) -> list[list[tuple[int, np.ndarray]]]:
        """Blocks of tiles: two below each other where the filter has rows, because they share most of what they read.

        (5 to 12 % of bfloat16's 3x3 layers of 64 and 128 channels; 1 thread of a Xeon with AMX, 2026-11.)
        """
        if self.unit.tiles == 1:
            return [[tile] for tile in tiles]
        distance = max(1, of_row) if self.filter_shape[0] > 1 else 1
        blocks = []
        for first in range(0, len(tiles), 2 * distance):
            above, below = tiles[first : first + distance], tiles[first + distance : first + 2 * distance]
            both = min(len(above), len(below))
            blocks += [[one, two] for one, two in zip(above, below, strict=False)]
            rest = above[both:]
            blocks += [rest[i : i + 2] for i in range(0, len(rest), 2)]
        return blocks

    def _row_c(self, tiles: list[tuple[int, np.ndarray]]) -> int:
        """The one distance between the places of all tiles' rows; 0: there is none, or sums have to be finished."""
        if not self.unit.direct or self.nchw or any((places < 0).any() for _, places in tiles):
            return 0
        distances = {int(d) for _, places in tiles for d in np.diff(places)} or {self.g.filters * self.g.groups}
        return distances.pop() if len(distances) == 1 else 0


def _in_a_row(taps: Taps) -> bool:
    """Whether taps follow one another, and so do the pixels they read."""
    return all(q == (p[0] + 1, p[1] + 1) for p, q in pairwise(taps))


def _stepped(of: Axis, step: int, first: int) -> Axis:
    """The axis in indices of every step-th pixel from the first that is read; as it is if step is 1."""
    if step == 1:
        return of
    return Axis(tuple(tuple((t, (i - first) // step) for t, i in taps) for taps in of.taps))
