"""im2col in tiles: only as many columns at a time as stay in the second-level cache.

The lowering of Chellapilla, Puri, Simard 2006, blocked as in the implicit GEMM of S. Chetlur et al. 2014, "cuDNN:
Efficient Primitives for Deep Learning", section 3, which never lays out the whole column matrix either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from convbench.algorithms._im2col import Columns, FilterMatrix, Im2col, is_depthwise_nhwc
from convbench.algorithms._window import Padded, PixelMatrix, chunks, is_pointwise, product
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register

#: Columns of one tile, in bytes: about the second-level cache of a server core.
TILE_BYTES = 2 << 20


@register
class Im2colTiledNumpy(Implementation):
    """Columns of a few output rows of one image at a time (a few input channels for backward weights).

    Forward and backward data cut the pixels. Backward weights must add a whole gradient for each such tile; where
    that exceeds a tile, it cuts the channels (or the groups, where there are several) and sums over the images.
    1x1 layers that need no columns have nothing to cut.

    error_growth 4: twice the largest measured, 2.1, over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise,
    N P Q up to 40,000), three passes, both layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "im2col_tiled_numpy"
    reference = "Chellapilla, Puri, Simard 2006, section 3; Chetlur et al. 2014, section 3"
    error_growth = 4.0

    def workspace_estimate(self, problem: Problem) -> int:
        """One tile's columns, padded input (the tile's channels for backward weights), partial gradient."""
        if is_pointwise(problem.shape):
            return Im2col.workspace(problem)
        if _cuts_channels(problem):
            return sum(_ChannelTile.workspace(part) for part in _tile_problems(problem).values())
        total = Columns.workspace(problem, 1, _tile_rows(problem))
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            total += _filter_bytes(problem)
        return total + (Padded.workspace(problem, 1) if problem.pass_ is not Pass.BACKWARD_DATA else 0)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; there is nothing to pack."""
        if is_pointwise(problem.shape):
            return bind_weights(Im2col(problem, context, product, vectorised_depthwise=True).run(), weights, context)
        if _cuts_channels(problem):
            return _backward_weights(problem, context)
        tiles = _RowTiles(problem, context)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return tiles.backward_weights
        return bind_weights(tiles.forward if problem.pass_ is Pass.FORWARD else tiles.backward_data, weights, context)


def _tile_rows(problem: Problem) -> int:
    """Output rows per tile."""
    return max(1, min(problem.shape.p, TILE_BYTES // Columns.workspace(problem, 1, 1)))


def _filter_bytes(problem: Problem) -> int:
    """Bytes of a filter or its gradient."""
    s = problem.shape
    return s.k * s.cg * s.r * s.s * problem.item_bytes


def _cuts_channels(problem: Problem) -> bool:
    """Whether adding a gradient for each tile of rows would move more memory than the tile itself."""
    return problem.pass_ is Pass.BACKWARD_WEIGHTS and _filter_bytes(problem) > TILE_BYTES


class _RowTiles:
    """Tiles of output rows, for all three passes."""

    def __init__(self, problem: Problem, context: Context) -> None:
        self._shape, self._rows = problem.shape, _tile_rows(problem)
        depthwise = is_depthwise_nhwc(problem)
        self._columns = Columns(problem, context, 1, self._rows, groups_inside=depthwise)
        self._filter = FilterMatrix(problem, context, groups_inside=depthwise)
        sizes = (1, problem.shape.k, problem.shape.p * problem.shape.q)
        self._pixels = PixelMatrix(problem.layout, problem.dtype, problem.shape.groups, sizes, context)
        if problem.pass_ is not Pass.BACKWARD_DATA:
            self._pad = Padded(problem, context, 1)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            self._partial = context.empty(problem.out_shape, problem.dtype)

    def _cut(self, image: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """First row, number of rows, and these rows of a (1, ...) image as (G, rows * Q, K/G)."""
        whole, q = self._pixels.view(image), self._shape.q
        for begin, end in chunks(self._shape.p, self._rows):
            yield begin, end - begin, whole[:, begin * q : end * q]

    def forward(self, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
        """y = columns(x) @ w^T, tile by tile."""
        weights = self._filter.load(w).swapaxes(1, 2)
        for image in range(self._shape.n):
            padded = self._pad(x[image : image + 1])
            for first, rows, to in self._cut(y[image : image + 1]):
                product(self._columns.gather(padded, first, rows), weights, to)

    def backward_data(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        """dx = scattered sum of dy @ w, tile by tile."""
        weights = self._filter.load(w)
        dx.fill(0)
        for image in range(self._shape.n):
            for first, rows, part in self._cut(dy[image : image + 1]):
                product(part, weights, self._columns.matrix(1, rows))
                self._columns.scatter(dx[image : image + 1], first, rows)


    def backward_weights(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        """dw = sum over the tiles of dy^T @ columns(x)."""
        dw.fill(0)
        for image in range(self._shape.n):
            padded = self._pad(x[image : image + 1])
            for first, rows, part in self._cut(dy[image : image + 1]):
                columns = self._columns.gather(padded, first, rows)
                product(part.swapaxes(1, 2), columns, self._filter.view(self._partial))
                self._filter.store(self._partial)
                np.add(dw, self._partial, out=dw)


def _tile_problems(problem: Problem) -> dict[int, Problem]:
    """Problems of one image and some channels (one group) or some groups, by how many of them: at most two."""
    shape = problem.shape
    units = shape.groups if shape.groups > 1 else shape.c
    size = max(1, min(units, TILE_BYTES * units // Columns.workspace(problem, 1, shape.p)))
    parts = {}
    for length in {size, units % size or size}:
        if shape.groups > 1:
            part = replace(shape, n=1, c=length * shape.cg, k=length * shape.kg, groups=length)
        else:
            part = replace(shape, n=1, c=length)
        parts[length] = replace(problem, shape=part)
    return parts


class _ChannelTile:
    """Backward weights for some channels or groups: buffers and the sum over images."""

    def __init__(self, part: Problem, context: Context) -> None:
        depthwise = is_depthwise_nhwc(part)
        self._part = part
        self._pad = Padded(part, context, 1)
        self._columns = Columns(part, context, 1, part.shape.p, groups_inside=depthwise)
        self._filter = FilterMatrix(part, context, groups_inside=depthwise)
        self._partial = context.empty(part.out_shape, part.dtype)

    @staticmethod
    def workspace(part: Problem) -> int:
        """Bytes of the buffers."""
        return Padded.workspace(part, 1) + Columns.workspace(part, 1, part.shape.p) + _filter_bytes(part)

    def __call__(self, x: np.ndarray, rows: np.ndarray, dw: np.ndarray, first: bool) -> None:
        """dw (K', C'/G', R, S) or (K', R, S, C'/G') gets, or with not `first` is increased by, rows^T @ columns(x).

        x is one image (1, ...) of the tile's channels, rows its dy (G', PQ, K/G).
        """
        columns = self._columns.gather(self._pad(x), 0, self._part.shape.p)
        product(rows.swapaxes(1, 2), columns, self._filter.view(self._partial))
        self._filter.store(self._partial)
        if first:
            np.copyto(dw, self._partial)
        else:
            np.add(dw, self._partial, out=dw)


def _backward_weights(problem: Problem, context: Context) -> Run:
    """Tiles of channels (one group) or of groups; inside a tile, image after image."""
    shape = problem.shape
    tiles = {length: _ChannelTile(part, context) for length, part in _tile_problems(problem).items()}
    grouped = shape.groups > 1
    sizes = (1, shape.k, shape.p * shape.q)
    pixels = PixelMatrix(problem.layout, problem.dtype, shape.groups, sizes, context)

    def run(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        for begin, end in chunks(shape.groups if grouped else shape.c, max(tiles)):
            tile = tiles[end - begin]
            per_unit = shape.cg if grouped else 1
            channels = slice(begin * per_unit, end * per_unit)
            if grouped:
                to = dw[begin * shape.kg : end * shape.kg]
            else:
                to = dw[:, channels] if problem.layout == "nchw" else dw[..., channels]
            for image in range(shape.n):
                source = x[image : image + 1]
                source = source[:, channels] if problem.layout == "nchw" else source[..., channels]
                rows = pixels.view(dy[image : image + 1])
                tile(source, rows[begin:end] if grouped else rows, to, first=image == 0)

    return run
