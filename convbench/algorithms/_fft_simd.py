"""The loops of tiled FFT convolution in the simd tier, tile by tile: what all plans share, and plans by blocks.

Plans by columns: `_fft_simd_columns.py`. Filters and backward weights: `_fft_simd_weights.py`.

All functions take int64 alone: addresses, counts, and strides in elements. What stays the same during a run stands
in two kinds of tables: one for the run, and one for each activation that is cut into tiles.
"""

from __future__ import annotations

from numba import njit

from convbench.simd.driver import call, item, task
from convbench.simd.patch import gather, scatter, share

#: A side: an activation that is cut into tiles.
(
    S_ADDRESS, S_NCHW, S_CHANNELS, S_HEIGHT, S_WIDTH, S_TOP, S_LEFT, S_ROWS, S_COLUMNS, S_IN_PLACE, S_KERNEL, S_RUN,
    S_WIDE, S_PITCH, S_PLANE, S_SPECTRA, S_SLICES, S_CHUNK, S_COUNT, S_END_H, S_END_W,
) = range(21)  # fmt: skip

#: A run.
(
    DATA, GRADIENT, OUT, OUT_NCHW, OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUT_IN_PLACE, OUT_RUN, FILTER, FILTER_PLANE,
    PRODUCTS, FREQUENCIES, PANEL, PARTS, PANELS_OF_GROUP, C_IN, C_OUT, DEPTHWISE, TOGETHER, BATCHES, BATCH_PITCH,
    RESULTS, RESULT_PITCH, RESULT_PLANE, STEP_H, STEP_W, GRID_H, GRID_W, TILES, FIRST, END, BLOCKS,
    LANES, GEMM, MOST_ROWS, SEGMENTS, INVERSE, FILTER_KERNEL, TRANSPOSE, MULTIPLY, ZEROS, DUMP, SCRATCH, PER_THREAD,
    STRIP, BLOCK_SPECTRA, W, W_OUT, W_IN, W_TAP, W_GROUP, TAPS_R, TAPS_S, FIRST_R, FIRST_S, KEPT_R, KEPT_S, TURNED,
    COMPLEX_GEMM, COMPLEX_ROWS, TAP_SLICES, ROW_BLOCKS, WEIGHTS_PLANE, ACCUMULATE, LAST, PHASES, TILE_H, TILE_W,
    HALVES, HALF_ROW, HALF_PART, RESULT_HALVES, RESULT_ROW, RESULT_PART, RESULT_WIDE, SPLITS, RUNS, ROW_KERNEL,
    COLUMN_KERNEL, COLUMN_INVERSE, ROW_INVERSE, N_PARAMETERS,
) = range(83)  # fmt: skip

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
    end_h, end_w = item(side, S_END_H), item(side, S_END_W)
    x, kernel, zeros, lanes = item(side, S_ADDRESS), item(side, S_KERNEL), item(p, ZEROS), item(p, LANES)
    t = t0
    while t < t1:
        image, place = t // (grid_h * grid_w), t % (grid_h * grid_w)
        y0 = place // grid_w * item(p, STEP_H) - item(side, S_TOP)
        x0 = place % grid_w * item(p, STEP_W) - item(side, S_LEFT)
        to = v + 4 * (t - t0) * pitch
        if item(side, S_IN_PLACE):
            top, left = max(0, -y0), max(0, -x0)
            bottom, right = max(top, min(rows, end_h - y0)), max(left, min(columns, end_w - x0))
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
                bottom, right = max(0, min(rows, end_h - y0)), max(0, min(columns, end_w - x0 - i * item(p, STEP_W)))
                call(kernel, (n, tile, span * pixel, pixel, 0, bottom, 0, right, zeros, scratch, at, plane))
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
def planes_of(p: int) -> int:
    """Planes of a spectrum."""
    return (3 if item(p, PRODUCTS) == 3 else 2) * item(p, FREQUENCIES) + 4


# ---- data passes


@njit(error_model="numpy")
def column_of(p: int, part: int) -> int:
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
                at = m + 4 * column_of(p, part)
                multiply_part(p, part, 0, item(p, FREQUENCIES) + 4, n, v, plane, at, m_pitch, m_plane, ahead)
        if item(p, PHASES) & STORE:
            store_tiles(p, batch, t0, t1, m, m_pitch, m_plane, scratch, strip)
