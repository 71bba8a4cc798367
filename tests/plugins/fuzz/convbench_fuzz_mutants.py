"""A plug-in of convolutions that fuzzing must catch: one element outside, a crash, a hang of nothing, a wrong result.

All are right, and touch nothing but their own, on results of fewer than 40 elements.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

from convbench.problem import Problem
from convbench.registry import Context, Implementation, Run, register
from convbench.testing.tap_by_tap import TapByTap

#: (context, a, b, out, workspace): what a mutant does beside the convolution
Act = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def element(array: np.ndarray, index: int) -> Any:
    """The float32 so many elements from the array's first, inside or outside."""
    return ctypes.c_float.from_address(array.ctypes.data + 4 * index)


def _write(array: np.ndarray, index: int) -> None:
    element(array, index).value = 1.0


def _change(out: np.ndarray, amount: float) -> None:
    out.reshape(-1)[out.size // 2] += amount


MUTANTS: dict[str, Act] = {
    "reads_past_a": lambda a, b, out, space: element(a, a.size).value,
    "reads_before_a": lambda a, b, out, space: element(a, -1).value,
    "reads_past_b": lambda a, b, out, space: element(b, b.size).value,
    "reads_before_out": lambda a, b, out, space: element(out, -1).value,
    "reads_past_workspace": lambda a, b, out, space: element(space, space.size).value,
    "reads_before_workspace": lambda a, b, out, space: element(space, -1).value,
    "writes_past_out": lambda a, b, out, space: _write(out, out.size),
    "writes_before_out": lambda a, b, out, space: _write(out, -1),
    "writes_past_workspace": lambda a, b, out, space: _write(space, space.size),
    "writes_before_workspace": lambda a, b, out, space: _write(space, -1),
    "crashes": lambda a, b, out, space: os.kill(os.getpid(), signal.SIGSEGV),
    "changes_a": lambda a, b, out, space: _write(a, 0),
    "is_wrong": lambda a, b, out, space: _change(out, 1.0),
    "is_inexact": lambda a, b, out, space: _change(out, 1e-2),
    "is_right": lambda a, b, out, space: None,
}


class FuzzMutant(Implementation):
    """A correct convolution, and one act beside it."""

    dtypes = ("float32",)
    act: Act

    def workspace_estimate(self, problem: Problem) -> int:
        """Not the point here."""
        return problem.operand_bytes

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """run(a, b, out), or run(a, out) over a copy of the weights."""
        correct, act = TapByTap(problem, context), type(self).act
        space = context.empty((33,), "float32")

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            correct(a, b, out)
            if out.size >= 40:
                act(a, b, out, space)

        if weights is None:
            return run
        kept = context.empty(weights.shape, weights.dtype)
        kept[...] = weights
        return lambda a, out: run(a, kept, out)


for _name, _act in MUTANTS.items():
    register(type(f"Fuzz{_name}", (FuzzMutant,), {"name": f"fuzzmutant_{_name}", "act": staticmethod(_act)}))
