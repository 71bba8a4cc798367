"""What the tests of the simd layer share: the units that run here, and memory that ends at a forbidden page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convbench.simd.compiler import Kernel
from convbench.simd.kernels.gemm import Shape, brgemm, shape_for
from convbench.simd.target import Target, named, runs_here
from convbench.testing.guard_pages import Fenced

UNITS = [name for name in ("avx512", "avx2", "neon", "generic") if runs_here(name)]
SENTINEL = -12345.0


@pytest.fixture(params=UNITS)
def target(request: Any) -> Target:
    """Each vector unit that this machine can be."""
    return named(request.param)


def panel_kernel(target: Target, vectors: int = 2, packed: bool = True) -> tuple[Kernel, Shape]:
    """The brgemm with `vectors` registers of B, and its block shape."""
    shape = shape_for(target, vectors)
    return brgemm(target, shape, packed), shape


def address(array: np.ndarray) -> int:
    """Of the first element."""
    return int(array.ctypes.data)


class Arena:
    """Memory at a forbidden page, out of which arrays are cut that touch it: at its end, or at its start."""

    def __init__(self, size: int, dtype: Any = np.float32, place: str = "flush") -> None:
        self._fenced = Fenced((size,), dtype, place)
        self.all, self._place = self._fenced.array, place

    def cut(self, *shape: int) -> np.ndarray:
        """An array of this shape that touches the page; what was there stays."""
        size = int(np.prod(shape))
        flat = self.all[:size] if self._place == "start" else self.all[len(self.all) - size :]
        return flat.reshape(shape)

    def holding(self, values: np.ndarray) -> np.ndarray:
        """A copy of an array that touches the page."""
        array = self.cut(*values.shape)
        array[...] = values
        return array


def integers(rng: np.random.Generator, *shape: int, most: int = 9) -> np.ndarray:
    """Small whole numbers as float32: sums of their products are exact."""
    return rng.integers(-most, most, shape, endpoint=True).astype(np.float32)
