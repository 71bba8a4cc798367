"""Direct convolution as its definition reads: seven loops, compiled by Numba, the outer two in parallel.

The slow end of every comparison. No blocking, no vectorisation by hand, no reordering of sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class DirectNaiveNumba(Implementation):
    """Seven loops over channels-first memory; nhwc arrays are converted on the clock.

    Read in place, loops over pixels meet a new cache line at every step (backward weights of 256 channels, 3x3,
    56x56: 0.1 GFLOP/s against 2).

    error_growth 4.5: twice the largest measured, 2.2 (one running sum over N P Q = 784 terms), over 13 shapes (up to
    C = 512, 3x3; 1x1, 5x5 stride 2, depthwise, N P Q up to 40,000), three passes, both layouts, two seeds, in
    float32; relative L2 at most 1.0. int8 is summed in int32, exactly.
    """

    name = "direct_naive_numba"
    dtypes = ("float32", "float64", "int8")
    pool = "numba"
    reference = "the definition"
    error_growth = 4.5

    def workspace_estimate(self, problem: Problem) -> int:
        """Operands and result in channels-first order for nhwc; otherwise nothing."""
        return problem.operand_bytes if problem.layout == "nhwc" else 0

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Taps on padding are skipped."""
        return {"multiply": float(problem.valid_flops)}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles for the dtype (seconds at first, then from Numba's cache)."""
        from convbench.algorithms import _naive_loops as loops  # Numba takes half a second to import

        s = problem.shape
        geometry = (*s.stride, s.padding[0], s.padding[2], *s.dilation, s.groups)
        kernel = {
            Pass.FORWARD: loops.forward,
            Pass.BACKWARD_DATA: loops.backward_data,
            Pass.BACKWARD_WEIGHTS: loops.backward_weights,
        }[problem.pass_]

        function = loops.compiled(kernel, problem.dtype, problem.out_dtype)

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            loops.use_threads(context.threads)
            function(a, b, out, geometry)

        if problem.layout == "nchw":
            return bind_weights(run, weights, context)
        first = replace(problem, layout="nchw")
        shapes = (first.a_shape, first.b_shape, first.out_shape)
        types = (problem.dtype, problem.dtype, problem.out_dtype)
        own_a, own_b, own_out = (context.empty(*each) for each in zip(shapes, types, strict=True))

        def converted(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            np.copyto(own_a, a.transpose(0, 3, 1, 2))
            np.copyto(own_b, b.transpose(0, 3, 1, 2))
            run(own_a, own_b, own_out)
            np.copyto(out, own_out.transpose(0, 2, 3, 1))

        return bind_weights(converted, weights, context)
