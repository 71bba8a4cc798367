"""Programs on the CPU: products over strided views, transforms, workspace, packed weights, guards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convbench.cuda.program import At, Buffer, Launch, Long, Product, Program, Transform, Zero
from tests.cuda_on_cpu.emulated import EmulatedContext, EmulationError, multiply, transform

PROBES = Path(__file__).parent / "probes"


def stored(dense: np.ndarray, row: int, step: int, before: int = 3) -> np.ndarray:
    """A (batch, rows, columns) array as elements of a larger buffer, NaN between them."""
    batch, rows, _ = dense.shape
    buffer = np.full(before + batch * step + rows * row, np.nan, dense.dtype)
    view = np.lib.stride_tricks.as_strided(buffer[before:], dense.shape, [s * dense.itemsize for s in (step, row, 1)])
    view[...] = dense
    return buffer


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_product_over_strided_batches(transpose_a: bool, transpose_b: bool, add: bool) -> None:
    rng = np.random.default_rng(0)
    batch, m, n, k = 3, 5, 7, 4
    a, b, c = (rng.integers(-9, 10, s).astype(np.float32) for s in ((batch, m, k), (batch, k, n), (batch, m, n)))
    left, right = a.swapaxes(1, 2) if transpose_a else a, b.swapaxes(1, 2) if transpose_b else b
    buffers = {"x": stored(left, 9, 60), "y": stored(right, 11, 90), "z": stored(c, 8, 50)}
    kept = buffers["z"].copy()
    step = Product(At("x", 3), At("y", 3), At("z", 3), m, n, k, 9, 11, 8, transpose_a, transpose_b, batch, 60, 90, 50,
                   add=add)  # fmt: skip
    multiply(step, buffers)
    want = stored(a @ b + c if add else a @ b, 8, 50)
    np.testing.assert_array_equal(buffers["z"], want)
    assert np.isnan(kept[:3]).all()


def test_one_matrix_for_all_of_a_batch() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    buffers = {"a": a, "b": b, "out": np.full((2, 2, 4), np.nan, np.float32)}
    multiply(Product(At("a"), At("b"), At("out"), 2, 4, 3, 3, 4, 4, batch=2, step_b=12, step_c=8), buffers)
    np.testing.assert_array_equal(buffers["out"], a @ b)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"row_a": 2}, "row_a of a product is 2, less than its 3 columns"),
        ({"batch": 3}, "reaches element 35 of buffer b of 24"),
        ({"step_c": 4}, "results of a product overlap"),
        ({"c": At("out", 1)}, "reaches element 16 of buffer out of 16"),
        ({"b": At("nowhere")}, "no buffer 'nowhere'"),
        ({"a": At("a", 7)}, "element 7 is outside buffer a of 6"),
    ],
)
def test_products_stay_inside_their_buffers(change: dict, sentence: str) -> None:
    shapes = {"a": (2, 3), "b": (2, 3, 4), "out": (2, 2, 4)}
    buffers = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    step = Product(At("a"), At("b"), At("out"), 2, 4, 3, 3, 4, 4, batch=2, step_b=12, step_c=8)
    with pytest.raises(EmulationError, match=sentence):
        multiply(replace(step, **change), buffers)


def test_half_types_are_summed_in_single_precision() -> None:
    a = np.full((1, 4096), 1.0, np.float16)
    b = np.full((4096, 1), 1.0, np.float16)
    buffers = {"a": a, "b": b, "out": np.zeros((1, 1), np.float32), "half": np.zeros((1, 1), np.float16)}
    step = Product(At("a"), At("b"), At("out"), 1, 1, 4096, 4096, 1, 1, arithmetic="float16-acc32")
    multiply(step, buffers)
    assert buffers["out"][0, 0] == 4096
    multiply(replace(step, c=At("half")), buffers)
    assert buffers["half"][0, 0] == 4096


def test_bfloat16_is_held_as_its_bits() -> None:
    def bits(values: np.ndarray) -> np.ndarray:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    buffers = {"a": bits(a), "b": bits(b), "out": np.zeros((2, 4), np.uint16)}
    multiply(Product(At("a"), At("b"), At("out"), 2, 4, 3, 3, 4, 4, arithmetic="bfloat16-acc32"), buffers)
    np.testing.assert_array_equal(buffers["out"], bits(a @ b))


def test_tf32_rounds_its_operands() -> None:
    buffers = {"a": np.array([[1 + 2.0**-12]], np.float32), "out": np.zeros((1, 1), np.float32)}
    step = Product(At("a"), At("a"), At("out"), 1, 1, 1, 1, 1, 1)
    multiply(step, buffers)
    assert buffers["out"][0, 0] > 1
    multiply(replace(step, arithmetic="tf32"), buffers)
    assert buffers["out"][0, 0] == 1


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1), (16, 3)])
def test_transforms_are_not_normalised_and_use_up_their_source(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *size)).astype(np.float32)
    spectrum = np.full((3, size[0], size[1] // 2 + 1), np.nan, np.complex64)
    buffers = {"x": np.append(np.zeros(5, np.float32), x), "f": spectrum, "y": np.full(x.shape, np.nan, np.float32)}
    transform(Transform("forward", At("x", 5), At("f"), 3, *size), buffers)
    np.testing.assert_allclose(buffers["f"], np.fft.rfft2(x.astype(np.float64)), rtol=1e-5, atol=1e-4)
    transform(Transform("inverse", At("f"), At("y"), 3, *size), buffers)
    np.testing.assert_allclose(buffers["y"], x * size[0] * size[1], rtol=1e-4, atol=1e-3)
    assert np.isnan(buffers["f"]).all()


def test_transforms_stay_inside_their_buffers() -> None:
    buffers = {"x": np.zeros(47, np.float32), "f": np.zeros(100, np.complex64)}
    with pytest.raises(EmulationError, match="reaches element 47 of buffer x of 47"):
        transform(Transform("forward", At("x"), At("f"), 1, 6, 8), buffers)
    with pytest.raises(EmulationError, match="transform forward of complex64 to float32"):
        transform(Transform("forward", At("f"), At("x"), 1, 2, 8), buffers)


def scaling(source: str, target: str) -> Launch:
    return Launch(str(PROBES / "steps.cu"), "twice", (1, 1, 1), (64, 1, 1), (At(source), At(target), Long(64)))


ROUND = Program(
    steps=(scaling("packed", "kept"), Product(At("a"), At("kept"), At("out"), 1, 1, 64, 64, 1, 1)),
    filter_steps=(scaling("b", "packed"),),
    workspace={"packed": Buffer((64,)), "kept": Buffer((64,))},
)


@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_packed_weights_are_turned_once(sanitizer: str) -> None:
    a, b, out = np.arange(64, dtype=np.float32), np.ones(64, np.float32), np.zeros(1, np.float32)
    context = EmulatedContext(sanitizer=sanitizer)
    run = context.bind(ROUND, b)
    assert context.launches == 1
    b.fill(np.nan)
    run(a, out)
    assert out[0] == 4 * 2016
    assert context.launches == 2
    assert context.workspace_bytes == 512
    raw = EmulatedContext(sanitizer=sanitizer)
    b.fill(1)
    raw.bind(ROUND, None)(a, b, out)
    assert (out[0], raw.launches) == (4 * 2016, 2)


def test_a_filter_that_steps_read_is_copied() -> None:
    program = Program(steps=(Product(At("a"), At("b"), At("out"), 1, 1, 64, 64, 1, 1),))
    a, b, out = np.arange(64, dtype=np.float32), np.ones(64, np.float32), np.zeros(1, np.float32)
    context = EmulatedContext()
    run = context.bind(program, b)
    b.fill(np.nan)
    run(a, out)
    assert (out[0], context.workspace_bytes) == (2016, 256)


def test_workspace_is_poisoned_once_and_zeroed_by_steps() -> None:
    program = Program(steps=(scaling("space", "out"),), workspace={"space": Buffer((64,))})
    out = np.zeros(64, np.float32)
    EmulatedContext().bind(program, None)(None, None, out)
    assert np.isnan(out).all()
    zeroed = replace(program, steps=(Zero("space"), *program.steps))
    EmulatedContext().bind(zeroed, None)(None, None, out)
    assert (out == 0).all()


def test_writes_outside_workspace_are_seen() -> None:
    past = Launch(str(PROBES / "steps.cu"), "twice", (1, 1, 1), (64, 1, 1), (At("a"), At("space", 1), Long(64)))
    program = Program(steps=(past,), workspace={"space": Buffer((64,))})
    a = np.ones(64, np.float32)
    with pytest.raises(EmulationError, match="a write outside a workspace buffer of 256 bytes"):
        EmulatedContext().bind(program, None)(a, a, a)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64", "int32", "int8"])
def test_workspace_is_aligned_and_poisoned(dtype: str) -> None:
    context = EmulatedContext()
    for count in (1, 3, 1000):
        array = context.empty((count,), dtype)
        assert array.ctypes.data % 256 == 0
        assert (array.view(np.uint8) == 0xFF).all()
