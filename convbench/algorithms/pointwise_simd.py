"""1x1 convolution as one product of the pixels with the filter, in vector kernels compiled here.

Georganas et al. 2018, "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures" (arXiv
1808.05567). The plan and the kernels are those of direct_simd, but for large nchw planes, which are not turned.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.algorithms.direct_simd import GemmSimd
from convbench.problem import Problem
from convbench.registry import Context, Run, register


@register
class PointwiseSimd(GemmSimd):
    """1x1 filters, whatever the stride, the padding and the groups.

    error_growth 4.5, as direct_simd: the largest measured was 1.7 (C = 2048 and four images of 14 x 14, three passes,
    both layouts, two seeds), the relative L2 error at most 0.15.
    """

    name: ClassVar[str] = "pointwise_simd"

    def limits(self, problem: Problem) -> str | None:
        """Filters of one tap only."""
        s = problem.shape
        return None if s.r == s.s == 1 else f"pointwise: filter must be 1x1, not {s.r}x{s.s}"

    def workspace_estimate(self, problem: Problem) -> int:
        """Large nchw planes: a panel of pixels; else as direct_simd."""
        return self._columns_bytes(problem, False) or super().workspace_estimate(problem)

    def packed_estimate(self, problem: Problem) -> int:
        """The same, and the filter."""
        return self._columns_bytes(problem, True) or super().packed_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Every product once; with padding as direct_simd."""
        if self._columns_bytes(problem, False):
            return {"multiply": float(problem.direct_flops)}
        return super().executed_flops(problem)

    def prepare(self, problem: Problem, context: Context, weights: np.ndarray | None = None) -> Run:
        """Large nchw planes are multiplied where they lie (`_pointwise_simd_nchw`)."""
        from convbench.algorithms import _pointwise_simd_nchw as columns
        from convbench.simd import target

        if columns.applies(problem):
            return columns.prepare(problem, context, weights, target.host())
        return super().prepare(problem, context, weights)

    @staticmethod
    def _columns_bytes(problem: Problem, packed: bool) -> int:
        """Workspace of the way without turning; 0 where it is not taken."""
        from convbench.algorithms import _pointwise_simd_nchw as columns
        from convbench.simd import target

        return columns.workspace_bytes(problem, target.host(), packed) if columns.applies(problem) else 0
