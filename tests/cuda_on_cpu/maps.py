"""Tensor maps for the emulator: EmulatorTensorMap of background.h in place of what the driver encodes."""

from __future__ import annotations

import math
import struct

import numpy as np

from convbench.cuda.program import Im2colMap, TensorMap, TiledMap
from convbench.cuda.tensor_map import MAP_BYTES, refusal


def wrong(of: TensorMap, array: np.ndarray) -> str | None:
    """Why the driver would refuse it, or a copy could reach beyond the array; or None."""
    address = array.ctypes.data + of.offset * array.dtype.itemsize
    last = of.offset + math.prod(of.sizes)
    if last > array.size:
        return f"it reaches element {last - 1} of {array.size} elements"
    return refusal(of, array.dtype.itemsize) or (f"{address:#x} is no multiple of 16" if address % 16 else None)


def packed(of: TensorMap, array: np.ndarray) -> bytes:
    """Its 128 bytes."""
    item = array.dtype.itemsize
    filled = (1,) * (4 - len(of.sizes))
    match of:
        case Im2colMap():
            numbers = (2, item, *of.sizes, of.channels, of.pixels, 1, 1, *of.lower, *of.upper, *of.steps)
        case TiledMap():
            numbers = (1, item, *of.sizes, *filled, *of.box, *filled, *(0,) * 6)
        case _:
            raise TypeError(f"a tensor map is tiled or im2col, not {type(of).__name__}")
    return struct.pack("<Q16i", array.ctypes.data + of.offset * item, *numbers).ljust(MAP_BYTES, b"\0")
