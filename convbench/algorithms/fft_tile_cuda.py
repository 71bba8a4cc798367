"""Overlapping tiles of 16 or 32 points on a GPU, transformed by kernels of ours: kernels/cuda/fft_tile.cu.

Vasilache et al. 2014, "Fast Convolutional Nets With fbfft" (arXiv 1412.7580), sections 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import log2

from convbench.algorithms._cuda import CudaImplementation, blocks
from convbench.algorithms._fft_cuda import BACKWARD, FORWARD, GRADIENT, PARTS, PLAIN, TURNED, spectral_product
from convbench.algorithms._fft_geometry import Taps
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Buffer, Launch, Program, Step, Struct, Zero
from convbench.problem import Pass, Problem
from convbench.registry import register

SIZES = (16, 32)
THREADS = 128
CHUNK_BYTES = 512 << 20  # of the matrices of the images that are multiplied together
#: What the choice of a tile weighs against each other: the product's rate and the memory's, of a GPU like an H200.
FLOPS_PER_BYTE = 12.0


@register
class FftTileCuda(CudaImplementation):
    """Tiles transformed in registers, two channels as one complex tile; per frequency one product of the vendor's BLAS.

    The tile is the one that takes least by a model of operations and bytes. Two channels share a transform's rounding
    errors.

    error_growth 5.5: as for `fft_tiled_simd`; the largest measured over the conformance shapes, emulated, is 1.41.
    """

    name = "fft_tile_cuda"
    arithmetic = "float32"
    exact_on_integers = False
    error_growth = 5.5
    reference = "Vasilache et al. 2014 (arXiv 1412.7580), sections 5 and 6; overlap-save"

    def limits(self, problem: Problem) -> str | None:
        """Stride and dilation 1; a filter within the largest tile."""
        s = problem.shape
        for what, pair in (("stride", s.stride), ("dilation", s.dilation)):
            if pair != (1, 1):
                return f"fft_tile: {what} must be 1, not {pair[0] if pair[0] == pair[1] else f'{pair[0]}x{pair[1]}'}"
        if max(s.r, s.s) > SIZES[-1]:
            return f"fft_tile: the filter must fit a tile of {SIZES[-1]}x{SIZES[-1]}, not {s.r}x{s.s}"
        return None

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Chunks of images: tiles to matrices, product, matrices to tiles; the filters' spectra are made once."""
        return best_tiles(problem).program()

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """The other tiles, where the filter fits them; fewer images at a time, whose matrices stay in the L2."""
        best = best_tiles(problem)
        others = [tiles for tiles in (Tiles(problem, size) for size in SIZES) if tiles.fits and tiles.size != best.size]
        programs = {f"{tiles.size}x{tiles.size}": tiles.program() for tiles in others}
        few = replace(best, most_bytes=gpu.l2_bytes // 2)
        if few.chunk < best.chunk:
            programs["chunks in the L2"] = few.program()
        return programs

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The valid part of a tile; backward weights sums over all tiles."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return (problem.shape.r, problem.shape.s)
        tiles = best_tiles(problem)
        return tiles.rows.step, tiles.columns.step

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """A real transform of T points counts 2.5 T log2 T, a complex product and sum 8."""
        return best_tiles(problem).executed_flops()


@dataclass(frozen=True)
class Axis:
    """One axis cut into tiles of `size` points, of which size - taps + 1 are valid results."""

    size: int
    taps: Taps
    inputs: int
    outputs: int
    backward: bool

    @property
    def step(self) -> int:
        """Results of one tile."""
        return self.size - self.taps.count + 1

    @property
    def tiles(self) -> int:
        """That cover the result; for backward weights, the output."""
        return blocks(self.inputs if self.backward else self.outputs, self.step)

    def cut(self, role: str, load: bool, of_weights: bool, count: int) -> tuple[int, ...]:
        """struct Cut of fft_tile.cu. role: x, y or w; load: read tiles, or store them; count: size along the axis."""
        taps, begin, whole = self.taps.count, self.taps.begin, self.size
        if role == "w":
            return (1, 0, self.taps.first, taps, 0, 0, count)
        # outputs that meet padding alone are no part of any sum: their rounding errors must not reach others
        reading = max(0, begin - taps + 1), max(0, min(self.outputs, self.inputs + begin))
        if role == "x" and load:
            return (self.tiles, self.step, -begin, whole, 0, 0, count)
        if role == "x":
            return (self.tiles, self.step, 0, self.step, taps - 1, 0, count)
        if load and of_weights:
            return (self.tiles, self.step, 0, self.step, 0, *reading)
        if load:
            return (self.tiles, self.step, begin - taps + 1, whole, 0, *reading)
        return (self.tiles, self.step, 0, self.step, 0, 0, count)


@dataclass(frozen=True)
class Tiles:
    """The program with tiles of one size. most_bytes: of the matrices of a chunk of images, if given."""

    problem: Problem
    size: int
    most_bytes: int | None = None

    @cached_property
    def _axes(self) -> tuple[Axis, Axis]:
        s = self.problem.shape
        rows, columns = Taps.both(s)
        backward = self.problem.pass_ is Pass.BACKWARD_DATA
        return Axis(self.size, rows, s.h, s.p, backward), Axis(self.size, columns, s.w, s.q, backward)

    @property
    def rows(self) -> Axis:
        """Rows of tiles."""
        return self._axes[0]

    @property
    def columns(self) -> Axis:
        """Columns of tiles."""
        return self._axes[1]

    @property
    def fits(self) -> bool:
        """Whether a tile has any valid results."""
        return min(self.rows.step, self.columns.step) >= 1

    @property
    def frequencies(self) -> int:
        """Of one tile of real numbers."""
        return self.size * (self.size // 2 + 1)

    @property
    def each(self) -> int:
        """Tiles of one image."""
        return self.rows.tiles * self.columns.tiles

    @property
    def of_weights(self) -> bool:
        """Backward weights."""
        return self.problem.pass_ is Pass.BACKWARD_WEIGHTS

    def executed_flops(self) -> dict[str, float]:
        """By phase."""
        s, points = self.problem.shape, self.size * self.size
        one = 2.5 * points * log2(points)
        tiles = s.n * self.each
        sides = {"x": tiles * s.c * one, "y": tiles * s.k * one}
        multiply = 8.0 * tiles * self.frequencies * s.k * s.cg
        filters = s.k * s.cg * one
        if self.of_weights:
            return {"input_transform": sides["x"] + sides["y"], "multiply": multiply, "filter_transform": filters}
        first, last = ("y", "x") if self.problem.pass_ is Pass.BACKWARD_DATA else ("x", "y")
        return {"input_transform": sides[first], "filter_transform": filters, "multiply": multiply,
                "output_transform": sides[last]}  # fmt: skip

    @property
    def cost(self) -> float:
        """Operations of the product, and bytes of all matrices, written and read once, at FLOPS_PER_BYTE."""
        s = self.problem.shape
        spectra = 16.0 * s.n * self.each * (s.c + s.k) + 32.0 * s.k * s.cg
        return self.executed_flops()["multiply"] + FLOPS_PER_BYTE * self.frequencies * spectra

    @cached_property
    def chunk(self) -> int:
        """Images that are multiplied together, evenly."""
        s = self.problem.shape
        image = 8 * self.frequencies * self.each * ((2 * s.c if self.of_weights else s.c) + s.k)
        return blocks(s.n, blocks(s.n, max(1, (self.most_bytes or CHUNK_BYTES) // image)))

    def program(self) -> Program:
        """Steps and buffers."""
        s, most = self.problem.shape, self.chunk * self.each * self.frequencies
        pairs = s.k * s.cg * self.frequencies
        workspace = {
            "x_matrices": Buffer(((4 if self.of_weights else 2) * most * s.c,)),
            "y_matrices": Buffer((2 * most * s.k,)),
            "w_matrices": Buffer(((2 if self.of_weights else 4) * pairs,)),
        }
        steps: list[Step] = []
        for first in range(0, s.n, self.chunk):
            images = min(self.chunk, s.n - first)
            add = self.of_weights and first > 0
            product = spectral_product(self.problem, images * self.each, self.frequencies, add)
            if self.of_weights:
                steps += [self._forward("x", TURNED, "a", first, images), self._forward("y", PARTS, "b", first, images)]
                steps.append(product)
            else:
                source, target = ("y", "x") if self.problem.pass_ is Pass.BACKWARD_DATA else ("x", "y")
                steps += [self._forward(source, PLAIN, "a", first, images), product]
                steps.append(self._inverse(target, PLAIN, first, images))
        if self.of_weights:
            if (self.rows.taps.count, self.columns.taps.count) != (s.r, s.s):
                steps.append(Zero("out"))  # taps that meet padding alone
            return Program((*steps, self._inverse("w", GRADIENT, 0, s.k)), workspace=workspace)
        role = BACKWARD if self.problem.pass_ is Pass.BACKWARD_DATA else FORWARD
        return Program(tuple(steps), (self._forward("w", role, "b", 0, s.k),), workspace)

    # ---- steps

    def _tensor(self, role: str) -> tuple[int, int, int]:
        """Channels, height and width."""
        s = self.problem.shape
        return {"x": (s.c, s.h, s.w), "y": (s.k, s.p, s.q), "w": (s.cg, s.r, s.s)}[role]

    def _matrices(self, role: str, kind: int, images: int) -> Struct:
        s = self.problem.shape
        rows, columns = {FORWARD: (s.cg, s.kg), BACKWARD: (s.kg, s.cg), GRADIENT: (s.kg, s.cg)}.get(
            kind, (images * self.each, self._tensor(role)[0] // s.groups)
        )
        return Struct((kind, s.groups, rows, columns))

    def _launch(self, kernel: str, role: str, kind: int, ends: tuple[At, At], images: int) -> Launch:
        channels, height, width = self._tensor(role)
        load = kernel == "fft_tile_forward"
        rows = Struct(self.rows.cut(role, load, self.of_weights, height))
        columns = Struct(self.columns.cut(role, load, self.of_weights, width))
        outer, inner = (channels, images) if kind == FORWARD else (images, channels)
        tiles = 1 if role == "w" else self.each
        grid = (outer * tiles, blocks(inner, 2 * THREADS // self.size), 1)
        arguments = (*ends, self._matrices(role, kind, images), images, channels, height, width, rows, columns)
        defines = (("TILE", self.size), ("NHWC", int(self.problem.layout == "nhwc")))
        shared = 8 * THREADS * (self.size + 1)  # a square of complex numbers for each pair of channels
        return Launch("fft_tile.cu", kernel, grid, (THREADS, 1, 1), arguments, shared, defines)

    def _forward(self, role: str, kind: int, operand: str, first: int, images: int) -> Launch:
        channels, height, width = self._tensor(role)
        ends = At(operand, first * channels * height * width), At(f"{role}_matrices")
        return self._launch("fft_tile_forward", role, kind, ends, images)

    def _inverse(self, role: str, kind: int, first: int, images: int) -> Launch:
        channels, height, width = self._tensor(role)
        ends = At(f"{role}_matrices"), At("out", first * channels * height * width)
        return self._launch("fft_tile_inverse", role, kind, ends, images)


def best_tiles(problem: Problem) -> Tiles:
    """The tiles that cost least."""
    return min((t for t in (Tiles(problem, size) for size in SIZES) if t.fits), key=lambda tiles: tiles.cost)
