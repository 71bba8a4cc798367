"""The oracle: the three convolutions as they are defined, in float64, tap by tap.

Cross-correlation without bias, as in section 3 of every textbook on convolutional networks; nothing here is taken
from, or shared with, what it judges: no padded copy, no product through BLAS, no transform. Operands and results are
in logical NCHW order whatever the problem's layout: x[N,C,H,W], w[K,C/G,R,S], y[N,K,P,Q].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from convbench.devices.arrays import namespace
from convbench.problem import ConvShape, Pass

#: float64 copies of whole operands stay below this; larger batches go image by image.
_COPY_BYTES = 256 << 20


def convolve(
    shape: ConvShape, pass_: Pass, a: np.ndarray, b: np.ndarray, square_a: bool = False
) -> np.ndarray:
    """The whole result in float64, from operands of any real type, in logical NCHW order, NumPy's or CuPy's.

    square_a: of the squares of a (what b should hold then is the caller's business).
    """
    one = {Pass.FORWARD: _forward, Pass.BACKWARD_DATA: _backward_data}.get(pass_, _backward_weights)
    images = max(1, _COPY_BYTES // (8 * a[0].size))
    parts = []
    for first in range(0, shape.n, images):
        some = a[first : first + images].astype(np.float64)
        if square_a:
            some *= some
        part = replace(shape, n=len(some))
        parts.append(one(part, some, b if pass_ is not Pass.BACKWARD_WEIGHTS else b[first : first + images]))
    if pass_ is Pass.BACKWARD_WEIGHTS:
        return sum(parts[1:], parts[0])
    return namespace(a).concatenate(parts) if len(parts) > 1 else parts[0]


def sample(
    shape: ConvShape, pass_: Pass, a: np.ndarray, b: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(values, squares), each (COUNT,), of the results at `index` (4, COUNT), one sum of products at a time.

    squares is the same sum over the squared products, the scale of the rounding error.
    """
    if pass_ is Pass.BACKWARD_WEIGHTS:
        return _sample_weight_gradients(shape, a, b, index)
    one = _one_output if pass_ is Pass.FORWARD else _one_input_gradient
    a = a.transpose(0, 2, 3, 1)  # (N, H, W, C) or (N, P, Q, K)
    if 8 * a.size <= _COPY_BYTES:  # products run over channels: faster when those are neighbours
        a = _contiguous(a)
    # (K, R, S, C/G) forward, (C/G, R, S, K) backward
    b = _contiguous(b.transpose(0, 2, 3, 1) if pass_ is Pass.FORWARD else b.transpose(1, 2, 3, 0))
    values, squares = np.empty(index.shape[1]), np.empty(index.shape[1])
    for i, position in enumerate(index.T.tolist()):
        products = one(shape, a, b, position)
        values[i], squares[i] = products.sum(), np.square(products).sum()
    return values, squares


def taps(shape: ConvShape) -> Iterator[tuple[int, int, slice, slice, slice, slice]]:
    """(r, s, rows of y, columns of y, rows of x, columns of x) for each tap that meets the image at all."""
    for r in range(shape.r):
        p, h = _meeting(shape.h, shape.p, r * shape.dilation[0] - shape.padding[0], shape.stride[0])
        for s in range(shape.s):
            q, w = _meeting(shape.w, shape.q, s * shape.dilation[1] - shape.padding[2], shape.stride[1])
            if p.stop > p.start and q.stop > q.start:
                yield r, s, p, q, h, w


def _meeting(size: int, outputs: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Output positions o with 0 <= o * stride + offset < size, and the input positions they read."""
    inside = [o for o in range(outputs) if 0 <= o * stride + offset < size]
    if not inside:
        return slice(0, 0), slice(0, 0)
    first, last = inside[0], inside[-1]
    return slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1, stride)


def _forward(shape: ConvShape, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    g, n, cg, kg = shape.groups, shape.n, shape.cg, shape.kg
    xg = _contiguous(x.reshape(n, g, cg, shape.h, shape.w).transpose(1, 0, 3, 4, 2))  # (G, N, H, W, C/G)
    wg = _contiguous(w.reshape(g, kg, cg, shape.r, shape.s).transpose(3, 4, 0, 1, 2))  # (R, S, G, K/G, C/G)
    y = namespace(x).zeros((g, n, shape.p, shape.q, kg))
    for r, s, rows, columns, h, v in taps(shape):
        y[:, :, rows, columns] += namespace(x).einsum("gnpqc,gkc->gnpqk", xg[:, :, h, v], wg[r, s])
    return y.transpose(1, 0, 4, 2, 3).reshape(n, shape.k, shape.p, shape.q)  # (N, K, P, Q)


def _backward_data(shape: ConvShape, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    g, n, cg, kg = shape.groups, shape.n, shape.cg, shape.kg
    dyg = _contiguous(dy.reshape(n, g, kg, shape.p, shape.q).transpose(1, 0, 3, 4, 2))  # (G, N, P, Q, K/G)
    wg = _contiguous(w.reshape(g, kg, cg, shape.r, shape.s).transpose(3, 4, 0, 2, 1))  # (R, S, G, C/G, K/G)
    dx = namespace(dy).zeros((g, n, shape.h, shape.w, cg))
    for r, s, rows, columns, h, v in taps(shape):
        dx[:, :, h, v] += namespace(dy).einsum("gnpqk,gck->gnpqc", dyg[:, :, rows, columns], wg[r, s])
    return dx.transpose(1, 0, 4, 2, 3).reshape(n, shape.c, shape.h, shape.w)  # (N, C, H, W)


def _backward_weights(shape: ConvShape, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    g, n, cg, kg = shape.groups, shape.n, shape.cg, shape.kg
    xg = x.reshape(n, g, cg, shape.h, shape.w).transpose(1, 2, 0, 3, 4)  # (G, C/G, N, H, W)
    dyg = dy.reshape(n, g, kg, shape.p, shape.q).transpose(1, 2, 0, 3, 4)  # (G, K/G, N, P, Q)
    dw = namespace(x).zeros((g, kg, cg, shape.r, shape.s))
    for r, s, rows, columns, h, v in taps(shape):
        seen = _contiguous(xg[:, :, :, h, v]).reshape(g, cg, -1)  # (G, C/G, N*rows*columns)
        errors = _contiguous(dyg[:, :, :, rows, columns]).reshape(g, kg, -1)  # (G, K/G, N*rows*columns)
        dw[:, :, :, r, s] = namespace(x).einsum("gkm,gcm->gkc", errors, seen)
    return dw.reshape(shape.k, cg, shape.r, shape.s)  # (K, C/G, R, S)


def _one_output(shape: ConvShape, x: np.ndarray, w: np.ndarray, position: list[int]) -> np.ndarray:
    """The products (R', S', C/G) of y[n, k, p, q] from x (N, H, W, C) and w (K, R, S, C/G)."""
    n, k, p, q = position
    r, h = _taps_of_output(shape.h, shape.r, p * shape.stride[0] - shape.padding[0], shape.dilation[0])
    s, v = _taps_of_output(shape.w, shape.s, q * shape.stride[1] - shape.padding[2], shape.dilation[1])
    first = k // shape.kg * shape.cg
    return x[n, h, v, first : first + shape.cg].astype(np.float64) * w[k, r, s]


def _taps_of_output(size: int, count: int, first: int, dilation: int) -> tuple[slice, slice]:
    """Taps t with 0 <= first + t * dilation < size, and the input positions they read."""
    inside = [t for t in range(count) if 0 <= first + t * dilation < size]
    if not inside:
        return slice(0, 0), slice(0, 0)
    low, high = inside[0], inside[-1]
    return slice(low, high + 1), slice(first + low * dilation, first + high * dilation + 1, dilation)


def _one_input_gradient(shape: ConvShape, dy: np.ndarray, w: np.ndarray, position: list[int]) -> np.ndarray:
    """The products (R', S', K/G) of dx[n, c, h, w] from dy (N, P, Q, K) and w (C/G, R, S, K)."""
    n, c, h, v = position
    g = c // shape.cg
    channels = slice(g * shape.kg, (g + 1) * shape.kg)
    r, p = _taps_of_input(shape.p, shape.r, h + shape.padding[0], shape.stride[0], shape.dilation[0])
    s, q = _taps_of_input(shape.q, shape.s, v + shape.padding[2], shape.stride[1], shape.dilation[1])
    errors = dy[n][p[:, None], q, channels].astype(np.float64)
    return errors * w[c - g * shape.cg][r[:, None], s, channels]


def _taps_of_input(
    outputs: int, count: int, at: int, stride: int, dilation: int
) -> tuple[np.ndarray, np.ndarray]:
    """(taps, output positions) of the windows that read the input position `at` (padding included)."""
    every = np.arange(count)
    position, rest = np.divmod(at - every * dilation, stride)
    seen = (rest == 0) & (position >= 0) & (position < outputs)
    return every[seen], position[seen]


def _sample_weight_gradients(
    shape: ConvShape, x: np.ndarray, dy: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """sample() of dw[k, c, r, s]: long sums over images and positions, from x (N, C, H, W) and dy (N, K, P, Q)."""
    if 8 * max(x.size, dy.size) <= _COPY_BYTES:
        x, dy = x.astype(np.float64), dy.astype(np.float64)
    meetings = {(r, s): places for r, s, *places in taps(shape)}
    values, squares = np.zeros(index.shape[1]), np.zeros(index.shape[1])
    for i, (k, c, r, s) in enumerate(index.T.tolist()):
        if (r, s) not in meetings:
            continue
        rows, columns, h, v = meetings[r, s]
        image, error = x[:, k // shape.kg * shape.cg + c, h, v], dy[:, k, rows, columns]  # (N, P', Q')
        products = np.multiply(image, error, dtype=np.float64).reshape(-1)
        values[i], squares[i] = products.sum(), np.einsum("m,m->", products, products)
    return values, squares


def _contiguous(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64, order="C")
