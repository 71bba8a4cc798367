"""direct_cuda and direct_tiled_cuda: shapes beyond every tile and with each remainder; their tilings; their sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench.algorithms import direct_cuda  # noqa: F401 - registers the rows
from convbench.algorithms._direct_cuda import SHARED_BYTES, TAP_TILE, Axis, data_tiling, weights_tiling
from convbench.cuda.gpu import H200, T4
from convbench.cuda.program import Long
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing import conformance
from tests.cuda_on_cpu import emulated
from tests.cuda_on_cpu.rows import ORDERS, accept, accept_everywhere, row_of

make = ConvShape.make
TILED = {
    "two tiles of 64 channels, 17 columns": make(1, 9, 9, 17, 66, 3, 3, padding=1),
    "33 of 64 channels": make(1, 33, 5, 9, 33, 3, 3, padding=1),
    "16 channels, a tile of 32 rows and one": make(1, 2, 33, 17, 17, 3, 3, padding=1),
    "one channel, a tile of 64 rows and one": make(1, 1, 65, 18, 2, 3, 3, padding=1),
    "depthwise": make(2, 5, 12, 18, 5, 5, 5, padding=2, groups=5),
    "groups of 20 to 36": make(1, 40, 7, 7, 72, 3, 3, padding=1, groups=2),
    "stride 2, two windows": make(1, 3, 40, 41, 5, 11, 11, stride=2, padding=5),
    "stride 3, dilation 2": make(1, 4, 23, 24, 6, 3, 5, stride=3, dilation=2, padding=2),
    "stride 4, dilation 6": make(1, 3, 29, 31, 4, 4, 3, stride=4, dilation=6, padding=5),
    "stride 2 of rows, 3 of columns": make(1, 3, 15, 16, 4, 2, 4, stride=(2, 3), dilation=(3, 1), padding=2),
    "stride far beyond the filter": make(1, 2, 70, 9, 3, 2, 2, stride=(40, 5), padding=1),
    "31x31": make(1, 2, 20, 19, 2, 31, 31, padding=15),
    "33 input channels, one tap": make(2, 70, 5, 6, 20, 1, 1),
}


@pytest.mark.parametrize("shape", TILED.values(), ids=TILED)
def test_tiled_is_right(shape: ConvShape) -> None:
    accept_everywhere(row_of("direct_tiled_cuda"), shape)


@pytest.mark.parametrize("name", ["asymmetric_everything", "depthwise_multiplier", "padding_beyond_filter"])
@pytest.mark.parametrize("row", ["direct_cuda", "direct_tiled_cuda"])
def test_every_order_of_threads(row: str, name: str) -> None:
    for pass_, layout, order in itertools.product(Pass, LAYOUTS, ORDERS):
        accept(row_of(row), Problem(conformance.SHAPES[name], pass_, "float32", layout), order=order)


def test_direct_beyond_a_block_of_threads() -> None:
    accept_everywhere(row_of("direct_cuda"), make(2, 7, 21, 15, 30, 3, 3, padding=1))


def test_a_smaller_gpu_divides_the_pixels_otherwise() -> None:
    shape = make(3, 4, 30, 30, 5, 3, 3, padding=1)
    problem = Problem(shape, Pass.BACKWARD_WEIGHTS)
    row = row_of("direct_tiled_cuda")
    parts = {gpu.name: row.program(problem, gpu).workspace["sums"].shape for gpu in (H200, T4)}
    accept(row, problem, gpu=T4)
    assert parts[T4.name] == parts[H200.name] == (48 * 4, 180)  # as many parts as tiles: 3 images, 4 x 4
    wide = Problem(make(8, 64, 56, 56, 64, 3, 3, padding=1), Pass.BACKWARD_WEIGHTS)
    sums = {gpu.name: row.program(wide, gpu).workspace["sums"].shape[0] for gpu in (H200, T4)}
    assert sums[T4.name] < sums[H200.name]


@pytest.mark.parametrize("stride, dilation, taps", [*itertools.product((1, 2, 3, 4), (1, 2, 3, 6), (1, 2, 3, 5))])
def test_axes_cover_what_they_should(stride: int, dilation: int, taps: int) -> None:
    """Phases x outputs reach every element; the products of all phases are those of the definition."""
    shape = make(1, 1, 29, 31, 1, taps, taps, stride=stride, dilation=dilation, padding=1)
    for pass_ in (Pass.FORWARD, Pass.BACKWARD_DATA):
        axis = Axis.of(Problem(shape, pass_), 0)
        size = shape.p if pass_ is Pass.FORWARD else shape.h
        assert (axis.outputs - 1) * axis.phases < size <= axis.outputs * axis.phases
        assert axis.products == taps * axis.phases // (1 if pass_ is Pass.FORWARD else stride)


def test_every_tiling_fits_in_shared_memory() -> None:
    shapes = [*conformance.SHAPES.values(), *TILED.values(), make(1, 1, 900, 900, 1, 3, 3, stride=300, dilation=7),
              make(1, 64, 300, 300, 64, 200, 200), make(1, 512, 64, 64, 512, 1, 1, stride=33)]  # fmt: skip
    for shape, pass_ in itertools.product(shapes, (Pass.FORWARD, Pass.BACKWARD_DATA)):
        made, reduced = (shape.kg, shape.cg) if pass_ is Pass.FORWARD else (shape.cg, shape.kg)
        tiling = data_tiling(Problem(shape, pass_), made, reduced)
        assert tiling.shared_bytes <= SHARED_BYTES
        assert tiling.pitch % 32 in (8, 24)
    for shape in shapes:
        tiling = weights_tiling(Problem(shape, Pass.BACKWARD_WEIGHTS))
        assert tiling.shared_bytes <= SHARED_BYTES
        assert tiling.channels * tiling.window[0] * tiling.window[1] <= TAP_TILE


def test_flops_are_no_fewer_than_needed() -> None:
    row = row_of("direct_tiled_cuda")
    for shape, pass_ in itertools.product(TILED.values(), Pass):
        problem = Problem(shape, pass_)
        assert sum(row.executed_flops(problem).values()) >= problem.valid_flops


@pytest.mark.parametrize("parts", [1, 2, 7, 8, 9, 24, 31])
def test_partial_sums(parts: int) -> None:
    elements = 300
    sums = np.random.default_rng(parts).standard_normal((parts, elements), dtype=np.float32)
    out = np.full(elements, np.nan, np.float32)
    emulated.launch("partial_sums.cu", "partial_sums", (2, 1, 1), (256, 1, 1), [sums, out, Long(elements), parts])
    want = sums.sum(axis=0, dtype=np.float64)
    assert np.abs(out - want).max() <= 1e-6 * parts
    again = np.full(elements, np.nan, np.float32)
    arguments = [sums, again, Long(elements), parts]
    emulated.launch("partial_sums.cu", "partial_sums", (2, 1, 1), (256, 1, 1), arguments, order=1)
    assert (again == out).all()
