"""The Winograd rows beyond what conformance asks: every axis past every tile, chunks, splits, groups, small GPUs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from convbench.algorithms import _winograd_cuda, winograd_cuda  # noqa: F401 - registers the rows
from convbench.algorithms._winograd_cuda import COLUMNS, Geometry, chunks, flops, forward_program, weights_program
from convbench.algorithms._winograd_simd_plan import flops as simd_flops
from convbench.algorithms._winograd_simd_plan import geometry as simd_geometry
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.program import At, Launch, Long, Product
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing.conformance import SHAPES
from tests.cuda_on_cpu import winograd_matrices
from tests.cuda_on_cpu.rows import ORDERS, accept, accept_everywhere, row_of

make = ConvShape.make
#: One multiprocessor: few blocks fill it, so that the largest tiles of products are taken.
ONE = replace(H200, name="one", multiprocessors=1)
NONFUSED = ("winograd_f4_cuda", "winograd_f4_cublas_cuda", "winograd_f6_cuda")
BEYOND = {
    "outputs past 128": make(1, 3, 9, 8, 133, 3, 3, padding=1),
    "inputs past 128": make(1, 131, 8, 7, 5, 3, 3, padding=1),
    "tiles past 128": make(3, 2, 33, 35, 3, 3, 3, padding=1),
    "one tile of several images": make(6, 9, 4, 3, 6, 3, 3, padding=((1, 0), (0, 1))),
    "groups past 16 channels": make(2, 57, 7, 6, 60, 3, 3, padding=1, groups=3),
    "padding far beyond the filter": make(2, 3, 5, 6, 4, 3, 3, padding=((5, 3), (2, 7))),
    "no padding, odd sizes": make(2, 4, 11, 13, 7, 3, 3),
}
LARGE = make(2, 18, 46, 44, 68, 3, 3, padding=1)


def test_winograd_nonfused_and_f2_have_the_exact_matrices() -> None:
    assert winograd_matrices.PATH.read_text() == winograd_matrices.render()


@pytest.mark.parametrize("shape", BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("name", NONFUSED)
def test_winograd_nonfused_is_right(name: str, shape: ConvShape) -> None:
    accept_everywhere(row_of(name), shape)


def test_winograd_nonfused_5x5_is_right() -> None:
    row = row_of("winograd_f4_5x5_cuda")
    accept_everywhere(row, make(3, 5, 34, 35, 6, 5, 5, padding=2))
    accept_everywhere(row, make(2, 33, 6, 9, 66, 5, 5, padding=((4, 1), (0, 6)), groups=3))


@pytest.mark.parametrize("name", ["winograd_f4_cuda", "winograd_f4_cublas_cuda"])
def test_winograd_nonfused_in_chunks_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """264 tiles in three chunks, which begin inside images; weights are added up over them. Large tiles of products."""
    monkeypatch.setattr(_winograd_cuda, "CHUNK_BYTES", 2 * COLUMNS * 4 * 36 * (20 + 68) - 1)
    row = row_of(name)
    for pass_, layout in itertools.product(Pass, LAYOUTS):
        problem = Problem(LARGE, pass_, "float32", layout)
        steps = row.program(problem, ONE).steps
        assert sum(isinstance(s, Launch) and s.kernel == "winograd_input" for s in steps) == 3
        accept(row, problem, gpu=ONE)
    adds = [s.add for s in row_of("winograd_f4_cublas_cuda").program(problem, ONE).steps if isinstance(s, Product)]
    assert adds == [False, True, True]


def test_winograd_nonfused_splits_of_sums_are_right() -> None:
    """A sum over 529 tiles of few channels, or over 200 channels with few tiles, is cut in parts; the last is short."""
    many_tiles, many_channels = make(1, 3, 90, 91, 5, 3, 3, padding=1), make(1, 200, 5, 6, 7, 3, 3, padding=1)
    row = row_of("winograd_f4_cuda")
    for layout in LAYOUTS:
        weights = Problem(many_tiles, Pass.BACKWARD_WEIGHTS, "float32", layout)
        assert row.program(weights, H200).workspace["d"].shape[0] // (36 * 5 * 4) == 4
        accept(row, weights)
        forward = Problem(many_channels, Pass.FORWARD, "float32", layout)
        assert row.program(forward, H200).workspace["m"].shape[0] // (36 * (7 * 4 if layout == "nchw" else 4 * 8)) == 3
        accept(row, forward)


@pytest.mark.parametrize("row", ["winograd_f2_cuda", "winograd_f4_cuda"])
def test_winograd_f2_and_nonfused_in_every_order_of_threads(row: str) -> None:
    shape = make(1, 10, 7, 18, 66, 3, 3, padding=1, groups=2)
    for pass_, layout, order in itertools.product(Pass, LAYOUTS, ORDERS):
        accept(row_of(row), Problem(shape, pass_, "float32", layout), order=order)


@pytest.mark.parametrize("shape", BEYOND.values(), ids=BEYOND)
def test_winograd_f2_is_right(shape: ConvShape) -> None:
    accept_everywhere(row_of("winograd_f2_cuda"), shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_winograd_f2_with_less_shared_memory_is_right(layout: str) -> None:
    """sm_75: four channels at a time, half of the threads transform."""
    row = row_of("winograd_f2_cuda")
    for name, pass_ in itertools.product(("odd_channels", "groups", "one_channel"), (Pass.FORWARD, Pass.BACKWARD_DATA)):
        problem = Problem(SHAPES[name], pass_, "float32", layout)
        assert row.program(problem, T4).steps[0].shared_bytes == 48 << 10
        accept(row, problem, gpu=T4)


# ---- the plan


def of(shape: ConvShape, pass_: Pass = Pass.FORWARD, layout: str = "nchw", tile: int = 4) -> Geometry:
    return Geometry.of(Problem(shape, pass_, "float32", layout), tile)


SIZES = ((1, 3, 224, 64), (32, 256, 56, 256), (128, 64, 224, 64), (1, 512, 14, 512), (7, 5, 9, 3))


@pytest.mark.parametrize("gpu", [H200, A100, T4, ONE], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("sizes", SIZES)
def test_chunks_cover_all_tiles_once(sizes: tuple[int, int, int, int], gpu: Gpu) -> None:
    n, c, size, k = sizes
    g = of(make(n, c, size, size, k, 3, 3, padding=1))
    found = chunks(g, gpu)
    assert [first for first, _ in found] == [sum(t for _, t in found[:i]) for i in range(len(found))]
    assert sum(tiles for _, tiles in found) == g.tiles
    assert all(tiles > 0 and tiles % COLUMNS == 0 for _, tiles in found[:-1])
    largest = max(tiles for _, tiles in found)
    assert 4 * 36 * (c + k) * largest <= 1 << 30 or largest == COLUMNS


def test_chunks_stay_in_the_cache_where_memory_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    g = of(make(32, 64, 224, 224, 64, 3, 3, padding=1))  # VGG-16 conv1_2
    assert len(chunks(g, H200)) == 2  # a GiB each
    monkeypatch.setattr(_winograd_cuda, "MEMORY_RATE", 4)
    assert max(tiles for _, tiles in chunks(g, H200)) * 4 * 36 * 128 <= H200.l2_bytes / 2


def test_launches_are_given_the_images_that_they_touch() -> None:
    """Chunks of VGG-16 conv1_2: operands begin at the image of the first tile, which is counted from there."""
    shape = make(128, 64, 224, 224, 64, 3, 3, padding=1)
    steps = forward_program(of(shape), H200, False).steps
    image, tiles = 64 * 224 * 224, 56 * 56
    first = 0
    for step in (s for s in steps if s.kernel == "winograd_input"):
        assert step.arguments[0] == At("a", first // tiles * image)
        assert step.arguments[3] == Long(first % tiles)
        first += step.arguments[4]
    assert first == 128 * tiles
    assert [s.arguments[1].offset for s in steps if s.kernel == "winograd_output"] == [
        s.arguments[0].offset for s in steps if s.kernel == "winograd_input"
    ]


def test_tiles_of_very_many_channels_make_small_chunks() -> None:
    """75 MB a tile: fourteen of them are a GiB."""
    g = of(make(1, 1 << 18, 32, 32, 1 << 18, 3, 3, padding=1, groups=1 << 16))
    assert chunks(g, H200) == [(0, 14), (14, 14), (28, 14), (42, 14), (56, 8)]


def test_products_of_many_groups_are_cut_for_the_vendor() -> None:
    g = of(make(1, 2048, 4, 4, 2048, 3, 3, padding=1, groups=2048))
    for program in (forward_program(g, H200, True), weights_program(g, H200, True)):
        products = [s for s in program.steps if isinstance(s, Product)]
        assert [p.batch for p in products] == [65535, 36 * 2048 - 65535]
        assert products[1].a.offset == 65535 * products[0].step_a


def test_operations_are_those_of_the_same_algorithm_elsewhere() -> None:
    """The products agree with the CPU tier's; transforms, which share fewer terms here, are within a factor of 2."""
    for pass_ in (Pass.FORWARD, Pass.BACKWARD_DATA):
        problem = Problem(make(2, 8, 16, 16, 12, 3, 3, padding=1), pass_)
        here, there = flops(Geometry.of(problem, 4), False), simd_flops(simd_geometry(problem, 4, 3))
        assert here.keys() == there.keys()
        assert here["multiply"] == there["multiply"]
        for phase in here:
            assert there[phase] / 2 <= here[phase] <= 2 * there[phase]
