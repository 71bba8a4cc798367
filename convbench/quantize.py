"""Quantised numbers with their scales in the open: int8 with scale and zero point, 16-bit fixed point, convolution.

Int8: real = scale * (stored - zero_point), real 0 always exact (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1). Scales are float32 and the
arithmetic is float32, as in `formats.py`'s INT8, so that what `semantics="int8"` does within a row, these functions do
step by step, bit for bit. Fixed point <IL, FL>: Gupta et al., "Deep Learning with Limited Numerical Precision", ICML
2015, section 3.

A scale belongs to a tensor (a number) or to the channels of one axis (an array); `axis` is 0 for a filter in either
layout. What is refused is a ProblemError that names the argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.errors import ProblemError
from convbench.formats import INT8_LEAST
from convbench.problem import ConvShape
from convbench.requantize import LEAST, MOST, as_int32, in_pieces, requantised, rounded_once, without_zero_point
from convbench.rounding import logical_indices, round_stochastic

__all__ = ["Affine", "FixedPoint", "choose_affine", "conv2d_quantized", "dequantize", "quantize_int8"]

WORD_BITS = 16
OUT_DTYPES = ("float32", "int32", "int8")
ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True, eq=False)
class Affine:
    """real = scale * (stored - zero_point). scale: > 0, kept in float32. zero_point: whole, from -128 to 127.

    Numbers for a whole tensor; arrays of one axis for its channels, then `axis` says which axis they go along.
    """

    scale: Any
    zero_point: Any = 0
    axis: int = 0

    def __post_init__(self) -> None:
        scale = _scales("scale", self.scale)
        zero_point = _zero_points("zero_point", self.zero_point)
        if zero_point.ndim and zero_point.shape != scale.shape:
            raise ProblemError(
                f"zero_point: shape must be () or that of scale, {scale.shape}, not {zero_point.shape}"
            )
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    def along(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero_point) shaped to broadcast over an array of `shape`; ProblemError names it `name`."""
        if not self.scale.ndim:
            return self.scale, self.zero_point
        ndim = len(shape)
        if not -ndim <= self.axis < ndim or shape[self.axis] != self.scale.size:
            raise ProblemError(
                f"{name}: shape {shape} has not the {self.scale.size} channels of the scale along axis {self.axis}"
            )
        spread = [1] * ndim
        spread[self.axis] = -1
        zero_point = self.zero_point.reshape(spread) if self.zero_point.ndim else self.zero_point
        return self.scale.reshape(spread), zero_point


def choose_affine(x: Any, *, symmetric: bool = False, axis: int | None = None) -> Affine:
    """The scale and zero point with which int8 covers the range of `x`, 0 included.

    symmetric: zero point 0 and -127 to 127, as is usual for filters. axis: one scale for each channel along it. Where
    there is nothing but 0, the scale is 1. Raises ProblemError for what is not finite or does not fit in float32.
    """
    values = _finite("x", x)
    if not values.size:
        raise ProblemError("x has no elements: there is no range to cover")
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise ProblemError(f"axis must be one of the {values.ndim} of x, not {axis}")
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    if symmetric:
        scale = np.abs(values).max(axis=others) / np.float32(MOST)
        return Affine(_not_tiny(scale), 0, axis or 0)
    low = np.minimum(values.min(axis=others), np.float32(0))
    high = np.maximum(values.max(axis=others), np.float32(0))
    with np.errstate(over="ignore"):
        scale = _not_tiny((high - low) / np.float32(MOST - LEAST))
    if not np.isfinite(scale).all():
        raise ProblemError("x: its range, largest less least, does not fit in float32")
    zero_point = np.clip(np.rint(np.float32(LEAST) - low * (np.float32(1) / scale)), LEAST, MOST)
    return Affine(scale, zero_point.astype(np.int32), axis or 0)


def quantize_int8(x: Any, affine: Affine) -> np.ndarray:
    """int8 in the shape of `x`: clip(rint(x * (1 / scale)) + zero_point), ties to even, saturating.

    x: floats, finite; taken in float32. Raises ProblemError.
    """
    values = _finite("x", x)
    scale, zero_point = affine.along("x", values.shape)
    with np.errstate(over="ignore"):  # to infinity, which saturates
        whole = np.rint(values * (np.float32(1) / scale))
    return np.clip(whole + zero_point.astype(np.float32), LEAST, MOST).astype(np.int8)


def dequantize(q: Any, affine: Affine) -> np.ndarray:
    """float32 in the shape of `q` (int8): scale * (q - zero_point), rounded once."""
    stored = _array("q", q)
    if stored.dtype != np.int8:
        raise ProblemError(f"q: dtype must be int8, not {stored.dtype}")
    scale, zero_point = affine.along("q", stored.shape)
    return (stored - zero_point.astype(np.int16)).astype(np.float32) * scale


@dataclass(frozen=True)
class FixedPoint:
    """Fixed point with il integer bits, sign included, and fl fraction bits; together at most 16.

    Numbers are whole multiples of 2^-fl from -2^(il-1) to 2^(il-1) - 2^-fl, stored as int16.
    """

    il: int
    fl: int

    def __post_init__(self) -> None:
        for name, least in (("il", 1), ("fl", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ProblemError(f"{name} must be a whole number >= {least}, not {value!r}")
        if self.il + self.fl > WORD_BITS:
            raise ProblemError(f"il + fl must be at most {WORD_BITS}, not {self.il} + {self.fl}")

    @property
    def resolution(self) -> float:
        """2^-fl, the distance between neighbours."""
        return 2.0**-self.fl

    @property
    def least(self) -> float:
        """-2^(il-1)."""
        return -(2.0 ** (self.il - 1))

    @property
    def most(self) -> float:
        """2^(il-1) - 2^-fl."""
        return -self.least - self.resolution

    def quantize(
        self, x: Any, rounding: str = "nearest", seed: int = 0, *, layout: str = "nchw", first: int = 0
    ) -> np.ndarray:
        """int16 in the shape of `x`, in units of the resolution; what lies beyond the range saturates.

        rounding: "nearest", ties to even; or "stochastic", up with a probability equal to the distance from the number
        below, so that the mean error is 0: `rounding.py` defines it. Its numbers depend on `seed` and on the index of
        each element in logical order alone, not on strides: with layout="nhwc" an (N, H, W, C) array gets what the same
        tensor gets as (N, C, H, W). first: the index of the first element, where x is a piece (a range of images) of a
        larger tensor. x: floats, finite; float64 is taken as it is, shorter types in float32. Raises ProblemError.
        """
        if rounding not in ROUNDINGS:
            raise ProblemError(f"rounding must be {' or '.join(ROUNDINGS)}, not {rounding!r}")
        values = _finite("x", x, keep=np.float64)
        unit = values.dtype.type(2.0**self.fl)
        bound = 2 ** (self.il + self.fl - 1)
        # Saturation comes first, a step beyond the range, lest the scaling overflow.
        scaled = np.clip(values, self.least - self.resolution, self.most + self.resolution) * unit
        if rounding == "nearest":
            whole = np.rint(scaled)
        else:
            whole = round_stochastic(scaled, seed, logical_indices(values.shape, layout, first))
        return np.clip(whole, -bound, bound - 1).astype(np.int16)

    def dequantize(self, q: Any) -> np.ndarray:
        """float32 in the shape of `q` (int16): q * 2^-fl, exactly."""
        stored = _array("q", q)
        if stored.dtype != np.int16:
            raise ProblemError(f"q: dtype must be int16, not {stored.dtype}")
        return stored.astype(np.float32) * np.float32(self.resolution)


def conv2d_quantized(
    xq: Any,
    wq: Any,
    *,
    x_scale: float,
    x_zero_point: int = 0,
    w_scale: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "nchw",
    algorithm: str = "auto",
    out_dtype: str = "float32",
    out_scale: float | None = None,
    out_zero_point: int = 0,
) -> np.ndarray:
    """The convolution of the real numbers that two int8 arrays stand for: xq[N,C,H,W], wq[K,C/G,R,S], or nhwc forms.

    x = x_scale * (xq - x_zero_point), one scale for the tensor; w = w_scale * wq, a number or one for each of the K
    filters. Padding stands for the real 0, so it counts as x_zero_point. stride, dilation, padding, groups, layout and
    algorithm (a row that takes int8) are `conv2d`'s. The sums are exact; `out_dtype` says what becomes of them:

    int32:   the sums of (xq - x_zero_point) * wq themselves; times x_scale * w_scale they are the real results
    float32: sum * (x_scale * w_scale), that factor rounded to float32 first, the product rounded once
    int8:    clip(rint(sum * (x_scale * w_scale) / out_scale) + out_zero_point), the same factor, the quotient exact
             before it is rounded once, ties to even; it stands for out_scale * (stored - out_zero_point)

    Raises ProblemError naming the argument, or where a sum leaves int32 that is asked for; and what conv2d raises.
    """
    x, w = _int8("xq", xq), _int8("wq", wq)
    shape = _shape(x, w, stride, padding, dilation, groups, layout)
    factor = _factor(x_scale, w_scale, shape.k)
    zero = int(_zero_points("x_zero_point", x_zero_point, scalar=True))
    result_zero = int(_zero_points("out_zero_point", out_zero_point, scalar=True))
    if out_dtype not in OUT_DTYPES:
        raise ProblemError(f"out_dtype must be one of {', '.join(OUT_DTYPES)}, not {out_dtype!r}")
    if out_dtype == "int8" and out_scale is None:
        raise ProblemError("out_scale must be given for out_dtype int8")
    if out_dtype != "int8" and (out_scale is not None or result_zero):
        raise ProblemError(f"out_scale and out_zero_point belong to out_dtype int8, not {out_dtype}")
    target = None if out_scale is None else _scales("out_scale", out_scale, scalar=True)
    from convbench.engine import conv2d

    sums = conv2d(
        x, w, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout, algorithm=algorithm
    )
    if zero:
        sums = without_zero_point(sums, zero, w, shape, layout)
    if out_dtype == "int32":
        return as_int32(sums)
    if target is None:
        return in_pieces(sums, factor, layout, np.float32, rounded_once)
    scale = np.float64(target)
    return in_pieces(sums, factor, layout, np.int8, lambda part, by: requantised(part, by, scale, result_zero))


# ---- checking arguments


def _array(name: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray | np.generic) or isinstance(array, np.ma.MaskedArray):
        raise ProblemError(f"{name} must be a NumPy array, not {type(array).__name__}: convert it with numpy.asarray")
    return np.asarray(array)


def _finite(name: str, array: Any, keep: Any = np.float32) -> np.ndarray:
    """Floats, all finite, in float32; or in float64 where they are that and it is kept."""
    values = _array(name, array)
    if values.dtype.kind != "f":
        raise ProblemError(f"{name}: dtype must be a floating-point one, not {values.dtype}")
    if not np.isfinite(values).all():
        bad = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
        raise ProblemError(f"{name}: {bad} of {values.size} elements are NaN or infinite, which no whole number is")
    with np.errstate(over="ignore"):
        narrow = values.astype(keep if values.dtype == keep else np.float32, copy=False)
    if not np.isfinite(narrow).all():
        raise ProblemError(f"{name}: its largest element does not fit in float32")
    return narrow


def _not_tiny(scale: np.ndarray) -> np.ndarray:
    return np.where(scale < np.float32(INT8_LEAST), np.float32(1), scale).astype(np.float32)


def _scales(name: str, scale: Any, scalar: bool = False) -> np.ndarray:
    """A positive number, or an array of one axis of them, in float32."""
    try:
        with np.errstate(over="ignore", under="ignore"):
            values = np.asarray(scale).astype(np.float32)
    except (TypeError, ValueError):
        raise ProblemError(f"{name} must be a number or an array of numbers, not {scale!r}") from None
    if values.ndim > (0 if scalar else 1):
        allowed = "a number" if scalar else "a number or an array of one axis"
        raise ProblemError(f"{name} must be {allowed}, not of shape {values.shape}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ProblemError(f"{name} must be finite and > 0 in float32, not {scale!r}")
    return values


def _zero_points(name: str, zero_point: Any, scalar: bool = False) -> np.ndarray:
    """A whole number from -128 to 127, or an array of one axis of them, in int32."""
    values = np.asarray(zero_point)
    if values.dtype.kind not in "iu" or values.ndim > (0 if scalar else 1):
        allowed = "a whole number" if scalar else "a whole number or an array of them"
        raise ProblemError(f"{name} must be {allowed}, not {zero_point!r}")
    if values.size and not LEAST <= values.min() <= values.max() <= MOST:
        raise ProblemError(f"{name} must be from {LEAST} to {MOST}, not {zero_point!r}")
    return values.astype(np.int32)


def _int8(name: str, array: Any) -> np.ndarray:
    values = _array(name, array)
    if values.dtype != np.int8 or values.ndim != 4:
        raise ProblemError(f"{name} must be int8 with 4 axes, not {values.dtype} with {values.ndim}")
    return values


def _shape(
    x: np.ndarray, w: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int, layout: str
) -> ConvShape:
    """The geometry of the two arrays; ProblemError where the filter's channels are not those of the image."""
    if layout not in ("nchw", "nhwc"):
        raise ProblemError(f"layout must be nchw or nhwc, not {layout!r}")
    order = (0, 1, 2, 3) if layout == "nchw" else (0, 3, 1, 2)
    n, c, h, width = (x.shape[i] for i in order)
    k, cg, r, s = (w.shape[i] for i in order)
    shape = ConvShape.make(n, c, h, width, k, r, s, stride, padding, dilation, groups)
    if cg != shape.cg:
        raise ProblemError(
            f"wq: shape {w.shape} has {cg} channels per group, but the {c} channels of xq in groups={groups} need "
            f"{shape.cg}: expected {shape.w_shape(layout)}"
        )
    return shape


def _factor(x_scale: Any, w_scale: Any, k: int) -> np.ndarray:
    """x_scale * w_scale rounded to float32, in float64: (K,)."""
    scales = _scales("w_scale", w_scale)
    if scales.ndim and scales.shape != (k,):
        raise ProblemError(f"w_scale: shape must be () or ({k},), one for each filter, not {scales.shape}")
    with np.errstate(over="ignore", under="ignore"):
        factor = np.broadcast_to(_scales("x_scale", x_scale, scalar=True) * scales, (k,))
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise ProblemError("x_scale * w_scale leaves the range of float32")
    return factor.astype(np.float64)
