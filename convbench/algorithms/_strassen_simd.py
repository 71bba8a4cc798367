"""The loops of strassen_simd: one block of an image's pixels, and some panels of the filter, a task.

A task writes down where the rows of its block lie (the table of `kernels/strassen.py`), and then, for each block of
channels, forms the sums of the pixels and goes through the panels. What is not in place (nchw, an odd number of
channels) is copied into the thread's scratch first; nchw results are turned at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from convbench.algorithms._simd import address_of
from convbench.algorithms._strassen_simd_plan import Plan, plan
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run
from convbench.simd.driver import Runner, call, copy, item, put, task, zero
from convbench.simd.kernels import pack
from convbench.simd.kernels.strassen import (
    BOTTOM,
    C_BOTTOM,
    C_TOP,
    ENTRY,
    PRODUCTS,
    RIGHT,
    SUMS,
    TOP,
    left_sums,
    right_sums,
    tiles,
)  # fmt: skip
from convbench.simd.kernels.transpose import transpose
from convbench.simd.patch import share
from convbench.simd.target import Target

#: The table of parameters. *_at: parts of a thread's scratch, in bytes. near: 1 to fetch the next pixels ahead, not
#: the next panel. fly: 1 to pack each panel (into the scratch) just before it is used. w, pack, pack_table, backward:
#: the raw filter and how it is read.
NAMES = (
    "a", "packed", "out", "w", "scratch", "per_thread", "tile_at", "spare_at", "sums_at", "strip_at", "result_at",
    "panel_at", "fly",
    "groups", "blocks", "chunks", "rows", "columns", "pixels", "merged", "turned", "strip",
    "a_top", "a_left", "a_down", "a_right", "a_height", "a_width",
    "out_top", "out_left", "out_down", "out_right", "out_height", "out_width", "strip_step",
    "channels", "depth", "half", "filters", "left", "panels", "width", "sum_row", "strip_row",
    "result_row", "unit", "units", "near",
    "tiles", "left_sums", "right_sums", "transpose", "pack", "pack_table", "backward", "out_floats", "threads",
)  # fmt: skip
(
    A, PACKED, OUT, W, SCRATCH, PER_THREAD, TILE_AT, SPARE_AT, SUMS_AT, STRIP_AT, RESULT_AT,
    PANEL_AT, FLY,
    GROUPS, BLOCKS, CHUNKS, ROWS, COLUMNS, PIXELS, MERGED, TURNED, STRIP,
    A_TOP, A_LEFT, A_DOWN, A_RIGHT, A_HEIGHT, A_WIDTH,
    OUT_TOP, OUT_LEFT, OUT_DOWN, OUT_RIGHT, OUT_HEIGHT, OUT_WIDTH, STRIP_STEP,
    CHANNELS, DEPTH, HALF, FILTERS, LEFT, PANELS, WIDTH, SUM_ROW, STRIP_ROW,
    RESULT_ROW, UNIT, UNITS, NEAR,
    TILES, LEFT_SUMS, RIGHT_SUMS, TRANSPOSE, PACK, PACK_TABLE, BACKWARD, OUT_FLOATS, THREADS,
) = range(len(NAMES))  # fmt: skip


@task
def block_task(index: int, thread: int, p: int) -> None:
    """Task: image, group, block of pixels, share of the panels, the last changing fastest."""
    chunks, blocks, groups = item(p, CHUNKS), item(p, BLOCKS), item(p, GROUPS)
    first_panel, end_panel = share(item(p, PANELS), chunks, index % chunks)
    pixels = item(p, PIXELS)
    first, last = share(item(p, UNITS), blocks, index // chunks % blocks)
    begin, end = 2 * item(p, UNIT) * first, min(2 * item(p, UNIT) * last, pixels)
    group = index // (chunks * blocks) % groups
    image = index // (chunks * blocks * groups)
    scratch = item(p, SCRATCH) + item(p, PER_THREAD) * thread
    if item(p, TURNED) == 1 and item(p, OUT_RIGHT) > 1:  # between the pixels of a run there are zeros
        zero(scratch + item(p, RESULT_AT), (end - begin) * item(p, OUT_RIGHT) * item(p, RESULT_ROW))
    _table(p, image, group, begin, end, scratch)
    _products(p, image, group, begin, end, first_panel, end_panel, scratch)


@njit(error_model="numpy")
def _run(p: int, at: int, end: int) -> int:
    """How many of the pixels from `at` on lie evenly spaced in both images."""
    if item(p, MERGED) == 1:
        return end - at
    columns = item(p, COLUMNS)
    return min(end - at, columns - at % columns)


@njit(error_model="numpy")
def _table(p: int, image: int, group: int, begin: int, end: int, scratch: int) -> None:
    """Writes down the rows of the block, run by run, and copies the runs that are not multiplied where they lie."""
    columns, top = item(p, COLUMNS), (end - begin + 1) // 2
    channels, filters = item(p, CHANNELS), item(p, FILTERS)
    all_channels, all_filters = channels * item(p, GROUPS), filters * item(p, GROUPS)
    strip, result, at = scratch + item(p, STRIP_AT), scratch + item(p, RESULT_AT), begin
    while at < end:
        run, i, j = _run(p, at, end), at // columns, at % columns
        h, w = item(p, A_TOP) + i * item(p, A_DOWN), item(p, A_LEFT) + j * item(p, A_RIGHT)
        a = item(p, A) + 4 * ((image * item(p, A_HEIGHT) + h) * item(p, A_WIDTH) + w) * all_channels
        a, a_step = a + 4 * group * channels, 4 * item(p, A_RIGHT) * all_channels
        if item(p, STRIP) == 1:
            _copy_run(p, image, group, h, w, a, run, strip)
            a, a_step = strip, 4 * item(p, STRIP_STEP) * item(p, STRIP_ROW)
            strip += run * a_step
        h, w = item(p, OUT_TOP) + i * item(p, OUT_DOWN), item(p, OUT_LEFT) + j * item(p, OUT_RIGHT)
        c = item(p, OUT) + 4 * ((image * item(p, OUT_HEIGHT) + h) * item(p, OUT_WIDTH) + w) * all_filters
        c, c_step = c + 4 * group * filters, 4 * item(p, OUT_RIGHT) * all_filters
        if item(p, TURNED) == 1:
            c, c_step = result, 4 * item(p, OUT_RIGHT) * item(p, RESULT_ROW)
            result += run * c_step
        _entries(scratch, at - begin, run, top, a, a_step, c, c_step)
        at += run
    sums = scratch + item(p, SUMS_AT)
    for m in range(top):
        put(scratch, ENTRY * m + SUMS, sums + 4 * m * item(p, SUM_ROW))
    if (end - begin) % 2 == 1:  # the last row of the upper half has no partner: any pixel will do
        put(scratch, ENTRY * (top - 1) + BOTTOM, item(scratch, ENTRY * (top - 1) + TOP))
        put(scratch, ENTRY * (top - 1) + C_BOTTOM, scratch + item(p, SPARE_AT))


@njit(error_model="numpy")
def _entries(table: int, first: int, run: int, top: int, a: int, a_step: int, c: int, c_step: int) -> None:
    """Rows first .. first + run - 1 of a block: those from `top` on are the lower half."""
    for n in range(run):
        m = first + n
        if m < top:
            put(table, ENTRY * m + TOP, a + n * a_step)
            put(table, ENTRY * m + C_TOP, c + n * c_step)
        else:
            put(table, ENTRY * (m - top) + BOTTOM, a + n * a_step)
            put(table, ENTRY * (m - top) + C_BOTTOM, c + n * c_step)


@njit(error_model="numpy")
def _copy_run(p: int, image: int, group: int, h: int, w: int, a: int, run: int, strip: int) -> None:
    """Pixels of a run into the strip, their number of channels made even; what nchw has between them comes along."""
    channels, row = item(p, CHANNELS), item(p, STRIP_ROW)
    pixels = run
    if item(p, TURNED) == 1:
        pixels = (run - 1) * item(p, A_RIGHT) + 1
        plane = item(p, A_HEIGHT) * item(p, A_WIDTH)
        source = ((image * item(p, GROUPS) + group) * channels) * plane + h * item(p, A_WIDTH) + w
        call(item(p, TRANSPOSE), (channels, pixels, item(p, A) + 4 * source, plane, strip, row))
    else:
        for n in range(run):
            copy(strip + 4 * n * row, a + 4 * n * item(p, A_RIGHT) * channels * item(p, GROUPS), channels)
    if item(p, DEPTH) > channels:
        for n in range(pixels):
            zero(strip + 4 * (n * row + channels), 1)


@njit(error_model="numpy")
def _products(
    p: int, image: int, group: int, begin: int, end: int, first_panel: int, end_panel: int, scratch: int
) -> None:
    """The block's rows times the panels, one block of channels after the other."""
    depth, most, width, left = item(p, DEPTH), item(p, HALF), item(p, WIDTH), item(p, LEFT)
    panels, filters, rows = item(p, PANELS), item(p, FILTERS), (end - begin + 1) // 2
    near, fly, ahead, ahead_bytes = item(p, NEAR), item(p, FLY), 0, 0
    if near == 1:  # the block of pixels that follows in memory
        pixel = 4 * item(p, CHANNELS)
        ahead = item(p, A) + (image * item(p, A_HEIGHT) * item(p, A_WIDTH) + end) * pixel
        calls = (end_panel - first_panel) * ((depth // 2 + most - 1) // most)
        ahead_bytes = (end - begin) * pixel // calls
    for first in range(0, depth, 2 * most):
        half = min(most, (depth - first) // 2)
        call(item(p, LEFT_SUMS), (rows, scratch, first, half))
        n_bytes = 4 * PRODUCTS * half * width
        b = item(p, PACKED) + 4 * PRODUCTS * width * panels * (group * (depth // 2) + first // 2)
        for j in range(first_panel, end_panel):
            at = b + j * n_bytes
            if fly == 1:
                at = scratch + item(p, PANEL_AT)
                _pack(p, group, first, half, j, at)
                if item(p, BACKWARD) == 0 and depth <= 2 * most:
                    ahead_bytes = 4 * width * item(p, CHANNELS)
                    ahead = item(p, W) + 4 * group * filters * item(p, CHANNELS) + (j + 1) * ahead_bytes
            elif near == 0:
                ahead, ahead_bytes = at + n_bytes, n_bytes
            call(item(p, TILES), (
                rows, min(width, left - j * width), filters - left - j * width, scratch, first, half, at,
                4 * j * width, left, 1 if first > 0 else 0, scratch + item(p, TILE_AT), ahead, ahead_bytes,
            ))  # fmt: skip
            ahead += ahead_bytes
            if item(p, TURNED) == 1 and first + 2 * half == depth:
                _put_back(p, image, group, begin, end, j * width, min(width, left - j * width), scratch)
                right = left + j * width
                _put_back(p, image, group, begin, end, right, min(width, filters - right), scratch)


@njit(error_model="numpy")
def _put_back(p: int, image: int, group: int, begin: int, end: int, first: int, count: int, scratch: int) -> None:
    """Turns `count` filters of the block's results into the planes of the output, run by run."""
    columns, step, row = item(p, COLUMNS), item(p, OUT_RIGHT), item(p, RESULT_ROW)
    plane = item(p, OUT_HEIGHT) * item(p, OUT_WIDTH)
    result, at = scratch + item(p, RESULT_AT) + 4 * first, begin
    while at < end and count > 0:
        run = _run(p, at, end)
        h = item(p, OUT_TOP) + at // columns * item(p, OUT_DOWN)
        w = item(p, OUT_LEFT) + at % columns * step
        to = ((image * item(p, GROUPS) + group) * item(p, FILTERS) + first) * plane + h * item(p, OUT_WIDTH) + w
        call(item(p, TRANSPOSE), ((run - 1) * step + 1, count, result, row, item(p, OUT) + 4 * to, plane))
        result += 4 * run * step * row
        at += run


@task
def clear_task(index: int, thread: int, p: int) -> None:
    """Task: zeros in one thread's share of the result."""
    first, end = share(item(p, OUT_FLOATS), item(p, THREADS), index)
    zero(item(p, OUT) + 4 * first, end - first)


@task
def pack_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one group, every block of channels."""
    panels, width, depth, most = item(p, PANELS), item(p, WIDTH), item(p, DEPTH), item(p, HALF)
    panel, group = index % panels, index // panels
    for first in range(0, depth, 2 * most):
        half = min(most, (depth - first) // 2)
        to = item(p, PACKED) + 4 * PRODUCTS * width * (panels * (group * (depth // 2) + first // 2) + panel * half)
        _pack(p, group, first, half, panel, to)


@njit(error_model="numpy")
def _pack(p: int, group: int, first: int, half: int, panel: int, to: int) -> None:
    """One panel for the channels from `first` on. What the filter lacks of a quadrant is 0."""
    width, left, filters = item(p, WIDTH), item(p, LEFT), item(p, FILTERS)
    here, column, size = min(2 * half, item(p, CHANNELS) - first), panel * width, half * width
    columns, right = min(width, left - column), min(width, filters - left - column)
    if right < columns:
        zero(to + 4 * RIGHT * size, 2 * size)
    if here < 2 * half:
        zero(to + 4 * (2 * size - width), width)
        zero(to + 4 * (PRODUCTS * size - width), width)
    _quadrants(p, group, first, here, column, columns, to)
    if right > 0:
        _quadrants(p, group, first, here, left + column, right, to + 4 * RIGHT * size)
    call(item(p, RIGHT_SUMS), (to, size))


@njit(error_model="numpy")
def _quadrants(p: int, group: int, first: int, here: int, column: int, count: int, to: int) -> None:
    """The filter's channels first .. first + here - 1, `count` of its columns: two quadrants, one below the other."""
    channels, filters = item(p, CHANNELS), item(p, FILTERS)
    source, table = item(p, W) + 4 * group * channels * filters, item(p, PACK_TABLE)
    if item(p, BACKWARD) == 1:  # rows of channels
        call(item(p, PACK), (here, count, source + 4 * (first * filters + column), filters, to, table))
    else:
        call(item(p, PACK), (count, here, source + 4 * (column * channels + first), channels, to, table))


def _values(made: Plan, problem: Problem, threads: int, target: Target) -> dict[str, int]:
    """Parameters that are known before there are buffers."""
    jobs, near = made.images * made.groups * made.blocks, made.strip is False and made.groups == 1 and made.merged
    scratch, backward = made.scratch(), problem.pass_ is Pass.BACKWARD_DATA
    packing = pack.place(target) if backward else pack.turn(target)
    r, c = made.rows, made.columns
    return {
        **{f"{part}_at": scratch[part] for part in ("tile", "spare", "panel", "sums", "strip", "result")},
        "fly": made.fly,
        "per_thread": scratch["end"], "groups": made.groups, "blocks": made.blocks,
        "chunks": 1 if jobs >= 4 * threads or threads == 1 else min(made.panels, threads),
        "rows": r.count, "columns": c.count, "pixels": made.pixels, "merged": made.merged, "turned": made.turned,
        "strip": made.strip, "a_top": r.a_start, "a_left": c.a_start, "a_down": r.a_step, "a_right": c.a_step,
        "a_height": made.a_size[0], "a_width": made.a_size[1], "out_top": r.out_start, "out_left": c.out_start,
        "out_down": r.out_step, "out_right": c.out_step, "out_height": made.out_size[0],
        "out_width": made.out_size[1], "strip_step": made.strip_step, "channels": made.channels, "depth": made.depth,
        "half": made.half, "filters": made.filters, "left": made.left, "panels": made.panels, "width": made.width,
        "sum_row": made.sum_row, "strip_row": made.strip_row, "result_row": made.result_row, "unit": made.unit,
        "units": made.units, "near": made.near and near and not made.fly,
        "tiles": tiles(target, made.shape, made.fetches).address,
        "left_sums": left_sums(target).address, "right_sums": right_sums(target).address,
        "transpose": transpose(target).address, "pack": packing.address, "backward": backward,
        "out_floats": int(np.prod(problem.out_shape)), "threads": threads,
    }  # fmt: skip


def prepare(problem: Problem, context: Context, weights: Any, target: Target) -> Run:
    """run(a, b, out), or run(a, out) where the filter is given now."""
    made = plan(problem, target, weights is None)
    values = _values(made, problem, context.threads, target)
    packed = context.empty(made.packed_floats, np.float32)
    scratch = context.empty(values["per_thread"] // 4 * context.threads, np.float32)
    order = np.arange(2 * made.half, dtype=np.int64) * made.width
    context.account(order.nbytes, "order of the filter")
    values |= {"packed": address_of(packed), "scratch": address_of(scratch), "pack_table": address_of(order)}
    parameters = np.zeros(len(NAMES), np.int64)
    for name, value in values.items():
        parameters[NAMES.index(name)] = value
    products, packing, clearing = (
        Runner(t, parameters, context.threads) for t in (block_task, pack_task, clear_task)
    )
    kept = (packed, scratch, order)
    jobs = made.images * made.groups * made.blocks * values["chunks"]

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        parameters[W] = address_of(b)
        if not made.fly:
            packing(made.groups * made.panels)
        run_packed(a, out)

    def run_packed(a: np.ndarray, out: np.ndarray, kept: Any = kept) -> None:
        parameters[A], parameters[OUT] = address_of(a), address_of(out)
        if not made.covers:
            clearing(context.threads)
        products(jobs)

    if weights is None:
        return run
    parameters[W] = address_of(weights)
    packing(made.groups * made.panels)
    return run_packed
