"""One FFT per image with FFTW through pyfftw. Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2.

What the FFT algorithms share is in `_fft_core.py`; see there for the mathematics.
"""

from __future__ import annotations

from convbench.algorithms._fft_backends import Fftw
from convbench.algorithms._fft_core import WholeImageFft
from convbench.registry import register


@register
class FftPyfftw(WholeImageFft):
    """One FFT per image with FFTW through pyfftw.

    error_growth: float32, 31 shapes x 3 passes (1 to 512 channels, 1 to 224 points a side, 1x1 to 31x31 filters, up to
    10 seeds), normal inputs: at most 2.74 for the largest element and 1.87 for relative L2, both at one product per
    output (a 1x1 filter on one channel, where nothing hides the transform's own error). Doubled.
    """

    name = "fft_pyfftw"
    backend = Fftw
    pool = "fftw"
    requires = ("pyfftw",)
    error_growth = 5.5
    reference = "Mathieu, Henaff, LeCun 2013 (arXiv 1312.5851), section 2"
