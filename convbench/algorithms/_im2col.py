"""im2col: convolution as a matrix product with the matrix of all windows. The part that its variants share.

Chellapilla, Puri, Simard 2006, "High Performance Convolutional Neural Networks for Document Processing",
section 3; made popular by Caffe. With columns (G, pixels, taps), taps being the C/G * R * S elements of a window
in the order of the filter's own memory:

    forward            y (G, pixels, K/G)    = columns @ w^T
    backward data      columns               = dy @ w, then every column element is added to its place in dx
    backward weights   dw (G, K/G, taps)     = dy^T @ columns
"""

from __future__ import annotations

import numpy as np

from convbench.algorithms._window import (
    PIXELS_PER_PRODUCT,
    Padded,
    PixelMatrix,
    Product,
    chunks,
    images_per_product,
    is_pointwise,
    taps,
    windows,
)
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run

#: 1x1 layers of nchw images with fewer pixels than this join images, at the price of a copy, for wider products.
JOIN_BELOW_PIXELS = 256


class Columns:
    """The column matrix of some images and output rows, gathered from padded images or scattered into dx.

    Memory order is the layout's own: (C, R, S, m, rows, Q) for nchw, (m, rows, Q, G, R, S, C/G) for nhwc, and
    (m, rows, Q, R, S, C) for nhwc with `groups_inside`, which is for filters of one channel (depthwise).
    """

    def __init__(
        self, problem: Problem, context: Context, images: int, rows: int, groups_inside: bool = False
    ) -> None:
        self._xp = context.xp
        self._shape, self._layout, self._groups_inside = problem.shape, problem.layout, groups_inside
        self._flat = context.empty(Columns.workspace(problem, images, rows) // problem.item_bytes, problem.dtype)

    @staticmethod
    def workspace(problem: Problem, images: int, rows: int) -> int:
        """Bytes of the column matrix of `images` images and `rows` output rows."""
        s = problem.shape
        return images * rows * s.q * s.c * s.r * s.s * problem.item_bytes

    def windows(self, m: int, rows: int) -> np.ndarray:
        """The matrix element by element: (m, C, R, S, rows, Q) for nchw, (m, rows, Q, R, S, G, C/G) for nhwc."""
        s = self._shape
        flat = self._flat[: m * rows * s.q * s.c * s.r * s.s]
        if self._layout == "nchw":
            return flat.reshape(s.c, s.r, s.s, m, rows, s.q).transpose(3, 0, 1, 2, 4, 5)
        if self._groups_inside:
            return flat.reshape(m, rows, s.q, s.r, s.s, s.groups, s.cg)
        return flat.reshape(m, rows, s.q, s.groups, s.r, s.s, s.cg).transpose(0, 1, 2, 4, 5, 3, 6)

    def matrix(self, m: int, rows: int) -> np.ndarray:
        """(G, m * rows * Q, taps), a view."""
        s = self._shape
        pixels, length = m * rows * s.q, s.cg * s.r * s.s
        flat = self._flat[: pixels * s.groups * length]
        if self._layout == "nchw":
            return flat.reshape(s.groups, length, pixels).swapaxes(1, 2)
        if self._groups_inside:
            return flat.reshape(pixels, length, s.groups).transpose(2, 0, 1)
        return flat.reshape(pixels, s.groups, length).swapaxes(0, 1)

    def gather(self, padded: np.ndarray, first_row: int, rows: int) -> np.ndarray:
        """Copies the windows of output rows first_row ... of padded images (m, ...); gives `matrix`."""
        s, m = self._shape, padded.shape[0]
        source = windows(padded, s, self._layout)
        to, own = self.windows(m, rows), slice(first_row, first_row + rows)
        if self._layout == "nchw":
            self._xp.copyto(to, source[:, :, :, :, own])
        elif s.groups == 1 or self._groups_inside:  # same order on both sides: runs of S * C elements
            self._xp.copyto(self._flat[: to.size].reshape(m, rows, s.q, s.r, s.s, s.c), source[:, own])
        else:  # tap by tap the innermost loop runs over all channels, not over one group's
            split = source[:, own].reshape(to.shape)
            for r in range(s.r):
                for t in range(s.s):
                    self._xp.copyto(to[:, :, :, r, t], split[:, :, :, r, t])
        return self.matrix(m, rows)

    def scatter(self, dx: np.ndarray, first_row: int, rows: int) -> None:
        """Adds every element to its place in dx (m, ...); those that fall on padding are dropped (col2im)."""
        s, m = self._shape, dx.shape[0]
        source = self.windows(m, rows)
        grouped = dx if self._layout == "nchw" else dx.reshape(m, s.h, s.w, s.groups, s.cg)
        for tap in taps(s, first_row, rows):
            if self._layout == "nchw":
                to = grouped[:, :, *tap.source]
                part = source[:, :, tap.r, tap.s][:, :, *tap.out]
            else:
                to = grouped[:, *tap.source]
                part = source[:, :, :, tap.r, tap.s][:, *tap.out]
            self._xp.add(to, part, out=to)


class FilterMatrix:
    """A filter or its gradient as (G, K/G, taps): its own memory, a view, or with `groups_inside` a small copy
    whose innermost axis runs over the groups, as in `Columns`."""

    def __init__(self, problem: Problem, context: Context, groups_inside: bool = False) -> None:
        s, self._xp = problem.shape, context.xp
        self._sizes = (s.groups, s.kg, s.cg * s.r * s.s)
        self._turned = context.empty((self._sizes[2], s.groups), problem.dtype) if groups_inside else None

    def load(self, w: np.ndarray) -> np.ndarray:
        """The filter as (G, K/G, taps)."""
        if self._turned is not None:
            self._xp.copyto(self._turned, w.reshape(self._turned.T.shape).T)
        return self.view(w)

    def view(self, w: np.ndarray) -> np.ndarray:
        """(G, K/G, taps) to write to; `store` follows."""
        return w.reshape(self._sizes) if self._turned is None else self._turned.T[:, None]

    def store(self, dw: np.ndarray) -> None:
        """Puts what was written to `view(dw)` into dw."""
        if self._turned is not None:
            self._xp.copyto(dw.reshape(self._turned.T.shape), self._turned.T)


class Im2col:
    """A plan: buffers for one problem, and the three passes over a given matrix product.

    `product(a, b, out)` multiplies batches (G, M, K) @ (G, K, N) whose matrices are stored by rows or by columns.
    With `vectorised_depthwise` nhwc filters of one channel get columns whose innermost axis runs over the groups,
    and the product must take those as well (`_window.product` does). pixels: that a product should have.
    """

    def __init__(
        self,
        problem: Problem,
        context: Context,
        product: Product,
        vectorised_depthwise: bool = False,
        pixels: int = PIXELS_PER_PRODUCT,
    ) -> None:
        shape, layout, dtype = problem.shape, problem.layout, problem.dtype
        self._xp, self._problem, self._product = context.xp, problem, product
        self._images = images = images_of_problem(problem, pixels)
        self._pointwise = is_pointwise(shape)
        self._y = PixelMatrix(layout, dtype, shape.groups, (images, shape.k, shape.p * shape.q), context)
        depthwise = vectorised_depthwise and is_depthwise_nhwc(problem)
        self._filter = FilterMatrix(problem, context, groups_inside=depthwise)
        self._partial = None
        if problem.pass_ is Pass.BACKWARD_WEIGHTS and shape.n > images:
            self._partial = context.empty(problem.out_shape, dtype)
        if self._pointwise:
            self._x = PixelMatrix(layout, dtype, shape.groups, (images, shape.c, shape.h * shape.w), context)
            return
        self._columns = Columns(problem, context, images, shape.p, groups_inside=depthwise)
        if problem.pass_ is not Pass.BACKWARD_DATA:
            self._pad = Padded(problem, context, images)

    @staticmethod
    def workspace(problem: Problem, pixels: int = PIXELS_PER_PRODUCT) -> int:
        """Bytes of all buffers."""
        shape, layout, item = problem.shape, problem.layout, problem.item_bytes
        images = images_of_problem(problem, pixels)
        total = PixelMatrix.workspace(layout, item, (images, shape.k, shape.p * shape.q))
        if problem.pass_ is Pass.BACKWARD_WEIGHTS and shape.n > images:
            total += shape.k * shape.cg * shape.r * shape.s * item
        if is_pointwise(shape):
            return total + PixelMatrix.workspace(layout, item, (images, shape.c, shape.h * shape.w))
        if problem.pass_ is not Pass.BACKWARD_DATA:
            total += Padded.workspace(problem, images)
        return total + Columns.workspace(problem, images, shape.p)

    def run(self) -> Run:
        """The problem's pass as run(a, b, out)."""
        return {
            Pass.FORWARD: self.forward,
            Pass.BACKWARD_DATA: self.backward_data,
            Pass.BACKWARD_WEIGHTS: self.backward_weights,
        }[self._problem.pass_]

    def forward(self, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
        """y = columns(x) @ w^T, some images at a time."""
        weights = self._filter.load(w)
        for begin, end in chunks(x.shape[0], self._images):
            to = y[begin:end]
            self._product(self._gather(x[begin:end]), weights.swapaxes(1, 2), self._y.view(to))
            self._y.store(to)

    def backward_data(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        """dx = scattered sum of dy @ w, some images at a time."""
        weights = self._filter.load(w)
        for begin, end in chunks(dy.shape[0], self._images):
            rows, to = self._y.load(dy[begin:end]), dx[begin:end]
            if self._pointwise:
                self._product(rows, weights, self._x.view(to))
                self._x.store(to)
            else:
                shape = self._problem.shape
                self._product(rows, weights, self._columns.matrix(end - begin, shape.p))
                to.fill(0)
                self._columns.scatter(to, 0, shape.p)

    def backward_weights(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        """dw = sum over the images of dy^T @ columns(x)."""
        for begin, end in chunks(x.shape[0], self._images):
            to = dw if begin == 0 else self._partial
            assert to is not None
            rows, columns = self._y.load(dy[begin:end]), self._gather(x[begin:end])
            self._product(rows.swapaxes(1, 2), columns, self._filter.view(to))
            self._filter.store(to)
            if begin:
                self._xp.add(dw, to, out=dw)

    def _gather(self, x: np.ndarray) -> np.ndarray:
        """The columns of some images: (G, pixels, taps)."""
        if self._pointwise:
            return self._x.load(x)
        return self._columns.gather(self._pad(x), 0, self._problem.shape.p)


def is_depthwise_nhwc(problem: Problem) -> bool:
    """One channel to one channel in nhwc: no matrix that BLAS could read."""
    s = problem.shape
    return problem.layout == "nhwc" and s.groups > 1 and s.cg == s.kg == 1


def images_of_problem(problem: Problem, pixels: int = PIXELS_PER_PRODUCT) -> int:
    """Images per product; a 1x1 layer needs no columns, so that joining images is free (nhwc) or costs (nchw)."""
    shape = problem.shape
    if is_pointwise(shape):
        if problem.layout == "nhwc":
            return shape.n
        if shape.p * shape.q >= JOIN_BELOW_PIXELS:
            return 1
    return images_per_product(shape, pixels)
