"""fft_tile_cuda: transforms against NumPy, both tiles, edges of tiles and blocks of channels, chunks of images."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest

from convbench.algorithms import fft_tile_cuda
from convbench.algorithms._fft_cuda import PLAIN
from convbench.algorithms.fft_tile_cuda import SIZES, Tiles, best_tiles
from convbench.cuda.gpu import H200
from convbench.cuda.program import Product, Struct
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing import conformance
from tests.cuda_on_cpu import emulated
from tests.cuda_on_cpu.rows import ORDERS, accept, accept_everywhere, row_of

make = ConvShape.make
SHAPES = {
    "17 channels, 18 filters, two rows of tiles": make(1, 17, 18, 15, 18, 3, 3, padding=1),
    "5x5, three images": make(3, 3, 17, 18, 5, 5, 5, padding=2),
    "groups": make(2, 18, 9, 8, 6, 3, 3, padding=1, groups=3),
    "depthwise": make(1, 5, 9, 20, 5, 3, 5, padding=(1, 2), groups=5),
    "taps that meet padding alone": make(2, 3, 2, 20, 4, 7, 3, padding=(5, 1)),
    "asymmetric": make(1, 2, 11, 9, 3, 4, 2, padding=((3, 0), (0, 4))),
}


def only(size: int) -> mock._patch:
    """Tiles of one size."""
    return mock.patch.object(fft_tile_cuda, "SIZES", (size,))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_right(shape: ConvShape, size: int) -> None:
    with only(size):
        assert best_tiles(Problem(shape)).size == size
        accept_everywhere(row_of("fft_tile_cuda"), shape)


@pytest.mark.parametrize("shape", [make(1, 2, 20, 34, 3, 17, 31, padding=(8, 15)), make(1, 1, 33, 2, 1, 32, 1)])
def test_filters_of_more_than_16_taps(shape: ConvShape) -> None:
    assert best_tiles(Problem(shape)).size == 32
    accept_everywhere(row_of("fft_tile_cuda"), shape)


@pytest.mark.parametrize("size", SIZES)
def test_chunks_of_images(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft_tile_cuda, "CHUNK_BYTES", 1)
    problem = Problem(SHAPES["5x5, three images"], Pass.BACKWARD_WEIGHTS)
    with only(size):
        products = [s for s in row_of("fft_tile_cuda").program(problem, H200).all_steps() if isinstance(s, Product)]
        assert [p.add for p in products] == [False, True, True]
        accept_everywhere(row_of("fft_tile_cuda"), problem.shape)


@pytest.mark.parametrize("name", ["asymmetric_padding", "filter_2x3"])
def test_every_order_of_threads(name: str) -> None:
    for pass_, layout, order, size in itertools.product(Pass, LAYOUTS, ORDERS, SIZES):
        with only(size):
            accept(row_of("fft_tile_cuda"), Problem(conformance.SHAPES[name], pass_, "float32", layout), order=order)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 8, 19])
def test_transforms_are_those_of_numpy(size: int, channels: int) -> None:
    """Forward against rfft2, element by element to 6 eps of their root mean square; inverse gives the tile back."""
    rng = np.random.default_rng(size)
    tile = rng.standard_normal((1, channels, size, size), dtype=np.float32)
    frequencies = size * (size // 2 + 1)
    spectra = np.full((frequencies, channels), np.nan, np.complex64)
    matrices = Struct((PLAIN, 1, 1, channels))
    cut = Struct((1, 0, 0, size, 0, 0, size))
    grid, block, shared = (1, -(-channels // (256 // size)), 1), (128, 1, 1), 8 * 128 * (size + 1)
    defines = {"TILE": size, "NHWC": 0}
    sizes = (1, channels, size, size)
    emulated.launch("fft_tile.cu", "fft_tile_forward", grid, block, [tile, spectra, matrices, *sizes, cut, cut], shared,
                    defines)  # fmt: skip
    want = np.fft.rfft2(tile[0].astype(np.float64)).transpose(2, 1, 0)  # (V, U, C): frequencies are v * size + u
    error = np.abs(spectra.reshape(want.shape) - want).max()
    assert error <= 6 * np.finfo(np.float32).eps * np.sqrt(np.mean(np.abs(want) ** 2))
    back = np.full_like(tile, np.nan)
    emulated.launch("fft_tile.cu", "fft_tile_inverse", grid, block, [spectra, back, matrices, *sizes, cut, cut], shared,
                    defines)  # fmt: skip
    assert np.abs(back - tile).max() <= 3e-6


def test_refuses_what_tiles_cannot_do() -> None:
    row = row_of("fft_tile_cuda")
    shape = make(1, 2, 70, 70, 2, 3, 3, stride=2)
    assert row.why_not(Problem(shape)) == "fft_tile: stride must be 1, not 2"
    shape = make(1, 2, 70, 70, 2, 33, 3)
    assert row.why_not(Problem(shape)) == "fft_tile: the filter must fit a tile of 32x32, not 33x3"


def test_large_filters_take_large_tiles() -> None:
    def size(taps: int) -> int:
        return best_tiles(Problem(make(32, 128, 56, 56, 128, taps, taps, padding=taps // 2))).size

    assert (size(3), size(13)) == (16, 32)


def test_workspace_is_bounded_by_the_chunk_and_the_filters() -> None:
    for images, pass_ in itertools.product((1, 32, 128), Pass):
        shape = make(images, 96, 56, 56, 128, 5, 5, padding=2)
        tiles = best_tiles(Problem(shape, pass_))
        filters = 16 * tiles.frequencies * shape.k * shape.c
        assert tiles.program().workspace_bytes <= filters + fft_tile_cuda.CHUNK_BYTES


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tiles_cover_the_result(shape: ConvShape) -> None:
    for pass_, size in itertools.product(Pass, SIZES):
        tiles = Tiles(Problem(shape, pass_), size)
        result = (shape.h, shape.w) if pass_ is Pass.BACKWARD_DATA else (shape.p, shape.q)
        for axis, length in zip((tiles.rows, tiles.columns), result, strict=True):
            assert (axis.tiles - 1) * axis.step < length <= axis.tiles * axis.step
