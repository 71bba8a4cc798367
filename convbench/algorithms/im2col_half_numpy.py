"""Half precision with NumPy, as a lesson: what a format of 16 bits costs is rounding, once, where results are stored.

float16 has 11 significant bits and bfloat16 8 (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training",
arXiv 1905.12322, whose results are summed in float32 too). The product of two such numbers is exact in float32, so that
operands are widened, multiplied by BLAS, and the sums rounded to nearest, ties to even.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import product_of
from convbench.devices.arrays import narrowed
from convbench.problem import Problem
from convbench.registry import Context, Implementation, Run, register


@register
class Im2colHalfNumpy(Implementation):
    """im2col_numpy between a widening and a rounding. An array of bfloat16 is uint16: the upper half of a float32.

    error_growth 4: that of im2col_numpy, whose sums these are. Over 13 shapes (C up to 2,048, sums over 40,000 pixels),
    three passes, both layouts, two seeds, no error was more than 0.24 of sqrt(n) sqrt(x^2 * w^2) times float32's eps
    larger than half of the stored format's eps times the result.
    """

    name = "im2col_half_numpy"
    dtypes = ("float16", "bfloat16")
    arithmetic = "float32"
    reference = "Kalamkar et al. 2019 (arXiv 1905.12322), section 3; Chellapilla, Puri, Simard 2006, section 3"
    error_growth = 4.0

    def workspace_estimate(self, problem: Problem) -> int:
        """Operands and result in float32, what im2col needs for them, and one image of the result being rounded."""
        wide = replace(problem, dtype="float32")
        part = 4 * (2 if problem.dtype == "float16" else 6) * int(np.prod(problem.out_shape[1:]))
        return wide.operand_bytes + Im2col.workspace(wide) + part

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is widened in both cases."""
        return self.workspace_estimate(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; packed weights are widened here."""
        wide = replace(problem, dtype="float32")
        a32, b32, out32 = (context.empty(s, np.float32) for s in (wide.a_shape, wide.b_shape, wide.out_shape))
        product = Im2col(wide, context, product_of(context), vectorised_depthwise=True).run()

        def run_packed(a: np.ndarray, out: np.ndarray) -> None:
            widen(a, a32)
            product(a32, b32, out32)
            with np.errstate(over="ignore"):  # sums beyond 65,504 are infinite in float16
                for whole, rounded in zip(out32, out, strict=True):
                    rounded[...] = narrowed(whole, problem.dtype)

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            widen(b, b32)
            run_packed(a, out)

        if weights is None:
            return run
        widen(weights, b32)
        return run_packed


def widen(half: np.ndarray, to: np.ndarray) -> None:
    """float16, or bfloat16 in uint16, as float32: exact."""
    if half.dtype == np.float16:
        to[...] = half
    else:
        np.left_shift(half, 16, out=to.view(np.uint32), dtype=np.uint32)
