"""im2col_cuda: chunks of images, products over groups or images, vectors of channels; workspace that stays bounded."""

from __future__ import annotations

import itertools
import math

import pytest

from convbench.algorithms import im2col_cuda
from convbench.cuda.gpu import H200
from convbench.cuda.program import Launch, Product
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing import conformance
from tests.cuda_on_cpu.rows import ORDERS, accept, accept_everywhere, row_of

make = ConvShape.make
SHAPES = {
    "more pixels than threads": make(2, 5, 19, 18, 7, 3, 3, padding=1),
    "vectors of channels": make(2, 8, 9, 10, 6, 3, 2, padding=1),
    "vectors of channels, groups": make(3, 24, 7, 6, 9, 3, 3, stride=2, padding=1, groups=3),
    "more groups than images": make(2, 12, 9, 8, 24, 3, 3, padding=1, groups=6),
    "depthwise": make(3, 33, 8, 7, 33, 3, 3, padding=1, groups=33),
    "pointwise": make(3, 20, 9, 8, 17, 1, 1),
    "pointwise, groups": make(3, 12, 6, 5, 15, 1, 1, groups=3),
    "dilation and stride": make(2, 4, 20, 21, 5, 4, 3, stride=(2, 3), dilation=(3, 2), padding=((3, 1), (0, 2))),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_right(shape: ConvShape) -> None:
    accept_everywhere(row_of("im2col_cuda"), shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_chunks_of_images(shape: ConvShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a chunk, then one: the last chunk of three images is smaller."""
    columns = 4 * shape.c * shape.r * shape.s * shape.p * shape.q
    for images in (2, 1):
        monkeypatch.setattr(im2col_cuda, "COLUMNS_BYTES", images * columns)
        accept_everywhere(row_of("im2col_cuda"), shape)


@pytest.mark.parametrize("name", ["asymmetric_everything", "depthwise_multiplier", "padding_beyond_filter"])
def test_every_order_of_threads(name: str) -> None:
    for pass_, layout, order in itertools.product(Pass, LAYOUTS, ORDERS):
        accept(row_of("im2col_cuda"), Problem(conformance.SHAPES[name], pass_, "float32", layout), order=order)


def test_workspace_is_bounded() -> None:
    row = row_of("im2col_cuda")
    for images, pass_, layout in itertools.product((1, 32, 128), Pass, LAYOUTS):
        shape = make(images, 128, 56, 56, 128, 3, 3, padding=1)
        columns = 4 * 128 * 9 * 56 * 56
        most = max(columns, im2col_cuda.COLUMNS_BYTES) * 10 // 9  # and dy beside, a ninth of the columns
        assert columns <= row.workspace_estimate(Problem(shape, pass_, "float32", layout)) <= most


def test_pointwise_layers_are_one_product() -> None:
    row = row_of("im2col_cuda")
    for pass_, layout in itertools.product(Pass, LAYOUTS):
        program = row.program(Problem(make(4, 64, 14, 14, 32, 1, 1), pass_, "float32", layout), H200)
        if pass_ is Pass.BACKWARD_WEIGHTS and layout == "nchw":
            continue  # images have to be laid side by side
        assert [type(step) for step in program.all_steps()] == [Product]
        assert program.workspace_bytes == 0


def test_products_do_the_work_of_the_definition() -> None:
    """Multiply-adds of all products together, and no more launches than chunks times groups or images."""
    row = row_of("im2col_cuda")
    for shape, pass_, layout in itertools.product(SHAPES.values(), Pass, LAYOUTS):
        program = row.program(Problem(shape, pass_, "float32", layout), H200)
        products = [step for step in program.all_steps() if isinstance(step, Product)]
        assert sum(p.batch * p.m * p.n * p.k for p in products) == shape.macs
        assert len(products) <= min(shape.groups, shape.n)
        launches = [step for step in program.all_steps() if isinstance(step, Launch)]
        assert all(math.prod(launch.block) == im2col_cuda.THREADS for launch in launches)
