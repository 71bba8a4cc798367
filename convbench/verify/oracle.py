"""The oracle: the three convolutions as they are defined, in float64, tap by tap.

Cross-correlation without bias, as in section 3 of every textbook on convolutional networks; nothing here is taken
from, or shared with, what it judges: no padded copy, no product through BLAS, no transform. Operands and results are
in logical NCHW order whatever the problem's layout: x[N,C,H,W], w[K,C/G,R,S], y[N,K,P,Q].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convbench.problem import ConvShape, Pass


def convolve(shape: ConvShape, pass_: Pass, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The whole result in float64, from operands of any real type, in logical NCHW order."""
    if pass_ is Pass.FORWARD:
        return _forward(shape, a, b)
    if pass_ is Pass.BACKWARD_DATA:
        return _backward_data(shape, a, b)
    return _backward_weights(shape, a, b)


def sample(
    shape: ConvShape, pass_: Pass, a: np.ndarray, b: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(values, squares), each (COUNT,), of the results at `index` (4, COUNT), one sum of products at a time.

    squares is the same sum over the squared products, the scale of the rounding error.
    """
    one = {Pass.FORWARD: _one_output, Pass.BACKWARD_DATA: _one_input_gradient}.get(pass_, _one_weight_gradient)
    if pass_ is Pass.BACKWARD_WEIGHTS:  # products run over images: keep them contiguous
        a64, b64 = a.astype(np.float64, order="C"), b.astype(np.float64, order="C")
    else:  # products run over channels: (N, H, W, C) and (K, R, S, C/G), or (C/G, R, S, K) for the gradient
        a64 = _contiguous(a.transpose(0, 2, 3, 1))
        b64 = _contiguous(b.transpose(0, 2, 3, 1) if pass_ is Pass.FORWARD else b.transpose(1, 2, 3, 0))
    values, squares = np.empty(index.shape[1]), np.empty(index.shape[1])
    for i, position in enumerate(index.T.tolist()):
        values[i], squares[i] = one(shape, a64, b64, position)
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
    y = np.zeros((g, n, shape.p, shape.q, kg))
    for r, s, rows, columns, h, v in taps(shape):
        y[:, :, rows, columns] += np.einsum("gnpqc,gkc->gnpqk", xg[:, :, h, v], wg[r, s])
    return y.transpose(1, 0, 4, 2, 3).reshape(n, shape.k, shape.p, shape.q)  # (N, K, P, Q)


def _backward_data(shape: ConvShape, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    g, n, cg, kg = shape.groups, shape.n, shape.cg, shape.kg
    dyg = _contiguous(dy.reshape(n, g, kg, shape.p, shape.q).transpose(1, 0, 3, 4, 2))  # (G, N, P, Q, K/G)
    wg = _contiguous(w.reshape(g, kg, cg, shape.r, shape.s).transpose(3, 4, 0, 2, 1))  # (R, S, G, C/G, K/G)
    dx = np.zeros((g, n, shape.h, shape.w, cg))
    for r, s, rows, columns, h, v in taps(shape):
        dx[:, :, h, v] += np.einsum("gnpqk,gck->gnpqc", dyg[:, :, rows, columns], wg[r, s])
    return dx.transpose(1, 0, 4, 2, 3).reshape(n, shape.c, shape.h, shape.w)  # (N, C, H, W)


def _backward_weights(shape: ConvShape, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    g, n, cg, kg = shape.groups, shape.n, shape.cg, shape.kg
    xg = x.reshape(n, g, cg, shape.h, shape.w).transpose(1, 2, 0, 3, 4)  # (G, C/G, N, H, W)
    dyg = dy.reshape(n, g, kg, shape.p, shape.q).transpose(1, 2, 0, 3, 4)  # (G, K/G, N, P, Q)
    dw = np.zeros((g, kg, cg, shape.r, shape.s))
    for r, s, rows, columns, h, v in taps(shape):
        seen = _contiguous(xg[:, :, :, h, v]).reshape(g, cg, -1)  # (G, C/G, N*rows*columns)
        errors = _contiguous(dyg[:, :, :, rows, columns]).reshape(g, kg, -1)  # (G, K/G, N*rows*columns)
        dw[:, :, :, r, s] = np.einsum("gkm,gcm->gkc", errors, seen)
    return dw.reshape(shape.k, cg, shape.r, shape.s)  # (K, C/G, R, S)


def _one_output(shape: ConvShape, x: np.ndarray, w: np.ndarray, position: list[int]) -> tuple[float, float]:
    """y[n, k, p, q] from x (N, H, W, C) and w (K, R, S, C/G)."""
    n, k, p, q = position
    r, h = _taps_of_output(shape.h, shape.r, p * shape.stride[0] - shape.padding[0], shape.dilation[0])
    s, v = _taps_of_output(shape.w, shape.s, q * shape.stride[1] - shape.padding[2], shape.dilation[1])
    first = k // shape.kg * shape.cg
    products = x[n, h, v, first : first + shape.cg] * w[k, r, s]  # (R', S', C/G)
    return float(products.sum()), float((products * products).sum())


def _taps_of_output(size: int, count: int, first: int, dilation: int) -> tuple[slice, slice]:
    """Taps t with 0 <= first + t * dilation < size, and the input positions they read."""
    inside = [t for t in range(count) if 0 <= first + t * dilation < size]
    if not inside:
        return slice(0, 0), slice(0, 0)
    low, high = inside[0], inside[-1]
    return slice(low, high + 1), slice(first + low * dilation, first + high * dilation + 1, dilation)


def _one_input_gradient(
    shape: ConvShape, dy: np.ndarray, w: np.ndarray, position: list[int]
) -> tuple[float, float]:
    """dx[n, c, h, w] from dy (N, P, Q, K) and w (C/G, R, S, K)."""
    n, c, h, v = position
    g = c // shape.cg
    channels = slice(g * shape.kg, (g + 1) * shape.kg)
    rows = _taps_of_input(shape.p, shape.r, h + shape.padding[0], shape.stride[0], shape.dilation[0])
    columns = _taps_of_input(shape.q, shape.s, v + shape.padding[2], shape.stride[1], shape.dilation[1])
    total = squares = 0.0
    for r, p in rows:
        for s, q in columns:
            products = dy[n, p, q, channels] * w[c - g * shape.cg, r, s, channels]  # (K/G,)
            total += float(products.sum())
            squares += float((products * products).sum())
    return total, squares


def _taps_of_input(outputs: int, count: int, at: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """(tap, output position) of every window that reads the input position `at` (padding included)."""
    pairs = ((t, (at - t * dilation) // stride, (at - t * dilation) % stride) for t in range(count))
    return [(t, o) for t, o, rest in pairs if rest == 0 and 0 <= o < outputs]


def _one_weight_gradient(
    shape: ConvShape, x: np.ndarray, dy: np.ndarray, position: list[int]
) -> tuple[float, float]:
    """dw[k, c, r, s] from x (N, C, H, W) and dy (N, K, P, Q)."""
    k, c, r, s = position
    p, h = _meeting(shape.h, shape.p, r * shape.dilation[0] - shape.padding[0], shape.stride[0])
    q, v = _meeting(shape.w, shape.q, s * shape.dilation[1] - shape.padding[2], shape.stride[1])
    image, error = x[:, k // shape.kg * shape.cg + c, h, v], dy[:, k, p, q]  # (N, P', Q')
    total = np.einsum("npq,npq->", image, error)
    return float(total), float(np.einsum("npq,npq->", image * image, error * error))


def _contiguous(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64, order="C")
