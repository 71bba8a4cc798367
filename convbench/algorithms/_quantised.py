"""INT8, FIXED16, FIXED16_STOCHASTIC and DYNAMIC_FIXED in NumPy: operands to whole numbers, exact sums to results.

The definitions are those of `formats.py`. Whole numbers are kept in float64, where a sum of n products of 16-bit
numbers is exact as long as n 2^30 <= 2^53. Everything goes image by image (filter by filter), so that temporaries stay
small.
"""

from __future__ import annotations

import numpy as np

from convbench import formats
from convbench.problem import Problem, Semantics
from convbench.rounding import logical_indices, uniform24

#: Sums of more products of 16-bit numbers may need more than the 53 bits of a float64.
MOST_PRODUCTS = 2 ** (53 - 30)


class Quantised:
    """The two ends of a convolution of whole numbers: `operand` before it, `finish` after it."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._scales = [np.ones(1), np.ones(1)]
        self._dynamic = [formats.DynamicOperand(0, 1, 0)] * 2

    def operand(self, which: int, array: np.ndarray, whole: np.ndarray) -> None:
        """Writes operand 0 (a) or 1 (b) to `whole` (float64, of the same shape) as whole numbers."""
        semantics = self._problem.semantics
        if semantics is Semantics.INT8:
            quantise = _int8_activation if which == 0 else _int8_filters
            self._scales[which] = quantise(array, whole)
        elif semantics is Semantics.DYNAMIC_FIXED:
            self._dynamic[which] = _dynamic(array, whole)
        else:
            stochastic = semantics is Semantics.FIXED16_STOCHASTIC
            _fixed(array, whole, formats.ROUNDING_SEEDS[which] if stochastic else None, self._problem.layout)

    def finish(self, sums: np.ndarray, out: np.ndarray) -> None:
        """Writes to `out` (float32) what the exact sums stand for; of sums that are -0, makes 0."""
        p = self._problem
        n = p.accumulation_length
        sums += 0.0  # 0 times a negative number is -0, where it is the only product
        if p.semantics is Semantics.INT8:
            scales = (self._scales[0] * self._scales[1]).astype(np.float64)  # (K,), each product rounded to float32
            np.multiply(sums, scales[:, None, None] if p.layout == "nchw" else scales, out=out, casting="same_kind")
        elif p.semantics is Semantics.DYNAMIC_FIXED:
            a, b = self._dynamic
            bits = formats.dynamic_bits(p.pass_)
            step = formats.dynamic_result_exponent(a, b, n) - bits + 1
            of_product = a.exponent + b.exponent - 2 * (formats.DYNAMIC_BITS - 1)
            _round(sums, out, of_product - step, step, bits)
        else:
            fraction = formats.fixed_result_fraction(n)
            stochastic = p.semantics is Semantics.FIXED16_STOCHASTIC
            seed = formats.ROUNDING_SEEDS[2] if stochastic else None
            lift = fraction - 2 * formats.FIXED_FRACTION
            _round(sums, out, lift, -fraction, formats.FIXED_BITS, seed, p.layout)


def notes(problem: Problem) -> dict[str, str]:
    """How scales, zero points and exponents come about, for the record of a run."""
    semantics, n = problem.semantics, problem.accumulation_length
    if semantics is Semantics.INT8:
        return {
            "scale": "x: (max - min) / 255 of the tensor, 0 included; w: max |w| / 127 of each filter; at every call",
            "zero_point": "x: rint(-128 - min / scale); w: 0",
        }
    if semantics is Semantics.DYNAMIC_FIXED:
        bits = formats.dynamic_bits(problem.pass_)
        return {
            "scale": f"operands: 2^(e - {formats.DYNAMIC_BITS - 1}), e the least with at most one in "
            f"{formats.OVERFLOW_ONE_IN} of |v| >= 2^e, at every call; result: {bits} bits, "
            "2^e >= 4 rms(a) rms(b) sqrt(n)",
            "zero_point": "0",
        }
    fraction = formats.fixed_result_fraction(n)
    return {
        "scale": f"operands: 2^-{formats.FIXED_FRACTION}; result: 2^{-fraction}, of {formats.FIXED_BITS} bits each",
        "zero_point": "0",
    }


def too_long(problem: Problem) -> str | None:
    """A sentence where a sum may not be exact in float64."""
    n = problem.accumulation_length
    if n <= MOST_PRODUCTS:
        return None
    return f"a sum of {n} products of 16-bit numbers may need more than 53 bits: at most {MOST_PRODUCTS} products"


def int8_activation_scale(low: np.float32, high: np.float32) -> tuple[np.float32, np.float32, np.float32]:
    """(scale, its inverse, zero point) of x from its least and its largest element, in float32."""
    one = np.float32(1)
    low, high = min(np.float32(0), low), max(np.float32(0), high)
    scale = (high - low) / np.float32(255)
    if scale < np.float32(formats.INT8_LEAST):
        scale = one
    inverse = one / scale
    zero = np.clip(np.rint(np.float32(-128) - low * inverse), np.float32(-128), np.float32(127))
    return scale, inverse, zero


def int8_filter_scales(largest: np.ndarray) -> np.ndarray:
    """Scales of filters from their max |w|, in float32."""
    scales = largest / np.float32(127)
    return np.where(scales < np.float32(formats.INT8_LEAST), np.float32(1), scales)


def _int8_activation(x: np.ndarray, whole: np.ndarray) -> np.ndarray:
    scale, inverse, zero = int8_activation_scale(x.min(), x.max())
    for image, to in zip(x, whole, strict=True):
        q = np.clip(np.rint(image * inverse) + zero, -128, 127)
        to[...] = q - zero  # padding stays 0: that is what the zero point stands for
    return np.array([scale])


def _int8_filters(w: np.ndarray, whole: np.ndarray) -> np.ndarray:
    axes = (1, 2, 3)
    scales = int8_filter_scales(np.maximum(w.max(axis=axes), -w.min(axis=axes)))  # (K,)
    for filter_, to, inverse in zip(w, whole, np.float32(1) / scales, strict=True):
        to[...] = np.clip(np.rint(filter_ * inverse), -127, 127)
    return scales


def _fixed(array: np.ndarray, whole: np.ndarray, seed: int | None, layout: str) -> None:
    limit, unit = 2 ** (formats.FIXED_BITS - 1), np.float32(2.0**formats.FIXED_FRACTION)
    beyond = np.float32(2 * limit) / unit  # saturates as anything larger does, and times the unit is finite
    for i, (part, to) in enumerate(zip(array, whole, strict=True)):
        scaled = np.clip(part, -beyond, beyond)
        scaled *= unit
        if seed is None:
            rounded = np.rint(scaled)
        else:
            rounded = np.floor(scaled)
            drawn = uniform24(seed, _indices(part, layout, i))
            rounded = rounded + (drawn < scaled - rounded)  # the distance is a float32
        np.clip(rounded, -limit, limit - 1, out=to)


def _indices(part: np.ndarray, layout: str, i: int) -> np.ndarray:
    """Of the i-th image (filter) of a tensor: where its elements stand in logical order."""
    return logical_indices((1, *part.shape), layout, i * part.size)[0]


def dynamic_exponent(at_or_above: np.ndarray, size: int) -> int:
    """The least exponent e that leaves few enough elements beyond it.

    at_or_above[i]: elements with |v| >= 2^(LEAST_EXPONENT + i), for all i up to where there is none.
    """
    few = at_or_above <= size // formats.OVERFLOW_ONE_IN
    return formats.LEAST_EXPONENT + int(np.argmax(few))


def _dynamic(array: np.ndarray, whole: np.ndarray) -> formats.DynamicOperand:
    count = np.zeros(200, np.int64)  # count[i]: elements with 2^(LEAST_EXPONENT + i - 1) <= |v| < twice that
    for part in array:
        exponents = np.frexp(part)[1]  # |v| in [2^(exponent - 1), 2^exponent)
        exponents = np.where(part == 0, 0, np.maximum(exponents - formats.LEAST_EXPONENT, 0))
        count += np.bincount(exponents.ravel(), minlength=200)
    beyond = np.append(count[::-1].cumsum()[::-1][1:], 0)  # elements with |v| >= 2^(LEAST_EXPONENT + i)
    e = dynamic_exponent(beyond, array.size)
    limit, squares = 2 ** (formats.DYNAMIC_BITS - 1), 0
    for part, to in zip(array, whole, strict=True):
        scaled = part.astype(np.float64) * 2.0 ** (formats.DYNAMIC_BITS - 1 - e)
        np.clip(np.rint(scaled), -limit, limit - 1, out=to)
        squares += int(np.square(to).sum())
    return formats.DynamicOperand(e, array.size, squares)


def _round(
    sums: np.ndarray, out: np.ndarray, lift: int, step: int, bits: int, seed: int | None = None, layout: str = "nchw"
) -> None:
    """out = clip(round(sums 2^lift)) 2^step, image by image; lift and step are exponents."""
    limit = 2 ** (bits - 1)
    for i, (part, to) in enumerate(zip(sums, out, strict=True)):
        scaled = part * 2.0**lift
        if seed is None:
            rounded = np.rint(scaled)
        else:
            rounded = np.floor(scaled)
            distance = np.floor((scaled - rounded) * 2.0**24) * 2.0**-24
            rounded = rounded + (uniform24(seed, _indices(part, layout, i)) < distance)
        np.multiply(np.clip(rounded, -limit, limit - 1), 2.0**step, out=to, casting="same_kind")
