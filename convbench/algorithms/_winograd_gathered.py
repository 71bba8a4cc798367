"""Tiles of Winograd convolution in and out with one product each: gathered, then both sides of B^T d B at once.

Lavin and Gray, arXiv 1509.09308, section 4. vec(B^T d B) = (B (x) B)^T vec(d), the Kronecker square: alpha^2 x taps^2
operations an element where rows and columns apart take alpha (taps + alpha) or so, and the overlap of the tiles is
copied. In return a block takes one copy and one product of large matrices instead of a product for each row and column
of tiles, which is what a GPU wants. In `_winograd_steps.py` the transforms for a CPU.
"""

from __future__ import annotations

import numpy as np

from convbench.algorithms._cook_toom import Matrix, kron_array
from convbench.algorithms._winograd_steps import Source, TileReader, TileWriter, Tiling, plane_size
from convbench.devices.arrays import as_strided


class GatheredReader(TileReader):
    """Source -> V of shape (alpha^2, T, C); half-way are the tiles themselves, (taps^2, T, C)."""

    @staticmethod
    def matrix(source: Source, dtype: str) -> np.ndarray:
        """(alpha^2, taps^2)."""
        return kron_array(source.matrix, dtype)

    @staticmethod
    def shapes(source: Source, tiling: Tiling, item_bytes: int) -> tuple[tuple[int, ...], ...]:
        """Buffers: the padded block, its tiles, and their transforms."""
        plane = plane_size(tiling.most * source.channels, item_bytes)
        return source.strip_shape(tiling), (source.taps**2, plane), source.tiles_shape(tiling, item_bytes)

    @staticmethod
    def flops(source: Source, tiling: Tiling) -> float:
        """Operations of all blocks."""
        return 2.0 * source.channels * tiling.total * source.alpha**2 * source.taps**2

    def read(self, array: np.ndarray, first: int, images: int, row: int, rows: int) -> np.ndarray:
        """Transformed tiles (alpha^2, T, C) of `images` images and `rows` rows of tiles."""
        self._fill(array, first, images, row, rows)
        windows, gathered, flat, transformed, tiles = self._views(images, rows)
        self._xp.copyto(gathered, windows)
        self._matmul(self._matrix, flat, out=transformed)
        return tiles

    def _make_views(self, images: int, rows: int) -> tuple[np.ndarray, ...]:
        """The tiles in the strip and where they go; operand and result of the product, and the result by tile."""
        source, across = self._source, self._tiling.across
        step, taps, alpha, c = source.step, source.taps, source.alpha, source.channels
        s_image, s_row, s_column, s_item = self._strip.strides
        windows = as_strided(
            self._strip,
            (taps, taps, images, rows, across, c),
            (s_row, s_column, s_image, step * s_row, step * s_column, s_item),
        )
        t = images * rows * across
        flat, transformed = self._half[:, : t * c], self._tiles[:, : t * c]  # (taps^2, T C), (alpha^2, T C)
        gathered = flat.reshape(taps, taps, images, rows, across, c)
        return windows, gathered, flat, transformed, transformed.reshape(alpha * alpha, t, c)


class GatheredWriter(TileWriter):
    """Sums of products (alpha^2, T, K), for nchw (alpha^2, K, T) -> m x m tiles of the result."""

    @staticmethod
    def matrix(at: Matrix, dtype: str) -> np.ndarray:
        """(m^2, alpha^2)."""
        return kron_array(at, dtype)

    @staticmethod
    def shapes(channels: int, at: Matrix, tiling: Tiling, item_bytes: int) -> tuple[tuple[int, ...], ...]:
        """Buffers: products (alpha^2, plane) and tiles (m^2, plane)."""
        m, alpha = len(at), len(at[0])
        plane = plane_size(tiling.most * channels, item_bytes)
        return (alpha**2, plane), (m**2, plane)

    @staticmethod
    def flops(channels: int, at: Matrix, tiling: Tiling) -> float:
        """Operations of all blocks."""
        return 2.0 * tiling.total * channels * (len(at) * len(at[0])) ** 2

    def write(self, out: np.ndarray, first: int, images: int, row: int, rows: int) -> None:
        """A^T M A of the block, cropped to the result: row i of all its tiles, then the columns of a cropped tile."""
        _, columns, flat, tiles = self._views(images, rows)
        self._matmul(self._matrix, columns, out=flat)
        m, (height, width) = self._m, self._size
        whole, rest = divmod(width, m)
        for i in range(min(m, height - row * m)):
            lines = slice(row * m + i, min(height, (row + rows) * m), m)
            if self._layout == "nchw":
                into = out[first : first + images, :, lines].transpose(0, 2, 3, 1)  # (images, rows, Q, K)
            else:
                into = out[first : first + images, lines]
            part = tiles[i, :, : into.shape[1]]  # (images, rows, tiles, m, K)
            if whole:
                full = into[:, :, : whole * m]
                self._xp.copyto(full.reshape(*full.shape[:2], whole, m, self._k), part[:, :, :whole])
            if rest:
                self._xp.copyto(into[:, :, whole * m :], part[:, :, whole, :rest])

    def _make_views(self, images: int, rows: int) -> tuple[np.ndarray, ...]:
        """Products by tile; operand and result of the transform; the result as (m, images, rows, tiles, m, K)."""
        m, k, across = self._m, self._k, self._tiling.across
        t = images * rows * across
        columns, flat = self._products[:, : t * k], self._tiles[:, : t * k]
        if self._layout == "nchw":
            products = columns.reshape(len(columns), k, t)
            tiles = flat.reshape(m, m, k, images, rows, across).transpose(0, 3, 4, 5, 1, 2)
        else:
            products = columns.reshape(len(columns), t, k)
            tiles = flat.reshape(m, m, images, rows, across, k).transpose(0, 2, 3, 4, 1, 5)
        return products, columns, flat, tiles
