"""Binary convolution on AMX's tiles: as `_signs_simd`, with bytes for bits, and blocks of pixels equally far apart.

A tile's rows are part of one row of pixels; or of the strip read on as one long row, where the columns that lie between
the end of a row and the next one's begin are multiplied too and thrown away, if that takes fewer tiles.

This module plans (NumPy only); `_sign_tiles_run` runs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from convbench.algorithms._signs_simd import Plan, Tile, cut
from convbench.problem import ConvShape, Problem
from convbench.simd.kernels.sign_bytes import BLOCK, HEAD, TILE_ROWS, TILE_WORDS

#: A block: first words of its tiles of A (one or two), and (row of the sums, pixel) for each row that is a result.
Block = tuple[list[int], np.ndarray]


@dataclass
class Blocks:
    """The pixels of a tile of output rows: `rows` of each tile of A, row_a words apart."""

    rows: int
    row_a: int
    blocks: list[Block]

    @property
    def items(self) -> int:
        """Integers in tables, with the configuration of the tiles."""
        return HEAD + 8 + sum(BLOCK + pairs.size for _, pairs in self.blocks)


@dataclass
class TilePlan:
    """made: geometry, its tiles and where each step of `chunk` words of k lies. kinds: blocks for each kind of tile."""

    made: Plan
    chunk: int
    kinds: list[Blocks]

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one image and group."""
        s = self.made.shape
        kinds = [self.kinds[tile.kind] for tile in self.made.tiles]
        rows = sum(kind.rows * len(starts) for kind in kinds for starts, _ in kind.blocks)
        return rows * s.r * s.s * s.cg * s.kg

    def table_items(self) -> int:
        """Integers in all tables."""
        return self.made.table_items() + sum(kind.items for kind in self.kinds)


@functools.lru_cache(maxsize=64)
def tile_plan(problem: Problem, width: int, threads: int) -> TilePlan:
    """The tables for panels of `width` filters."""
    s = problem.shape
    words = -(-s.cg // 4)
    columns = (s.q - 1) * s.stride[1] + s.extent[1]
    of_tap = -(-words // TILE_WORDS)
    together = _steps_of(s.s * words) if s.dilation[1] == 1 else s.s * of_tap + 1
    i, j = np.arange(s.r)[:, None, None] * s.dilation[0] * columns, np.arange(s.s)[:, None] * s.dilation[1]
    if together <= s.s * of_tap:  # the taps of a row are one run of words
        chunk = s.s * words // together
        steps = i * words + chunk * np.arange(together)  # (R, 1, steps)
    else:
        chunk = -(-words // of_tap)
        words = chunk * of_tap
        steps = (i + j) * words + chunk * np.arange(of_tap)  # (R, S, steps)
    nchw = problem.layout == "nchw"
    made = Plan(s, nchw, width, words, -s.padding[2], columns, steps.ravel().astype(np.int64), [], [], [])
    found = TilePlan(made, chunk, [])
    known: dict[int, int] = {}
    for first, end in cut(made, threads):
        if end - first not in known:
            known[end - first] = len(found.kinds)
            found.kinds.append(_blocks(s, made, end - first))
        made.tiles.append(Tile(first, end - first, known[end - first]))
    return found


def _steps_of(words: int) -> int:
    """The fewest steps of equal size."""
    return next(n for n in range(-(-words // TILE_WORDS), words + 1) if words % n == 0)


def _blocks(s: ConvShape, made: Plan, rows: int) -> Blocks:
    """Blocks of `rows` output rows."""
    pixels = np.arange(rows * s.q).reshape(rows, s.q)
    runs = [(i * s.stride[0] * made.columns * made.words, pixels[i]) for i in range(rows)]
    length = (rows - 1) * made.columns + s.q
    if s.stride == (1, 1) and -(-length // TILE_ROWS) < rows * -(-s.q // TILE_ROWS):
        flat = np.full((rows, made.columns), -1)
        flat[:, : s.q] = pixels
        runs = [(0, flat.ravel()[:length])]
    long = len(runs[0][1])
    number = -(-long // TILE_ROWS)
    size, row_a = -(-long // number), s.stride[1] * made.words
    tiles = []
    for start, run in runs:
        for i in range(number):
            at = min(i * size, long - size)  # the last one may overlap the one before
            tiles.append((start + at * row_a, run[at : at + size]))
    blocks: list[Block] = []
    for i in range(0, len(tiles), 2):
        part = tiles[i : i + 2]
        joined = np.concatenate([run for _, run in part])
        pairs = np.stack([np.arange(len(joined)), joined], axis=1).astype(np.int64)  # (rows of the sums, 2)
        blocks.append(([at for at, _ in part], pairs[pairs[:, 1] >= 0]))
    return Blocks(size, row_a, blocks)
