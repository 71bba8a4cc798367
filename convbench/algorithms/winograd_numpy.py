"""Winograd convolution with NumPy or CuPy: F(2x2,3x3), F(4x4,3x3), F(6x6,3x3), F(2x2,5x5), F(4x4,5x5).

Lavin and Gray, arXiv 1509.09308 (CVPR 2016). Every step is a BLAS product, see `_winograd_steps.py`; the
matrices come from `_cook_toom.py`.

`error_growth` is about twice the largest |got - want| / (eps sqrt(n) sqrt(x^2 * w^2)) seen in float32, OpenBLAS
0.3.31, over "ordinary" shapes (images of 10 to 112 pixels, C and K of 1 to 512, batches of 1 to 8, 2 seeds) and
"tiny" ones (images of 1 to 9 pixels, results smaller than a tile, 12 seeds), all passes; each class gives its own
two figures. The relative L2 error divided by eps sqrt(n) was below 3 on ordinary shapes, and at most 115 (F(4x4,5x5),
a single output near 0) on tiny ones, which fare worst: the error of a tile follows all its m x m outputs, the bound
only those that exist.
Other points for backward weights (+-1.5 to +-2.25 with reciprocals, six sets of five) gained nothing that lasts.

On VGG-16 conv3_2 (256 -> 256, 56 x 56, N = 1, raw filters, float32, one thread, OpenBLAS 0.3.31, Xeon with
AVX-512, 2026-11, a busy machine): F(4x4,3x3) 210 to 260 GFLOP/s of direct convolution, all passes, both layouts.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convbench.algorithms._cupy import OnCupy
from convbench.algorithms._winograd import Winograd
from convbench.algorithms._winograd_gathered import GatheredReader, GatheredWriter
from convbench.algorithms._winograd_steps import Multiply, TileReader, TileWriter
from convbench.devices.arrays import matmul_of
from convbench.problem import Problem
from convbench.registry import Context, register


class NumpyWinograd(Winograd):
    """Products by np.matmul, one BLAS call per frequency and group."""

    def multiplier(self, context: Context, sums: np.ndarray | None) -> Multiply:
        """Products into a spare array where they must be added: NumPy's matmul cannot accumulate."""
        if sums is None:
            return _multiply
        spare = _like(context, sums)

        def multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray, add: bool) -> None:
            np.matmul(left, right, out=spare if add else out)
            if add:
                np.add(out, spare, out=out)

        return multiply

    def multiplier_bytes(self, sums_bytes: int) -> int:
        """The spare array."""
        return sums_bytes


def _multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray, add: bool) -> None:
    np.matmul(left, right, out=out)


def _like(context: Context, sums: np.ndarray) -> np.ndarray:
    """An array of the shape and strides of `sums`, (alpha^2, G, K/G, C/G), whose planes are padded."""
    plane = sums.strides[0] // sums.itemsize
    flat = context.empty((sums.shape[0], plane), sums.dtype)
    return flat[:, : sums[0].size].reshape(sums.shape)


class CupyWinograd(OnCupy, NumpyWinograd):
    """First base of the rows on a GPU: products by cuBLAS, one call for all frequencies, which adds by itself.

    Blocks of 128 MiB once transformed: a GPU has no cache that the smaller ones would stay in, and each block costs
    launches. Tiles are transformed as in `_winograd_gathered.py`, filters as they lie, in one product.

    error_growth: the NumPy row's. With NumPy's arrays in place of CuPy's, over eight shapes (C up to 512, depthwise,
    images of one pixel), all passes, two seeds, growth was 2.1, 19 and 90 for F(2x2), F(4x4) and F(6x6), where the
    NumPy rows had 2.0, 21 and 71; 10.6 against 11.6 for F(2x2,5x5). On a GPU it was not measured.
    """

    block_bytes: ClassVar[int] = 128 << 20
    reader: ClassVar[type[TileReader]] = GatheredReader
    writer: ClassVar[type[TileWriter]] = GatheredWriter

    def multiplier(self, context: Context, sums: np.ndarray | None) -> Multiply:
        """Batches over frequencies and groups."""
        matmul = matmul_of(context.xp)

        def multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray, add: bool) -> None:
            matmul(left, right, out=out, add=add)

        return multiply

    def multiplier_bytes(self, sums_bytes: int) -> int:
        """Nothing: cuBLAS adds to what is there."""
        return 0

    def depthwise_multiplier(self, context: Context) -> Multiply:
        """The same."""
        return self.multiplier(context, None)

    def filter_turn(self, problem: Problem) -> tuple[int, ...]:
        """Never."""
        return ()


@register
class WinogradF2(NumpyWinograd):
    """F(2x2,3x3); backward weights F(3x3,2x2). 2.25 times fewer multiplications.

    Growth: 1.1 on ordinary shapes, 1.9 on tiny ones. Exact on integers: B^T and A^T hold 0 and +-1, G holds
    halves, so every number on the way is a multiple of 1/4. Its size, signs all at their worst: forward,
    (sum over AT of |G| row sums times |B^T| row sums)^2 = (4 x 2)^2 = 64 per channel, 256 quarters, 28.4 for each
    of the n = 9 C products; backward weights, (3 x 2)^2 = 36 per full tile of four products, but (2 x 2)^2 = 16
    for a tile that holds one, 64 quarters a product. Hence n max|x| max|w| < 2^24 / 64.
    """

    name = "winograd_f2_numpy"
    tile: ClassVar[int] = 2
    exact_on_integers = True
    integer_headroom: ClassVar[int] = 64  # a factor: n max|x| max|w| < 2^24 / 64
    error_growth = 4.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.1"


@register
class WinogradF4(NumpyWinograd):
    """F(4x4,3x3) with points 0, +-1, 1/2, -2; backward weights F(3x3,4x4).

    4 times fewer multiplications. Growth: 7.0 on ordinary shapes, 10.0 on tiny ones
    (20 with Lavin's +-2 in place of 1/2, -2).
    """

    name = "winograd_f4_numpy"
    tile: ClassVar[int] = 4
    error_growth = 20.0
    exact_on_integers = False
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.3; points: arXiv 1803.10986"


@register
class WinogradF6(NumpyWinograd):
    """F(6x6,3x3) with points 0, +-1, +-2, +-1/2; backward weights F(3x3,6x6).

    5.06 times fewer multiplications. Growth: 35.5 on ordinary shapes, 35.1 on tiny ones, 79 as the worst of 800,000
    results of depthwise layers (64 channels, 112x112: nine products each, nothing averages out), doubled.
    """

    name = "winograd_f6_numpy"
    tile: ClassVar[int] = 6
    error_growth = 160.0
    exact_on_integers = False
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), supplement; points: arXiv 1803.10986"


@register
class WinogradF2Filter5(NumpyWinograd):
    """F(2x2,5x5) with points 0, +-1, 1/2, -2; backward weights F(5x5,2x2).

    2.78 times fewer multiplications. Growth: 11.3 on ordinary shapes, 20.8 on tiny ones.
    """

    name = "winograd_f2_5x5_numpy"
    tile: ClassVar[int] = 2
    taps: ClassVar[int] = 5
    error_growth = 42.0
    exact_on_integers = False
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4; points: arXiv 1803.10986"


@register
class WinogradF4Filter5(NumpyWinograd):
    """F(4x4,5x5) with points 0, +-1, +-2, +-1/2; backward weights F(5x5,4x4).

    6.25 times fewer multiplications. Growth: 18.4 on ordinary shapes, 110 on tiny ones
    (one pixel seen through 25 taps).
    """

    name = "winograd_f4_5x5_numpy"
    tile: ClassVar[int] = 4
    taps: ClassVar[int] = 5
    error_growth = 220.0
    error_length = 256  # half precision inside passed with the 1024 of the others
    exact_on_integers = False
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4; points: arXiv 1803.10986"


@register
class WinogradF2Cupy(CupyWinograd, WinogradF2):
    """winograd_f2_numpy on CuPy's arrays."""

    name = "winograd_f2_cupy"


@register
class WinogradF4Cupy(CupyWinograd, WinogradF4):
    """winograd_f4_numpy on CuPy's arrays."""

    name = "winograd_f4_cupy"


@register
class WinogradF6Cupy(CupyWinograd, WinogradF6):
    """winograd_f6_numpy on CuPy's arrays."""

    name = "winograd_f6_cupy"


@register
class WinogradF2Filter5Cupy(CupyWinograd, WinogradF2Filter5):
    """winograd_f2_5x5_numpy on CuPy's arrays."""

    name = "winograd_f2_5x5_cupy"


@register
class WinogradF4Filter5Cupy(CupyWinograd, WinogradF4Filter5):
    """winograd_f4_5x5_numpy on CuPy's arrays."""

    name = "winograd_f4_5x5_cupy"
