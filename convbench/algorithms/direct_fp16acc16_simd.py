"""Direct convolution in half precision throughout: AVX512_FP16 multiplies and adds float16, twice as many a cycle.

The implicit GEMM of direct_simd (Georganas et al. 2018, arXiv 1808.05567) on words of two channels. A sum kept in 11
bits loses what is small beside it, so that the accumulators are emptied into float32 after every 128 products
(`simd.kernels.half_pixels.LIMIT`): the sum of blocks that Higham and Mary 2019 (SIAM J. Sci. Comput. 41(5), section 3)
show to have the error of one block's length.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.algorithms.direct_simd import GemmSimd
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register


@register
class DirectFp16acc16Simd(GemmSimd):
    """Forward and backward data of any filter, stride, padding, dilation and groups; there is no portable path.

    The sums of blocks, too, must stay below 65,504, the largest float16. Measured beside
    direct_fp16_simd on 20 layers: 117 to 396 GFLOP/s, 1.6 to 4.4 times PyTorch's float16, least with 3 or 64 channels.

    error_length 256: a result has two accumulators of 128 products each between two additions in float32. error_growth
    2.5: twice the largest measured, 1.16, over 14 shapes (up to 18,432 products; 3x3 to 13x13, 12 groups, depthwise),
    both passes and layouts, two seeds, in units of float16's eps; relative L2 at most 0.17.
    """

    name: ClassVar[str] = "direct_fp16acc16_simd"
    dtypes: ClassVar[tuple[str, ...]] = ("float16",)
    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD, Pass.BACKWARD_DATA)
    arithmetic: ClassVar[str] = "float16"
    error_growth: ClassVar[float] = 2.5
    error_length: ClassVar[int | None] = 256

    def unavailable(self) -> str | None:
        """Names the instructions that are missing."""
        missing = super().unavailable()
        if missing:
            return missing
        from convbench.simd import target
        from convbench.simd.kernels import half_pixels

        if not half_pixels.has_instruction(target.host()):
            return f"{self.name} needs a processor that multiplies float16 (AVX512_FP16)"
        return None

    def workspace_estimate(self, problem: Problem) -> int:
        """As direct_simd with half the channels, and a panel of the filter before its channels are paired."""
        from convbench.algorithms import _gemm_simd_run as products
        from convbench.simd import target

        words = products.in_words(problem)
        made = products.plan_of(words, target.host(), 1)
        return super().workspace_estimate(words) + 4 * products.pair_floats(made)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Two products for each word: of an odd number of channels the last is multiplied with 0."""
        from convbench.algorithms import _gemm_simd_run as products

        return {phase: 2 * count for phase, count in super().executed_flops(products.in_words(problem)).items()}

    def prepare(self, problem: Problem, context: Context, weights: np.ndarray | None = None) -> Run:
        """As direct_simd."""
        from convbench.algorithms import _gemm_simd_run as products
        from convbench.simd import target

        return products.prepare_products(problem, context, weights, target.host(), words=True)
