"""Stochastic rounding of real numbers to whole ones, defined to the last bit: kernels give the same.

Stochastic rounding (Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical Precision", ICML
2015, section 3.1): up with a probability equal to the distance from the lower neighbour, so the mean error is 0. Its
random numbers come from no sequence but from a hash of (seed, index of the element), so they are the same however an
array is laid out, divided among threads or passed over:

    mix32(x): x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16      (32 bits, wrapping)
    h = mix32(low half of index ^ mix32(high half of index ^ mix32(seed)))
    u = (h >> 8) / 2^24

mix32 is "lowbias32" of Chris Wellons' hash prospector (https://github.com/skeeto/hash-prospector), a bijection. The
index counts a tensor's elements in the order of logical axes, N C H W for activations and K C R S for a filter, in
whichever layout they lie (`logical_indices`).

Two seeds give the same 2^32 numbers in another order: take one seed for one tensor, not many seeds for one element.
Standard library and NumPy only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convbench.errors import ProblemError
from convbench.problem import LAYOUTS

#: A number drawn is a multiple of 2^-24; a probability finer than that is rounded up to one.
UNIFORM_BITS = 24
_LARGEST = 2**32 - 1


def mix32(values: Any) -> np.ndarray:
    """The hash of whole numbers >= 0, of which the low 32 bits count, as uint32 in the shape of `values`."""
    x = np.array(values, dtype=np.uint64, ndmin=1, copy=True).astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x.reshape(np.shape(values))


def bits24(seed: int, indices: Any) -> np.ndarray:
    """h >> 8 of the definition above: 24 random bits an index, uint32 in the shape of `indices`.

    seed: a whole number from 0 to 2^32 - 1. indices: whole numbers >= 0, of any integer type. Raises ProblemError.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _LARGEST:
        raise ProblemError(f"seed must be a whole number from 0 to {_LARGEST}, not {seed!r}")
    which = np.asarray(indices)
    if which.dtype.kind not in "iu" or (which.dtype.kind == "i" and which.size and int(which.min()) < 0):
        raise ProblemError("indices must be whole numbers >= 0")
    which = which.astype(np.uint64)
    high = (which >> np.uint64(32)).astype(np.uint32)
    low = (which & np.uint64(_LARGEST)).astype(np.uint32)
    return mix32(low ^ mix32(high ^ mix32(int(seed)))) >> np.uint32(8)


def uniform24(seed: int, indices: Any) -> np.ndarray:
    """Numbers in [0, 1), one an index, the same for the same (seed, index): multiples of 2^-24, float64.

    seed: a whole number from 0 to 2^32 - 1. indices: whole numbers >= 0, of any integer type. Raises ProblemError.
    """
    return bits24(seed, indices) * 2.0**-UNIFORM_BITS


def logical_indices(shape: tuple[int, ...], layout: str = "nchw", first: int = 0) -> np.ndarray:
    """The index of every element of a tensor of this shape, uint64 in that shape.

    Elements count in C order of the axes as they stand; with layout="nhwc" and four axes, (N, H, W, C), in that of
    (N, C, H, W). first: the index of the first one, where the tensor is a piece of another (a range of images).
    Raises ProblemError for another layout or a negative `first`.
    """
    if layout not in LAYOUTS:
        raise ProblemError(f"layout must be nchw or nhwc, not {layout!r}")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise ProblemError(f"first must be a whole number >= 0, not {first!r}")
    indices = np.arange(first, first + math.prod(shape), dtype=np.uint64)
    if layout == "nhwc" and len(shape) == 4:
        n, h, w, c = shape
        return np.ascontiguousarray(indices.reshape(n, c, h, w).transpose(0, 2, 3, 1))  # (N, H, W, C)
    return indices.reshape(shape)


def round_stochastic(values: np.ndarray, seed: int, indices: Any) -> np.ndarray:
    """The whole number below or above: above where u < values - floor(values), u that of `uniform24`.

    values: float32 or float64, finite; the difference is one of their own type. indices: one for each value. Whole
    numbers stay; elsewhere the mean error over many indices is 0, but for a probability that 24 bits cannot hold: it is
    rounded up to the next multiple of 2^-24.
    """
    below = np.floor(values)
    return below + (uniform24(seed, indices) < values - below)
