"""1x1 convolution as one product of the pixels with the filter, in vector kernels compiled here.

Georganas et al. 2018, "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures" (arXiv
1808.05567); the plan and the kernels are those of direct_simd.
"""

from __future__ import annotations

from typing import ClassVar

from convbench.algorithms.direct_simd import GemmSimd
from convbench.problem import Problem
from convbench.registry import register


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
