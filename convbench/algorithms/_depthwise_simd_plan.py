"""How depthwise_simd cuts a problem up: blocks of outputs, phases of backward data, strips. Integers only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from convbench.problem import ConvShape, Pair, Pass, Problem

if TYPE_CHECKING:
    from convbench.simd.kernels.depthwise import Pattern
    from convbench.simd.target import Target

#: Floats that a strip of inputs may take: a quarter or half of the smallest L2 there is.
SMALL_STRIP, LARGE_STRIP = 48 << 10, 120 << 10
#: Multiply-adds in a straight-line kernel, at most: beyond, compilation takes too long.
STRAIGHT = 800
#: Taps of a small filter, at most.
FEW_TAPS = 64


class Phase:
    """One axis of the outputs that see the same taps: at + i step for i < outputs.

    Output i reads input i stride + t dilation - padding with tap first + t filter_step, for t < taps.
    """

    def __init__(self, at: int, step: int, outputs: int, stride: int, dilation: int, padding: int) -> None:
        self.at, self.step, self.outputs = at, step, outputs
        self.stride, self.dilation, self.padding = stride, dilation, padding
        self.taps, self.first, self.filter_step = 0, 0, 1

    def with_taps(self, taps: int, first: int, filter_step: int) -> Phase:
        """The same, with its taps."""
        self.taps, self.first, self.filter_step = taps, first, filter_step
        return self


def phases(problem: Problem, axis: int) -> Iterator[Phase]:
    """Forward: one. Backward data: one for each remainder of the position by the stride, filter turned round."""
    s = problem.shape
    size, outputs, taps = ((s.h, s.p, s.r), (s.w, s.q, s.s))[axis]
    stride, dilation, padding = s.stride[axis], s.dilation[axis], s.padding[2 * axis]
    if problem.pass_ is not Pass.BACKWARD_DATA:
        yield Phase(0, 1, outputs, stride, dilation, padding).with_taps(taps, 0, 1)
        return
    common = math.gcd(stride, dilation)
    step, spread = stride // common, dilation // common
    for remainder in range(min(stride, size)):
        count = -(-(size - remainder) // stride)
        first = next((r for r in range(min(step, taps)) if (remainder + padding - r * dilation) % stride == 0), None)
        if first is None:
            yield Phase(remainder, stride, count, 1, 1, 0)
            continue
        n = -(-(taps - first) // step)
        base = (remainder + padding - first * dilation) // stride  # the output that tap `first` meets, minus i
        phase = Phase(remainder, stride, count, 1, spread, (n - 1) * spread - base)
        yield phase.with_taps(n, first + (n - 1) * step, -step)


def best_patterns(problem: Problem, target: Target) -> tuple[Pattern, Pattern] | None:
    """The block of a straight-line kernel, or None where every block is too much code."""
    from convbench.simd.kernels.depthwise import Pattern

    s = problem.shape
    data = problem.pass_ is Pass.BACKWARD_DATA
    weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
    outer = (s.h, s.w) if data else (s.p, s.q)
    best, least = None, math.inf

    def pattern(axis: int, size: int) -> Pattern:
        taps, stride, dilation = (s.r, s.s)[axis], s.stride[axis], s.dilation[axis]
        if data:
            return Pattern.backward(size, taps, stride, dilation, s.padding[2 * axis])
        return Pattern.forward(size, taps, stride, dilation)

    steps = s.stride if data else (1, 1)
    if max(steps) > 4 or s.r * s.s > FEW_TAPS:
        return None
    heights = [pattern(0, n) for n in range(steps[0], 9, steps[0])]
    widths = [pattern(1, n) for n in range(steps[1], 9, steps[1])]
    for rows, columns in itertools.product(heights, widths):
        work = len(rows.uses) * len(columns.uses)
        registers = rows.size * columns.size + 2
        if weights:
            registers += s.s * min(2 if s.s <= 5 else 1, s.r)
        elif s.r * s.s <= 9 and target.registers >= 32:
            registers += s.r * s.s
        else:
            registers += len(columns.offsets)
        smallest = rows.size == steps[0] and columns.size == steps[1]
        if work > STRAIGHT or (registers > target.registers and not smallest):
            continue
        pixels = len(rows.offsets) * len(columns.offsets)
        loads = pixels + s.r * s.s
        blocks = -(-outer[0] // rows.size) * -(-outer[1] // columns.size)
        # a window of many pixels is a stream of memory for each: more than the hardware fetches ahead
        streams = 1.5 * max(0, pixels - 24)
        cost = blocks * (max(work, loads) / 2 + 0.25 * min(work, loads) + rows.size * columns.size + 8 + streams)
        if cost < least:
            best, least = (rows, columns), cost
    return best


def best_block(
    target: Target, outputs: tuple[int, int], taps: tuple[int, int], share: bool, window: bool
) -> tuple[int, int, int]:
    """Rows, columns, and unrolled taps of a sliding block: the least time by a small model.

    share: rows of outputs may share their inputs. window: neighbouring taps may. Beside the multiply-adds, two a
    cycle, a load costs a quarter of a cycle and a line that comes from L2 half a cycle (a Xeon with AVX-512, 2026-11).
    """
    height, width = taps
    shapes = [
        (rows, columns)
        for rows in range(1, (min(4, height) if share else 1) + 1)
        for columns in range(1, 25)
        if rows * columns + (columns if window else rows) + 1 < target.registers
    ]

    def row_of_taps(rows: int, columns: int) -> float:
        alone = width % columns if window else width
        loads = (width - alone) * (rows + 2) + alone * (rows + columns)
        return width * max(rows * columns, 8) / 2 + loads / 4 + (2 * width + columns) / 2 + 10

    def cost(shape: tuple[int, int]) -> float:
        rows, columns = shape
        block = (height - rows + 1) * row_of_taps(rows, columns) + 50
        block += 2 * sum(row_of_taps(some, columns) for some in range(1, rows))
        return -(-outputs[0] // rows) * -(-outputs[1] // columns) * block

    rows, columns = min(shapes, key=cost)
    return rows, columns, columns if window else 1


def phase_block(target: Target, v: Phase, h: Phase) -> tuple[int, int, int]:
    """best_block for one phase; without taps, a single tap that is zero."""
    empty = not (v.taps and h.taps)
    taps = (1, 1) if empty else (v.taps, h.taps)
    share, window = v.stride == v.dilation, h.stride == h.dilation == 1
    return best_block(target, (v.outputs, h.outputs), taps, share and not empty, window and not empty)


def weights_block(target: Target, s: ConvShape) -> tuple[int, int, int]:
    """best_block for dw: taps are the outputs, stride and dilation change places."""
    share, window = s.stride[0] == s.dilation[0], s.stride[1] == s.dilation[1] == 1
    return best_block(target, (s.r, s.s), (s.p, s.q), share, window)


def products(problem: Problem, target: Target) -> int:
    """Multiply-adds executed for one channel of one image."""
    s = problem.shape
    patterns = best_patterns(problem, target)
    if patterns is not None:
        outer = (s.h, s.w) if problem.pass_ is Pass.BACKWARD_DATA else (s.p, s.q)
        return math.prod(-(-n // p.size) * len(p.uses) for n, p in zip(outer, patterns, strict=True))
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        rows, columns, _ = weights_block(target, s)
        return -(-s.r // rows) * rows * -(-s.s // columns) * columns * s.p * s.q
    total = 0
    for v, h in itertools.product(*(list(phases(problem, axis)) for axis in (0, 1))):
        rows, columns, _ = phase_block(target, v, h)
        blocks = -(-v.outputs // rows) * -(-h.outputs // columns)
        total += blocks * rows * columns * max(1, v.taps * h.taps)
    return total


def odd(n: int) -> int:
    """n, or n + 1: strides that are odd numbers of vectors spread over all sets of a cache."""
    return n | 1


def strip_blocks(pixels: int, blocks: Pair, steps: Pair, more: Pair) -> Pair:
    """How many blocks, down and across, a strip of inputs holds: all across if one row of them fits, at least 1 x 1.

    n blocks need n step + more inputs along an axis; `pixels` is what may be kept. Strips differ little in size.
    """
    tall = steps[0] + more[0]
    across = even(blocks[1], (pixels // max(1, tall) - more[1]) // steps[1])
    broad = odd(across * steps[1] + more[1])
    return even(blocks[0], (pixels // max(1, broad) - more[0]) // steps[0]), across


def even(total: int, most: int) -> int:
    """Blocks in a strip when `total` are shared out among as few strips of at most `most` (or 1) as there can be."""
    return -(-total // -(-total // max(1, min(total, most))))
