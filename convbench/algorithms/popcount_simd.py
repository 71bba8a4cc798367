"""Binary and XNOR convolution by counting bits, in vector kernels compiled here."""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.algorithms._simd import SimdImplementation
from convbench.formats import too_many_signs
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import Context, Run, register


class PopcountSimd(SimdImplementation):
    """What both rows share: signs of the input are packed a strip at a time, then xor, a full adder and a count.

    Two words take five instructions where a count of each takes six: on two ports for vectors of 512 bits that is 12.8
    times what two multiply-adds of float32 do. On VGG-16's 3x3 layers from conv1_2 on (nhwc, 1 thread of a Xeon with
    AVX512_VPOPCNTDQ, filter packed before, 2026-11) xnor_popcount_simd was 8.0 to 8.9 times as fast as oneDNN in
    float32 with 64 channels on 224 x 224 pixels, 10.1 to 14.1 times with others; with the filter packed on the clock
    7.3 to 12.0 times, the least on 14 x 14 pixels and 512 channels.
    """

    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD,)
    arithmetic: ClassVar[str] = "binary"

    def limits(self, problem: Problem) -> str | None:
        """Only binary sums that float32 may not hold."""
        sentence = too_many_signs(problem)
        return f"{self.name}: {sentence}" if sentence else None

    def workspace_estimate(self, problem: Problem) -> int:
        """Filter in bits, tables, one thread's strips and results."""
        from convbench.algorithms import _signs_simd_run as signs
        from convbench.simd import target

        return signs.estimate(problem, target.host())

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles kernels, lays out the tables, packs the filter if it is given."""
        from convbench.algorithms import _signs_simd_run as signs
        from convbench.simd import target

        return signs.prepare_signs(problem, context, weights, target.host())


@register
class BinaryPopcountSimd(PopcountSimd):
    """Sums of signs: exact integers."""

    name: ClassVar[str] = "binary_popcount_simd"
    semantics: ClassVar[Semantics] = Semantics.BINARY
    reference = "Courbariaux et al. 2016 (arXiv 1602.02830)"


@register
class XnorPopcountSimd(PopcountSimd):
    """Sums of signs, times the mean |w| of each filter and the mean |x| under each window."""

    name: ClassVar[str] = "xnor_popcount_simd"
    semantics: ClassVar[Semantics] = Semantics.XNOR
    reference = "Rastegari et al. 2016 (arXiv 1603.05279), section 3.2"
