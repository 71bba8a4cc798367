"""Filters binarised in vector kernels, one filter a task."""

from __future__ import annotations

import numpy as np

from convbench.simd.driver import Runner, call, item, task
from convbench.simd.kernels import signs
from convbench.simd.target import Target

W, BINARY, SIZE, KERNEL, FACTOR = range(5)


@task
def filter_task(index: int, thread: int, p: int) -> None:
    """Task: one filter."""
    skipped = 4 * index * item(p, SIZE)
    call(item(p, KERNEL), (item(p, SIZE), item(p, W) + skipped, item(p, BINARY) + skipped, item(p, FACTOR)))


class Binariser:
    """binarise(address of w, address of the result) for filters of one shape (K, ...)."""

    def __init__(self, shape: tuple[int, ...], threads: int, target: Target) -> None:
        self._count, size = shape[0], int(np.prod(shape[1:]))
        self._parameters = np.zeros(5, np.int64)
        factor = int(np.float32(1 / size).view(np.int32))
        self._parameters[SIZE:] = size, signs.binarise(target).address, factor
        self._run = Runner(filter_task, self._parameters, threads)

    def __call__(self, w: int, binary: int) -> None:
        self._parameters[: BINARY + 1] = w, binary
        self._run(self._count)
