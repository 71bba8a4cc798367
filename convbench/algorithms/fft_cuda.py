"""One FFT per image on a GPU: the vendor's transforms and products, our padding, layouts and cropping.

Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2. Steps: `_fft_cuda.py`; kernels: kernels/cuda/fft_pointwise.cu.
"""

from __future__ import annotations

from math import log2

from convbench.algorithms._cuda import CudaImplementation
from convbench.algorithms._fft_cuda import WholeImage
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import Program
from convbench.problem import Pass, Problem
from convbench.registry import register


@register
class FftCuda(CudaImplementation):
    """Whole images, every shape. Per frequency a complex matrix product, as a real one of the vendor's BLAS; groups of
    few channels are multiplied by a kernel of ours.

    error_growth 5.5: as for `fft_scipy`, twice the largest of its single-precision transforms, 2.70; not measured with
    cuFFT. With transforms in double precision, which leaves the products' errors, the conformance shapes give 0.82.
    """

    name = "fft_cuda"
    arithmetic = "float32"
    exact_on_integers = False
    error_growth = 5.5
    reference = "Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Chunks of images: load, transform, multiply, transform back, store; filter spectra are made once."""
        return WholeImage(problem).program()

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The whole result shares a transform."""
        s = problem.shape
        sizes = {Pass.FORWARD: (s.p, s.q), Pass.BACKWARD_DATA: (s.h, s.w), Pass.BACKWARD_WEIGHTS: (s.r, s.s)}
        return sizes[problem.pass_]

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """A real transform of T points counts 2.5 T log2 T, a complex product and sum 8."""
        s, plan = problem.shape, WholeImage(problem)
        one = 2.5 * plan.points * log2(plan.points) if plan.points > 1 else 0.0
        sides = {"x": s.n * s.c * one, "y": s.n * s.k * one}
        multiply = 8.0 * s.n * plan.frequencies * s.k * s.cg
        filters = s.k * s.cg * one
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return {"input_transform": sides["x"] + sides["y"], "multiply": multiply, "filter_transform": filters}
        first, last = ("y", "x") if problem.pass_ is Pass.BACKWARD_DATA else ("x", "y")
        return {
            "input_transform": sides[first],
            "filter_transform": filters,
            "multiply": multiply,
            "output_transform": sides[last],
        }
