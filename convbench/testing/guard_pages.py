"""Arrays against pages that nobody may touch: a read or a write one element outside ends the process at once.

An array in a mapping of its own lies between two pages without access rights. It cannot touch both and be aligned, so
there are three places:

start  its first byte follows the page before it
end    its end lies less than 64 bytes before the page after it; its start is a multiple of 64, as plans may expect
flush  its end lies at the page after it; its start is a multiple of its items' size only

What is left of the first and last page holds 0xFF (NaN as a float), and `disturbed` says whether it still does.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

from convbench.devices.arrays import storage
from convbench.devices.cpu import ALIGN_BYTES, CpuContext, poison

PLACES = ("start", "end", "flush")
CANARY = 0xFF
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Fenced:
    """Memory of one array between two forbidden pages; it lives as long as the array or this object does."""

    def __init__(self, shape: tuple[int, ...] | int, dtype: Any, place: str = "flush") -> None:
        if place not in PLACES:
            raise ValueError(f"place must be one of {', '.join(PLACES)}, not {place!r}")
        dtype = storage(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        page = mmap.PAGESIZE
        room = -(-max(n_bytes, 1) // page) * page
        whole = np.frombuffer(mmap.mmap(-1, room + 2 * page), np.uint8)
        for fence in (0, page + room):
            if _libc.mprotect(whole.ctypes.data + fence, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect() could not take the rights of a guard page away")
        inside = whole[page : page + room]
        slack = room - n_bytes
        first = {"start": 0, "end": slack // ALIGN_BYTES * ALIGN_BYTES, "flush": slack}[place]
        self._before, self._after = inside[:first], inside[first + n_bytes :]
        self._before.fill(CANARY)
        self._after.fill(CANARY)
        self.array = inside[first : first + n_bytes].view(dtype).reshape(shape)

    def disturbed(self) -> str | None:
        """Where the bytes around the array were written to, or None."""
        for canaries, where in ((self._after, "after its end"), (self._before, "before its start")):
            changed = np.flatnonzero(canaries != CANARY)
            if changed.size:
                at = int(changed[0]) if canaries is self._after else len(canaries) - int(changed[-1])
                return f"{changed.size} bytes were written {where}, the nearest {at} bytes away"
        return None


class FencedOperands:
    """a, b and out of one problem between forbidden pages; `convbench.verify.buffers.Operands` with other memory."""

    def __init__(
        self, shapes: tuple[tuple[int, ...], ...], dtype: Any, place: str = "flush", out_dtype: Any = None
    ) -> None:
        types = (dtype, dtype, out_dtype or dtype)
        self._fenced = [
            [Fenced(shape, kind, place) for shape, kind in zip(shapes, types, strict=True)] for _ in range(2)
        ]
        self._shift = 0
        self.arrays: list[np.ndarray] = []

    def place(self, a: np.ndarray, b: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a, b, out) at one of two addresses: fresh copies, and a result whose contents are undefined."""
        self._shift = shift
        self.arrays = [fenced.array for fenced in self._fenced[shift]]
        np.copyto(self.arrays[0], a)
        np.copyto(self.arrays[1], b)
        return self.arrays[0], self.arrays[1], self.arrays[2]

    def disturbed(self) -> str | None:
        """Whose surroundings were written to, or None."""
        for fenced, name in zip(self._fenced[self._shift], ("a", "b", "out"), strict=True):
            finding = fenced.disturbed()
            if finding:
                return f"{name}: {finding}"
        return None


class FencedContext(CpuContext):
    """The CPU's context with every workspace between forbidden pages."""

    def __init__(self, threads: int = 1, place: str = "flush") -> None:
        super().__init__(threads)
        self._place = place
        self._fenced: list[Fenced] = []

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
        """Fenced, poisoned, touched; counted in workspace_bytes."""
        self._fenced.append(Fenced(shape, dtype, self._place))
        array = self._fenced[-1].array
        poison(array)
        self.workspace_bytes += array.nbytes
        return array

    def disturbed(self) -> str | None:
        """Around which workspace something was written, or None."""
        for number, fenced in enumerate(self._fenced):
            finding = fenced.disturbed()
            if finding:
                array = fenced.array
                return f"workspace {number} {array.shape} {array.dtype}: {finding}"
        return None
