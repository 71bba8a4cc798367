"""fft_cuda: chunks of images and filters, both kinds of product, where tensors lie on the circle."""

from __future__ import annotations

import itertools

import pytest

from convbench.algorithms import _fft_cuda
from convbench.algorithms import fft_cuda as _registers  # noqa: F401
from convbench.algorithms._fft_cuda import WholeImage, fast_length
from convbench.cuda.gpu import H200
from convbench.cuda.program import Product
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing import conformance
from tests.cuda_on_cpu.rows import ORDERS, accept, accept_everywhere, row_of

make = ConvShape.make
SHAPES = {
    "33 channels and filters": make(2, 33, 3, 4, 35, 3, 2, padding=1),
    "a wide image": make(1, 3, 5, 70, 4, 5, 5, padding=2),
    "groups": make(3, 20, 6, 5, 30, 3, 3, padding=1, groups=2),
    "groups of few channels": make(3, 12, 9, 8, 18, 3, 3, padding=1, groups=6),
    "depthwise": make(2, 33, 9, 8, 33, 5, 5, padding=2, groups=33),
    "stride and dilation": make(2, 3, 17, 19, 5, 3, 4, stride=(3, 2), dilation=(2, 3), padding=((4, 1), (0, 5))),
    "one tap, stride 3": make(2, 3, 11, 13, 5, 1, 1, stride=3, padding=((2, 0), (4, 1))),
    "13x13": make(1, 3, 20, 18, 4, 13, 13, padding=6),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_right(shape: ConvShape) -> None:
    accept_everywhere(row_of("fft_cuda"), shape)


@pytest.mark.parametrize("name", ["33 channels and filters", "groups", "groups of few channels"])
def test_chunks_of_images_and_filters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small budget an image is a chunk, and filters are transformed a few at a time."""
    monkeypatch.setattr(_fft_cuda, "CHUNK_BYTES", 1)
    plan = WholeImage(Problem(SHAPES[name]))
    assert plan.chunk == 1
    assert plan.filters == 1
    accept_everywhere(row_of("fft_cuda"), SHAPES[name])


@pytest.mark.parametrize("name", ["asymmetric_everything", "depthwise_multiplier"])
def test_every_order_of_threads(name: str) -> None:
    for pass_, layout, order in itertools.product(Pass, LAYOUTS, ORDERS):
        accept(row_of("fft_cuda"), Problem(conformance.SHAPES[name], pass_, "float32", layout), order=order)


@pytest.mark.parametrize("shape", [*SHAPES.values(), *conformance.SHAPES.values()])
def test_every_element_has_a_place(shape: ConvShape) -> None:
    """An element that is read lies at one point, alone; neighbours lie as far apart as stride and dilation say."""
    for axis in WholeImage(Problem(shape)).axes:
        for mapped in axis.values():
            points = [e * mapped.divide - mapped.begin for e in range(mapped.first, mapped.stop)]
            points = [m // mapped.multiply for m in points if m % mapped.multiply == 0]
            assert all(-mapped.length <= m < mapped.length for m in points)
            assert len({m % mapped.length for m in points}) == len(points)


def test_products_do_the_work_of_the_definition_of_a_complex_product() -> None:
    for shape, pass_ in itertools.product(SHAPES.values(), Pass):
        problem = Problem(shape, pass_)
        products = [s for s in row_of("fft_cuda").program(problem, H200).all_steps() if isinstance(s, Product)]
        work = sum(p.batch * p.m * p.n * p.k for p in products)
        expected = 4 * shape.n * shape.k * shape.cg * WholeImage(problem).frequencies
        assert work == (0 if WholeImage(problem).pointwise else expected)


@pytest.mark.parametrize("least, even, length", [(1, False, 1), (1, True, 2), (11, False, 12), (15, True, 16),
                                                 (35, False, 35), (35, True, 36), (226, True, 240)])  # fmt: skip
def test_lengths(least: int, even: bool, length: int) -> None:
    assert fast_length(least, even) == length


def test_workspace_is_bounded_by_the_chunk_and_the_filters() -> None:
    for images, pass_ in itertools.product((1, 32, 128), Pass):
        shape = make(images, 64, 112, 112, 64, 11, 11, padding=5)
        plan = WholeImage(Problem(shape, pass_))
        filters = 16 * plan.frequencies * shape.k * shape.c
        assert plan.program().workspace_bytes <= filters + 2 * _fft_cuda.CHUNK_BYTES
