"""What the kernels of depthwise_cuda are launched with: shapes of tiles, windows of taps, parts of sums."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from convbench.algorithms._cuda import blocks
from convbench.algorithms._direct_cuda import SHARED_BYTES, Axis
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import Struct
from convbench.problem import Pass, Problem

DATA_THREADS, WEIGHTS_THREADS = 128, 256
PARTS_BYTES = 64 << 20  # of sums that blocks of backward weights leave to be added
WEIGHTS_RUN = 4
ROUNDS = 4  # of blocks, that each multiprocessor has work for in backward weights
ALONG = 8  # threads along pixels (NHWC)
OTHER_HEIGHTS = 3  # of tiles, that a sweep compares


@dataclass(frozen=True)
class Variant:
    """Macros of depthwise.cu (run, taps, stride) or depthwise_weights.cu (run, rectangle as taps, stride)."""

    run: int
    taps: int
    stride: int


@dataclass(frozen=True)
class Planes:
    """Tiling of depthwise.cuh: threads along planes, runs of rows and columns, and the patch they see."""

    rows: Axis
    columns: Axis
    variant: Variant
    planes: int
    runs: int
    width: int
    window: tuple[int, int]
    plane: int
    pitch: int
    before: int  # floats in shared memory before the patch
    fours: bool
    threads: int

    @property
    def tiles(self) -> int:
        """Tiles of a plane, of all phases."""
        return self.rows.phases * self.columns.phases * math.prod(self._tiles)

    @property
    def _tiles(self) -> tuple[int, int]:
        return blocks(self.rows.outputs, self.runs * self.variant.run), blocks(self.columns.outputs, self.width)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory."""
        return 4 * (self.before + self.planes * self.plane)

    def struct(self, parts: int = 1) -> Struct:
        """As the kernels take it."""
        phases = (self.rows.phases, self.columns.phases)
        sizes = (self.planes, self.runs, self.width, *self.window, self.plane, self.pitch, self.before)
        return Struct((*sizes, *phases, *self._tiles, int(self.fours), parts))

    @property
    def cost(self) -> float:
        """Elements copied for all tiles of one plane, and as many again for threads, idle ones included."""
        outputs = self.threads * self.variant.run
        return self.tiles / self.planes * (self.planes * self.plane + self.before + outputs)


def planes_tiling(problem: Problem) -> Planes:
    """The cheapest tiles whose patch fits in 48 KB, with the largest windows of taps that allow any."""
    for variant in _variants(problem, Axis.of(problem, 0), Axis.of(problem, 1)):
        fitting = _fitting(problem, variant)
        if fitting:
            return fitting[0]
    raise AssertionError("one tap of one run of outputs always fits")


def other_tilings(problem: Problem) -> list[Planes]:
    """What else may be worth a try: the cheapest tiles of other heights, and of other runs of outputs."""
    chosen = planes_tiling(problem)
    found = {chosen.runs: chosen}
    for tiling in _fitting(problem, chosen.variant):
        found.setdefault(tiling.runs, tiling)
    others = list(found.values())[1 : OTHER_HEIGHTS + 1]
    if chosen.variant.stride and problem.pass_ is not Pass.BACKWARD_WEIGHTS:
        swept = Variant(8 if chosen.variant.run == 4 else 4, 4, chosen.variant.stride)
        others += _fitting(problem, swept)[:1]
    return others


def _fitting(problem: Problem, variant: Variant) -> list[Planes]:
    """Tiles that fit, the cheapest first, with the largest window that allows any."""
    rows, columns = Axis.of(problem, 0), Axis.of(problem, 1)
    for window in _windows(problem, rows, columns, variant):
        fitting = [t for t in _tilings(problem, rows, columns, variant, window) if t.shared_bytes <= SHARED_BYTES]
        if fitting:
            return sorted(fitting, key=lambda tiling: tiling.cost)
    return []


def _variants(problem: Problem, rows: Axis, columns: Axis) -> list[Variant]:
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        largest = max(rows.taps, columns.taps)
        if rows.stride in (1, 2):
            return [Variant(WEIGHTS_RUN, 3 if largest <= 3 else 5 if largest <= 5 else 7, rows.stride)]
        return [Variant(WEIGHTS_RUN, 3, 0), Variant(WEIGHTS_RUN, 1, 0)]
    if rows.stride in (1, 2):
        return [Variant(4, 4, rows.stride) if rows.taps <= 4 else Variant(8, 8, rows.stride)]
    return [Variant(4, 4, 0)]


def _windows(problem: Problem, rows: Axis, columns: Axis, variant: Variant) -> list[tuple[int, int]]:
    """Windows of taps, largest first; backward weights has one, its rectangle."""
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return [(variant.taps, variant.taps)]
    return sorted(itertools.product(rows.windows(), columns.windows()), key=math.prod, reverse=True)


def _tilings(
    problem: Problem, rows: Axis, columns: Axis, variant: Variant, window: tuple[int, int]
) -> list[Planes]:
    """One for each shape of tile: parts of the rows and columns of a phase, and how many planes fill a block."""
    s = problem.shape
    weights, data = problem.pass_ is Pass.BACKWARD_WEIGHTS, problem.pass_ is Pass.BACKWARD_DATA
    width_in = s.q if data else s.w
    fours = width_in % 4 == 0 and columns_step(problem) == 1
    threads = WEIGHTS_THREADS if weights else DATA_THREADS
    total = s.n if weights else s.n * (s.c if data else s.k)
    row_stride = rows.stride if variant.stride or window[0] > 1 else 1
    found = []
    for width in {blocks(columns.outputs, i) for i in range(1, columns.outputs + 1)}:
        for runs in {blocks(blocks(rows.outputs, variant.run), i) for i in range(1, rows.outputs + 1)}:
            if width * runs > threads:
                continue
            height = (runs * variant.run - 1) * row_stride + blocks(window[0], variant.taps) * variant.taps
            pitch = 4 * blocks(columns.reach(width, window[1]) + 3 * fours, 4)
            each = runs * variant.run * width
            filters = window[1] * blocks(window[0], variant.taps) * variant.taps
            planes = min(threads // (width * runs), total)
            while planes > 1 and 4 * planes * (height * pitch + (each if weights else filters)) > SHARED_BYTES:
                planes -= 1
            before = 4 * blocks(planes * (each if weights else filters), 4)
            patch = (height * pitch, pitch, before, fours, threads)
            found.append(Planes(rows, columns, variant, planes, runs, width, window, *patch))
    return found


def columns_step(problem: Problem) -> int:
    """Distance of the columns that neighbouring taps of one phase read."""
    s = problem.shape
    if s.s == 1:
        return 1 if problem.pass_ is Pass.BACKWARD_DATA else s.stride[1]
    common = math.gcd(s.stride[1], s.dilation[1])
    return s.dilation[1] // common if problem.pass_ is Pass.BACKWARD_DATA else s.dilation[1]


def parts_for(gpu: Gpu, blocks_each: int, most: int, elements: int, rounds: int = ROUNDS) -> int:
    """How many blocks share the pixels: enough to fill the GPU so many times, within PARTS_BYTES."""
    return max(1, min(most, blocks(rounds * gpu.multiprocessors, blocks_each), PARTS_BYTES // (4 * elements)))


def lanes_for(vectors: int, pixels: int, threads: int, most: int = ALONG) -> tuple[int, int]:
    """(threads along channels, threads along pixels) of a block for NHWC: `threads` in all, both powers of two.

    most: along pixels, where there are channels enough.
    """
    along = min(most, 1 << (pixels - 1).bit_length())
    across = min(threads // along, 1 << (vectors - 1).bit_length())
    return across, threads // across
