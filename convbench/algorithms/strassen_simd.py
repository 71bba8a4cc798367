"""1x1 convolution by one level of the Strassen-Winograd product: seven products of half size instead of eight.

V. Strassen 1969, "Gaussian elimination is not optimal", Numerische Mathematik 13, in S. Winograd's form with 15
additions; blocking and the place of the additions: J. Huang et al. 2016, "Strassen's Algorithm Reloaded". For
convolutions: J. Cong and B. Xiao 2014. Kernels: `convbench/simd/kernels/strassen.py`; loops: `_strassen_simd.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.algorithms.direct_simd import GemmSimd
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register


@register
class StrassenSimd(GemmSimd):
    """1x1 filters, any stride, padding and groups; forward and backward data.

    An image's pixels, the input channels and the output channels are each halved; the sums of the filter's quadrants
    are packed with the filter, those of the pixels are formed for some tens of pixels at a time, and results are
    combined in registers. Products with a side below 8 stay whole, as in direct_simd. Backward weights is left to the
    direct product: both operands are activations there, and the sums of both would be formed in each call.

    On ResNet-50's fifteen 1x1 shapes (one image, nhwc, forward, 1 thread of a Xeon with AVX-512, 2026-11) it was 1.03
    to 1.12 times as fast as pointwise_simd on eight with packed weights, and 1.03 to 1.13 times on ten with raw ones,
    all with 128 channels or more on both sides. With 64 on one side it reached 0.87 to 0.97, because the sums of the
    pixels then serve few products. On 7 x 7 pixels with packed weights it gained nothing: the filter, which few pixels
    share, is 7/4 as large with its sums.

    Integers stay exact where the range leaves headroom: the largest sum of products is C22 = U3 + P5, over n/2 terms of
    (1 + 3 * 3 + 2 * 2 + 2 * 2) max|x| max|w|: 9 n max|x| max|w| must stay below 2^24, hence `integer_headroom` 9.

    error_growth 8: twice the largest measured, 3.8 (the factor's maximum taken over the image, see error_footprint),
    over 480 shapes with 8 to 48 channels and 7 with up to 2048, both passes, two seeds; relative L2 at most 0.77. Only
    a norm of the whole result bounds the error of one element, as of every fast product (Higham, Accuracy and Stability
    of Numerical Algorithms, section 23.2.2): with short sums neighbours differ much, and the factor rose to 6 with 4
    channels and to 55 with one.
    """

    name: ClassVar[str] = "strassen_simd"
    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD, Pass.BACKWARD_DATA)
    reference = "Strassen 1969; Huang et al. 2016, Strassen's Algorithm Reloaded; Cong and Xiao 2014"
    error_growth = 8.0
    integer_headroom: ClassVar[int] = 9

    def limits(self, problem: Problem) -> str | None:
        """Filters of one tap only."""
        s = problem.shape
        return None if s.r == s.s == 1 else f"strassen: filter must be 1x1, not {s.r}x{s.s}"

    def error_footprint(self, problem: Problem) -> tuple[int, int] | None:
        """Quadrants mix pixels of the whole image."""
        height, width = problem.out_shape[2:] if problem.layout == "nchw" else problem.out_shape[1:3]
        return height, width

    def workspace_estimate(self, problem: Problem) -> int:
        """The filter with its sums, and the scratch of two threads."""
        from convbench.algorithms import _strassen_simd_plan as planning
        from convbench.simd import target

        if not planning.splits(problem):
            return super().workspace_estimate(problem)
        return planning.bytes_of(planning.plan(problem, target.host(), True), 2)

    def packed_estimate(self, problem: Problem) -> int:
        """The same, and always the whole filter."""
        from convbench.algorithms import _strassen_simd_plan as planning
        from convbench.simd import target

        if not planning.splits(problem):
            return super().packed_estimate(problem)
        return planning.bytes_of(planning.plan(problem, target.host(), False), 2)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Seven products of half size, and the additions around them."""
        from convbench.algorithms import _strassen_simd_plan as planning
        from convbench.simd import target

        if not planning.splits(problem):
            return super().executed_flops(problem)
        return planning.flops(planning.plan(problem, target.host(), True))

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles kernels, lays out the buffers, packs the filter if it is given."""
        from convbench.algorithms import _strassen_simd, _strassen_simd_plan
        from convbench.simd import target

        if not _strassen_simd_plan.splits(problem):
            return super().prepare(problem, context, weights)
        return _strassen_simd.prepare(problem, context, weights, target.host())
