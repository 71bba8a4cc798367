"""Direct convolution of bfloat16, summed in float32: implicit GEMM in AMX tiles or bfloat16 dot products.

Georganas et al. 2018, "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures" (arXiv
1808.05567); Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training" (arXiv 1905.12322).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._simd import SimdImplementation
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register


@register
class DirectBf16Simd(SimdImplementation):
    """Any filter, stride, padding, dilation and groups; sums in float32, rounded once to bfloat16.

    AMX and AVX512_BF16 multiply pairs of bfloat16, and take subnormal numbers for 0; other units widen to float32.

    error_growth 2: twice the largest measured before the rounding, 0.94 without tiles (0.42 with them), over 7 shapes
    (3x3 with C = 512, 5x5 and 7x7 with stride 2, 1x1 with C = 2048, 24 groups), both passes and layouts, two seeds;
    relative L2 at most 0.08.
    """

    name: ClassVar[str] = "direct_bf16_simd"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16",)
    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD, Pass.BACKWARD_DATA)
    arithmetic: ClassVar[str] = "bfloat16-acc32"
    error_growth: ClassVar[float] = 2.0
    reference = "Georganas et al. 2018 (arXiv 1808.05567), section II; Kalamkar et al. 2019 (arXiv 1905.12322)"

    def workspace_estimate(self, problem: Problem) -> int:
        """Filter in panels, tables, one thread's strip and results."""
        from convbench.algorithms import _dot_simd, _dot_simd_formats
        from convbench.simd import target

        return _dot_simd.workspace(problem, target.host(), _dot_simd_formats.BFLOAT16)

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """With taps on padding, and what tiles multiply between two rows of pixels."""
        from convbench.algorithms import _dot_simd, _dot_simd_formats
        from convbench.simd import target

        return _dot_simd.executed(problem, target.host(), _dot_simd_formats.BFLOAT16)

    def prepare(self, problem: Problem, context: Context, weights: np.ndarray | None = None) -> Run:
        """Compiles kernels, lays out the tables, packs the filter if it is given."""
        from convbench.algorithms import _dot_simd, _dot_simd_formats
        from convbench.simd import target

        form: Any = _dot_simd_formats.BFLOAT16
        return _dot_simd.prepare_products(problem, context, weights, target.host(), form)
