"""Implicit GEMM on a GPU: which product a pass is, into which tiles and parts it is cut, how its filter is packed.

The kernels are kernels/cuda/implicit_gemm*.cu; include/implicit_gemm.cuh has the same geometry on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from convbench.algorithms._cuda import blocks, conv_struct
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Launch
from convbench.problem import Pass, Problem

PASSES = {Pass.FORWARD: 0, Pass.BACKWARD_DATA: 1, Pass.BACKWARD_WEIGHTS: 2}
#: Sums of a part of the products that may wait in memory to be added.
PARTS_BYTES = 128 << 20
#: Fewest products that are worth a part of their own.
PART_LENGTH = 128
PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
#: Model of a GPU between tiles: bytes that memory moves in a clock for each multiprocessor, and a launch in clocks.
BYTES_PER_CLOCK, LAUNCH_CLOCKS = 16.0, 4000.0


@dataclass(frozen=True)
class Tile:
    """What one block computes, and one warp of it; stages: tiles of the operands in shared memory.

    rate: multiply-adds in a clock that a multiprocessor full of such blocks reaches, and alone: the part of it that a
    single block reaches (models).
    """

    m: int
    n: int
    rate: float
    alone: float = 0.6
    warp: tuple[int, int] = (32, 64)
    stages: int = 3


@dataclass(frozen=True)
class Phase:
    """A dense part of the product: all of it, or pixels of dx with one remainder modulo the stride."""

    rows: int
    taps: int


@dataclass(frozen=True)
class Geometry:
    """The product of one group: rows x columns, sums of `length`.

    depth: channels of a group of the gathered operand as they are stored, padding included; 0: as many as there are.
    """

    problem: Problem
    depth: int = 0

    @property
    def channels(self) -> tuple[int, int]:
        """Forward and backward data, of one group: columns of the result, and channels that are summed over."""
        s = self.problem.shape
        return (s.cg, s.kg) if self.problem.pass_ is Pass.BACKWARD_DATA else (s.kg, s.cg)

    @property
    def weights(self) -> bool:
        """Whether the sum runs over pixels."""
        return self.problem.pass_ is Pass.BACKWARD_WEIGHTS

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """In the order of the kernels: phases of rows, of columns in each."""
        s = self.problem.shape
        if self.weights:
            return (Phase(s.kg, 1),)
        if self.problem.pass_ is Pass.FORWARD:
            return (Phase(s.n * s.p * s.q, s.r * s.s),)
        rows = _axis(s.h, s.r, s.stride[0], s.padding[0], s.dilation[0])
        columns = _axis(s.w, s.s, s.stride[1], s.padding[2], s.dilation[1])
        return tuple(Phase(s.n * h[0] * w[0], h[1] * w[1]) for h in rows for w in columns)

    @property
    def columns(self) -> int:
        """Columns of the product."""
        s = self.problem.shape
        return (self.depth or s.cg) * s.r * s.s if self.weights else self.channels[0]

    def length(self, phase: Phase) -> int:
        """Products in one element."""
        s = self.problem.shape
        return s.n * s.p * s.q if self.weights else phase.taps * (self.depth or self.channels[1])

    def tiles_m(self, tile: Tile) -> int:
        """Tiles along the rows of the largest phase: the grid has as many for each."""
        return max(blocks(phase.rows, tile.m) for phase in self.phases)

    def tiles_n(self, tile: Tile) -> int:
        """Tiles along the columns."""
        return blocks(self.columns, tile.n)

    def grid(self, tile: Tile) -> int:
        """Blocks that compute one part of the sum."""
        return self.tiles_m(tile) * self.tiles_n(tile) * self.problem.shape.groups * len(self.phases)

    def multiplied(self, tile: Tile, step: int) -> float:
        """Multiply-adds of whole tiles of `step` products."""
        each = tile.m * tile.n * self.tiles_n(tile) * self.problem.shape.groups
        return float(sum(
            each * blocks(p.rows, tile.m) * blocks(self.length(p), step) * step for p in self.phases
        ))  # fmt: skip


def _axis(size: int, taps: int, stride: int, pad: int, dilation: int) -> list[tuple[int, int]]:
    """(pixels, taps that reach them) of each phase of one axis of dx."""
    found = []
    for phase in range(stride):
        reached = [tap for tap in range(taps) if (phase + pad - tap * dilation) % stride == 0]
        found.append((len(range(phase, size, stride)), len(reached)))
    return found


@dataclass(frozen=True)
class Cut:
    """A tile and the number of parts that its sums are cut into."""

    tile: Tile
    parts: int


def cut_of(geometry: Geometry, gpu: Gpu, tiles: Sequence[Tile]) -> Cut:
    """The tile and the parts with the least modelled time."""
    cuts = [Cut(tile, parts) for tile in tiles for parts in _parts(geometry, tile)]
    return min(cuts, key=lambda cut: _clocks(geometry, gpu, cut))


def other_cuts(geometry: Geometry, gpu: Gpu, tiles: Sequence[Tile], swept: Sequence[Tile] = ()) -> dict[str, Cut]:
    """What a sweep compares with cut_of(geometry, gpu, tiles), by a name such as "128x64" or "64x64 split 4".

    These tiles and `swept`: each with the parts that the model likes best, half as many, twice as many, and uncut.
    """
    chosen, every, found = cut_of(geometry, gpu, tiles), (*tiles, *swept), {}
    for tile in every:
        parts = cut_of(geometry, gpu, (tile,)).parts
        for number in sorted({1, parts // 2, parts, 2 * parts}.intersection(_parts(geometry, tile))):
            cut = Cut(tile, number)
            if cut != chosen:
                found[_name(tile, every) + (f" split {number}" if number > 1 else "")] = cut
    return found


def _name(tile: Tile, among: Sequence[Tile]) -> str:
    """Rows x columns, and what else tells it from tiles of the same size."""
    same = [other for other in among if (other.m, other.n) == (tile.m, tile.n)]
    name = f"{tile.m}x{tile.n}"
    if len({other.warp for other in same}) > 1:
        name += f" by {tile.warp[0]}x{tile.warp[1]}"
    if len({other.stages for other in same}) > 1:
        name += f" {tile.stages} stages"
    return name


def _blocks_and_length(geometry: Geometry, tile: Tile) -> tuple[int, float]:
    """Blocks that have something to add, uncut, and the mean length of their sums."""
    along = [(blocks(phase.rows, tile.m), geometry.length(phase)) for phase in geometry.phases if phase.taps]
    count = sum(number for number, _ in along)
    length = sum(number * products for number, products in along) / count if count else 0.0
    return count * geometry.tiles_n(tile) * geometry.problem.shape.groups, length


def _parts(geometry: Geometry, tile: Tile) -> list[int]:
    """Into how many parts sums may be cut: none too short, all of them in memory."""
    length, elements = _blocks_and_length(geometry, tile)[1], math.prod(geometry.problem.out_shape)
    most = min(length / PART_LENGTH, PARTS_BYTES / (4 * elements))
    return [parts for parts in PARTS if parts == 1 or parts <= most]


def _clocks(geometry: Geometry, gpu: Gpu, cut: Cut) -> float:
    """Modelled time: whole blocks on each multiprocessor, then the parts' sum."""
    count, length = _blocks_and_length(geometry, cut.tile)
    on_one = blocks(count * cut.parts, gpu.multiprocessors)
    rate = cut.tile.rate * (cut.tile.alone if on_one == 1 else 1.0)
    clocks = on_one * cut.tile.m * cut.tile.n * (length / cut.parts + 2 * PART_LENGTH) / rate
    if cut.parts > 1:
        elements = math.prod(geometry.problem.out_shape)
        clocks += LAUNCH_CLOCKS + 8 * cut.parts * elements / (BYTES_PER_CLOCK * gpu.multiprocessors)
    return clocks


def pack_filter(geometry: Geometry, length: int, item_bytes: int, transposed: bool) -> Launch:
    """b into workspace "filter": [group][tap][depth][length] if transposed, else [group][row][tap][length]."""
    problem = geometry.problem
    s = problem.shape
    return Launch(
        "implicit_gemm_pack.cu",
        "pack_filter",
        (blocks(s.kg, 32) * s.groups, blocks(s.cg * s.r * s.s, 32), 1),
        (32, 8, 1),
        (At("b"), At("filter"), conv_struct(s), PASSES[problem.pass_], int(problem.layout == "nhwc"), length),
        defines=pack_defines(item_bytes, transposed),
    )


def pack_defines(item_bytes: int, transposed: bool = False) -> tuple[tuple[str, int], ...]:
    """Macros of implicit_gemm_pack.cu."""
    return (("BYTES", item_bytes), ("TRANSPOSED", int(transposed)))


def far_apart(problem: Problem) -> str | None:
    """Why 32-bit distances between what the rows of one tile read would not do, or None."""
    s, rows = problem.shape, 128
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return None
    forward = problem.pass_ is Pass.FORWARD
    image = s.h * s.w * s.c if forward else s.p * s.q * s.k
    places = s.p * s.q if forward else max(s.h // s.stride[0], 1) * max(s.w // s.stride[1], 1)
    span = min(s.n, rows // places + 1) * image
    if span >= 2**30:
        return f"implicit_gemm: {rows} neighbouring results must come from fewer than 2^30 elements, not {span}"
    return None


def too_large(problem: Problem) -> str | None:
    """Why the kernels' 32-bit numbers would not do, or None."""
    s = problem.shape
    rows = max(s.n * s.p * s.q, s.n * s.h * s.w, s.k * s.cg * s.r * s.s)
    if rows > 2**31 - 512:
        return f"implicit_gemm: pixels of a batch and elements of the filter must be fewer than 2^31 - 512, not {rows}"
    around = (s.h + 2 * s.extent[0] + s.padding[0] + s.padding[1]) * (s.w + 2 * s.extent[1] + sum(s.padding[2:]))
    image = 2 * around * (max(s.c, s.k) + 8 * s.groups)
    if image >= 2**31:
        return f"implicit_gemm: an image with its padding must have fewer than 2^30 elements, not {image // 2}"
    return None
