"""im2col on a GPU: windows written out by kernels/cuda/im2col.cu, products by the vendor's BLAS.

Chellapilla, Puri, Simard 2006, "High Performance Convolutional Neural Networks for Document Processing", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from convbench.algorithms._cuda import CudaImplementation, blocks, conv_struct
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Buffer, Launch, Product, Program, Step
from convbench.problem import Pass, Problem
from convbench.registry import register

THREADS = 256
COLUMNS_BYTES = 64 << 20  # of the images that share a product; one image may have more


@register
class Im2colCuda(CudaImplementation):
    """Chunks of images whose columns take 64 MiB (at least one image), one batched product a chunk.

    1x1 layers without stride or padding use the operands as they are. NCHW: one product per image and group, over
    groups or images at a time; backward weights lays the images of a chunk side by side, in columns and in dy, for
    one product. NHWC: one product per group. col2im gathers: no atomics.

    error_growth 4.0: as for `im2col_numpy`, since a BLAS may sum in any order; largest measured with NumPy's
    products over the conformance shapes 1.5.
    """

    name = "im2col_cuda"
    arithmetic = "float32"
    error_growth = 4.0
    reference = "Chellapilla, Puri, Simard 2006, section 3"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Columns, products and, for backward data, col2im; chunk by chunk."""
        return _Plan(problem).program()


@dataclass(frozen=True)
class _Plan:
    problem: Problem

    @cached_property
    def nhwc(self) -> bool:
        return self.problem.layout == "nhwc"

    @cached_property
    def direct(self) -> bool:
        """Whether the input is its own matrix of columns."""
        s = self.problem.shape
        return (s.r, s.s, *s.stride, *s.padding) == (1, 1, 1, 1, 0, 0, 0, 0)

    @cached_property
    def rows(self) -> int:
        """Of one group's matrix: C/G R S."""
        s = self.problem.shape
        return s.cg * s.r * s.s

    @cached_property
    def chunk(self) -> int:
        """Images of one chunk, evenly; all of them where there are no columns."""
        s = self.problem.shape
        if self.direct and (self.nhwc or self.problem.pass_ is not Pass.BACKWARD_WEIGHTS):
            return s.n
        each = 4 * s.groups * self.rows * s.p * s.q
        return blocks(s.n, blocks(s.n, max(1, COLUMNS_BYTES // each)))

    @cached_property
    def beside(self) -> bool:
        """NCHW backward weights of several images: columns and dy with the images side by side."""
        return not self.nhwc and self.problem.pass_ is Pass.BACKWARD_WEIGHTS and self.chunk > 1

    def program(self) -> Program:
        s = self.problem.shape
        pixels = s.p * s.q
        workspace = {}
        if not self.direct or self.beside:
            workspace["columns"] = Buffer((self.chunk * s.groups * self.rows * pixels,))
        if self.beside:
            workspace["beside"] = Buffer((self.chunk * s.k * pixels,))
        passes = {
            Pass.FORWARD: self._forward,
            Pass.BACKWARD_DATA: self._backward_data,
            Pass.BACKWARD_WEIGHTS: self._backward_weights,
        }
        steps: list[Step] = []
        for first in range(0, s.n, self.chunk):
            steps += passes[self.problem.pass_](first, min(self.chunk, s.n - first))
        return Program(tuple(steps), workspace=workspace)

    # ---- where the chunk's images begin

    def _x(self, buffer: str, first: int) -> At:
        s = self.problem.shape
        return At(buffer, first * s.c * s.h * s.w)

    def _y(self, buffer: str, first: int) -> At:
        s = self.problem.shape
        return At(buffer, first * s.k * s.p * s.q)

    def _columns(self, buffer: str, first: int) -> At:
        """The columns, or the array (x or dx) that is its own."""
        return self._x(buffer, first) if self.direct and not self.beside else At("columns")

    # ---- passes

    def _forward(self, first: int, images: int) -> list[Step]:
        columns, y = self._columns("a", first), self._y("out", first)
        return [*self._im2col(first, images), *self._products(images, "forward", columns, y)]

    def _backward_data(self, first: int, images: int) -> list[Step]:
        columns, dy = self._columns("out", first), self._y("a", first)
        products = self._products(images, "data", columns, dy)
        if self.direct:
            return products
        s = replace(self.problem.shape, n=images)
        back = self._launch("im2col_back", s.n * s.c * s.h * s.w, At("columns"), self._x("out", first), images)
        return [*products, back]

    def _backward_weights(self, first: int, images: int) -> list[Step]:
        s = self.problem.shape
        pixels, rows = images * s.p * s.q, self.rows
        columns, dy = self._columns("a", first), self._y("b", first)
        steps: list[Step] = self._im2col(first, images)
        if self.beside:
            steps.append(self._launch("im2col_beside", s.k * pixels, dy, At("beside"), images))
            dy = At("beside")
        if self.nhwc:
            product = Product(dy, columns, At("out"), s.kg, rows, pixels, s.k, s.groups * rows, rows, transpose_a=True,
                              batch=s.groups, step_a=s.kg, step_b=rows, step_c=s.kg * rows)  # fmt: skip
        else:
            product = Product(dy, columns, At("out"), s.kg, rows, pixels, pixels, pixels, rows, transpose_b=True,
                              batch=s.groups, step_a=s.kg * pixels, step_b=rows * pixels,
                              step_c=s.kg * rows)  # fmt: skip
        return [*steps, replace(product, add=first > 0)]

    # ---- steps

    def _im2col(self, first: int, images: int) -> list[Step]:
        if self.direct and not self.beside:
            return []
        s = self.problem.shape
        total = images * s.p * s.q
        if self.nhwc:
            launch = self._launch("im2col", total * THREADS, self._x("a", first), At("columns"), images)
        else:
            launch = self._launch("im2col", total, self._x("a", first), At("columns"), images)
            launch = replace(launch, grid=(launch.grid[0], min(s.c, 1 << 12), 1))
        return [launch]

    def _launch(self, kernel: str, threads: int, source: At, target: At, images: int) -> Launch:
        s = self.problem.shape
        return Launch(
            "im2col.cu",
            kernel,
            (blocks(threads, THREADS), 1, 1),
            (THREADS, 1, 1),
            (source, target, conv_struct(replace(s, n=images))),
            defines=(
                ("NHWC", int(self.nhwc)),
                ("VECTOR", 4 if self.nhwc and s.cg % 4 == 0 else 1),
                ("BY_IMAGE", int(not self.beside)),
            ),
        )

    def _products(self, images: int, which: str, columns: At, y: At) -> list[Step]:
        """Forward: y = w columns; data: columns = transposed w dy (NCHW; NHWC the other way round)."""
        s, rows, pixels = self.problem.shape, self.rows, self.problem.shape.p * self.problem.shape.q
        w = At("b")
        if self.nhwc:
            wide, total = s.groups * rows, images * pixels
            if which == "forward":
                return [Product(columns, w, y, total, s.kg, rows, wide, rows, s.k, transpose_b=True, batch=s.groups,
                                step_a=rows, step_b=s.kg * rows, step_c=s.kg)]  # fmt: skip
            return [Product(y, w, columns, total, rows, s.kg, s.k, rows, wide, batch=s.groups,
                            step_a=s.kg, step_b=s.kg * rows, step_c=rows)]  # fmt: skip
        if which == "forward":
            one = Product(w, columns, y, s.kg, pixels, rows, rows, pixels, pixels)
            step_b, step_c = rows * pixels, s.kg * pixels
        else:
            one = Product(w, y, columns, rows, pixels, s.kg, rows, pixels, pixels, transpose_a=True)
            step_b, step_c = s.kg * pixels, rows * pixels
        if images >= s.groups:  # for each group, all images
            return [
                replace(one, a=_after(one.a, g * s.kg * rows), b=_after(one.b, g * step_b), c=_after(one.c, g * step_c),
                        batch=images, step_b=s.groups * step_b, step_c=s.groups * step_c)
                for g in range(s.groups)
            ]  # fmt: skip
        return [
            replace(one, b=_after(one.b, n * s.groups * step_b), c=_after(one.c, n * s.groups * step_c),
                    batch=s.groups, step_a=s.kg * rows, step_b=step_b, step_c=step_c)
            for n in range(images)
        ]  # fmt: skip


def _after(place: At, elements: int) -> At:
    return At(place.buffer, place.offset + elements)
