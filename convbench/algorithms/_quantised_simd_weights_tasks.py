"""The loops of the quantised rows' gradient of the weights."""

from __future__ import annotations

from numba import njit

from convbench.algorithms._quantised_simd_tasks import ENDLESS
from convbench.simd.driver import call, item, task

#: Lines of an activation into planes: place (h, w) of channel c goes to phase (u, v), row i and column j of it, where
#: h + origin_h = i stride_h + u (w likewise); phases: address of the number of each u, then of each v, -1: not read.
#: rows, columns: of a phase. channel: elements between channels of the result; image: bytes between images.
LINE_NAMES = (
    "source", "to", "plane", "nchw", "channels", "height", "width", "stride_h", "stride_w", "origin_h", "origin_w",
    "phases", "phases_w", "rows", "columns", "channel", "image", "element", "fill", "constants",
)  # fmt: skip
(
    L_SOURCE, L_TO, L_PLANE, L_NCHW, L_CHANNELS, L_HEIGHT, L_WIDTH, L_STRIDE_H, L_STRIDE_W, L_ORIGIN_H, L_ORIGIN_W,
    L_PHASES, L_PHASES_W, L_ROWS, L_COLUMNS, L_CHANNEL, L_IMAGE, L_ELEMENT, L_FILL, L_CONSTANTS,
) = range(len(LINE_NAMES))  # fmt: skip


@task
def line_task(index: int, thread: int, p: int) -> None:
    """Task: one line of one image, all channels."""
    height, stride, columns = item(p, L_HEIGHT), item(p, L_STRIDE_W), item(p, L_COLUMNS)
    image, h = index // height, index % height
    place = h + item(p, L_ORIGIN_H)
    row, u = place // item(p, L_STRIDE_H), item(item(p, L_PHASES), place % item(p, L_STRIDE_H))
    if u < 0 or row >= item(p, L_ROWS):
        return
    for v in range(stride):
        number = item(item(p, L_PHASES) + 8 * item(p, L_STRIDE_H), v)
        first = (v - item(p, L_ORIGIN_W)) % stride  # the first w of the phase
        column = (first + item(p, L_ORIGIN_W)) // stride
        count = min((item(p, L_WIDTH) - first + stride - 1) // stride, columns - column)
        if number < 0 or count <= 0:
            continue
        at = ((u * item(p, L_PHASES_W) + number) * item(p, L_ROWS) + row) * columns + column
        _line(p, image, h, first, count, item(p, L_TO) + image * item(p, L_IMAGE) + at * item(p, L_ELEMENT))


@njit(error_model="numpy")
def _line(p: int, image: int, h: int, first: int, count: int, to: int) -> None:
    """`count` places of line h from `first` on, in steps of the stride."""
    channels, height, width, stride = item(p, L_CHANNELS), item(p, L_HEIGHT), item(p, L_WIDTH), item(p, L_STRIDE_W)
    area, index = height * width, (image * channels * height + h) * width + first
    if item(p, L_NCHW) == 1:
        call(item(p, L_FILL), (
            channels, count, item(p, L_SOURCE) + 4 * index, area, stride, to, item(p, L_CHANNEL), item(p, L_PLANE),
            item(p, L_CONSTANTS), index, area, stride,
        ))  # fmt: skip
    else:
        source = item(p, L_SOURCE) + 4 * ((image * height + h) * width + first) * channels
        call(item(p, L_FILL), (
            count, channels, source, stride * channels, 1, to, item(p, L_CHANNEL), item(p, L_PLANE),
            item(p, L_CONSTANTS), index, stride, area,
        ))  # fmt: skip


#: kernels: address of products, keep and finish. taps: address of each tap's bytes into a channel's planes. channel:
#: bytes between channels of the grid. channels, filters: of a group. held, results: offsets into a thread's scratch.
SUM_NAMES = (
    "grid", "plane_a", "channel", "packed", "plane_b", "panel", "panels", "width", "block_rows", "out", "nchw",
    "channels", "filters", "taps", "tap_count", "segments", "segment_count", "per_call", "steps", "chunk", "unit",
    "configure", "release", "product", "keep", "finish", "scratch", "per_thread", "held", "results", "constants",
    "transpose",
)  # fmt: skip
(
    S_GRID, S_PLANE_A, S_CHANNEL, S_PACKED, S_PLANE_B, S_PANEL, S_PANELS, S_WIDTH, S_BLOCK_ROWS, S_OUT, S_NCHW,
    S_CHANNELS, S_FILTERS, S_TAPS, S_TAP_COUNT, S_SEGMENTS, S_SEGMENT_COUNT, S_PER_CALL, S_STEPS, S_CHUNK, S_UNIT,
    S_CONFIGURE, S_RELEASE, S_PRODUCT, S_KEEP, S_FINISH, S_SCRATCH, S_PER_THREAD, S_HELD, S_RESULTS, S_CONSTANTS,
    S_TRANSPOSE,
) = range(len(SUM_NAMES))  # fmt: skip


@task
def sum_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of filters and some channels, all taps."""
    most, channels, panels = item(p, S_BLOCK_ROWS), item(p, S_CHANNELS), item(p, S_PANELS)
    blocks = (channels + most - 1) // most
    channel, panel, group = index % blocks * most, index // blocks % panels, index // (blocks * panels)
    scratch = item(p, S_SCRATCH) + thread * item(p, S_PER_THREAD)
    a = item(p, S_GRID) + (group * channels + channel) * item(p, S_CHANNEL)
    b = item(p, S_PACKED) + (group * panels + panel) * item(p, S_PANEL)
    size = most * item(p, S_WIDTH)
    if item(p, S_CONFIGURE) != 0:
        call(item(p, S_CONFIGURE), (item(p, S_UNIT),))
    for s in range(0, item(p, S_SEGMENT_COUNT), item(p, S_PER_CALL)):  # some positions, near by for all taps
        count = min(item(p, S_PER_CALL), item(p, S_SEGMENT_COUNT) - s)
        for tap in range(item(p, S_TAP_COUNT)):
            call(item(p, S_PRODUCT), (
                a + item(item(p, S_TAPS), tap), item(p, S_CHANNEL), item(p, S_PLANE_A), b, item(p, S_PLANE_B), 0,
                item(p, S_SEGMENTS) + 16 * s, count, item(p, S_STEPS), item(p, S_CHUNK), scratch,
            ))  # fmt: skip
            call(item(p, S_KEEP), (scratch, scratch + item(p, S_HELD) + 8 * tap * size, 1 if s > 0 else 0))
    if item(p, S_CONFIGURE) != 0:
        call(item(p, S_RELEASE), (0,))
    _write(p, scratch, group, panel, channel, min(most, channels - channel), size)


@njit(error_model="numpy")
def _write(p: int, scratch: int, group: int, panel: int, channel: int, rows: int, size: int) -> None:
    """Results of a task: rounded into [channel][tap] (nchw) or tap by tap, then turned: filters are rows of dw."""
    channels, filters, taps, width = item(p, S_CHANNELS), item(p, S_FILTERS), item(p, S_TAP_COUNT), item(p, S_WIDTH)
    columns = min(width, filters - panel * width)
    first = (group * filters + panel * width) * channels * taps  # element of dw
    nchw, results = item(p, S_NCHW), scratch + item(p, S_RESULTS)
    for tap in range(taps):
        out, pixel = results, width
        if nchw == 1:
            out, pixel = results + 4 * tap * width, taps * width
        call(item(p, S_FINISH), (
            rows, columns, 0, 0, ENDLESS, ENDLESS, 0, pixel, out, scratch + item(p, S_HELD) + 8 * tap * size,
            item(p, S_CONSTANTS), first + channel * taps + tap, 0, taps, channels * taps,
        ))  # fmt: skip
        if nchw == 0:
            to = item(p, S_OUT) + 4 * (first + tap * channels + channel)
            call(item(p, S_TRANSPOSE), (rows, columns, results, width, to, channels * taps))
    if nchw == 1:
        to = item(p, S_OUT) + 4 * (first + channel * taps)
        call(item(p, S_TRANSPOSE), (rows * taps, columns, results, width, to, channels * taps))
