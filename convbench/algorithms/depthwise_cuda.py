"""Depthwise convolution on a GPU: one input channel per group, K/C filters each. kernels/cuda/depthwise*.cu.

Nothing is summed over channels, so up to 7x7 or so all that counts is how fast the tensors cross memory.
"""

from __future__ import annotations

import math

from convbench.algorithms._cuda import CudaImplementation, blocks, conv_struct, different
from convbench.algorithms._cuda_sums import add_parts
from convbench.algorithms._depthwise_cuda import (
    ALONG,
    ROUNDS,
    WEIGHTS_RUN,
    WEIGHTS_THREADS,
    Planes,
    lanes_for,
    other_tilings,
    parts_for,
    planes_tiling,
)
from convbench.algorithms._direct_cuda import Axis
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Buffer, Launch, Program, Struct
from convbench.problem import Pass, Problem
from convbench.registry import register

RUN, COLUMNS = 4, 2  # outputs of a thread of depthwise_nhwc.cu, below and beside each other
NHWC_THREADS = 128  # of its blocks
ALONG_SWEPT, ROUNDS_SWEPT = (2, 4, 16), (2, 8)  # what a sweep compares with ALONG and ROUNDS


@register
class DepthwiseCuda(CudaImplementation):
    """NCHW: patches of planes in shared memory. NHWC: channels in lanes, inputs through L1. Any filter and stride.

    Backward weights: two stages of sums in a fixed order.

    error_growth 3.0: as for `direct_cuda`; the largest measured is 1.03, over five shapes (3x3 to 31x31, 3 to 24
    channels), three passes, both layouts, two seeds.
    """

    name = "depthwise_cuda"
    arithmetic = "float32"
    error_growth = 3.0
    reference = "the definition, channel by channel"

    def limits(self, problem: Problem) -> str | None:
        """One input channel in each group."""
        s = problem.shape
        if s.cg != 1:
            return f"depthwise: groups must equal C, not C={s.c} groups={s.groups}"
        return None

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Forward and backward data: one launch (NHWC: and the filter's); backward weights: sums, then their sum."""
        weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
        if problem.layout == "nchw":
            tiling = planes_tiling(problem)
            return _weights_nchw(problem, gpu, tiling) if weights else _data_nchw(problem, tiling)
        vector = _vector(problem)
        return _weights_nhwc(problem, gpu, vector) if weights else _data_nhwc(problem, vector)

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """NCHW: "9x28x14" is 9 planes, 28 rows, 14 columns a block. NHWC: threads of a block along pixels, channels.

        Backward weights: twice and half as many blocks that share the pixels.
        """
        weights, vector = problem.pass_ is Pass.BACKWARD_WEIGHTS, _vector(problem)
        programs = {}
        if problem.layout == "nchw":
            chosen = planes_tiling(problem)
            for t in other_tilings(problem):
                name = f"{t.planes}x{t.runs * t.variant.run}x{t.width}, {t.variant.run} a thread"
                programs[name] = _weights_nchw(problem, gpu, t) if weights else _data_nchw(problem, t)
            for rounds in ROUNDS_SWEPT if weights else ():
                programs[f"{rounds} rounds of blocks"] = _weights_nchw(problem, gpu, chosen, rounds)
        elif weights:
            for along in ALONG_SWEPT:
                programs[f"{along} along pixels"] = _weights_nhwc(problem, gpu, vector, along)
            for rounds in ROUNDS_SWEPT:
                programs[f"{rounds} rounds of blocks"] = _weights_nhwc(problem, gpu, vector, ALONG, rounds)
            programs["a channel a thread"] = _weights_nhwc(problem, gpu, 1)
        else:
            for along in ALONG_SWEPT:
                programs[f"{along} along pixels"] = _data_nhwc(problem, vector, along)
            programs["a channel a thread"] = _data_nhwc(problem, 1)
        return different(self.program(problem, gpu), programs)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Every tap of every output, those on padding included; outputs that fill up tiles are left out."""
        return {"multiply": float(problem.direct_flops)}


def _data_nchw(problem: Problem, tiling: Planes) -> Program:
    s = problem.shape
    planes = s.n * (s.c if problem.pass_ is Pass.BACKWARD_DATA else s.k)
    variant = tiling.variant
    launch = Launch(
        "depthwise.cu",
        "depthwise_data",
        (blocks(planes, tiling.planes) * tiling.tiles, 1, 1),
        (tiling.threads, 1, 1),
        (At("a"), At("b"), At("out"), conv_struct(s), tiling.struct()),
        tiling.shared_bytes,
        (
            ("RUN", variant.run),
            ("TAPS", variant.taps),
            ("STRIDE", variant.stride),
            ("BACKWARD", int(problem.pass_ is Pass.BACKWARD_DATA)),
        ),
    )
    return Program((launch,))


def _with_parts(launch: Launch, problem: Problem, parts: int) -> Program:
    """A launch whose result is `parts` arrays like dw, and their sum."""
    if parts == 1:
        return Program((launch,))
    elements = math.prod(problem.out_shape)
    return Program((launch, add_parts("sums", "out", elements, parts)), workspace={"sums": Buffer((parts, elements))})


def _weights_nchw(problem: Problem, gpu: Gpu, tiling: Planes, rounds: int = ROUNDS) -> Program:
    s = problem.shape
    size = tiling.variant.taps
    each = s.k * blocks(s.r, size) * blocks(s.s, size)
    most = blocks(s.n, tiling.planes) * tiling.tiles
    parts = parts_for(gpu, each, most, math.prod(problem.out_shape), rounds)
    launch = Launch(
        "depthwise_weights.cu",
        "depthwise_weights",
        (each * parts, 1, 1),
        (tiling.threads, 1, 1),
        (At("a"), At("b"), At("sums" if parts > 1 else "out"), conv_struct(s), tiling.struct(parts)),
        tiling.shared_bytes,
        (("RECTANGLE", size), ("STRIDE", tiling.variant.stride)),
    )
    return _with_parts(launch, problem, parts)


def _vector(problem: Problem) -> int:
    """Channels of one 16-byte access, where they have one filter each."""
    return 4 if problem.shape.c % 4 == 0 and problem.shape.k == problem.shape.c else 1


def _data_nhwc(problem: Problem, vector: int, along: int = ALONG) -> Program:
    s, conv = problem.shape, conv_struct(problem.shape)
    rows, columns = Axis.of(problem, 0), Axis.of(problem, 1)
    backward = problem.pass_ is Pass.BACKWARD_DATA
    vectors = (s.c if backward else s.k) // vector
    across, along = lanes_for(vectors, blocks(columns.outputs, COLUMNS), NHWC_THREADS, along)
    tiles = blocks(rows.outputs, RUN), blocks(columns.outputs, COLUMNS * along)
    defines = (
        ("VECTOR", vector),
        ("STRIDE", rows.stride if rows.stride in (1, 2) else 0),
        ("BACKWARD", int(backward)),
    )
    packed = s.r * s.s * s.k
    pack = Launch(
        "depthwise_nhwc.cu",
        "depthwise_filter",
        (blocks(packed, NHWC_THREADS), 1, 1),
        (NHWC_THREADS, 1, 1),
        (At("b"), At("packed"), conv),
        defines=defines,
    )
    convolve = Launch(
        "depthwise_nhwc.cu",
        "depthwise_nhwc",
        (s.n * rows.phases * columns.phases * math.prod(tiles), blocks(vectors, across), 1),
        (across, along, 1),
        (At("a"), At("packed"), At("out"), conv, Struct((rows.phases, columns.phases, *tiles))),
        defines=defines,
    )
    return Program((convolve,), (pack,), {"packed": Buffer((packed,))})


def _weights_nhwc(problem: Problem, gpu: Gpu, vector: int, along: int = ALONG, rounds: int = ROUNDS) -> Program:
    s, size = problem.shape, 3
    rows, columns = Axis.of(problem, 0), Axis.of(problem, 1)
    if max(s.r, s.s) > 3 and rows.stride in (1, 2):
        size, vector = 5 if max(s.r, s.s) <= 5 else 7, 1
    stride = rows.stride if rows.stride in (1, 2) else 0
    vectors = s.k // vector
    across, along = lanes_for(vectors, WEIGHTS_THREADS, WEIGHTS_THREADS, along)
    runs = s.n * rows.phases * columns.phases * blocks(rows.outputs, WEIGHTS_RUN) * columns.outputs
    rectangles, groups = blocks(s.r, size) * blocks(s.s, size), blocks(vectors, across)
    parts = parts_for(gpu, rectangles * groups, blocks(runs, along), math.prod(problem.out_shape), rounds)
    struct = Struct((rows.phases, columns.phases, blocks(rows.outputs, WEIGHTS_RUN), columns.outputs, parts))
    launch = Launch(
        "depthwise_nhwc_weights.cu",
        "depthwise_nhwc_weights",
        (parts * rectangles, groups, 1),
        (across, along, 1),
        (At("a"), At("b"), At("sums" if parts > 1 else "out"), conv_struct(s), struct),
        defines=(("RECTANGLE", size), ("VECTOR", vector), ("STRIDE", stride)),
    )
    return _with_parts(launch, problem, parts)
