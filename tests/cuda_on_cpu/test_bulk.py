"""The emulator's tensor maps and mbarriers against known values, and what must not be done with them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench.cuda.compile import compile_file
from convbench.cuda.program import At, Im2colMap, Launch, Program, TensorMap, TiledMap
from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.emulated import EmulatedContext, EmulationError, launch

FILE = build.HERE / "hopper" / "bulk.cu"
ONE = (1, 1, 1)


def run(kernel: str, source: np.ndarray, tensor_map: TensorMap, rows: int, *numbers: int, order: int = 0,
        sanitizer: str = "plain") -> np.ndarray:  # fmt: skip
    """What a kernel of bulk.cu brings out of `source`, (rows, 64)."""
    out = np.full((rows, 64), 0xFFFF, np.uint16)
    arguments = (tensor_map, At("out"), *numbers)
    shared = 1024 + 128 * rows
    step = Launch(str(FILE), kernel, ONE, (64, 1, 1), arguments, shared_bytes=shared)
    EmulatedContext(order=order, sanitizer=sanitizer).bind(Program((step,)))(source, None, out)
    return out


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 0xFFFF, shape).astype(np.uint16)


def im2col(x: np.ndarray, of: Im2colMap, first: int, c: int, offsets: tuple[int, int]) -> np.ndarray:
    """Pixels of the bounding box from number `first` on, with NumPy's own counting; zeros around the image."""
    n, height, width, channels = x.shape
    padded = np.zeros((n + 9, height + 32, width + 32, channels + 64), np.uint16)
    padded[:n, 16 : 16 + height, 16 : 16 + width, :channels] = x
    columns = np.arange(of.lower[0], width + of.upper[0], of.steps[0])
    rows = np.arange(of.lower[1], height + of.upper[1], of.steps[1])
    picked = padded[:, rows[:, None] + offsets[1] + 16, columns[None, :] + offsets[0] + 16, c : c + 64]
    return picked.reshape(-1, 64)[first : first + of.pixels]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("lower", "upper", "steps"),
    [((0, 0), (0, 0), (1, 1)), ((-1, -2), (-1, 1), (1, 1)), ((-3, -1), (2, -2), (2, 3)), ((2, 1), (-1, 0), (1, 2))],
)
def test_pixels_of_a_bounding_box(lower, upper, steps, order):
    x = image(2, 5, 6, 72)
    of = Im2colMap("a", sizes=(72, 6, 5, 2), channels=64, pixels=20, lower=lower, upper=upper, steps=steps)
    columns = range(lower[0], 6 + upper[0], steps[0])
    rows = range(lower[1], 5 + upper[1], steps[1])
    places = list(itertools.product(range(2), rows, columns))
    for first, c, offsets in ((0, 0, (0, 0)), (len(places) // 2, 64, (1, 2)), (len(places) - 3, 8, (9, 3))):
        n, h, w = places[first]
        got = run("pixels", x, of, 20, 20, c, w, h, n, *offsets, order=order)
        assert (got == im2col(x, of, first, c, offsets)).all()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_boxes_with_zeros_beyond_every_axis(order):
    x = image(7, 3, 40)
    of = TiledMap("a", sizes=(40, 3, 7), box=(64, 2, 5))
    padded = np.zeros((16, 8, 128), np.uint16)
    padded[:7, :3, :40] = x
    for at in ((0, 0, 0), (8, 1, 0), (32, 2, 4)):
        got = run("boxes", x, of, 10, 10, *at, order=order)
        want = padded[at[2] : at[2] + 5, at[1] : at[1] + 2, at[0] : at[0] + 64]
        assert (got == want.reshape(10, 64)).all()


def test_a_map_may_begin_inside_its_buffer():
    x = image(3, 2, 64)
    got = run("boxes", x, TiledMap("a", 128, sizes=(64, 1, 2), box=(64, 1, 2)), 2, 2, 0, 0, 0)
    assert (got == x[1].reshape(2, 64)).all()


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers_follow_copies(sanitizer):
    x = image(1, 4, 4, 64)
    of = Im2colMap("a", sizes=(64, 4, 4, 1), channels=64, pixels=16, lower=(-1, 0), upper=(-1, 0), steps=(1, 1))
    got = run("pixels", x, of, 16, 16, 0, -1, 0, 0, 1, 0, order=2, sanitizer=sanitizer)
    assert (got == x.reshape(16, 64)).all()


@pytest.mark.parametrize("sanitizer", ["plain", "thread"])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_phases_of_an_mbarrier(order, sanitizer):
    out = np.full((4, 64), -1, np.int32)
    launch(FILE, "phases", ONE, (64, 1, 1), [out], order=order, sanitizer=sanitizer)
    assert (out == 100 * np.arange(4)[:, None] + (np.arange(64) + 33) % 64).all()


FAULTS = {
    1: r"initialised as no mbarrier, or overwritten, is used at bulk.cu:\d+ \(block 0,0,0, thread 0,0,0\)",
    2: r"more arrivals at an mbarrier than a phase of it has at bulk.cu",
    3: r"a bulk copy to no multiple of 128 at bulk.cu",
    4: r"an im2col copy from no pixel of its bounding box at bulk.cu",
    5: r"an im2col offset that 8 bits do not hold at bulk.cu",
    6: r"a bulk copy by a tensor map of another mode, or none, at bulk.cu",
    7: r"a bulk copy to outside shared memory at bulk.cu",
    8: r"1 bulk copies are in flight when the block ends, one from bulk.cu:\d+",
    9: r"more arrivals at an mbarrier|deadlock.*wait in a phase of an mbarrier at bulk.cu",
    10: r"initialised as no mbarrier, or overwritten, is used at bulk.cu",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_have_a_place(fault):
    of = Im2colMap("a", sizes=(64, 4, 4, 1), channels=64, pixels=4, lower=(0, 0), upper=(0, 0), steps=(1, 1))
    with pytest.raises(EmulationError, match=FAULTS[fault]):
        run("faults", image(1, 4, 4, 64), of, 4, fault)


def test_bytes_that_nobody_copies_are_a_deadlock():
    of = TiledMap("a", sizes=(64, 4, 1), box=(64, 2, 1))
    with pytest.raises(EmulationError, match=r"threads 0-63 wait in a phase of an mbarrier at bulk.cu:\d+"):
        run("boxes", image(4, 64), of, 3, 3, 0, 0, 0)


@pytest.mark.parametrize(
    ("tensor_map", "sentence"),
    [
        (TiledMap("a", sizes=(64, 4, 2), box=(64, 2, 1)), "it reaches element 511 of 256 elements"),
        (TiledMap("a", sizes=(60, 2, 2), box=(64, 2, 1)), "innermost axis must be a multiple of 16 bytes"),
        (TiledMap("a", 4, sizes=(8, 2, 2), box=(64, 2, 1)), "is no multiple of 16"),
    ],
)
def test_maps_that_a_driver_would_refuse(tensor_map, sentence):
    with pytest.raises(EmulationError, match=f"a tensor map of a: .*{sentence}"):
        run("boxes", image(4, 64), tensor_map, 2, 2, 0, 0, 0)


def test_nvrtc_takes_them(tmp_path):
    for path in [FILE, *(build.KERNELS / "include").glob("*.cuh")]:
        (tmp_path / path.name).write_text(path.read_text())
    compiled = compile_file(FILE.name, (), "90a", tmp_path)
    assert set(compiled.kernels) == set(build.kernels_of(FILE, {}))
    assert compiled.kernel("pixels").parameters[0] == 128
