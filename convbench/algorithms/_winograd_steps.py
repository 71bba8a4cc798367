"""The four steps of Winograd convolution on NumPy's or CuPy's arrays: tiles in, filter in, products, tiles out.

Lavin and Gray, arXiv 1509.09308, section 4: Y = A^T [(G g G^T) * (B^T d B)] A, summed over channels, which
makes the middle step alpha^2 matrix products. Both sides of B^T d B are BLAS products over strided windows, so
overlapping tiles are never gathered: first B^T over rows, (alpha x taps) by (taps x whole row), then over
columns, (alpha x taps) by (taps x C). Inside, channels come last; an nchw operand is turned block by block
while it is copied into the padded strip, and an nchw result comes out of the last product already turned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convbench.algorithms._cook_toom import Matrix, as_array, kron_array
from convbench.devices.arrays import as_strided, matmul_of
from convbench.registry import Context

_LINE_BYTES = 64
_FEWEST_CHANNELS_TO_TURN = 16
_TURN_ELEMENTS = 1 << 16


def plane_size(n: int, item_bytes: int) -> int:
    """Elements from one frequency to the next for planes of n: an odd number of cache lines.

    alpha^2 planes are written side by side; a power of two between them would put them all in one cache set.
    """
    lines = -(-n * item_bytes // _LINE_BYTES) | 1
    return lines * _LINE_BYTES // item_bytes


@dataclass(frozen=True)
class Tiling:
    """How the tiles of a batch are cut into blocks: `images` x `rows` rows of tiles x all `across` columns."""

    n: int  # images in the batch
    down: int  # rows of tiles in an image
    across: int  # tiles in a row
    images: int  # per block
    rows: int  # per block

    @classmethod
    def cut(cls, n: int, down: int, across: int, target: int) -> Tiling:
        """Blocks of about `target` tiles and nearly equal size; small images are taken several at a time."""
        if down * across >= target:
            wanted = max(1, -(-target // across))
            return cls(n, down, across, 1, -(-down // -(-down // wanted)))
        wanted = min(n, -(-target // (down * across)))
        return cls(n, down, across, -(-n // -(-n // wanted)), down)

    @property
    def most(self) -> int:
        """Tiles of the largest block."""
        return self.images * self.rows * self.across

    @property
    def total(self) -> int:
        """Tiles of the whole batch."""
        return self.n * self.down * self.across

    def blocks(self) -> list[tuple[int, int, int, int]]:
        """(first image, images, first row of tiles, rows) of every block."""
        return [
            (n, min(self.images, self.n - n), row, min(self.rows, self.down - row))
            for n in range(0, self.n, self.images)
            for row in range(0, self.down, self.rows)
        ]


@dataclass(frozen=True)
class Source:
    """A padded image batch that is read in tiles of `taps` x `taps`, `step` apart, and transformed.

    `begin` is (top, left) padding; negative padding crops, and everything outside the image is zero.
    """

    layout: str
    channels: int
    size: tuple[int, int]
    begin: tuple[int, int]
    matrix: Matrix  # (alpha, taps)
    step: int

    @property
    def taps(self) -> int:
        """Height and width of a tile."""
        return len(self.matrix[0])

    @property
    def alpha(self) -> int:
        """Height and width of a transformed tile."""
        return len(self.matrix)

    def strip_shape(self, tiling: Tiling) -> tuple[int, int, int, int]:
        """Largest block of the padded input: (images, height, width, C)."""
        height = (tiling.rows - 1) * self.step + self.taps
        return (tiling.images, height, (tiling.across - 1) * self.step + self.taps, self.channels)

    def half_shape(self, tiling: Tiling) -> tuple[int, int]:
        """Strip after the transform of rows: (images x rows of tiles, alpha x width x C)."""
        width = self.strip_shape(tiling)[2]
        return (tiling.images * tiling.rows, self.alpha * width * self.channels)

    def tiles_shape(self, tiling: Tiling, item_bytes: int) -> tuple[int, int]:
        """Transformed tiles: (alpha^2, plane), of which the first T x C elements of a plane are used."""
        return (self.alpha**2, plane_size(tiling.most * self.channels, item_bytes))


class TileReader:
    """Source -> V of shape (alpha^2, T, C), one block of tiles at a time."""

    def __init__(self, source: Source, tiling: Tiling, dtype: str, context: Context) -> None:
        self._source, self._tiling = source, tiling
        self._xp, self._matmul = context.xp, matmul_of(context.xp)
        self._matrix = context.xp.asarray(self.matrix(source, dtype))
        for_strip, for_half, for_tiles = self.shapes(source, tiling, np.dtype(dtype).itemsize)
        self._strip = context.empty(for_strip, dtype)
        self._strip.fill(0)  # the columns left and right of the image stay zero
        self._half = context.empty(for_half, dtype)
        self._tiles = context.empty(for_tiles, dtype)
        self._views = functools.cache(self._make_views)

    @staticmethod
    def matrix(source: Source, dtype: str) -> np.ndarray:
        """What a transform multiplies with."""
        return as_array(source.matrix, dtype)

    @staticmethod
    def shapes(source: Source, tiling: Tiling, item_bytes: int) -> tuple[tuple[int, ...], ...]:
        """Buffers: the padded block, half-way, and transformed."""
        return source.strip_shape(tiling), source.half_shape(tiling), source.tiles_shape(tiling, item_bytes)

    @staticmethod
    def flops(source: Source, tiling: Tiling) -> float:
        """Operations of all blocks."""
        width = (tiling.across - 1) * source.step + source.taps
        rows = tiling.n * tiling.down * source.alpha * source.taps * width
        return 2.0 * source.channels * (rows + tiling.total * source.alpha**2 * source.taps)

    def read(self, array: np.ndarray, first: int, images: int, row: int, rows: int) -> np.ndarray:
        """Transformed tiles (alpha^2, T, C) of `images` images and `rows` rows of tiles."""
        self._fill(array, first, images, row, rows)
        bands, half, windows, spread, tiles = self._views(images, rows)
        self._matmul(self._matrix, bands, out=half)
        self._matmul(self._matrix, windows, out=spread)
        return tiles

    def _fill(self, array: np.ndarray, first: int, images: int, row: int, rows: int) -> None:
        """Copies the block's rows into the strip, zeros where they lie outside the image."""
        source = self._source
        height, width = source.size
        strip = self._strip[:images, : (rows - 1) * source.step + source.taps]
        top, left = row * source.step - source.begin[0], -source.begin[1]
        y0, y1 = _inside(top, strip.shape[1], height)
        x0, x1 = _inside(left, strip.shape[2], width)
        strip[:, : y0 - top] = 0
        strip[:, y1 - top :] = 0
        if y0 == y1 or x0 == x1:
            return
        if source.layout == "nchw":
            block = array[first : first + images, :, y0:y1, x0:x1].transpose(0, 2, 3, 1)
        else:
            block = array[first : first + images, y0:y1, x0:x1]
        strip[:, y0 - top : y1 - top, x0 - left : x1 - left] = block  # (images, height, width, C)

    def _make_views(self, images: int, rows: int) -> tuple[np.ndarray, ...]:
        """bands and half, windows and spread: operand and result of the transform of rows and of columns."""
        source, across = self._source, self._tiling.across
        step, taps, alpha, c = source.step, source.taps, source.alpha, source.channels
        width = self._strip.shape[2]
        s_image, s_row, _, s_item = self._strip.strides
        bands = as_strided(
            self._strip, (images, rows, taps, width * c), (s_image, step * s_row, s_row, s_item)
        )
        half = self._half[: images * rows].reshape(images, rows, alpha, width * c)
        s_image, s_row, s_alpha, s_item = half.strides
        windows = as_strided(
            half,
            (alpha, images, rows, across, taps, c),
            (s_alpha, s_image, s_row, step * c * s_item, c * s_item, s_item),
        )
        t = images * rows * across
        tiles = self._tiles[:, : t * c].reshape(alpha * alpha, t, c)
        spread = tiles.reshape(alpha, alpha, images, rows, across, c)
        return bands, half, windows, spread.transpose(0, 2, 3, 4, 1, 5), tiles


def _inside(start: int, length: int, size: int) -> tuple[int, int]:
    """The part of start .. start + length that lies in 0 .. size; both ends within the former."""
    low = min(max(start, 0), start + length)
    return low, max(low, min(start + length, size))


class TileWriter:
    """Sums of products (alpha^2, T, K), for nchw (alpha^2, K, T) -> m x m tiles of the result."""

    def __init__(
        self,
        layout: str,
        channels: int,
        size: tuple[int, int],
        at: Matrix,
        tiling: Tiling,
        dtype: str,
        context: Context,
    ) -> None:
        self._layout, self._k, self._size, self._tiling = layout, channels, size, tiling
        self._xp, self._matmul = context.xp, matmul_of(context.xp)
        self._matrix = context.xp.asarray(self.matrix(at, dtype))
        self._m, self._alpha = len(at), len(at[0])
        sizes = self.shapes(channels, at, tiling, np.dtype(dtype).itemsize)
        self._products, *self._between, self._tiles = (context.empty(size, dtype) for size in sizes)
        self._views = functools.cache(self._make_views)

    @staticmethod
    def matrix(at: Matrix, dtype: str) -> np.ndarray:
        """(m, alpha)."""
        return as_array(at, dtype)

    @staticmethod
    def shapes(channels: int, at: Matrix, tiling: Tiling, item_bytes: int) -> tuple[tuple[int, ...], ...]:
        """Buffers: products (alpha^2, plane), half-way (m x alpha, plane), tiles (m, T x m x K)."""
        m, alpha = len(at), len(at[0])
        plane = plane_size(tiling.most * channels, item_bytes)
        return (alpha**2, plane), (m * alpha, plane), (m, tiling.most * m * channels)

    @staticmethod
    def flops(channels: int, at: Matrix, tiling: Tiling) -> float:
        """Operations of all blocks."""
        m, alpha = len(at), len(at[0])
        return 2.0 * tiling.total * channels * m * alpha * (alpha + m)

    def products(self, images: int, rows: int) -> np.ndarray:
        """Where the block's products go: (alpha^2, T, K), for nchw (alpha^2, K, T)."""
        return self._views(images, rows)[0]

    def write(self, out: np.ndarray, first: int, images: int, row: int, rows: int) -> None:
        """A^T M A of the block, cropped to the result."""
        _, columns, half, turned, tiles, placed = self._views(images, rows)
        self._matmul(self._matrix, columns, out=half)
        if self._layout == "nchw":
            self._matmul(turned, self._matrix.T, out=tiles)
        else:
            self._matmul(self._matrix, turned, out=tiles)
        m, width = self._m, self._size[1]
        for i in range(m):
            top = row * m + i
            if self._layout == "nchw":
                into = out[first : first + images, :, top : top + (rows - 1) * m + 1 : m].transpose(1, 0, 2, 3)
                into[...] = placed[i][:, :, : into.shape[2], :width]  # (K, images, rows, Q)
            else:
                into = out[first : first + images, top : top + (rows - 1) * m + 1 : m]
                into[...] = placed[i][:, : into.shape[1], :width]  # (images, rows, Q, K)

    def _make_views(self, images: int, rows: int) -> tuple[np.ndarray, ...]:
        m, alpha, k, across = self._m, self._alpha, self._k, self._tiling.across
        t = images * rows * across
        inner = self._products[:, : t * k]
        columns = inner.reshape(alpha, alpha, t * k).transpose(1, 0, 2)  # (column, row, T K)
        half = self._between[0][:, : t * k].reshape(m, alpha, t * k)  # (i, column, T K)
        flat = self._tiles[:, : t * m * k]
        if self._layout == "nchw":
            products = inner.reshape(alpha * alpha, k, t)
            tiles = flat.reshape(m, k * t, m)
            turned = half.transpose(0, 2, 1)  # (i, K T, column)
            placed = flat.reshape(m, k, images, rows, across * m)
        else:
            products = inner.reshape(alpha * alpha, t, k)
            tiles = flat.reshape(m, t, m, k)
            turned = half.reshape(m, alpha, t, k).transpose(0, 2, 1, 3)  # (i, T, column, K)
            placed = flat.reshape(m, images, rows, across * m, k)
        return products, columns, half.transpose(1, 0, 2), turned, tiles, placed


def filter_planes(shape: tuple[int, int, int], alpha: int, item_bytes: int) -> tuple[int, int]:
    """Buffer for a transformed filter of (G, K/G, C/G): (alpha^2, plane)."""
    return (alpha**2, plane_size(shape[0] * shape[1] * shape[2], item_bytes))


class FilterReader:
    """w -> U of shape (alpha^2, G, K/G, C/G), products with the Kronecker square of G, a filter at a time.

    An nchw filter is turned to (r^2, C/G) a few filters at a time: 2.5 times faster than one large product
    with a transposed operand (512 x 512 filters of 3x3, OpenBLAS 0.3.31, AVX-512, one thread, 2026-11).
    """

    def __init__(
        self,
        layout: str,
        shape: tuple[int, int, int],
        g: Matrix,
        rotate: bool,
        dtype: str,
        context: Context,
        turn: tuple[int, ...],
    ) -> None:
        groups, kg, cg = shape
        turned = tuple(row[::-1] for row in g) if rotate else g
        self._matmul = matmul_of(context.xp)
        self._matrix = context.xp.asarray(kron_array(turned, dtype))  # (alpha^2, r^2)
        alpha2, self._taps = self._matrix.shape
        self._k, self._cg = groups * kg, cg
        plane = context.empty(filter_planes(shape, len(g), np.dtype(dtype).itemsize), dtype)
        self._plane = plane[:, : self._k * cg]
        self._by_filter = self._plane.reshape(alpha2, self._k, cg).transpose(1, 0, 2)
        self.transformed = self._plane.reshape(alpha2, groups, kg, cg)
        self._turn = context.empty(turn, dtype) if turn else None
        self._flat = cg == 1 or (layout == "nchw" and not turn)

    @staticmethod
    def turn_shape(layout: str, shape: tuple[int, int, int], taps: int) -> tuple[int, ...]:
        """The argument `turn`, a buffer for filters (some at a time, r^2, C/G); () where turning does not pay."""
        groups, kg, cg = shape
        if layout != "nchw" or cg < _FEWEST_CHANNELS_TO_TURN:
            return ()
        return (min(groups * kg, max(1, _TURN_ELEMENTS // (taps * cg))), taps, cg)

    def read(self, w: np.ndarray) -> None:
        """Fills `transformed`."""
        if self._turn is not None:
            filters = w.reshape(self._k, self._cg, self._taps).transpose(0, 2, 1)  # (K, r^2, C/G)
            for k in range(0, self._k, len(self._turn)):
                turned = self._turn[: self._k - k]
                turned[...] = filters[k : k + len(turned)]
                self._matmul(self._matrix, turned, out=self._by_filter[k : k + len(turned)])
        elif self._flat:
            self._matmul(self._matrix, w.reshape(-1, self._taps).T, out=self._plane)  # (alpha^2, K C/G)
        else:
            self._matmul(self._matrix, w.reshape(self._k, self._taps, self._cg), out=self._by_filter)


class FilterWriter:
    """Sums of products (alpha^2, G, K/G, C/G) -> gradient of the filter, one product with A^T squared."""

    def __init__(self, layout: str, shape: tuple[int, int, int], at: Matrix, dtype: str, context: Context) -> None:
        groups, kg, cg = shape
        self._matmul = matmul_of(context.xp)
        self._matrix = context.xp.asarray(kron_array(at, dtype))  # (r^2, alpha^2)
        self._taps, alpha2 = self._matrix.shape
        self._k, self._cg = groups * kg, cg
        self._nchw = layout == "nchw"
        plane = context.empty(filter_planes(shape, len(at[0]), np.dtype(dtype).itemsize), dtype)
        self._plane = plane[:, : self._k * cg]
        self._by_filter = self._plane.reshape(alpha2, self._k, cg).transpose(1, 0, 2)
        self.products = self._plane.reshape(alpha2, groups, kg, cg)

    def write(self, out: np.ndarray) -> None:
        """A^T M A into dw."""
        if self._cg == 1:
            self._matmul(self._plane.T, self._matrix.T, out=out.reshape(self._k, self._taps))
        elif self._nchw:
            turned = self._by_filter.transpose(0, 2, 1)  # (K, C/G, alpha^2)
            self._matmul(turned, self._matrix.T, out=out.reshape(self._k, self._cg, self._taps))
        else:
            self._matmul(self._matrix, self._by_filter, out=out.reshape(self._k, self._taps, self._cg))


#: left (alpha^2, G, rows, inner) @ right (alpha^2, G, inner, columns) -> out, or added to out
Multiply = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], None]


def multiply_depthwise(left: np.ndarray, right: np.ndarray, out: np.ndarray, add: bool) -> None:
    """Products of groups that have one channel on both sides: no matrices, so element by element.

    Sums over tiles (an inner dimension above 1) go through einsum, an outer product is a plain one.
    """
    if left.shape[3] == 1:
        np.multiply(left, right, out=out)
    elif add:
        out[..., 0, 0] += np.einsum("fgit,fgtj->fg", left, right)
    else:
        np.einsum("fgit,fgtj->fg", left, right, out=out[..., 0, 0])
