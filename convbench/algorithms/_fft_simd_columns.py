"""Tiled FFT convolution in the simd tier by columns of frequencies: the tasks of staged plans of the data passes.

Rows are transformed along the width once for all tiles above each other that contain them. Then a column of
frequencies (both edges together count as one) is transformed along the height for every tile of the group, multiplied
and transformed back; its spectra are scratch of a thread. Then the rows of the results.

A row of the group has a place: tiles above each other in an image lie STEP_H places apart, the tiles of the next
image begin after the last one's rows.
"""

from __future__ import annotations

from typing import Any

from numba import njit

# isort: off
from convbench.algorithms._fft_simd import (
    BATCH_PITCH, BLOCK_SPECTRA, COLUMN_INVERSE, COLUMN_KERNEL, C_OUT, DATA, DUMP, END, FILTER_PLANE, FIRST,
    FREQUENCIES, GRID_H, GRID_W, HALF_PART, HALF_ROW, HALVES, LANES, LOAD, MULTIPLY_PHASE, OUT, OUT_CHANNELS,
    OUT_HEIGHT, OUT_IN_PLACE, OUT_NCHW, OUT_WIDTH, PANELS_OF_GROUP, PARTS, PER_THREAD, PHASES, PRODUCTS,
    RESULT_HALVES, RESULT_PART, RESULT_PITCH, RESULT_PLANE, RESULT_ROW, RESULT_WIDE, ROW_INVERSE, ROW_KERNEL, RUNS,
    SCRATCH, SPLITS, STEP_H, STEP_W, STORE, STRIP, S_ADDRESS, S_CHANNELS, S_COLUMNS, S_HEIGHT, S_IN_PLACE, S_LEFT,
    S_NCHW, S_PITCH, S_PLANE, S_SLICES, S_TOP, S_WIDE, S_WIDTH, TILE_H, TILE_W, TOGETHER, TRANSPOSE, ZEROS, column_of,
    multiply_part,
)  # fmt: skip
# isort: on
from convbench.simd.driver import call, item, task, zero
from convbench.simd.patch import gather, scatter, share


@njit(error_model="numpy")
def _place_of(p: int, row: int) -> int:
    """Where the first row of a row of tiles is."""
    grid_h, first, step = item(p, GRID_H), item(p, FIRST), item(p, STEP_H)
    return (row - first) * step + (row // grid_h - first // grid_h) * (item(p, TILE_H) - step)


@njit(error_model="numpy")
def _row_at(p: int, place: int) -> Any:
    """(image, row counted from the first row of its first tile) of a place."""
    grid_h, first, step, height = item(p, GRID_H), item(p, FIRST), item(p, STEP_H), item(p, TILE_H)
    image, row = first // grid_h, first % grid_h
    here = (min(item(p, END) - first, grid_h - row) - 1) * step + height
    if place < here:
        return image, row * step + place
    whole = (grid_h - 1) * step + height
    return image + 1 + (place - here) // whole, (place - here) % whole


@task
def rows_task(index: int, thread: int, p: int) -> None:
    """One row of the data, one slice of its channels: the transforms of all tiles of that row."""
    if item(p, PHASES) & LOAD == 0:
        return
    side, lanes = item(p, DATA), item(p, LANES)
    slices, channels, pitch = item(side, S_SLICES), item(side, S_CHANNELS), item(side, S_PITCH)
    low, high = share((channels + lanes - 1) // lanes, slices, index % slices)
    first, end = low * lanes, min(high * lanes, channels)
    image, y = _row_at(p, index // slices)
    y -= item(side, S_TOP)
    to, part, grid_w = item(p, HALVES) + 4 * (index // slices * item(p, HALF_ROW)), item(p, HALF_PART), item(p, GRID_W)
    if 0 <= y < item(side, S_HEIGHT):
        strip = item(p, SCRATCH) + 4 * (thread * item(p, PER_THREAD) + item(p, STRIP))
        _load_row(p, side, image, y, first, end, to, strip)
        return
    for i in range(item(p, TILE_W)):
        if slices == 1:
            zero(to + 4 * i * part, grid_w * pitch)
            continue
        for j in range(grid_w):
            zero(to + 4 * (i * part + j * pitch + first), high * lanes - first)


@njit(error_model="numpy")
def _load_row(p: int, side: int, image: int, y: int, first: int, end: int, to: int, strip: int) -> None:
    """The transforms of row y of an image, channels first .. end - 1. to: where its first tile's are."""
    channels, height, width = item(side, S_CHANNELS), item(side, S_HEIGHT), item(side, S_WIDTH)
    x, kernel, zeros, part = item(side, S_ADDRESS), item(p, ROW_KERNEL), item(p, ZEROS), item(p, HALF_PART)
    left, step, columns, grid_w = item(side, S_LEFT), item(p, STEP_W), item(side, S_COLUMNS), item(p, GRID_W)
    pitch, lanes, wide = item(side, S_PITCH), item(p, LANES), item(side, S_WIDE)
    if item(side, S_IN_PLACE):
        for j in range(grid_w):
            x0 = j * step - left
            begin = max(0, -x0)
            tile = x + 4 * (((image * height + y) * width + x0) * channels + first)
            until = max(begin, min(columns, width - x0))
            call(kernel, (end - first, tile, channels, begin, until, zeros, to + 4 * (j * pitch + first), part))
        return
    span = (grid_w - 1) * step + columns
    for c in range(first, end, wide):
        n = min(wide, end - c)
        pixel = (n + lanes - 1) // lanes * lanes
        gather(
            x, item(side, S_NCHW), channels, height, width, image, c, n, y, 1, -left, span, strip, span * pixel,
            pixel, item(p, TRANSPOSE),
        )  # fmt: skip
        for j in range(grid_w):
            call(kernel, (n, strip + 4 * j * step * pixel, pixel, 0, columns, zeros, to + 4 * (j * pitch + c), part))


@task
def columns_task(index: int, thread: int, p: int) -> None:
    """One column of frequencies, one share of the group's tiles: along the height, products, and back."""
    slab, splits, grid_w, height = index // item(p, SPLITS), item(p, SPLITS), item(p, GRID_W), item(p, TILE_H)
    t0, t1 = share((item(p, END) - item(p, FIRST)) * grid_w, splits, index % splits)
    edge = 1 if slab == item(p, TILE_W) // 2 - 1 else 0
    half = 0 if edge else 2 * (slab + 1)  # the part where the column begins
    each = 3 if item(p, PRODUCTS) == 3 else 2
    side = item(p, DATA)
    pitch, plane, row, part = item(side, S_PITCH), item(side, S_PLANE), item(p, HALF_ROW), item(p, HALF_PART)
    v = item(p, SCRATCH) + 4 * (thread * item(p, PER_THREAD) + item(p, BLOCK_SPECTRA))
    m = v + 4 * each * height * plane
    if item(p, PHASES) & LOAD:
        for t in range(t0, t1):
            at = half * part + _place_of(p, item(p, FIRST) + t // grid_w) * row + t % grid_w * pitch
            call(
                item(p, COLUMN_KERNEL),
                (item(side, S_CHANNELS), edge, item(p, HALVES) + 4 * at, row, part, v + 4 * (t - t0) * pitch, plane),
            )
    if item(p, PHASES) & MULTIPLY_PHASE:
        f0 = slab * height
        f1 = item(p, FREQUENCIES) + 4 if edge else f0 + height
        _multiply(p, f0, f1, t1 - t0, v - 4 * each * f0 * plane, plane, m - 4 * each * f0 * item(p, RESULT_PLANE))
    if item(p, PHASES) & STORE:
        to = item(p, RESULT_HALVES) + 4 * half * item(p, RESULT_PART)
        for t in range(t0, t1):
            _columns_back(p, edge, t, m + 4 * (t - t0) * item(p, RESULT_PITCH), to)


@njit(error_model="numpy")
def _multiply(p: int, f0: int, f1: int, n: int, v: int, plane: int, m: int) -> None:
    """Products of frequencies f0 .. f1 - 1. v, m: where the planes of the first frequency of all would be."""
    each, parts = 3 if item(p, PRODUCTS) == 3 else 2, item(p, PARTS)
    of_frequency = 4 * each * item(p, FILTER_PLANE)
    of_part = 4 * (each * item(p, FREQUENCIES) + 4) * item(p, FILTER_PLANE)
    for f in range(f0, f1):
        for i in range(parts):
            at = m + 4 * (i // item(p, TOGETHER) * item(p, BATCH_PITCH) + column_of(p, i))
            ahead = of_part if i + 1 < parts else of_frequency - i * of_part
            multiply_part(p, i, f, f + 1, n, v, plane, at, item(p, RESULT_PITCH), item(p, RESULT_PLANE), ahead)


@njit(error_model="numpy")
def _run(p: int, index: int) -> Any:
    """(first column in a row of products, first channel, count) of channels whose products lie beside each other."""
    c_out = item(p, C_OUT)
    if item(p, TOGETHER) == 1:
        return index * item(p, PANELS_OF_GROUP) * item(p, BATCH_PITCH), index * c_out, c_out
    part = index * item(p, TOGETHER)
    return index * item(p, BATCH_PITCH), part * c_out, min(item(p, TOGETHER), item(p, PARTS) - part) * c_out


@njit(error_model="numpy")
def _columns_back(p: int, edge: int, t: int, m: int, to: int) -> None:
    """One column of tile t of the group, all channels, into the half-transformed results."""
    grid_w, row = item(p, GRID_W), item(p, RESULT_ROW)
    at = t // grid_w * item(p, STEP_H) * row + t % grid_w * item(p, RESULT_PITCH)
    for i in range(item(p, RUNS)):
        first, _, count = _run(p, i)
        call(
            item(p, COLUMN_INVERSE),
            (count, edge, m + 4 * first, item(p, RESULT_PLANE), to + 4 * (at + first), row, item(p, RESULT_PART)),
        )


@task
def results_task(index: int, thread: int, p: int) -> None:
    """One row of the results, one run of channels: all tiles of that row."""
    if item(p, PHASES) & STORE == 0:
        return
    step_h, step_w, runs, grid_w = item(p, STEP_H), item(p, STEP_W), item(p, RUNS), item(p, GRID_W)
    channels, height, width = item(p, OUT_CHANNELS), item(p, OUT_HEIGHT), item(p, OUT_WIDTH)
    row, place = item(p, FIRST) + index // runs // step_h, index // runs
    image, y = row // item(p, GRID_H), row % item(p, GRID_H) * step_h + place % step_h
    if y >= height:
        return
    column, k0, count = _run(p, index % runs)
    source = item(p, RESULT_HALVES) + 4 * (place * item(p, RESULT_ROW) + column)
    kernel, part, pitch, dump = item(p, ROW_INVERSE), item(p, RESULT_PART), item(p, RESULT_PITCH), item(p, DUMP)
    if item(p, OUT_IN_PLACE):
        to = item(p, OUT) + 4 * ((image * height + y) * width * channels + k0)
        for j in range(grid_w):
            n, at = min(step_w, width - j * step_w), to + 4 * j * step_w * channels
            call(kernel, (count, source + 4 * j * pitch, part, at, channels, n, dump))
        return
    strip = item(p, SCRATCH) + 4 * (thread * item(p, PER_THREAD) + item(p, STRIP))
    lanes, wide, span = item(p, LANES), item(p, RESULT_WIDE), grid_w * step_w
    for c in range(0, count, wide):
        n = min(wide, count - c)
        pixel = (n + lanes - 1) // lanes * lanes
        for j in range(grid_w):
            at = strip + 4 * j * step_w * pixel
            call(kernel, (n, source + 4 * (j * pitch + c), part, at, pixel, step_w, dump))
        scatter(
            item(p, OUT), item(p, OUT_NCHW), channels, height, width, image, k0 + c, n, y, 1, 0, span, strip,
            span * pixel, pixel, item(p, TRANSPOSE),
        )  # fmt: skip
