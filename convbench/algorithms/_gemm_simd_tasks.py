"""The loops of direct_simd and pointwise_simd over the tables of `_gemm_simd.py`: one tile and some panels a task.

For each panel and block of channels the groups of pixels follow one another, so that a block of the filter (read from
the second-level cache) serves the whole tile, and the tile's input stays there for all panels.
"""

from __future__ import annotations

from enum import IntEnum, auto

from numba import njit

from convbench.simd.driver import call, item, task
from convbench.simd.patch import gather, share


class P(IntEnum):
    """Places in the table of parameters of `tile_task`."""

    A = 0
    PACKED = auto()
    OUT = auto()
    TILES = auto()
    SCRATCH = auto()
    PER_THREAD = auto()  # floats
    STRIP = auto()  # floats of the strip at its beginning; 0: none
    NCHW = auto()
    PADDED = auto()
    GROUPS = auto()
    TILE_COUNT = auto()
    CHUNKS = auto()  # tasks into which the panels of a tile are divided
    PANELS = auto()
    WIDTH = auto()
    CHANNELS = auto()
    FILTERS = auto()
    TAPS = auto()
    BLOCK = auto()
    A_HEIGHT = auto()
    A_WIDTH = auto()
    HEIGHT = auto()
    OUT_WIDTH = auto()
    LEFT = auto()
    COLUMNS = auto()
    ROWS_OF_BLOCK = auto()
    KERNEL = auto()
    TRANSPOSE = auto()
    AHEAD = auto()  # 1: fetch the next block of the filter while this one is used
    W = auto()  # raw filter, for pack_task and for tasks that pack as they go
    PACK = auto()
    PACK_TABLE = auto()
    PACK_ROWS = auto()
    PACK_COLUMNS = auto()
    PACK_ROW_FROM = auto()
    PACK_STEP = auto()
    PACK_REPEAT = auto()
    PACK_NEXT = auto()
    PACK_GROUP = auto()
    COUNT = auto()


# Numba reads module-level integers as constants; members of an enumeration it would look up.
A, PACKED, OUT, TILES, SCRATCH, PER_THREAD, STRIP = (int(p) for p in (
    P.A, P.PACKED, P.OUT, P.TILES, P.SCRATCH, P.PER_THREAD, P.STRIP))  # fmt: skip
NCHW, PADDED, GROUPS, TILE_COUNT, CHUNKS, PANELS, WIDTH = (int(p) for p in (
    P.NCHW, P.PADDED, P.GROUPS, P.TILE_COUNT, P.CHUNKS, P.PANELS, P.WIDTH))  # fmt: skip
CHANNELS, FILTERS, TAPS, BLOCK, A_HEIGHT, A_WIDTH, HEIGHT = (int(p) for p in (
    P.CHANNELS, P.FILTERS, P.TAPS, P.BLOCK, P.A_HEIGHT, P.A_WIDTH, P.HEIGHT))  # fmt: skip
OUT_WIDTH, LEFT, COLUMNS, ROWS_OF_BLOCK, KERNEL, TRANSPOSE, AHEAD = (int(p) for p in (
    P.OUT_WIDTH, P.LEFT, P.COLUMNS, P.ROWS_OF_BLOCK, P.KERNEL, P.TRANSPOSE, P.AHEAD))  # fmt: skip
W, PACK, PACK_TABLE, PACK_ROWS, PACK_COLUMNS, PACK_ROW_FROM = (int(p) for p in (
    P.W, P.PACK, P.PACK_TABLE, P.PACK_ROWS, P.PACK_COLUMNS, P.PACK_ROW_FROM))  # fmt: skip
PACK_STEP, PACK_REPEAT, PACK_NEXT, PACK_GROUP = (int(p) for p in (
    P.PACK_STEP, P.PACK_REPEAT, P.PACK_NEXT, P.PACK_GROUP))  # fmt: skip

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
    channels, height, width = item(p, CHANNELS), item(p, A_HEIGHT), item(p, A_WIDTH)
    total = channels * item(p, GROUPS)
    if item(p, STRIP) == 0:
        if item(p, NCHW) == 1:
            return item(p, A)
        return item(p, A) + 4 * (((image * height + top) * width) * total + group * channels)
    if item(p, PADDED) == 0:  # whole rows of nchw: pixels lie beside each other
        source = item(p, A) + 4 * ((image * total + group * channels) * height + top) * width
        call(item(p, TRANSPOSE), (channels, rows * width, source, height * width, scratch, channels))
        return scratch
    columns = item(p, COLUMNS)
    gather(
        item(p, A), item(p, NCHW), total, height, width, image, group * channels, channels,
        top, rows, item(p, LEFT), columns, scratch, columns * channels, channels, item(p, TRANSPOSE),
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
    if nchw == 0:
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
    if nchw == 1:
        to = item(p, OUT) + 4 * ((image * total + filter_) * height + item(tile, 0)) * out_width
        call(item(p, TRANSPOSE), (item(tile, 1) * out_width, left, result, width, to, height * out_width))


@task
def pack_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one group."""
    panels, width = item(p, PANELS), item(p, WIDTH)
    panel, group = index % panels, index // panels
    left = min(width, item(p, FILTERS) - panel * width)
    to = item(p, PACKED) + 4 * index * item(p, TAPS) * item(p, CHANNELS) * width
    _pack(p, group, panel, left, to)


@njit(error_model="numpy")
def _pack(p: int, group: int, panel: int, left: int, to: int) -> None:
    """The filter's columns of one panel; the kernel turns them or copies rows, see `_packing` in _gemm_simd_plan."""
    source = item(p, W) + 4 * (group * item(p, PACK_GROUP) + panel * item(p, WIDTH) * item(p, PACK_STEP))
    rows, columns = item(p, PACK_ROWS), item(p, PACK_COLUMNS)
    if rows == 0:
        rows = left
    if columns == 0:
        columns = left
    for i in range(item(p, PACK_REPEAT)):
        table = item(p, PACK_TABLE) + 8 * i * columns
        call(item(p, PACK), (rows, columns, source + 4 * i * item(p, PACK_NEXT), item(p, PACK_ROW_FROM), to, table))
