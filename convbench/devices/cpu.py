"""The CPU: NumPy arrays in aligned memory, a nanosecond clock, a cache flush."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convbench.devices.arrays import poison
from convbench.devices.base import Peak

ALIGN_BYTES = 64
HUGE_BYTES = 2 << 20  # large buffers start on a huge page, so that the kernel can back them with one


def aligned_empty(shape: tuple[int, ...] | int, dtype: Any, align: int | None = None) -> np.ndarray:
    """An uninitialised C-contiguous array that starts on a multiple of `align` bytes."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if align is None:
        align = HUGE_BYTES if n_bytes >= HUGE_BYTES else ALIGN_BYTES
    raw = np.empty(n_bytes + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


class CpuContext:
    """Workspace, thread count and notes for one plan on the CPU."""

    xp = np
    stream = None

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.workspace_bytes = 0
        self.notes: dict[str, str] = {}

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
        """Aligned, poisoned, touched; counted in workspace_bytes."""
        array = aligned_empty(shape, dtype)
        poison(array)
        self.workspace_bytes += array.nbytes
        return array

    def account(self, n_bytes: int, what: str) -> None:
        """Counts memory that a library owns."""
        self.workspace_bytes += int(n_bytes)

    def note(self, key: str, value: str) -> None:
        """Keeps a fact for the record."""
        self.notes[key] = value


class CpuDevice:
    """Clock, synchronisation and cache flush of the CPU."""

    name = "cpu"
    xp = np
    #: Multiply-adds up to which the oracle computes every element; None: what verification thinks of a CPU.
    full_macs: int | None = None

    def __init__(self, flush_bytes: int = 0) -> None:
        self._flush = np.ones(flush_bytes, np.uint8) if flush_bytes else None

    def context(self, threads: int = 1) -> CpuContext:
        """A fresh context for one plan."""
        return CpuContext(threads)

    def on(self, context: Any) -> contextlib.AbstractContextManager[Any]:
        """Within it, array operations queue up behind a plan's run(); on the CPU nothing queues."""
        return contextlib.nullcontext()

    def joined(self, context: Any) -> contextlib.AbstractContextManager[Any]:
        """Within it, a plan's run() sees what was computed before, and is seen after; on the CPU it is so anyway."""
        return contextlib.nullcontext()

    def finish(self, context: Any) -> None:
        """Waits for what a plan's run() has enqueued, and for nothing else; on the CPU that is done."""

    def synchronize(self) -> None:
        """Waits for everything that was enqueued anywhere; on the CPU that is done."""

    @contextlib.contextmanager
    def watch_memory(self) -> Iterator[Peak]:
        """Sees what is allocated within, through Python's allocators."""
        peak = Peak()
        tracemalloc.start()
        try:
            yield peak
            peak.n_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @staticmethod
    def clock_ns() -> int:
        """Monotonic nanoseconds."""
        return time.perf_counter_ns()

    def flush_cache(self) -> None:
        """Writes through a buffer larger than the last-level cache."""
        if self._flush is not None:
            self._flush += 1


def last_level_cache_bytes() -> int:
    """Size of the largest cache that the kernel reports for CPU 0; 32 MiB where it reports none."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=32 << 20)
