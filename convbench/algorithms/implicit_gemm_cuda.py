"""Implicit GEMM on a GPU: convolution as a matrix product whose larger operand is gathered while it is loaded.

Chetlur et al. 2014, "cuDNN: Efficient Primitives for Deep Learning" (arXiv 1410.0759), section 3.2. Kernels:
kernels/cuda/implicit_gemm.cu (fp32 on CUDA cores).
"""

from __future__ import annotations

import math
from dataclasses import replace

from convbench.algorithms._cuda import CudaImplementation, conv_struct
from convbench.algorithms._cuda_sums import add_parts
from convbench.algorithms._implicit_gemm_cuda import (
    PASSES,
    Cut,
    Geometry,
    Tile,
    cut_of,
    far_apart,
    other_cuts,
    pack_filter,
    too_large,
)
from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import At, Buffer, Launch, Long, Program
from convbench.problem import Problem
from convbench.registry import register

DIGITS, TAPS, QUADS = 0, 1, 2
STEP = {DIGITS: 8, TAPS: 16, QUADS: 16}
#: Of the 128 multiply-adds a clock: what issue slots leave (implicit_gemm.cu), less for smaller tiles.
LARGE, TALL, WIDE, LITTLE = Tile(128, 128, 108.0), Tile(128, 64, 102.0), Tile(64, 128, 102.0), Tile(64, 64, 96.0, 0.35)
#: The same for DIGITS, whose tiles hold half as many products.
LARGE_4, TALL_4, LITTLE_4 = (replace(tile, stages=4) for tile in (LARGE, TALL, LITTLE))
#: Tiles to choose from, by (loads, backward weights).
TILES = {
    (TAPS, False): (LARGE, TALL, LITTLE),
    (DIGITS, False): (TALL_4, LITTLE_4),
    (DIGITS, True): (LARGE_4, LITTLE_4),
    (QUADS, True): (LARGE, LITTLE),
}
#: Tiles that the kernel is compiled with too, for a sweep. Two stages: two blocks where an SM has 100 KB.
SWEPT = {
    (TAPS, False): (replace(LARGE, stages=2), WIDE),
    (DIGITS, False): (LARGE_4,),
    (DIGITS, True): (TALL_4,),
    (QUADS, True): (TALL,),
}


@register
class ImplicitGemmCuda(CudaImplementation):
    """fp32 multiply-adds, one after another in the order of the sum; parts of a sum are added in a fixed order.

    The filter is packed with its rows innermost (raw: on the clock), dy of backward weights is read as it lies.

    error_growth 3.0: twice the largest seen, 1.4, emulated, over the conformance shapes and sums of 4,608 and 3,280
    products, three passes.
    """

    name = "implicit_gemm_cuda"
    arithmetic = "float32"
    error_growth = 3.0
    reference = "Chetlur et al. 2014 (arXiv 1410.0759), section 3.2"

    def limits(self, problem: Problem) -> str | None:
        """Every stride, dilation, group and padding; sizes within 32-bit numbers."""
        return too_large(problem) or far_apart(problem)

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """pack_filter (not for backward weights), the product, partial_sums where the sum was cut."""
        return _program(problem, _cut(problem, gpu))

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Other tiles, sums in more parts and in fewer: "128x64", "64x64 split 4"."""
        geometry, loads = Geometry(problem), loads_of(problem)
        kind = loads, geometry.weights
        cuts = other_cuts(geometry, gpu, TILES[kind], SWEPT[kind])
        return {name: _program(problem, cut) for name, cut in cuts.items()}

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Whole tiles, on a GPU like an H200; taps on padding included."""
        multiplied = Geometry(problem).multiplied(_cut(problem, H200).tile, STEP[loads_of(problem)])
        return {"multiply": 2.0 * multiplied}


def _cut(problem: Problem, gpu: Gpu) -> Cut:
    geometry = Geometry(problem)
    return cut_of(geometry, gpu, TILES[loads_of(problem), geometry.weights])


def _program(problem: Problem, cut: Cut) -> Program:
    geometry, s, tile, loads = Geometry(problem), problem.shape, cut.tile, loads_of(problem)
    elements = math.prod(problem.out_shape)
    workspace: dict[str, Buffer] = {}
    filter_steps: tuple[Launch, ...] = ()
    length = 0
    if not geometry.weights:
        columns, depth = geometry.channels
        length = -(-columns // 4) * 4
        workspace["filter"] = Buffer((s.groups * s.r * s.s * depth * length,))
        filter_steps = (pack_filter(geometry, length, 4, transposed=True),)
    if cut.parts > 1:
        workspace["parts"] = Buffer((cut.parts, elements))
    launch = Launch(
        "implicit_gemm.cu",
        "implicit_gemm",
        (geometry.grid(tile), cut.parts, 1),
        (tile.m * tile.n // 64, 1, 1),
        (
            At("a"), At("b" if geometry.weights else "filter"), At("parts" if cut.parts > 1 else "out"),
            conv_struct(s), PASSES[problem.pass_], int(problem.layout == "nhwc"), geometry.tiles_m(tile),
            geometry.tiles_n(tile), length, Long(elements),
        ),
        shared_bytes=4 * tile.stages * STEP[loads] * (tile.m + tile.n + 8),
        defines=(
            ("BLOCK_M", tile.m), ("BLOCK_N", tile.n), ("LOADS", loads), ("STAGES", tile.stages),
            ("WEIGHTS", int(geometry.weights)),
        ),
    )  # fmt: skip
    steps: tuple[Launch, ...] = (launch,)
    if cut.parts > 1:
        steps += (add_parts("parts", "out", elements, cut.parts),)
    return Program(steps, filter_steps, workspace)


def loads_of(problem: Problem) -> int:
    """How the kernel finds elements of the gathered operand."""
    s, geometry = problem.shape, Geometry(problem)
    if geometry.weights:
        return QUADS if problem.layout == "nhwc" and s.cg % 4 == 0 and s.kg % 4 == 0 else DIGITS
    return TAPS if geometry.channels[1] % 16 == 0 else DIGITS
