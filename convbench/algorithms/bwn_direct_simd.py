"""Direct convolution with binary weights in vector kernels: direct_simd's product on a filter of signs and means.

Rastegari et al. 2016 (arXiv 1603.05279), section 3.1.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._simd import SimdImplementation, address_of
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import Context, Run, register, with_packing


@register
class BwnDirectSimd(SimdImplementation):
    """Any filter, stride, padding, dilation and groups.

    On VGG-16's 3x3 layers from conv1_2 on (nhwc, 1 thread of a Xeon with AVX-512, 2026-11) it took as long as
    direct_simd with the filter packed before, within 1 %, and up to 16 % longer (512 channels, 14 x 14 pixels) with a
    raw filter, which is binarised on the clock: where multiplying and adding is one instruction, binary weights save
    memory and no time, as Rastegari et al. say themselves.

    error_growth 4.5, as direct_simd: the products are its products. At most 0.23 of the bound was used over 32 shapes
    (up to 512 channels with a 3x3 filter, 2048 with 1x1, 7x7 with stride 2), both passes and layouts, two seeds.
    """

    name: ClassVar[str] = "bwn_direct_simd"
    semantics: ClassVar[Semantics] = Semantics.BINARY_WEIGHTS
    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD, Pass.BACKWARD_DATA)
    reference = "Rastegari et al. 2016 (arXiv 1603.05279), section 3.1"
    error_growth = 4.5

    def workspace_estimate(self, problem: Problem) -> int:
        """As direct_simd, and the binary filter."""
        s = problem.shape
        return self.packed_estimate(problem) + 4 * s.k * s.cg * s.r * s.s

    def packed_estimate(self, problem: Problem) -> int:
        """As direct_simd: the binary filter is packed at once."""
        from convbench.algorithms.direct_simd import DirectSimd

        return DirectSimd().workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """As direct_simd."""
        from convbench.algorithms.direct_simd import DirectSimd

        return DirectSimd().executed_flops(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles kernels, lays out the tables, binarises and packs the filter if it is given."""
        from convbench.algorithms._bwn_simd import Binariser
        from convbench.algorithms._gemm_simd_run import prepare_products
        from convbench.simd import target

        binarise = Binariser(problem.b_shape, context.threads, target.host())
        if weights is not None:
            binary = np.empty(problem.b_shape, np.float32)
            binarise(address_of(weights), address_of(binary))
            return prepare_products(problem, context, binary, target.host())
        binary = context.empty(problem.b_shape, np.float32)
        multiply = prepare_products(problem, context, None, target.host())

        def pack(a: np.ndarray, b: np.ndarray) -> None:
            binarise(address_of(b), address_of(binary))

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            binarise(address_of(b), address_of(binary))
            multiply(a, binary, out)

        return with_packing(run, pack)
