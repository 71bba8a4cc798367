"""prepare() of the pass to the weights, and its loop: a task is some rows and one panel of columns of the gradient.

Each task walks all blocks of pixels and adds up its part of the gradient, in place where the filter's order is that of
the product (nhwc), otherwise in a buffer that is turned at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from convbench.algorithms._gemm_simd_weights import WeightsPlan, weights_plan
from convbench.algorithms._simd import address_of
from convbench.problem import Problem
from convbench.registry import Context, Run
from convbench.simd.driver import Runner, call, item, task
from convbench.simd.kernels import gemm, gemm_pixels
from convbench.simd.kernels.transpose import conversions
from convbench.simd.patch import gather, share
from convbench.simd.target import Target

#: The table of parameters.
NAMES = (
    "x", "y", "dw", "scratch", "per_thread", "x_strip", "y_strip", "nchw", "turned", "strip_x", "strip_y", "held",
    "groups", "panels", "chunks", "shares", "width", "rows", "columns_total", "chunk", "taps", "tap_rows", "cg", "kg",
    "h", "w", "p", "q", "left", "columns", "x_pixel", "y_pixel", "blocks", "block_count", "kernel", "transpose",
    "size", "convert", "convert_out", "transpose_out",
)  # fmt: skip
(
    X, Y, DW, SCRATCH, PER_THREAD, X_STRIP, Y_STRIP, NCHW, TURNED, STRIP_X, STRIP_Y, HELD,
    GROUPS, PANELS, CHUNKS, SHARES, WIDTH, ROWS, COLUMNS_TOTAL, CHUNK, TAPS, TAP_ROWS, CG, KG,
    H, W, P, Q, LEFT, COLUMNS, X_PIXEL, Y_PIXEL, BLOCKS, BLOCK_COUNT, KERNEL, TRANSPOSE,
    SIZE, CONVERT, CONVERT_OUT, TRANSPOSE_OUT,
) = range(len(NAMES))  # fmt: skip

BLOCK_ITEMS = 7  # image, images, first, rows, top, x_rows, address of the kind's (address, pixels) of each tap


@task
def weights_task(index: int, thread: int, p: int) -> None:
    """Task: group, panel of columns, chunk of rows, share of the taps, the last changing fastest."""
    shares, chunks, panels = item(p, SHARES), item(p, CHUNKS), item(p, PANELS)
    part, chunk = index % shares, index // shares % chunks
    panel, group = index // (shares * chunks) % panels, index // (shares * chunks * panels)
    first_row, width, first_column = chunk * item(p, CHUNK), item(p, WIDTH), panel * item(p, WIDTH)
    rows = min(item(p, CHUNK), item(p, ROWS) - first_row)
    columns = min(width, item(p, COLUMNS_TOTAL) - first_column)
    begin, end = share(item(p, TAPS), shares, part)
    scratch = item(p, SCRATCH) + 4 * item(p, PER_THREAD) * thread
    held = scratch + 4 * (item(p, X_STRIP) + item(p, Y_STRIP))
    turned, taps, cg, kg = item(p, TURNED), item(p, TAPS), item(p, CG), item(p, KG)
    for b in range(item(p, BLOCK_COUNT)):
        block = item(p, BLOCKS) + 8 * BLOCK_ITEMS * b
        if turned == 1:
            x, y = _x(p, block, group, 0, cg, scratch), _y(p, block, group, first_column, columns, scratch)
        else:
            x, y = _x(p, block, group, first_column, columns, scratch), _y(p, block, group, first_row, rows, scratch)
        a_at, b_at = (x, y) if turned == 1 else (y, x)
        for tap in range(begin, end):
            kind = item(block, 6) + 16 * tap
            if item(p, HELD) == 1:
                c, row_c = held + 4 * tap * item(p, CHUNK) * width, width
            else:
                c = item(p, DW) + 4 * (((group * kg + first_row) * taps + tap) * cg + first_column)
                row_c = taps * cg
            call(item(p, KERNEL), (
                rows, columns, item(kind, 0), item(kind, 1), a_at, b_at, c, row_c, 1 if b > 0 else 0,
            ))  # fmt: skip
    if item(p, HELD) == 1:
        _put_down(p, group, first_row, rows, first_column, columns, begin, end, held)


@njit(error_model="numpy")
def _x(p: int, block: int, group: int, first: int, count: int, scratch: int) -> int:
    """Address of channel `first` of the group at a block's first input pixel: in place, or in the thread's strip."""
    cg, h, w = item(p, CG), item(p, H), item(p, W)
    image, images, top, rows = item(block, 0), item(block, 1), item(block, 4), item(block, 5)
    total = cg * item(p, GROUPS)
    if item(p, STRIP_X) == 0:
        return item(p, X) + 4 * (((image * h + top) * w) * total + group * cg + first)
    pixel, columns = item(p, X_PIXEL), item(p, COLUMNS)
    for n in range(images):
        gather(
            item(p, X), item(p, NCHW), total, h, w, image + n, group * cg + first, count, top, rows, item(p, LEFT),
            columns, scratch + 4 * n * rows * columns * pixel, columns * pixel, pixel, item(p, TRANSPOSE),
            item(p, SIZE), item(p, CONVERT),
        )  # fmt: skip
    return scratch


@njit(error_model="numpy")
def _y(p: int, block: int, group: int, first: int, count: int, scratch: int) -> int:
    """As _x, for dy."""
    kg, height, q = item(p, KG), item(p, P), item(p, Q)
    image, images, top, rows = item(block, 0), item(block, 1), item(block, 2), item(block, 3)
    total = kg * item(p, GROUPS)
    if item(p, STRIP_Y) == 0:
        return item(p, Y) + 4 * (((image * height + top) * q) * total + group * kg + first)
    to, pixel = scratch + 4 * item(p, X_STRIP), item(p, Y_PIXEL)
    if item(p, NCHW) == 0:
        for n in range(images):
            gather(
                item(p, Y), 0, total, height, q, image + n, group * kg + first, count, top, rows, 0, q,
                to + 4 * n * rows * q * pixel, q * pixel, pixel, item(p, TRANSPOSE), item(p, SIZE), item(p, CONVERT),
            )  # fmt: skip
        return to
    for n in range(images):
        source = item(p, Y) + item(p, SIZE) * (((image + n) * total + group * kg + first) * height + top) * q
        call(item(p, TRANSPOSE), (count, rows * q, source, height * q, to + 4 * n * rows * q * pixel, pixel))
    return to


@njit(error_model="numpy")
def _put_down(
    p: int, group: int, first_row: int, rows: int, first_column: int, columns: int, begin: int, end: int, held: int
) -> None:
    """Results of taps begin .. end - 1, held[tap, row, column], into dw in its own order."""
    cg, kg, width, chunk, transposed = item(p, CG), item(p, KG), item(p, WIDTH), item(p, CHUNK), item(p, TRANSPOSE_OUT)
    merged, size = item(p, TAP_ROWS), item(p, SIZE)
    taps = item(p, TAPS) * merged
    if item(p, TURNED) == 0 and (item(p, NCHW) == 0 or taps == 1):  # of another dtype: the order is right
        for k in range(rows):
            to = item(p, DW) + size * ((group * kg + first_row + k) * taps * cg + first_column)
            call(item(p, CONVERT_OUT), (taps, columns, held + 4 * k * width, chunk * width, to, cg))
        return
    if item(p, TURNED) == 0:  # nchw: (taps, columns) of one k at a time
        for k in range(rows):
            to = item(p, DW) + size * ((group * kg + first_row + k) * cg + first_column) * taps
            call(transposed, (taps, columns, held + 4 * k * width, chunk * width, to, taps))
        return
    dw = item(p, DW) + size * (group * kg + first_column) * cg * taps
    if item(p, NCHW) == 0:  # (rows of a tap, k) at a time
        for tap in range(begin, end):
            call(transposed, (rows, columns, held + 4 * tap * rows * width, width, dw + size * tap * rows, taps * cg))
        return
    for c in range(cg):  # (taps, k) of one channel at a time
        source = held + 4 * (begin * merged * cg + c) * width
        to = dw + size * (c * taps + begin * merged)
        call(transposed, ((end - begin) * merged, columns, source, cg * width, to, cg * taps))


def weights_plan_of(problem: Problem, target: Target, threads: int) -> tuple[WeightsPlan, gemm.Shape]:
    """The plan and the block of the micro-kernel.

    Rows are output channels; or input channels where columns of those would leave lanes idle, and in 1x1 layers that
    have more of them.
    """
    s = problem.shape
    straight, turned = _use(target, s.cg, s.kg), _use(target, s.kg, s.cg * (s.s if s.dilation[1] == 1 else 1))
    turn = turned > 1.1 * straight or (s.r * s.s == 1 and s.cg > s.kg)  # B is what is read in place most easily
    vectors = gemm.vectors_for(target, s.kg if turn else s.cg)
    if turn and s.r * s.s == 1:  # a panel is a task then
        vectors = min(vectors, -(-s.kg * s.groups // (threads * target.lanes)))
    shape = gemm.Shape(gemm_pixels.rows_for(target, vectors), vectors, 1)
    return weights_plan(problem, turn, shape.columns(target), shape.rows, threads), shape


def _use(target: Target, columns: int, rows: int) -> float:
    """How well a product of so many columns and rows uses the unit, out of 1."""
    vectors = gemm.vectors_for(target, columns)
    panel = vectors * target.lanes
    return columns / (-(-columns // panel) * panel) * gemm.EFFICIENCY[vectors] * min(1.0, (rows + 1) / 5)


def prepare_weights(problem: Problem, context: Context, target: Target) -> Run:
    """run(x, dy, dw)."""
    s = problem.shape
    made, shape = weights_plan_of(problem, target, context.threads)
    tables = _tables(made)
    context.account(tables.nbytes, "tables")
    x_strip, y_strip = (-(-n // 16) * 16 for n in made.strip_floats(s.q))
    per_thread = x_strip + y_strip + -(-made.result_floats // 16) * 16
    scratch = context.empty(max(1, per_thread * context.threads), np.float32)
    jobs = s.groups * made.panels * made.chunks
    shares = 1 if jobs >= 4 * context.threads or context.threads == 1 else made.taps
    given: dict[str, Any] = {
        "scratch": address_of(scratch), "per_thread": per_thread, "x_strip": x_strip, "y_strip": y_strip,
        "nchw": made.nchw, "turned": made.turned, "strip_x": made.strip_x, "strip_y": made.strip_y, "held": made.held,
        "groups": s.groups, "panels": made.panels, "chunks": made.chunks, "width": made.width, "rows": made.rows,
        "shares": shares if made.turned or not made.held else 1,
        "columns_total": made.columns_total, "chunk": made.chunk, "taps": made.taps, "tap_rows": made.tap_rows,
        "cg": s.cg, "kg": s.kg, "h": s.h, "w": s.w, "p": s.p, "q": s.q, "left": made.left, "columns": made.columns,
        "x_pixel": made.x_pixel, "y_pixel": made.y_pixel, "blocks": tables.ctypes.data,
        "block_count": len(made.blocks), "kernel": gemm_pixels.reduce(target, shape).address,
        **conversions(target, problem.dtype),
    }  # fmt: skip
    parameters = np.zeros(len(NAMES), np.int64)
    for name, value in given.items():
        parameters[NAMES.index(name)] = value
    runner = Runner(weights_task, parameters, context.threads)
    count = jobs * int(given["shares"])

    def run(x: np.ndarray, dy: np.ndarray, dw: np.ndarray, kept: Any = (scratch, tables)) -> None:
        parameters[X], parameters[Y], parameters[DW] = address_of(x), address_of(dy), address_of(dw)
        runner(count)

    return run


def _tables(made: WeightsPlan) -> np.ndarray:
    """Blocks (see BLOCK_ITEMS), then for each kind (address, pixels) of its taps, then pairs. It must not move."""
    flat = np.zeros(weights_items(made), np.int64)
    at, starts = BLOCK_ITEMS * len(made.blocks), []
    free = at + 2 * sum(len(kind) for kind in made.kinds)
    for kind in made.kinds:
        starts.append(flat.ctypes.data + 8 * at)
        for pairs in kind:
            flat[at : at + 2] = flat.ctypes.data + 8 * free, len(pairs)
            flat[free : free + pairs.size] = pairs.ravel()
            at, free = at + 2, free + pairs.size
    for i, b in enumerate(made.blocks):
        row = (b.image, b.images, b.first, b.rows, b.top, b.x_rows, starts[b.kind])
        flat[BLOCK_ITEMS * i : BLOCK_ITEMS * (i + 1)] = row
    return flat


def weights_items(made: WeightsPlan) -> int:
    """Integers in the tables of a plan."""
    pairs = sum(2 + pairs.size for kind in made.kinds for pairs in kind)
    return BLOCK_ITEMS * len(made.blocks) + pairs + 2 * gemm_pixels.BEYOND
