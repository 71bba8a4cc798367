"""Quantised and fixed-point convolution on the products that the machine has: 8-bit dot products, AMX, VPDPWSSD.

Operands are quantised at every call, into a grid with padding and into panels; sums of their products are exact; each
is rounded once and saturates. Sixteen-bit numbers are multiplied in parts: four products of bytes in AMX tiles, or a
short by the two halves of another (`simd/kernels/part_sums`). What numbers become is defined in `formats.py`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.algorithms import _quantised as quantised
from convbench.algorithms._simd import SimdImplementation
from convbench.formats import ARITHMETIC, PASSES
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import Context, Run, register

#: Elements of an operand or result whose indices the rounding's generator takes in 32 bits.
MOST_ELEMENTS = 2**32


class QuantisedDirectSimd(SimdImplementation):
    """What the four rows share. Results are exact, so error_growth bounds nothing.

    Measured over all conformance cases and 500 random shapes: every result is that of the NumPy form, bit for bit.
    """

    def limits(self, problem: Problem) -> str | None:
        """Sums that float64 may not hold, indices beyond 32 bits."""
        sentence = quantised.too_long(problem)
        largest = max(int(np.prod(s, dtype=object)) for s in (problem.a_shape, problem.b_shape, problem.out_shape))
        if sentence is None and largest > MOST_ELEMENTS:
            sentence = f"elements are counted in 32 bits: a tensor has {largest}, at most {MOST_ELEMENTS}"
        return f"{self.name}: {sentence}" if sentence else None

    def workspace_estimate(self, problem: Problem) -> int:
        """Grid, filter in columns and in panels, one thread's sums and results."""
        from convbench.algorithms import _quantised_simd as products
        from convbench.algorithms import _quantised_simd_weights as sums
        from convbench.simd import target

        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return sums.workspace(problem, target.host())
        return products.workspace(problem, target.host())

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Operations on parts, with padding and what fills up blocks; and two for each number that is rounded."""
        from convbench.algorithms import _quantised_simd as products
        from convbench.algorithms import _quantised_simd_weights as sums
        from convbench.simd import target

        plan = sums.plan_of if problem.pass_ is Pass.BACKWARD_WEIGHTS else products.plan_of
        sizes = (int(np.prod(s)) for s in (problem.a_shape, problem.b_shape, problem.out_shape))
        a, b, out = (2.0 * size for size in sizes)
        made = plan(problem, target.host(), 1)
        return {"multiply": 2.0 * made.multiplied, "input_transform": a, "filter_transform": b, "output_transform": out}

    def prepare(self, problem: Problem, context: Context, weights: np.ndarray | None = None) -> Run:
        """Compiles kernels, lays out the tables, quantises and packs the filter if it is given."""
        from convbench.algorithms import _quantised_simd as products
        from convbench.algorithms import _quantised_simd_weights as sums
        from convbench.simd import target

        for key, text in quantised.notes(problem).items():
            context.note(key, text)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return sums.prepare_weights(problem, context, target.host())
        return products.prepare_products(problem, context, weights, target.host())


@register
class Int8DirectSimd(QuantisedDirectSimd):
    """x with one scale and a zero point, filters with one scale each: AMX or VPDPBUSD, one float64 product a result.

    That product is exact up to 2^29 in the sum (16,577 products at their largest), so the result is rounded once;
    beyond it is rounded to 53 bits first.
    """

    name: ClassVar[str] = "int8_direct_simd"
    semantics = Semantics.INT8
    passes = PASSES[Semantics.INT8]
    arithmetic = ARITHMETIC[Semantics.INT8]
    reference = "Jacob et al. 2018 (arXiv 1712.05877), section 2; Krishnamoorthi 2018 (arXiv 1806.08342), section 3"


@register
class Fixed16DirectSimd(QuantisedDirectSimd):
    """16-bit fixed point, rounded to nearest."""

    name: ClassVar[str] = "fixed16_direct_simd"
    semantics = Semantics.FIXED16
    arithmetic = ARITHMETIC[Semantics.FIXED16]
    reference = "Gupta et al. 2015 (arXiv 1502.02551), section 3"


@register
class Fixed16StochasticDirectSimd(QuantisedDirectSimd):
    """16-bit fixed point; the random numbers of stochastic rounding are hashed from seed and index in vectors."""

    name: ClassVar[str] = "fixed16_stochastic_direct_simd"
    semantics = Semantics.FIXED16_STOCHASTIC
    arithmetic = ARITHMETIC[Semantics.FIXED16_STOCHASTIC]
    reference = "Gupta et al. 2015 (arXiv 1502.02551), section 3.1"


@register
class DynamicFixedDirectSimd(QuantisedDirectSimd):
    """10-bit numbers with an exponent for each tensor, found at every call; 12 bits in dw."""

    name: ClassVar[str] = "dynamic_fixed_direct_simd"
    semantics = Semantics.DYNAMIC_FIXED
    arithmetic = ARITHMETIC[Semantics.DYNAMIC_FIXED]
    reference = "Courbariaux, David and Bengio 2015 (arXiv 1412.7024), sections 5 and 6"
