"""Winograd convolution on a GPU: F(2x2,3x3) fused; F(4x4,3x3), F(6x6,3x3) and F(4x4,5x5) as transforms and products.

Lavin and Gray, arXiv 1509.09308. kernels/cuda/winograd_f2.cu; winograd_nonfused.cu and sgemm_batched.cu; steps:
`_winograd_cuda.py`.
"""

from __future__ import annotations

from typing import ClassVar

from convbench.algorithms._cuda import CudaImplementation, blocks
from convbench.algorithms._winograd_cuda import (
    Geometry,
    flops,
    forward_program,
    fused_depths,
    fused_program,
    weights_program,
)
from convbench.algorithms._winograd_cuda_sweep import other_fused_programs, other_programs
from convbench.algorithms._winograd_limits import footprint, refusal
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import Program
from convbench.problem import Pass, Problem
from convbench.registry import register


class WinogradCuda(CudaImplementation):
    """Base of the rows: a subclass gives `tile` (m) and `taps` (r).

    Forward and backward data: F(m x m, r x r). Backward weights: F(r x r, m x m), tiles of dy being the taps, summed
    over all tiles before one transform. vendor_products: cuBLAS multiplies, in full single precision.
    """

    tile: ClassVar[int]
    taps: ClassVar[int] = 3
    vendor_products: ClassVar[bool] = False
    arithmetic = "float32"
    exact_on_integers = False
    # The growth of these classes is set by the transforms, on short sums (see `_winograd.py`).
    error_length = 1024

    def limits(self, problem: Problem) -> str | None:
        """Unit stride and dilation, and the filter whose transform this is."""
        return refusal(problem, self.name, self.taps)

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """An m x m tile; for backward weights the whole filter."""
        return footprint(problem, self.tile)

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Chunk by chunk: transform, multiply, transform."""
        geometry = Geometry.of(problem, self.tile)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return weights_program(geometry, gpu, self.vendor_products)
        return forward_program(geometry, gpu, self.vendor_products)

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Other numbers of chunks; without the vendor's products, other tiles of them and parts of sums."""
        weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
        return other_programs(Geometry.of(problem, self.tile), gpu, self.vendor_products, weights)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Per phase; a fused multiply-add counts as two operations, threads that have nothing to do do not count."""
        return flops(Geometry.of(problem, self.tile), problem.pass_ is Pass.BACKWARD_WEIGHTS)


@register
class WinogradF2Cuda(WinogradCuda):
    """F(2x2,3x3), fused; backward weights F(3x3,2x2), not fused. 2.25 times fewer multiplications.

    Exact on integers, for the reasons given in `winograd_numpy.py`. Growth, emulated: 1.8 on ordinary shapes, 1.3 on
    tiny ones.
    """

    name = "winograd_f2_cuda"
    tile: ClassVar[int] = 2
    exact_on_integers = True
    integer_headroom: ClassVar[int] = 64  # a factor: n max|x| max|w| < 2^24 / 64
    error_growth = 4.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), sections 4.1 and 5"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """The filter's transform and one kernel; backward weights as the rows that are not fused."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return super().program(problem, gpu)
        return fused_program(Geometry.of(problem, self.tile), fused_depths(gpu)[0])

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Fused: the other number of channels at a time, and not fused; backward weights as the other rows."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return super().alternatives(problem, gpu)
        return other_fused_programs(Geometry.of(problem, self.tile), gpu)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """As the base; fused, every block of 64 outputs transforms the input again."""
        phases = super().executed_flops(problem)
        if problem.pass_ is not Pass.BACKWARD_WEIGHTS:
            phases["input_transform"] *= blocks(Geometry.of(problem, self.tile).outputs, 64)
        return phases


@register
class WinogradF4Cuda(WinogradCuda):
    """F(4x4,3x3) with points 0, +-1, 1/2, -2; backward weights F(3x3,4x4). 4 times fewer multiplications.

    Growth, emulated: 12.6 at most forward and backward data (a depthwise layer, 64 channels of 56x56; c=512 and k=512
    less than half), backward weights 3.2 on ordinary shapes, 10.0 on tiny ones.
    """

    name = "winograd_f4_cuda"
    tile: ClassVar[int] = 4
    error_growth = 20.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.3; points: arXiv 1803.10986"


@register
class WinogradF4CublasCuda(WinogradF4Cuda):
    """As winograd_f4_cuda, products by cuBLAS."""

    name = "winograd_f4_cublas_cuda"
    vendor_products = True


@register
class WinogradF6Cuda(WinogradCuda):
    """F(6x6,3x3) with points 0, +-1, +-2, +-1/2; backward weights F(3x3,6x6). 5.06 times fewer multiplications.

    Growth, emulated: 44.7 on ordinary shapes (depthwise), 30.7 on tiny ones; the bound is that of `winograd_numpy.py`,
    which saw 79 on larger depthwise layers.
    """

    name = "winograd_f6_cuda"
    tile: ClassVar[int] = 6
    error_growth = 160.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), supplement; points: arXiv 1803.10986"


@register
class WinogradF4Filter5Cuda(WinogradCuda):
    """F(4x4,5x5) with points 0, +-1, +-2, +-1/2; backward weights F(5x5,4x4). 6.25 times fewer multiplications.

    Growth, emulated: 34.4 on ordinary shapes, 71.4 on tiny ones (one pixel seen through 25 taps).
    """

    name = "winograd_f4_5x5_cuda"
    tile: ClassVar[int] = 4
    taps: ClassVar[int] = 5
    error_growth = 220.0
    error_length = 256
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4; points: arXiv 1803.10986"
