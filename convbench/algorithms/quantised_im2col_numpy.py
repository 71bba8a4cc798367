"""Quantised and fixed-point convolution with NumPy, as a lesson: quantise, im2col, an exact product, one rounding.

The whole numbers are multiplied by BLAS in float64, which is exact for them (`_quantised.MOST_PRODUCTS`): what is
timed is the arithmetic's meaning, not its speed. Between the two ends it is im2col_numpy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from convbench.algorithms import _quantised as quantised
from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import product_of
from convbench.formats import PASSES
from convbench.problem import Problem, Semantics
from convbench.registry import Context, Implementation, Run, register, with_packing


class QuantisedIm2colNumpy(Implementation):
    """im2col_numpy in float64 between the two ends of a semantics. Results are exact, so error_growth bounds nothing.

    Measured over all conformance cases: every result of fixed point equal to the oracle's, of int8 within one rounding.
    """

    dtypes = ("float32",)
    arithmetic = "float64"
    #: Bytes of temporaries for each element of an image while it is quantised or rounded.
    temporary_bytes: ClassVar[int] = 24

    def limits(self, problem: Problem) -> str | None:
        """Only sums that float64 may not hold."""
        sentence = quantised.too_long(problem)
        return f"{self.name}: {sentence}" if sentence else None

    def workspace_estimate(self, problem: Problem) -> int:
        """Operands and result in float64, what im2col needs for them, and one image being quantised."""
        wide = _wide(problem)
        largest = max(int(np.prod(s[1:])) for s in (problem.a_shape, problem.b_shape, problem.out_shape))
        return wide.operand_bytes + Im2col.workspace(wide) + self.temporary_bytes * largest

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is widened in both cases."""
        return self.workspace_estimate(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; packed weights are quantised here."""
        wide, ends = _wide(problem), quantised.Quantised(problem)
        for key, text in quantised.notes(problem).items():
            context.note(key, text)
        a64, b64, out64 = (context.empty(s, np.float64) for s in (wide.a_shape, wide.b_shape, wide.out_shape))
        product = Im2col(wide, context, product_of(context), vectorised_depthwise=True).run()

        def quantise_input(a: np.ndarray) -> None:
            ends.operand(0, a, a64)

        def quantise(a: np.ndarray, b: np.ndarray) -> None:
            ends.operand(1, b, b64)
            quantise_input(a)

        def run_packed(a: np.ndarray, out: np.ndarray) -> None:
            quantise_input(a)
            product(a64, b64, out64)
            ends.finish(out64, out)

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            ends.operand(1, b, b64)
            run_packed(a, out)

        if weights is None:
            return with_packing(run, quantise)
        ends.operand(1, weights, b64)
        return with_packing(run_packed, quantise_input)


def _wide(problem: Problem) -> Problem:
    return replace(problem, dtype="float64", semantics=Semantics.LINEAR)


@register
class Int8Im2colNumpy(QuantisedIm2colNumpy):
    """x with one scale and a zero point, each filter with a scale of its own; both found anew at every call."""

    name: ClassVar[str] = "int8_im2col_numpy"
    semantics = Semantics.INT8
    passes = PASSES[Semantics.INT8]
    reference = "Jacob et al. 2018 (arXiv 1712.05877), section 2; Krishnamoorthi 2018 (arXiv 1806.08342), section 3"


@register
class Fixed16Im2colNumpy(QuantisedIm2colNumpy):
    """16-bit fixed point, rounded to nearest: operands, an exact sum, one rounding that saturates."""

    name: ClassVar[str] = "fixed16_im2col_numpy"
    semantics = Semantics.FIXED16
    reference = "Gupta et al. 2015 (arXiv 1502.02551), section 3"


@register
class Fixed16StochasticIm2colNumpy(QuantisedIm2colNumpy):
    """16-bit fixed point, rounded up with a probability equal to the distance from the number below."""

    name: ClassVar[str] = "fixed16_stochastic_im2col_numpy"
    temporary_bytes = 64
    semantics = Semantics.FIXED16_STOCHASTIC
    reference = "Gupta et al. 2015 (arXiv 1502.02551), section 3.1"


@register
class DynamicFixedIm2colNumpy(QuantisedIm2colNumpy):
    """10-bit numbers with one exponent for each tensor, found anew at every call; 12 bits in dw."""

    name: ClassVar[str] = "dynamic_fixed_im2col_numpy"
    semantics = Semantics.DYNAMIC_FIXED
    reference = "Courbariaux, David and Bengio 2015 (arXiv 1412.7024), sections 5 and 6"
