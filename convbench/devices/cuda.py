"""An NVIDIA GPU through CuPy: what this machine has, memory, streams, plans. No other module imports CuPy.

CuPy is imported when a GPU is first asked for, so that nothing pays for it who needs none. Facts that need no CuPy
(clocks, throttling, energy, other processes) come from NVML, see `nvml.py`; timing is in `cuda_timing.py`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from convbench.cuda.gpu import Gpu
from convbench.cuda.program import Program
from convbench.devices.arrays import poison, storage
from convbench.devices.base import Peak
from convbench.errors import Unavailable
from convbench.registry import Run

INSTALL = "pip install 'convbench[cuda]'"
LEAST = (7, 5)  # what CUDA 13 still compiles for
FLUSH_BYTES = 256 << 20
#: GPUs whose own instructions (wgmma) the project has kernels for: compute capability -> suffix.
FEATURES = {(9, 0): "a"}


def why_not(least: tuple[int, int] = LEAST, architecture: str | None = None) -> str | None:
    """One sentence on why nothing can run on a GPU here (or nothing that needs this capability or architecture)."""
    missing = _missing()
    if missing is not None:
        return missing
    found = this_gpu()
    if found.compute < max(least, LEAST):
        have, need = (".".join(map(str, c)) for c in (found.compute, max(least, LEAST)))
        return f"{found.name}: compute capability {have} is below {need}"
    if architecture is not None and found.architecture != architecture:
        return f"{found.name} is {found.architecture}: only {architecture} has the instructions"
    return None


@functools.cache
def _missing() -> str | None:
    """What stands between this process and a GPU, or None."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        return f"cupy is not installed: {INSTALL}"
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises becomes the reason
        return f"cupy cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}): {INSTALL}"
    if cupy.cuda.is_available():
        return None
    reason = "cupy.cuda.is_available() is False"
    try:
        driver = cupy.cuda.runtime.driverGetVersion()
        wanted = cupy.cuda.runtime.runtimeGetVersion()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no NVIDIA driver or GPU: {reason} ({error})"
    if driver == 0:
        return f"no NVIDIA driver or GPU: {reason}"
    if driver // 1000 < wanted // 1000:
        have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver, wanted))
        return f"the NVIDIA driver is too old: it offers CUDA {have}, cupy needs {need}: install a newer driver"
    return f"an NVIDIA driver, but no GPU: {reason} (is CUDA_VISIBLE_DEVICES set?)"


def forget() -> None:
    """Looks at the machine again when it is next asked for."""
    _missing.cache_clear()
    this_gpu.cache_clear()


def _cupy() -> Any:
    missing = _missing()
    if missing is not None:
        raise Unavailable(missing)
    return importlib.import_module("cupy")


@functools.cache
def this_gpu() -> Gpu:
    """The current device's limits. Raises Unavailable."""
    cupy = _cupy()
    device = cupy.cuda.Device()
    attributes, facts = device.attributes, cupy.cuda.runtime.getDeviceProperties(device.id)
    compute = (int(attributes["ComputeCapabilityMajor"]), int(attributes["ComputeCapabilityMinor"]))
    name = facts["name"]
    return Gpu(
        name.decode() if isinstance(name, bytes) else str(name),
        compute,
        int(attributes["MultiProcessorCount"]),
        int(attributes["L2CacheSize"]),
        int(attributes["MaxSharedMemoryPerBlockOptin"]),
        int(facts["totalGlobalMem"]),
        FEATURES.get(compute, ""),
    )


def facts() -> dict[str, Any]:
    """What records keep of the GPU and its libraries, as plain values; {"why": sentence} where there is none."""
    missing = why_not()
    if missing is not None:
        return {"why": missing}
    from convbench.devices import nvml

    cupy, gpu = _cupy(), this_gpu()
    runtime = cupy.cuda.runtime
    return {
        "name": gpu.name,
        "compute_capability": ".".join(map(str, gpu.compute)),
        "multiprocessors": gpu.multiprocessors,
        "memory_bytes": gpu.memory_bytes,
        "l2_bytes": gpu.l2_bytes,
        "shared_bytes_per_block": gpu.shared_bytes,
        "cuda_driver": _version(runtime.driverGetVersion()),
        "cuda_runtime": _version(runtime.runtimeGetVersion()),
        **nvml.Monitor(cupy.cuda.Device().pci_bus_id).facts(),
    }


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class CudaContext:
    """Workspace, a stream of its own and notes for one plan on the GPU.

    The stream does not wait for the default stream, nor the other way: whoever brings operands or reads results
    synchronises. threads: of the CPU, as for every context.
    """

    def __init__(self, xp: Any, gpu: Gpu, threads: int = 1) -> None:
        self.xp, self.gpu, self.threads = xp, gpu, threads
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.workspace_bytes = 0
        self.launches: int | None = None  # kernels and library calls that one run() enqueues
        self.notes: dict[str, str] = {}

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> Any:
        """C-contiguous, 256-byte aligned, poisoned on the context's stream; counted in workspace_bytes."""
        with self.stream:
            array = self.xp.empty(shape, storage(dtype))
            poison(array)
        self.workspace_bytes += array.nbytes
        return array

    def account(self, n_bytes: int, what: str) -> None:
        """Counts memory that a library owns."""
        self.workspace_bytes += int(n_bytes)

    def note(self, key: str, value: str) -> None:
        """Keeps a fact for the record."""
        self.notes[key] = value

    def bind(self, program: Program, weights: Any = None) -> Run:
        """run(a, b, out), or with `weights` (the filter's steps are executed now) run(a, out): see `cuda_program.py`.

        Raises KernelError where a kernel cannot be compiled for this GPU.
        """
        from convbench.devices.cuda_program import bind  # brings the compiler's interface: not for who only asks

        return bind(self, program, weights)


class CudaDevice:
    """The current GPU: arrays, contexts, waiting, watching memory, flushing its L2 cache. Raises Unavailable."""

    name = "cuda"
    full_macs: int | None = None

    def __init__(self) -> None:
        why = why_not()
        if why is not None:
            raise Unavailable(why)
        self.xp = _cupy()
        self.gpu = this_gpu()
        self._flush: Any = None

    def context(self, threads: int = 1) -> CudaContext:
        """A fresh context for one plan."""
        return CudaContext(self.xp, self.gpu, threads)

    def on(self, context: Any) -> contextlib.AbstractContextManager[Any]:
        """Within it, array operations queue up behind the plan's run(), on its stream."""
        stream: contextlib.AbstractContextManager[Any] = context.stream
        return stream

    @contextlib.contextmanager
    def joined(self, context: CudaContext | None) -> Iterator[None]:
        """Within it, a plan's run() follows what the current stream was given, and leads what it is given after.

        Streams wait for each other, the host waits for none. None, for a plan that is being made: the host waits.
        """
        cuda = self.xp.cuda
        current = cuda.get_current_stream()
        if context is None:
            current.synchronize()
            yield
            return
        before, after = cuda.Event(disable_timing=True), cuda.Event(disable_timing=True)
        before.record(current)
        context.stream.wait_event(before)
        with context.stream:
            yield
        after.record(context.stream)
        current.wait_event(after)

    def finish(self, context: Any) -> None:
        """Waits for the plan's stream and for no other."""
        context.stream.synchronize()

    def synchronize(self) -> None:
        """Waits for every stream of the device."""
        self.xp.cuda.runtime.deviceSynchronize()

    @contextlib.contextmanager
    def watch_memory(self) -> Iterator[Peak]:
        """Sees what is taken from CuPy's memory pool within."""
        peak, taken = Peak(), 0

        class Watch(self.xp.cuda.MemoryHook):  # type: ignore[name-defined]
            name = "convbench"

            def malloc_postprocess(self, **event: Any) -> None:
                nonlocal taken
                taken += event["mem_size"]
                peak.n_bytes = max(peak.n_bytes, taken)

            def free_postprocess(self, **event: Any) -> None:
                nonlocal taken
                taken -= event["mem_size"]

        with Watch():
            yield peak

    def memory_bytes(self) -> int:
        """Memory that is free now, what CuPy's pool keeps for reuse included."""
        free = int(self.xp.cuda.Device().mem_info[0])
        return free + int(self.xp.get_default_memory_pool().free_bytes())

    def free_cached(self) -> None:
        """Gives what CuPy's pool keeps for reuse back to the GPU."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def flush_cache(self) -> None:
        """Writes more than twice what the L2 cache holds, and waits until that is done."""
        if self._flush is None:
            self._flush = self.xp.empty(max(2 * self.gpu.l2_bytes, FLUSH_BYTES), np.uint8)
        self._flush.data.memset_async(0, self._flush.nbytes)
        self.synchronize()
