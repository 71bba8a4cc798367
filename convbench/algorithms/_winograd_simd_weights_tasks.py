"""Backward weights in the Winograd domain: the loops over strips of tiles, pairs of channel blocks and frequencies.

See _winograd_simd_weights.py for the two orders. All addresses in bytes, strides and counts in elements.
"""

from __future__ import annotations

from numba import njit

from convbench.simd.driver import call, item, task
from convbench.simd.patch import gather

#: Phases that can be switched off one by one, for timing: a bit mask.
INPUT, MULTIPLY, OUTPUT = 1, 2, 4

#: The parameter table. First, twice: what the transform of an operand needs, of the columns and of the rows.
(
    ADDRESS, CHANNELS, HEIGHT, WIDTH, TOP, LEFT, TAPS, KERNEL, OF_GROUP, VECTORS_OF_GROUP, TILES, PLANE, JUMP,
    CHUNK, CHUNKS_OF_GROUP,
) = range(15)  # fmt: skip
COLUMNS, ROWS = 0, 16
(
    PHASES, NCHW, STEP, PLANES, LANES, DOWN, ACROSS, TOTAL, RUN, STRIP, STRIP_BYTES, TRANSPOSE, UNITS_OF_COLUMNS,
    OUT, KG, CG, SIZE2, COLLECT, PAIRS_K, PAIRS_C, KB, CB, WIDEST, SHARED, FUSED, BLOCK_TILES,
    SCRATCH, SCRATCH_BYTES, SUMS, ROW_C, PLANE_C, RESULT, WRITE, ALPHA, SWAPPED, SIZE, CONVERT, TRANSPOSE_OUT, OUTER,
) = range(2 * ROWS, 2 * ROWS + 39)  # fmt: skip
#: From OUTER on: kernels for blocks of 1 to 4 vectors, then the most rows of each, then kernels for all rows.
ROWS_OF, OUTER_PANEL = OUTER + 4, OUTER + 8
LENGTH = OUTER + 12


@njit(error_model="numpy")
def _transform_run(
    p: int, operand: int, image: int, i: int, first: int, count: int, channel: int, channels: int, to: int, strip: int
) -> None:
    """Tiles first .. first + count - 1 of row i, so many channels of the operand, to planes at `to`."""
    x, height, width = item(p, operand + ADDRESS), item(p, operand + HEIGHT), item(p, operand + WIDTH)
    total, taps, step = item(p, operand + CHANNELS), item(p, operand + TAPS), item(p, STEP)
    kernel, plane, jump = item(p, operand + KERNEL), item(p, operand + PLANE), item(p, operand + JUMP)
    lanes = item(p, LANES)
    h, w = i * step - item(p, operand + TOP), first * step - item(p, operand + LEFT)
    columns = (count - 1) * step + taps
    whole = item(p, NCHW) == 0 and item(p, SIZE) == 4  # the kernel reads float32
    if whole and h >= 0 and h + taps <= height and w >= 0 and w + columns <= width:
        source = x + 4 * (((image * height + h) * width + w) * total + channel)
        call(kernel, (count, channels, source, step * total, width * total, total, to, plane, jump))
        return
    pixel = (channels + lanes - 1) // lanes * lanes
    row = columns * pixel
    gather(
        x, item(p, NCHW), total, height, width, image, channel, channels, h, taps, w, columns,
        strip, row, pixel, item(p, TRANSPOSE), item(p, SIZE), item(p, CONVERT),
    )  # fmt: skip
    call(kernel, (count, channels, strip, step * pixel, row, pixel, to, plane, jump))


@njit(error_model="numpy")
def _transform(
    p: int, operand: int, start: int, end: int, channel: int, channels: int, to: int, strip: int
) -> None:
    """Tiles start .. end - 1 of all, run by run; tile `start` goes to `to`."""
    across, down, longest, lanes = item(p, ACROSS), item(p, DOWN), item(p, RUN), item(p, LANES)
    left, taps, step = item(p, operand + LEFT), item(p, operand + TAPS), item(p, STEP)
    inside = (left + step - 1) // step  # tiles from here up to `outside` are in the image, as far as columns go
    outside = (item(p, operand + WIDTH) + left - taps) // step + 1
    tile = start
    while tile < end:
        row = tile // across
        j = tile - row * across
        i, count = row % down, min(across - j, end - tile)
        h = i * step - item(p, operand + TOP)
        direct = item(p, NCHW) == 0 and item(p, SIZE) == 4 and h >= 0 and h + taps <= item(p, operand + HEIGHT)
        direct = direct and j < outside
        if direct and j >= inside:
            count = min(count, outside - j)
        else:
            count = min(count, longest, inside - j) if direct else min(count, longest)
        to_run = to + 4 * (tile - start) * lanes
        _transform_run(p, operand, row // down, i, j, count, channel, channels, to_run, strip)
        tile += count


@task
def transform_unit(index: int, thread: int, p: int) -> None:
    """A row of tiles of one chunk of channels, of x or dy, into the planes that all threads share."""
    operand = COLUMNS
    if index >= item(p, UNITS_OF_COLUMNS):
        operand, index = ROWS, index - item(p, UNITS_OF_COLUMNS)
    if item(p, PHASES) & INPUT == 0:
        return
    strip = item(p, STRIP) + item(p, STRIP_BYTES) * thread
    across, chunks = item(p, ACROSS), item(p, operand + CHUNKS_OF_GROUP)
    rows = item(p, TOTAL) // across
    chunk, row = index // rows, index % rows
    group, part = chunk // chunks, chunk % chunks
    size, lanes = item(p, operand + CHUNK), item(p, LANES)
    of_group = item(p, operand + OF_GROUP)
    first = part * size
    block = group * item(p, operand + VECTORS_OF_GROUP) + first // lanes
    to = item(p, operand + TILES) + 4 * (block * item(p, operand + JUMP) + row * across * lanes)
    channels = min(size, of_group - first)
    _transform(p, operand, row * across, (row + 1) * across, group * of_group + first, channels, to, strip)


@njit(error_model="numpy")
def _multiply(
    p: int, a: int, rows: int, b: int, columns: int, sums: int, f: int, depth: int, accumulate: int
) -> None:
    """sums[f] (+)= A[f]^T B[f] for one frequency: all rows, all vectors that hold the columns."""
    lanes, row_c = item(p, LANES), item(p, ROW_C)
    jump_a, jump_b = item(p, ROWS + JUMP), item(p, JUMP)
    a, b, sums = a + 4 * f * item(p, ROWS + PLANE), b + 4 * f * item(p, PLANE), sums + 4 * f * item(p, PLANE_C)
    vectors = (columns + lanes - 1) // lanes
    panels = (vectors + item(p, WIDEST) - 1) // item(p, WIDEST)
    for panel in range(panels):
        v, end = panel * vectors // panels, (panel + 1) * vectors // panels
        kernel = item(p, OUTER_PANEL + end - v - 1)
        call(kernel, (rows, a, jump_a, b + 4 * v * jump_b, jump_b, depth, sums + 4 * v * lanes, row_c, accumulate))


@njit(error_model="numpy")
def _finish(
    p: int, a: int, rows: int, b: int, columns: int, group: int, k: int, c: int, sums: int, result: int
) -> None:
    """All frequencies of a few rows and vectors after each other, and their transform at once."""
    lanes, total = item(p, LANES), item(p, TOTAL)
    jump_a, jump_b, plane_a, plane_b = item(p, ROWS + JUMP), item(p, JUMP), item(p, ROWS + PLANE), item(p, PLANE)
    alpha, plane_c, phases = item(p, ALPHA), item(p, PLANE_C), item(p, PHASES)
    vectors = (columns + lanes - 1) // lanes
    panels = (vectors + item(p, WIDEST) - 1) // item(p, WIDEST)
    for start in range(0, rows, lanes):
        here = min(lanes, rows - start)
        for panel in range(panels):
            v, end = panel * vectors // panels, (panel + 1) * vectors // panels
            kernel, most = item(p, OUTER + end - v - 1), item(p, ROWS_OF + end - v - 1)
            row_c = (end - v) * lanes
            width = min(columns - v * lanes, row_c)
            parts = (here + most - 1) // most
            for part in range(parts):
                m, m_end = part * here // parts, (part + 1) * here // parts
                from_a = a + 4 * (start // lanes * jump_a + m)
                for part_of in range(alpha if phases & MULTIPLY else 0):
                    f = part_of * alpha
                    from_b, to = b + 4 * (v * jump_b + f * plane_b), sums + 4 * f * plane_c
                    call(
                        kernel,
                        (
                            m_end - m, from_a + 4 * f * plane_a, plane_a, from_b, plane_b, jump_b, alpha, total,
                            to, row_c, plane_c, 0,
                        ),
                    )  # fmt: skip
                    for row in range(m + part_of, m_end, alpha):
                        _await_result(p, group, k + start + row, c + v * lanes, width)
                if phases & OUTPUT:
                    _write(p, sums, row_c, group, k + start + m, m_end - m, c + v * lanes, width, result)


@njit(error_model="numpy")
def _write_swapped(p: int, sums: int, group: int, c: int, rows: int, k: int, columns: int, result: int) -> None:
    """As _write, where rows are input channels and columns are output channels."""
    row_c, cg, size, kernel = item(p, ROW_C), item(p, CG), item(p, SIZE2), item(p, TRANSPOSE_OUT)
    call(item(p, COLLECT), (rows, columns, sums, row_c, item(p, PLANE_C), result, size * row_c, row_c))
    to = item(p, OUT) + item(p, SIZE) * (group * item(p, KG) + k) * cg * size
    if item(p, NCHW) == 0:  # (K, R, S, C)
        for tap in range(size):
            source = result + 4 * tap * row_c
            call(kernel, (rows, columns, source, size * row_c, to + item(p, SIZE) * (tap * cg + c), size * cg))
        return
    for m in range(rows):  # (K, C, R, S)
        place = to + item(p, SIZE) * (c + m) * size
        call(kernel, (size, columns, result + 4 * m * size * row_c, row_c, place, cg * size))


@njit(error_model="numpy")
def _write(
    p: int, sums: int, row_c: int, group: int, k: int, rows: int, c: int, columns: int, result: int
) -> None:
    """dw of output channels k .. and input channels c .. of a group, from their sums over all tiles."""
    plane_c, kernel = item(p, PLANE_C), item(p, COLLECT)
    cg, size = item(p, CG), item(p, SIZE2)
    k += group * item(p, KG)
    if item(p, NCHW) == 0:  # (K, R, S, C)
        to = item(p, OUT) + item(p, SIZE) * (k * size * cg + c)
        call(kernel, (rows, columns, sums, row_c, plane_c, to, size * cg, cg))
        return
    transpose = item(p, TRANSPOSE_OUT)
    for m in range(rows):  # (K, C, R, S)
        call(kernel, (1, columns, sums + 4 * m * row_c, row_c, plane_c, result, 0, row_c))
        to = item(p, OUT) + item(p, SIZE) * ((k + m) * cg + c) * size
        call(transpose, (size, columns, result, row_c, to, size))


@njit(error_model="numpy")
def _await_result(p: int, group: int, k: int, c: int, columns: int) -> None:
    """Asks for the lines of dw that one row of products will be written to."""
    cg, size = item(p, CG), item(p, SIZE2)
    k += group * item(p, KG)
    if item(p, NCHW) == 0:
        call(item(p, WRITE), (size, columns, item(p, OUT) + item(p, SIZE) * (k * size * cg + c), cg))
    else:
        call(item(p, WRITE), (1, size * columns, item(p, OUT) + item(p, SIZE) * (k * cg + c) * size, 0))


@task
def pair(index: int, thread: int, p: int) -> None:
    """A block of output and a block of input channels: tiles in chunks that fit the cache, sums there all the time."""
    pairs = item(p, PAIRS_K) * item(p, PAIRS_C)
    group, inner = index // pairs, index % pairs
    k, c = inner % item(p, PAIRS_K) * item(p, KB), inner // item(p, PAIRS_K) * item(p, CB)
    of_rows, of_columns = item(p, ROWS + OF_GROUP), item(p, OF_GROUP)  # channels of a group
    rows, columns = min(item(p, KB), of_rows - k), min(item(p, CB), of_columns - c)
    scratch, strip = item(p, SCRATCH) + item(p, SCRATCH_BYTES) * thread, item(p, STRIP) + item(p, STRIP_BYTES) * thread
    sums, result = scratch + item(p, SUMS), scratch + item(p, RESULT)
    in_columns, in_rows = item(p, TILES), item(p, ROWS + TILES)
    phases, total, lanes = item(p, PHASES), item(p, TOTAL), item(p, LANES)
    if item(p, SHARED):
        in_columns += 4 * (group * item(p, VECTORS_OF_GROUP) + c // lanes) * item(p, JUMP)
        in_rows += 4 * (group * item(p, ROWS + VECTORS_OF_GROUP) + k // lanes) * item(p, ROWS + JUMP)
    else:
        in_columns, in_rows = scratch + in_columns, scratch + in_rows
    if item(p, FUSED):
        _finish(p, in_rows, rows, in_columns, columns, group, k, c, sums, result)
        return
    chunks = (total + item(p, BLOCK_TILES) - 1) // item(p, BLOCK_TILES)
    for chunk in range(chunks):
        start, end = chunk * total // chunks, (chunk + 1) * total // chunks
        if phases & INPUT and item(p, SHARED) == 0:
            _transform(p, COLUMNS, start, end, group * of_columns + c, columns, in_columns, strip)
            _transform(p, ROWS, start, end, group * of_rows + k, rows, in_rows, strip)
        if phases & MULTIPLY:
            for f in range(item(p, PLANES)):
                _multiply(p, in_rows, rows, in_columns, columns, sums, f, end - start, int(chunk > 0))
    if phases & OUTPUT and item(p, SWAPPED):
        _write_swapped(p, sums, group, k, rows, c, columns, result)
    elif phases & OUTPUT:
        _write(p, sums, item(p, ROW_C), group, k, rows, c, columns, result)
