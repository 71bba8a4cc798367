"""What the misbehaving plug-ins share: a correct forward convolution to spoil, and the ways to spoil it."""

import ctypes
import time

import numpy as np

from convbench.problem import Pass
from convbench.registry import Implementation, bind_weights


class Right(Implementation):
    """Correct forward convolution, nchw, groups 1."""

    passes = (Pass.FORWARD,)
    layouts = ("nchw",)
    error_growth = 3.0

    def limits(self, problem):
        return f"{self.name}: groups must be 1" if problem.shape.groups > 1 else None

    def workspace_estimate(self, problem):
        s = problem.shape
        padded = s.n * s.c * (s.h + sum(s.padding[:2])) * (s.w + sum(s.padding[2:]))
        return (padded + s.n * s.k * s.p * s.q) * problem.item_bytes

    def prepare(self, problem, context, weights=None):
        s = problem.shape
        top, bottom, left, right = s.padding

        def run(x, w, y):
            x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
            y.fill(0)
            for r in range(s.r):
                for t in range(s.s):
                    rows = slice(r * s.dilation[0], r * s.dilation[0] + (s.p - 1) * s.stride[0] + 1, s.stride[0])
                    cols = slice(t * s.dilation[1], t * s.dilation[1] + (s.q - 1) * s.stride[1] + 1, s.stride[1])
                    y += np.einsum("nchw,kc->nkhw", x[:, :, rows, cols], w[:, :, r, t])

        return bind_weights(run, weights, context)


def segfault():
    """Reads address 0."""
    ctypes.string_at(0)


def hang():
    """Never comes back."""
    while True:
        time.sleep(3600)
