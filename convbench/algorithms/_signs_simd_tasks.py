"""The loops of the popcount rows over the tables of `_signs_simd.py`: a task is one tile and panels, or one panel."""

from __future__ import annotations

from numba import njit

from convbench.simd.driver import call, item, task, zero
from convbench.simd.patch import share

#: The table of parameters. per_thread: words of a thread's scratch; strip, means, line, averages: of its first parts.
#: scaled: 1 where results are scaled (alpha, means of the filters; average_factor, the bits of 1 / (C/G R S)).
NAMES = (
    "a", "w", "out", "packed", "base", "alpha", "tiles", "steps", "classes", "scratch", "per_thread", "strip",
    "means", "line", "averages", "nchw", "scaled", "groups", "tile_count", "chunks", "panels", "width", "channels",
    "filters", "height", "a_width", "out_height", "out_width", "words", "left", "columns", "top", "pairs",
    "class_count", "r", "s", "stride_h", "stride_w", "dilation_h", "dilation_w", "average_factor", "product",
    "signs", "filter_signs", "windows", "counts", "borders", "transpose", "filter_step",
)  # fmt: skip
(
    A, W, OUT, PACKED, BASE, ALPHA, TILES, STEPS, CLASSES, SCRATCH, PER_THREAD, STRIP,
    MEANS, LINE, AVERAGES, NCHW, SCALED, GROUPS, TILE_COUNT, CHUNKS, PANELS, WIDTH, CHANNELS,
    FILTERS, HEIGHT, A_WIDTH, OUT_HEIGHT, OUT_WIDTH, WORDS, LEFT, COLUMNS, TOP, PAIRS,
    CLASS_COUNT, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, AVERAGE_FACTOR, PRODUCT,
    SIGNS, FILTER_SIGNS, WINDOWS, COUNTS, BORDERS, TRANSPOSE, FILTER_STEP,
) = range(len(NAMES))  # fmt: skip

#: Integers of a tile: its first row, its rows, its input rows, how many entries (or blocks), their address.
TILE_ITEMS = 5


@task
def tile_task(index: int, thread: int, p: int) -> None:
    """Task: image, group, tile, share of the panels, the last changing fastest."""
    chunks, tiles, groups = item(p, CHUNKS), item(p, TILE_COUNT), item(p, GROUPS)
    first, end = share(item(p, PANELS), chunks, index % chunks)
    tile = item(p, TILES) + 8 * TILE_ITEMS * (index // chunks % tiles)
    group = index // (chunks * tiles) % groups
    image = index // (chunks * tiles * groups)
    strip = item(p, SCRATCH) + 4 * item(p, PER_THREAD) * thread
    means = strip + 4 * item(p, STRIP)
    averages = means + 4 * (item(p, MEANS) + item(p, LINE))
    _pack(p, image, group, tile, strip, means)
    if item(p, SCALED) == 1:
        _average(p, tile, means, averages)
    for panel in range(first, end):
        _multiply(p, image, group, tile, panel, strip, averages)


@njit(error_model="numpy")
def _pack(p: int, image: int, group: int, tile: int, strip: int, means: int) -> None:
    """The signs of a tile's input, zero bits (and means) for padding."""
    channels, height, width = item(p, CHANNELS), item(p, HEIGHT), item(p, A_WIDTH)
    words, columns, left, scaled = item(p, WORDS), item(p, COLUMNS), item(p, LEFT), item(p, SCALED)
    total = channels * item(p, GROUPS)
    start, end = max(left, 0), min(left + columns, width)
    top = item(tile, 0) * item(p, STRIDE_H) - item(p, TOP)
    for i in range(item(tile, 2)):
        h, row, row_means = top + i, strip + 4 * i * columns * words, means + 4 * i * columns
        if h < 0 or h >= height or end <= start:
            _blank(row, row_means, columns, words, scaled)
            continue
        before, after = start - left, left + columns - end
        _blank(row, row_means, before, words, scaled)
        _blank(row + 4 * (columns - after) * words, row_means + 4 * (columns - after), after, words, scaled)
        to, sums = row + 4 * before * words, row_means + 4 * before
        if item(p, NCHW) == 1:
            source = item(p, A) + 4 * (((image * total + group * channels) * height + h) * width + start)
            call(item(p, SIGNS), (end - start, channels, source, height * width, to, words, 1, sums))
        else:
            source = item(p, A) + 4 * (((image * height + h) * width + start) * total + group * channels)
            call(item(p, SIGNS), (end - start, channels, source, total, to, words, 1, sums))


@njit(error_model="numpy")
def _blank(to: int, means: int, pixels: int, words: int, scaled: int) -> None:
    if pixels > 0:
        zero(to, pixels * words)
        if scaled == 1:
            zero(means, pixels)


@njit(error_model="numpy")
def _average(p: int, tile: int, means: int, averages: int) -> None:
    """Means of |x| over the window of each of a tile's pixels."""
    columns, width = item(p, COLUMNS), item(p, OUT_WIDTH)
    line = means + 4 * item(p, MEANS)
    for i in range(item(tile, 1)):
        call(item(p, WINDOWS), (
            item(p, R), item(p, DILATION_H) * columns, item(p, S), item(p, STRIDE_W), item(p, DILATION_W), columns,
            width, means + 4 * i * item(p, STRIDE_H) * columns, line, averages + 4 * i * width,
            item(p, AVERAGE_FACTOR),
        ))  # fmt: skip


@njit(error_model="numpy")
def _multiply(p: int, image: int, group: int, tile: int, panel: int, strip: int, averages: int) -> None:
    """A tile's pixels, the filters of one panel."""
    width, filters, height = item(p, WIDTH), item(p, FILTERS), item(p, OUT_HEIGHT)
    left = min(width, filters - panel * width)
    total, filter_ = filters * item(p, GROUPS), group * filters + panel * width
    column = (group * item(p, PANELS) + panel) * width
    b = item(p, PACKED) + 4 * column * item(p, R) * item(p, S) * item(p, WORDS)
    held = averages + 4 * item(p, AVERAGES)
    row = item(tile, 0) * item(p, OUT_WIDTH)
    out = held
    if item(p, NCHW) == 0:
        out = item(p, OUT) + 4 * ((image * height * item(p, OUT_WIDTH) + row) * total + filter_)
    call(item(p, PRODUCT), (
        item(tile, 3), left, item(tile, 4), strip, b, item(p, STEPS), item(p, PAIRS), out,
        item(p, BASE) + 4 * column, item(p, ALPHA) + 4 * column, averages,
    ))  # fmt: skip
    if item(p, NCHW) == 1:
        area = height * item(p, OUT_WIDTH)
        to = item(p, OUT) + 4 * ((image * total + filter_) * area + row)
        call(item(p, TRANSPOSE), (item(tile, 1) * item(p, OUT_WIDTH), left, held, width, to, area))


@task
def filter_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one group: its bits, the means of its filters, the numbers that its sums start from."""
    width, words, channels = item(p, WIDTH), item(p, WORDS), item(p, CHANNELS)
    taps = item(p, R) * item(p, S)
    panel, group = index % item(p, PANELS), index // item(p, PANELS)
    to = item(p, PACKED) + 4 * index * taps * words * width
    counts = item(p, SCRATCH) + 4 * item(p, PER_THREAD) * thread
    sums = counts + 4 * taps * width
    for k in range(min(width, item(p, FILTERS) - panel * width)):
        source = item(p, W) + 4 * (group * item(p, FILTERS) + panel * width + k) * taps * channels
        call(item(p, FILTER_SIGNS), (
            taps, channels, source, item(p, FILTER_STEP), to + 4 * k, words * width, width, sums
        ))  # fmt: skip
        if item(p, SCALED) == 1:
            mean = item(p, ALPHA) + 4 * (index * width + k)
            call(item(p, WINDOWS), (1, 0, taps, 1, 1, taps, 1, sums, sums + 4 * taps, mean, item(p, AVERAGE_FACTOR)))
    call(item(p, COUNTS), (taps, words // 2, to, counts))
    base, row = item(p, BASE) + 4 * index * width, item(p, GROUPS) * item(p, PANELS) * width
    call(item(p, BORDERS), (item(p, CLASS_COUNT), item(p, CLASSES), counts, base, row))
