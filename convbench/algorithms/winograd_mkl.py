"""Winograd F(4x4,3x3) with its products on Intel oneMKL: all frequencies in one strided-batch call.

Lavin and Gray, arXiv 1509.09308; cblas_sgemm_batch_strided, oneMKL developer reference, "BLAS-like extensions".
The transforms stay with NumPy, as in `winograd_numpy.py`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.algorithms import _mkl
from convbench.algorithms._winograd import Winograd
from convbench.algorithms._winograd_steps import Multiply
from convbench.registry import Context, register


@register
class WinogradF4Mkl(Winograd):
    """F(4x4,3x3) with points 0, +-1, 1/2, -2; backward weights F(3x3,4x4), which MKL adds up itself (beta = 1).

    Growth: measured as in `winograd_numpy.py`, the same 7.6 over its shapes (oneMKL 2026, AVX-512).
    """

    name = "winograd_f4_mkl"
    tile: ClassVar[int] = 4
    pool = "mkl"
    extra = "mkl"
    error_growth = 20.0
    exact_on_integers = False
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.3; points: arXiv 1803.10986"

    def unavailable(self) -> str | None:
        """One sentence where MKL is not installed."""
        return _mkl.missing(self.name)

    def multiplier(self, context: Context, sums: np.ndarray | None) -> Multiply:
        """One batched call per group."""
        mkl = _mkl.load(context.threads)

        def multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray, add: bool) -> None:
            for group in range(left.shape[1]):
                a, a_turned = _rows_first(left[:, group])
                b, b_turned = _rows_first(right[:, group])
                mkl.gemm_batch(a, b, out[:, group], a_turned, b_turned, beta=1.0 if add else 0.0)

        return multiply


def _rows_first(matrices: np.ndarray) -> tuple[np.ndarray, bool]:
    """(B, rows, columns) as BLAS wants it, columns contiguous, and whether that took a transposition."""
    if matrices.shape[2] == 1 or matrices.strides[2] == matrices.itemsize:
        return matrices, False
    return matrices.transpose(0, 2, 1), True
