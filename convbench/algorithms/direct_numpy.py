"""Direct convolution, tap by tap: each of the R * S filter taps is a 1x1 convolution of a shifted input.

The definition with its loops turned inside out, so that NumPy or CuPy has matrices to multiply: what a window reads
through one tap, over all windows, is a strided slice of the padded input. No more than one tap's slice is ever copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._cupy import OnCupy
from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import (
    PIXELS_PER_PRODUCT,
    Padded,
    PixelMatrix,
    Scratch,
    as_taps,
    chunks,
    images_per_product,
    is_pointwise,
    product_of,
    scatter_taps,
    windows,
)
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class DirectNumpy(Implementation):
    """Sum over taps of slice @ tap (forward), of dy @ tap put back in place (backward data), dy^T @ slice.

    error_growth 4: twice the largest measured, 2.1, over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise,
    N P Q up to 40,000), three passes, both layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "direct_numpy"
    reference = "the definition, one tap at a time"
    error_growth = 4.0
    #: As for im2col_numpy.
    pixels: ClassVar[int] = PIXELS_PER_PRODUCT
    vectorised_depthwise: ClassVar[bool] = True

    def workspace_estimate(self, problem: Problem) -> int:
        """One tap's slice of x, one tap's contribution to the result, the filter tap by tap, padded images."""
        kind = Im2col if is_pointwise(problem.shape) else _Taps
        return kind.workspace(problem, self.pixels)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; with weights, copies them tap by tap. A layer of one dense tap is its one product."""
        if is_pointwise(problem.shape):
            plan = Im2col(problem, context, product_of(context), self.vectorised_depthwise, self.pixels)
            return bind_weights(plan.run(), weights, context)
        return self._tap_by_tap(_Taps(problem, context, self.pixels), problem, weights)

    @staticmethod
    def _tap_by_tap(plan: _Taps, problem: Problem, weights: Any) -> Run:
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return plan.backward_weights
        run = plan.forward if problem.pass_ is Pass.FORWARD else plan.backward_data
        if weights is None:
            return lambda a, b, out: run(a, plan.load(b), out)
        packed = plan.load(weights)
        return lambda a, out: run(a, packed, out)


@register
class DirectCupy(OnCupy, DirectNumpy):
    """direct_numpy on CuPy's arrays, 65,536 pixels a product, as im2col_cupy."""

    name = "direct_cupy"
    pixels: ClassVar[int] = 1 << 16
    vectorised_depthwise: ClassVar[bool] = False


class _Taps:
    """Buffers for one problem, and the passes. Filters come as (R, S, G, K/G, C/G), contiguous."""

    def __init__(self, problem: Problem, context: Context, pixels: int) -> None:
        s, layout, dtype = problem.shape, problem.layout, problem.dtype
        self._xp, self._product = context.xp, product_of(context)
        self._shape, self._layout, self._images = s, layout, images_per_product(s, pixels)
        m = self._images
        self._filters = context.empty((s.r, s.s, s.groups, s.kg, s.cg), dtype)
        self._y = PixelMatrix(layout, dtype, s.groups, (m, s.k, s.p * s.q), context)
        self._slice = Scratch(layout, dtype, s.groups, (s.c, s.p, s.q), m, context)
        if problem.pass_ is Pass.FORWARD:
            self._sum = Scratch(layout, dtype, s.groups, (s.k, s.p, s.q), m, context)
        elif problem.pass_ is Pass.BACKWARD_WEIGHTS:
            self._sum_tap = context.empty((s.groups, s.kg, s.cg), dtype)
        if problem.pass_ is not Pass.BACKWARD_DATA:
            self._pad = Padded(problem, context, m)

    @staticmethod
    def workspace(problem: Problem, pixels: int) -> int:
        """Bytes of the buffers."""
        s, m = problem.shape, images_per_product(problem.shape, pixels)
        elements = s.k * s.cg * s.r * s.s + m * s.c * s.p * s.q
        if problem.pass_ is Pass.FORWARD:
            elements += m * s.k * s.p * s.q
        elif problem.pass_ is Pass.BACKWARD_WEIGHTS:
            elements += s.k * s.cg
        staging = PixelMatrix.workspace(problem.layout, problem.item_bytes, (m, s.k, s.p * s.q))
        padded = Padded.workspace(problem, m) if problem.pass_ is not Pass.BACKWARD_DATA else 0
        return elements * problem.item_bytes + staging + padded

    def load(self, w: np.ndarray) -> np.ndarray:
        """The filter, tap by tap contiguous."""
        self._xp.copyto(self._filters, as_taps(w, self._shape, self._layout))
        return self._filters

    def _slices(self, x: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """r, s, and what the windows of m images read through this tap: (G, m P Q, C/G)."""
        view, m = windows(self._pad(x), self._shape, self._layout), x.shape[0]
        images, matrix = self._slice.images(m), self._slice.matrix(m)
        for r in range(self._shape.r):
            for s in range(self._shape.s):
                self._xp.copyto(images, view[:, :, r, s] if self._layout == "nchw" else view[:, :, :, r, s])
                yield r, s, matrix

    def forward(self, x: np.ndarray, filters: np.ndarray, y: np.ndarray) -> None:
        """y = sum over taps of slice @ tap^T."""
        for begin, end in chunks(x.shape[0], self._images):
            images = y[begin:end]
            to, partial = self._y.view(images), self._sum.matrix(end - begin)
            for r, s, part in self._slices(x[begin:end]):
                if r == s == 0:
                    self._product(part, filters[r, s].swapaxes(1, 2), to)
                else:
                    self._product(part, filters[r, s].swapaxes(1, 2), partial)
                    self._xp.add(to, partial, out=to)
            self._y.store(images)

    def backward_data(self, dy: np.ndarray, filters: np.ndarray, dx: np.ndarray) -> None:
        """dx = sum over taps of dy @ tap, put where the tap read."""
        for begin, end in chunks(dy.shape[0], self._images):
            part = self._y.load(dy[begin:end])
            scatter_taps(part, filters, dx[begin:end], self._slice, self._shape, self._layout, self._product)

    def backward_weights(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        """Each tap of dw = dy^T @ slice, summed over the images."""
        for begin, end in chunks(x.shape[0], self._images):
            rows = self._y.load(dy[begin:end]).swapaxes(1, 2)
            for r, s, part in self._slices(x[begin:end]):
                if begin == 0:
                    self._product(rows, part, self._filters[r, s])
                else:
                    self._product(rows, part, self._sum_tap)
                    self._xp.add(self._filters[r, s], self._sum_tap, out=self._filters[r, s])
        self._xp.copyto(as_taps(dw, self._shape, self._layout), self._filters)
