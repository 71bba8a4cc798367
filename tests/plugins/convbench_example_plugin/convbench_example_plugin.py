"""Convolution one filter tap at a time with numpy.einsum: the smallest complete plug-in for convbench.

What makes it a plug-in: a class decorated with @register in a module that the package's entry point in the group
`convbench.algorithms` names. After `pip install` it shows in list, verify, run and report like a built-in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Implementation, bind_weights, register


@register
class ExampleTaps(Implementation):
    """Adds up R S products of shifted inputs; no padding is ever stored.

    error_growth: over nine shapes (up to c = 512), three passes and both layouts in float32, the largest
    |error| / (eps sqrt(n) sqrt(x^2 * w^2)) was 1.9 and the largest relative L2 error 0.18 eps sqrt(n).
    """

    name = "example_taps_numpy"
    reference = "the definition of convolution, tap by tap"
    error_growth = 4.0

    def workspace_estimate(self, problem: Problem) -> int:
        """The largest product that einsum allocates for one tap."""
        s = problem.shape
        rows, cols = min(s.p, s.h), min(s.q, s.w)  # outputs of one tap that read the image
        elements = {
            Pass.FORWARD: s.n * s.k * rows * cols,
            Pass.BACKWARD_DATA: s.n * s.c * rows * cols,
            Pass.BACKWARD_WEIGHTS: s.k * s.cg,
        }
        return elements[problem.pass_] * problem.item_bytes

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Taps on padding are skipped."""
        return {"multiply": float(problem.valid_flops)}

    def prepare(self, problem: Problem, context: Any, weights: Any = None) -> Any:
        """Works out which part of the input each tap reads; nothing is allocated before run()."""
        s, windows = problem.shape, list(_windows(problem.shape))

        def split(array: np.ndarray, groups_axis: int) -> np.ndarray:
            """Channels second, and the axis that groups divide split into (G, channels of a group)."""
            a = array if problem.layout == "nchw" else array.transpose(0, 3, 1, 2)
            shape = list(a.shape)
            shape[groups_axis : groups_axis + 1] = [s.groups, a.shape[groups_axis] // s.groups]
            return a.reshape(shape)  # (N, G, C/G, H, W), or (G, K/G, C/G, R, S)

        def forward(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
            x, w, out = split(x, 1), split(w, 0), split(y, 1)
            y.fill(0)
            for tap, source, target in windows:
                out[target] += np.einsum("ngchw,gkc->ngkhw", x[source], w[(..., *tap)])

        def backward_data(dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
            dy, w, out = split(dy, 1), split(w, 0), split(dx, 1)
            dx.fill(0)
            for tap, source, target in windows:
                out[source] += np.einsum("ngkhw,gkc->ngchw", dy[target], w[(..., *tap)])

        def backward_weights(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
            x, dy, out = split(x, 1), split(dy, 1), split(dw, 0)
            dw.fill(0)
            for tap, source, target in windows:
                out[(..., *tap)] = np.einsum("ngkhw,ngchw->gkc", dy[target], x[source])

        runs = {
            Pass.FORWARD: forward,
            Pass.BACKWARD_DATA: backward_data,
            Pass.BACKWARD_WEIGHTS: backward_weights,
        }
        return bind_weights(runs[problem.pass_], weights, context)


def _windows(s: ConvShape) -> Iterator[tuple[tuple[int, int], tuple[Any, ...], tuple[Any, ...]]]:
    """(tap, the part of the input that it reads, the outputs that read it), for taps that read anything."""
    for r in range(s.r):
        rows = _overlap(s.h, s.p, r * s.dilation[0] - s.padding[0], s.stride[0])
        for t in range(s.s):
            cols = _overlap(s.w, s.q, t * s.dilation[1] - s.padding[2], s.stride[1])
            if rows and cols:
                yield (r, t), (..., rows[0], cols[0]), (..., rows[1], cols[1])


def _overlap(size: int, outputs: int, first: int, stride: int) -> tuple[slice, slice] | None:
    """Input and output slices of one axis for a tap that reads input `first + stride * output`."""
    low = max(0, -(first // stride))  # the first output whose input is inside: ceil(-first / stride)
    high = min(outputs, (size - 1 - first) // stride + 1)
    if high <= low:
        return None
    return slice(first + low * stride, first + (high - 1) * stride + 1, stride), slice(low, high)
