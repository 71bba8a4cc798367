"""Winograd convolution of float16 arrays: transforms, products and sums in float32.

Lavin and Gray 2015 (arXiv 1509.09308). The rows of winograd_simd.py with float16 in memory: their first transform reads
it (nhwc) or a strip widened before (nchw), their last one rounds the result once.
"""

from __future__ import annotations

from typing import ClassVar

from convbench.algorithms.winograd_simd import WinogradSimd
from convbench.registry import register


class WinogradFp16Simd(WinogradSimd):
    """Base of the rows: what float32 makes of the same operands, rounded to float16 once; growth as there.

    Measured over eight 3x3 shapes (up to C = 2,048, sums over 40,000 pixels, 12 groups, depthwise), three passes, both
    layouts, two seeds: beyond half of float16's eps times the result, no error exceeded sqrt(n) sqrt(x^2 * w^2) times
    float32's eps by more than the factors given.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float16",)
    arithmetic: ClassVar[str] = "float16-acc32"


@register
class WinogradF2Fp16Simd(WinogradFp16Simd):
    """F(2x2,3x3); backward weights F(3x3,2x2). 2.25 times fewer multiplications.

    Growth: winograd_f2_simd's; measured 0.8. Exact on integers: float32 has bits to spare for those whose sums float16
    holds.
    """

    name = "winograd_f2_fp16_simd"
    tile: ClassVar[int] = 2
    exact_on_integers = True
    error_growth = 4.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.1"


@register
class WinogradF4Fp16Simd(WinogradFp16Simd):
    """F(4x4,3x3); backward weights F(3x3,4x4). 4 times fewer multiplications.

    Growth: winograd_f4_simd's; measured 6.5.
    """

    name = "winograd_f4_fp16_simd"
    tile: ClassVar[int] = 4
    error_growth = 20.0
    reference = "Lavin and Gray 2015 (arXiv 1509.09308), section 4.3; points: arXiv 1803.10986"
