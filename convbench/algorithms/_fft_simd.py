"""The loops of tiled FFT convolution in the simd tier; `_fft_simd_plan.py` decides, this file goes through the tiles.

All functions take int64 alone: addresses, counts, and strides in elements. What stays the same during a run stands
in two kinds of tables: one for the run, and one for each activation that is cut into tiles.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from convbench.simd.driver import call, copy, item, task, zero
from convbench.simd.patch import gather, scatter, share

#: A side: an activation that is cut into tiles.
(
    S_ADDRESS, S_NCHW, S_CHANNELS, S_HEIGHT, S_WIDTH, S_TOP, S_LEFT, S_ROWS, S_COLUMNS, S_IN_PLACE, S_KERNEL, S_RUN,
    S_WIDE, S_PITCH, S_PLANE, S_SPECTRA, S_SLICES, S_CHUNK, S_COUNT,
) = range(19)  # fmt: skip

#: A run.
(
    DATA, GRADIENT, OUT, OUT_NCHW, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUT_IN_PLACE, OUT_RUN, FILTER, FILTER_PLANE,
    PRODUCTS, FREQUENCIES, PANEL, PARTS, PANELS_OF_GROUP, C_IN, C_OUT, DEPTHWISE, TOGETHER, BATCHES, BATCH_PITCH,
    RESULTS, RESULT_PITCH, RESULT_PLANE, STEP_H, STEP_W, GRID_H, GRID_W, TILES, FIRST, END, BLOCK, BLOCKS, CHUNKS,
    LANES, GEMM, MOST_ROWS, SEGMENTS, INVERSE, FILTER_KERNEL, TRANSPOSE, MULTIPLY, ZEROS, DUMP, SCRATCH, PER_THREAD,
    STRIP, BLOCK_SPECTRA, W, W_OUT, W_IN, W_TAP, W_GROUP, TAPS_R, TAPS_S, FIRST_R, FIRST_S, KEPT_R, KEPT_S, TURNED,
    COMPLEX_GEMM, COMPLEX_ROWS, TAP_CHANNELS, TAP_SLICES, ROWS, ROW_BLOCKS, WEIGHTS_PLANE, ACCUMULATE, LAST,
    PHASES, N_PARAMETERS,
) = range(72)  # fmt: skip

#: Bits of PHASES: what a run really does; benchmarks leave phases out one by one.
LOAD, MULTIPLY_PHASE, STORE, FILTERS = 1, 2, 4, 8


@njit(error_model="numpy")
def load_tiles(
    p: int, side: int, t0: int, t1: int, first: int, count: int, v: int, plane: int, scratch: int, strip: int
) -> None:
    """Spectra of tiles t0 .. t1 - 1, channels first .. first + count - 1; v: row t0 of the first plane."""
    grid_h, grid_w = item(p, GRID_H), item(p, GRID_W)
    channels, height, width = item(side, S_CHANNELS), item(side, S_HEIGHT), item(side, S_WIDTH)
    rows, columns, pitch = item(side, S_ROWS), item(side, S_COLUMNS), item(side, S_PITCH)
    x, kernel, zeros, lanes = item(side, S_ADDRESS), item(side, S_KERNEL), item(p, ZEROS), item(p, LANES)
    t = t0
    while t < t1:
        image, place = t // (grid_h * grid_w), t % (grid_h * grid_w)
        y0 = place // grid_w * item(p, STEP_H) - item(side, S_TOP)
        x0 = place % grid_w * item(p, STEP_W) - item(side, S_LEFT)
        to = v + 4 * (t - t0) * pitch
        if item(side, S_IN_PLACE):
            top, left = max(0, -y0), max(0, -x0)
            bottom, right = max(top, min(rows, height - y0)), max(left, min(columns, width - x0))
            tile = x + 4 * (((image * height + y0) * width + x0) * channels + first)
            at, row = to + 4 * first, width * channels
            call(kernel, (count, tile, row, channels, top, bottom, left, right, zeros, scratch, at, plane))
            t += 1
            continue
        run = min(min(t1 - t, grid_w - place % grid_w), item(side, S_RUN))
        span = (run - 1) * item(p, STEP_W) + columns
        wide = item(side, S_WIDE)
        for c in range(first, first + count, wide):
            n = min(wide, first + count - c)
            pixel = (n + lanes - 1) // lanes * lanes
            gather(
                x, item(side, S_NCHW), channels, height, width, image, c, n, y0, rows, x0, span, strip, span * pixel,
                pixel, item(p, TRANSPOSE),
            )  # fmt: skip
            for i in range(run):
                tile = strip + 4 * i * item(p, STEP_W) * pixel
                at = to + 4 * (i * pitch + c)
                call(kernel, (n, tile, span * pixel, pixel, 0, rows, 0, columns, zeros, scratch, at, plane))
        t += run


@njit(error_model="numpy")
def multiply_part(
    p: int, part: int, f0: int, f1: int, n: int, v: int, v_plane: int, m: int, m_pitch: int, m_plane: int, ahead: int
) -> None:
    """Products of one panel of filters with n tiles for frequencies f0 .. f1 - 1; the four real ones are the last.

    m: where the panel's columns begin in the first row of the first plane. ahead: bytes from the filter's planes of a
    frequency to those that are multiplied next.
    """
    complex_ones, products, panel = item(p, FREQUENCIES), item(p, PRODUCTS), item(p, PANEL)
    b_plane, c_in = item(p, FILTER_PLANE), item(p, C_IN)
    each = 3 if products == 3 else 2
    planes = each * complex_ones + 4
    group, k0 = part // item(p, PANELS_OF_GROUP), part % item(p, PANELS_OF_GROUP) * panel
    columns = min(panel, item(p, C_OUT) - k0)
    a = v + 4 * (k0 if item(p, DEPTHWISE) else group * c_in)
    b = item(p, FILTER) + 4 * part * planes * b_plane
    for f in range(f0, f1):
        if f >= complex_ones:
            at = each * complex_ones + f - complex_ones
            _product(p, n, columns, a + 4 * at * v_plane, b + 4 * at * b_plane, m + 4 * at * m_plane, m_pitch)
            continue
        at = each * f
        if products == 3:
            for j in range(at, at + 3):
                _product(p, n, columns, a + 4 * j * v_plane, b + 4 * j * b_plane, m + 4 * j * m_plane, m_pitch)
            continue
        pitch, following = item(item(p, DATA), S_PITCH), b + 4 * at * b_plane + ahead
        blocks = (n + item(p, COMPLEX_ROWS) - 1) // item(p, COMPLEX_ROWS)
        for i in range(blocks):
            first, end = share(n, blocks, i)
            call(
                item(p, COMPLEX_GEMM),
                (
                    end - first, columns, a + 4 * (at * v_plane + first * pitch), pitch, 1, v_plane,
                    b + 4 * at * b_plane, panel, b_plane, c_in,
                    m + 4 * (at * m_plane + first * m_pitch), m_pitch, m_plane, following, 0,
                ),
            )  # fmt: skip
            following = b + 4 * at * b_plane


@njit(error_model="numpy")
def _product(p: int, n: int, columns: int, a: int, b: int, m: int, m_pitch: int) -> None:
    """M = A B, real, over the rows of n tiles, in balanced blocks of rows."""
    pitch, panel = item(item(p, DATA), S_PITCH), item(p, PANEL)
    if item(p, DEPTHWISE):
        call(item(p, MULTIPLY), (n, columns, a, pitch, b, m, m_pitch))
        return
    blocks = (n + item(p, MOST_ROWS) - 1) // item(p, MOST_ROWS)
    for i in range(blocks):
        first, end = share(n, blocks, i)
        call(
            item(p, GEMM),
            (
                end - first, columns, a + 4 * first * pitch, pitch, 1, b, panel, item(p, SEGMENTS), 1, item(p, C_IN),
                m + 4 * first * m_pitch, m_pitch, 0,
            ),
        )  # fmt: skip


@njit(error_model="numpy")
def store_tiles(
    p: int, batch: int, t0: int, t1: int, m: int, m_pitch: int, m_plane: int, scratch: int, strip: int
) -> None:
    """Results of tiles t0 .. t1 - 1 for the channels of one batch; m: row t0 of its first plane."""
    grid_h, grid_w, step_h, step_w = item(p, GRID_H), item(p, GRID_W), item(p, STEP_H), item(p, STEP_W)
    channels, height, width = item(p, OUT_CHANNELS), item(p, OUT_HEIGHT), item(p, OUT_WIDTH)
    kernel, dump, pixel, y = item(p, INVERSE), item(p, DUMP), item(p, BATCH_PITCH), item(p, OUT)
    part = batch * item(p, TOGETHER)
    k0 = part // item(p, PANELS_OF_GROUP) * item(p, C_OUT) + part % item(p, PANELS_OF_GROUP) * item(p, PANEL)
    if item(p, TOGETHER) > 1:
        count = min(item(p, TOGETHER), item(p, PARTS) - part) * item(p, C_OUT)
    else:
        count = min(item(p, PANEL), item(p, C_OUT) - part % item(p, PANELS_OF_GROUP) * item(p, PANEL))
    t = t0
    while t < t1:
        image, place = t // (grid_h * grid_w), t % (grid_h * grid_w)
        y0, x0 = place // grid_w * step_h, place % grid_w * step_w
        source = m + 4 * (t - t0) * m_pitch
        if item(p, OUT_IN_PLACE):
            to = y + 4 * (((image * height + y0) * width + x0) * channels + k0)
            rows, columns = min(step_h, height - y0), min(step_w, width - x0)
            call(kernel, (count, source, m_plane, scratch, to, width * channels, channels, rows, columns, dump))
            t += 1
            continue
        run = min(min(t1 - t, grid_w - place % grid_w), item(p, OUT_RUN))
        row = run * step_w * pixel
        for i in range(run):
            to = strip + 4 * i * step_w * pixel
            call(kernel, (count, source + 4 * i * m_pitch, m_plane, scratch, to, row, pixel, step_h, step_w, dump))
        scatter(
            y, item(p, OUT_NCHW), channels, height, width, image, k0, count, y0, step_h, x0, run * step_w, strip, row,
            pixel, item(p, TRANSPOSE),
        )  # fmt: skip
        t += run


@njit(error_model="numpy")
def _planes(p: int) -> int:
    """Planes of a spectrum."""
    return (3 if item(p, PRODUCTS) == 3 else 2) * item(p, FREQUENCIES) + 4


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


# ---- data passes


@njit(error_model="numpy")
def _column_of(p: int, part: int) -> int:
    """First column of a part in its batch."""
    return part % item(p, TOGETHER) * item(p, C_OUT) if item(p, TOGETHER) > 1 else 0


@task
def block_task(index: int, thread: int, p: int) -> None:
    """Everything for one block of tiles."""
    t0, t1 = share(item(p, TILES), item(p, BLOCKS), index)
    n, side = t1 - t0, item(p, DATA)
    scratch = item(p, SCRATCH) + 4 * thread * item(p, PER_THREAD)
    strip = scratch + 4 * item(p, STRIP)
    v = scratch + 4 * item(p, BLOCK_SPECTRA)
    plane = item(side, S_PLANE)
    each = 3 if item(p, PRODUCTS) == 3 else 2
    planes = each * item(p, FREQUENCIES) + 4
    ahead = 4 * each * item(p, FILTER_PLANE)
    m, m_pitch, m_plane = v + 4 * planes * plane, item(p, RESULT_PITCH), item(p, RESULT_PLANE)
    if item(p, PHASES) & LOAD:
        load_tiles(p, side, t0, t1, 0, item(side, S_CHANNELS), v, plane, scratch, strip)
    for batch in range(item(p, BATCHES)):
        if item(p, PHASES) & MULTIPLY_PHASE:
            for part in range(batch * item(p, TOGETHER), min((batch + 1) * item(p, TOGETHER), item(p, PARTS))):
                at = m + 4 * _column_of(p, part)
                multiply_part(p, part, 0, item(p, FREQUENCIES) + 4, n, v, plane, at, m_pitch, m_plane, ahead)
        if item(p, PHASES) & STORE:
            store_tiles(p, batch, t0, t1, m, m_pitch, m_plane, scratch, strip)


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
    """Spectra of the data; for backward weights those of dy follow."""
    if item(p, PHASES) & LOAD == 0:
        return
    count = item(item(p, DATA), S_COUNT)
    if index < count:
        _load_staged(p, item(p, DATA), index, thread)
    else:
        _load_staged(p, item(p, GRADIENT), index - count, thread)


@task
def multiply_task(index: int, thread: int, p: int) -> None:
    """Products of a staged group: one chunk of frequencies, all panels."""
    if item(p, PHASES) & MULTIPLY_PHASE == 0:
        return
    f0, f1 = share(item(p, FREQUENCIES) + 4, item(p, CHUNKS), index)
    side, n = item(p, DATA), item(p, END) - item(p, FIRST)
    each = 3 if item(p, PRODUCTS) == 3 else 2
    of_part = 4 * (each * item(p, FREQUENCIES) + 4) * item(p, FILTER_PLANE)  # bytes
    for f in range(f0, f1):
        for part in range(item(p, PARTS)):
            batch = part // item(p, TOGETHER)
            at = item(p, RESULTS) + 4 * (batch * item(p, BATCH_PITCH) + _column_of(p, part))
            ahead = of_part if part + 1 < item(p, PARTS) else 4 * each * item(p, FILTER_PLANE) - part * of_part
            multiply_part(
                p, part, f, f + 1, n, item(side, S_SPECTRA), item(side, S_PLANE), at, item(p, RESULT_PITCH),
                item(p, RESULT_PLANE), ahead,
            )  # fmt: skip


@task
def store_task(index: int, thread: int, p: int) -> None:
    """Results of a staged group: one run of tiles, one batch of channels."""
    if item(p, PHASES) & STORE == 0:
        return
    batch, chunk = index % item(p, BATCHES), index // item(p, BATCHES)
    t0 = item(p, FIRST) + chunk * item(p, OUT_RUN)
    t1 = min(t0 + item(p, OUT_RUN), item(p, END))
    scratch = item(p, SCRATCH) + 4 * thread * item(p, PER_THREAD)
    m = item(p, RESULTS) + 4 * ((t0 - item(p, FIRST)) * item(p, RESULT_PITCH) + batch * item(p, BATCH_PITCH))
    strip = scratch + 4 * item(p, STRIP)
    store_tiles(p, batch, t0, t1, m, item(p, RESULT_PITCH), item(p, RESULT_PLANE), scratch, strip)


# ---- backward weights


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
        m = item(p, RESULTS) + 4 * index * _planes(p) * plane
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
    while j < _planes(p):
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
