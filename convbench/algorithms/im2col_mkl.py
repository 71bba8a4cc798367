"""im2col with the products on Intel oneMKL (cblas gemm and its strided batch) instead of NumPy's BLAS.

Chellapilla, Puri, Simard 2006, "High Performance Convolutional Neural Networks for Document Processing",
section 3; the product through `_mkl.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms import _mkl
from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import is_transposed
from convbench.problem import Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class Im2colMkl(Implementation):
    """As im2col_numpy, every product on MKL; groups, depthwise ones too, as one strided batch.

    error_growth 4: twice the largest measured, 2.1, over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise,
    N P Q up to 40,000), three passes, both layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "im2col_mkl"
    extra = "mkl"
    pool = "mkl"
    reference = "Chellapilla, Puri, Simard 2006, section 3; oneMKL, cblas_?gemm_batch_strided"
    error_growth = 4.0

    def unavailable(self) -> str | None:
        """MKL is a shared library, not a module."""
        return _mkl.missing(self.name)

    def workspace_estimate(self, problem: Problem) -> int:
        """As im2col_numpy."""
        return Im2col.workspace(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Loads MKL and allocates; there is nothing to pack. Raises Unavailable without MKL."""
        mkl = _mkl.load(context.threads)

        def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            if is_transposed(out):
                a, b, out = b.swapaxes(1, 2), a.swapaxes(1, 2), out.swapaxes(1, 2)
            across_a, across_b = is_transposed(a), is_transposed(b)
            a, b = a.swapaxes(1, 2) if across_a else a, b.swapaxes(1, 2) if across_b else b
            if a.shape[0] == 1:
                mkl.gemm(a[0], b[0], out[0], across_a, across_b)
            else:
                mkl.gemm_batch(a, b, out, across_a, across_b)

        return bind_weights(Im2col(problem, context, product).run(), weights, context)
