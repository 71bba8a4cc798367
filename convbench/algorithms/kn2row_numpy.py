"""kn2row: one 1x1 convolution of the whole image per filter tap, each result shifted and added into the output.

A. Vasudevan, A. Anderson, D. Gregg 2017, "Parallel Multi Channel Convolution using General Matrix Multiplication",
section III. No columns: the input is multiplied where it lies. Strides, which the paper leaves out, split the input
into stride x stride phases, inside each of which the convolution has stride 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._cupy import OnCupy
from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import (
    PIXELS_PER_PRODUCT,
    PixelMatrix,
    Scratch,
    Tap,
    area,
    as_taps,
    chunks,
    images_per_product,
    inside,
    is_pointwise,
    product_of,
    read_size,
    scatter_taps,
    taps,
)
from convbench.problem import ConvShape, Pair, Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class Kn2rowNumpy(Implementation):
    """Forward and backward data: a product per tap, then a shifted addition that leaves out what falls outside.

    Backward weights: the shift becomes an offset into a zero-bordered image whose rows follow each other without
    a gap; dy is laid out with the same row length, zeros between its rows, so that every tap is one product of
    contiguous matrices.

    error_growth 4: twice the largest measured, 2.1, over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise,
    N P Q up to 40,000), three passes, both layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "kn2row_numpy"
    reference = "Vasudevan, Anderson, Gregg 2017, section III"
    error_growth = 4.0
    #: As for im2col_numpy.
    pixels: ClassVar[int] = PIXELS_PER_PRODUCT
    vectorised_depthwise: ClassVar[bool] = True

    def workspace_estimate(self, problem: Problem) -> int:
        """The filter tap by tap, one product over the image; phases of x where the stride or the pass needs them."""
        kind = Im2col if is_pointwise(problem.shape) else _Kn2row
        return kind.workspace(problem, self.pixels)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Products over whole images rather than over the outputs, and the additions."""
        s = problem.shape
        if is_pointwise(s):
            return {"multiply": float(problem.direct_flops)}
        per_pixel = 2.0 * s.n * s.k * s.cg
        reaching = list(taps(s))
        if problem.pass_ is Pass.FORWARD:
            pixels = sum(h * w for h, w in (_phase_size(s, _phase(s, tap)) for tap in reaching))
            adds = s.n * s.k * sum(_size(tap.out) for tap in reaching)
            return {"multiply": per_pixel * pixels, "add": float(adds)}
        if problem.pass_ is Pass.BACKWARD_DATA:
            adds = s.n * s.c * sum(_size(tap.out) for tap in reaching)
            return {"multiply": per_pixel * s.p * s.q * len(reaching), "add": float(adds)}
        height, width = _Phases.size(problem)
        multiply = 0.0
        for begin, end in chunks(s.n, images_per_product(s, self.pixels)):
            pixels = (end - begin - 1) * height * width + (s.p - 1) * width + s.q
            multiply += 2.0 * s.k * s.cg * s.r * s.s * pixels
        return {"multiply": multiply}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; with weights, copies them tap by tap. A layer of one dense tap is its one product."""
        if is_pointwise(problem.shape):
            dense = Im2col(problem, context, product_of(context), self.vectorised_depthwise, self.pixels)
            return bind_weights(dense.run(), weights, context)
        plan = _Kn2row(problem, context, self.pixels)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return plan.backward_weights
        run = plan.forward if problem.pass_ is Pass.FORWARD else plan.backward_data
        if weights is None:
            return lambda a, b, out: run(a, plan.load(b), out)
        packed = plan.load(weights)
        return lambda a, out: run(a, packed, out)


@register
class Kn2rowCupy(OnCupy, Kn2rowNumpy):
    """kn2row_numpy on CuPy's arrays, 65,536 pixels a product, as im2col_cupy."""

    name = "kn2row_cupy"
    pixels: ClassVar[int] = 1 << 16
    vectorised_depthwise: ClassVar[bool] = False


def _size(slices: tuple[slice, slice]) -> int:
    """Elements of a dense rectangle."""
    return (slices[0].stop - slices[0].start) * (slices[1].stop - slices[1].start)


def _phase(shape: ConvShape, tap: Tap) -> Pair:
    """Which phase (row and column modulo the stride) of the unpadded input a tap reads."""
    return tap.source[0].start % shape.stride[0], tap.source[1].start % shape.stride[1]


def _phase_size(shape: ConvShape, phase: Pair) -> Pair:
    """Height and width of a phase of the unpadded input."""
    return -(-(shape.h - phase[0]) // shape.stride[0]), -(-(shape.w - phase[1]) // shape.stride[1])


class _Phases:
    """Zero-bordered phases of the padded input, all (images, C, H', W') of one size, for backward weights.

    Phase (i, j) holds the rows i, i + stride, ... and columns j, j + stride, ... of the padded input.
    """

    def __init__(self, problem: Problem, context: Context, images: int) -> None:
        s = problem.shape
        self._xp, self._shape, self._layout = context.xp, s, problem.layout
        self._size = _Phases.size(problem)
        self._ragged = s.n % images != 0  # the borders lie elsewhere when fewer images are laid out
        self._buffers: dict[Pair, Scratch] = {}
        for phase in _Phases.used(problem):
            buffer = Scratch(problem.layout, problem.dtype, s.groups, (s.c, *self._size), images, context)
            buffer.matrix(images).fill(0)
            self._buffers[phase] = buffer

    @staticmethod
    def size(problem: Problem) -> Pair:
        """Height and width of a phase."""
        height, width = read_size(problem.shape)
        return -(-height // problem.shape.stride[0]), -(-width // problem.shape.stride[1])

    @staticmethod
    def used(problem: Problem) -> list[Pair]:
        """The phases that some tap reads."""
        s = problem.shape
        rows = sorted({r * s.dilation[0] % s.stride[0] for r in range(s.r)})
        cols = sorted({t * s.dilation[1] % s.stride[1] for t in range(s.s)})
        return [(i, j) for i in rows for j in cols]

    def load(self, x: np.ndarray) -> dict[Pair, np.ndarray]:
        """The phases of m images as matrices (G, m H' W', C/G)."""
        m = x.shape[0]
        for (i, j), buffer in self._buffers.items():
            if self._ragged:
                buffer.matrix(m).fill(0)
            rows = self._overlap(i, self._shape.h, 0)
            cols = self._overlap(j, self._shape.w, 1)
            if rows and cols:
                to = area(buffer.images(m), self._layout, rows[0], cols[0])
                self._xp.copyto(to, area(x, self._layout, rows[1], cols[1]))
        return {phase: buffer.matrix(m) for phase, buffer in self._buffers.items()}

    def _overlap(self, phase: int, size: int, axis: int) -> tuple[slice, slice] | None:
        """Which part of a phase lies inside the image along an axis, and where in the image."""
        stride, begin = self._shape.stride[axis], self._shape.padding[2 * axis]
        return inside(size, self._size[axis], phase - begin, stride)


class _Kn2row:
    """Buffers for one problem, and the passes. Filters come as (R, S, G, K/G, C/G), contiguous."""

    def __init__(self, problem: Problem, context: Context, pixels: int) -> None:
        s, layout, dtype = problem.shape, problem.layout, problem.dtype
        self._xp, self._multiply = context.xp, product_of(context)
        self._shape, self._layout = s, layout
        self._images = m = images_per_product(s, pixels)
        self._filters = context.empty((s.r, s.s, s.groups, s.kg, s.cg), dtype)
        height, width = _phase_size(s, (0, 0))
        if problem.pass_ is Pass.FORWARD:
            self._product = Scratch(layout, dtype, s.groups, (s.k, height, width), m, context)
            self._x = PixelMatrix(layout, dtype, s.groups, (m, s.c, s.h * s.w), context) if s.stride == (1, 1) else None
            self._part = None if self._x else Scratch(layout, dtype, s.groups, (s.c, height, width), m, context)
        elif problem.pass_ is Pass.BACKWARD_DATA:
            self._y = PixelMatrix(layout, dtype, s.groups, (m, s.k, s.p * s.q), context)
            self._product = Scratch(layout, dtype, s.groups, (s.c, s.p, s.q), m, context)
        else:
            self._phases = _Phases(problem, context, m)
            self._size = _Phases.size(problem)
            self._spread = Scratch(layout, dtype, s.groups, (s.k, *self._size), m, context)
            self._spread.matrix(m).fill(0)
            self._ragged = s.n % m != 0  # the gaps lie elsewhere when fewer images are laid out
            self._sum_tap = context.empty((s.groups, s.kg, s.cg), dtype)

    @staticmethod
    def workspace(problem: Problem, pixels: int) -> int:
        """Bytes of the buffers."""
        s, m = problem.shape, images_per_product(problem.shape, pixels)
        total = s.k * s.cg * s.r * s.s
        height, width = _phase_size(s, (0, 0))
        if problem.pass_ is Pass.FORWARD:
            total += m * s.k * height * width
            if s.stride == (1, 1):
                total += PixelMatrix.workspace(problem.layout, 1, (m, s.c, s.h * s.w))
            else:
                total += m * s.c * height * width
        elif problem.pass_ is Pass.BACKWARD_DATA:
            total += PixelMatrix.workspace(problem.layout, 1, (m, s.k, s.p * s.q)) + m * s.c * s.p * s.q
        else:
            height, width = _Phases.size(problem)
            total += m * height * width * (s.c * len(_Phases.used(problem)) + s.k) + s.k * s.cg
        return total * problem.item_bytes

    def load(self, w: np.ndarray) -> np.ndarray:
        """The filter, tap by tap contiguous."""
        self._xp.copyto(self._filters, as_taps(w, self._shape, self._layout))
        return self._filters

    def forward(self, x: np.ndarray, filters: np.ndarray, y: np.ndarray) -> None:
        """y = sum over taps of the shifted (x @ tap^T), phase by phase."""
        s = self._shape
        by_phase: dict[Pair, list[Tap]] = {}
        for tap in taps(s):
            by_phase.setdefault(_phase(s, tap), []).append(tap)
        y.fill(0)
        for begin, end in chunks(x.shape[0], self._images):
            m = end - begin
            for phase, members in by_phase.items():
                height, width = _phase_size(s, phase)
                pixels = self._pixels(x[begin:end], phase)
                for tap in members:
                    result = self._product.matrix(m, height, width)
                    self._multiply(pixels, filters[tap.r, tap.s].swapaxes(1, 2), result)
                    source = self._product.images(m, height, width)
                    to = area(y[begin:end], self._layout, *tap.out)
                    self._xp.add(to, area(source, self._layout, *self._in_phase(tap)), out=to)

    def _pixels(self, x: np.ndarray, phase: Pair) -> np.ndarray:
        """One phase of m images as a matrix (G, pixels, C/G); the images themselves where the stride is 1."""
        if self._x is not None:
            return self._x.load(x)
        assert self._part is not None
        height, width = _phase_size(self._shape, phase)
        rows, cols = (slice(first, None, step) for first, step in zip(phase, self._shape.stride, strict=True))
        self._xp.copyto(self._part.images(x.shape[0], height, width), area(x, self._layout, rows, cols))
        return self._part.matrix(x.shape[0], height, width)

    def _in_phase(self, tap: Tap) -> tuple[slice, slice]:
        """Where in its phase a tap reads: dense, as long as what it writes."""
        begins = [part.start // step for part, step in zip(tap.source, self._shape.stride, strict=True)]
        lengths = [part.stop - part.start for part in tap.out]
        return slice(begins[0], begins[0] + lengths[0]), slice(begins[1], begins[1] + lengths[1])

    def backward_data(self, dy: np.ndarray, filters: np.ndarray, dx: np.ndarray) -> None:
        """dx = sum over taps of the shifted (dy @ tap)."""
        for begin, end in chunks(dy.shape[0], self._images):
            part = self._y.load(dy[begin:end])
            scatter_taps(part, filters, dx[begin:end], self._product, self._shape, self._layout, self._multiply)

    def backward_weights(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        """Each tap of dw = spread(dy)^T @ (x from the tap's offset on), summed over the images."""
        s, (height, width) = self._shape, self._size
        for begin, end in chunks(x.shape[0], self._images):
            m = end - begin
            length = (m - 1) * height * width + (s.p - 1) * width + s.q  # first to last pixel that some dy meets
            phases = self._phases.load(x[begin:end])
            if self._ragged:
                self._spread.matrix(m).fill(0)
            self._xp.copyto(area(self._spread.images(m), self._layout, slice(s.p), slice(s.q)), dy[begin:end])
            rows = self._spread.matrix(m)[:, :length].swapaxes(1, 2)
            for r in range(s.r):
                down, i = divmod(r * s.dilation[0], s.stride[0])
                for t in range(s.s):
                    right, j = divmod(t * s.dilation[1], s.stride[1])
                    offset = down * width + right
                    to = self._filters[r, t] if begin == 0 else self._sum_tap
                    self._multiply(rows, phases[i, j][:, offset : offset + length], to)
                    if begin:
                        self._xp.add(self._filters[r, t], to, out=self._filters[r, t])
        self._xp.copyto(as_taps(dw, s, self._layout), self._filters)
