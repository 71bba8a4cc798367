"""Matrix products of CuPy's arrays through cuBLAS, as `np.matmul` takes them: batches of strided views, into `out`.

cupy.matmul copies an operand whose matrices are stored by columns, gathers broadcast batches through arrays of
pointers, allocates for both, and multiplies in TF32 where CUPY_TF32 asks for it. Here cuBLAS reads the views where
they lie: nothing is allocated, nothing copied, and the computation is the pedantic one, which no variable of the
environment turns into TF32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

#: dtype -> CUDA's name of the elements, cuBLAS's name of the computation. PEDANTIC: no tensor cores, no rounding.
TYPES = {
    "float32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F_PEDANTIC"),
    "float64": ("CUDA_R_64F", "CUBLAS_COMPUTE_64F_PEDANTIC"),
}
DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
#: Matrices of one call: what the third dimension of a CUDA grid holds.
MOST_MATRICES = 65535

#: One axis of a batch: how long it is, and bytes from one matrix to the next in the left, right and result.
Axis = tuple[int, int, int, int]


@dataclass(frozen=True)
class Stored:
    """How cuBLAS reads a matrix: `row` elements from one stored row to the next; turned: what is stored is its
    transpose."""

    turned: bool
    row: int


class CudaMatmul:
    """matmul(left, right, out): out = left @ right; add: out += left @ right. On the current stream.

    The batch is what broadcasts to out's leading axes. In each matrix either the rows or the columns are contiguous
    (ValueError). float32 or float64, the same everywhere. xp: the module `cupy`.
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._numbers = {(dtype, value): np.full(1, value, dtype) for dtype in TYPES for value in (0, 1)}

    def __call__(self, left: Any, right: Any, out: Any, add: bool = False) -> None:
        """Enqueues one call of cuBLAS for each place in the batch that no common step reaches."""
        if _stored(out).turned:  # (A B)^T = B^T A^T
            left, right, out = right.swapaxes(-1, -2), left.swapaxes(-1, -2), out.swapaxes(-1, -2)
        (m, k), n = left.shape[-2:], right.shape[-1]
        if right.shape[-2] != k or out.shape[-2:] != (m, n):
            raise ValueError(f"{left.shape} @ {right.shape} does not give {out.shape}")
        axes = merged(_axes(left, right, out))
        for offsets, batch in _calls(axes):
            self._multiply((m, n, k), (left, right, out), offsets, batch, add)

    def _multiply(
        self, sizes: tuple[int, int, int], arrays: tuple[Any, ...], offsets: tuple[int, ...], batch: Axis, add: bool
    ) -> None:
        """One call. C^T = B^T A^T: cuBLAS counts by columns, so a matrix by rows is its transpose there."""
        cuda, dtype = self._xp.cuda, arrays[2].dtype.name
        kind, compute = getattr(cuda.runtime, TYPES[dtype][0]), getattr(cuda.cublas, TYPES[dtype][1])
        operations = (cuda.cublas.CUBLAS_OP_N, cuda.cublas.CUBLAS_OP_T)
        one, keep = self._numbers[dtype, 1], self._numbers[dtype, int(add)]
        (m, n, k), (left, right, out) = sizes, (_stored(array) for array in arrays)
        a, b, c = (array.data.ptr + offset for array, offset in zip(arrays, offsets, strict=True))
        count, *steps = batch
        step_a, step_b, step_c = (step // arrays[2].itemsize for step in steps)
        cuda.cublas.gemmStridedBatchedEx(
            cuda.Device().cublas_handle, operations[right.turned], operations[left.turned], n, m, k, one.ctypes.data,
            b, kind, right.row, step_b, a, kind, left.row, step_a, keep.ctypes.data, c, kind, out.row, step_c,
            count, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip


def _stored(array: Any) -> Stored:
    """Of the matrices in the last two axes. A step along an axis of one element says nothing."""
    (rows, columns), item = array.shape[-2:], array.itemsize
    by_row, by_column = (step // item for step in array.strides[-2:])
    if (by_column == 1 or columns == 1) and (by_row >= columns or rows == 1):
        return Stored(False, columns if rows == 1 else by_row)
    if (by_row == 1 or rows == 1) and (by_column >= rows or columns == 1):
        return Stored(True, rows if columns == 1 else by_column)
    raise ValueError(f"BLAS cannot read matrices of {rows}x{columns} with steps of {by_row} and {by_column} elements")


def _axes(*arrays: Any) -> list[Axis]:
    """The axes of the batch that have more than one matrix, outermost first; operands broadcast to the result."""
    shape = arrays[2].shape[:-2]
    steps = []
    for array in arrays:
        own, missing = array.shape[:-2], len(shape) - (array.ndim - 2)
        if missing < 0 or any(have not in (1, want) for have, want in zip(own, shape[missing:], strict=True)):
            raise ValueError(f"a batch of {own} does not broadcast to {shape}")
        stretched = [0 if have == 1 else step for have, step in zip(own, array.strides, strict=False)]
        steps.append([0] * missing + stretched)
    return [axis for axis in zip(shape, *steps, strict=True) if axis[0] > 1]


def merged(axes: list[Axis]) -> list[Axis]:
    """The same matrices in as few axes as their steps allow."""
    found: list[Axis] = []
    for axis in axes:
        if found and all(outer == inner * axis[0] for outer, inner in zip(found[-1][1:], axis[1:], strict=True)):
            found[-1] = (found[-1][0] * axis[0], *axis[1:])
        else:
            found.append(axis)
    return found


def _calls(axes: list[Axis]) -> Iterator[tuple[tuple[int, ...], Axis]]:
    """(offsets in bytes, batch) of every call: the longest axis is a call's batch, the others are loops."""
    longest = max(axes, default=(1, 0, 0, 0), key=lambda axis: axis[0])
    others = [axis for axis in axes if axis is not longest]
    count, *steps = longest
    for index in itertools.product(*(range(axis[0]) for axis in others)):
        origin = [sum(at * axis[i] for at, axis in zip(index, others, strict=True)) for i in (1, 2, 3)]
        for first in range(0, count, MOST_MATRICES):
            offsets = tuple(start + first * step for start, step in zip(origin, steps, strict=True))
            yield offsets, (min(MOST_MATRICES, count - first), steps[0], steps[1], steps[2])
