"""Tensor maps of Hopper's TMA (include/tma.cuh): what the driver demands of one, and the 128 bytes that it makes of it.

cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col of libcuda.so.1, through ctypes; CUDA Driver API, "Tensor Map Object
Management". The driver says only that something is wrong: `refusal` says what, and needs no driver.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from convbench.cuda.program import ITEM_BYTES, Im2colMap, TensorMap, TiledMap
from convbench.errors import KernelError

MAP_BYTES = ALIGNMENT = 128
ROW_BYTES = 128  # of a copy in shared memory, and what the swizzle spans
#: CUtensorMapDataType; uint16 stands for bfloat16.
TYPES = {"float16": 6, "float32": 7, "bfloat16": 9, "uint16": 9}
#: No interleaving; swizzle of 128 bytes; L2 is filled by 128 bytes at a time; zeros outside of the tensor.
INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_128B, FILL_ZEROS = 0, 3, 2, 0

MOST_STRIDE = 8  # of the steps in a bounding box
CORNERS = (-128, 127)  # of the bounding box of four axes: signed numbers of 8 bits
OFFSETS = (0, 255)  # of a tap: unsigned ones
MOST_BOX, MOST_PIXELS, MOST_CHANNELS = 256, 1024, 256


def refusal(tensor_map: TensorMap, item_bytes: int) -> str | None:
    """What the driver would not take, as a sentence, or None."""
    return next(_refusals(tensor_map, item_bytes), None)


def encode(tensor_map: TensorMap, address: int, dtype: str) -> bytes:
    """The map of what lies at `address`, as a kernel takes it. Raises KernelError that says what is wrong."""
    what = f"a tensor map of {tensor_map.buffer}"
    item_bytes = ITEM_BYTES.get("bfloat16" if dtype == "uint16" else dtype, 0)
    if dtype not in TYPES:
        raise KernelError(f"{what}: TMA has no type for {dtype}, only for {', '.join(sorted(TYPES))}")
    wrong = f"the address {address:#x} is no multiple of 16" if address % 16 else refusal(tensor_map, item_bytes)
    if wrong:
        raise KernelError(f"{what}: {wrong}")
    memory = ctypes.create_string_buffer(MAP_BYTES + ALIGNMENT)
    start = -ctypes.addressof(memory) % ALIGNMENT
    place = ctypes.c_void_p(ctypes.addressof(memory) + start)
    sizes, rank = tensor_map.sizes, len(tensor_map.sizes)
    strides = [sizes[0] * item_bytes]
    for size in sizes[1:-1]:
        strides.append(strides[-1] * size)
    common = (place, TYPES[dtype], rank, ctypes.c_void_p(address), _array(ctypes.c_uint64, sizes),
              _array(ctypes.c_uint64, strides))  # fmt: skip
    last = (INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_128B, FILL_ZEROS)
    numbers = functools.partial(_array, ctypes.c_uint32)
    match tensor_map:
        case TiledMap():
            name = "cuTensorMapEncodeTiled"
            status = _function(name)(*common, numbers(tensor_map.box), numbers((1,) * rank), *last)
        case Im2colMap():
            name = "cuTensorMapEncodeIm2col"
            corners = (_array(ctypes.c_int, corner) for corner in (tensor_map.lower, tensor_map.upper))
            status = _function(name)(
                *common, *corners, tensor_map.channels, tensor_map.pixels, numbers((1, *tensor_map.steps, 1)), *last
            )
        case _:
            raise TypeError(f"a tensor map is tiled or im2col, not {type(tensor_map).__name__}")
    if status:
        raise KernelError(f"{what}: {name} of the NVIDIA driver gave error {status} for {tensor_map}")
    return memory.raw[start : start + MAP_BYTES]


def _refusals(tensor_map: TensorMap, item_bytes: int) -> Iterator[str]:
    sizes = tensor_map.sizes
    if not 3 <= len(sizes) <= 5:
        yield f"it must have three to five axes, not {len(sizes)}"
    if any(not 0 < size <= 2**32 for size in sizes):
        yield f"axes must have 1 to 2^32 elements, not {sizes}"
    if sizes[0] * item_bytes % 16:
        yield f"its innermost axis must be a multiple of 16 bytes, not {sizes[0]} elements of {item_bytes}"
    stride = item_bytes
    for size in sizes[:-1]:
        stride *= size
    if stride >= 2**40:
        yield f"its strides must be less than 2^40 bytes, not {stride}"
    if isinstance(tensor_map, TiledMap):
        yield from _refusals_tiled(tensor_map, item_bytes)
    elif isinstance(tensor_map, Im2colMap):
        yield from _refusals_im2col(tensor_map, item_bytes)


def _refusals_tiled(tiled: TiledMap, item_bytes: int) -> Iterator[str]:
    if len(tiled.box) != len(tiled.sizes):
        yield f"its box must have {len(tiled.sizes)} axes, not {len(tiled.box)}"
    if any(not 0 < side <= MOST_BOX for side in tiled.box):
        yield f"the sides of its box must be 1 to {MOST_BOX}, not {tiled.box}"
    if tiled.box[0] * item_bytes != ROW_BYTES:
        yield f"rows of its box must be {ROW_BYTES} bytes, not {tiled.box[0] * item_bytes}"


def _refusals_im2col(im2col: Im2colMap, item_bytes: int) -> Iterator[str]:
    if len(im2col.sizes) != 4:
        yield f"im2col needs the axes C, W, H and N, not {len(im2col.sizes)}"
    low, high = CORNERS
    for axis, size, lower, upper, step in zip(
        ("width", "height"), im2col.sizes[1:3], im2col.lower, im2col.upper, im2col.steps, strict=True
    ):
        if not 0 < step <= MOST_STRIDE:
            yield f"along the {axis} it takes steps of 1 to {MOST_STRIDE} pixels, not {step}"
        if not (low <= lower <= high and low <= upper <= high):
            yield f"along the {axis} its bounding box must end within {low} to {high} of the image's ends, not at " + (
                f"{lower} and {upper}"
            )
        if size + upper - lower < 1:
            yield f"along the {axis} its bounding box is empty"
    if not 0 < im2col.pixels <= MOST_PIXELS:
        yield f"a copy must have 1 to {MOST_PIXELS} pixels, not {im2col.pixels}"
    if im2col.channels > MOST_CHANNELS or im2col.channels * item_bytes != ROW_BYTES:
        yield f"a pixel's channels must be {ROW_BYTES} bytes, not {im2col.channels * item_bytes}"


def _array(kind: Any, values: Sequence[int]) -> Any:
    return (kind * len(values))(*values)


@functools.cache
def _function(name: str) -> Any:
    """A function of the driver, with the types of its arguments. Raises KernelError."""
    try:
        function = getattr(_driver(), name)
    except (OSError, AttributeError) as error:
        raise KernelError(f"TMA needs {name} of the NVIDIA driver (CUDA 12 or later): {error}") from None
    numbers, pointer = [ctypes.c_uint32] * 2, ctypes.c_void_p
    shape = [ctypes.POINTER(ctypes.c_int)] * 2 + numbers if name.endswith("Im2col") else [
        ctypes.POINTER(ctypes.c_uint32)
    ]  # fmt: skip
    function.argtypes = [
        pointer, ctypes.c_int, ctypes.c_uint32, pointer, *[ctypes.POINTER(ctypes.c_uint64)] * 2, *shape,
        ctypes.POINTER(ctypes.c_uint32), *[ctypes.c_int] * 4,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function


def _driver() -> Any:
    """The driver's library. Raises OSError where there is none."""
    return ctypes.CDLL("libcuda.so.1")
