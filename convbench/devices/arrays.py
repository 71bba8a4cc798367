"""What code that runs on NumPy's and on CuPy's arrays needs of both; CuPy is never imported here.

bfloat16 has no type of its own in either library: an array of it is uint16, which holds the bits and stands for
nothing else here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def namespace(array: Any) -> Any:
    """The module that an array belongs to: numpy, or whichever library made it (it is loaded then)."""
    library = type(array).__module__
    return np if library == "numpy" else sys.modules[library.partition(".")[0]]


def storage(dtype: Any) -> np.dtype[Any]:
    """The dtype that elements lie in memory as: uint16 for "bfloat16", otherwise the one named."""
    return np.dtype(np.uint16 if str(dtype) == "bfloat16" else dtype)


def address(array: Any) -> int:
    """Where an array begins, in its device's memory."""
    return int(array.ctypes.data if namespace(array) is np else array.data.ptr)


def as_strided(array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of the array's memory with these sizes and steps in bytes, to be read only."""
    xp = namespace(array)
    if xp is np:
        return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)
    return xp.lib.stride_tricks.as_strided(array, shape, strides)


def matmul_of(xp: Any) -> Callable[..., Any]:
    """matmul(left, right, out=out) on the arrays of a library, without temporaries: np.matmul, or cuBLAS."""
    if xp is np:
        return np.matmul
    from convbench.devices.cuda_matmul import CudaMatmul

    return CudaMatmul(xp)


def as_real(array: Any) -> Any:
    """Arrays that stand for bfloat16 as float32, which holds every value of it; others as they are."""
    if array.dtype != np.uint16:
        return array
    bits = array.astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def widened(array: Any) -> Any:
    """A float64 copy, of bfloat16 too."""
    return as_real(array).astype(np.float64)


def narrowed(values: Any, dtype: str) -> Any:
    """Real numbers in the memory form of a dtype, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(dtype, copy=False)
    bits = values.astype(np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + (odd + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)


def poison(array: Any) -> None:
    """Fills with what no result is: NaN in floats and bfloat16, else the number farthest from 0. Touches every page."""
    if array.dtype.kind in "fc":
        array.fill(np.nan)
    else:
        array.fill(_farthest(array.dtype))


def poisoned(array: Any) -> Any:
    """Where an array holds what poison() fills in; in floats and bfloat16, any NaN."""
    if array.dtype.kind in "fc" or array.dtype == np.uint16:
        return namespace(array).isnan(as_real(array))
    return array == _farthest(array.dtype)


def _farthest(dtype: np.dtype[Any]) -> int:
    limits = np.iinfo(dtype)
    return int(limits.min or limits.max)
