"""One readable convolution for tests to break: tap by tap, a product of channels over a padded copy (kn2row's idea).

It shares nothing with the oracle (which pads nothing and calls no BLAS) nor with any registered algorithm.
"""

from __future__ import annotations

import numpy as np

from convbench.problem import Padding, Pair, Pass, Problem
from convbench.registry import Context


def logical(array: np.ndarray, problem: Problem) -> np.ndarray:
    """A view in the order (N, C, H, W), (K, C/G, R, S) or (N, K, P, Q), whatever the layout."""
    return array if problem.layout == "nchw" else array.transpose(0, 3, 1, 2)


class TapByTap:
    """A correct convolution: for each tap one product of channels over a strided window of a padded copy.

    stride and padding may be given apart from the problem, and the clearing of the padded copy left out, so that
    mutants can be wrong about them.
    """

    def __init__(
        self,
        problem: Problem,
        context: Context,
        stride: Pair | None = None,
        padding: Padding | None = None,
        clear: bool = True,
    ) -> None:
        s = self.shape = problem.shape
        self.problem = problem
        self.stride = stride or s.stride
        self.top, _, self.left, _ = padding or s.padding
        height = max(self.top + s.h, (s.p - 1) * self.stride[0] + s.extent[0])
        width = max(self.left + s.w, (s.q - 1) * self.stride[1] + s.extent[1])
        kept = problem.out_dtype if problem.pass_ is Pass.BACKWARD_DATA else problem.dtype  # of x, or sums of dx
        self.padded = context.empty((s.n, s.c, height, width), kept)
        if clear:
            self.padded.fill(0)

    def __call__(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """Writes the result of the problem's pass to `out`."""
        first, second, result = (logical(array, self.problem) for array in (a, b, out))
        if self.problem.pass_ is Pass.FORWARD:
            self._forward(first, second, result)
        elif self.problem.pass_ is Pass.BACKWARD_DATA:
            self._backward_data(first, second, result)
        else:
            self._backward_weights(first, second, result)

    def _forward(self, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
        s = self.shape
        self._inside()[...] = x
        total = np.zeros((s.n, s.groups, s.kg, s.p * s.q), y.dtype)
        for r, t in np.ndindex(s.r, s.s):
            window = self._window(r, t).reshape(s.n, s.groups, s.cg, s.p * s.q)  # (N, G, C/G, PQ)
            filters = w[:, :, r, t].reshape(s.groups, s.kg, s.cg)  # (G, K/G, C/G)
            total += np.matmul(filters, window, dtype=y.dtype)  # (N, G, K/G, PQ)
        y[...] = total.reshape(y.shape)  # (N, K, P, Q)

    def _backward_data(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        s = self.shape
        errors = dy.reshape(s.n, s.groups, s.kg, s.p * s.q)  # (N, G, K/G, PQ)
        for r, t in np.ndindex(s.r, s.s):
            filters = w[:, :, r, t].reshape(s.groups, s.kg, s.cg).transpose(0, 2, 1)  # (G, C/G, K/G)
            products = np.matmul(filters, errors, dtype=dx.dtype)  # (N, G, C/G, PQ)
            self._window(r, t)[...] += products.reshape(s.n, s.c, s.p, s.q)  # (N, C, P, Q)
        dx[...] = self._inside()
        self.padded.fill(0)  # for the next call

    def _backward_weights(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        s = self.shape
        self._inside()[...] = x
        errors = dy.reshape(s.n, s.groups, s.kg, s.p * s.q)  # (N, G, K/G, PQ)
        for r, t in np.ndindex(s.r, s.s):
            window = self._window(r, t).reshape(s.n, s.groups, s.cg, s.p * s.q)  # (N, G, C/G, PQ)
            products = np.matmul(errors, window.transpose(0, 1, 3, 2), dtype=dw.dtype)  # (N, G, K/G, C/G)
            dw[:, :, r, t] = products.sum(0).reshape(s.k, s.cg)  # (K, C/G)

    def _inside(self) -> np.ndarray:
        s = self.shape
        return self.padded[:, :, self.top : self.top + s.h, self.left : self.left + s.w]

    def _window(self, r: int, t: int) -> np.ndarray:
        """(N, C, P, Q): what tap (r, t) sees."""
        s, (down, right) = self.shape, self.stride
        top, left = r * s.dilation[0], t * s.dilation[1]
        return self.padded[:, :, top : top + (s.p - 1) * down + 1 : down, left : left + (s.q - 1) * right + 1 : right]
