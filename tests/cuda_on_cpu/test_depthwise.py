"""depthwise_cuda: every variant of its kernels, shapes with each remainder, tilings that fit, sums that repeat."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench.algorithms import depthwise_cuda  # noqa: F401 - registers the row
from convbench.algorithms._depthwise_cuda import lanes_for, planes_tiling
from convbench.algorithms._direct_cuda import SHARED_BYTES
from convbench.cuda.gpu import H200, T4
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing import conformance
from tests.cuda_on_cpu.emulated import EmulatedContext
from tests.cuda_on_cpu.rows import ORDERS, accept, accept_everywhere, row_of


def shape(n: int, c: int, h: int, w: int, r: int, s: int, each: int = 1, **rest: object) -> ConvShape:
    return ConvShape.make(n, c, h, w, c * each, r, s, groups=c, **rest)


SHAPES = {
    "3x3, rows of 16 bytes": shape(2, 8, 14, 20, 3, 3, padding=1),
    "3x3, odd rows, several planes a block": shape(3, 19, 7, 7, 3, 3, padding=1),
    "3x3, several tiles": shape(1, 3, 40, 150, 3, 3, padding=1),
    "4x4, three filters each": shape(2, 3, 9, 12, 4, 4, each=3, padding=(1, 2)),
    "stride 2": shape(1, 36, 15, 12, 3, 3, stride=2, padding=1),
    "5x5 stride 2, asymmetric": shape(1, 16, 12, 17, 5, 5, stride=2, padding=((1, 2), (2, 1))),
    "7x7": shape(1, 18, 10, 11, 7, 7, padding=3),
    "7x7, two filters each, stride 2": shape(1, 3, 11, 10, 7, 7, each=2, stride=2, padding=3),
    "1x9": shape(1, 5, 6, 20, 1, 9, padding=((0, 0), (4, 4))),
    "9x1, stride 3 and 1": shape(1, 5, 20, 6, 9, 1, stride=(3, 1), padding=((4, 4), (0, 0))),
    "stride 3, one row of taps left": shape(1, 4, 22, 13, 4, 4, stride=(3, 2), padding=1),
    "stride 2, a rectangle of one row": shape(1, 4, 24, 16, 8, 8, stride=2, padding=3),
    "dilation": shape(1, 20, 15, 14, 3, 3, dilation=(2, 3), padding=(2, 3)),
    "dilation 2, stride 4": shape(1, 4, 25, 27, 5, 3, dilation=(2, 1), stride=(4, 5), padding=4),
    "13x11 stride 2, dilation 2 and 1": shape(1, 3, 30, 25, 13, 11, stride=2, dilation=(2, 1), padding=(12, 5)),
    "31x31": shape(1, 4, 17, 20, 31, 31, padding=15),
    "70x70, windows of taps": shape(1, 1, 74, 75, 70, 70, padding=((0, 1), (2, 0))),
    "1x1 stride 5": shape(1, 8, 13, 11, 1, 1, stride=5),
    "stride of 70": shape(1, 1, 150, 152, 3, 3, stride=70),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_right(shape: ConvShape) -> None:
    accept_everywhere(row_of("depthwise_cuda"), shape)


@pytest.mark.parametrize("name", ["depthwise", "depthwise_multiplier"])
def test_every_order_of_threads(name: str) -> None:
    for pass_, layout, order in itertools.product(Pass, LAYOUTS, ORDERS):
        accept(row_of("depthwise_cuda"), Problem(conformance.SHAPES[name], pass_, "float32", layout), order=order)


def test_a_smaller_gpu() -> None:
    for layout in LAYOUTS:
        accept(row_of("depthwise_cuda"), Problem(SHAPES["stride 2"], Pass.BACKWARD_WEIGHTS, "float32", layout), gpu=T4)


def test_refuses_what_is_not_depthwise() -> None:
    row = row_of("depthwise_cuda")
    sentence = row.why_not(Problem(ConvShape.make(1, 8, 5, 5, 8, 3, 3, groups=4)))
    assert sentence == "depthwise: groups must equal C, not C=8 groups=4"


def test_backward_weights_gives_the_same_bits_in_every_order() -> None:
    row, problem = row_of("depthwise_cuda"), Problem(SHAPES["3x3, several tiles"], Pass.BACKWARD_WEIGHTS)
    assert row.program(problem, H200).workspace["sums"].shape[0] > 1
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size, dtype=np.float32) for size in (problem.a_shape, problem.b_shape))
    results = []
    for order in ORDERS:
        results.append(np.full(problem.out_shape, np.nan, np.float32))
        row.prepare(problem, EmulatedContext(order=order))(a, b, results[-1])
    assert all((result == results[0]).all() for result in results)


def test_every_tiling_fits_in_shared_memory() -> None:
    extremes = [shape(1, 1, 3000, 3000, 2, 2, stride=1500), shape(1, 2, 400, 400, 201, 203, padding=100),
                shape(1, 1, 40000, 3, 3, 3, stride=(12000, 1)), shape(1, 1, 2, 3000, 1, 1500)]  # fmt: skip
    for each, pass_ in itertools.product([*SHAPES.values(), *extremes], Pass):
        tiling = planes_tiling(Problem(each, pass_))
        assert tiling.shared_bytes <= SHARED_BYTES
        assert tiling.planes * tiling.runs * tiling.width <= tiling.threads
        assert tiling.plane % 4 == tiling.pitch % 4 == tiling.before % 4 == 0


def test_small_planes_share_a_block() -> None:
    """A plane of 7 x 7 takes 14 threads: a block takes as many planes as it has room for."""
    tiling = planes_tiling(Problem(shape(8, 512, 7, 7, 3, 3, padding=1)))
    assert (tiling.runs, tiling.width, tiling.planes) == (2, 7, 9)


@pytest.mark.parametrize("vectors, pixels", [*itertools.product((1, 3, 8, 33, 500), (1, 2, 7, 100))])
def test_lanes_of_a_block(vectors: int, pixels: int) -> None:
    across, along = lanes_for(vectors, pixels, 128)
    assert across * along == 128
    assert across & (across - 1) == 0
    assert across < 2 * vectors
