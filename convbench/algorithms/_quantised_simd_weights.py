"""The gradient of the weights in parts: planes of x times columns of dy, summed over places.

x becomes planes [image][channel][phase][row][column], one plane for each phase of the stride that a tap reads, so that
neighbouring outputs read neighbours. dy becomes columns in which row p begins at p times the width of such a plane,
with zeros between, turned into panels. Then the sum over the outputs of an image is one run in both: tap (r, s) begins
where its phase does, and as many rows and columns further as it reads ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.algorithms import _quantised_simd_tasks as tasks
from convbench.algorithms import _quantised_simd_weights_tasks as sums
from convbench.algorithms._quantised_simd import Step, kernel_table, part_count, zeros
from convbench.algorithms._quantised_simd_operands import Operand, Result, kind_of
from convbench.algorithms._simd import address_of
from convbench.problem import Problem
from convbench.registry import Context, Run, with_packing
from convbench.simd.kernels import amx, part_sums, quantize
from convbench.simd.kernels.part_sums import Scheme
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target

#: Words of k that all taps go through before the next ones come: 4,096 bytes of 16 channels and as many of 16 filters.
WORDS_AT_ONCE = 1024


@dataclass(frozen=True)
class WeightsPlan:
    """phases: those of the stride that are read, by rows and by columns. rows, columns: of a plane. steps, chunk,
    pieces: of an image's places, in words; per_call pieces are summed in 32 bits."""

    problem: Problem
    scheme: Scheme
    phases: tuple[tuple[int, ...], tuple[int, ...]]
    rows: int
    columns: int
    pieces: int
    steps: int
    chunk: int
    per_call: int

    @property
    def element(self) -> int:
        """Bytes of an element of one part."""
        return 4 // self.scheme.word

    @property
    def channel(self) -> int:
        """Elements of x's planes of one channel."""
        return len(self.phases[0]) * len(self.phases[1]) * self.rows * self.columns

    @property
    def length(self) -> int:
        """Elements of a column of dy: whole pieces."""
        return self.pieces * self.steps * self.chunk * self.scheme.word

    @property
    def grid_bytes(self) -> int:
        """Of x's planes in one part, and of what blocks may read behind them."""
        s = self.problem.shape
        elements = (s.n * s.c + self.scheme.rows) * self.channel + self.length
        return -(-elements * self.element // 64) * 64

    @property
    def column_bytes(self) -> int:
        """Of dy's columns in one part."""
        return self.problem.shape.n * self.problem.shape.k * self.length * self.element

    @property
    def panels(self) -> int:
        """Of one group."""
        return -(-self.problem.shape.kg // self.scheme.width)

    @property
    def panel_bytes(self) -> int:
        """Of one panel of one image, in one part."""
        return self.length // self.scheme.word * self.scheme.width * 4

    @property
    def packed_bytes(self) -> int:
        """Of all panels in one part."""
        return self.problem.shape.n * self.problem.shape.groups * self.panels * self.panel_bytes

    @property
    def blocks(self) -> int:
        """Tasks: panels times blocks of channels."""
        s = self.problem.shape
        return s.groups * self.panels * -(-s.cg // self.scheme.rows)

    @property
    def multiplied(self) -> float:
        """Multiply-adds of parts that the blocks execute, junk included."""
        s, scheme = self.problem.shape, self.scheme
        block = scheme.rows * scheme.width * len(scheme.products)
        return float(self.blocks) * block * s.r * s.s * s.n * self.length

    def taps(self) -> np.ndarray:
        """Bytes into a channel's planes at which each tap begins."""
        s, (us, vs) = self.problem.shape, self.phases
        found = []
        for r in range(s.r):
            i, u = divmod(r * s.dilation[0], s.stride[0])
            for t in range(s.s):
                j, v = divmod(t * s.dilation[1], s.stride[1])
                plane = us.index(u) * len(vs) + vs.index(v)
                found.append((plane * self.rows + i) * self.columns + j)
        return np.array(found, np.int64) * self.element

    def segments(self) -> np.ndarray:
        """(bytes into x's planes, bytes into the panels) of each piece of each image."""
        s = self.problem.shape
        image, piece = np.arange(s.n)[:, None], np.arange(self.pieces)[None, :] * self.steps * self.chunk
        a = image * s.c * self.channel * self.element + piece * 4  # (N, pieces)
        b = image * s.groups * self.panels * self.panel_bytes + piece * self.scheme.width * 4
        return np.ascontiguousarray(np.stack([a, b], axis=-1).reshape(-1, 2), np.int64)


def plan_of(problem: Problem, target: Target, threads: int) -> WeightsPlan:
    """Tables for this vector unit; the same for any number of threads."""
    scheme, s = part_sums.scheme_for(target, kind_of(problem)), problem.shape
    phases, ahead = [], []
    for taps, dilation, stride in ((s.r, s.dilation[0], s.stride[0]), (s.s, s.dilation[1], s.stride[1])):
        phases.append(tuple(sorted({t * dilation % stride for t in range(taps)})))
        ahead.append((taps - 1) * dilation // stride)
    rows, columns = s.p + ahead[0], s.q + ahead[1]
    words = -(-((s.p - 1) * columns + s.q) // scheme.word)
    limit = min(scheme.bound // scheme.word, WORDS_AT_ONCE)
    total = -(-words // min(scheme.chunk_words, limit))
    chunk = -(-words // total)
    pieces = -(-total // max(1, limit // chunk))
    steps = -(-total // pieces)
    return WeightsPlan(
        problem, scheme, (phases[0], phases[1]), rows, columns, pieces, steps, chunk, max(1, limit // (steps * chunk))
    )


def prepare_weights(problem: Problem, context: Context, target: Target) -> Run:
    """run(x, dy, dw); its `pack` is all that comes before the products."""
    made, s = plan_of(problem, target, context.threads), problem.shape
    x_operand, dy_operand = (Operand(problem, which, context, target) for which in (0, 1))
    result = Result(problem, context)
    none = np.zeros(1, np.int32)
    grid = zeros(context, made.grid_bytes * part_count(made.scheme.a))
    columns = zeros(context, made.column_bytes * part_count(made.scheme.b))
    packed = context.empty(made.packed_bytes * part_count(made.scheme.b), np.uint8)
    packed.fill(0)  # columns that do not exist
    x_phases, dy_phases = _numbered(made), np.zeros(2, np.int64)
    fill_x = Step(sums.line_task, sums.LINE_NAMES, {
        "to": address_of(grid), "plane": made.grid_bytes, "channels": s.c, "height": s.h, "width": s.w,
        "stride_h": s.stride[0], "stride_w": s.stride[1], "origin_h": s.padding[0], "origin_w": s.padding[2],
        "phases": address_of(x_phases), "phases_w": len(made.phases[1]), "channel": made.channel,
        "image": s.c * made.channel * made.element, **_lines(made, target, x_operand, made.scheme.a),
    }, context)  # fmt: skip
    fill_dy = Step(sums.line_task, sums.LINE_NAMES, {
        "to": address_of(columns), "plane": made.column_bytes, "channels": s.k, "height": s.p, "width": s.q,
        "stride_h": 1, "stride_w": 1, "phases": address_of(dy_phases), "phases_w": 1, "channel": made.length,
        "image": s.k * made.length * made.element, **_lines(made, target, dy_operand, made.scheme.b),
    }, context)  # fmt: skip
    entries = np.array([[0, 0, made.length // made.scheme.word]], np.int64)
    turn = Step(tasks.panel_task, tasks.PANEL_NAMES, {
        "source": address_of(columns), "plane": made.column_bytes, "parts": part_count(made.scheme.b),
        "to": address_of(packed), "plane_to": made.packed_bytes, "columns": s.kg, "panels": made.panels,
        "width": made.scheme.width, "column": made.length * made.element, "panel": made.panel_bytes,
        "batch": s.kg * made.length * made.element, "entries": address_of(entries), "entry_count": 1,
        "transpose": transpose(target).address,
    }, context)  # fmt: skip
    values, more = _sums(made, context, target, result)
    values |= {"grid": address_of(grid), "packed": address_of(packed)}
    multiply = Step(sums.sum_task, sums.SUM_NAMES, values, context)
    kept = (grid, columns, packed, x_phases, dy_phases, entries, more)

    def quantise(x: np.ndarray, dy: np.ndarray, kept: Any = kept) -> None:
        x_operand.measure(x)
        dy_operand.measure(dy)
        result.settle(x_operand, dy_operand, none)
        fill_x(s.n * s.h, source=x)
        fill_dy(s.n * s.p, source=dy)
        turn(s.n * s.groups * made.panels)

    def run(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        quantise(x, dy)
        multiply(made.blocks, out=dw)

    return with_packing(run, quantise)


def workspace(problem: Problem, target: Target) -> int:
    """Bytes of prepare_weights in one thread."""
    made = plan_of(problem, target, 1)
    total = made.grid_bytes * part_count(made.scheme.a)
    total += (made.column_bytes + made.packed_bytes) * part_count(made.scheme.b)
    tables = made.taps().nbytes + made.segments().nbytes
    return total + _scratch(made)[-1] + tables + 16 * (problem.elements // quantize.SQUARES_COUNT)


def _numbered(made: WeightsPlan) -> np.ndarray:
    """The number of each phase of the stride, by rows and then by columns; -1: no tap reads it."""
    found = []
    for phases, stride in zip(made.phases, made.problem.shape.stride, strict=True):
        found += [phases.index(u) if u in phases else -1 for u in range(stride)]
    return np.array(found, np.int64)


def _lines(made: WeightsPlan, target: Target, operand: Operand, parts: str) -> dict[str, int]:
    nchw = made.problem.layout == "nchw"
    fill = (quantize.straight if nchw else quantize.turned)(target, operand.mode, parts)
    return {
        "nchw": nchw, "rows": made.rows, "columns": made.columns, "element": made.element, "fill": fill.address,
        "constants": address_of(operand.constants),
    }  # fmt: skip


def _sums(made: WeightsPlan, context: Context, target: Target, result: Result) -> tuple[dict[str, int], Any]:
    """Parameters of sum_task, and what has to stay alive."""
    s, scheme = made.problem.shape, made.scheme
    taps, segments = made.taps(), made.segments()
    held, results, per_thread = _scratch(made)
    scratch = context.empty(per_thread * context.threads, np.uint8)
    context.account(taps.nbytes + segments.nbytes, "tables")
    kernels = kernel_table(target, scheme, result.how)[0].tolist()
    tiles = scheme.how == "tiles"
    unit = amx.configuration(part_sums.TILE_ROWS, made.chunk) if tiles else np.zeros(1, np.uint8)
    values = {
        "plane_a": made.grid_bytes, "channel": made.channel * made.element, "plane_b": made.packed_bytes,
        "panel": made.panel_bytes, "panels": made.panels, "width": scheme.width, "block_rows": scheme.rows,
        "nchw": made.problem.layout == "nchw", "channels": s.cg, "filters": s.kg, "taps": address_of(taps),
        "tap_count": s.r * s.s, "segments": address_of(segments), "segment_count": len(segments),
        "per_call": made.per_call, "steps": made.steps, "chunk": made.chunk, "unit": address_of(unit),
        "configure": part_sums.configure(target).address if tiles else 0,
        "release": part_sums.release(target).address if tiles else 0,
        "product": kernels[0], "keep": kernels[1], "finish": kernels[3], "scratch": address_of(scratch),
        "per_thread": per_thread, "held": held, "results": results, "constants": address_of(result.constants),
        "transpose": transpose(target).address,
    }  # fmt: skip
    return values, (taps, segments, scratch, unit)


def _scratch(made: WeightsPlan) -> tuple[int, int, int]:
    """Offsets of what is held and of the results in a thread's scratch, and its size, in bytes."""
    size, taps = made.scheme.rows * made.scheme.width, made.problem.shape.r * made.problem.shape.s
    held = 4 * size * len(made.scheme.shifts)
    results = held + 8 * size * taps
    return held, results, -(-(results + 4 * size * taps) // 64) * 64
