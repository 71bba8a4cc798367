"""Convolution with binary weights in NumPy: each filter becomes its signs times its mean magnitude, then im2col.

Rastegari et al. 2016 (arXiv 1603.05279), section 3.1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import product_of
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import Context, Implementation, Run, register, with_packing


def binarise(w: np.ndarray, out: np.ndarray) -> None:
    """out = sign(w) times the mean |w| of each filter; w (K, ...). sign(0) = +1, of NaN -1."""
    np.abs(w, out=out)
    flat = out.reshape(len(w), -1)  # (K, C/G R S)
    alpha = flat.mean(axis=1, keepdims=True)
    np.greater_equal(w, 0, out=out)  # 1 or 0
    flat *= 2 * alpha
    flat -= alpha


@register
class BwnIm2colNumpy(Implementation):
    """The filter is binarised (on the clock when raw), the product is BLAS in float32: no time is saved.

    error_growth 4, as im2col_numpy: the products are its products. At most 0.19 of the bound was used over 32 shapes
    (up to 512 channels with a 3x3 filter, 2048 with 1x1, 7x7 with stride 2), both passes and layouts, two seeds.
    """

    name: ClassVar[str] = "bwn_im2col_numpy"
    semantics: ClassVar[Semantics] = Semantics.BINARY_WEIGHTS
    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD, Pass.BACKWARD_DATA)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    reference = "Rastegari et al. 2016 (arXiv 1603.05279), section 3.1"
    error_growth = 4.0

    def workspace_estimate(self, problem: Problem) -> int:
        """Columns and padded images as im2col_numpy, the binary filter, its means."""
        s = problem.shape
        return Im2col.workspace(problem) + 4 * s.k * s.cg * s.r * s.s + 12 * s.k

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the binary filter is kept in both cases."""
        return self.workspace_estimate(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; binarises the filter if it is given."""
        multiply = Im2col(problem, context, product_of(context), vectorised_depthwise=True).run()
        binary = context.empty(problem.b_shape, np.float32)

        def pack(a: np.ndarray, b: np.ndarray) -> None:
            binarise(b, binary)

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            binarise(b, binary)
            multiply(a, binary, out)

        if weights is None:
            return with_packing(run, pack)
        binarise(weights, binary)
        return lambda a, out: multiply(a, binary, out)
