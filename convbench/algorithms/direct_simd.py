"""Direct convolution as implicit GEMM in vector kernels compiled here: sums over taps, no column matrix.

Georganas et al. 2018, "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures" (arXiv
1808.05567), and 2019, arXiv 1906.06440: one batch-reduce product for all passes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.algorithms._simd import SimdImplementation
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register


class GemmSimd(SimdImplementation):
    """What direct_simd and pointwise_simd share: the plan, its buffers, its cost."""

    reference = "Georganas et al. 2018 (arXiv 1808.05567), section II; Georganas et al. 2019 (arXiv 1906.06440)"
    error_growth = 4.5

    def workspace_estimate(self, problem: Problem) -> int:
        """Filter in panels, tables, one thread's strips and results."""
        from convbench.algorithms import _gemm_simd_run as products
        from convbench.algorithms import _gemm_simd_weights_run as sums
        from convbench.simd import target

        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            plan, _ = sums.weights_plan_of(problem, target.host(), 1)
            return 4 * (sum(plan.strip_floats(problem.shape.q)) + plan.result_floats) + 8 * sums.weights_items(plan)
        made = products.plan_of(problem, target.host(), 1)
        floats = made.packed_floats + made.strip_floats + made.result_floats
        return 4 * floats + 8 * (products.table_items(made) + made.geometry.channels * made.geometry.taps)

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Taps on padding are not multiplied, unless the planner found padding cheaper."""
        from convbench.algorithms import _gemm_simd_run as products
        from convbench.algorithms import _gemm_simd_weights_run as sums
        from convbench.simd import target

        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            plan, _ = sums.weights_plan_of(problem, target.host(), 1)
            return {"multiply": 2.0 * problem.shape.groups * plan.multiplied}
        made = products.plan_of(problem, target.host(), 1)
        return {"multiply": 2.0 * made.geometry.images * made.geometry.groups * made.multiplied}

    def prepare(self, problem: Problem, context: Context, weights: np.ndarray | None = None) -> Run:
        """Compiles kernels, lays out the tables, packs the filter if it is given."""
        from convbench.algorithms import _gemm_simd_run as products
        from convbench.algorithms import _gemm_simd_weights_run as sums
        from convbench.simd import target

        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return sums.prepare_weights(problem, context, target.host())
        return products.prepare_products(problem, context, weights, target.host())


@register
class DirectSimd(GemmSimd):
    """Any filter, stride, padding, dilation and groups.

    error_growth 4.5: twice the largest measured, 2.1, over 13 shapes (3x3 with C = 512, 7x7 and 5x5 with stride 2, 1x1
    with C = 2048, 12 groups, sums over 40,000 pixels), three passes, both layouts, two seeds; relative L2 at most 0.42.
    """

    name: ClassVar[str] = "direct_simd"
