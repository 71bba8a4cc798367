"""The CPU: NumPy arrays in aligned memory, a nanosecond clock, a cache flush."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

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


def poison(array: np.ndarray) -> None:
    """Fills with what no result is: NaN in floats, the most negative value in integers. Touches every page."""
    array.fill(np.nan if array.dtype.kind in "fc" else np.iinfo(array.dtype).min)


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

    def __init__(self, flush_bytes: int = 0) -> None:
        self._flush = np.ones(flush_bytes, np.uint8) if flush_bytes else None

    def context(self, threads: int = 1) -> CpuContext:
        """A fresh context for one plan."""
        return CpuContext(threads)

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
