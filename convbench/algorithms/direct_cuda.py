"""Direct convolution on a GPU: as the definition says (kernels/cuda/direct.cu), and from tiles in shared memory
(kernels/cuda/direct_tiled.cu; which windows and tiles: `_direct_cuda.py`).
"""

from __future__ import annotations

import math

from convbench.algorithms._cuda import CudaImplementation, blocks, conv_struct
from convbench.algorithms._cuda_sums import add_parts
from convbench.algorithms._direct_cuda import Tiling, data_tiling, other_variants, weights_tiling
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Buffer, Launch, Program
from convbench.problem import Pass, Problem
from convbench.registry import register

THREADS = 256
PARTS_BYTES = 64 << 20  # of sums that blocks of backward weights leave to be added
KERNELS = {
    Pass.FORWARD: "direct_forward",
    Pass.BACKWARD_DATA: "direct_backward_data",
    Pass.BACKWARD_WEIGHTS: "direct_backward_weights",
}


@register
class DirectCuda(CudaImplementation):
    """One thread an element, products summed one after another with fused multiply-adds.

    error_growth 3.0: twice the largest measured, 1.33, over the conformance shapes and 14 more (up to 512 channels,
    1x1 to 31x31, depthwise, N P Q up to 12,500), three passes, both layouts, two seeds; relative L2 at most 0.48, at
    one product per output.
    """

    name = "direct_cuda"
    arithmetic = "float32"
    error_growth = 3.0
    reference = "the definition"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """One launch, no workspace."""
        total = math.prod(problem.out_shape)
        launch = Launch(
            "direct.cu",
            KERNELS[problem.pass_],
            (blocks(total, THREADS), 1, 1),
            (THREADS, 1, 1),
            (At("a"), At("b"), At("out"), conv_struct(problem.shape)),
            defines=(("NHWC", int(problem.layout == "nhwc")),),
        )
        return Program((launch,))

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Taps on padding are left out."""
        return {"multiply": float(problem.valid_flops)}


@register
class DirectTiledCuda(CudaImplementation):
    """Tiles of input and filter in shared memory, 4 pixels x 8 channels of sums in each thread's registers.

    Backward weights adds the parts of blocks that share the pixels in a fixed order.

    error_growth 3.0: twice the largest measured, 1.46, over the shapes of `direct_cuda`; relative L2 at most 0.25.
    """

    name = "direct_tiled_cuda"
    arithmetic = "float32"
    error_growth = 3.0
    reference = "Georganas et al. 2018 (arXiv 1808.05567), section II, for the blocking"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """The filter is packed by channel tiles; backward weights needs its parts instead."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return _tiled_weights(problem, gpu)
        return _tiled_data(problem)

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Other numbers of channels: "16x4" is 16 a thread, of 4 warps side by side."""
        weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
        return {
            f"{channels}x{warps}": _tiled_weights(problem, gpu, (channels, warps)) if weights
            else _tiled_data(problem, (channels, warps))
            for channels, warps in other_variants(_channels(problem)[0])
        }  # fmt: skip

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Whole tiles of pixels and channels, taps on padding included."""
        s = problem.shape
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            tiling = weights_tiling(problem)
            channels = blocks(s.kg, tiling.channel_tile) * tiling.channel_tile * s.groups
            taps = 128 * _tap_tiles(problem, tiling)
            return {"multiply": 2.0 * s.n * s.p * s.q * channels * taps}
        made, reduced = _channels(problem)
        tiling = data_tiling(problem, made, reduced)
        pixels = tiling.tiles[0] * tiling.tile[0] * tiling.tiles[1] * tiling.tile[1]
        channels = blocks(made, tiling.channel_tile) * tiling.channel_tile * s.groups
        taps = tiling.rows.products * tiling.columns.products
        return {"multiply": 2.0 * s.n * pixels * taps * channels * reduced}


def _channels(problem: Problem) -> tuple[int, int]:
    """Of one group: channels of the result, and those summed over."""
    s = problem.shape
    return (s.cg, s.kg) if problem.pass_ is Pass.BACKWARD_DATA else (s.kg, s.cg)


def _defines(problem: Problem, tiling: Tiling) -> tuple[tuple[str, int], ...]:
    return (
        ("NHWC", int(problem.layout == "nhwc")),
        ("PASS", list(Pass).index(problem.pass_)),
        ("CHANNELS", tiling.variant[0]),
        ("CHANNEL_WARPS", tiling.variant[1]),
    )


def _tiled_data(problem: Problem, variant: tuple[int, int] | None = None) -> Program:
    s, conv = problem.shape, conv_struct(problem.shape)
    made, reduced = _channels(problem)
    tiling = data_tiling(problem, made, reduced, variant)
    defines = _defines(problem, tiling)
    channel_tiles = blocks(made, tiling.channel_tile)
    padded = channel_tiles * tiling.channel_tile
    packed = s.groups * reduced * s.r * s.s * padded
    grid = channel_tiles * s.groups * math.prod(tiling.tiles) * tiling.rows.phases * tiling.columns.phases * s.n
    pack = Launch(
        "direct_tiled.cu",
        "direct_tiled_filter",
        (blocks(packed, THREADS), 1, 1),
        (THREADS, 1, 1),
        (At("b"), At("packed"), conv, padded),
        defines=defines,
    )
    convolve = Launch(
        "direct_tiled.cu",
        "direct_tiled_data",
        (grid, 1, 1),
        (THREADS, 1, 1),
        (At("a"), At("packed"), At("out"), conv, tiling.struct()),
        tiling.shared_bytes,
        defines,
    )
    return Program((convolve,), (pack,), {"packed": Buffer((packed,))})


def _tap_tiles(problem: Problem, tiling: Tiling) -> int:
    """Blocks of taps and input channels of one group."""
    s = problem.shape
    return blocks(s.cg, tiling.channels) * blocks(s.r, tiling.window[0]) * blocks(s.s, tiling.window[1])


def _tiled_weights(problem: Problem, gpu: Gpu, variant: tuple[int, int] | None = None) -> Program:
    s, tiling = problem.shape, weights_tiling(problem, variant)
    elements = math.prod(problem.out_shape)
    each = s.groups * blocks(s.kg, tiling.channel_tile) * _tap_tiles(problem, tiling)
    tiles = s.n * tiling.rows.phases * tiling.columns.phases * math.prod(tiling.tiles)
    room = max(1, PARTS_BYTES // (4 * elements * tiling.pixel_warps))
    parts = min(tiles, blocks(4 * gpu.multiprocessors, each), room)
    sums = parts * tiling.pixel_warps
    multiply = Launch(
        "direct_tiled.cu",
        "direct_tiled_weights",
        (each * parts, 1, 1),
        (THREADS, 1, 1),
        (At("a"), At("b"), At("sums" if sums > 1 else "out"), conv_struct(s), tiling.struct(parts)),
        tiling.shared_bytes,
        _defines(problem, tiling),
    )
    if sums == 1:
        return Program((multiply,))
    return Program((multiply, add_parts("sums", "out", elements, sums)), workspace={"sums": Buffer((sums, elements))})
