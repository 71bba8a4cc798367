"""Where images and filters lie in the transforms of FFT convolution: whole images, or overlap-save tiles.

Whole image: Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2. Tiles: overlap-save, as in the tiled variant
of Vasilache et al. 2014 (arXiv 1412.7580), section 6. Both give the core the same picture: `strips` rows of
`tiles` transforms each, and for every operand a way to load one strip or to store one.

Coordinates of the whole image. The input lies at the origin of a circle of T points, tap r at r * dilation, and
output p at m = p * stride - padding (mod T). All three passes then are one relation, y[m] = sum_r x[m + r] w[r].
Outputs with m outside (-extent, H) read padding alone and are zero; the circle need not be longer than what keeps
an output's padding apart from the image, so padding on both sides may share the same zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convbench.devices.arrays import as_strided, namespace
from convbench.problem import ConvShape, Pass, Problem

Segment = tuple[slice, slice]  # where in the array, where in the transform


def copy_channels_last(target: Any, source: Any) -> None:
    """target[...] = source for (H, W, C) views; on a CPU row by row where a channel is not contiguous on both sides.

    A row of all channels fits the cache, the transposition of a whole image does not.
    """
    xp = namespace(target)
    if xp is not np or target.strides[-1] == source.strides[-1] == target.itemsize:
        xp.copyto(target, source)
        return
    for row, from_row in zip(target, source, strict=True):
        np.copyto(row, from_row)


def image_view(array: Any, index: int, layout: str) -> Any:
    """Image `index` of an activation array as an (H, W, C) view, whatever the layout."""
    return array[index].transpose(1, 2, 0) if layout == "nchw" else array[index]


@dataclass(frozen=True)
class Taps:
    """The taps of one axis that read the image for at least one output: `count` from `first` on.

    The others meet padding alone. Leaving them out saves work, and keeps their rounding errors out of results
    that do not depend on them (a 5x5 filter over a 1x1 image is one product).
    """

    first: int
    count: int
    begin: int  # padding before the first of these taps; negative: elements that it skips
    extent: int

    @staticmethod
    def of(size: int, outputs: int, taps: int, stride: int, begin: int, dilation: int) -> Taps:
        """From the geometry of the axis; one tap, which reads nothing, if none reads the image."""
        useful = []
        for tap in range(taps):
            at = tap * dilation - begin  # element read by output 0
            last = min(outputs - 1, (size - 1 - at) // stride)
            if last >= max(0, -(at // stride)):
                useful.append(tap)
        first, last = (useful[0], useful[-1]) if useful else (0, 0)
        return Taps(first, last - first + 1, begin - first * dilation, (last - first) * dilation + 1)

    @staticmethod
    def both(shape: ConvShape) -> tuple[Taps, Taps]:
        """Rows and columns."""
        s = shape
        return (
            Taps.of(s.h, s.p, s.r, s.stride[0], s.padding[0], s.dilation[0]),
            Taps.of(s.w, s.q, s.s, s.stride[1], s.padding[2], s.dilation[1]),
        )


# ---- whole image


def fast_length(least: int, even: bool = False) -> int:
    """The least length >= least with no prime factor beyond 7, which cuFFT transforms by its fast kernels."""
    length = least
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and not (even and length % 2):
            return length
        length += 1


@dataclass(frozen=True)
class WholeAxis:
    """One axis of the whole-image transform; see the module's docstring. Sizes in elements."""

    size: int
    outputs: int
    extent: int
    stride: int
    begin: int

    @property
    def needed(self) -> int:
        """The least transform length that keeps the relation above free of aliasing."""
        if self.extent == 1:  # one tap: stride is a choice of inputs, so the transform holds outputs alone
            return self.outputs
        low, high = self._reach
        if low > high:
            return max(self.size, self.extent)
        return max(self.size, self.extent, high + self.extent, self.size - low, high - low + 1)

    @property
    def _reach(self) -> tuple[int, int]:
        """First and last m of the outputs that read the image; low > high: none does."""
        first, stop = self._reading
        return first * self.stride - self.begin, (stop - 1) * self.stride - self.begin

    @property
    def _reading(self) -> tuple[int, int]:
        """Outputs first <= p < stop read at least one element of the image."""
        first = max(0, -(-(self.begin - self.extent + 1) // self.stride))
        stop = min(self.outputs, (self.size - 1 + self.begin) // self.stride + 1)
        return first, max(first, stop)

    def input_segments(self, length: int) -> list[Segment]:
        """Where the image's elements lie in a transform of `length` points."""
        if self.extent > 1:
            return [(slice(0, self.size), slice(0, self.size))]
        first, stop = self._reading
        if first == stop:
            return []
        start = first * self.stride - self.begin
        last = (stop - 1) * self.stride - self.begin
        return [(slice(start, last + 1, self.stride), slice(first, stop))]

    def output_segments(self, length: int) -> list[Segment]:
        """Where the outputs lie that read the image: those with m < 0 at the circle's end."""
        first, stop = self._reading
        if self.extent == 1:
            return [(slice(first, stop), slice(first, stop))] if first < stop else []
        split = min(max(first, -(-self.begin // self.stride)), stop)
        segments = []
        for low, high, turn in ((first, split, length), (split, stop, 0)):
            if low < high:
                start = low * self.stride - self.begin + turn
                last = (high - 1) * self.stride - self.begin + turn
                segments.append((slice(low, high), slice(start, last + 1, self.stride)))
        return segments


@dataclass(frozen=True)
class WholeSide:
    """One operand in the whole-image transform: pairs of (place in the array, place in the transform)."""

    rows: list[Segment]
    cols: list[Segment]
    covers: bool  # every element of the array has a place

    def load(self, image: Any, row: int, tiles: Any) -> None:
        """image (H, W, C) into tiles (1, Th, Tw, C), zeros around it."""
        tiles.fill(0)
        for from_rows, to_rows in self.rows:
            for from_cols, to_cols in self.cols:
                copy_channels_last(tiles[0, to_rows, to_cols], image[from_rows, from_cols])

    def store(self, tiles: Any, image: Any, row: int) -> None:
        """The reverse of load; elements without a place become zero."""
        if not self.covers:
            image[...] = 0
        for to_rows, from_rows in self.rows:
            for to_cols, from_cols in self.cols:
                copy_channels_last(image[to_rows, to_cols], tiles[0, from_rows, from_cols])


def _whole_side(rows: list[Segment], cols: list[Segment], height: int, width: int) -> WholeSide:
    covered = [sum(len(range(size)[s]) for s, _ in part) for part, size in ((rows, height), (cols, width))]
    return WholeSide(rows, cols, covered == [height, width])


# ---- overlap-save tiles


@dataclass(frozen=True)
class Windows:
    """Overlapping pieces of one axis: piece i reads `length` elements from `begin` + i * `step` (zero outside)."""

    size: int
    begin: int
    step: int
    length: int
    count: int

    @property
    def span(self) -> int:
        """Elements from the first to the last that any piece reads."""
        return (self.count - 1) * self.step + self.length

    def inside(self, start: int, length: int) -> tuple[int, int]:
        """The part of start .. start + length that lies in the array, counted from start."""
        low = min(length, max(0, -start))
        return low, max(low, min(length, self.size - start))


class TileLoader:
    """Cuts one strip of overlapping tiles out of an image, through a channels-last strip with zero margins."""

    def __init__(self, rows: Windows, cols: Windows, strip: Any) -> None:
        self.rows, self.cols = rows, cols
        self.strip = strip  # (length of a row window, span of the columns, C)
        strip.fill(0)
        self.left, self.right = cols.inside(cols.begin, cols.span)

    def load(self, image: Any, row: int, tiles: Any) -> None:
        """image (H, W, C), strip number row -> tiles (count, Th, Tw, C)."""
        rows, cols, strip = self.rows, self.cols, self.strip
        start = rows.begin + row * rows.step
        low, high = rows.inside(start, rows.length)
        left, right = self.left, self.right
        strip[:low] = 0
        strip[high:] = 0
        if low < high and left < right:
            part = image[start + low : start + high, cols.begin + left : cols.begin + right]
            copy_channels_last(strip[low:high, left:right], part)
        by_row, by_col, by_channel = strip.strides
        windows = as_strided(
            strip,
            (cols.count, rows.length, cols.length, strip.shape[-1]),
            (cols.step * by_col, by_row, by_col, by_channel),
        )
        tiles[:, rows.length :] = 0
        tiles[:, :, cols.length :] = 0
        namespace(tiles).copyto(tiles[:, : rows.length, : cols.length], windows)


@dataclass(frozen=True)
class TileStorer:
    """Writes the valid part of one strip of result tiles: `step` x `step` values from `offset` on."""

    size: tuple[int, int]
    step: tuple[int, int]
    offset: tuple[int, int]

    def store(self, tiles: Any, image: Any, row: int) -> None:
        """tiles (count, Th, Tw, C) -> rows of image (H, W, C) that belong to strip number row."""
        (step_h, step_w), (top, left), (height, width) = self.step, self.offset, self.size
        first = row * step_h
        n_rows = min(step_h, height - first)
        full, rest = divmod(width, step_w)
        xp, channels = namespace(tiles), tiles.shape[-1]
        for r in range(n_rows):
            line = image[first + r]  # (W, C)
            if full:
                whole = line[: full * step_w].reshape(full, step_w, channels)  # a view: one axis is split
                xp.copyto(whole, tiles[:full, top + r, left : left + step_w])
            if rest:
                xp.copyto(line[full * step_w :], tiles[full, top + r, left : left + rest])


# ---- the two grids


class Grid(Protocol):
    """What the core asks of a grid of transforms."""

    size: tuple[int, int]  # Th, Tw
    strips: int  # N times the rows of tiles of an image
    rows: int  # strips of one image
    tiles: int  # transforms of one strip

    def strip_elements(self, role: str) -> int:
        """Elements of the buffer that `loader` takes from the context."""

    def loader(self, role: str, context: Any, dtype: Any) -> Any:
        """An object whose load(image, row, tiles) fills one strip; role "x" or "y"."""

    def storer(self, role: str) -> Any:
        """An object whose store(tiles, image, row) writes one strip; role "x" or "y"."""


class WholeGrid:
    """One transform per image, long enough for every stride, dilation and padding."""

    rows = tiles = 1

    def __init__(self, problem: Problem, next_fast_len: Any) -> None:
        s = problem.shape
        self.strips = s.n
        rows, cols = Taps.both(s)
        self.axes = (
            WholeAxis(s.h, s.p, rows.extent, s.stride[0], rows.begin),
            WholeAxis(s.w, s.q, cols.extent, s.stride[1], cols.begin),
        )
        self.size = (next_fast_len(self.axes[0].needed), next_fast_len(self.axes[1].needed))

    def strip_elements(self, role: str) -> int:
        """Images are loaded straight into the transform: no strip."""
        return 0

    def loader(self, role: str, context: Any, dtype: Any) -> WholeSide:
        """Loads x or y (dy)."""
        return self._side(role)

    def storer(self, role: str) -> WholeSide:
        """Stores y or x (dx)."""
        return self._side(role)

    def _side(self, role: str) -> WholeSide:
        rows, cols = self.axes
        if role == "x":
            places = (rows.input_segments(self.size[0]), cols.input_segments(self.size[1]))
            return _whole_side(*places, rows.size, cols.size)
        places = (rows.output_segments(self.size[0]), cols.output_segments(self.size[1]))
        return _whole_side(*places, rows.outputs, cols.outputs)


class TileGrid:
    """Overlap-save: transforms of `size` points, of which size - filter + 1 in each axis are valid results.

    Stride and dilation are 1. Forward and backward weights cut the output into tiles, backward data the gradient
    of the input.
    """

    def __init__(self, problem: Problem, size: tuple[int, int]) -> None:
        s = problem.shape
        self.problem, self.size = problem, size
        self.taps = Taps.both(s)
        self.step = (size[0] - self.taps[0].count + 1, size[1] - self.taps[1].count + 1)
        self.result = (s.h, s.w) if problem.pass_ is Pass.BACKWARD_DATA else (s.p, s.q)
        self.rows = -(-self.result[0] // self.step[0])
        self.tiles = -(-self.result[1] // self.step[1])
        self.strips = s.n * self.rows

    def strip_elements(self, role: str) -> int:
        """Elements of the loader's strip."""
        s = self.problem.shape
        rows, cols = self._windows(role)
        return rows.length * cols.span * (s.c if role == "x" else s.k)

    def loader(self, role: str, context: Any, dtype: Any) -> TileLoader:
        """Loads x or dy."""
        s = self.problem.shape
        rows, cols = self._windows(role)
        channels = s.c if role == "x" else s.k
        return TileLoader(rows, cols, context.empty((rows.length, cols.span, channels), dtype))

    def storer(self, role: str) -> TileStorer:
        """Stores y, whose valid part begins at 0, or dx, whose valid part begins behind the filter."""
        rows, cols = self.taps
        offset = (0, 0) if role == "y" else (rows.count - 1, cols.count - 1)
        return TileStorer(self.result, self.step, offset)

    def _windows(self, role: str) -> tuple[Windows, Windows]:
        s = self.problem.shape
        both = []
        for axis, (size, outputs) in enumerate(((s.h, s.p), (s.w, s.q))):
            taps, begin = self.taps[axis].count, self.taps[axis].begin
            step, length = self.step[axis], self.size[axis]
            count = (self.rows, self.tiles)[axis]
            if role == "x":
                both.append(Windows(size, -begin, step, length, count))
            elif self.problem.pass_ is Pass.BACKWARD_DATA:
                both.append(Windows(outputs, begin - taps + 1, step, length, count))
            else:  # backward weights: each dy in one tile alone, so that no product is counted twice
                both.append(Windows(outputs, 0, step, step, count))
        return both[0], both[1]
