"""Three FFT libraries behind one small face: pocketfft (scipy.fft), FFTW (pyfftw) and cuFFT (on CuPy's arrays).

All transform axes 1 and 2 of arrays (M, Th, Tw, C): channels stay innermost, so that neither side of the
frequency-domain products has to be transposed. No direction is scaled; the core puts 1 / (Th Tw) into the filter.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from convbench.algorithms._fft_geometry import fast_length

Transform = Callable[[], Any]

_planner = threading.Lock()  # FFTW's planner is shared by the whole process


def half(length: int) -> int:
    """Frequencies kept of a real transform: the others are their conjugates."""
    return length // 2 + 1


def complex_dtype(real: Any) -> np.dtype:
    """complex64 for float32, complex128 for float64."""
    return np.result_type(np.dtype(real), np.complex64)


SMALL_ELEMENTS = 1 << 16  # below this planning by measurement costs more than it can win, and threads cost time
PLANNING_LIMIT_S = 2.0
MIB = 1 << 20


class OnCpu:
    """Where tiles and spectra lie, and how much of them there is at a time, with the libraries of a CPU."""

    strip_bytes = 64 * MIB  # spectra of one block of strips, unless the filters' spectra are larger
    frequency_bytes = 8 * MIB  # products of one block of frequencies: stays in the second and third level cache

    @staticmethod
    def arrange(storage: Any, m: int, height: int, width: int, channels: int) -> Any:
        """The first part of flat storage as (M, height, width, C)."""
        return storage[: m * height * width * channels].reshape(m, height, width, channels)


class PocketFft(OnCpu):
    """scipy.fft, axis by axis: the second axis in place, so that one temporary remains per direction."""

    @staticmethod
    def next_fast_len(target: int) -> int:
        """Least length >= target with prime factors 2, 3 and 5."""
        from scipy.fft import next_fast_len

        return int(next_fast_len(target, real=True))

    @staticmethod
    def forward(tiles: Any, context: Any) -> Transform:
        """Returns a callable that transforms what tiles (M, Th, Tw, C) holds: spectra (M, Th, Tw/2+1, C)."""
        from scipy import fft

        workers = context.threads

        def transform() -> Any:
            spectra = fft.rfft(tiles, axis=2, workers=workers)
            return fft.fft(spectra, axis=1, overwrite_x=True, workers=workers)

        return transform

    @staticmethod
    def inverse(tiles: Any, context: Any) -> tuple[Any, Transform]:
        """Returns a spectra buffer and a callable that gives its tiles (a new array; `tiles` lends its shape)."""
        from scipy import fft

        workers, width = context.threads, tiles.shape[2]
        m, height, _, channels = tiles.shape
        spectra = context.empty((m, height, half(width), channels), complex_dtype(tiles.dtype))

        def transform() -> Any:
            rows = fft.ifft(spectra, axis=1, norm="forward", overwrite_x=True, workers=workers)
            return fft.irfft(rows, n=width, axis=2, norm="forward", workers=workers)

        return spectra, transform

    @staticmethod
    def bytes(loads: list[int], stores: list[int], m: int, size: tuple[int, int], item: int) -> int:
        """Context bytes and temporaries for M transforms; loads and stores: channels of each operand."""
        spectrum = 2 * item * m * size[0] * half(size[1])
        temporary = item * m * size[0] * size[1] * sum(stores)
        return spectrum * sum(loads + stores) + temporary


class Fftw(OnCpu):
    """pyfftw: plans made beforehand over aligned buffers, measured for all but small transforms.

    FFTW_ESTIMATE was up to nine times slower at (117, 117, 128), and with two threads far worse at times (2.2 s for a
    convolution that takes 0.1 s); measuring took 0.1 to 1.4 s a plan (2 cores of an AVX-512 Xeon, 2026-11-22).
    """

    @staticmethod
    def next_fast_len(target: int) -> int:
        """Least length >= target that FFTW has codelets for."""
        return int(_load_pyfftw().next_fast_len(target))

    @staticmethod
    def forward(tiles: Any, context: Any) -> Transform:
        """Returns a callable that transforms what tiles (M, Th, Tw, C) holds: spectra (M, Th, Tw/2+1, C)."""
        m, height, width, channels = tiles.shape
        spectra = context.empty((m, height, half(width), channels), complex_dtype(tiles.dtype))
        plan = _plan(tiles, spectra, "FFTW_FORWARD", (), context.threads)

        def transform() -> Any:
            plan.execute()
            return spectra

        return transform

    @staticmethod
    def inverse(tiles: Any, context: Any) -> tuple[Any, Transform]:
        """Returns a spectra buffer and a callable that writes its transform to tiles (M, Th, Tw, C)."""
        m, height, width, channels = tiles.shape
        spectra = context.empty((m, height, half(width), channels), complex_dtype(tiles.dtype))
        plan = _plan(spectra, tiles, "FFTW_BACKWARD", ("FFTW_DESTROY_INPUT",), context.threads)

        def transform() -> Any:
            plan.execute()
            return tiles

        return spectra, transform

    @staticmethod
    def bytes(loads: list[int], stores: list[int], m: int, size: tuple[int, int], item: int) -> int:
        """Context bytes for M transforms; loads and stores: channels of each operand."""
        return 2 * item * m * prod((size[0], half(size[1]))) * sum(loads + stores)


@functools.cache
def _load_pyfftw() -> Any:
    """pyfftw bound to the FFTW it brings.

    MKL exports FFTW's names too, without transforms in loops of loops (the planner returns NULL), and libmkl_rt makes
    them global: without RTLD_DEEPBIND an MKL row measured before in the same process would answer FFTW's calls.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        return importlib.import_module("pyfftw")
    finally:
        sys.setdlopenflags(flags)


def _plan(source: Any, target: Any, direction: str, flags: tuple[str, ...], threads: int) -> Any:
    axes = (1, 2)
    if source.shape[0] == 1:  # the planner finds the better loop order when it sees no outer axis
        source, target, axes = source[0], target[0], (0, 1)
    if max(source.size, target.size) < SMALL_ELEMENTS:
        effort, threads, limit_s = "FFTW_ESTIMATE", 1, None
    else:
        effort, limit_s = "FFTW_MEASURE", PLANNING_LIMIT_S
    kept = source.copy(), target.copy()  # measuring writes to both
    with _planner:
        plan = _load_pyfftw().FFTW(
            source,
            target,
            axes=axes,
            direction=direction,
            flags=(effort, *flags),
            threads=threads,
            planning_timelimit=limit_s,
        )
    source[...], target[...] = kept
    return plan


class CuFft:
    """cuFFT through CuPy: one plan for a block of transforms, made beforehand, on the current stream.

    In memory (Th, Tw, M, C): then all transforms have the same step between their points and follow each other one
    element apart, which one plan of cuFFT can say, and each frequency's matrix (M, C) is contiguous.
    """

    strip_bytes = 512 * MIB  # no cache to stay in: fewer launches
    frequency_bytes = 256 * MIB
    _kinds = {"float32": ("CUFFT_R2C", "CUFFT_C2R"), "float64": ("CUFFT_D2Z", "CUFFT_Z2D")}

    @staticmethod
    def next_fast_len(target: int) -> int:
        """Least even length >= target with prime factors 2, 3, 5 and 7."""
        return fast_length(target, even=True)

    @staticmethod
    def arrange(storage: Any, m: int, height: int, width: int, channels: int) -> Any:
        """The first part of flat storage as a view (M, height, width, C) of (height, width, M, C)."""
        flat = storage[: m * height * width * channels]
        return flat.reshape(height, width, m, channels).transpose(2, 0, 1, 3)

    @classmethod
    def forward(cls, tiles: Any, context: Any) -> Transform:
        """Returns a callable that transforms what tiles (M, Th, Tw, C) holds: spectra (M, Th, Tw/2+1, C)."""
        spectra = cls._spectra(tiles, context)
        plan = cls._plan(tiles, context, inverse=False)

        def transform() -> Any:
            plan.fft(tiles, spectra, context.xp.cuda.cufft.CUFFT_FORWARD)
            return spectra

        return transform

    @classmethod
    def inverse(cls, tiles: Any, context: Any) -> tuple[Any, Transform]:
        """Returns a spectra buffer, which it overwrites, and a callable that writes its transform to tiles."""
        spectra = cls._spectra(tiles, context)
        plan = cls._plan(tiles, context, inverse=True)

        def transform() -> Any:
            plan.fft(spectra, tiles, context.xp.cuda.cufft.CUFFT_INVERSE)
            return tiles

        return spectra, transform

    @classmethod
    def _spectra(cls, tiles: Any, context: Any) -> Any:
        m, height, width, channels = tiles.shape
        dims = (m, height, half(width), channels)
        return cls.arrange(context.empty(prod(dims), complex_dtype(tiles.dtype)), *dims)

    @classmethod
    def _plan(cls, tiles: Any, context: Any, inverse: bool) -> Any:
        """cuFFT's plan; its work area comes out of CuPy's pool and is counted."""
        m, height, width, channels = tiles.shape
        cufft, batch = context.xp.cuda.cufft, m * channels
        kind = getattr(cufft, cls._kinds[tiles.dtype.name][inverse])
        real, spectrum = (height, width), (height, half(width))
        source, target = (spectrum, real) if inverse else (real, spectrum)
        plan = cufft.PlanNd(real, source, batch, 1, target, batch, 1, kind, batch, "C", -1, None)
        context.account(plan.work_area.mem.size, "cuFFT's work area")
        return plan

    @staticmethod
    def bytes(loads: list[int], stores: list[int], m: int, size: tuple[int, int], item: int) -> int:
        """Context bytes for M transforms, and as much again for cuFFT's work areas, which only it knows."""
        return 4 * item * m * size[0] * half(size[1]) * sum(loads + stores)


Backend = type[PocketFft] | type[Fftw] | type[CuFft]
