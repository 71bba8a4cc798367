"""One FFT per image with SciPy's pocketfft, or with cuFFT through CuPy. Mathieu, Henaff, LeCun 2013
(arXiv 1312.5851), section 2.

What the FFT algorithms share is in `_fft_core.py`; see there for the mathematics.
"""

from __future__ import annotations

from typing import ClassVar

from convbench.algorithms._cupy import OnCupy
from convbench.algorithms._fft_backends import Backend, CuFft, PocketFft
from convbench.algorithms._fft_core import WholeImageFft
from convbench.registry import register


@register
class FftScipy(WholeImageFft):
    """One FFT per image with SciPy's pocketfft.

    error_growth: float32, 31 shapes x 3 passes (1 to 512 channels, 1 to 224 points a side, 1x1 to 31x31 filters, up to
    10 seeds), normal inputs: at most 2.70 for the largest element and 1.78 for relative L2, both at one product per
    output (a 1x1 filter on one channel, where nothing hides the transform's own error). Doubled.
    """

    name = "fft_scipy"
    backend: ClassVar[Backend] = PocketFft
    pool = "pocketfft"
    requires: ClassVar[tuple[str, ...]] = ("scipy",)
    error_growth = 5.5
    reference = "Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2"


@register
class FftCupy(OnCupy, FftScipy):
    """One FFT per image with cuFFT, the rest with CuPy and cuBLAS.

    error_growth: fft_scipy's, whose transforms are single precision too; not measured with cuFFT. With transforms in
    double precision, which leaves the errors of the rest, four shapes in all passes gave 0.7.
    """

    name = "fft_cupy"
    backend: ClassVar[Backend] = CuFft
