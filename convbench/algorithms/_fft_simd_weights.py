"""The loops of tiled FFT convolution in the simd tier that concern filters: their spectra, and their gradients."""

from __future__ import annotations

from typing import Any

from numba import njit

# isort: off
from convbench.algorithms._fft_simd import (
    ACCUMULATE, BLOCK_SPECTRA, COMPLEX_GEMM, COMPLEX_ROWS, C_IN, C_OUT, DATA, DEPTHWISE, DUMP, END, FILTER, FILTERS,
    FILTER_KERNEL, FILTER_PLANE, FIRST, FIRST_R, FIRST_S, FREQUENCIES, GEMM, GRADIENT, INVERSE, KEPT_R, KEPT_S, LANES,
    LAST, LOAD, MOST_ROWS, MULTIPLY, MULTIPLY_PHASE, PANEL, PANELS_OF_GROUP, PER_THREAD, PHASES, PRODUCTS, RESULTS,
    ROW_BLOCKS, SCRATCH, SEGMENTS, STORE, STRIP, S_CHANNELS, S_CHUNK, S_COUNT, S_PITCH, S_PLANE, S_SLICES, S_SPECTRA,
    TAPS_R, TAPS_S, TAP_SLICES, TRANSPOSE, TURNED, W, WEIGHTS_PLANE, W_GROUP, W_IN, W_OUT, W_TAP, ZEROS, load_tiles,
    planes_of,
)  # fmt: skip
# isort: on
from convbench.simd.driver import call, copy, item, task, zero
from convbench.simd.patch import share

# ---- filters


@njit(error_model="numpy")
def _load_taps(p: int, w: int, outputs: int, inputs: int, strip: int) -> None:
    """strip[tap, input, output] out of the filter; w: the first of `outputs` x `inputs` channels."""
    taps, panel = item(p, TAPS_R) * item(p, TAPS_S), item(p, PANEL)
    of_out, of_in, of_tap = item(p, W_OUT), item(p, W_IN), item(p, W_TAP)
    if outputs < panel:
        zero(strip, taps * inputs * panel)
    if of_tap == 1:
        for i in range(inputs):
            call(item(p, TRANSPOSE), (outputs, taps, w + 4 * i * of_in, of_out, strip + 4 * i * panel, inputs * panel))
    elif of_out == 1:
        for tap in range(taps):
            for i in range(inputs):
                copy(strip + 4 * (tap * inputs + i) * panel, w + 4 * (tap * of_tap + i * of_in), outputs)
    else:
        for tap in range(taps):
            to = strip + 4 * tap * inputs * panel
            call(item(p, TRANSPOSE), (outputs, inputs, w + 4 * tap * of_tap, of_out, to, panel))


@njit(error_model="numpy")
def _store_taps(p: int, w: int, outputs: int, inputs: int, strip: int) -> None:
    """The reverse, for the taps that take part: strip[tap, input, output] into the filter's gradient."""
    panel, taps_s, kept_s, kept_r = item(p, PANEL), item(p, TAPS_S), item(p, KEPT_S), item(p, KEPT_R)
    of_out, of_in, of_tap = item(p, W_OUT), item(p, W_IN), item(p, W_TAP)
    rows, columns = kept_r, kept_s
    if kept_s == taps_s:
        rows, columns = 1, kept_r * kept_s
    for r in range(rows):
        source = strip + 4 * r * columns * inputs * panel
        at = w + 4 * ((item(p, FIRST_R) + r) * taps_s + item(p, FIRST_S)) * of_tap
        if of_tap == 1:
            for i in range(inputs):
                to = at + 4 * i * of_in
                call(item(p, TRANSPOSE), (columns, outputs, source + 4 * i * panel, inputs * panel, to, of_out))
        else:
            for s in range(columns):
                call(
                    item(p, TRANSPOSE),
                    (inputs, outputs, source + 4 * s * inputs * panel, panel, at + 4 * s * of_tap, of_out),
                )


@njit(error_model="numpy")
def _filter_at(p: int, part: int, first: int) -> Any:
    """(address of w at the part's first output channel and input channel `first`, output channels of the part)."""
    group, k0 = part // item(p, PANELS_OF_GROUP), part % item(p, PANELS_OF_GROUP) * item(p, PANEL)
    at = item(p, W) + 4 * (group * item(p, W_GROUP) + k0 * item(p, W_OUT) + first * item(p, W_IN))
    return at, min(item(p, PANEL), item(p, C_OUT) - k0)


@task
def filter_task(index: int, thread: int, p: int) -> None:
    """Spectra of one part of the filter, for one slice of its input channels."""
    if item(p, PHASES) & FILTERS == 0:
        return
    part, piece = index // item(p, TAP_SLICES), index % item(p, TAP_SLICES)
    first, end = share(item(p, C_IN), item(p, TAP_SLICES), piece)
    inputs, panel, plane = end - first, item(p, PANEL), item(p, FILTER_PLANE)
    scratch = item(p, SCRATCH) + 4 * thread * item(p, PER_THREAD)
    strip = scratch + 4 * item(p, STRIP)
    w, outputs = _filter_at(p, part, first)
    _load_taps(p, w, outputs, inputs, strip)
    pixel = inputs * panel
    row = item(p, TAPS_S) * pixel
    at = strip + 4 * (item(p, FIRST_R) * row + item(p, FIRST_S) * pixel)
    kept_r, kept_s = item(p, KEPT_R), item(p, KEPT_S)
    if item(p, TURNED):
        at += 4 * ((kept_r - 1) * row + (kept_s - 1) * pixel)
        row, pixel = -row, -pixel
    planes = (3 if item(p, PRODUCTS) == 3 else 2) * item(p, FREQUENCIES) + 4
    to = item(p, FILTER) + 4 * (part * planes * plane + first * panel)
    call(
        item(p, FILTER_KERNEL),
        (inputs * panel, at, row, pixel, 0, kept_r, 0, kept_s, item(p, ZEROS), scratch, to, plane),
    )


# ---- backward weights


@njit(error_model="numpy")
def _load_staged(p: int, side: int, index: int, thread: int) -> None:
    """One chunk of tiles, one slice of channels, of the group FIRST .. END."""
    slices, lanes, channels = item(side, S_SLICES), item(p, LANES), item(side, S_CHANNELS)
    t0 = item(p, FIRST) + index // slices * item(side, S_CHUNK)
    t1 = min(t0 + item(side, S_CHUNK), item(p, END))
    vectors = (channels + lanes - 1) // lanes
    low, high = share(vectors, slices, index % slices)
    first, end = low * lanes, min(high * lanes, channels)
    scratch = item(p, SCRATCH) + 4 * thread * item(p, PER_THREAD)
    v = item(side, S_SPECTRA) + 4 * (t0 - item(p, FIRST)) * item(side, S_PITCH)
    load_tiles(p, side, t0, t1, first, end - first, v, item(side, S_PLANE), scratch, scratch + 4 * item(p, STRIP))


@task
def load_task(index: int, thread: int, p: int) -> None:
    """Spectra of x, then those of dy."""
    if item(p, PHASES) & LOAD == 0:
        return
    count = item(item(p, DATA), S_COUNT)
    if index < count:
        _load_staged(p, item(p, DATA), index, thread)
    else:
        _load_staged(p, item(p, GRADIENT), index - count, thread)


@task
def weights_task(index: int, thread: int, p: int) -> None:
    """The gradient of one block of rows (channels of x) of one part: products over the group's tiles, then back."""
    blocks, panel, plane = item(p, ROW_BLOCKS), item(p, PANEL), item(p, WEIGHTS_PLANE)
    part = index // blocks
    first, end = share(item(p, C_IN), blocks, index % blocks)
    rows = end - first
    w, outputs = _filter_at(p, part, first)
    scratch = item(p, SCRATCH) + 4 * thread * item(p, PER_THREAD)
    m = scratch + 4 * item(p, BLOCK_SPECTRA)
    if item(p, RESULTS):  # kept from group to group
        m = item(p, RESULTS) + 4 * index * planes_of(p) * plane
    if item(p, PHASES) & MULTIPLY_PHASE:
        _multiply_weights(p, part, first, rows, outputs, m)
    if item(p, LAST) and item(p, PHASES) & STORE:
        strip = scratch + 4 * item(p, STRIP)
        pixel, kept_r, kept_s = rows * panel, item(p, KEPT_R), item(p, KEPT_S)
        call(
            item(p, INVERSE), (pixel, m, plane, scratch, strip, kept_s * pixel, pixel, kept_r, kept_s, item(p, DUMP))
        )
        _store_taps(p, w, outputs, rows, strip)


@njit(error_model="numpy")
def _multiply_weights(p: int, part: int, first: int, rows: int, outputs: int, m: int) -> None:
    """m[plane, row, output] (+)= sum over the group's tiles of x[plane, tile, row] dy[plane, tile, output]."""
    group, k0 = part // item(p, PANELS_OF_GROUP), part % item(p, PANELS_OF_GROUP) * item(p, PANEL)
    x, dy, n = item(p, DATA), item(p, GRADIENT), item(p, END) - item(p, FIRST)
    a = item(x, S_SPECTRA) + 4 * (k0 if item(p, DEPTHWISE) else group * item(p, C_IN) + first)
    b = item(dy, S_SPECTRA) + 4 * (group * item(p, C_OUT) + k0)
    a_pitch, b_pitch, panel = item(x, S_PITCH), item(dy, S_PITCH), item(p, PANEL)
    m_plane, complex_ones, accumulate = item(p, WEIGHTS_PLANE), item(p, FREQUENCIES), item(p, ACCUMULATE)
    x_plane, dy_plane = item(x, S_PLANE), item(dy, S_PLANE)
    j = 0
    if item(p, PRODUCTS) == 4:
        blocks = (rows + item(p, COMPLEX_ROWS) - 1) // item(p, COMPLEX_ROWS)
        while j < 2 * complex_ones:
            for i in range(blocks):
                low, high = share(rows, blocks, i)
                b_at = b + 4 * j * dy_plane
                call(
                    item(p, COMPLEX_GEMM),
                    (
                        high - low, outputs, a + 4 * (j * x_plane + low), 1, a_pitch, x_plane, b_at, b_pitch, dy_plane,
                        n, m + 4 * (j * m_plane + low * panel), panel, m_plane, b_at, accumulate,
                    ),
                )  # fmt: skip
            j += 2
    blocks = (rows + item(p, MOST_ROWS) - 1) // item(p, MOST_ROWS)
    while j < planes_of(p):
        a_at, b_at, to = a + 4 * j * x_plane, b + 4 * j * dy_plane, m + 4 * j * m_plane
        if item(p, DEPTHWISE):
            call(item(p, MULTIPLY), (n, outputs, a_at, a_pitch, b_at, b_pitch, to, accumulate))
            j += 1
            continue
        for i in range(blocks):
            low, high = share(rows, blocks, i)
            call(
                item(p, GEMM),
                (
                    high - low, outputs, a_at + 4 * low, 1, a_pitch, b_at, b_pitch, item(p, SEGMENTS), 1, n,
                    to + 4 * low * panel, panel, accumulate,
                ),
            )  # fmt: skip
        j += 1
