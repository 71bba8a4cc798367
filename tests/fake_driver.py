"""libcuda.so.1 that is not there: the two functions that encode tensor maps, called as C functions.

Each records what it was given and refuses, with CUDA_ERROR_INVALID_VALUE, what the driver's documentation ("Tensor Map
Object Management") forbids for elements of 16 or 32 bits without interleaving.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass, field
from typing import Any

from convbench.cuda import tensor_map

INVALID_VALUE = 1
ITEM_BYTES = {6: 2, 7: 4, 9: 2}  # CU_TENSOR_MAP_DATA_TYPE_FLOAT16, FLOAT32, BFLOAT16
SWIZZLE_SPAN = {1: 32, 2: 64, 3: 128}
CORNER_BITS = {3: 16, 4: 8, 5: 5}

_U32, _U64, _INT = (ctypes.POINTER(t) for t in (ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int))
_COMMON = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, _U64, _U64)
_LAST = (_U32, *[ctypes.c_int] * 4)


@dataclass
class FakeDriver:
    """calls: a dictionary of arguments for each map that was encoded."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tiled = ctypes.CFUNCTYPE(ctypes.c_int, *_COMMON, _U32, *_LAST)
        im2col = ctypes.CFUNCTYPE(ctypes.c_int, *_COMMON, _INT, _INT, ctypes.c_uint32, ctypes.c_uint32, *_LAST)
        self.cuTensorMapEncodeTiled = tiled(self._tiled)
        self.cuTensorMapEncodeIm2col = im2col(self._im2col)

    def _tiled(self, *given: Any) -> int:
        call = _common(given[:6]) | _last(given[7:], given[2])
        box = call["box"] = list(given[6][: given[2]])
        inner = box[0] * ITEM_BYTES[call["type"]]
        allowed = call["rank"] <= 5 and all(0 < side <= 256 for side in box) and inner % 16 == 0
        return self._encode(call, allowed and _inner_fits(call, inner))

    def _im2col(self, *given: Any) -> int:
        rank, axes = given[2], given[2] - 2
        call = _common(given[:6]) | _last(given[10:], rank)
        call |= {"lower": list(given[6][:axes]), "upper": list(given[7][:axes])}
        call |= {"channels": given[8], "pixels": given[9]}
        largest = 1 << CORNER_BITS.get(rank, 0) >> 1
        allowed = 3 <= rank <= 5 and call["channels"] <= 256 and call["pixels"] <= 1024
        for size, lower, upper in zip(call["sizes"][1:], call["lower"], call["upper"], strict=False):
            allowed = allowed and all(-largest <= corner < largest for corner in (lower, upper))
            allowed = allowed and size + upper - lower > 0
        return self._encode(call, allowed and _inner_fits(call, call["channels"] * ITEM_BYTES[call["type"]]))

    def _encode(self, call: dict[str, Any], allowed: bool) -> int:
        strides = call["strides"]
        allowed = allowed and call["map"] % 64 == 0 and call["address"] % 16 == 0
        allowed = allowed and all(0 < size <= 2**32 for size in call["sizes"])
        allowed = allowed and all(stride % 16 == 0 and stride < 2**40 for stride in strides)
        allowed = allowed and all(after % before == 0 for before, after in itertools.pairwise(strides))
        allowed = allowed and all(0 < step <= 8 for step in call["steps"][1:])
        if not allowed or (call["interleave"], call["fill"]) != (0, 0):
            return INVALID_VALUE
        self.calls.append(call)
        opaque = call["address"].to_bytes(8, "little") + len(self.calls).to_bytes(8, "little")
        ctypes.memmove(call["map"], opaque.ljust(128, b"\xa5"), 128)
        return 0


def install(monkeypatch: Any) -> FakeDriver:
    """Puts a fake in place of the library. Whoever calls it calls forget() at the end of the test."""
    fake = FakeDriver()
    monkeypatch.setattr(tensor_map, "_driver", lambda: fake)
    forget()
    return fake


def forget() -> None:
    """Looks for the library again when a map is next encoded."""
    tensor_map._function.cache_clear()


def _common(given: tuple[Any, ...]) -> dict[str, Any]:
    place, kind, rank, address, sizes, strides = given
    return {"map": place, "type": kind, "rank": rank, "address": address, "sizes": list(sizes[:rank]),
            "strides": list(strides[: rank - 1])}  # fmt: skip


def _last(given: tuple[Any, ...], rank: int) -> dict[str, Any]:
    steps, interleave, swizzle, promotion, fill = given
    return {"steps": list(steps[:rank]), "interleave": interleave, "swizzle": swizzle, "promotion": promotion,
            "fill": fill}  # fmt: skip


def _inner_fits(call: dict[str, Any], n_bytes: int) -> bool:
    return n_bytes <= SWIZZLE_SPAN.get(call["swizzle"], n_bytes)
