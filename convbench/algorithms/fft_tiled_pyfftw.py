"""Overlap-save FFT tiles with FFTW through pyfftw. Vasilache et al. 2014 (arXiv 1412.7580), section 6; overlap-save.

What the FFT algorithms share is in `_fft_core.py`; see there for the mathematics.
"""

from __future__ import annotations

from convbench.algorithms._fft_backends import Fftw
from convbench.algorithms._fft_core import TiledFft
from convbench.registry import register


@register
class FftTiledPyfftw(TiledFft):
    """Overlap-save FFT tiles with FFTW through pyfftw.

    error_growth: float32, 31 shapes x 3 passes (1 to 512 channels, 1 to 224 points a side, 1x1 to 31x31 filters, up to
    10 seeds), normal inputs: at most 2.63 for the largest element and 0.96 for relative L2, both at one product per
    output (a 1x1 filter on one channel, where nothing hides the transform's own error). Doubled.
    """

    name = "fft_tiled_pyfftw"
    backend = Fftw
    pool = "fftw"
    requires = ("pyfftw",)
    error_growth = 5.5
    reference = "Vasilache et al. 2014 (arXiv 1412.7580), section 6; overlap-save"
