"""The seven loops as Numba kernels; imported by direct_naive_numba when it prepares, because Numba loads slowly.

All take channels-first views (N, C, H, W), (K, C/G, R, S), (N, K, P, Q) with any strides, and geometry
(stride h, w, top and left padding, dilation h, w, groups). Sums are kept in the result's type, those of whole numbers
in Numba's own, int64, on their way there.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange
from numba.core import config


def forward(x: Any, w: Any, y: Any, geometry: Any) -> None:
    """y[n, k, p, q] = sum over c, r, s; images and output channels in parallel."""
    sh, sw, top, left, dh, dw, groups = geometry
    n_images, n_k, n_p, n_q = y.shape
    _, n_c, n_r, n_s = w.shape
    height, width = x.shape[2], x.shape[3]
    for nk in prange(n_images * n_k):
        n, k = nk // n_k, nk % n_k
        first = k // (n_k // groups) * n_c
        for p in range(n_p):
            for q in range(n_q):
                total = y.dtype.type(0)
                for c in range(n_c):
                    for r in range(n_r):
                        i = p * sh + r * dh - top
                        if i < 0 or i >= height:
                            continue
                        for s in range(n_s):
                            j = q * sw + s * dw - left
                            if j >= 0 and j < width:
                                total += x[n, first + c, i, j] * w[k, c, r, s]
                y[n, k, p, q] = total


def backward_data(dy: Any, w: Any, dx: Any, geometry: Any) -> None:
    """Adds every dy[n, k, p, q] * w to the dx that it came from; images and input channels in parallel."""
    sh, sw, top, left, dh, dw, groups = geometry
    n_images, n_c, height, width = dx.shape
    n_k, per_group, n_r, n_s = w.shape
    k_per_group = n_k // groups
    n_p, n_q = dy.shape[2], dy.shape[3]
    for nc in prange(n_images * n_c):
        n, c = nc // n_c, nc % n_c
        group = c // per_group
        for i in range(height):
            for j in range(width):
                dx[n, c, i, j] = 0
        for k in range(group * k_per_group, (group + 1) * k_per_group):
            for p in range(n_p):
                for r in range(n_r):
                    i = p * sh + r * dh - top
                    if i < 0 or i >= height:
                        continue
                    for q in range(n_q):
                        for s in range(n_s):
                            j = q * sw + s * dw - left
                            if j >= 0 and j < width:
                                dx[n, c, i, j] += dy[n, k, p, q] * w[k, c - group * per_group, r, s]


def backward_weights(x: Any, dy: Any, dw_out: Any, geometry: Any) -> None:
    """dw[k, c, r, s] = sum over n, p, q; pairs of channels in parallel."""
    sh, sw, top, left, dh, dw, groups = geometry
    n_k, n_c, n_r, n_s = dw_out.shape
    n_images, _, n_p, n_q = dy.shape
    height, width = x.shape[2], x.shape[3]
    for kc in prange(n_k * n_c):
        k, c = kc // n_c, kc % n_c
        channel = k // (n_k // groups) * n_c + c
        for r in range(n_r):
            for s in range(n_s):
                total = dw_out.dtype.type(0)
                for n in range(n_images):
                    for p in range(n_p):
                        i = p * sh + r * dh - top
                        if i < 0 or i >= height:
                            continue
                        for q in range(n_q):
                            j = q * sw + s * dw - left
                            if j >= 0 and j < width:
                                total += x[n, channel, i, j] * dy[n, k, p, q]
                dw_out[k, c, r, s] = total


@functools.cache
def compiled(kernel: Callable[..., None], dtype: str, out_dtype: str) -> Any:
    """The kernel as a parallel Numba function, compiled here; its machine code is kept on disk.

    One signature takes every array: any strides, operands read-only. Where neither the package nor the user's
    cache folder can be written, a temporary folder serves this process.
    """
    operand = numba.types.Array(numba.from_dtype(np.dtype(dtype)), 4, "A", readonly=True)
    result = numba.types.Array(numba.from_dtype(np.dtype(out_dtype)), 4, "A")
    signature = numba.void(operand, operand, result, numba.types.UniTuple(numba.int64, 7))
    decorate = numba.njit([signature], parallel=True, cache=True)
    try:
        return decorate(kernel)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
    folder = tempfile.mkdtemp(prefix="convbench-numba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    config.reload_config()
    return decorate(kernel)


def use_threads(threads: int) -> None:
    """How many threads the next call takes; Numba cannot take more than it started with."""
    numba.set_num_threads(min(threads, int(vars(config)["NUMBA_NUM_THREADS"])))
