"""What becomes of the exact sums of a quantised convolution: the zero point taken off, and results rounded once.

Scales are float32, sums whole numbers of at most 33 bits, so that a sum times a scale is exact in two float64; where
the first leaves the rounding open, the second decides. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convbench.errors import ProblemError
from convbench.problem import ConvShape

LEAST, MOST = -128, 127
#: Products of a float32 with a whole number below this are exact in float64.
_EXACT_SUM = 2**29
#: Results that are worked on together.
_PIECE = 1 << 14

Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]


def without_zero_point(sums: np.ndarray, zero: int, w: np.ndarray, shape: ConvShape, layout: str) -> np.ndarray:
    """sums of xq * wq less zero times the sums of the taps that read the image: in int32 where no sum can leave it."""
    wide = np.int32 if shape.cg * shape.r * shape.s * (MOST - LEAST) * -LEAST < 2**31 else np.int64
    taps = w.sum(axis=1 if layout == "nchw" else 3, dtype=np.int64).astype(np.float64)  # (K, R, S)
    top, _, left, _ = shape.padding
    rows, row_of = _inside(shape.h, shape.p, shape.r, shape.stride[0], top, shape.dilation[0])
    columns, column_of = _inside(shape.w, shape.q, shape.s, shape.stride[1], left, shape.dilation[1])
    few = zero * (rows @ taps @ columns.T)  # (K, kinds of P, kinds of Q), exact: no sum reaches 2^53
    if layout == "nhwc":
        few = few.transpose(1, 2, 0)
    axis = 1 if layout == "nchw" else 0
    each = few.astype(wide).take(row_of, axis).take(column_of, axis + 1)  # (K, P, Q) or (P, Q, K)
    return np.subtract(sums, each, dtype=wide)


def _inside(
    size: int, outputs: int, taps: int, stride: int, begin: int, dilation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which taps read the image, not padding: 1 or 0 for each kind of output, (KINDS, taps); each output's kind."""
    place = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation - begin
    kinds, kind_of = np.unique((place >= 0) & (place < size), axis=0, return_inverse=True)
    return kinds.astype(np.float64), kind_of.reshape(-1)


def in_pieces(sums: np.ndarray, factor: np.ndarray, layout: str, dtype: Any, convert: Convert) -> np.ndarray:
    """convert(sums, factors) of pieces that stay in a cache, into a new array of `dtype`."""
    result = np.empty(sums.shape, dtype)
    if layout == "nchw":
        width, factors = sums.shape[2] * sums.shape[3], np.tile(factor, len(sums))[:, None]
    else:
        width, factors = factor.size, np.broadcast_to(factor, (sums.size // factor.size, factor.size))
    lines, out = sums.reshape(-1, width), result.reshape(-1, width)
    step = max(1, _PIECE // width)
    for i in range(0, len(lines), step):
        out[i : i + step] = convert(lines[i : i + step], factors[i : i + step])
    return result


def as_int32(sums: np.ndarray) -> np.ndarray:
    """The sums in int32. Raises ProblemError where one does not fit."""
    limits = np.iinfo(np.int32)
    if sums.dtype != np.int32 and sums.size and (sums.min() < limits.min or sums.max() > limits.max):
        raise ProblemError(
            "out_dtype: with x_zero_point taken off, a sum does not fit in int32; ask for float32 or int8"
        )
    return sums.astype(np.int32, copy=False)


def _product(sums: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """head + tail = sums * factor, exactly; head is the product rounded to float64. |sums| < 2^45."""
    low = sums & 0xFFFF
    big, small = (sums - low) * factor, low * factor  # exact: 24 bits times 29 or 16
    head = big + small
    back = head - big
    return head, (big - (head - back)) + (small - back)


def rounded_once(sums: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """float32(sums * factor), as if the product had been exact."""
    with np.errstate(over="ignore"):  # to infinity, as rounding does
        result = (sums * factor).astype(np.float32)
    large = np.abs(sums) >= _EXACT_SUM
    if large.any():
        wide = np.broadcast_to(factor, sums.shape)[large]
        head, tail = _product(sums[large].astype(np.int64), wide)
        # Rounding to odd keeps, in the last bit, that something was cut off: rounding again is then right.
        even = (head.view(np.int64) & 1) == 0
        away = np.where(tail > 0, np.inf, -np.inf)
        odd = np.where((tail != 0) & even, np.nextafter(head, away), head)
        with np.errstate(over="ignore"):
            result[large] = odd.astype(np.float32)
    return result


def requantised(sums: np.ndarray, factor: np.ndarray, scale: np.float64, zero_point: int) -> np.ndarray:
    """int8 of sums * factor / scale, as if the quotient had been exact, ties to even."""
    quotient = sums * (factor / scale)
    np.clip(quotient, -1024, 1024, out=quotient)
    whole = np.rint(quotient)
    near = np.abs(quotient - whole) > 0.5 - 2.0**-36  # float64's errors are below 2^-40 here
    if near.any():
        head, tail = _product(sums[near].astype(np.int64), np.broadcast_to(factor, sums.shape)[near])
        between = np.rint(quotient[near] - 0.5) + 0.5  # the number between two whole ones
        side = np.sign(head - between * scale)  # the product is exact: a few bits times 24
        side = np.where(side == 0, np.sign(tail), side)
        whole[near] = np.where(side == 0, np.rint(between), between + 0.5 * side)
    whole += zero_point
    return np.clip(whole, LEAST, MOST, out=whole).astype(np.int8)
