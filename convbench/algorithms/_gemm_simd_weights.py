"""Backward weights as sums over pixels: which pixels each tap multiplies, laid out in tables.

For one tap, dw[k, c] is a product over the output pixels whose input lies inside the image: rows are output channels
(dy, read in place), columns a panel of input channels. Filters of few input channels are turned round: rows are then
input channels, those of neighbouring taps too, which lie beside each other in an nhwc row, and columns output channels.

This module plans (NumPy only); `_gemm_simd_weights_run` runs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from convbench.problem import Problem

#: Pixels of one block. A block of B (64 columns wide) then nearly fits in the first-level cache; several taps share
#: their x, and have more results to put down, so that they do better with longer blocks.
PIXELS_POINTWISE, PIXELS = 180, 256
#: Bytes of the rows' operand that one block may need.
ROWS_BYTES = 384 << 10
#: Bytes of results to which a task may add: they stay in cache from one block of pixels to the next.
RESULT_BYTES = 512 << 10


@dataclass(frozen=True)
class Block:
    """Pixels summed at once: `images` images from `image` on, output rows first .. first + rows - 1 of each.

    top, x_rows: the input rows that they read. kind: which of the tables it uses.
    """

    image: int
    images: int
    first: int
    rows: int
    top: int
    x_rows: int
    kind: int


@dataclass
class WeightsPlan:
    """turned: rows are input channels. merged: rows are the input channels of all taps of a filter row.

    strip_x, strip_y: whether x, dy are copied (nchw, or x padded, or a panel is a part of each pixel, or converted from
    another dtype, convert). chunk: rows of
    a task. left, columns: input columns of a strip. x_pixel, y_pixel: elements between pixels. kinds: for each kind of
    block and tap the pairs (offset of the rows' operand, offset of the columns' operand), one for each pixel.
    """

    nchw: bool
    turned: bool
    merged: bool
    strip_x: bool
    strip_y: bool
    width: int
    rows: int
    columns_total: int
    chunk: int
    left: int
    columns: int
    x_pixel: int
    y_pixel: int
    tap_rows: int
    convert: bool
    blocks: list[Block]
    kinds: list[list[np.ndarray]]

    @property
    def taps(self) -> int:
        """Products of a block: taps, or rows of the filter where those are merged."""
        return len(self.kinds[0])

    @property
    def panels(self) -> int:
        """Panels of columns of one group."""
        return -(-self.columns_total // self.width)

    @property
    def chunks(self) -> int:
        """Chunks of rows of one group."""
        return -(-self.rows // self.chunk)

    @property
    def held(self) -> bool:
        """Whether results are gathered before they are written: the filter is not as the product leaves it."""
        return self.turned or self.convert or (self.nchw and self.taps > 1)

    def strip_floats(self, q: int) -> tuple[int, int]:
        """Of one thread's strips of x and dy."""
        x = max(b.images * b.x_rows for b in self.blocks) * self.columns * self.x_pixel if self.strip_x else 0
        y = max(b.images * b.rows for b in self.blocks) * q * self.y_pixel if self.strip_y else 0
        return x, y

    @property
    def result_floats(self) -> int:
        """Of one thread's results."""
        return self.taps * self.chunk * self.width if self.held else 0

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one group."""
        pixels = sum(len(pairs) for block in self.blocks for pairs in self.kinds[block.kind])
        return pixels * self.rows * self.columns_total


@functools.lru_cache(maxsize=64)
def weights_plan(problem: Problem, turned: bool, width: int, most: int, threads: int) -> WeightsPlan:
    """Tables for panels of `width` columns and blocks of `most` rows."""
    s = problem.shape
    nchw, convert = problem.layout == "nchw", problem.dtype != "float32"
    merged = turned and s.s > 1 and s.dilation[1] == 1
    padded = merged and (s.padding[2] > 0 or (s.q - 1) * s.stride[1] - s.padding[2] + s.s > s.w)
    strip_x = nchw or convert or padded or (merged and s.groups > 1) or (not turned and s.c > width)
    rows = s.cg * (s.s if merged else 1) if turned else s.kg
    columns_total = s.kg if turned else s.cg
    blocks = _cut(problem)
    pixels = max(b[1] * b[3] for b in blocks) * s.q
    taps = s.r * (1 if merged else s.s)
    chunk = rows if turned else _chunk(problem, pixels, taps, width, most, threads)
    left = -s.padding[2] if padded else 0
    columns = (s.q - 1) * s.stride[1] + s.s if padded else s.w
    x_pixel = (s.cg if turned else width) if strip_x else s.c
    strip_y = nchw or convert or (turned and s.k > width)
    y_pixel = (width if turned else chunk) if strip_y else s.k
    made = WeightsPlan(
        nchw, turned, merged, strip_x, strip_y, width, rows, columns_total, chunk, left, columns, x_pixel, y_pixel,
        s.s if merged else 1, convert, [], [],
    )  # fmt: skip
    known: dict[object, int] = {}
    for image, images, first, count in blocks:
        top, bottom = _reach(problem, first, count)
        tables = [_pairs(problem, made, images, first, count, top, tap) for tap in range(taps)]
        key = tuple(table.tobytes() for table in tables)
        if key not in known:
            known[key] = len(made.kinds)
            made.kinds.append(tables)
        made.blocks.append(Block(image, images, first, count, top, bottom - top, known[key]))
    return made


def _cut(problem: Problem) -> list[tuple[int, int, int, int]]:
    """(image, images, first row, rows): several whole images, or some rows of one."""
    s = problem.shape
    pixels = PIXELS_POINTWISE if s.r * s.s == 1 else PIXELS
    together = min(s.n, max(1, pixels // (s.p * s.q)))
    parts = min(s.p, -(-s.p * s.q // pixels))
    cuts = [(i * s.p // parts, (i + 1) * s.p // parts) for i in range(parts)]
    return [
        (n, min(together, s.n - n), first, end - first) for n in range(0, s.n, together) for first, end in cuts
    ]  # fmt: skip


def _chunk(problem: Problem, pixels: int, taps: int, width: int, most: int, threads: int) -> int:
    """Rows of a task: their operand stays in cache, and there are tasks for all threads."""
    s = problem.shape
    limit = max(2 * most, ROWS_BYTES // (4 * pixels))
    limit = min(limit, max(most, RESULT_BYTES // (4 * taps * width)))
    panels = -(-s.cg // width) * s.groups
    number = max(-(-s.kg // limit), -(-4 * threads // panels) if threads > 1 else 1)
    chunk = -(-s.kg // number)
    return min(s.kg, -(-chunk // most) * most)


def _reach(problem: Problem, first: int, count: int) -> tuple[int, int]:
    """Input rows (lowest, one past the highest) that output rows read."""
    s = problem.shape
    begin = first * s.stride[0] - s.padding[0]
    end = (first + count - 1) * s.stride[0] - s.padding[0] + (s.r - 1) * s.dilation[0] + 1
    begin, end = max(0, begin), min(s.h, end)
    return (begin, end) if begin < end else (0, 0)


def _pairs(
    problem: Problem, made: WeightsPlan, images: int, first: int, count: int, top: int, tap: int
) -> np.ndarray:
    """(offset of the rows' operand, offset of the columns' operand) of every pixel that this tap multiplies."""
    s = problem.shape
    r, t = (tap, 0) if made.merged else divmod(tap, s.s)
    i, j = np.arange(first, first + count), np.arange(s.q)
    h = i * s.stride[0] + r * s.dilation[0] - s.padding[0]
    w = j * s.stride[1] + t * s.dilation[1] - s.padding[2]
    rows = (h >= 0) & (h < s.h)
    inside = np.ones(s.q, bool) if made.merged else (w >= 0) & (w < s.w)
    i, h, j, w = i[rows] - first, h[rows] - top, j[inside], w[inside] - made.left
    bottom = _reach(problem, first, count)[1]
    x_image = (bottom - top if made.strip_x else s.h) * made.columns
    y_image = (count if made.strip_y else s.p) * s.q
    n = np.arange(images)[:, None, None]
    x = (n * x_image + h[None, :, None] * made.columns + w) * made.x_pixel  # (images, rows, columns)
    y = (n * y_image + i[None, :, None] * s.q + j) * made.y_pixel
    pair = (x, y) if made.turned else (y, x)
    return np.stack([part.ravel() for part in pair], axis=1).astype(np.int64)  # (pixels, 2)
