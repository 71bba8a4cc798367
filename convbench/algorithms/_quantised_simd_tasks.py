"""The loops of the quantised rows: reductions, grids, panels, and blocks of products, forward and backward data."""

from __future__ import annotations

from numba import njit

from convbench.simd.driver import call, item, task
from convbench.simd.patch import share

# ---- reductions over a tensor, a block of floats (or a filter) a task

#: kernel(count, source, constants, to): `block` floats of `total` a task; item: bytes of what it gives.
REDUCE_NAMES = ("source", "total", "block", "kernel", "constants", "to", "item")
R_SOURCE, R_TOTAL, R_BLOCK, R_KERNEL, R_CONSTANTS, R_TO, R_ITEM = range(len(REDUCE_NAMES))


@task
def reduce_task(index: int, thread: int, p: int) -> None:
    """Task: one block."""
    block = item(p, R_BLOCK)
    count = min(block, item(p, R_TOTAL) - index * block)
    source = item(p, R_SOURCE) + 4 * index * block
    call(item(p, R_KERNEL), (count, source, item(p, R_CONSTANTS), item(p, R_TO) + index * item(p, R_ITEM)))


# ---- operand a into the grid

#: element: bytes of an element of a part; pixel: of a pixel. blank: address of that kernel, 0 where padding is 0 and
#: written once; blank_value: the byte that stands for 0. channels, total: of a group and of all.
GRID_NAMES = (
    "source", "grid", "plane", "nchw", "groups", "channels", "height", "width", "grid_height", "grid_width",
    "origin_h", "origin_w", "pixel", "element", "fill", "constants", "blank", "blank_value",
)  # fmt: skip
(
    G_SOURCE, G_GRID, G_PLANE, G_NCHW, G_GROUPS, G_CHANNELS, G_HEIGHT, G_WIDTH, G_GRID_HEIGHT, G_GRID_WIDTH,
    G_ORIGIN_H, G_ORIGIN_W, G_PIXEL, G_ELEMENT, G_FILL, G_CONSTANTS, G_BLANK, G_BLANK_VALUE,
) = range(len(GRID_NAMES))  # fmt: skip


@task
def grid_task(index: int, thread: int, p: int) -> None:
    """Task: one row of the grid of one image, all groups."""
    rows, columns, pixel = item(p, G_GRID_HEIGHT), item(p, G_GRID_WIDTH), item(p, G_PIXEL)
    image, row = index // rows, index % rows
    h, height, width = row - item(p, G_ORIGIN_H), item(p, G_HEIGHT), item(p, G_WIDTH)
    groups, blank, value = item(p, G_GROUPS), item(p, G_BLANK), item(p, G_BLANK_VALUE)
    origin = item(p, G_ORIGIN_W)
    first, end = max(0, -origin), min(width, columns - origin)  # what is read of the operand's row
    for group in range(groups):
        line = item(p, G_GRID) + ((image * groups + group) * rows + row) * columns * pixel
        if h < 0 or h >= height or first >= end:
            if blank != 0:
                call(blank, (columns * pixel, line, value))
            continue
        if blank != 0:
            call(blank, ((origin + first) * pixel, line, value))
            call(blank, ((columns - origin - end) * pixel, line + (origin + end) * pixel, value))
        _grid_line(p, image, group, h, first, end - first, line + (origin + first) * pixel)


@njit(error_model="numpy")
def _grid_line(p: int, image: int, group: int, h: int, first: int, count: int, to: int) -> None:
    """`count` pixels of row h of an image, from pixel `first` on."""
    channels, height, width = item(p, G_CHANNELS), item(p, G_HEIGHT), item(p, G_WIDTH)
    total, area = channels * item(p, G_GROUPS), height * width
    index = (image * total + group * channels) * area + h * width + first
    pixel = item(p, G_PIXEL) // item(p, G_ELEMENT)
    if item(p, G_NCHW) == 1:
        source = item(p, G_SOURCE) + 4 * index
        call(item(p, G_FILL), (
            channels, count, source, area, 1, to, pixel, item(p, G_PLANE), item(p, G_CONSTANTS), index, area, 1,
        ))  # fmt: skip
    else:
        source = item(p, G_SOURCE) + 4 * (((image * height + h) * width + first) * total + group * channels)
        call(item(p, G_FILL), (
            count, channels, source, total, 1, to, pixel, item(p, G_PLANE), item(p, G_CONSTANTS), index, 1, area,
        ))  # fmt: skip


# ---- the filter: quantised column by column, then turned into panels

#: Task i = (outer, inner) fills rows x columns from source + 4 (outer from_outer + inner from_inner) on, `quantize`;
#: its result begins to_outer and to_inner bytes on; index likewise. constant: bytes of the constants between outers.
COLUMN_NAMES = (
    "source", "to", "plane", "fill", "constants", "constant", "inner", "rows", "columns", "last_columns", "row_from",
    "row_to", "from_outer", "from_inner", "to_outer", "to_inner", "index_outer", "index_inner", "index_row",
    "index_column",
)  # fmt: skip
(
    C_SOURCE, C_TO, C_PLANE, C_FILL, C_CONSTANTS, C_CONSTANT, C_INNER, C_ROWS, C_COLUMNS, C_LAST_COLUMNS, C_ROW_FROM,
    C_ROW_TO, C_FROM_OUTER, C_FROM_INNER, C_TO_OUTER, C_TO_INNER, C_INDEX_OUTER, C_INDEX_INNER, C_INDEX_ROW,
    C_INDEX_COLUMN,
) = range(len(COLUMN_NAMES))  # fmt: skip


@task
def column_task(index: int, thread: int, p: int) -> None:
    """Task: one matrix of the filter."""
    inner = item(p, C_INNER)
    i, j = index // inner, index % inner
    columns = item(p, C_LAST_COLUMNS) if j == inner - 1 else item(p, C_COLUMNS)
    call(item(p, C_FILL), (
        item(p, C_ROWS), columns, item(p, C_SOURCE) + 4 * (i * item(p, C_FROM_OUTER) + j * item(p, C_FROM_INNER)),
        item(p, C_ROW_FROM), 1, item(p, C_TO) + i * item(p, C_TO_OUTER) + j * item(p, C_TO_INNER), item(p, C_ROW_TO),
        item(p, C_PLANE), item(p, C_CONSTANTS) + i * item(p, C_CONSTANT),
        i * item(p, C_INDEX_OUTER) + j * item(p, C_INDEX_INNER), item(p, C_INDEX_ROW), item(p, C_INDEX_COLUMN),
    ))  # fmt: skip


#: columns: of a batch (a group's filters; an image's channels of dy). column, tap, batch: bytes between them. entries:
#: see ClassPlan. panel, batch_panels: bytes.
PANEL_NAMES = (
    "source", "plane", "parts", "to", "plane_to", "columns", "panels", "width", "column", "tap", "batch", "panel",
    "entries", "entry_count", "transpose",
)  # fmt: skip
(
    P_SOURCE, P_PLANE, P_PARTS, P_TO, P_PLANE_TO, P_COLUMNS, P_PANELS, P_WIDTH, P_COLUMN, P_TAP, P_BATCH, P_PANEL,
    P_ENTRIES, P_ENTRY_COUNT, P_TRANSPOSE,
) = range(len(PANEL_NAMES))  # fmt: skip


@task
def panel_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one batch."""
    width, panels = item(p, P_WIDTH), item(p, P_PANELS)
    batch, first = index // panels, index % panels * width
    columns = min(width, item(p, P_COLUMNS) - first)
    for part in range(item(p, P_PARTS)):
        source = item(p, P_SOURCE) + part * item(p, P_PLANE) + batch * item(p, P_BATCH) + first * item(p, P_COLUMN)
        to = item(p, P_TO) + part * item(p, P_PLANE_TO) + index * item(p, P_PANEL)
        for i in range(item(p, P_ENTRY_COUNT)):
            entry = item(p, P_ENTRIES) + 24 * i
            call(item(p, P_TRANSPOSE), (
                columns, item(entry, 2), source + item(entry, 0) * item(p, P_TAP), item(p, P_COLUMN) // 4,
                to + item(entry, 1), width,
            ))  # fmt: skip


# ---- blocks of products

#: kernels: address of KERNELS addresses for each (tiles of rows, panels) of a block. tiles: most tiles of rows. sums,
#: held: offsets into a thread's scratch. classes: CLASS integers each. chunks: pairs (first output row, end).
PRODUCT_NAMES = (
    "grid", "plane_a", "packed", "plane_b", "out", "nchw", "groups", "filters", "height", "width", "image", "panel",
    "panels", "panel_width", "block_panels", "block_rows", "tiles", "kernels", "classes", "class_count", "chunks",
    "chunk_count", "shares", "scratch", "per_thread", "held", "results", "constants", "configure", "release",
    "transpose",
)  # fmt: skip
(
    M_GRID, M_PLANE_A, M_PACKED, M_PLANE_B, M_OUT, M_NCHW, M_GROUPS, M_FILTERS, M_HEIGHT, M_WIDTH, M_IMAGE, M_PANEL,
    M_PANELS, M_PANEL_WIDTH, M_BLOCK_PANELS, M_BLOCK_ROWS, M_TILES, M_KERNELS, M_CLASSES, M_CLASS_COUNT, M_CHUNKS,
    M_CHUNK_COUNT, M_SHARES, M_SCRATCH, M_PER_THREAD, M_HELD, M_RESULTS, M_CONSTANTS, M_CONFIGURE, M_RELEASE,
    M_TRANSPOSE,
) = range(len(PRODUCT_NAMES))  # fmt: skip
#: Of a block: the products, `keep`, `finish` of sums and of what is held.
KERNELS = 4
#: Of a class: see _quantised_simd.class_table.
CLASS = 17
(
    K_ROWS, K_COLUMNS, K_START, K_LINE, K_PIXEL, K_WRAP, K_OUT_H, K_STEP_H, K_OUT_W, K_STEP_W, K_SEGMENTS, K_COUNT,
    K_PER_CALL, K_STEPS, K_CHUNK, K_UNIT, K_FLAT,
) = range(CLASS)  # fmt: skip
#: Lines that never end.
ENDLESS = 1 << 40


@task
def product_task(index: int, thread: int, p: int) -> None:
    """Task: image, group, rows of the output, share of the panels, the last changing fastest."""
    shares, chunks, groups = item(p, M_SHARES), item(p, M_CHUNK_COUNT), item(p, M_GROUPS)
    chunk = item(p, M_CHUNKS) + 16 * (index // shares % chunks)
    group, image = index // (shares * chunks) % groups, index // (shares * chunks * groups)
    most = item(p, M_BLOCK_PANELS)
    panels = item(p, M_PANELS)
    first, end = share((panels + most - 1) // most, shares, index % shares)
    for block in range(first, end):
        _panels(p, thread, image, group, item(chunk, 0), item(chunk, 1), block * most, min(most, panels - block * most))


@njit(error_model="numpy")
def _panels(p: int, thread: int, image: int, group: int, top: int, bottom: int, panel: int, panels: int) -> None:
    """Output rows top .. bottom - 1 of some panels."""
    filters, height, width = item(p, M_FILTERS), item(p, M_HEIGHT), item(p, M_WIDTH)
    nchw, panel_width = item(p, M_NCHW), item(p, M_PANEL_WIDTH)
    filter_ = group * filters + panel * panel_width
    columns = min(panels * panel_width, filters - panel * panel_width)
    total, scratch = filters * item(p, M_GROUPS), item(p, M_SCRATCH) + thread * item(p, M_PER_THREAD)
    results, step = scratch + item(p, M_RESULTS), panels * panel_width
    lines = results - 4 * top * width * step
    if nchw == 0:
        step = total
        lines = item(p, M_OUT) + 4 * (image * height * width * total + filter_)
    index = (image * total + filter_) * height * width
    a = item(p, M_GRID) + (image * item(p, M_GROUPS) + group) * item(p, M_IMAGE)
    b = item(p, M_PACKED) + (group * item(p, M_PANELS) + panel) * item(p, M_PANEL)
    for number in range(item(p, M_CLASS_COUNT)):
        k = item(p, M_CLASSES) + 8 * CLASS * number
        _class(p, k, top, bottom, a, b, scratch, panels, columns, filter_, lines, step, index)
    if nchw == 1:
        to = item(p, M_OUT) + 4 * (index + top * width)
        call(item(p, M_TRANSPOSE), ((bottom - top) * width, columns, results, step, to, height * width))


@njit(error_model="numpy")
def _class(
    p: int, k: int, top: int, bottom: int, a: int, b: int, scratch: int, panels: int, columns: int, first: int,
    lines: int, step: int, index: int,
) -> None:  # fmt: skip
    """Rows top .. bottom - 1 of one class. lines: address of output row 0, column 0; step: floats between pixels."""
    step_h, width = item(k, K_STEP_H), item(p, M_WIDTH)
    begin = max(0, (top - item(k, K_OUT_H) + step_h - 1) // step_h)
    rows = min(item(k, K_ROWS), (bottom - item(k, K_OUT_H) + step_h - 1) // step_h) - begin
    count, most = item(k, K_COLUMNS), item(p, M_BLOCK_ROWS)
    if rows <= 0:
        return
    if item(p, M_CONFIGURE) != 0:
        call(item(p, M_CONFIGURE), (item(k, K_UNIT),))
    line, pixel, wrap = item(k, K_LINE), item(k, K_PIXEL), item(k, K_WRAP)
    a += item(k, K_START) + begin * line
    place = (item(k, K_OUT_H) + begin * step_h) * width + item(k, K_OUT_W)
    if item(k, K_FLAT) == 1:  # rows of pixels follow one another, with what lies between them
        places = (rows - 1) * wrap + count
        for f in range(0, places, most):
            at = place + f // wrap * step_h * width
            _block(p, k, min(most, places - f), a + f * pixel, b, scratch, panels, columns, first, f % wrap, count,
                   wrap, lines + 4 * at * step, step, index + at)  # fmt: skip
    else:
        for i in range(rows):
            for q in range(0, count, most):
                at = place + i * step_h * width
                _block(p, k, min(most, count - q), a + i * line + q * pixel, b, scratch, panels, columns, first, q,
                       count, ENDLESS, lines + 4 * at * step, step, index + at)  # fmt: skip
    if item(p, M_CONFIGURE) != 0:
        call(item(p, M_RELEASE), (0,))


@njit(error_model="numpy")
def _block(
    p: int, k: int, rows: int, a: int, b: int, scratch: int, panels: int, columns: int, first: int, q: int, count: int,
    wrap: int, out: int, step: int, index: int,
) -> None:  # fmt: skip
    """One block: products in as many calls as 32 bits ask for, then results."""
    tiles = min(item(p, M_TILES), (rows + 15) // 16)
    kernels = item(p, M_KERNELS) + 8 * KERNELS * ((tiles - 1) * item(p, M_BLOCK_PANELS) + panels - 1)
    segments, per_call, width = item(k, K_COUNT), item(k, K_PER_CALL), item(p, M_WIDTH)
    held = scratch + item(p, M_HELD)
    area = item(p, M_HEIGHT) * width
    for s in range(0, max(segments, 1), per_call):
        call(item(kernels, 0), (
            a, item(k, K_PIXEL), item(p, M_PLANE_A), b, item(p, M_PLANE_B), item(p, M_PANEL),
            item(k, K_SEGMENTS) + 16 * s, min(per_call, segments - s), item(k, K_STEPS), item(k, K_CHUNK), scratch,
        ))  # fmt: skip
        if segments > per_call:
            call(item(kernels, 1), (scratch, held, 1 if s > 0 else 0))
    finish, sums = item(kernels, 2), scratch
    if segments > per_call:
        finish, sums = item(kernels, 3), held
    call(finish, (
        rows, columns, first, q, count, wrap, item(k, K_STEP_H) * width * step, item(k, K_STEP_W) * step, out, sums,
        item(p, M_CONSTANTS), index, item(k, K_STEP_H) * width, item(k, K_STEP_W), area,
    ))  # fmt: skip
