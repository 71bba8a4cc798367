"""im2col as Caffe did it: image by image, group by group, in channels-first memory.

Y. Jia et al. 2014, "Caffe: Convolutional Architecture for Fast Feature Embedding"; Y. Jia 2014, "Convolution in
Caffe: a memo". The columns of one image are all the memory that it needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import product
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class Im2colCaffeNumpy(Implementation):
    """One image's columns (C R S, P Q), then one product per group.

    Knows channels-first memory only: nhwc images, filters and gradients are converted on the clock.

    error_growth 4: twice the largest measured, 2.1, over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise,
    N P Q up to 40,000), three passes, both layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "im2col_caffe_numpy"
    reference = "Jia et al. 2014"
    error_growth = 4.0

    def workspace_estimate(self, problem: Problem) -> int:
        """One image's columns; one partial gradient; for nhwc one image and the filter in channels-first order."""
        one = one_image(problem)
        total = Im2col.workspace(one)
        if problem.layout == "nhwc":
            return total + one.operand_bytes
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return total + one.shape.k * one.shape.cg * one.shape.r * one.shape.s * one.item_bytes
        return total

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; there is nothing to pack."""
        one = one_image(problem)
        convolve = Im2col(one, context, product).run()
        converted = problem.layout == "nhwc"
        weights_pass = problem.pass_ is Pass.BACKWARD_WEIGHTS
        a_first = context.empty(one.a_shape, one.dtype) if converted else None
        b_first = context.empty(one.b_shape, one.dtype) if converted else None
        out_first = context.empty(one.out_shape, one.dtype) if converted or weights_pass else None

        def first(images: np.ndarray, buffer: np.ndarray | None) -> np.ndarray:
            """One image or the filter with its channels before its rows."""
            if buffer is None:
                return images
            np.copyto(buffer, images.transpose(0, 3, 1, 2))
            return buffer

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            filters = first(b, b_first)
            for i in range(problem.shape.n):
                image = slice(i, i + 1)
                to = out[image] if out_first is None else out_first
                convolve(first(a[image], a_first), filters, to)
                if converted:
                    np.copyto(out[image], to.transpose(0, 2, 3, 1))

        def run_weights(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
            assert out_first is not None
            total = dw.transpose(0, 3, 1, 2) if converted else dw  # (K, C/G, R, S)
            for i in range(problem.shape.n):
                image = slice(i, i + 1)
                convolve(first(x[image], a_first), first(dy[image], b_first), out_first)
                if i == 0:
                    np.copyto(total, out_first)
                else:
                    np.add(total, out_first, out=total)

        return run_weights if weights_pass else bind_weights(run, weights, context)


def one_image(problem: Problem) -> Problem:
    """The channels-first problem of one image."""
    return Problem(replace(problem.shape, n=1), problem.pass_, problem.dtype, "nchw", problem.semantics)
