"""Tensor maps: what the driver is given, in which widths; what is refused before it is asked; programs with maps."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convbench.cuda import tensor_map
from convbench.cuda.program import At, Im2colMap, Launch, Long, Program, TensorMap, TiledMap, buffers_of
from convbench.cuda.tensor_map import encode, refusal
from convbench.devices import cuda, cuda_program
from convbench.errors import KernelError
from tests import fake_cuda, fake_driver
from tests.fake_driver import FakeDriver

TILED = TiledMap("b", sizes=(72, 9, 40), box=(64, 1, 256))
IM2COL = Im2colMap("a", sizes=(72, 30, 20, 5), channels=64, pixels=128, lower=(-1, -2), upper=(-3, 1), steps=(2, 1))
ADDRESS = 0x7F1234567000


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    yield fake_driver.install(monkeypatch)
    fake_driver.forget()


def test_a_tiled_map_as_the_driver_gets_it(driver: FakeDriver) -> None:
    encoded = encode(TILED, ADDRESS, "float16")
    (call,) = driver.calls
    assert call.pop("map") % 128 == 0
    assert call == {
        "type": 6, "rank": 3, "address": ADDRESS, "sizes": [72, 9, 40], "strides": [144, 1296], "box": [64, 1, 256],
        "steps": [1, 1, 1], "interleave": 0, "swizzle": 3, "promotion": 2, "fill": 0,
    }  # fmt: skip
    assert encoded == ADDRESS.to_bytes(8, "little") + (1).to_bytes(8, "little") + b"\xa5" * 112


def test_an_im2col_map_as_the_driver_gets_it(driver: FakeDriver) -> None:
    """Corners and steps along W, then H, as the axes are counted; strides of more than 32 bits."""
    large = replace(IM2COL, sizes=(72, 30000, 20000, 5))
    encode(large, ADDRESS, "uint16")
    (call,) = driver.calls
    assert call.pop("map") % 128 == 0
    assert call == {
        "type": 9, "rank": 4, "address": ADDRESS, "sizes": [72, 30000, 20000, 5],
        "strides": [144, 144 * 30000, 144 * 30000 * 20000], "lower": [-1, -2], "upper": [-3, 1], "channels": 64,
        "pixels": 128, "steps": [1, 2, 1, 1], "interleave": 0, "swizzle": 3, "promotion": 2, "fill": 0,
    }  # fmt: skip


WRONG: list[tuple[TensorMap, str]] = [
    (replace(TILED, sizes=(70, 9, 40)), "innermost axis must be a multiple of 16 bytes, not 70 elements of 2"),
    (replace(TILED, sizes=(72, 0, 40)), "axes must have 1 to 2^32 elements"),
    (replace(TILED, sizes=(72, 9, 2**32 + 1)), "axes must have 1 to 2^32 elements"),
    (replace(TILED, sizes=(2**20, 2**20, 1)), "strides must be less than 2^40 bytes"),
    (replace(TILED, box=(64, 1, 257)), "sides of its box must be 1 to 256"),
    (replace(TILED, box=(128, 1, 8)), "rows of its box must be 128 bytes, not 256"),
    (replace(TILED, sizes=(8,) * 6, box=(64, 1, 1, 1, 1, 1)), "three to five axes, not 6"),
    (replace(IM2COL, steps=(9, 1)), "along the width it takes steps of 1 to 8 pixels, not 9"),
    (replace(IM2COL, steps=(1, 0)), "along the height it takes steps of 1 to 8 pixels, not 0"),
    (replace(IM2COL, lower=(-129, 0)), "along the width its bounding box must end within -128 to 127"),
    (replace(IM2COL, upper=(0, 128)), "along the height its bounding box must end within -128 to 127"),
    (replace(IM2COL, lower=(0, 10), upper=(0, -10)), "along the height its bounding box is empty"),
    (replace(IM2COL, pixels=1025), "a copy must have 1 to 1024 pixels"),
    (replace(IM2COL, channels=72), "a pixel's channels must be 128 bytes, not 144"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_what_the_driver_refuses_is_said_first(
    wrong: TensorMap, sentence: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sentence in (refusal(wrong, 2) or "")
    with pytest.raises(KernelError, match="a tensor map of"):
        encode(wrong, ADDRESS, "float16")
    monkeypatch.setattr(tensor_map, "refusal", lambda *_: None)  # and the driver would have refused it
    with pytest.raises(KernelError, match="of the NVIDIA driver gave error 1 for"):
        encode(wrong, ADDRESS, "float16")
    assert not driver.calls


def test_the_ends_of_all_ranges_are_taken(driver: FakeDriver) -> None:
    for good in (
        replace(IM2COL, lower=(-128, 127), upper=(127, 127), steps=(8, 8), pixels=1024, sizes=(8, 1, 1, 2**31)),
        replace(TILED, sizes=(8, 2**32, 1), box=(64, 256, 256)),
    ):
        assert refusal(good, 2) is None
        encode(good, ADDRESS, "float16")
    assert len(driver.calls) == 2


def test_types_and_addresses_that_tma_does_not_know(driver: FakeDriver) -> None:
    with pytest.raises(KernelError, match="TMA has no type for float64, only for bfloat16, float16, float32, uint16"):
        encode(TILED, ADDRESS, "float64")
    with pytest.raises(KernelError, match="address 0x7f1234567008 is no multiple of 16"):
        encode(TILED, ADDRESS + 8, "float16")


def test_without_a_driver_the_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        return ctypes.CDLL("libcuda_that_is_not_there.so.1")

    monkeypatch.setattr(tensor_map, "_driver", missing)
    fake_driver.forget()
    with pytest.raises(KernelError, match="TMA needs cuTensorMapEncodeTiled of the NVIDIA driver"):
        encode(TILED, ADDRESS, "float16")
    monkeypatch.setattr(tensor_map, "_driver", lambda: types.SimpleNamespace())
    with pytest.raises(KernelError, match=r"cuTensorMapEncodeIm2col of the NVIDIA driver \(CUDA 12 or later\)"):
        encode(IM2COL, ADDRESS, "float16")
    fake_driver.forget()


def test_a_map_is_given_to_the_kernel_by_value(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded once for the same addresses, again for others; an array of one element of 128 bytes."""
    gpu = fake_cuda.install(monkeypatch)
    monkeypatch.setattr(cuda_program, "compile_for", lambda launch, gpu: types.SimpleNamespace(path=launch.file))
    gpu.kernels["looks"] = lambda *_: None
    arguments = (replace(IM2COL, sizes=(8, 4, 3, 2), upper=(1, 2)), At("out", 8), Long(3))
    step = Launch("looks.cu", "looks", (1, 1, 1), (32, 1, 1), arguments)
    assert buffers_of(step) == {"a", "out"}
    context = cuda.CudaDevice().context()
    run = context.bind(Program((step,)))
    a, other, out = (gpu_array((2, 3, 4, 8)) for _ in range(3))
    for source in (a, a, other):
        run(source, out, out)
    context.stream.synchronize()
    assert [call["address"] for call in driver.calls] == [a.ctypes.data, other.ctypes.data]
    maps = [launched[3][0] for launched in gpu.launched]
    assert [(m.dtype.itemsize, m.size) for m in maps] == [(128, 1)] * 3
    assert [int.from_bytes(m.tobytes()[:8], "little") for m in maps] == [x.ctypes.data for x in (a, a, other)]
    cuda.forget()


def gpu_array(shape: tuple[int, ...]) -> Any:
    import cupy

    return cupy.empty(shape, np.float16)
