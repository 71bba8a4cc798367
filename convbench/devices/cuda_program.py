"""Executes a program (convbench/cuda/program.py) through CuPy, on the stream of the context it is bound to.

Every step becomes a call without arguments once the operands' addresses are known; a run with the same addresses
makes the same calls again. A run allocates nothing and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.cuda.compile import compile_for
from convbench.cuda.program import At, Float, Launch, Long, Product, Program, Step, Struct, TensorMap, Transform, Zero
from convbench.cuda.tensor_map import MAP_BYTES, encode
from convbench.devices.arrays import address
from convbench.registry import Run

#: Dynamic shared memory that a kernel gets without asking.
SHARED_BYTES = 48 << 10
#: Product.arithmetic -> cuBLAS's name of the computation. PEDANTIC: no tensor cores, no reduced precision.
COMPUTE = {
    "float32": "CUBLAS_COMPUTE_32F_PEDANTIC",
    "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32",
    "float16-acc32": "CUBLAS_COMPUTE_32F",
    "bfloat16-acc32": "CUBLAS_COMPUTE_32F",
}
#: Type of the elements in memory -> CUDA's name of it; uint16 stands for bfloat16.
TYPES = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "uint16": "CUDA_R_16BF", "bfloat16": "CUDA_R_16BF"}
DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT

Call = Callable[[], None]


@dataclass(frozen=True)
class Placed:
    """A buffer in memory: its address, and how its elements lie there."""

    address: int
    item_bytes: int
    dtype: str

    def at(self, offset: int) -> int:
        """The address of an element."""
        return self.address + offset * self.item_bytes


@dataclass(frozen=True)
class Address:
    """What CuPy's FFT plans take for an array: an object whose data.ptr is the address."""

    ptr: int

    @property
    def data(self) -> Address:
        """Itself."""
        return self


def bind(context: Any, program: Program, weights: Any = None) -> Run:
    """run(a, b, out); with `weights` the filter's steps are executed now and run(a, out) remains."""
    bound = _Bound(context, program)
    if weights is None:
        steps = (*program.filter_steps, *program.steps)
        context.launches = len(steps)
        return lambda a, b, out: bound.run(steps, {"a": a, "b": b, "out": out})
    bound.run(program.filter_steps, {"b": weights})
    operands = {}
    if program.reads_filter():
        kept = context.empty(weights.shape, weights.dtype)
        with context.stream:
            context.xp.copyto(kept, weights.view(kept.dtype))
        operands["b"] = kept
    context.stream.synchronize()
    context.launches = len(program.steps)
    return lambda a, out: bound.run(program.steps, {**operands, "a": a, "out": out})


def placed(array: Any) -> Placed:
    """Where an array lies."""
    return Placed(address(array), int(array.dtype.itemsize), str(array.dtype))


class _Bound:
    """A program with its workspace, compiled kernels and library plans."""

    def __init__(self, context: Any, program: Program) -> None:
        self._context, self._xp = context, context.xp
        self._arrays = {name: context.empty(b.shape, b.dtype) for name, b in program.workspace.items()}
        self._workspace = {name: placed(array) for name, array in self._arrays.items()}
        self._kernels = {launch: _kernel(self._xp, launch, context.gpu) for launch in program.launches()}
        self._plans: dict[Transform, Any] = {}
        for step in program.all_steps():
            if isinstance(step, Transform) and step not in self._plans:
                self._plans[step] = self._plan(step)
        self._known: tuple[Any, ...] = ()
        self._calls: list[Call] = []

    def run(self, steps: Sequence[Step], operands: Mapping[str, Any]) -> None:
        """Enqueues the steps, in order, on the context's stream."""
        given = {name: placed(array) for name, array in operands.items()}
        key = (id(steps), *given.items())
        if key != self._known:
            where = {**self._workspace, **given}
            self._calls = [self._call(step, where) for step in steps]
            self._known = key
        with self._context.stream:
            for call in self._calls:
                call()

    def _call(self, step: Step, where: Mapping[str, Placed]) -> Call:
        match step:
            case Launch():
                return self._launch(step, where)
            case Product():
                return self._product(step, where)
            case Transform():
                return self._transform(step, where)
            case Zero():
                array = self._arrays[step.buffer]
                return lambda: array.data.memset_async(0, array.nbytes)

    def _launch(self, step: Launch, where: Mapping[str, Placed]) -> Call:
        kernel, arguments = self._kernels[step], tuple(_argument(a, where) for a in step.arguments)
        return lambda: kernel(step.grid, step.block, arguments, shared_mem=step.shared_bytes)

    def _product(self, step: Product, where: Mapping[str, Placed]) -> Call:
        """C^T = B^T A^T: cuBLAS counts by columns, so a row-major matrix is its transpose there."""
        xp, cublas = self._xp, self._xp.cuda.cublas
        handle = xp.cuda.Device().cublas_handle
        one, start = np.ones(1, np.float32), np.full(1, float(step.add), np.float32)
        a, b, c = (where[at.buffer] for at in (step.a, step.b, step.c))
        type_a, type_b, type_c = (getattr(xp.cuda.runtime, TYPES[p.dtype]) for p in (a, b, c))
        op_a, op_b = (cublas.CUBLAS_OP_T if t else cublas.CUBLAS_OP_N for t in (step.transpose_a, step.transpose_b))
        arguments = (
            handle, op_b, op_a, step.n, step.m, step.k, one.ctypes.data,
            b.at(step.b.offset), type_b, step.row_b, step.step_b,
            a.at(step.a.offset), type_a, step.row_a, step.step_a, start.ctypes.data,
            c.at(step.c.offset), type_c, step.row_c, step.step_c,
            step.batch, getattr(cublas, COMPUTE[step.arithmetic]), DEFAULT_ALGORITHM,
        )  # fmt: skip

        def multiply(_scalars: Any = (one, start)) -> None:  # cuBLAS reads the two at the call: they must be alive
            cublas.gemmStridedBatchedEx(*arguments)

        return multiply

    def _plan(self, step: Transform) -> Any:
        """cuFFT's plan; its work area comes out of CuPy's pool and is counted."""
        cufft = self._xp.cuda.cufft
        kind = cufft.CUFFT_R2C if step.kind == "forward" else cufft.CUFFT_C2R
        real, half = step.height * step.width, step.height * (step.width // 2 + 1)
        source, target = (real, half) if step.kind == "forward" else (half, real)
        shape = (step.height, step.width)
        with self._context.stream:
            plan = cufft.PlanNd(shape, None, 1, source, None, 1, target, kind, step.batch, "C", -1, None)
        self._context.account(plan.work_area.mem.size, "cuFFT's work area")
        return plan

    def _transform(self, step: Transform, where: Mapping[str, Placed]) -> Call:
        source, target = (Address(where[at.buffer].at(at.offset)) for at in (step.source, step.target))
        plan = self._plans[step]
        return lambda: plan.fft(source, target, None)


def _argument(argument: Any, where: Mapping[str, Placed]) -> Any:
    """As CuPy passes it: by value, of exactly the width that the kernel declares.

    CuPy hands the driver the address of an array of one element; the driver copies it to where the kernel's parameter
    lies, aligned as the kernel declares it.
    """
    match argument:
        case TensorMap():
            there = where[argument.buffer]
            return np.frombuffer(encode(argument, there.at(argument.offset), there.dtype), f"V{MAP_BYTES}")
        case At():
            return np.uint64(where[argument.buffer].at(argument.offset))
        case Struct():
            fields = [(f"field{i}", np.int32) for i in range(len(argument.fields))]
            return np.array([argument.fields], np.dtype(fields))
        case Long():
            return np.int64(argument.value)
        case Float():
            return np.float32(argument.value)
        case int():
            return np.int32(argument)
    raise TypeError(f"a kernel takes no {type(argument).__name__}")


_loaded: dict[tuple[str, str], Any] = {}


def _kernel(xp: Any, launch: Launch, gpu: Any) -> Any:
    """The loaded kernel of a launch, allowed the shared memory that it needs. Raises KernelError."""
    compiled = compile_for(launch, gpu)
    key = (str(compiled.path), launch.kernel)
    if key not in _loaded:
        _loaded[key] = xp.RawModule(path=str(compiled.path)).get_function(launch.kernel)
    kernel = _loaded[key]
    if launch.shared_bytes > max(SHARED_BYTES, kernel.max_dynamic_shared_size_bytes):
        kernel.max_dynamic_shared_size_bytes = launch.shared_bytes
    return kernel
