"""How the images of a convolution are cut into FFT tiles, seen as one picture for all passes.

Data of `c_in` channels go through filters to `c_out` channels: forward as it is, backward data with turned filters and
the channels exchanged. Backward weights has the tiles of x as its data, the tiles of dy in place of the filters, and
sums over tiles where the others sum over channels. Only taps that meet the image for at least one output take part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from convbench.algorithms._fft_geometry import Taps
from convbench.problem import Pass, Problem

if TYPE_CHECKING:
    from convbench.simd.target import Target


def up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def odd_lines(value: int) -> int:
    """The next multiple of 16 elements that is no multiple of 32, so that strides spread over the cache's sets."""
    lines = -(-value // 16)
    return 16 * (lines + 1 - lines % 2)


@dataclass(frozen=True)
class Side:
    """An activation as it is cut into tiles: channels, size, how far before the image the first tile begins.

    used: rows and columns of a tile that hold data; beyond them it is zero. end: one past the last row and column
    that take part.
    """

    channels: int
    size: tuple[int, int]
    begin: tuple[int, int]
    used: tuple[int, int]
    end: tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """What follows from the problem and the tile (height, width) alone."""

    problem: Problem
    target: Target = field(repr=False)
    tile: tuple[int, int]

    # ---- geometry

    @cached_property
    def taps(self) -> tuple[Taps, Taps]:
        """Useful taps of both axes."""
        return Taps.both(self.problem.shape)

    @cached_property
    def kept(self) -> tuple[int, int]:
        """Taps that take part, rows and columns."""
        return self.taps[0].count, self.taps[1].count

    @cached_property
    def is_weights_pass(self) -> bool:
        """Backward weights."""
        return self.problem.pass_ is Pass.BACKWARD_WEIGHTS

    @cached_property
    def step(self) -> tuple[int, int]:
        """Results of a tile that are valid."""
        return self.tile[0] - self.kept[0] + 1, self.tile[1] - self.kept[1] + 1

    @cached_property
    def result_size(self) -> tuple[int, int]:
        """What is cut into tiles: y, dx, or, for backward weights, the part of dy that meets the image."""
        s = self.problem.shape
        if self.is_weights_pass:
            (top, bottom), (left, right) = self.useful
            return bottom - top, right - left
        return (s.h, s.w) if self.problem.pass_ is Pass.BACKWARD_DATA else (s.p, s.q)

    @cached_property
    def useful(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns (first, one past the last; one at least) of y whose taps read the image, not padding alone.

        Others must not share a tile of dy with them: their rounding errors would reach a gradient that they are no
        part of.
        """
        s, found = self.problem.shape, []
        for taps, size, outputs in zip(self.taps, (s.h, s.w), (s.p, s.q), strict=True):
            first = min(max(0, taps.begin - taps.count + 1), outputs - 1)
            found.append((first, max(first + 1, min(outputs, taps.begin + size))))
        return found[0], found[1]

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Tiles of an image."""
        return -(-self.result_size[0] // self.step[0]), -(-self.result_size[1] // self.step[1])

    @cached_property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.problem.shape.n * self.grid[0] * self.grid[1]

    @cached_property
    def data(self) -> Side:
        """What is transformed whole: x, or dy for backward data."""
        s, (rows, cols) = self.problem.shape, self.taps
        if self.problem.pass_ is Pass.BACKWARD_DATA:
            begin = (rows.count - 1 - rows.begin, cols.count - 1 - cols.begin)
            return Side(s.k, (s.p, s.q), begin, self.tile, (s.p, s.q))
        begin = (rows.begin, cols.begin)
        if self.is_weights_pass:
            begin = (rows.begin - self.useful[0][0], cols.begin - self.useful[1][0])
        return Side(s.c, (s.h, s.w), begin, self.tile, (s.h, s.w))

    @cached_property
    def gradient(self) -> Side:
        """dy of backward weights: each of its useful elements in one tile alone."""
        s, ((top, bottom), (left, right)) = self.problem.shape, self.useful
        return Side(s.k, (s.p, s.q), (-top, -left), self.step, (bottom, right))

    # ---- channels

    @cached_property
    def depthwise(self) -> bool:
        """One channel in and out of each group: products element by element."""
        s = self.problem.shape
        return s.groups > 1 and s.cg == s.kg == 1

    @cached_property
    def c_in(self) -> int:
        """Channels of a group that a result sums over (backward weights: rows of the filter's matrix)."""
        s = self.problem.shape
        return s.kg if self.problem.pass_ is Pass.BACKWARD_DATA else s.cg

    @cached_property
    def c_out(self) -> int:
        """Channels of a group of the result; all of a depthwise convolution, which has no use for its groups."""
        s = self.problem.shape
        if self.depthwise:
            return s.k
        return s.cg if self.problem.pass_ is Pass.BACKWARD_DATA else s.kg

    @cached_property
    def groups(self) -> int:
        """Groups as the products see them."""
        return 1 if self.depthwise else self.problem.shape.groups
