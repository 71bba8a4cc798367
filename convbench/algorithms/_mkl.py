"""Intel oneMKL through ctypes: cblas_{s,d}gemm and their strided batch, from the `mkl` wheel's libmkl_rt.

Threads come from GNU OpenMP (the pool that oneDNN's CPU build uses too) where the system has libgomp, else
from the libiomp5 that the wheel brings: two OpenMP pools in one process would fight over the cores. Indices
are 32-bit (LP64). MKL takes both choices once per process, at the first call. Source: oneMKL developer
reference, "BLAS-like extensions" and "mkl_set_threading_layer".
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import numpy as np

from convbench.errors import Unavailable

_ROW_MAJOR, _NO_TRANS, _TRANS = 101, 111, 112  # CBLAS_LAYOUT and CBLAS_TRANSPOSE of cblas.h
_LAYER_INTEL, _LAYER_GNU = 0, 3  # mkl_service.h
_INTERFACE_LP64 = 0
_INT_MAX = 2**31 - 1
_PREFIX = {"float32": "s", "float64": "d"}
_SCALAR: dict[str, Any] = {"float32": ctypes.c_float, "float64": ctypes.c_double}
_current_threads = 0  # the process-wide count last given to MKL


@functools.cache
def find_library() -> Path | None:
    """Where libmkl_rt lies: among the files of the `mkl` wheel, or in this environment's lib folder."""
    try:
        listed = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    found = [Path(str(file.locate())).resolve() for file in listed if file.name.startswith("libmkl_rt.")]
    found += sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))
    return next((path for path in found if path.is_file()), None)


def missing(name: str) -> str | None:
    """The sentence for `Implementation.unavailable` of the implementation `name`; None when MKL is here."""
    return None if find_library() else f"{name} needs mkl: pip install 'convbench[mkl]'"


def load(threads: int) -> Mkl:
    """MKL with `threads` threads. Raises Unavailable when the library is not installed or does not load."""
    return Mkl(_library(), threads)


@functools.cache
def _library() -> ctypes.CDLL:
    """libmkl_rt with threading layer and integer width chosen and signatures declared; once per process."""
    path = find_library()
    if path is None:
        raise Unavailable("mkl is not installed: pip install 'convbench[mkl]'")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"cannot load {path} ({error}): pip install --force-reinstall mkl") from error
    wanted = _LAYER_GNU if _loads("libgomp.so.1") else _LAYER_INTEL
    library.MKL_Set_Interface_Layer(_INTERFACE_LP64)
    if library.MKL_Set_Threading_Layer(wanted) != wanted:
        raise Unavailable(
            f"{path} did not take threading layer {wanted}: unset MKL_THREADING_LAYER and start a new process"
        )
    library.MKL_Set_Dynamic(0)  # exactly the threads asked for, not as many as MKL thinks fit
    i, p = ctypes.c_int, ctypes.c_void_p
    for dtype, prefix in _PREFIX.items():
        scalar = _SCALAR[dtype]
        gemm = getattr(library, f"cblas_{prefix}gemm")
        gemm.argtypes = [i, i, i, i, i, i, scalar, p, i, p, i, scalar, p, i]
        gemm.restype = None
        batch = getattr(library, f"cblas_{prefix}gemm_batch_strided")
        batch.argtypes = [i, i, i, i, i, i, scalar, p, i, i, p, i, i, scalar, p, i, i, i]
        batch.restype = None
        getattr(library, f"cblas_{prefix}gemm_batch").argtypes = [i, p, p, p, p, p, p, p, p, p, p, p, p, p, i, p]
        getattr(library, f"cblas_{prefix}gemm_batch").restype = None
    return library


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


class Mkl:
    """Matrix products on MKL with a fixed number of threads. Made by `load`."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.threads = threads
        self._library = library
        self._gemm = {d: getattr(library, f"cblas_{c}gemm") for d, c in _PREFIX.items()}
        self._batch = {d: getattr(library, f"cblas_{c}gemm_batch_strided") for d, c in _PREFIX.items()}
        self._pointers = {d: getattr(library, f"cblas_{c}gemm_batch") for d, c in _PREFIX.items()}
        self._set_threads()

    def _set_threads(self) -> None:
        """The count belongs to the process; another plan may have asked for another one since."""
        global _current_threads
        if _current_threads != self.threads:
            self._library.MKL_Set_Num_Threads(ctypes.c_int(self.threads))
            _current_threads = self.threads

    def gemm(
        self,
        a: np.ndarray,
        b: np.ndarray,
        out: np.ndarray,
        trans_a: bool = False,
        trans_b: bool = False,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        """out = alpha op(a) op(b) + beta out, op(a) (M, K), op(b) (K, N), out (M, N); op transposes if asked.

        float32 or float64, all alike; rows contiguous, any distance between rows. With beta 0 `out` is not
        read. Raises ValueError for shapes, dtypes or strides that do not fit.
        """
        m, n, k = _sizes(a.shape, b.shape, out.shape, trans_a, trans_b)
        dtype = _common_dtype(a, b, out)
        self._set_threads()
        self._gemm[dtype](
            _ROW_MAJOR, _TRANS if trans_a else _NO_TRANS, _TRANS if trans_b else _NO_TRANS, m, n, k,
            alpha, a.ctypes.data, _leading(a), b.ctypes.data, _leading(b),
            beta, out.ctypes.data, _leading(out),
        )  # fmt: skip

    def gemm_batch(
        self,
        a: np.ndarray,
        b: np.ndarray,
        out: np.ndarray,
        trans_a: bool = False,
        trans_b: bool = False,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        """As `gemm` for each i: out[i] from a[i] and b[i]; arrays (B, rows, columns), any distance apart."""
        if not (a.ndim == b.ndim == out.ndim == 3 and a.shape[0] == b.shape[0] == out.shape[0]):
            raise ValueError(f"gemm_batch takes 3-D arrays of one length: {a.shape} {b.shape} {out.shape}")
        m, n, k = _sizes(a.shape[1:], b.shape[1:], out.shape[1:], trans_a, trans_b)
        dtype = _common_dtype(a, b, out)
        self._set_threads()
        if out.shape[0] > 1 and _step(out) < _leading(out) * (m - 1) + n:
            self._interleaved(dtype, (m, n, k), (a, b, out), (trans_a, trans_b), (alpha, beta))
            return
        self._batch[dtype](
            _ROW_MAJOR, _TRANS if trans_a else _NO_TRANS, _TRANS if trans_b else _NO_TRANS, m, n, k,
            alpha, a.ctypes.data, _leading(a), _step(a), b.ctypes.data, _leading(b), _step(b),
            beta, out.ctypes.data, _leading(out), _step(out), a.shape[0],
        )  # fmt: skip

    def _interleaved(
        self,
        dtype: str,
        sizes: tuple[int, int, int],
        arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
        across: tuple[bool, bool],
        scalars: tuple[float, float],
    ) -> None:
        """Results whose rows alternate (nhwc groups): the strided batch refuses them, pointers do not."""
        m, n, k = (np.array([size], np.int32) for size in sizes)
        trans = [np.array([_TRANS if turned else _NO_TRANS], np.int32) for turned in across]
        alpha, beta = (np.array([scalar], dtype) for scalar in scalars)
        count = arrays[0].shape[0]
        steps = np.arange(count, dtype=np.int64)
        first_a, first_b, first_out = (x.ctypes.data + steps * x.strides[0] for x in arrays)
        lead_a, lead_b, lead_out = (np.array([_leading(x)], np.int32) for x in arrays)
        passed = [*trans, m, n, k, alpha, first_a, lead_a, first_b, lead_b, beta, first_out, lead_out]
        size = np.array([count], np.int32)
        self._pointers[dtype](_ROW_MAJOR, *(x.ctypes.data for x in passed), 1, size.ctypes.data)


def _sizes(
    a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...], trans_a: bool, trans_b: bool
) -> tuple[int, int, int]:
    """(M, N, K) of a product of matrices of these shapes."""
    if not len(a) == len(b) == len(out) == 2:
        raise ValueError(f"gemm takes matrices, not shapes {a} {b} {out}")
    m, k = (a[1], a[0]) if trans_a else a
    k_b, n = (b[1], b[0]) if trans_b else b
    if k != k_b or tuple(out) != (m, n):
        raise ValueError(f"gemm: op(a) {(m, k)} times op(b) {(k_b, n)} does not give {out}")
    return m, n, k


def _common_dtype(*arrays: np.ndarray) -> str:
    names = {array.dtype.name for array in arrays}
    if len(names) != 1 or not names <= set(_PREFIX):
        raise ValueError(f"gemm takes float32 or float64, all alike, not {', '.join(sorted(names))}")
    return names.pop()


def _leading(array: np.ndarray) -> int:
    """Elements from one row to the next; the rows themselves must be contiguous."""
    rows, columns = array.shape[-2:]
    item = array.itemsize
    if columns > 1 and array.strides[-1] != item:
        raise ValueError(f"gemm: rows must be contiguous, not strides {array.strides} of {item} bytes")
    if rows <= 1:
        return columns  # NumPy leaves the stride of an axis of length 1 arbitrary
    if array.strides[-2] % item or not columns <= array.strides[-2] // item <= _INT_MAX:
        raise ValueError(f"gemm: rows of {columns} elements cannot be {array.strides[-2]} bytes apart")
    return array.strides[-2] // item


def _step(array: np.ndarray) -> int:
    """Elements from one matrix of a batch to the next."""
    if array.shape[0] <= 1:
        return _leading(array) * array.shape[1]
    if array.strides[0] % array.itemsize or not 0 <= array.strides[0] // array.itemsize <= _INT_MAX:
        raise ValueError(f"gemm_batch: matrices cannot be {array.strides[0]} bytes apart")
    return array.strides[0] // array.itemsize
