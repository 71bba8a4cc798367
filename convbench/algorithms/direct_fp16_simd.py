"""Direct convolution of float16 arrays: stored in half precision, multiplied and summed in single.

The implicit GEMM of direct_simd (Georganas et al. 2018, arXiv 1808.05567): its strips of input and panels of the filter
are float32 made from float16 on the way in (vcvtph2ps), its results are rounded to float16 once, on the way out.
"""

from __future__ import annotations

from typing import ClassVar

from convbench.algorithms.direct_simd import GemmSimd
from convbench.registry import register


@register
class DirectFp16Simd(GemmSimd):
    """Any filter, stride, padding, dilation and groups. Products of two float16 are exact in float32.

    Every unit computes the same way: conversions without an instruction of their own (F16C, AVX-512, NEON) are made of
    integer operations. Packed weights are kept as float32.

    Against PyTorch 2.13's float16 convolution, one thread of a Xeon with AVX512_FP16 (2026-11), forward, nhwc, packed,
    24 layers like those of VGG-16 and ResNet-50: 1.6 to 2.1 times as fast, because the oneDNN in it knows float16 there
    (71 to 104 GFLOP/s, where float32's peak is 214); 9.8 to 54 times on 9 of them when oneDNN is kept from AVX512_FP16.

    error_growth 4.5: that of direct_simd, whose sums these are. Over 13 shapes (3x3 and 13x13, C = 2,048, 12 groups,
    sums over 40,000 pixels), three passes, both layouts, two seeds, no error was more than 0.63 of sqrt(n)
    sqrt(x^2 * w^2) times float32's eps larger than half of float16's eps times the result.
    """

    name: ClassVar[str] = "direct_fp16_simd"
    dtypes: ClassVar[tuple[str, ...]] = ("float16",)
    arithmetic: ClassVar[str] = "float16-acc32"
