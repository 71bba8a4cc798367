"""Overlap-save FFT tiles of 8 to 32 points a side in vector code generated here. Vasilache et al. 2014
(arXiv 1412.7580), section 6; Gauss' three products for a complex one.

Which tile: `_fft_simd_model.py`. Which blocks: `_fft_simd_plan.py`. Loops: `_fft_simd.py`, `_fft_simd_columns.py`,
`_fft_simd_weights.py`. Kernels: `convbench/simd/kernels/fft.py`, `fft_halves.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from convbench.algorithms._simd import SimdImplementation
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register

if TYPE_CHECKING:
    from convbench.algorithms._fft_simd_plan import Plan
    from convbench.simd.target import Target

LARGEST = 32


@register
class FftTiledSimd(SimdImplementation):
    """Overlap-save FFT tiles in generated vector code, products per frequency by brgemm.

    The filter's spectra exist in any case (raw weights: made at every call), so one plan serves both; the model that
    picks it counts packed weights, and a tenth of making the spectra. A 31x31 filter leaves a tile of 32 two results a
    side: computed, and slow.

    error_growth: 15 shapes x 3 passes x all tiles of 8, 16 and 32 points and both products (1 to 512 channels, 1 to 224
    points a side, 1x1 to 31x31 filters, 3 seeds), normal inputs: at most 2.60 for the largest element, at one product
    per output (a 1x1 filter on one channel, where nothing hides the transform's own error); Gauss' three products were
    little worse than four (2.42). 12 such shapes with tiles of 12, 20, 24 and 28 points as well, alone and mixed:
    at most 2.44 (24x24), in the same place. Doubled.
    """

    name = "fft_tiled_simd"
    exact_on_integers = False
    error_growth = 5.5
    reference = "Vasilache et al. 2014 (arXiv 1412.7580), section 6; overlap-save"
    #: Pairs (field, value) that every plan must have; for tests.
    only: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def limits(self, problem: Problem) -> str | None:
        """Stride and dilation 1; a filter within the largest tile."""
        s = problem.shape
        for what, pair in (("stride", s.stride), ("dilation", s.dilation)):
            if pair != (1, 1):
                return f"fft_tiled: {what} must be 1, not {pair[0] if pair[0] == pair[1] else f'{pair[0]}x{pair[1]}'}"
        if max(s.r, s.s) > LARGEST:
            return f"fft_tiled: the filter must fit a tile of {LARGEST}x{LARGEST}, not {s.r}x{s.s}"
        return None

    @staticmethod
    def target() -> Target:
        """The vector unit to generate code for."""
        from convbench.simd.target import host

        return host()

    def plan(self, problem: Problem) -> Plan:
        """Tile size and blocks."""
        from convbench.algorithms._fft_simd_model import choose

        return choose(problem, self.target(), self.only)

    def workspace_estimate(self, problem: Problem) -> int:
        """Bytes: spectra of a block of tiles and of all filters, for two threads."""
        return self.plan(problem).workspace_bytes()

    def packed_estimate(self, problem: Problem) -> int:
        """The same: spectra of all filters exist in either case."""
        return self.plan(problem).workspace_bytes()

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """By phase, as the kernels are written."""
        from convbench.algorithms._fft_simd_model import executed_flops

        return executed_flops(self.plan(problem))

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The valid part of a tile; backward weights sums over all tiles."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return (problem.shape.r, problem.shape.s)
        return self.plan(problem).step

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Kernels, tables, buffers; with `weights` the spectra of all filters as well."""
        from convbench.algorithms._fft_simd_run import Prepared

        plan = self.plan(problem)
        prepared = Prepared(plan, context)
        how = "staged" if plan.staged else "blocked"
        context.note("plan", f"tiles {plan.tile[0]}x{plan.tile[1]}, {plan.products} products, {how} by {plan.block}")
        if plan.is_weights_pass:
            return prepared.run_weights
        if weights is None:
            return prepared.run_raw
        prepared.transform_filters(weights)
        return prepared.run
