"""The loops of the narrow products over the tables of `_dot_simd_plan`: one tile and some panels a task."""

from __future__ import annotations

from numba import njit

from convbench.simd.driver import call, item, task
from convbench.simd.patch import share

#: The table of parameters. Sizes of buffers count words of 32 bits, strides of operands their elements. chunks: tasks
#: into which the panels of a tile are divided. panels_near: panels that a block of pixels is multiplied with before the
#: next block is. a_bytes, strip_bytes, out_bytes, w_bytes: of an element. fill, blank, end, turn, product: kernels.
#: weights, convert_*, place*: the raw filter and how it is read, see `_conversion` in _dot_simd. bias_*: the sums of
#: channels' weights.
NAMES = (
    "a", "packed", "out", "tiles", "scratch", "per_thread", "strip", "sums", "nchw", "groups", "tile_count", "chunks",
    "panels", "panels_near", "width", "channels", "filters", "panel_words", "a_height", "a_width", "height",
    "out_width", "left", "columns", "step_h", "step_w", "origin", "pixel", "chunk", "steps", "a_bytes", "strip_bytes",
    "out_bytes",
    "fill", "blank", "end", "turn", "product", "constants", "weights", "w_bytes", "rows", "per_rows", "convert",
    "convert_repeat", "convert_pixels", "convert_columns", "convert_channels", "convert_row", "convert_to",
    "convert_next", "convert_next_to", "convert_column", "convert_group", "place", "place_table", "place_columns",
    "bias", "bias_product", "bias_segments", "bias_depth", "offsets",
)  # fmt: skip
(
    A, PACKED, OUT, TILES, SCRATCH, PER_THREAD, STRIP, SUMS, NCHW, GROUPS, TILE_COUNT, CHUNKS,
    PANELS, PANELS_NEAR, WIDTH, CHANNELS, FILTERS, PANEL_WORDS, A_HEIGHT, A_WIDTH, HEIGHT, OUT_WIDTH,
    LEFT, COLUMNS, STEP_H, STEP_W, ORIGIN, PIXEL, CHUNK, STEPS, A_BYTES, STRIP_BYTES, OUT_BYTES,
    FILL, BLANK, END, TURN, PRODUCT, CONSTANTS, WEIGHTS, W_BYTES, ROWS, PER_ROWS, CONVERT,
    CONVERT_REPEAT, CONVERT_PIXELS, CONVERT_COLUMNS, CONVERT_CHANNELS, CONVERT_ROW, CONVERT_TO,
    CONVERT_NEXT, CONVERT_NEXT_TO, CONVERT_COLUMN, CONVERT_GROUP, PLACE, PLACE_TABLE, PLACE_COLUMNS,
    BIAS, BIAS_PRODUCT, BIAS_SEGMENTS, BIAS_DEPTH, OFFSETS,
) = range(len(NAMES))  # fmt: skip

#: Integers of one tile in the table of tiles, and of one group of pixels in the table of its kind.
TILE_ITEMS, GROUP_ITEMS = 5, 8


@task
def tile_task(index: int, thread: int, p: int) -> None:
    """Task: image, group, tile, share of the panels, the last changing fastest."""
    chunks, tiles, groups = item(p, CHUNKS), item(p, TILE_COUNT), item(p, GROUPS)
    first, end = share(item(p, PANELS), chunks, index % chunks)
    tile = item(p, TILES) + 8 * TILE_ITEMS * (index // chunks % tiles)
    group = index // (chunks * tiles) % groups
    image = index // (chunks * tiles * groups)
    scratch = item(p, SCRATCH) + 4 * item(p, PER_THREAD) * thread
    a = _input(p, image, group, item(tile, 2), item(tile, 3), scratch)
    for panel in range(first, end, item(p, PANELS_NEAR)):
        last = min(panel + item(p, PANELS_NEAR), end)
        _panels(p, image, group, tile, panel, last, a, scratch + 4 * item(p, STRIP))


@njit(error_model="numpy")
def _input(p: int, image: int, group: int, top: int, rows: int, scratch: int) -> int:
    """Address of the first pixel of a tile's input: in place, or converted into the thread's strip."""
    channels, height, width = item(p, CHANNELS), item(p, A_HEIGHT), item(p, A_WIDTH)
    total = channels * item(p, GROUPS)
    if item(p, STRIP) == 0:
        return item(p, A) + item(p, A_BYTES) * (((image * height + top) * width) * total + group * channels)
    row_bytes = 4 * item(p, COLUMNS) * item(p, PIXEL)
    for i in range(rows):
        h = item(p, ORIGIN) + (top + i) * item(p, STEP_H)
        _row(p, image, group, h, scratch + i * row_bytes)
    return scratch


@njit(error_model="numpy")
def _row(p: int, image: int, group: int, h: int, to: int) -> None:
    """One row of a strip; what lies outside the image is padding."""
    channels, height, width = item(p, CHANNELS), item(p, A_HEIGHT), item(p, A_WIDTH)
    columns, step, left = item(p, COLUMNS), item(p, STEP_W), item(p, LEFT)
    size, pixel, total = item(p, STRIP_BYTES), 4 * item(p, PIXEL), channels * item(p, GROUPS)
    of_pixel = pixel // size
    before = min(columns, (max(-left, 0) + step - 1) // step)
    end = max(before, min(columns, (width - left + step - 1) // step))
    if h < 0 or h >= height:
        before = end = columns
    _pad(p, to, before, pixel)
    if end > before:
        start, into = left + before * step, to + before * pixel
        if item(p, NCHW) == 1:
            source = item(p, A) + item(p, A_BYTES) * (((image * total + group * channels) * height + h) * width + start)
            row_from = height * width
        else:
            source = item(p, A) + item(p, A_BYTES) * (((image * height + h) * width + start) * total + group * channels)
            row_from = step * total
        call(item(p, FILL), (end - before, channels, source, row_from, into, of_pixel, item(p, CONSTANTS)))
    _pad(p, to + end * pixel, columns - end, pixel)


@njit(error_model="numpy")
def _pad(p: int, to: int, pixels: int, pixel: int) -> None:
    """Pixels of padding."""
    if pixels > 0:
        call(item(p, BLANK), (pixels * (pixel // item(p, STRIP_BYTES)), to, item(p, CONSTANTS)))


@njit(error_model="numpy")
def _panels(p: int, image: int, group: int, tile: int, panel: int, end: int, a: int, sums: int) -> None:
    """All pixels of a tile, the columns of some panels (of one in nchw)."""
    width, filters, nchw = item(p, WIDTH), item(p, FILTERS), item(p, NCHW)
    height, out_width = item(p, HEIGHT), item(p, OUT_WIDTH)
    columns, first = min(width, filters - (end - 1) * width), group * filters + panel * width
    total = filters * item(p, GROUPS)
    held = sums + 4 * item(p, SUMS)
    c = held
    if nchw == 0:
        c = item(p, OUT) + item(p, OUT_BYTES) * (((image * height + item(tile, 0)) * out_width) * total + first)
    b = item(p, PACKED) + 4 * (group * item(p, PANELS) + panel) * item(p, PANEL_WORDS)
    kind = item(tile, 4)
    for i in range(item(kind, 0)):
        g = kind + 8 * (1 + GROUP_ITEMS * i)
        call(item(p, PRODUCT), (
            item(g, 0), item(g, 1), a, item(g, 5), b, item(g, 2), item(g, 3), item(p, STEPS), item(p, CHUNK),
            item(g, 4), sums, c, item(g, 6), item(p, END), item(p, CONSTANTS), end - panel, columns, first,
            item(p, PANEL_WORDS), width * item(p, OUT_BYTES), item(g, 7),
        ))  # fmt: skip
    if nchw == 1:
        to = item(p, OUT) + item(p, OUT_BYTES) * ((image * total + first) * height + item(tile, 0)) * out_width
        call(item(p, TURN), (item(tile, 1) * out_width, columns, held, width, to, height * out_width))


@task
def pack_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one group, and the offsets of its channels."""
    panels, width, filters = item(p, PANELS), item(p, WIDTH), item(p, FILTERS)
    panel, group = index % panels, index // panels
    columns, to = min(width, filters - panel * width), item(p, PACKED) + 4 * index * item(p, PANEL_WORDS)
    skipped = group * item(p, CONVERT_GROUP) + panel * width * item(p, CONVERT_COLUMN)
    source = item(p, WEIGHTS) + item(p, W_BYTES) * skipped
    if item(p, CONVERT) != 0:
        rows = item(p, ROWS) + 4 * item(p, PER_ROWS) * thread
        _convert(p, source, columns, rows)
        source = rows
    length = item(p, PLACE_COLUMNS)
    call(item(p, PLACE), (columns, length, source, length, to, item(p, PLACE_TABLE)))
    if item(p, BIAS) != 0:
        offsets = item(p, OFFSETS) + 4 * (group * filters + panel * width)
        call(item(p, BIAS_PRODUCT), (
            1, columns, item(p, BIAS), 0, to, width, item(p, BIAS_SEGMENTS), 1, item(p, BIAS_DEPTH),
            offsets, width, 0,
        ))  # fmt: skip


@njit(error_model="numpy")
def _convert(p: int, source: int, columns: int, rows: int) -> None:
    """The panel's columns of the filter as rows of narrow numbers, each (taps, channels)."""
    repeat, pixels = item(p, CONVERT_REPEAT), item(p, CONVERT_PIXELS) + columns * item(p, CONVERT_COLUMNS)
    if repeat == 0:
        repeat = columns
    for i in range(repeat):
        call(item(p, CONVERT), (
            pixels, item(p, CONVERT_CHANNELS), source + item(p, W_BYTES) * i * item(p, CONVERT_NEXT),
            item(p, CONVERT_ROW), rows + item(p, STRIP_BYTES) * i * item(p, CONVERT_NEXT_TO), item(p, CONVERT_TO),
            item(p, CONSTANTS),
        ))  # fmt: skip
