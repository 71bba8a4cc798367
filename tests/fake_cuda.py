"""A GPU that is not there: a module with CuPy's interface over NumPy, with streams and events on a simulated timeline.

What a stream is given runs when simulated time reaches its end, not when it is enqueued: a result that nobody waited
for is not there yet. The host's clock moves when it enqueues (LAUNCH_NS each) or waits. Only what convbench uses of
CuPy is here. `install(monkeypatch)` puts it in place of CuPy.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from convbench.devices.arrays import as_real, narrowed
from convbench.devices.cpu import aligned_empty

LAUNCH_NS = 4_000
KERNEL_NS = 200_000
TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: np.uint16}


class Timeline:
    """The host's clock, and what every stream still has to do."""

    def __init__(self) -> None:
        self.now_ns = 1_000
        self.log: list[str] = []
        self.pending: list[tuple[int, int, Callable[[], None]]] = []  # end, order, effect
        self.streams: list[Stream] = []
        self.order = 0
        self.broken: CUDARuntimeError | None = None

    def enqueue(self, stream: Stream, what: str, ns: int, effect: Callable[[], None]) -> None:
        self.now_ns += LAUNCH_NS
        if stream.captured is not None:
            stream.captured.append((what, ns, effect))
            return
        self.put(stream, what, ns, effect)

    def put(self, stream: Stream, what: str, ns: int, effect: Callable[[], None]) -> None:
        stream.free_at = max(self.now_ns, stream.free_at) + ns
        self.order += 1
        self.log.append(what)
        self.pending.append((stream.free_at, self.order, effect))

    def wait_until(self, ns: int) -> None:
        self.now_ns = max(self.now_ns, ns)
        self.pending.sort(key=lambda item: item[:2])
        while self.pending and self.pending[0][0] <= self.now_ns:
            try:
                self.pending.pop(0)[2]()
            except CUDARuntimeError as error:
                self.broken = error
        if self.broken is not None:
            raise self.broken  # now and for ever, as after an illegal address

    def wait_for_all(self) -> None:
        self.wait_until(max([self.now_ns, *(s.free_at for s in self.streams)]))

    # what stands in for the module `time`

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.wait_until(self.now_ns + int(seconds * 1e9))


class Pointer:
    """MemoryPointer: an address and what is done to what lies there."""

    def __init__(self, array: np.ndarray) -> None:
        self.ptr = int(array.ctypes.data)

    def memset_async(self, value: int, size: int) -> None:
        fake = sys.modules["cupy"].fake
        pointer = self.ptr
        fake.enqueue("zero", 1000, lambda: memory(pointer, size, np.uint8).fill(value))


    def copy_from_device_async(self, source: Pointer, size: int) -> None:
        fake = sys.modules["cupy"].fake
        here, there = self.ptr, source.ptr
        ns = max(1000, size // 2000)
        fake.enqueue("copy", ns, lambda: np.copyto(memory(here, size, np.uint8), memory(there, size, np.uint8)))


class ndarray(np.ndarray):
    """An array "on the device"."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return Pointer(self)

    def get(self) -> np.ndarray:
        return np.array(self)


ndarray.__module__ = "cupy"


class Stream:
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.fake: Fake = sys.modules["cupy"].fake if not null else None
        self.non_blocking = non_blocking
        self.free_at = 0
        self.captured: list[Any] | None = None
        if not null:
            self.fake.time.streams.append(self)

    def __enter__(self) -> Stream:
        self.fake.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.fake.current.pop() is self

    def synchronize(self) -> None:
        self.fake.time.wait_until(self.free_at)

    def wait_event(self, event: Event) -> None:
        self.free_at = max(self.free_at, event.ns)

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Graph:
        captured, self.captured = self.captured, None
        return Graph(self.fake, captured or [])


class Graph:
    def __init__(self, fake: Fake, operations: list[Any]) -> None:
        self.fake, self.operations = fake, operations

    def launch(self, stream: Stream) -> None:
        self.fake.time.now_ns += LAUNCH_NS
        for operation in self.operations:
            self.fake.time.put(stream, *operation)


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.fake: Fake = sys.modules["cupy"].fake
        self.ns = 0

    def record(self, stream: Stream) -> None:
        self.fake.time.log.append("event")
        self.ns = max(self.fake.time.now_ns, stream.free_at)

    def synchronize(self) -> None:
        self.fake.time.wait_until(self.ns)


class Hook:
    """MemoryHook: told of every allocation while it is entered."""

    def __enter__(self) -> Hook:
        sys.modules["cupy"].fake.hooks.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.modules["cupy"].fake.hooks.remove(self)


class CUDARuntimeError(RuntimeError):
    pass


class Kernel:
    """RawKernel: runs a Python function of the same name with its arguments."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, fake: Fake, name: str) -> None:
        self.fake, self.name = fake, name

    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...], *, shared_mem: int = 0) -> None:
        for argument in arguments:  # what CuPy would pass by value with a width of its own choice
            assert isinstance(argument, np.generic | np.ndarray), argument
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self.fake.launched.append((self.name, grid, block, arguments, shared_mem))
        effect = self.fake.kernels[self.name]
        self.fake.enqueue(self.name, self.fake.kernel_ns, lambda: effect(*arguments))


def memory(pointer: int, count: int, dtype: Any) -> np.ndarray:
    """`count` elements at an address."""
    dtype = np.dtype(dtype)
    return np.ctypeslib.as_array((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(int(pointer))).view(dtype)


def strided(pointer: int, dtype: Any, batch: int, step: int, rows: int, columns: int, leading: int) -> np.ndarray:
    """(batch, rows, columns) of column-major matrices, as cuBLAS sees memory."""
    dtype = np.dtype(dtype)
    count = (batch - 1) * step + (columns - 1) * leading + rows
    flat = memory(pointer, count, dtype)
    strides = tuple(n * dtype.itemsize for n in (step, 1, leading))
    return np.lib.stride_tricks.as_strided(flat, (batch, rows, columns), strides)


def gemm(
    handle: int, op_a: int, op_b: int, m: int, n: int, k: int, alpha: int,
    a: int, type_a: int, ld_a: int, step_a: int, b: int, type_b: int, ld_b: int, step_b: int,
    beta: int, c: int, type_c: int, ld_c: int, step_c: int, batch: int, compute: int, algorithm: int,
) -> None:  # fmt: skip
    """cublasGemmStridedBatchedEx, as its documentation defines it; enqueued on the current stream."""
    fake = sys.modules["cupy"].fake
    scale, keep = (float(memory(p, 1, np.float32)[0]) for p in (alpha, beta))

    def multiply() -> None:
        first = strided(a, TYPES[type_a], batch, step_a, *((k, m) if op_a else (m, k)), ld_a)
        second = strided(b, TYPES[type_b], batch, step_b, *((n, k) if op_b else (k, n)), ld_b)
        target = strided(c, TYPES[type_c], batch, step_c, m, n, ld_c)
        first = first.transpose(0, 2, 1) if op_a else first
        second = second.transpose(0, 2, 1) if op_b else second
        product = scale * (as_real(first).astype(np.float64) @ as_real(second).astype(np.float64))
        product = (product + keep * target if keep else product).astype(np.float32)
        target[...] = narrowed(product, "bfloat16") if type_c == 14 else product

    fake.products.append(compute)
    fake.enqueue("gemm", fake.kernel_ns, multiply)


class PlanNd:
    """cuFFT's plan for packed batches of real 2D transforms."""

    def __init__(self, shape: Any, inembed: Any, istride: int, idist: int, onembed: Any, ostride: int, odist: int,
                 kind: int, batch: int, order: str, last_axis: int, last_size: Any) -> None:  # fmt: skip
        assert inembed is None and onembed is None and order == "C"
        height, width = shape
        real, half = height * width, height * (width // 2 + 1)
        assert (idist, odist) == ((real, half) if kind == 0x2A else (half, real))
        self.shape, self.kind, self.batch = shape, kind, batch
        self.work_area = types.SimpleNamespace(mem=types.SimpleNamespace(size=4096))

    def fft(self, source: Any, target: Any, direction: Any) -> None:
        height, width = self.shape
        spectrum = (self.batch, height, width // 2 + 1)
        here, there, kind, batch = source.data.ptr, target.data.ptr, self.kind, self.batch

        def transform() -> None:
            images = memory(there if kind != 0x2A else here, batch * height * width, np.float32)
            images = images.reshape(batch, height, width)
            spectra = memory(here if kind != 0x2A else there, math.prod(spectrum), np.complex64).reshape(spectrum)
            if kind == 0x2A:
                spectra[...] = np.fft.rfft2(images)
            else:
                images[...] = np.fft.irfft2(spectra, s=(height, width)) * (height * width)

        fake = sys.modules["cupy"].fake
        fake.enqueue("fft", fake.kernel_ns, transform)


class Device:
    def __init__(self) -> None:
        self.id = 0
        self.attributes = sys.modules["cupy"].fake.attributes
        self.pci_bus_id = "0000:19:00.0"
        self.mem_info = (100 << 30, 141 << 30)
        self.cublas_handle = 77


class Pool:
    def free_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        pass


class Generator:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def standard_normal(self, shape: Any, dtype: Any) -> ndarray:
        return self.rng.standard_normal(shape, dtype).view(ndarray)

    def integers(self, low: int, high: int, size: Any, dtype: Any, endpoint: bool) -> ndarray:
        return self.rng.integers(low, high, size, dtype, endpoint=endpoint).view(ndarray)

    def random(self, shape: Any) -> ndarray:
        return self.rng.random(shape).view(ndarray)


class Fake:
    """The state behind the module: timeline, kernels, what was launched."""

    def __init__(self, available: bool, compute: tuple[int, int], driver: int) -> None:
        self.time = Timeline()
        self.null = Stream(null=True)
        self.null.fake = self
        self.time.streams.append(self.null)
        self.current = [self.null]
        self.hooks: list[Any] = []
        self.kernels: dict[str, Callable[..., None]] = {}
        self.kernel_ns = KERNEL_NS
        self.launched: list[Any] = []
        self.products: list[int] = []
        self.attributes = {
            "ComputeCapabilityMajor": compute[0], "ComputeCapabilityMinor": compute[1], "MultiProcessorCount": 132,
            "L2CacheSize": 60 << 20, "MaxSharedMemoryPerBlockOptin": 227 << 10,
        }  # fmt: skip
        self.available, self.driver = available, driver

    def enqueue(self, what: str, ns: int, effect: Callable[[], None]) -> None:
        """On the current stream, as CuPy does."""
        self.time.enqueue(self.current[-1], what, ns, effect)

    def allocated(self, n_bytes: int) -> None:
        for hook in self.hooks:
            hook.malloc_postprocess(mem_size=n_bytes, size=n_bytes, device_id=0, mem_ptr=0, pmem_id=0)


class Module(types.ModuleType):
    """`cupy`: what is not here is NumPy's, on arrays of the fake."""

    fake: Fake

    def empty(self, shape: Any, dtype: Any = np.float64) -> ndarray:
        array = aligned_empty(shape, dtype, 512).view(ndarray)
        self.fake.allocated(array.nbytes)
        return array

    def copyto(self, target: Any, source: Any) -> None:
        """In the order of the current stream."""
        self.fake.enqueue("copyto", 1000, lambda: np.copyto(target, source))

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type | np.ufunc):
            return function

        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            return result.view(ndarray) if isinstance(result, np.ndarray) else result

        return call


def module(available: bool = True, compute: tuple[int, int] = (9, 0), driver: int = 13000) -> Module:
    """A fresh fake module."""
    cupy = Module("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.fake = fake = Fake(available, compute, driver)
    cupy.ndarray = ndarray
    cupy.RawModule = lambda path: types.SimpleNamespace(get_function=lambda name: Kernel(fake, name))
    cupy.get_default_memory_pool = Pool
    cupy.random = types.SimpleNamespace(Generator=Generator, Philox4x3210=lambda seed: seed)
    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        driverGetVersion=lambda: fake.driver,
        runtimeGetVersion=lambda: 13020,
        deviceSynchronize=fake.time.wait_for_all,
        getDeviceProperties=lambda index: {"name": b"Fake H200", "totalGlobalMem": 141 << 30},
        CUDA_R_32F=0, CUDA_R_64F=1, CUDA_R_16F=2, CUDA_R_16BF=14,
    )  # fmt: skip
    cublas = types.SimpleNamespace(
        gemmStridedBatchedEx=gemm, CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_COMPUTE_32F=68,
        CUBLAS_COMPUTE_32F_PEDANTIC=69, CUBLAS_COMPUTE_32F_FAST_TF32=77,
    )  # fmt: skip
    cupy.cuda = types.SimpleNamespace(
        Stream=Stream, Event=Event, MemoryHook=Hook, Device=Device, runtime=runtime, cublas=cublas,
        cufft=types.SimpleNamespace(PlanNd=PlanNd, CUFFT_R2C=0x2A, CUFFT_C2R=0x2C),
        is_available=lambda: fake.available, get_current_stream=lambda: fake.current[-1],
        get_elapsed_time=lambda start, end: (end.ns - start.ns) / 1e6,
    )  # fmt: skip
    return cupy


def install(monkeypatch: Any, **facts: Any) -> Fake:
    """Puts a fake in place of CuPy and of the time that timing looks at; gives its state.

    Whoever calls it calls `cuda.forget()` at the end of the test: what is known of the machine is remembered.
    """
    from convbench.devices import cuda, cuda_program, cuda_timing

    cupy = module(**facts)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cuda_timing, "time", cupy.fake.time)
    monkeypatch.setattr(cuda_program, "_loaded", {})
    cuda.forget()
    return cupy.fake
