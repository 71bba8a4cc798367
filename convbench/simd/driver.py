"""The loops around the kernels: Numba functions over addresses, one task at a time, in one thread or in several.

A task is a plain function (index, thread, parameters) of 64-bit integers. It reads its parameters (addresses of the
operands, strides, addresses of kernels) from a table of int64 with `item`, and calls kernels with `call`.
A `Runner` runs tasks 0 .. n - 1 over the threads. Compiled at first use, kept on disk (see cache.py).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba import njit, prange, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from convbench.simd import cache

_lock = threading.RLock()
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


# ---- what a task may use


def emitted(write: Callable[..., Any]) -> Any:
    """Numba's intrinsic: a function whose LLVM IR is written here. (Its Python signature has one argument more.)"""
    return intrinsic(write)


@emitted
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """call(kernel, (a, b, ...)): runs the machine code at an address with 64-bit integers."""
    signature = types.void(types.int64, types.UniTuple(types.int64, len(arguments)))

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer, pack = values
        integers = cgutils.unpack_tuple(builder, pack)
        kind = ir.FunctionType(ir.VoidType(), [_I64] * len(integers))
        builder.call(builder.inttoptr(pointer, kind.as_pointer()), integers)
        return context.get_dummy_value()

    return signature, generate


@emitted
def item(typing_context: Any, table: Any, index: Any) -> Any:
    """item(table, i): the i-th int64 of the table at an address."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.gep(builder.inttoptr(values[0], _I64.as_pointer()), [values[1]])
        return builder.load(place, align=8)

    return types.int64(types.int64, types.int64), generate


@emitted
def put(typing_context: Any, table: Any, index: Any, value: Any) -> Any:
    """put(table, i, value): writes the i-th int64 of the table at an address."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.gep(builder.inttoptr(values[0], _I64.as_pointer()), [values[1]])
        builder.store(values[2], place, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@emitted
def copy(typing_context: Any, to: Any, source: Any, count: Any) -> Any:
    """copy(to, source, count): count float32 from one address to another; they do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to_p, from_p = (builder.inttoptr(v, _I8.as_pointer()) for v in values[:2])
        cgutils.raw_memcpy(builder, to_p, from_p, values[2], 4, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@emitted
def zero(typing_context: Any, to: Any, count: Any) -> Any:
    """zero(to, count): writes count float32 zeros to an address."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], _I8.as_pointer())
        n_bytes = builder.mul(values[1], ir.Constant(_I64, 4))
        cgutils.memset(builder, pointer, n_bytes, 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


# ---- compiling tasks


class Task:
    """A function (index, thread, parameters) that is compiled when its address is first asked for."""

    def __init__(self, function: Callable[[int, int, int], None]) -> None:
        self.function = function
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Of the machine code: void (int64 index, int64 thread, int64 parameters)."""
        with _lock:
            if self._compiled is None:
                self._compiled = _compile(self.function, functools.partial(numba.cfunc, error_model="numpy"))
        return int(self._compiled.address)


def task(function: Callable[[int, int, int], None]) -> Task:
    """Decorator for the body of a parallel loop; module-level functions only, so that Numba can keep them on disk."""
    return Task(function)


_SIGNATURE = types.void(types.int64, types.int64, types.int64)


def _compile(function: Callable[[int, int, int], None], compiler: Callable[..., Any]) -> Any:
    """The function compiled by njit or cfunc, kept on disk where that works.

    Numba passes on whatever a kept file or a full disk raises. A kept file that cannot be read is removed and written
    anew; where nothing can be written, the function is compiled for this process alone. An error that lies in the
    function itself is raised by that.
    """
    with _kept_on_disk():
        for _ in range(2):
            try:
                return compiler(_SIGNATURE, cache=True)(function)
            except OSError:
                break
            except Exception:  # noqa: BLE001 - anything can come out of unpickling; what is real is raised again below
                module = function.__module__.rpartition(".")[2]
                cache.forget_loop(f"{module}.{function.__qualname__}-")
    return compiler(_SIGNATURE, cache=False)(function)


@contextmanager
def _kept_on_disk() -> Iterator[None]:
    """Numba's cache folder is ours while our functions are compiled, and the user's again afterwards."""
    settings = vars(config)
    before = settings["CACHE_DIR"]
    settings["CACHE_DIR"] = str(cache.loops_dir())
    try:
        yield
    finally:
        settings["CACHE_DIR"] = before


# ---- running them


def _in_one_thread(function: int, count: int, parameters: int) -> None:
    for index in range(count):
        call(function, (index, 0, parameters))


def _in_threads(function: int, count: int, parameters: int) -> None:
    for index in prange(count):
        call(function, (index, numba.get_thread_id(), parameters))


def _eager_njit(signature: Any, cache: bool, parallel: bool) -> Any:
    return njit([signature], nogil=True, cache=cache, parallel=parallel)


_loops: dict[bool, Any] = {}


def loop(parallel: bool) -> Any:
    """The compiled loop over tasks: in one thread, or in as many as Numba is set to."""
    with _lock:
        if parallel not in _loops:
            body = _in_threads if parallel else _in_one_thread
            _loops[parallel] = _compile(body, functools.partial(_eager_njit, parallel=parallel))
        return _loops[parallel]


def most_threads() -> int:
    """Threads that Numba can start in this process."""
    return int(vars(config)["NUMBA_NUM_THREADS"])


class Runner:
    """Tasks of one plan: `Runner(task, parameters, threads)`; runner(count) runs them.

    parameters: a C-contiguous int64 array, which may be changed between calls; it must not move.
    """

    def __init__(self, work: Task, parameters: np.ndarray, threads: int) -> None:
        self._function = work.address
        self._parameters = parameters  # kept alive: the loop holds its address only
        self._address = parameters.ctypes.data
        self._threads = min(threads, most_threads())
        self._loop = loop(self._threads > 1)

    def __call__(self, count: int) -> None:
        """Tasks 0 .. count - 1, divided over the threads in contiguous ranges."""
        if self._threads > 1:
            numba.set_num_threads(self._threads)
        self._loop(self._function, count, self._address)
