"""Direct convolution of int8, summed exactly in int32: implicit GEMM in AMX tiles or byte dot products.

Georganas et al. 2018, "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures" (arXiv
1808.05567), on bytes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._simd import SimdImplementation
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register


@register
class DirectInt8Simd(SimdImplementation):
    """Any filter, stride, padding, dilation and groups; every sum is exact.

    AMX multiplies signed by signed bytes. AVX-VNNI and AVX512-VNNI multiply unsigned by signed: there x is stored 128
    larger, and 128 times the sum of each filter subtracted, modulo 2^32. Other units take ordinary instructions.
    """

    name: ClassVar[str] = "direct_int8_simd"
    dtypes: ClassVar[tuple[str, ...]] = ("int8",)
    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD,)
    reference = "Georganas et al. 2018 (arXiv 1808.05567), section II; Jacob et al. 2018 (arXiv 1712.05877), 2.2"

    def workspace_estimate(self, problem: Problem) -> int:
        """Filter in panels, tables, one thread's strip and results."""
        from convbench.algorithms import _dot_simd, _dot_simd_formats
        from convbench.simd import target

        return _dot_simd.workspace(problem, target.host(), _dot_simd_formats.INT8)

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """With taps on padding, and what tiles multiply between two rows of pixels."""
        from convbench.algorithms import _dot_simd, _dot_simd_formats
        from convbench.simd import target

        return _dot_simd.executed(problem, target.host(), _dot_simd_formats.INT8)

    def prepare(self, problem: Problem, context: Context, weights: np.ndarray | None = None) -> Run:
        """Compiles kernels, lays out the tables, packs the filter if it is given."""
        from convbench.algorithms import _dot_simd, _dot_simd_formats
        from convbench.simd import target

        form: Any = _dot_simd_formats.INT8
        return _dot_simd.prepare_products(problem, context, weights, target.host(), form)
