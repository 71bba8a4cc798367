"""Operands and results between guard bytes, so that a write past an array's ends is seen.

The guards hold 0xFF, which is NaN as a float (-1 in int8): what reads past an operand's end is seen in its result too.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from convbench.devices.arrays import address, namespace, poison, storage
from convbench.devices.cpu import ALIGN_BYTES, HUGE_BYTES, aligned_empty

GUARD_BYTES = 4096
#: The second place in the same memory: another address, still 64-byte aligned.
SHIFT_BYTES = 4096 + 64


class Guarded:
    """Memory for one array, which `place` puts at one of two addresses between guards. xp: whose arrays."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, xp: Any = np) -> None:
        self._xp, self._shape, self._dtype = xp, shape, storage(dtype)
        self._bytes = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._align = HUGE_BYTES if self._bytes >= HUGE_BYTES else ALIGN_BYTES
        self._raw = xp.empty(self._bytes + self._align + 2 * GUARD_BYTES + SHIFT_BYTES, np.uint8)
        self._start = 0

    def place(self, shift: int) -> Any:
        """The array at the first (0) or second (1) address; guards are renewed, the contents are undefined."""
        first = GUARD_BYTES + -(address(self._raw) + GUARD_BYTES) % self._align
        self._start = first + shift * SHIFT_BYTES
        for guard in self._guards():
            guard.fill(0xFF)
        return self._raw[self._start : self._start + self._bytes].view(self._dtype).reshape(self._shape)

    def disturbed(self) -> str | None:
        """Where the guards were written to, or None."""
        before, after = self._guards()
        for guard, where in ((after, "after its end"), (before, "before its start")):
            changed = self._xp.flatnonzero(guard != 0xFF)
            if changed.size:
                at = int(changed[0]) if guard is after else GUARD_BYTES - int(changed[-1])
                return f"{changed.size} bytes were written {where}, the nearest {at} bytes away"
        return None

    def _guards(self) -> tuple[Any, Any]:
        end = self._start + self._bytes
        return self._raw[self._start - GUARD_BYTES : self._start], self._raw[end : end + GUARD_BYTES]


class Operands:
    """a, b and out of one problem between guards, in the memory that `xp` allocates.

    out_dtype: that of the result where it is not `dtype`.
    """

    def __init__(
        self, shapes: tuple[tuple[int, ...], ...], dtype: Any, xp: Any = np, out_dtype: Any = None
    ) -> None:
        self._xp = xp
        types = (dtype, dtype, out_dtype or dtype)
        self._guarded = [Guarded(shape, kind, xp) for shape, kind in zip(shapes, types, strict=True)]
        self.arrays: list[Any] = []

    def place(self, a: Any, b: Any, shift: int) -> tuple[Any, Any, Any]:
        """(a, b, out) at one of two addresses: fresh copies, and a result whose contents are undefined."""
        self.arrays = [guarded.place(shift) for guarded in self._guarded]
        self._xp.copyto(self.arrays[0], a)
        self._xp.copyto(self.arrays[1], b)
        return self.arrays[0], self.arrays[1], self.arrays[2]

    def disturbed(self) -> str | None:
        """Whose guards were written to, or None."""
        for guarded, name in zip(self._guarded, ("a", "b", "out"), strict=True):
            finding = guarded.disturbed()
            if finding:
                return f"{name}: {finding}"
        return None


def same_bytes(left: Any, right: Any) -> bool:
    """Equal to the last bit, NaN included."""
    bits = f"u{left.dtype.itemsize}"
    return bool((left.reshape(-1).view(bits) == right.reshape(-1).view(bits)).all())


def timing_copies(a: Any, b: Any, out_shape: tuple[int, ...], out_dtype: Any) -> tuple[Any, Any, Any]:
    """Aligned copies of the operands and a poisoned result."""
    xp = namespace(a)
    empty = aligned_empty if xp is np else xp.empty
    copies = [empty(array.shape, array.dtype) for array in (a, b)]
    for copy, array in zip(copies, (a, b), strict=True):
        xp.copyto(copy, array)
    out = empty(out_shape, storage(out_dtype))
    poison(out)
    return copies[0], copies[1], out


def checksum(array: Any) -> int:
    """A number that changes with the contents of an array."""
    if namespace(array) is np:
        return zlib.crc32(array)
    words = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    places = namespace(array).arange(words.size, dtype=np.uint64)
    return int((words.astype(np.uint64) * (places * np.uint64(2) + np.uint64(1))).sum())
