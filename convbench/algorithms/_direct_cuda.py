"""What kernels/cuda/direct_tiled.cu is launched with: phases of strided and dilated axes, windows of taps, tiles.

An axis is one line of the convolution's geometry; `axis.cuh` explains its phases.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from convbench.algorithms._cuda import blocks
from convbench.cuda.program import Struct
from convbench.problem import Pass, Problem

SHARED_BYTES = 48 << 10  # what every GPU gives a block without asking
WARPS = 8
TILE_COLUMNS = 16
GRADIENT_ROWS = GRADIENT_COLUMNS = 8
TAP_TILE = 128
#: (CHANNELS, CHANNEL_WARPS) of direct_tiled.cu: those that variant_for chooses from; those that a sweep adds.
CHOSEN = ((8, 8), (8, 2), (1, 1))
SWEPT = ((16, 8), (16, 4), (8, 4))


@dataclass(frozen=True)
class Axis:
    """phases, and within one: most outputs, most taps, stride. products: sum over phases of their taps."""

    phases: int
    outputs: int
    taps: int
    stride: int
    products: int

    @staticmethod
    def of(problem: Problem, axis: int) -> Axis:
        """Rows (0) or columns (1) of a problem; backward weights reads like forward."""
        s = problem.shape
        taps, stride = (s.r, s.s)[axis], s.stride[axis]
        dilation = s.dilation[axis] if taps > 1 else stride
        common = gcd(stride, dilation)
        if problem.pass_ is Pass.BACKWARD_DATA:
            phases = stride * dilation // common
            size = (s.h, s.w)[axis]
            return Axis(phases, blocks(size, phases), blocks(taps, stride // common), 1, taps * phases // stride)
        phases = dilation // common
        size = (s.p, s.q)[axis]
        return Axis(phases, blocks(size, phases), taps, stride // common, taps * phases)

    def windows(self) -> Iterator[int]:
        """Sizes of windows of taps that divide the axis evenly, largest first."""
        return iter(sorted({blocks(self.taps, parts) for parts in range(1, self.taps + 1)}, reverse=True))

    def reach(self, outputs: int, window: int) -> int:
        """Elements that `outputs` neighbouring outputs see through a window; one tap leaves out what lies between."""
        return (outputs - 1) * (self.stride if window > 1 else 1) + window


@dataclass(frozen=True)
class Tiling:
    """The struct of the kernels, and what else a launch needs. variant: (CHANNELS, CHANNEL_WARPS)."""

    rows: Axis
    columns: Axis
    variant: tuple[int, int]
    window: tuple[int, int]
    channels: int
    plane: int
    pitch: int
    tile: tuple[int, int]
    shared_bytes: int

    @property
    def channel_tile(self) -> int:
        """Channels of one block."""
        return self.variant[0] * self.variant[1]

    @property
    def pixel_warps(self) -> int:
        """Warps that share the channels and divide the pixels."""
        return WARPS // self.variant[1]

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles in the largest phase."""
        return blocks(self.rows.outputs, self.tile[0]), blocks(self.columns.outputs, self.tile[1])

    def struct(self, parts: int = 1) -> Struct:
        """Tiling of direct_tiled.cu."""
        phases = (self.rows.phases, self.columns.phases)
        return Struct((*self.window, self.channels, self.plane, self.pitch, *phases, *self.tiles, parts))


def variant_for(made: int) -> tuple[int, int]:
    """(CHANNELS, CHANNEL_WARPS) for a group of so many channels."""
    if made <= 2:
        return 1, 1
    return (8, 2) if made <= 32 else (8, 8)


def other_variants(made: int) -> list[tuple[int, int]]:
    """What else may be worth a try: at most half of the channels of a block are beyond the group's."""
    fitting = [v for v in (*CHOSEN, *SWEPT) if blocks(made, v[0] * v[1]) * v[0] * v[1] <= 2 * max(made, 16)]
    return [v for v in fitting if v != variant_for(made) and (v != (1, 1) or made <= 8)]


def data_tiling(problem: Problem, made: int, reduced: int, variant: tuple[int, int] | None = None) -> Tiling:
    """Forward and backward data: the window that loads least for a multiply-add."""
    rows, columns = Axis.of(problem, 0), Axis.of(problem, 1)
    variant = variant or variant_for(made)
    tile = (8 * WARPS // variant[1], TILE_COLUMNS)
    best: tuple[float, Tiling] | None = None
    for window, exponent in itertools.product(itertools.product(rows.windows(), columns.windows()), range(6)):
        channels = min(1 << exponent, reduced)
        height, width = rows.reach(tile[0], window[0]), columns.reach(tile[1], window[1])
        pitch = width + (8 - width) % 16  # 8 or 24 modulo 32: four rows of eight lanes meet all banks
        plane = height * pitch + 1
        taps = window[0] * window[1]
        filters = taps * variant[0] * variant[1]
        shared = 4 * channels * (filters + plane)
        cost = (channels * (filters + height * width) + 1000) / (channels * taps)  # 1000: two barriers
        if shared <= SHARED_BYTES and (best is None or cost < best[0]):
            best = cost, Tiling(rows, columns, variant, window, channels, plane, pitch, tile, shared)
    assert best is not None  # one tap of one channel always fits
    return best[1]


def weights_tiling(problem: Problem, variant: tuple[int, int] | None = None) -> Tiling:
    """Backward weights: the windows that need fewest blocks."""
    s = problem.shape
    rows, columns = Axis.of(problem, 0), Axis.of(problem, 1)
    variant = variant or variant_for(s.kg)
    tile = (GRADIENT_ROWS, GRADIENT_COLUMNS)
    gradients = tile[0] * tile[1] * (variant[0] * variant[1] + 4)
    best: tuple[tuple[int, int], Tiling] | None = None
    for window in itertools.product(rows.windows(), columns.windows()):
        height, pitch = rows.reach(tile[0], window[0]), columns.reach(tile[1], window[1]) | 1
        plane = height * pitch | 1
        channels = min(s.cg, TAP_TILE // (window[0] * window[1]), (SHARED_BYTES // 4 - gradients) // plane)
        if channels < 1:
            continue
        needed = blocks(s.cg, channels) * blocks(rows.taps, window[0]) * blocks(columns.taps, window[1])
        shared = 4 * (gradients + channels * plane)
        if best is None or (needed, shared) < best[0]:
            tiling = Tiling(rows, columns, variant, window, channels, plane, pitch, tile, shared)
            best = (needed, shared), tiling
    assert best is not None  # one tap of one channel always fits
    return best[1]
