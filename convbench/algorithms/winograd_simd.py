"""Fused Winograd convolution on vector kernels: transforms and products of a block of tiles stay in the cache.

Lavin and Gray, arXiv 1509.09308 (the algorithm); Park et al. and Georganas et al., arXiv 1808.05567 (blocking with a
batch-reduce product). Blocks, loops and kernels: `_winograd_simd_plan.py`, `_winograd_simd.py`, `convbench/simd`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.algorithms._simd import SimdImplementation
from convbench.algorithms._winograd_limits import footprint, refusal
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run, register


class WinogradSimd(SimdImplementation):
    """Base of the rows: a subclass gives `tile` (m), `taps` (r) and, where the stride is not 1, `filter`, `stride`.

    Forward and backward data: F(m x m, r x r) in blocks of tiles. Backward weights: F(r x r, m x m), see
    `_winograd_simd_weights.py`.
    """

    tile: ClassVar[int]
    taps: ClassVar[int] = 3
    filter: ClassVar[int] = 3
    stride: ClassVar[int] = 1
    exact_on_integers = False
    # The growth of these classes is set by the transforms, on short sums (see `_winograd.py`).
    error_length = 1024

    def limits(self, problem: Problem) -> str | None:
        """Unit dilation, and the stride and filter whose transform this is."""
        return refusal(problem, self.name, self.filter, self.stride)

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """An m x m tile; for backward weights the whole filter."""
        return footprint(problem, self.tile)

    def workspace_estimate(self, problem: Problem) -> int:
        """Buffers with raw weights and two threads (buffers of a thread are small)."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            from convbench.algorithms._winograd_simd_weights import backward_weights_bytes

            return int(backward_weights_bytes(problem, self.tile, self.taps))
        return self._bytes(problem, True)

    def packed_estimate(self, problem: Problem) -> int:
        """Buffers with packed weights, the kept filter among them."""
        return self._bytes(problem, False)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Per phase; a fused multiply-add counts as two operations, lanes that hold nothing do not count."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            from convbench.algorithms._winograd_simd_weights import backward_weights_flops

            return dict(backward_weights_flops(problem, self.tile, self.taps))
        from convbench.algorithms._winograd_simd_plan import flops, geometry

        return flops(geometry(problem, self.tile, self.taps))

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Kernels, buffers and, with `weights`, the filter in panels; the phases run block by block."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            from convbench.algorithms._winograd_simd_weights import prepare_backward_weights

            return prepare_backward_weights(problem, context, self.tile, self.taps)
        from convbench.algorithms._winograd_simd_build import build

        return build(problem, context, weights, self.tile, self.taps)

    def _bytes(self, problem: Problem, raw: bool) -> int:
        from convbench.algorithms._winograd_simd_plan import choose, geometry
        from convbench.simd.target import host

        tiles = geometry(problem, self.tile, self.taps)
        return max(choose(tiles, host(), threads, raw).bytes(raw, 2) for threads in (1, 2))


@register
class WinogradF2Simd(WinogradSimd):
    """F(2x2,3x3); backward weights F(3x3,2x2). 2.25 times fewer multiplications.

    Growth: measured as in `winograd_numpy.py`: 0.9 on ordinary shapes, 1.5 on tiny ones. Exact on integers, for the
    reasons given there.
    """

    name = "winograd_f2_simd"
    tile: ClassVar[int] = 2
    exact_on_integers = True
    integer_headroom: ClassVar[int] = 64  # a factor: n max|x| max|w| < 2^24 / 64
    error_growth = 4.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.1"


@register
class WinogradF4Simd(WinogradSimd):
    """F(4x4,3x3) with points 0, +-1, 1/2, -2; backward weights F(3x3,4x4). 4 times fewer multiplications.

    Growth: 4.8 on ordinary shapes, 6.9 on tiny ones, backward weights as the NumPy row: 10.0 at most.
    """

    name = "winograd_f4_simd"
    tile: ClassVar[int] = 4
    error_growth = 20.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.3; points: arXiv 1803.10986"


@register
class WinogradF6Simd(WinogradSimd):
    """F(6x6,3x3) with points 0, +-1, +-2, +-1/2; backward weights F(3x3,6x6). 5.06 times fewer multiplications.

    Growth: 21.7 on ordinary shapes, 13.0 on tiny ones, backward weights as the NumPy row: 35.5 at most;
    depthwise layers reach 72 as that row reaches 79 (see there), and have its bound.
    """

    name = "winograd_f6_simd"
    tile: ClassVar[int] = 6
    error_growth = 160.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), supplement; points: arXiv 1803.10986"


@register
class WinogradF2Filter5Simd(WinogradSimd):
    """F(2x2,5x5) with points 0, +-1, 1/2, -2; backward weights F(5x5,2x2). 2.78 times fewer multiplications.

    Growth: 3.3 on ordinary shapes, 9.5 on tiny ones, backward weights as the NumPy row: 20.8 at most.
    """

    name = "winograd_f2_5x5_simd"
    tile: ClassVar[int] = 2
    taps: ClassVar[int] = 5
    filter: ClassVar[int] = 5
    error_growth = 42.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4; points: arXiv 1803.10986"


@register
class WinogradF4Filter5Simd(WinogradSimd):
    """F(4x4,5x5) with points 0, +-1, +-2, +-1/2; backward weights F(5x5,4x4). 6.25 times fewer multiplications.

    Growth: 11.5 on ordinary shapes, 29.9 on tiny ones, backward weights as the NumPy row: 110 at most.
    """

    name = "winograd_f4_5x5_simd"
    tile: ClassVar[int] = 4
    taps: ClassVar[int] = 5
    filter: ClassVar[int] = 5
    error_growth = 220.0
    error_length = 256
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4; points: arXiv 1803.10986"


class StridedWinogradSimd(WinogradSimd):
    """Stride 2: four decimated images of stride 1 side by side, 4 C channels; forward only.

    y[p] = sum over phases a, taps t: x[2 (p + t) + a] w[2 t + a], so r taps become ceil(r / 2), and the gathering input
    transform reads every second pixel. Backward data would write four interleaved results: not done.
    """

    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD,)
    stride: ClassVar[int] = 2


@register
class WinogradF4Filter3Stride2Simd(StridedWinogradSimd):
    """F(4x4,2x2) with points 0, +-1, -2 on four phases: 25 x 4 / 16 = 6.25 products for 9.

    Pays on large images alone: the transformed filter is 25 x 4 / 9 = 11 times the filter, which few tiles do not
    amortise. (F(6x6,2x2), 5.4 products for 9, was slower everywhere.) Growth: 5.5 on ordinary shapes, 1.2 on tiny ones.
    """

    name = "winograd_f4_3x3s2_simd"
    tile: ClassVar[int] = 4
    taps: ClassVar[int] = 2
    error_growth = 12.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4, on decimated images"


@register
class WinogradF4Filter5Stride2Simd(StridedWinogradSimd):
    """F(4x4,3x3) with points 0, +-1, 1/2, -2 on four phases: 36 x 4 / 16 = 9 products for 25.

    Growth: 4.3 on ordinary shapes, 7.6 on tiny ones.
    """

    name = "winograd_f4_5x5s2_simd"
    tile: ClassVar[int] = 4
    filter: ClassVar[int] = 5
    error_growth = 20.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4, on decimated images"


@register
class WinogradF4Filter7Stride2Simd(StridedWinogradSimd):
    """F(4x4,4x4) with points 0, +-1, +-2, 1/2 on four phases: 49 x 4 / 16 = 12.25 products for 49.

    Growth: 5.8 on ordinary shapes, 10.4 on tiny ones.
    """

    name = "winograd_f4_7x7s2_simd"
    tile: ClassVar[int] = 4
    taps: ClassVar[int] = 4
    filter: ClassVar[int] = 7
    error_growth = 22.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4, on decimated images"
