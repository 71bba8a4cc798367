"""The steps of Winograd convolution on a GPU. Not fused: transforms, products of every frequency, transforms.

Kernels: kernels/cuda/winograd_nonfused.cu (layouts of what lies between them) and sgemm_batched.cu. The tiles of a
problem are cut into chunks, one after another, so that what transforms write and products read can stay in the L2.
Fused: kernels/cuda/winograd_f2.cu.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from convbench.algorithms._cook_toom import Matrix, cook_toom
from convbench.algorithms._cuda import blocks
from convbench.algorithms._cuda_sgemm import Operands, cycles, sgemm, tile_of
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Buffer, Launch, Long, Product, Program, Step, Struct
from convbench.problem import Pass, Problem

THREADS = 128
#: Tiles of a chunk are a multiple of this, but for the last: the widest tile of sgemm_batched.cu.
COLUMNS = 128
GRID_Y = 65535
#: Beyond this part of the L2, what is transformed of a chunk goes through memory; the rest of it is for the filter and
#: what passes through.
L2_PART = 0.5
#: The model that chooses chunks: cycles from a launch to the next, bytes a cycle for each multiprocessor out of the L2
#: and out of memory (an H200's L2 gives 24, its memory 19; an A100's memory 11). So chunks are few and large: three
#: launches cost more than 30 MB gain by staying in the L2.
LAUNCH_CYCLES, L2_RATE, MEMORY_RATE = 4500, 24, 14
#: Never more than this in one buffer of a chunk: offsets inside a frequency are 32-bit numbers.
CHUNK_BYTES = 1 << 30
#: Most parts that a sum is cut into, and most bytes of them.
MOST_SPLITS, SPLIT_BYTES = 32, 64 << 20
#: Products in one call of the vendor's library.
BATCH = 65535
#: Shared memory of winograd_f2.cu for each channel that it takes at a time.
DEPTH_BYTES = 12 << 10


@dataclass(frozen=True)
class Geometry:
    """A pass as a forward convolution: the tensor read (c, h, w), the one written (k, p, q), channels of all groups.

    Backward weights reads both: x as `c`, dy as `k`.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    p: int
    q: int
    top: int
    left: int
    groups: int
    tile: int
    taps: int
    turned: bool  # backward data: the filter is read with its channels exchanged and turned by 180 degrees
    nhwc: bool

    @classmethod
    def of(cls, problem: Problem, tile: int) -> Geometry:
        """The geometry of a problem's pass for tile x tile results."""
        s = problem.shape
        back = problem.pass_ is Pass.BACKWARD_DATA
        read, written = ((s.k, s.p, s.q), (s.c, s.h, s.w)) if back else ((s.c, s.h, s.w), (s.k, s.p, s.q))
        top, left = s.padding[0], s.padding[2]
        corner = (s.r - 1 - top, s.s - 1 - left) if back else (top, left)
        return cls(s.n, *read, *written, *corner, s.groups, tile, s.r, back, problem.layout == "nhwc")

    @property
    def alpha(self) -> int:
        """Points of the transform along an axis."""
        return self.tile + self.taps - 1

    @property
    def frequencies(self) -> int:
        """Products for one tile, input channel and output channel."""
        return self.alpha**2

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.n * blocks(self.p, self.tile) * blocks(self.q, self.tile)

    @property
    def depth(self) -> int:
        """Channels read, of one group."""
        return self.c // self.groups

    @property
    def outputs(self) -> int:
        """Channels written, of one group."""
        return self.k // self.groups

    @property
    def struct(self) -> Struct:
        """The struct Conv of the kernels."""
        taps = (self.taps, self.taps)
        return Struct((self.n, self.c, self.h, self.w, self.k, *taps, self.p, self.q, 1, 1, self.top, self.left, 1, 1,
                       self.groups))  # fmt: skip

    @property
    def defines(self) -> tuple[tuple[str, int | str], ...]:
        """Macros of winograd_nonfused.cu."""
        return (("NHWC", int(self.nhwc)), ("TAPS", self.taps), ("TILE", self.tile))

    def transformed(self, channels: int, tiles: int) -> int:
        """Elements of one frequency of transformed tiles; `channels` of one group."""
        return self.groups * (tiles * padded(channels) if self.nhwc else channels * padded(tiles))


def padded(count: int) -> int:
    """The next multiple of 4: rows are read 16 bytes at a time."""
    return count + 3 & ~3


@dataclass(frozen=True)
class Choice:
    """What a sweep prescribes; None: what the model says. tile: of sgemm_batched.cu."""

    tile: tuple[int, int] | None = None
    chunks: int | None = None
    splits: int | None = None


MODEL = Choice()


def chunks(g: Geometry, gpu: Gpu, weights: bool = False, number: int | None = None) -> list[tuple[int, int]]:
    """(first tile, number of tiles) of each chunk: `number` of them, as even as multiples of COLUMNS can be."""
    most = max(1, CHUNK_BYTES // _tile_bytes(g))
    if most < COLUMNS:  # a huge number of channels
        return [(t, min(most, g.tiles - t)) for t in range(0, g.tiles, most)]
    columns, number = blocks(g.tiles, COLUMNS), number or _best_number(g, gpu, weights)
    edges = [min(i * columns // number * COLUMNS, g.tiles) for i in range(number + 1)]
    return [(a, b - a) for a, b in itertools.pairwise(edges)]


def _tile_bytes(g: Geometry) -> int:
    """Of what lies between the kernels for one tile."""
    return 4 * g.frequencies * g.groups * (padded(g.depth) + padded(g.outputs))


def chunk_numbers(g: Geometry, gpu: Gpu) -> tuple[int, int, int]:
    """Numbers of chunks: the fewest that there can be, those that stay in the L2, the most."""
    columns, per_tile = blocks(g.tiles, COLUMNS), _tile_bytes(g)
    fewest = blocks(columns, max(1, CHUNK_BYTES // per_tile // COLUMNS))
    return fewest, min(columns, int(g.tiles * per_tile / (L2_PART * gpu.l2_bytes)) + 1), columns


def _best_number(g: Geometry, gpu: Gpu, weights: bool) -> int:
    """The number with the least expected time: few launches and full rounds of blocks against what stays in the L2."""
    fewest, fitting, columns = chunk_numbers(g, gpu)
    per_tile = _tile_bytes(g)
    numbers = {*range(fewest, fewest + 8), *range(max(fewest, fitting - 8), fitting + 8)}

    def expected(number: int) -> float:
        most_columns = blocks(columns, number)  # of so many chunks, the others have one less
        wide = columns - (most_columns - 1) * number
        return wide * _chunk_cycles(g, gpu, weights, most_columns * COLUMNS, per_tile) + (
            (number - wide) * _chunk_cycles(g, gpu, weights, (most_columns - 1) * COLUMNS, per_tile)
        )

    return min((n for n in sorted(numbers) if n <= columns), key=expected)


def _chunk_cycles(g: Geometry, gpu: Gpu, weights: bool, tiles: int, per_tile: int) -> float:
    """Expected time of one chunk. Transforms move what is transformed once; what products move hides behind them."""
    if not tiles:
        return 0.0
    splits = (weight_splits if weights else forward_splits)(g, gpu, tiles)
    o = weights_operands(g, tiles, splits, False) if weights else forward_operands(g, tiles, splits)
    rate = L2_RATE if tiles * per_tile <= L2_PART * gpu.l2_bytes else MEMORY_RATE
    moved = tiles * per_tile / (rate * gpu.multiprocessors)
    return cycles(o, gpu, tile_of(o, gpu)) + moved + 3 * LAUNCH_CYCLES


def forward_program(g: Geometry, gpu: Gpu, vendor: bool, choice: Choice = MODEL) -> Program:
    """Forward and backward data. vendor: products by the vendor's BLAS."""
    parts = chunks(g, gpu, False, choice.chunks)
    largest = max(tiles for _, tiles in parts)
    splits = 1 if vendor else choice.splits or forward_splits(g, gpu, largest)
    steps: list[Step] = []
    for first, tiles in parts:
        steps.append(_over_tiles(g, "winograd_input", "a", "v", g.c, first, tiles))
        steps += _products(forward_operands(g, tiles, splits), gpu, vendor, choice.tile)
        steps.append(_over_tiles(g, "winograd_output", "m", "out", g.k, first, tiles, splits))
    workspace = {
        "u": Buffer((g.frequencies * g.groups * g.depth * padded(g.outputs),)),
        "v": Buffer((g.frequencies * g.transformed(g.depth, largest),)),
        "m": Buffer((splits * g.frequencies * g.transformed(g.outputs, largest),)),
    }
    return Program(tuple(steps), (_filter(g),), workspace)


def weights_program(g: Geometry, gpu: Gpu, vendor: bool, choice: Choice = MODEL) -> Program:
    """Backward weights: products of transformed x and dy, summed over the chunks, one transform at the end."""
    parts = chunks(g, gpu, True, choice.chunks)
    largest = max(tiles for _, tiles in parts)
    size = g.frequencies * g.k * padded(g.depth)
    splits = 1 if vendor else choice.splits or weight_splits(g, gpu, largest)
    steps: list[Step] = []
    for number, (first, tiles) in enumerate(parts):
        steps.append(_over_tiles(g, "winograd_input", "a", "v", g.c, first, tiles))
        steps.append(_over_tiles(g, "winograd_gradient", "b", "w", g.k, first, tiles))
        steps += _products(weights_operands(g, tiles, splits, number > 0), gpu, vendor, choice.tile)
    grid = (blocks(g.depth, THREADS), min(g.k, GRID_Y), 1)
    steps.append(_launch(g, "winograd_weights", grid, At("d"), At("out"), g.struct, splits))
    workspace = {
        "v": Buffer((g.frequencies * g.transformed(g.depth, largest),)),
        "w": Buffer((g.frequencies * g.transformed(g.outputs, largest),)),
        "d": Buffer((splits * size,)),
    }
    return Program(tuple(steps), (), workspace)


def weight_splits(g: Geometry, gpu: Gpu, tiles: int) -> int:
    """Into how many parts the sum over a chunk's tiles is cut, so that there is work for every multiprocessor."""
    one = 4 * g.frequencies * g.k * padded(g.depth)
    return _splits(lambda splits: weights_operands(g, tiles, splits, False), one, tiles // COLUMNS, gpu)


def forward_splits(g: Geometry, gpu: Gpu, tiles: int) -> int:
    """The same for the sum over channels, where a chunk has few tiles."""
    one = 4 * g.frequencies * g.transformed(g.outputs, tiles)
    return _splits(lambda splits: forward_operands(g, tiles, splits), one, g.depth // 64, gpu)


def _splits(operands: Callable[[int], Operands], one: int, most: int, gpu: Gpu) -> int:
    """The best number of parts up to `most`; `one`: bytes of a part, which is written and read."""

    def expected(splits: int) -> float:
        o = operands(splits)
        return cycles(o, gpu, tile_of(o, gpu)) + 2 * splits * one / (L2_RATE * gpu.multiprocessors)

    return min(range(1, max(1, min(MOST_SPLITS, SPLIT_BYTES // one, most)) + 1), key=expected)


def fused_depths(gpu: Gpu) -> list[int]:
    """Channels that winograd_f2.cu can take at a time, best first: eight need 96 KiB of shared memory, four 48."""
    return [depth for depth in (8, 4) if depth * DEPTH_BYTES <= gpu.shared_bytes]


def fused_program(g: Geometry, depth: int) -> Program:
    """Forward and backward data by winograd_f2.cu, `depth` channels at a time."""
    outputs, inputs = blocks(g.outputs, 64), 8 * blocks(g.depth, 8)
    defines = (("DEPTH", depth), ("NHWC", int(g.nhwc)))
    grid = (2 * outputs, min(inputs // 4, GRID_Y), min(g.groups, GRID_Y))
    arguments: tuple[At | Struct | int, ...] = (At("b"), At("u"), g.struct, int(g.turned))
    pack = Launch("winograd_f2.cu", "winograd_f2_filter", grid, (128, 1, 1), arguments, defines=defines)
    grid = (g.groups * outputs * blocks(g.tiles, 32), 1, 1)
    arguments = (At("a"), At("u"), At("out"), g.struct)
    run = Launch("winograd_f2.cu", "winograd_f2", grid, (256, 1, 1), arguments, depth * DEPTH_BYTES, defines)
    return Program((run,), (pack,), {"u": Buffer((g.groups, outputs, inputs, g.frequencies, 64))})


def forward_operands(g: Geometry, tiles: int, splits: int) -> Operands:
    """M = U^T V (NCHW: K x T) or V U (NHWC: T x K)."""
    c, k, k4, t4 = g.depth, g.outputs, padded(g.outputs), padded(tiles)
    batch = g.frequencies * g.groups
    if g.nhwc:
        c4 = padded(c)
        operands = Operands("v", "u", "m", tiles, k, c, c4, k4, k4, batch, tiles * c4, c * k4, tiles * k4, True)
    else:
        operands = Operands("u", "v", "m", k, tiles, c, k4, t4, t4, batch, c * k4, c * t4, k * t4)
    return replace(operands, splits=splits, step_split=batch * operands.step_c)


def weights_operands(g: Geometry, tiles: int, splits: int, add: bool) -> Operands:
    """D = W V^T, K x C, the sum over tiles."""
    c, k, c4 = g.depth, g.outputs, padded(g.depth)
    batch = g.frequencies * g.groups
    if g.nhwc:
        k4 = padded(k)
        operands = Operands("w", "v", "d", k, c, tiles, k4, c4, c4, batch, tiles * k4, tiles * c4, k * c4)
    else:
        t4 = padded(tiles)
        operands = Operands("w", "v", "d", k, c, tiles, t4, t4, c4, batch, k * t4, c * t4, k * c4, True, True)
    return replace(operands, splits=splits, step_split=batch * operands.step_c, add=add)


def _products(o: Operands, gpu: Gpu, vendor: bool, tile: tuple[int, int] | None) -> Iterator[Step]:
    if not vendor:
        yield sgemm(o, gpu, tile)
        return
    for first in range(0, o.batch, BATCH):
        yield Product(
            At(o.a, first * o.step_a), At(o.b, first * o.step_b), At(o.c, first * o.step_c), o.m, o.n, o.k,
            o.row_a, o.row_b, o.row_c, not o.a_rows, o.b_rows, min(BATCH, o.batch - first), o.step_a, o.step_b,
            o.step_c, add=o.add,
        )  # fmt: skip


def _filter(g: Geometry) -> Launch:
    grid = (blocks(padded(g.outputs), 32), min(blocks(g.depth, 4), GRID_Y), min(g.groups, GRID_Y))
    return _launch(g, "winograd_filter", grid, At("b"), At("u"), g.struct, int(g.turned))


def _over_tiles(
    g: Geometry, kernel: str, source: str, target: str, channels: int, first: int, tiles: int, *more: int
) -> Launch:
    """A kernel over transformed tiles of all channels. NCHW: tiles along x, channels along y.

    It is given x, dy or y from the first tile's image on: what of them a chunk touches can be seen in the program.
    """
    image, within = divmod(first, g.tiles // g.n)
    area = g.p * g.q if kernel in ("winograd_gradient", "winograd_output") else g.h * g.w
    places = (At(source, image * channels * area), At(target))
    if kernel == "winograd_output":
        places = (At(source), At(target, image * channels * area))
    if g.nhwc:
        grid = (blocks(tiles * g.groups * padded(channels // g.groups), THREADS), 1, 1)
    else:
        grid = (blocks(padded(tiles), THREADS), min(channels, GRID_Y), 1)
    return _launch(g, kernel, grid, *places, g.struct, Long(within), tiles, *more)


def _launch(g: Geometry, kernel: str, grid: tuple[int, int, int], *arguments: At | Struct | Long | int) -> Launch:
    return Launch("winograd_nonfused.cu", kernel, grid, (THREADS, 1, 1), arguments, defines=g.defines)


def flops(g: Geometry, weights: bool) -> dict[str, float]:
    """Executed operations by phase, one with 0 or 1 left out; whole tiles, also where they hang over the edge."""
    transform, gradient = cook_toom(g.tile, g.taps), cook_toom(g.taps, g.tile)
    phases = {"input_transform": g.tiles * g.c * _square(transform.bt)}
    filters = float(g.k * g.depth)
    if weights:
        phases["input_transform"] += g.tiles * g.k * _square(gradient.g)
        phases["output_transform"] = filters * _square(gradient.at)
    else:
        phases["filter_transform"] = filters * _square(transform.g)
        phases["output_transform"] = g.tiles * g.k * _square(transform.at)
    phases["multiply"] = 2.0 * g.frequencies * g.tiles * filters
    return phases


def _square(matrix: Matrix) -> float:
    """Operations of matrix * tile * matrix^T by dot products: a product with 1 is none, the first sum neither."""
    terms = [[abs(v) for v in row if v] for row in matrix]
    once = sum(2 * len(row) - 1 - sum(v == 1 for v in row) for row in terms)
    return float(once * (len(matrix[0]) + len(matrix)))

