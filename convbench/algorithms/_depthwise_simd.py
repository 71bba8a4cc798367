"""The loops of depthwise_simd, over addresses: in place for small filters in NHWC, over padded strips otherwise.

Every task reads its parameters in the order of the tuple of names that stands before it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from convbench.simd.driver import call, copy, item, put, task, zero
from convbench.simd.patch import gather, scatter

#: What every task starts with. x: what windows slide over (height x width pixels); y: the other activation (tall x
#: broad); filters: packed [channel vector][tap][lane]; nchw: the layout; zeros: of `channels` floats; scratch: of
#: per_thread floats for each thread. share: channels of one task.
COMMON = (
    "x", "y", "filters", "images", "channels", "height", "width", "tall", "broad", "nchw", "taps", "lanes", "zeros",
    "scratch", "per_thread", "transpose", "move", "share",
)  # fmt: skip
#: Blocks of outputs: see `Pattern`. row_at, column_at: addresses of the offsets. inner_first, inner_end: column blocks
#: that lie inside the image. strip_rows: row blocks in a strip. x_row, y_row: strides of the strips.
BLOCKED = (
    *COMMON, "rows", "columns", "row_step", "column_step", "row_base", "column_base", "row_offsets", "column_offsets",
    "row_at", "column_at", "row_blocks", "column_blocks", "inner_first", "inner_end", "strided", "tabled", "strip_rows",
    "x_row", "y_row", "strip_x", "dw",
)  # fmt: skip
#: One phase: outputs (rows_out x columns_out of them, row_first + i row_step ... in y) of `height_taps` x `width_taps`
#: taps from f_first on. strip_rows, strip_columns: blocks in a strip.
PHASE = (
    "kernel", "rows", "columns", "rows_out", "columns_out", "row_first", "row_step", "column_first", "column_step",
    "row_stride", "column_stride", "row_dilation", "column_dilation", "top", "left", "height_taps", "width_taps",
    "f_first", "f_row", "f_tap", "f_vector", "strip_rows", "strip_columns", "x_row", "y_row", "strip_x",
)  # fmt: skip
SLIDING = (*COMMON, "phases", "strips", "strips_of_columns")
#: dw by sliding: taps are the outputs, dy the filter. y_rows, y_columns: of dy in a strip.
SLIDING_WEIGHTS = (
    *COMMON, "kernel", "rows", "columns", "row_stride", "column_stride", "row_dilation", "column_dilation", "top",
    "left", "filter_height", "filter_width", "y_rows", "y_columns", "x_row", "y_row", "sum_row", "strip_x", "strip_y",
    "dw",
)  # fmt: skip


@njit(error_model="numpy")
def strip_of(
    p: int, x: int, height: int, width: int, image: int, first: int, count: int,
    top: int, rows: int, left: int, columns: int, strip: int, row: int,
) -> None:  # fmt: skip
    """strip[i, j] = the channels first .. first + count - 1 of pixel (top + i, left + j), 0 outside the image."""
    channels, lanes = item(p, 4), item(p, 11)
    if item(p, 9):
        gather(
            x, 1, channels, height, width, image, first, count, top, rows, left, columns, strip, row, lanes, item(p, 15)
        )
        return
    low, high = max(0, -top), min(rows, height - top)
    start, end = max(0, -left), min(columns, width - left)
    if low >= high or start >= end:
        low, high = rows, rows
    for i in range(rows):
        to = strip + 4 * i * row
        if i < low or i >= high:
            zero(to, columns * lanes)
            continue
        if start > 0:
            zero(to, start * lanes)
        if end < columns:
            zero(to + 4 * end * lanes, (columns - end) * lanes)
    if low < high:
        source = x + 4 * (((image * height + top + low) * width + left + start) * channels + first)
        to = strip + 4 * (low * row + start * lanes)
        call(item(p, 16), (high - low, end - start, count, source, width * channels, channels, to, row, lanes))


@task
def pack(index: int, thread: int, p: int) -> None:
    """The filter of one channel vector. Parameters: filter, packed, channels, taps, lanes, transpose."""
    w, to, channels, taps, lanes, transpose = item(p, 0), item(p, 1), item(p, 2), item(p, 3), item(p, 4), item(p, 5)
    first = index * lanes
    count = min(lanes, channels - first)
    call(transpose, (count, taps, w + 4 * first * taps, taps, to + 4 * first * taps, lanes))


@njit(error_model="numpy")
def _row_of_blocks(
    p: int, thread: int, image: int, row: int, first: int, count: int, filters: int, outside: int
) -> None:
    """One row of blocks, in place: those at the edges through a table of addresses."""
    x, y, channels = item(p, 0), item(p, 1), item(p, 4)
    height, width, tall, broad = item(p, 5), item(p, 6), item(p, 7), item(p, 8)
    rows, columns, column_step = item(p, 18), item(p, 19), item(p, 21)
    n_rows, n_columns, row_at, column_at = item(p, 24), item(p, 25), item(p, 26), item(p, 27)
    blocks, inner_first, inner_end = item(p, 29), item(p, 30), item(p, 31)
    zeros, table = item(p, 12), item(p, 13) + 4 * item(p, 14) * thread
    base = item(p, 22) + row * item(p, 20)
    inside = base + item(row_at, 0) >= 0 and base + item(row_at, n_rows - 1) < height and (row + 1) * rows <= tall
    x_image = x + 4 * (image * height * width * channels + first)
    y_image = y + 4 * (image * tall * broad * channels + first)
    block = 0
    while block < blocks:
        left = item(p, 23) + block * column_step
        if inside and inner_first <= block < inner_end:
            call(item(p, 32), (
                x_image + 4 * (base * width + left) * channels, width * channels, channels,
                y_image + 4 * (row * rows * broad + block * columns) * channels, broad * channels, channels,
                filters, count, inner_end - block,
            ))  # fmt: skip
            block = inner_end
            continue
        entry = 0
        for i in range(n_rows):
            h = base + item(row_at, i)
            for j in range(n_columns):
                w = left + item(column_at, j)
                exists = 0 <= h < height and 0 <= w < width
                put(table, entry, x_image + 4 * (h * width + w) * channels if exists else zeros)
                entry += 1
        for i in range(row * rows, row * rows + rows):
            for j in range(block * columns, block * columns + columns):
                exists = i < tall and j < broad
                put(table, entry, y_image + 4 * (i * broad + j) * channels if exists else outside)
                entry += 1
        call(item(p, 33), (table, filters, count))
        block += 1


@task
def in_place(index: int, thread: int, p: int) -> None:
    """A share of the channels of one row of blocks of an image (NHWC)."""
    channels, share, row_blocks = item(p, 4), item(p, 17), item(p, 28)
    shares = -(-channels // share)
    first = index % shares * share
    row = index // shares
    outside = item(p, 13) + 4 * (item(p, 14) * thread + item(p, 37))  # somewhere to write
    count = min(share, channels - first)
    filters = item(p, 2) + 4 * first * item(p, 10)
    _row_of_blocks(p, thread, row // row_blocks, row % row_blocks, first, count, filters, outside)


@njit(error_model="numpy")
def _unpack(p: int, sums: int, first: int, count: int, dw: int) -> None:
    """dw[c, tap] = sums[channel vector][tap][lane] for a range of channels."""
    taps, lanes = item(p, 10), item(p, 11)
    for c in range(first, first + count, lanes):
        n = min(lanes, first + count - c)
        call(item(p, 15), (taps, n, sums + 4 * (c - first) * taps, lanes, dw + 4 * c * taps, taps))


@task
def in_place_weights(index: int, thread: int, p: int) -> None:
    """dw of a share of the channels: block after block, each block's sum added to the total (NHWC)."""
    first = index * item(p, 17)
    count = min(item(p, 17), item(p, 4) - first)
    sums = item(p, 2) + 4 * first * item(p, 10)
    zero(sums, -(-count // item(p, 11)) * item(p, 11) * item(p, 10))
    for image in range(item(p, 3)):
        for row in range(item(p, 28)):
            _row_of_blocks(p, thread, image, row, first, count, sums, item(p, 12))
    _unpack(p, sums, first, count, item(p, 38))


@njit(error_model="numpy")
def _blocks_of_strip(
    p: int, thread: int, image: int, first: int, count: int, row: int, n: int, filters: int, weights: int
) -> Any:
    """Row blocks row .. row + n - 1 of one channel vector, from strip to strip; the strip of y."""
    lanes, rows, columns, blocks = item(p, 11), item(p, 18), item(p, 19), item(p, 29)
    row_step, column_step, row_at, column_at = item(p, 20), item(p, 21), item(p, 26), item(p, 27)
    low, left = item(row_at, 0), item(column_at, 0)
    high, right = item(row_at, item(p, 24) - 1), item(column_at, item(p, 25) - 1)
    x_row, y_row = item(p, 35), item(p, 36)
    x_strip = item(p, 13) + 4 * item(p, 14) * thread
    y_strip = x_strip + 4 * item(p, 37)
    strip_of(
        p, item(p, 0), item(p, 5), item(p, 6), image, first, count, item(p, 22) + row * row_step + low,
        (n - 1) * row_step + high - low + 1, item(p, 23) + left, (blocks - 1) * column_step + right - left + 1,
        x_strip, x_row,
    )  # fmt: skip
    if weights:
        strip_of(
            p, item(p, 1), item(p, 7), item(p, 8), image, first, count, row * rows, n * rows, 0, blocks * columns,
            y_strip, y_row,
        )  # fmt: skip
    for i in range(n):
        source = x_strip + 4 * ((i * row_step - low) * x_row - left * lanes)
        call(item(p, 32), (
            source, x_row, lanes, y_strip + 4 * i * rows * y_row, y_row, lanes, filters, count, blocks,
        ))  # fmt: skip
    return y_strip


@task
def in_strips(index: int, thread: int, p: int) -> None:
    """A strip of output rows of one channel vector of an image (NCHW)."""
    channels, lanes, rows, row_blocks, most = item(p, 4), item(p, 11), item(p, 18), item(p, 28), item(p, 34)
    strips, vectors = -(-row_blocks // most), -(-channels // lanes)
    row = index % strips * most
    first = index // strips % vectors * lanes
    image = index // strips // vectors
    count, n = min(lanes, channels - first), min(most, row_blocks - row)
    y_strip = _blocks_of_strip(p, thread, image, first, count, row, n, item(p, 2) + 4 * first * item(p, 10), 0)
    tall, broad = item(p, 7), item(p, 8)
    scatter(
        item(p, 1), 1, channels, tall, broad, image, first, count, row * rows, min(n * rows, tall - row * rows), 0,
        broad, y_strip, item(p, 36), lanes, item(p, 15),
    )  # fmt: skip


@task
def in_strips_weights(index: int, thread: int, p: int) -> None:
    """dw of one channel vector (NCHW)."""
    lanes, taps, row_blocks, most = item(p, 11), item(p, 10), item(p, 28), item(p, 34)
    first = index * lanes
    count = min(lanes, item(p, 4) - first)
    sums = item(p, 2) + 4 * first * taps
    zero(sums, taps * lanes)
    for image in range(item(p, 3)):
        for row in range(0, row_blocks, most):
            _blocks_of_strip(p, thread, image, first, count, row, min(most, row_blocks - row), sums, 1)
    _unpack(p, sums, first, count, item(p, 38))


@task
def slide(index: int, thread: int, p: int) -> None:
    """A strip of one phase's outputs of one channel vector: filters of any size."""
    channels, lanes, images, nchw, tall, broad = item(p, 4), item(p, 11), item(p, 3), item(p, 9), item(p, 7), item(p, 8)
    vectors, strips, across = -(-channels // lanes), item(p, 19), item(p, 20)
    column_strip = index % across
    index //= across
    strip = index % strips
    first = index // strips % vectors * lanes
    image = index // strips // vectors % images
    count = min(lanes, channels - first)
    f = item(p, 18) + 8 * 26 * (index // strips // vectors // images)  # the phase's parameters
    rows, columns = item(f, 1), item(f, 2)
    i0, j0 = strip * item(f, 21) * rows, column_strip * item(f, 22) * columns
    n_rows, n_columns = min(item(f, 21) * rows, item(f, 3) - i0), min(item(f, 22) * columns, item(f, 4) - j0)
    if n_rows <= 0 or n_columns <= 0:
        return
    row_stride, column_stride, row_dilation, column_dilation = item(f, 9), item(f, 10), item(f, 11), item(f, 12)
    row_blocks, column_blocks = -(-n_rows // rows), -(-n_columns // columns)
    x_strip = item(p, 13) + 4 * item(p, 14) * thread
    x_row = item(f, 23)
    strip_of(
        p, item(p, 0), item(p, 5), item(p, 6), image, first, count, i0 * row_stride - item(f, 13),
        (row_blocks * rows - 1) * row_stride + (item(f, 15) - 1) * row_dilation + 1, j0 * column_stride - item(f, 14),
        (column_blocks * columns - 1) * column_stride + (item(f, 16) - 1) * column_dilation + 1, x_strip, x_row,
    )  # fmt: skip
    h, w = item(f, 5) + i0 * item(f, 6), item(f, 7) + j0 * item(f, 8)
    direct = nchw == 0
    y_row, y_pixel = (item(f, 6) * broad * channels, item(f, 8) * channels) if direct else (item(f, 24), lanes)
    to = item(p, 1) + 4 * (((image * tall + h) * broad + w) * channels + first) if direct else x_strip + 4 * item(f, 25)
    filters = item(f, 17) + 4 * first * item(f, 20)
    for i in range(0, n_rows, rows):
        for j in range(0, n_columns, columns):
            call(item(f, 0), (
                x_strip + 4 * (i * row_stride * x_row + j * column_stride * lanes), row_dilation * x_row,
                column_dilation * lanes, filters, item(f, 18), item(f, 19), item(f, 15), item(f, 16),
                to + 4 * (i * y_row + j * y_pixel), y_row, y_pixel, n_rows - i, n_columns - j, count, 0,
            ))  # fmt: skip
    if direct:
        return
    y = item(p, 1) + 4 * (((image * channels + first) * tall + h) * broad + w)
    _scatter_steps(p, to, y_row, y, count, n_rows, n_columns, item(f, 6), item(f, 8))


@njit(error_model="numpy")
def _scatter_steps(
    p: int, strip: int, row: int, y: int, count: int, rows: int, columns: int, row_step: int, column_step: int
) -> None:
    """A strip into rows of y (NCHW) that are row_step apart, with pixels column_step apart."""
    lanes, plane, broad = item(p, 11), item(p, 7) * item(p, 8), item(p, 8)
    for i in range(rows):
        source, to = strip + 4 * i * row, y + 4 * i * row_step * broad
        if column_step == 1:
            call(item(p, 15), (columns, count, source, lanes, to, plane))
            continue
        for j in range(columns):
            for c in range(count):
                copy(to + 4 * (c * plane + j * column_step), source + 4 * (j * lanes + c), 1)


@task
def slide_weights(index: int, thread: int, p: int) -> None:
    """dw of one channel vector: x slid over by dy, strip after strip, each strip's sum added to the total."""
    channels, lanes, taps, images = item(p, 4), item(p, 11), item(p, 10), item(p, 3)
    tall, broad = item(p, 7), item(p, 8)
    kernel, rows, columns = item(p, 18), item(p, 19), item(p, 20)
    row_stride, column_stride, row_dilation, column_dilation = item(p, 21), item(p, 22), item(p, 23), item(p, 24)
    filter_height, filter_width, x_row, y_row, sum_row = item(p, 27), item(p, 28), item(p, 31), item(p, 32), item(p, 33)
    x_strip = item(p, 13) + 4 * item(p, 14) * thread
    y_strip, sums = x_strip + 4 * item(p, 34), x_strip + 4 * item(p, 35)
    first = index * lanes
    count = min(lanes, channels - first)
    zero(sums, filter_height * sum_row)
    for image in range(images):
        for i0 in range(0, tall, item(p, 29)):
            n_rows = max(rows, min(item(p, 29), tall - i0))  # the kernel wants as many as its block has
            for j0 in range(0, broad, item(p, 30)):
                n_columns = min(item(p, 30), broad - j0)
                strip_of(
                    p, item(p, 0), item(p, 5), item(p, 6), image, first, count, i0 * row_stride - item(p, 25),
                    (n_rows - 1) * row_stride + (-(-filter_height // rows) * rows - 1) * row_dilation + 1,
                    j0 * column_stride - item(p, 26),
                    (n_columns - 1) * column_stride + (-(-filter_width // columns) * columns - 1) * column_dilation + 1,
                    x_strip, x_row,
                )  # fmt: skip
                strip_of(p, item(p, 1), tall, broad, image, first, count, i0, n_rows, j0, n_columns, y_strip, y_row)
                for r in range(0, filter_height, rows):
                    for s in range(0, filter_width, columns):
                        call(kernel, (
                            x_strip + 4 * (r * row_dilation * x_row + s * column_dilation * lanes), row_stride * x_row,
                            column_stride * lanes, y_strip, y_row, lanes, n_rows, n_columns,
                            sums + 4 * (r * sum_row + s * lanes), sum_row, lanes, filter_height - r, filter_width - s,
                            count, 1,
                        ))  # fmt: skip
    for r in range(filter_height):
        to = item(p, 36) + 4 * (first * taps + r * filter_width)
        call(item(p, 15), (filter_width, count, sums + 4 * r * sum_row, lanes, to, taps))
