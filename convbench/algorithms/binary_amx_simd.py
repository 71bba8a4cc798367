"""Binary and XNOR convolution on AMX's tiles: signs as bytes, in vector kernels compiled here."""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.algorithms._simd import SimdImplementation
from convbench.formats import too_many_signs
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import Context, Run, register


class SignTilesSimd(SimdImplementation):
    """What both rows share: signs are bytes +1 and -1, padding is 0, so that every sum comes out right.

    A weight takes 8 bits in place of the 1 that it has: 4 times less memory than float32, not 32.

    On VGG-16's 3x3 layers from conv1_2 on (nhwc, 1 thread of a Xeon with AMX, filter packed before, 2026-11)
    xnor_amx_simd was 10 (64 channels, 224 x 224) and 12.1 to 16.0 times as fast as oneDNN in float32, and 0.61 to 1.0
    times as fast as oneDNN in int8, which reads a quarter of the bytes. Where the filter is packed on the clock, layers
    with 512 filters gain less, 6.1 (14 x 14) to 11.2: nearly all of the difference is reading the filter in float32.
    """

    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD,)
    arithmetic: ClassVar[str] = "int8-acc32"

    def unavailable(self) -> str | None:
        """A sentence where the unit has no tiles: `*_popcount_simd` computes the same on any."""
        missing = super().unavailable()
        if missing:
            return missing
        from convbench.simd import target

        if target.host().tiles("amx-int8"):
            return None
        return f"{self.name} needs AMX-INT8, and a system that lets processes use it: this machine has none"

    def limits(self, problem: Problem) -> str | None:
        """Only binary sums that float32 may not hold."""
        sentence = too_many_signs(problem)
        return f"{self.name}: {sentence}" if sentence else None

    def workspace_estimate(self, problem: Problem) -> int:
        """Filter in panels, tables, one thread's strip and results."""
        from convbench.algorithms import _sign_tiles_run as tiles
        from convbench.simd import target

        return tiles.estimate(problem, target.host())

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """With taps on padding, and what tiles multiply between two rows of pixels."""
        from convbench.algorithms import _sign_tiles_run as tiles
        from convbench.simd import target

        s = problem.shape
        return {"multiply": 2.0 * s.n * s.groups * tiles.plan_of(problem, target.host(), 1).multiplied}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles kernels, lays out the tables, packs the filter if it is given."""
        from convbench.algorithms import _sign_tiles_run as tiles
        from convbench.simd import target

        return tiles.prepare_tiles(problem, context, weights, target.host())


@register
class BinaryAmxSimd(SignTilesSimd):
    """Sums of signs: exact integers."""

    name: ClassVar[str] = "binary_amx_simd"
    semantics: ClassVar[Semantics] = Semantics.BINARY
    reference = "Courbariaux et al. 2016 (arXiv 1602.02830), as products of bytes"


@register
class XnorAmxSimd(SignTilesSimd):
    """Sums of signs, times the mean |w| of each filter and the mean |x| under each window."""

    name: ClassVar[str] = "xnor_amx_simd"
    semantics: ClassVar[Semantics] = Semantics.XNOR
    reference = "Rastegari et al. 2016 (arXiv 1603.05279), section 3.2, as products of bytes"
