"""A stand-in for CuPy's arrays, for rows `*_cupy` without a GPU: NumPy inside, and stricter than CuPy outside.

Refused: NumPy arrays among the operands and NumPy's functions on these arrays, what would allocate or copy once a row
is prepared (`fake.sealed`), work on another stream than the one that is meant (`fake.stream`), reads and writes of
cuBLAS or cuFFT outside the memory that the array they begin in belongs to. Names and parameters are CuPy's
(`tests/conformance/test_cupy_rows.py` compares them with the library where it is installed). Work is done at once.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from convbench.devices.cpu import aligned_empty

ALIGN_BYTES = 512
WORK_AREA_BYTES = 4096
TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64)}
PEDANTIC = {0: 69, 1: 71}  # CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_64F_PEDANTIC


class ndarray:
    """An array "on the device"; `inner` is NumPy's view of its memory."""

    __array_ufunc__ = None  # NumPy's functions refuse it

    def __init__(self, fake: Fake, inner: np.ndarray) -> None:
        self.fake, self.inner = fake, inner

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} on an array of the device: use the context's own module")

    shape = property(lambda self: self.inner.shape)
    strides = property(lambda self: self.inner.strides)
    dtype = property(lambda self: self.inner.dtype)
    ndim = property(lambda self: self.inner.ndim)
    size = property(lambda self: self.inner.size)
    itemsize = property(lambda self: self.inner.itemsize)
    nbytes = property(lambda self: self.inner.nbytes)
    T = property(lambda self: self._view(self.inner.T))

    @property
    def data(self) -> Any:
        """CuPy's MemoryPointer: all that is asked of it is the address."""
        return types.SimpleNamespace(ptr=int(self.inner.ctypes.data))

    def _view(self, inner: np.ndarray) -> ndarray:
        return ndarray(self.fake, inner)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: Any) -> ndarray:
        return self._view(self.inner[_plain(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.fake.enqueued("setitem")
        self.inner[_plain(index)] = self.fake.operand(value)

    def _part(self, name: str) -> ndarray:
        return self._view(getattr(self.inner, name))

    def _set_part(self, name: str, value: Any) -> None:
        self.fake.enqueued(name)
        getattr(self.inner, name)[...] = self.fake.operand(value)

    real = property(lambda self: self._part("real"), lambda self, value: self._set_part("real", value))
    imag = property(lambda self: self._part("imag"), lambda self, value: self._set_part("imag", value))

    def reshape(self, *shape: Any) -> ndarray:
        """A view; CuPy would copy where there is none, and what is written to a copy is lost."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        result = self.inner.reshape(wanted)
        if result.size and not np.may_share_memory(result, self.inner):
            raise ValueError(f"reshape of {self.shape} with steps {self.strides} to {wanted} would copy")
        return self._view(result)

    def transpose(self, *axes: int) -> ndarray:
        return self._view(self.inner.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> ndarray:
        return self._view(self.inner.swapaxes(first, second))

    def fill(self, value: Any) -> None:
        self.fake.enqueued("fill")
        self.inner.fill(value)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        if out is None:
            self.fake.allocated("sum without out")
        self.fake.enqueued("sum")
        self.inner.sum(axis, dtype, self.fake.operand(out), keepdims)
        return out


ndarray.__module__ = "cupy"


def _plain(index: Any) -> Any:
    """Basic indexing alone gives views."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts):
        raise TypeError(f"advanced indexing copies: {index}")
    return index


class Stream:
    """A stream: only which one is current matters here."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def __enter__(self) -> Stream:
        self.fake.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.fake.current.pop() is self

    def synchronize(self) -> None:
        if self.fake.sealed:
            raise AssertionError("run() waits for its stream")


class PlanNd:
    """cuFFT's plan with its advanced data layout: point (x, y) of transform b lies at b dist + (x embed[1] + y) stride.

    The source of an inverse transform is poisoned, since the library may use it.
    """

    def __init__(self, shape: Any, inembed: Any, istride: int, idist: int, onembed: Any, ostride: int, odist: int,
                 fft_type: int, batch: int, order: str, last_axis: int, last_size: Any) -> None:  # fmt: skip
        self.work_area = types.SimpleNamespace(mem=types.SimpleNamespace(size=WORK_AREA_BYTES))
        self.kind, self.shape, self.order = fft_type, shape, order
        self.ends = ((inembed, istride, idist, batch), (onembed, ostride, odist, batch))
        if order != "C" or fft_type not in KINDS.values():
            raise ValueError("only real transforms in C order are known here")

    def fft(self, a: ndarray, out: ndarray, direction: int) -> None:
        real = np.dtype(np.float64 if self.kind in (KINDS["CUFFT_D2Z"], KINDS["CUFFT_Z2D"]) else np.float32)
        spectrum = np.result_type(real, np.complex64)
        forward = self.kind in (KINDS["CUFFT_R2C"], KINDS["CUFFT_D2Z"])
        assert direction == (-1 if forward else 1)
        a.fake.enqueued("fft")
        kinds = (real, spectrum) if forward else (spectrum, real)
        source, target = (self._seen(array, *end, kind)
                          for array, end, kind in zip((a, out), self.ends, kinds, strict=True))  # fmt: skip
        if forward:
            target[...] = np.fft.rfft2(source)
        else:
            target[...] = np.fft.irfft2(source, s=self.shape, norm="forward")
            source.fill(np.nan)

    def _seen(self, array: ndarray, embed: Any, stride: int, dist: int, batch: int, dtype: np.dtype) -> np.ndarray:
        """(batch, height, width)."""
        steps = (dist, embed[1] * stride, stride)
        return strided(array.fake, array.data.ptr, (batch, *embed), steps, dtype)


KINDS = {"CUFFT_R2C": 0x2A, "CUFFT_C2R": 0x2C, "CUFFT_D2Z": 0x6A, "CUFFT_Z2D": 0x6C}


def strided(fake: Fake, pointer: int, shape: tuple[int, ...], steps: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What a library sees at an address; every element inside the allocation that the address belongs to."""
    last = pointer + sum((size - 1) * step for size, step in zip(shape, steps, strict=True)) * dtype.itemsize
    memory = fake.memory_at(pointer)
    begin = int(memory.ctypes.data)
    if last + dtype.itemsize > begin + memory.nbytes:
        raise ValueError(f"a library reaches {last + dtype.itemsize - begin - memory.nbytes} bytes past its memory")
    flat = memory.reshape(-1).view(np.uint8)[pointer - begin :]
    flat = flat[: flat.size // dtype.itemsize * dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, tuple(step * dtype.itemsize for step in steps))


def gemm_of(fake: Fake) -> Callable[..., None]:
    """cublasGemmStridedBatchedEx, as its documentation defines it."""

    def gemmStridedBatchedEx(
        handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
        A: int, Atype: int, lda: int, strideA: int, B: int, Btype: int, ldb: int, strideB: int,
        beta: int, C: int, Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int, algo: int,
    ) -> None:  # fmt: skip
        fake.enqueued("gemm")
        dtype = TYPES[Ctype]
        assert Atype == Btype == Ctype and computeType == PEDANTIC[Ctype] and algo == -1 and handle == 77
        assert 0 < batchCount <= 65535 and min(m, n, k) > 0
        scale, keep = (np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(dtype) * 1).from_address(p))[0]
                       for p in (alpha, beta))  # fmt: skip

        def matrices(pointer: int, rows: int, columns: int, leading: int, step: int) -> np.ndarray:
            """(batch, rows, columns), each stored by columns."""
            assert leading >= rows
            return strided(fake, pointer, (batchCount, rows, columns), (step, 1, leading), dtype)

        left = matrices(A, *((k, m) if transa else (m, k)), lda, strideA)
        right = matrices(B, *((n, k) if transb else (k, n)), ldb, strideB)
        target = matrices(C, m, n, ldc, strideC)
        result = scale * ((left.swapaxes(1, 2) if transa else left) @ (right.swapaxes(1, 2) if transb else right))
        target[...] = result + keep * target if keep else result

    return gemmStridedBatchedEx


class Fake:
    """The state behind the module. stream: the one that work must be on, if any; sealed: a run is going on."""

    def __init__(self) -> None:
        self.null = Stream(self)
        self.current = [self.null]
        self.stream: Stream | None = None
        self.sealed = False
        self.operations = 0
        self._blocks: list[np.ndarray] = []

    def enqueued(self, what: str) -> None:
        """Counts an operation; it must be on the right stream."""
        self.operations += 1
        if self.stream is not None and self.current[-1] is not self.stream:
            raise AssertionError(f"{what} is enqueued on another stream than the context's")

    def allocated(self, what: str) -> None:
        """What takes memory from the pool."""
        if self.sealed:
            raise AssertionError(f"run() allocates: {what}")

    def operand(self, value: Any) -> Any:
        """What lies behind an operand: an array of the device or a number."""
        if isinstance(value, ndarray):
            return value.inner
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return value

    def new(self, inner: np.ndarray) -> ndarray:
        """The device's array over the memory of NumPy's (of an operand, or newly allocated)."""
        self._blocks.append(inner)
        return ndarray(self, inner)

    def memory_at(self, pointer: int) -> np.ndarray:
        """The allocation that an address lies in, the youngest first."""
        for block in reversed(self._blocks):
            if block.ctypes.data <= pointer < block.ctypes.data + block.nbytes:
                return block
        raise ValueError("a library is given an address outside of all memory")

    def forget(self, count: int) -> None:
        """Drops the `count` youngest allocations."""
        del self._blocks[len(self._blocks) - count :]


def module(fake: Fake) -> Any:
    """`cupy`, as far as the array-module rows go."""

    def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
        fake.allocated("empty")
        return fake.new(aligned_empty(shape, dtype, ALIGN_BYTES))

    def asarray(a: Any, dtype: Any = None, order: Any = None) -> ndarray:
        if isinstance(a, ndarray):
            return a
        fake.allocated("asarray")
        copy = aligned_empty(a.shape, a.dtype, ALIGN_BYTES)
        copy[...] = a
        return fake.new(copy)

    def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
        if a.inner.flags.c_contiguous:
            return a
        fake.allocated("ascontiguousarray")
        return fake.new(np.ascontiguousarray(a.inner))

    def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
        fake.enqueued("copyto")
        np.copyto(dst.inner, fake.operand(src), casting)

    def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
        return x._view(np.lib.stride_tricks.as_strided(x.inner, shape, strides))

    found = types.SimpleNamespace(
        __name__="cupy", ndarray=ndarray, empty=empty, asarray=asarray, ascontiguousarray=ascontiguousarray,
        copyto=copyto, lib=types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided)),
        cuda=_cuda(fake),
    )  # fmt: skip
    for name in UFUNCS:
        setattr(found, name, _ufunc(fake, getattr(np, name)))
    return found


UFUNCS = ("add", "subtract", "multiply", "negative", "conjugate")


def _ufunc(fake: Fake, function: np.ufunc) -> Callable[..., Any]:
    def call(*operands: Any, out: Any = None) -> Any:
        if out is None:
            fake.allocated(f"{function.__name__} without out")
        fake.enqueued(function.__name__)
        function(*(fake.operand(operand) for operand in operands), out=fake.operand(out))
        return out

    return call


def _cuda(fake: Fake) -> Any:
    cublas = types.SimpleNamespace(
        gemmStridedBatchedEx=gemm_of(fake), CUBLAS_OP_N=0, CUBLAS_OP_T=1,
        CUBLAS_COMPUTE_32F_PEDANTIC=PEDANTIC[0], CUBLAS_COMPUTE_64F_PEDANTIC=PEDANTIC[1],
    )  # fmt: skip
    cufft = types.SimpleNamespace(PlanNd=PlanNd, CUFFT_FORWARD=-1, CUFFT_INVERSE=1, **KINDS)
    return types.SimpleNamespace(
        Stream=lambda non_blocking=False: Stream(fake), cublas=cublas, cufft=cufft,
        Device=lambda: types.SimpleNamespace(cublas_handle=77),
        runtime=types.SimpleNamespace(CUDA_R_32F=0, CUDA_R_64F=1),
    )  # fmt: skip
