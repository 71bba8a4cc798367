"""Binary convolution in vector kernels: where bits lie, which pixels and taps are multiplied, and what padding costs.

A tile is some output rows of an image and group. The input it reads is packed into a strip of bits, padding included,
whose bits are 0: as if padding were +1. What that counts wrongly depends on which taps fall on padding, so output
pixels with the same such taps are a class, and each class and filter has a number that its sums start from (`base` of
`carry_save.products`): C/G times its taps within the image, and twice the bits of its taps outside.

This module plans (NumPy only); `_signs_simd_run` runs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from convbench.problem import ConvShape, Problem
from convbench.simd.kernels.carry_save import ENTRY
from convbench.simd.kernels.signs import PAIR, words_of

#: Most bytes of a tile's results (nchw: of one panel's), and of its strip: both stay in the second-level cache.
RESULT_BYTES, STRIP_BYTES = 640 << 10, 512 << 10

Taps = tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """Output rows first .. first + count - 1; kind: which table of entries it uses."""

    first: int
    count: int
    kind: int


@dataclass
class Plan:
    """Tables of one problem.

    words: of a pixel of a strip. left, columns: input columns in a strip (left may be negative). steps: where each pair
    of words that is multiplied lies in a strip, from a pixel's first. classes: for each, (taps within the image,
    numbers of the taps outside). kinds: entries of the pixels of a tile, (pixels, ENTRY). width: filters of a panel.
    """

    shape: ConvShape
    nchw: bool
    width: int
    words: int
    left: int
    columns: int
    steps: np.ndarray
    classes: list[tuple[int, Taps]]
    tiles: list[Tile]
    kinds: list[np.ndarray]

    @property
    def panels(self) -> int:
        """Panels of one group."""
        return -(-self.shape.kg // self.width)

    @property
    def panel_words(self) -> int:
        """Of one panel of the filter."""
        s = self.shape
        return s.r * s.s * self.words * self.width

    @property
    def reach(self) -> int:
        """Input rows of the largest tile."""
        return max(self.rows_of(tile) for tile in self.tiles)

    def rows_of(self, tile: Tile) -> int:
        """Input rows that a tile reads, padding included."""
        return (tile.count - 1) * self.shape.stride[0] + self.shape.extent[0]

    @property
    def most_pixels(self) -> int:
        """Output pixels of the largest tile."""
        return max(tile.count for tile in self.tiles) * self.shape.q

    def scratch(self, scaled: bool) -> tuple[int, int, int, int, int]:
        """Words of a thread: strip, means of its pixels, a row of them, averages of the results, held results."""
        pixels = self.reach * self.columns
        means = (pixels, self.columns, self.most_pixels) if scaled else (0, 0, 0)
        held = self.most_pixels * self.width if self.nchw else 0
        return tuple(-(-n // 16) * 16 for n in (pixels * self.words, *means, held))  # type: ignore[return-value]

    def shared(self, scaled: bool) -> tuple[int, int, int]:
        """Words of the filter's bits, of the numbers that sums start from, of the filters' means."""
        columns = self.shape.groups * self.panels * self.width
        return self.shape.groups * self.panels * self.panel_words, len(self.classes) * columns, columns * scaled

    def filter_scratch(self) -> int:
        """Words of a thread that packs filters: bits of each tap of a panel, means of taps, the same summed."""
        return self.shape.r * self.shape.s * (self.width + 2)

    def table_items(self) -> int:
        """Integers in all tables."""
        missing = sum(len(taps) for _, taps in self.classes)
        entries = sum(kind.size for kind in self.kinds)
        return 5 * len(self.tiles) + self.steps.size + 3 * len(self.classes) + missing + entries


@functools.lru_cache(maxsize=64)
def plan(problem: Problem, width: int, threads: int) -> Plan:
    """The tables for panels of `width` filters."""
    s, nchw = problem.shape, problem.layout == "nchw"
    words = words_of(s.cg)
    columns = (s.q - 1) * s.stride[1] + s.extent[1]
    i, j, pair = np.arange(s.r)[:, None, None], np.arange(s.s)[:, None], np.arange(words // PAIR)
    steps = (i * s.dilation[0] * columns + j * s.dilation[1]) * words + PAIR * pair  # (R, S, pairs)
    inside = [_inside(s, which) for which in (0, 1)]
    down, across = (list(dict.fromkeys(taps)) for taps in inside)
    classes = [_class(s, rows, columns_) for rows in down for columns_ in across]
    down_of, across_of = (
        np.array([found.index(taps) for taps in each]) for found, each in zip((down, across), inside, strict=True)
    )
    numbers = down_of[:, None] * len(across) + across_of  # (P, Q)
    made = Plan(s, nchw, width, words, -s.padding[2], columns, steps.ravel(), classes, [], [])
    known: dict[bytes, int] = {}
    for first, end in cut(made, threads):
        own = numbers[first:end]
        if own.tobytes() not in known:
            known[own.tobytes()] = len(made.kinds)
            made.kinds.append(_entries(made, own))
        made.tiles.append(Tile(first, end - first, known[own.tobytes()]))
    return made


def _inside(s: ConvShape, which: int) -> list[Taps]:
    """For each output row (0) or column (1), the taps that fall within the image."""
    taps, size, out = (s.r, s.s)[which], (s.h, s.w)[which], (s.p, s.q)[which]
    stride, dilation, begin = s.stride[which], s.dilation[which], s.padding[2 * which]
    return [tuple(t for t in range(taps) if 0 <= o * stride + t * dilation - begin < size) for o in range(out)]


def _class(s: ConvShape, rows: Taps, columns: Taps) -> tuple[int, Taps]:
    outside = tuple(i * s.s + j for i in range(s.r) for j in range(s.s) if i not in rows or j not in columns)
    return len(rows) * len(columns), outside


def cut(made: Plan, threads: int) -> list[tuple[int, int]]:
    """Output rows of the tiles: as few tiles as the cache and the threads allow."""
    s, number = made.shape, 1
    jobs = s.n * s.groups
    if threads > 1 and jobs < 4 * threads:
        number = min(s.p, -(-4 * threads // jobs), max(1, s.p * s.q // 256))
    while True:
        cuts = [(i * s.p // number, (i + 1) * s.p // number) for i in range(number)]
        most = max(end - first for first, end in cuts)
        rows = (most - 1) * s.stride[0] + s.extent[0]
        results = 4 * most * s.q * (made.width if made.nchw else s.k)
        if most == 1 or (results <= RESULT_BYTES and 4 * rows * made.columns * made.words <= STRIP_BYTES):
            return cuts
        number += 1


def _entries(made: Plan, numbers: np.ndarray) -> np.ndarray:
    """(pixels, ENTRY) of output rows whose pixels belong to the classes `numbers` (rows, Q)."""
    s, (rows, q) = made.shape, numbers.shape
    i, j = np.arange(rows)[:, None], np.arange(q)[None, :]
    index = i * q + j
    parts = (
        (i * s.stride[0] * made.columns + j * s.stride[1]) * made.words,
        index * (made.width if made.nchw else s.k),
        numbers * (s.groups * made.panels * made.width),
        index,
    )
    return np.ascontiguousarray(np.stack(parts, axis=-1).reshape(-1, ENTRY), dtype=np.int64)  # (rows Q, ENTRY)
