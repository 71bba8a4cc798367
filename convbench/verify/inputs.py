"""Inputs that a result is judged on: integers whose sums are exact, and normal numbers; of int8, all that it holds.

Integers: for implementations that are exact on them, n * max|a| * max|b| stays below the largest integer that the
dtype holds without gaps, so every order of summation gives the same sum (benchdnn checks its direct convolutions
this way). At small n one operand reaches 4,097, which half precision, TF32 and bfloat16 cannot hold. For transform
algorithms the range is so small that their own float bound stays below 1/4 and rounding recovers the integer.

Problems in int8 have no other results than exact ones (`Problem.overflow` refuses those that might have), so both kinds
of inputs are judged to the last bit: -128 mostly, and 127, whose sums reach 3/4 of the largest that is possible and
show sums that saturate or are kept in 16 or 24 bits; and numbers uniform over all of int8, on which rows are timed too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convbench.devices.arrays import as_real, namespace, narrowed
from convbench.problem import INPUTS, Pass, Problem, Semantics
from convbench.registry import Implementation
from convbench.verify.tolerance import eps_of

#: Largest |coefficient| of the vectors that project integer results (see `reference.py`).
COEFFICIENT = 8
#: Least number of products, on average, in a result of sparse integers that is still worth comparing.
LEAST_PRODUCTS = 32
#: Both zeros, both signs, ties of 12 fraction bits, the ends of <4, 12>, what lies beyond them, what is almost nothing.
EDGES = (
    0.0, -0.0, 1.0, -1.0, 2.0**-13, -3 * 2.0**-13, 0.5 + 2.0**-13, 8 - 2.0**-12, 8.0, -8.0, -8.5, 60.0, -100.0, 1e-30,
)  # fmt: skip
#: Share of -128 among the extremes of int8: products are (-128)^2 mostly.
LEAST_SHARE = 15 / 16
_EXACT_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
_ONE_OPERAND = {"float64": 2**24 + 1, "float32": 4097, "float16": 17, "bfloat16": 17}
#: Arithmetic -> the largest integers that it takes as they are: of one operand, of the other. TF32 has 11 bits; of two
#: split numbers the product of the second parts is left out, so that one of them must have none.
_HELD = {"tf32": (2047, 2047), "3xtf32": (4097, 2047)}


@dataclass(frozen=True)
class Recipe:
    """What the two operands hold; equal recipes give equal arrays, in both layouts.

    kind "normal": standard normal. "uniform": in [-1, 1). "relu": normal, and a is max(a, 0) as behind a ReLU (dy:
    half of it 0). "integers": whole numbers in [-4, 4]. "zeros". kind "integer": uniform in [-a_max, a_max] and
    [-b_max, b_max], and a share 1 - density of a is 0. kind "whole": uniform over all of int8. kind "extremes": -128
    and 127, LEAST_SHARE of the former. kind "edges": numbers at which low precision rounds, saturates or has no sign.
    """

    kind: str
    seed_a: int
    seed_b: int
    a_max: int = 0
    b_max: int = 0
    density: float = 1.0

    @property
    def is_bounded(self) -> bool:
        """Whether results on these are judged by the statistical bound."""
        return self.kind in INPUTS

    @property
    def key(self) -> str:
        """Text that names this recipe in caches and file names."""
        return f"{self.kind}-{self.seed_a}-{self.seed_b}-{self.a_max}-{self.b_max}-{self.density:.9g}"

    def with_seeds(self, seed_a: int, seed_b: int) -> Recipe:
        """The same distribution, other numbers."""
        return replace(self, seed_a=seed_a, seed_b=seed_b)


def normal_recipe(seed: int) -> Recipe:
    """Standard normal operands."""
    return Recipe("normal", seed, seed)


def usual_recipe(problem: Problem, seed: int, inputs: str = "normal") -> Recipe:
    """What rows are timed with, and judged on beside chosen integers: normal operands, or what `inputs` says.

    Of int8 "normal" and "uniform" are numbers from all of it.
    """
    if problem.is_integer and inputs in ("normal", "uniform"):
        return Recipe("whole", seed, seed)
    return Recipe(inputs, seed, seed)


def integer_recipe(implementation: Implementation, problem: Problem, seed: int) -> Recipe | None:
    """The widest integer range in which `implementation` must be right to the last bit; None: there is none.

    Where the semantics is not linear: numbers at its edges.
    """
    if problem.semantics is not Semantics.LINEAR:
        return Recipe("edges", seed, seed)
    if problem.is_integer:
        return Recipe("extremes", seed, seed)
    if implementation.exact_on_integers:
        headroom = getattr(implementation, "integer_headroom", 1)
        a_max, b_max, density = _exact_range(problem, headroom)
        most_a, most_b = _HELD.get(implementation.arithmetic, (a_max, b_max))
        a_max, b_max = min(a_max, most_a), min(b_max, most_b)
    else:
        growth = implementation.error_growth * eps_of(implementation.arithmetic, problem.dtype)
        a_max, b_max, density = _rounding_range(problem.accumulation_length, growth)
    if density * problem.accumulation_length < min(LEAST_PRODUCTS, problem.accumulation_length):
        return None
    return Recipe("integer", seed, seed, a_max, b_max, density)


def _exact_range(problem: Problem, headroom: int) -> tuple[int, int, float]:
    """(max|a|, max|b|, density of a) with density * n * max|a| * max|b| < 2^bits / headroom."""
    n, bits = problem.accumulation_length, _EXACT_BITS[problem.dtype]
    limit = 2**bits // headroom - 1
    if problem.dtype == "float64":  # the projection is summed in float64 too and needs room for its K terms
        limit //= COEFFICIENT * max(problem.shape.kg, problem.shape.cg)
    one = _ONE_OPERAND[problem.dtype]
    if one * n <= limit:
        return one, min(limit // (one * n), one), 1.0
    both = int((limit / n) ** 0.5)
    if both >= 1:
        return max(both, min(limit // (n * both), 2 * both)), both, 1.0
    return 1, 1, 0.5 * limit / n  # half: the number of products that are not 0 varies about its mean


def _rounding_range(n: int, growth: float) -> tuple[int, int, float]:
    """(max|a|, max|b|, density of a) with growth * sqrt(n) * sqrt(a^2 * b^2) < 1/4 in every result."""
    for a_max, b_max in ((2, 2), (2, 1), (1, 1)):
        if growth * n * a_max * b_max < 0.25:
            return a_max, b_max, 1.0
    return 1, 1, 0.5 * (0.25 / (growth * n)) ** 2


def make_inputs(problem: Problem, recipe: Recipe, xp: Any = np) -> tuple[Any, Any]:
    """(a, b) in the problem's dtype and layout, C-contiguous, made where they are needed: by NumPy or by CuPy.

    Each library has generators of its own: equal recipes give equal arrays within one of them.
    """
    a = _fill(_logical(problem, problem.a_shape), problem.dtype, recipe, recipe.a_max, (recipe.seed_a, 0), xp)
    if recipe.kind == "relu":
        a = _rectified(a, problem, recipe, xp)
    b = _fill(_logical(problem, problem.b_shape), problem.dtype, recipe, recipe.b_max, (recipe.seed_b, 1), xp)
    if recipe.density < 1:
        a *= _generator((recipe.seed_a, 2), xp).random(a.shape) < recipe.density
    return to_layout(a, problem.layout), to_layout(b, problem.layout)


#: Kinds that need a generator and a shape alone.
_SIMPLE: dict[str, Any] = {
    "uniform": lambda generator, shape, xp: 2 * generator.random(shape, dtype=np.float32) - 1,
    "integers": lambda generator, shape, xp: generator.integers(-4, 4, shape, np.int32, endpoint=True),
    "zeros": lambda generator, shape, xp: xp.zeros(shape, np.float32),
    "edges": lambda generator, shape, xp: xp.asarray(EDGES, np.float32)[generator.integers(0, len(EDGES), shape)],
}


def _fill(
    shape: tuple[int, ...], dtype: str, recipe: Recipe, largest: int, seed: tuple[int, int], xp: Any
) -> Any:
    generator = _generator(seed, xp)
    if recipe.kind in _SIMPLE:
        return narrowed(_SIMPLE[recipe.kind](generator, shape, xp), dtype)
    if recipe.kind == "whole":
        return narrowed(generator.integers(-128, 127, shape, np.int32, endpoint=True), dtype)
    if recipe.kind == "extremes":
        return narrowed(xp.where(generator.random(shape) < LEAST_SHARE, -128, 127), dtype)
    if recipe.kind in ("normal", "relu"):
        if dtype == "int8":  # a standard deviation of 32
            return narrowed(xp.clip(xp.rint(32 * generator.standard_normal(shape, dtype=np.float32)), -128, 127), dtype)
        kind = np.float64 if dtype == "float64" else np.float32
        return narrowed(generator.standard_normal(shape, dtype=kind), dtype)
    return narrowed(generator.integers(-largest, largest, shape, np.int32, endpoint=True), dtype)


def _rectified(a: Any, problem: Problem, recipe: Recipe, xp: Any) -> Any:
    """x as a ReLU leaves it; of dy, what the gradient of a ReLU leaves: half of it."""
    if problem.pass_ is Pass.BACKWARD_DATA:
        kept = _generator((recipe.seed_a, 3), xp).random(a.shape) < 0.5
    else:
        kept = as_real(a) > 0
    return a * kept  # bits of bfloat16 too: times 1 or 0


def _generator(seed: tuple[int, int], xp: Any) -> Any:
    if xp is np:
        return np.random.Generator(np.random.SFC64(seed))
    return xp.random.Generator(xp.random.Philox4x3210(8 * seed[0] + seed[1]))


def _logical(problem: Problem, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of the problem's layout as (N, C, H, W) or (K, C/G, R, S)."""
    return shape if problem.layout == "nchw" else (shape[0], shape[3], shape[1], shape[2])


def to_layout(array: Any, layout: str) -> Any:
    """A logical NCHW array as a contiguous array of `layout`."""
    return namespace(array).ascontiguousarray(array if layout == "nchw" else array.transpose(0, 2, 3, 1))


def to_logical(array: Any, layout: str) -> Any:
    """A view of an array of `layout` in logical NCHW order: (N, C, H, W), (K, C/G, R, S) or (N, K, P, Q)."""
    return array if layout == "nchw" else array.transpose(0, 3, 1, 2)


def reduction_channels(problem: Problem) -> int:
    """Channels of one group over which a result is projected: K/G forward, C/G backward data, K/G weights."""
    return problem.shape.cg if problem.pass_ is Pass.BACKWARD_DATA else problem.shape.kg
