"""The loops of direct_simd and pointwise_simd over the tables of `_gemm_simd.py`: one tile and some panels a task.

For each panel and block of channels the groups of pixels follow one another, so that a block of the filter (read from
the second-level cache) serves the whole tile, and the tile's input stays there for all panels.
"""

from __future__ import annotations

from numba import njit

from convbench.simd.driver import call, item, task
from convbench.simd.patch import gather, share

#: The table of parameters. per_thread, strip: floats of a thread's scratch, and of the strip of input at its beginning
#: (0: none). chunks: tasks into which the panels of a tile are divided. ahead: 1 to fetch the next block of the filter
#: while this one is used. w and pack_*: the raw filter and how it is read, see `_packing` in _gemm_simd_run.
#: held: results are gathered in the thread's scratch. size: bytes of an element of a, w and out; where it is not 4,
#: `convert` and `transpose` make float32 of them, `convert_out` and `transpose_out` the reverse. stored: elements of a
#: group in a pixel of a; two of them may make one of `channels`, and then `pair` makes such words of a panel that was
#: packed in `pairs`, of which each thread has one.
NAMES = (
    "a", "packed", "out", "tiles", "scratch", "per_thread", "strip", "nchw", "padded", "groups", "tile_count", "chunks",
    "panels", "width", "channels", "filters", "taps", "block", "a_height", "a_width", "height", "out_width", "left",
    "columns", "rows_of_block", "kernel", "transpose", "ahead", "w", "pack", "pack_table", "pack_rows", "pack_columns",
    "pack_row_from", "pack_step", "pack_repeat", "pack_next", "pack_group", "size", "held", "convert", "convert_out",
    "transpose_out", "stored", "pair", "pairs",
)  # fmt: skip
(
    A, PACKED, OUT, TILES, SCRATCH, PER_THREAD, STRIP, NCHW, PADDED, GROUPS, TILE_COUNT, CHUNKS,
    PANELS, WIDTH, CHANNELS, FILTERS, TAPS, BLOCK, A_HEIGHT, A_WIDTH, HEIGHT, OUT_WIDTH, LEFT,
    COLUMNS, ROWS_OF_BLOCK, KERNEL, TRANSPOSE, AHEAD, W, PACK, PACK_TABLE, PACK_ROWS, PACK_COLUMNS,
    PACK_ROW_FROM, PACK_STEP, PACK_REPEAT, PACK_NEXT, PACK_GROUP, SIZE, HELD, CONVERT, CONVERT_OUT,
    TRANSPOSE_OUT, STORED, PAIR, PAIRS,
) = range(len(NAMES))  # fmt: skip

#: Integers of one tile in the table of tiles, and of one group of pixels in the table of its kind.
TILE_ITEMS, GROUP_ITEMS = 5, 7


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
    for panel in range(first, end):
        _panel(p, image, group, tile, panel, a, scratch + 4 * item(p, STRIP))


@njit(error_model="numpy")
def _input(p: int, image: int, group: int, top: int, rows: int, scratch: int) -> int:
    """Address of the first pixel of a tile's input: in place, or gathered into the thread's strip."""
    channels, stored, height, width = item(p, CHANNELS), item(p, STORED), item(p, A_HEIGHT), item(p, A_WIDTH)
    total, size = stored * item(p, GROUPS), item(p, SIZE)
    if item(p, STRIP) == 0:
        if item(p, NCHW) == 1:
            return item(p, A)
        return item(p, A) + 4 * (((image * height + top) * width) * total + group * stored)
    if item(p, PADDED) == 0:  # whole rows: pixels lie beside each other
        if item(p, NCHW) == 1:
            source = item(p, A) + size * ((image * total + group * stored) * height + top) * width
            call(item(p, TRANSPOSE), (stored, rows * width, source, height * width, scratch, channels))
        else:
            source = item(p, A) + size * (((image * height + top) * width) * total + group * stored)
            call(item(p, CONVERT), (rows * width, stored, source, total, scratch, channels))
        return scratch
    columns = item(p, COLUMNS)
    gather(
        item(p, A), item(p, NCHW), total, height, width, image, group * stored, stored,
        top, rows, item(p, LEFT), columns, scratch, columns * channels, channels, item(p, TRANSPOSE),
        size, item(p, CONVERT),
    )  # fmt: skip
    return scratch


@njit(error_model="numpy")
def _panel(p: int, image: int, group: int, tile: int, panel: int, a: int, result: int) -> None:
    """All pixels of a tile, the columns of one panel."""
    width, filters, channels, taps = item(p, WIDTH), item(p, FILTERS), item(p, CHANNELS), item(p, TAPS)
    nchw, block, kernel, most = item(p, NCHW), item(p, BLOCK), item(p, KERNEL), item(p, ROWS_OF_BLOCK)
    height, out_width = item(p, HEIGHT), item(p, OUT_WIDTH)
    left = min(width, filters - panel * width)
    filter_ = group * filters + panel * width
    total = filters * item(p, GROUPS)
    c = result
    if item(p, HELD) == 0:
        c = item(p, OUT) + 4 * (((image * height + item(tile, 0)) * out_width) * total + filter_)
    b = item(p, PACKED) + 4 * (group * item(p, PANELS) + panel) * taps * channels * width
    kind = item(tile, 4)
    for first in range(0, channels, block):
        here = min(block, channels - first)
        last = 2 if first + here == channels else 0
        b_bytes = 4 * taps * here * width
        ahead, ahead_bytes = b + b_bytes, b_bytes * item(p, AHEAD)
        for i in range(item(kind, 0)):
            g = kind + 8 * (1 + GROUP_ITEMS * i)
            rows, count, segments, depth = item(g, 1), item(g, 2), item(g, 3 + last), item(g, 4 + last)
            accumulate = 1 if first > 0 else 0
            call(kernel, (
                rows, left, item(g, 0), a + 4 * first, b, segments, count, depth, c, accumulate, ahead, ahead_bytes,
            ))  # fmt: skip
            fetched = 64 * ((rows + most - 1) // most) * count * (depth // 2)
            ahead, ahead_bytes = ahead + fetched, max(0, ahead_bytes - fetched)
        b += b_bytes
    size, pixels = item(p, SIZE), item(tile, 1) * out_width
    if nchw == 1:
        to = item(p, OUT) + size * ((image * total + filter_) * height + item(tile, 0)) * out_width
        call(item(p, TRANSPOSE_OUT), (pixels, left, result, width, to, height * out_width))
    elif item(p, HELD) == 1:
        to = item(p, OUT) + size * (((image * height + item(tile, 0)) * out_width) * total + filter_)
        call(item(p, CONVERT_OUT), (pixels, left, result, width, to, total))


@task
def pack_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one group."""
    panels, width = item(p, PANELS), item(p, WIDTH)
    panel, group = index % panels, index // panels
    left = min(width, item(p, FILTERS) - panel * width)
    rows = item(p, TAPS) * item(p, CHANNELS)
    to = item(p, PACKED) + 4 * index * rows * width
    if item(p, PAIR) == 0:
        _pack(p, group, panel, left, to)
    else:
        pairs = item(p, PAIRS) + 8 * thread * rows * width
        _pack(p, group, panel, left, pairs)
        call(item(p, PAIR), (rows, width, pairs, to))


@njit(error_model="numpy")
def _pack(p: int, group: int, panel: int, left: int, to: int) -> None:
    """The filter's columns of one panel; the kernel turns them or copies rows, see `_packing` in _gemm_simd_run."""
    size = item(p, SIZE)
    source = item(p, W) + size * (group * item(p, PACK_GROUP) + panel * item(p, WIDTH) * item(p, PACK_STEP))
    rows, columns = item(p, PACK_ROWS), item(p, PACK_COLUMNS)
    if rows == 0:
        rows = left
    if columns == 0:
        columns = left
    for i in range(item(p, PACK_REPEAT)):
        table = item(p, PACK_TABLE) + 8 * i * columns
        call(item(p, PACK), (rows, columns, source + size * i * item(p, PACK_NEXT), item(p, PACK_ROW_FROM), to, table))
