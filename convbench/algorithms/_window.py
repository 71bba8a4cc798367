"""Window arithmetic that the direct and GEMM-based algorithms share: padding, strided windows, taps, products.

Matrices come as batches over groups in "pixels first" form: (G, pixels, channels). Whatever the layout, that is a
view: of an nhwc array's rows, or of the transpose of an nchw image. BLAS reads either order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from convbench.devices.arrays import as_strided, matmul_of
from convbench.problem import ConvShape, Pair, Problem
from convbench.registry import Context

#: A product this wide is as fast on a CPU as a wider one; more images per product would only cost memory.
PIXELS_PER_PRODUCT = 4096

Product = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def images_per_product(shape: ConvShape, pixels: int = PIXELS_PER_PRODUCT) -> int:
    """How many images to take together: enough for so many output pixels, at most all."""
    return min(shape.n, -(-pixels // (shape.p * shape.q)))


def chunks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of at most `size` that cover range(total)."""
    for begin in range(0, total, size):
        yield begin, min(begin + size, total)


def read_size(shape: ConvShape) -> Pair:
    """Height and width of the padded input that some window reads."""
    return (
        (shape.p - 1) * shape.stride[0] + shape.extent[0],
        (shape.q - 1) * shape.stride[1] + shape.extent[1],
    )


def needs_padding(shape: ConvShape) -> bool:
    """Whether some window reaches outside the image."""
    height, width = read_size(shape)
    return shape.padding[0] > 0 or shape.padding[2] > 0 or height > shape.h or width > shape.w


def is_pointwise(shape: ConvShape) -> bool:
    """1x1, dense and unpadded: the columns are the input itself."""
    same = (shape.p, shape.q) == (shape.h, shape.w)
    return shape.r == shape.s == 1 and shape.stride == (1, 1) and same and not needs_padding(shape)


class Padded:
    """Copies images into a zero-bordered workspace; without padding it hands them on untouched.

    The borders are zeroed once, here: a call writes the interior only. The copy is (images, C, H', W') for
    "nchw" and (images, H', W', C) for "nhwc", H' and W' being `read_size`.
    """

    def __init__(self, problem: Problem, context: Context, images: int) -> None:
        shape = problem.shape
        self._xp = context.xp
        self._needed = needs_padding(shape)
        if not self._needed:
            return
        top, _, left, _ = shape.padding
        height, width = read_size(shape)
        rows, cols = max(0, min(shape.h, height - top)), max(0, min(shape.w, width - left))
        sizes = (images, shape.c, height, width) if problem.layout == "nchw" else (images, height, width, shape.c)
        self._buffer = context.empty(sizes, problem.dtype)
        self._buffer.fill(0)
        to, source = np.s_[top : top + rows, left : left + cols], np.s_[:rows, :cols]
        self._to = np.s_[:, :, *to] if problem.layout == "nchw" else np.s_[:, *to]
        self._source = np.s_[:, :, *source] if problem.layout == "nchw" else np.s_[:, *source]

    @staticmethod
    def workspace(problem: Problem, images: int) -> int:
        """Bytes of the zero-bordered copy."""
        height, width = read_size(problem.shape)
        size = images * problem.shape.c * height * width * problem.item_bytes
        return size if needs_padding(problem.shape) else 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x (m, C, H, W) or (m, H, W, C), m at most `images`, with its padding around it."""
        if not self._needed:
            return x
        padded = self._buffer[: x.shape[0]]
        self._xp.copyto(padded[self._to], x[self._source])
        return padded


def windows(padded: np.ndarray, shape: ConvShape, layout: str) -> np.ndarray:
    """Every window of padded images as a read-only view: (m, C, R, S, P, Q) for nchw, (m, P, Q, R, S, C) for nhwc."""
    (sh, sw), (dh, dw) = shape.stride, shape.dilation
    m = padded.shape[0]
    if layout == "nchw":
        im, ch, row, col = padded.strides
        sizes = (m, shape.c, shape.r, shape.s, shape.p, shape.q)
        steps = (im, ch, row * dh, col * dw, row * sh, col * sw)
    else:
        im, row, col, ch = padded.strides
        sizes = (m, shape.p, shape.q, shape.r, shape.s, shape.c)
        steps = (im, row * sh, col * sw, row * dh, col * dw, ch)
    return as_strided(padded, sizes, steps)


def inside(size: int, outputs: int, offset: int, stride: int) -> tuple[slice, slice] | None:
    """Outputs i whose input i * stride + offset lies in range(size), and those inputs; None when there are none."""
    first = max(0, -(offset // stride))  # ceil(-offset / stride)
    last = min(outputs - 1, (size - 1 - offset) // stride)
    if last < first:
        return None
    begin = first * stride + offset
    return slice(first, last + 1), slice(begin, last * stride + offset + 1, stride)


@dataclass(frozen=True)
class Tap:
    """One filter tap: which outputs read an input inside the image through it, and which inputs they read."""

    r: int
    s: int
    out: tuple[slice, slice]
    source: tuple[slice, slice]


def taps(shape: ConvShape, first_row: int = 0, rows: int | None = None) -> Iterator[Tap]:
    """The taps that reach the image from output rows first_row, first_row + 1, ... (rows of them; default all).

    `Tap.out` counts rows from first_row.
    """
    rows = shape.p - first_row if rows is None else rows
    (sh, sw), (dh, dw) = shape.stride, shape.dilation
    for r in range(shape.r):
        down = inside(shape.h, rows, first_row * sh + r * dh - shape.padding[0], sh)
        for s in range(shape.s):
            right = inside(shape.w, shape.q, s * dw - shape.padding[2], sw)
            if down and right:
                yield Tap(r, s, (down[0], right[0]), (down[1], right[1]))


class PixelMatrix:
    """Images with K channels as (G, pixels, K/G), without a copy where the layout allows it.

    nhwc, and nchw one image at a time, are views. Several nchw images go through a staging buffer
    (G, K/G, m, PQ): `load` copies in, `store` copies out.
    """

    def __init__(self, layout: str, dtype: str, groups: int, sizes: tuple[int, int, int], context: Context) -> None:
        images, self._channels, self._pixels = sizes
        self._xp, self._layout, self._groups = context.xp, layout, groups
        self._stage = None
        if layout == "nchw" and images > 1:
            self._stage = context.empty(images * self._channels * self._pixels, dtype)

    @staticmethod
    def workspace(layout: str, item_bytes: int, sizes: tuple[int, int, int]) -> int:
        """Bytes of the staging buffer for sizes (images, channels, pixels)."""
        images, channels, pixels = sizes
        return images * channels * pixels * item_bytes if layout == "nchw" and images > 1 else 0

    def view(self, images: np.ndarray) -> np.ndarray:
        """(G, pixels, K/G) to write to (then `store`), or what `load` filled."""
        m, g = images.shape[0], self._groups
        per_group = self._channels // g
        if self._layout == "nhwc":
            return images.reshape(m * self._pixels, g, per_group).transpose(1, 0, 2)
        if self._staged(m):
            return self._staging(m).reshape(g, per_group, -1).transpose(0, 2, 1)
        return images.reshape(g, per_group, self._pixels).transpose(0, 2, 1)

    def load(self, images: np.ndarray) -> np.ndarray:
        """The images as (G, pixels, K/G)."""
        if self._staged(images.shape[0]):
            self._xp.copyto(self._staging(images.shape[0]), self._channels_first(images))
        return self.view(images)

    def store(self, images: np.ndarray) -> None:
        """Puts what was written to `view(images)` into the images."""
        if self._staged(images.shape[0]):
            self._xp.copyto(self._channels_first(images), self._staging(images.shape[0]))

    def _staged(self, m: int) -> bool:
        return self._stage is not None and m > 1

    def _staging(self, m: int) -> np.ndarray:
        assert self._stage is not None
        size = m * self._channels * self._pixels
        return self._stage[:size].reshape(self._channels, m, self._pixels)  # (K, m, PQ)

    def _channels_first(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(images.shape[0], self._channels, self._pixels).swapaxes(0, 1)  # (K, m, PQ)


class Scratch:
    """Images of our own, stored so that they are one matrix: (C, m, H, W) for nchw, (m, H, W, C) for nhwc."""

    def __init__(
        self, layout: str, dtype: str, groups: int, sizes: tuple[int, int, int], images: int, context: Context
    ) -> None:
        self.xp, self._layout, self._groups, self._sizes = context.xp, layout, groups, sizes
        self._flat = context.empty(images * sizes[0] * sizes[1] * sizes[2], dtype)

    def images(self, m: int, height: int = 0, width: int = 0) -> np.ndarray:
        """A view of m images as (m, C, H, W) or (m, H, W, C); height and width at most the given ones."""
        channels, height, width = self._sizes[0], height or self._sizes[1], width or self._sizes[2]
        flat = self._flat[: m * channels * height * width]
        if self._layout == "nchw":
            return flat.reshape(channels, m, height, width).swapaxes(0, 1)
        return flat.reshape(m, height, width, channels)

    def matrix(self, m: int, height: int = 0, width: int = 0) -> np.ndarray:
        """The same elements as (G, m * height * width, C/G)."""
        channels, height, width = self._sizes[0], height or self._sizes[1], width or self._sizes[2]
        pixels, per_group = m * height * width, channels // self._groups
        flat = self._flat[: pixels * channels]
        if self._layout == "nchw":
            return flat.reshape(self._groups, per_group, pixels).swapaxes(1, 2)
        return flat.reshape(pixels, self._groups, per_group).swapaxes(0, 1)


def area(images: np.ndarray, layout: str, rows: slice, cols: slice) -> np.ndarray:
    """A rectangle of (m, C, H, W) or (m, H, W, C) images."""
    return images[:, :, rows, cols] if layout == "nchw" else images[:, rows, cols]


def scatter_taps(
    dy: np.ndarray, filters: np.ndarray, dx: np.ndarray, scratch: Scratch, shape: ConvShape, layout: str,
    multiply: Product,
) -> None:  # fmt: skip
    """dx (m images) = sum over taps of dy @ filter tap, shifted to where the tap read.

    dy (G, m P Q, K/G); filters (R, S, G, K/G, C/G); scratch of P x Q images with C channels.
    """
    m = dx.shape[0]
    dx.fill(0)
    for tap in taps(shape):
        multiply(dy, filters[tap.r, tap.s], scratch.matrix(m))
        to = area(dx, layout, *tap.source)
        scratch.xp.add(to, area(scratch.images(m), layout, *tap.out), out=to)


def as_taps(array: np.ndarray, shape: ConvShape, layout: str) -> np.ndarray:
    """A filter array as (R, S, G, K/G, C/G), a view."""
    if layout == "nchw":
        split = array.reshape(shape.groups, shape.kg, shape.cg, shape.r, shape.s)
        return split.transpose(3, 4, 0, 1, 2)
    return array.reshape(shape.groups, shape.kg, shape.r, shape.s, shape.cg).transpose(2, 3, 0, 1, 4)


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out[g] = a[g] @ b[g] for (G, M, K), (G, K, N), (G, M, N), the fastest way that NumPy has for the sizes.

    Sums over one term are a multiplication. What BLAS cannot read (both strides of a matrix above one element,
    as where a group is one channel of nhwc) goes to einsum, which vectorises over the groups. A result that is
    stored by columns is computed as the transposed product.
    """
    if a.shape[2] == 1:
        np.multiply(a, b, out=out)
    elif a.shape[0] > 1 and not (is_matrix(a) and is_matrix(b) and is_matrix(out)):
        np.einsum("gmk,gkn->gmn", a, b, out=out)
    elif is_transposed(out):
        np.matmul(b.swapaxes(1, 2), a.swapaxes(1, 2), out=out.swapaxes(1, 2))
    else:
        np.matmul(a, b, out=out)


def product_of(context: Context) -> Product:
    """`product`, or the same on the arrays of another library than NumPy, whose BLAS reads every batch."""
    xp = context.xp
    if xp is np:
        return product
    matmul = matmul_of(xp)

    def on_device(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if a.shape[2] == 1:
            xp.multiply(a, b, out=out)
        else:
            matmul(a, b, out=out)

    return on_device


def is_matrix(array: np.ndarray) -> bool:
    """Whether BLAS can read the matrices of a batch: rows or columns contiguous."""
    return array.itemsize in (array.strides[-1], array.strides[-2]) or array.shape[-1] == array.shape[-2] == 1


def is_transposed(array: np.ndarray) -> bool:
    """Whether the matrices of a batch are stored by columns."""
    by_rows = array.strides[-1] == array.itemsize or array.shape[-1] == 1
    return not by_rows and (array.strides[-2] == array.itemsize or array.shape[-2] == 1)
