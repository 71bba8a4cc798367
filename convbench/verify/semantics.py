"""The oracle of every semantics but the linear one: `formats.py`'s definitions as a convolution between two ends.

The operands become other numbers (signs, whole numbers), these are convolved exactly in float64, and the sums become
results element by element (scaled, or rounded and saturated). Written for reading; the rows share nothing with it. All
arrays are in logical NCHW order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convbench import formats
from convbench.problem import Pass, Problem, Semantics
from convbench.verify.oracle import convolve

#: One rounding of a float32 result; and a little, because the oracle itself calculates in float64.
ONE_ROUNDING = 2.0**-24 * (1 + 2.0**-20)
#: Means of positive float32 numbers: relative error of a sum of n, as a random walk of steps of half an eps, and more.
MEANS_GROWTH = 2.0**-23

#: Scales may be so small that results leave the normal numbers of float32: below this anything is right.
LEAST_RESULT = float(np.finfo(np.float32).tiny)

Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Meaning:
    """a, b: what is convolved, whole numbers in float64 but for BINARY_WEIGHTS.

    channel, plane: factors of the results, for each of K and for each (N, G, P, Q), or None. finish: what else becomes
    of sums, given with their flat positions in the result; None: nothing. relative: allowed relative error of results.
    statistical: whether sums are rounded too, so that the rows' own error bound comes on top.
    """

    a: np.ndarray
    b: np.ndarray
    channel: np.ndarray | None = None
    plane: np.ndarray | None = None
    finish: Finish | None = None
    relative: float = 0.0
    statistical: bool = False

    @property
    def linear(self) -> bool:
        """Whether a sum can be told from its result: results are sums times known factors."""
        return self.finish is None and not self.statistical

    @property
    def least_factor(self) -> float:
        """The smallest number that a sum is multiplied by."""
        return float(np.prod([factor.min() for factor in (self.channel, self.plane) if factor is not None]))

    def allowed(self, want: np.ndarray) -> np.ndarray:
        """How far a result may be from what is wanted, beside the rounding of sums."""
        return self.relative * np.abs(want) + (LEAST_RESULT if self.relative else 0.0)


def meaning_of(problem: Problem, a: np.ndarray, b: np.ndarray) -> Meaning:
    """What `problem` (not linear) means on these operands. ValueError for types and passes that are not defined."""
    if problem.dtype != "float32":
        raise ValueError(f"{problem.semantics} is defined on float32 operands, not {problem.dtype}")
    known: dict[Semantics, Callable[[Problem, np.ndarray, np.ndarray], Meaning]] = {
        Semantics.BINARY: _binary,
        Semantics.XNOR: _xnor,
        Semantics.BINARY_WEIGHTS: _binary_weights,
        Semantics.INT8: _int8,
        Semantics.FIXED16: _fixed16,
        Semantics.FIXED16_STOCHASTIC: _fixed16,
        Semantics.DYNAMIC_FIXED: _dynamic_fixed,
    }
    if problem.pass_ not in formats.PASSES[problem.semantics]:
        raise ValueError(f"{problem.semantics} is not defined for {problem.pass_}")
    return known[problem.semantics](problem, a, b)


def results(meaning: Meaning, problem: Problem, sums: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
    """The results that sums stand for: all of them, (N, K, P, Q) in shape, or those at `index` (4, COUNT)."""
    if meaning.finish is not None:
        sizes = _logical(problem)
        flat = np.arange(sums.size).reshape(sums.shape) if index is None else np.ravel_multi_index(tuple(index), sizes)
        return meaning.finish(sums, flat)
    factors = _factors(meaning.channel, meaning.plane, problem, index)
    return sums if factors is None else sums * factors


def sums_of(
    channel: np.ndarray | None, plane: np.ndarray | None, problem: Problem, results: np.ndarray
) -> np.ndarray:
    """The whole numbers that results must have come from (Meaning.linear only); the results where a factor is 0."""
    factors = _factors(channel, plane, problem, None)
    if factors is None:
        return results
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(factors == 0, results, np.rint(results / factors))


def _factors(
    channel: np.ndarray | None, plane: np.ndarray | None, problem: Problem, index: np.ndarray | None
) -> np.ndarray | None:
    """channel times plane, broadcast over results or picked at `index`."""
    kg = problem.shape.kg
    factors: np.ndarray | None = None
    if channel is not None:
        factors = channel[:, None, None] if index is None else channel[index[1]]
    if plane is not None:
        if index is None:
            each = np.repeat(plane, kg, axis=1)  # (N, K, P, Q)
        else:
            each = plane[index[0], index[1] // kg, index[2], index[3]]
        factors = each if factors is None else each * factors
    return factors


def _logical(problem: Problem) -> tuple[int, ...]:
    shape = problem.out_shape
    return shape if problem.layout == "nchw" else (shape[0], shape[3], shape[1], shape[2])


# ---- signs


def _signs(array: np.ndarray) -> np.ndarray:
    return np.where(array >= 0, 1.0, -1.0)


def _binary(problem: Problem, x: np.ndarray, w: np.ndarray) -> Meaning:
    return Meaning(_signs(x), _signs(w))


def _filter_means(w: np.ndarray) -> np.ndarray:
    return np.abs(w.astype(np.float64)).mean(axis=(1, 2, 3))  # (K,)


def _xnor(problem: Problem, x: np.ndarray, w: np.ndarray) -> Meaning:
    s = problem.shape
    means = np.abs(x.astype(np.float64)).reshape(s.n, s.groups, s.cg, s.h, s.w).mean(axis=2)  # (N, G, H, W)
    box = np.full((s.groups, 1, s.r, s.s), 1.0 / (s.r * s.s))
    windows = convolve(replace(s, c=s.groups, k=s.groups), Pass.FORWARD, means, box)  # (N, G, P, Q)
    terms = s.cg * s.r * s.s
    return Meaning(_signs(x), _signs(w), _filter_means(w), windows, relative=MEANS_GROWTH * (4 + 2 * terms**0.5))


def _binary_weights(problem: Problem, a: np.ndarray, w: np.ndarray) -> Meaning:
    signed = _signs(w) * _filter_means(w)[:, None, None, None]
    terms = problem.shape.cg * problem.shape.r * problem.shape.s
    return Meaning(
        a.astype(np.float64), signed, relative=MEANS_GROWTH * (4 + terms**0.5), statistical=True
    )


# ---- eight bits


def _int8(problem: Problem, x: np.ndarray, w: np.ndarray) -> Meaning:
    one, least = np.float32(1), np.float32(formats.INT8_LEAST)
    low, high = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = (high - low) / np.float32(255)
    scale = scale if scale >= least else one
    inverse = one / scale
    zero = np.clip(np.rint(np.float32(-128) - low * inverse), -128, 127)
    whole = np.clip(np.rint(x * inverse) + zero, -128, 127) - zero
    scales = np.abs(w).max(axis=(1, 2, 3)) / np.float32(127)  # (K,)
    scales = np.where(scales >= least, scales, one)
    filters = np.clip(np.rint(w * (one / scales)[:, None, None, None]), -127, 127)
    channel = (scale * scales).astype(np.float64)
    return Meaning(whole.astype(np.float64), filters.astype(np.float64), channel, relative=ONE_ROUNDING)


# ---- fixed point


def _draw(seed: int, index: np.ndarray) -> np.ndarray:
    """24 random bits for each index: two 32-bit words mixed one after the other."""
    word = _mix(np.full(index.shape, seed, np.uint64))
    word = _mix((index.astype(np.uint64) >> np.uint64(32)) ^ word)
    return _mix((index.astype(np.uint64) & np.uint64(0xFFFFFFFF)) ^ word) >> np.uint64(8)


def _mix(word: np.ndarray) -> np.ndarray:
    """Wellons' 32-bit mixer (triple-free "lowbias32"), in 64-bit words."""
    low = np.uint64(0xFFFFFFFF)
    word = word ^ (word >> np.uint64(16))
    word = word * np.uint64(0x7FEB352D) & low
    word = word ^ (word >> np.uint64(15))
    word = word * np.uint64(0x846CA68B) & low
    return word ^ (word >> np.uint64(16))


def _fixed_operand(array: np.ndarray, seed: int | None) -> np.ndarray:
    scaled = array * np.float32(2.0**formats.FIXED_FRACTION)
    if seed is None:
        whole = np.rint(scaled)
    else:
        below = np.floor(scaled)
        drawn = _draw(seed, np.arange(array.size).reshape(array.shape)) / np.float64(2**24)
        whole = below + (drawn < scaled - below)  # the distance is a float32
    limit = 2 ** (formats.FIXED_BITS - 1)
    return np.clip(whole.astype(np.float64), -limit, limit - 1)


def _fixed16(problem: Problem, a: np.ndarray, b: np.ndarray) -> Meaning:
    seeds: tuple[int | None, ...] = (None, None, None)
    if problem.semantics is Semantics.FIXED16_STOCHASTIC:
        seeds = formats.ROUNDING_SEEDS
    fraction = formats.fixed_result_fraction(problem.accumulation_length)
    step = 2.0 ** (2 * formats.FIXED_FRACTION - fraction)  # of the result, in units of the products
    limit = 2 ** (formats.FIXED_BITS - 1)

    def finish(sums: np.ndarray, index: np.ndarray) -> np.ndarray:
        if seeds[2] is None:
            whole = np.rint(sums / step)
        else:
            below = np.floor(sums / step)
            distance = np.floor((sums - below * step) * (2**24 / step))  # in units of 2^-24
            whole = below + (_draw(seeds[2], index) < distance)
        return np.clip(whole, -limit, limit - 1) * 2.0**-fraction

    return Meaning(_fixed_operand(a, seeds[0]), _fixed_operand(b, seeds[1]), finish=finish)


def _exponent(array: np.ndarray) -> int:
    """The least e with at most one in OVERFLOW_ONE_IN of all |v| >= 2^e."""
    _, exponents = np.frexp(array[array != 0])  # |v| in [2^(e-1), 2^e)
    allowed = array.size // formats.OVERFLOW_ONE_IN
    e = formats.LEAST_EXPONENT
    for candidate in sorted(set(exponents.tolist())):
        if np.count_nonzero(exponents > e) <= allowed:
            break
        e = max(candidate, formats.LEAST_EXPONENT)
    return int(e)


def _dynamic_operand(array: np.ndarray) -> tuple[np.ndarray, formats.DynamicOperand]:
    e, limit = _exponent(array), 2 ** (formats.DYNAMIC_BITS - 1)
    scaled = array.astype(np.float64) * 2.0 ** (formats.DYNAMIC_BITS - 1 - e)
    whole = np.clip(np.rint(scaled), -limit, limit - 1)
    return whole, formats.DynamicOperand(e, whole.size, int(np.square(whole).sum()))


def _dynamic_fixed(problem: Problem, a: np.ndarray, b: np.ndarray) -> Meaning:
    (whole_a, about_a), (whole_b, about_b) = _dynamic_operand(a), _dynamic_operand(b)
    bits = formats.dynamic_bits(problem.pass_)
    e_out = formats.dynamic_result_exponent(about_a, about_b, problem.accumulation_length)
    unit = 2.0 ** (about_a.exponent + about_b.exponent - 2 * (formats.DYNAMIC_BITS - 1))  # of a product
    step = 2.0 ** (e_out - bits + 1)
    limit = 2 ** (bits - 1)

    def finish(sums: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(sums * (unit / step)), -limit, limit - 1) * step

    return Meaning(whole_a, whole_b, finish=finish)
