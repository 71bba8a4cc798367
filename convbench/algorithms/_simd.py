"""What the rows of the simd tier share: float32, compiled here for the host's vector unit, loops run by Numba."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.registry import Implementation


class SimdImplementation(Implementation):
    """Base of the `*_simd` rows. Kernels are made in prepare(), because Numba and llvmlite load slowly."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    pool = "numba"
    requires = ("numba",)


def address_of(array: np.ndarray) -> int:
    """Where an array's first element lies, for the parameter table of a task."""
    return int(array.__array_interface__["data"][0])
