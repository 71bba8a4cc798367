"""Implicit GEMM on Hopper: TMA copies taps of whole pixels (im2col mode), wgmma multiplies; forward and backward data.

Chetlur et al. 2014 (arXiv 1410.0759), section 3.2, for the algorithm. Kernel: kernels/cuda/implicit_gemm_tma.cu.
"""

from __future__ import annotations

import math
from typing import ClassVar

from convbench.algorithms._cuda import CudaImplementation, blocks, different
from convbench.algorithms._cuda_sums import THREADS as THREADS_ADDING
from convbench.algorithms._implicit_gemm_cuda import (
    PARTS_BYTES,
    Cut,
    Geometry,
    Tile,
    cut_of,
    pack_filter,
    too_large,
)
from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import At, Buffer, Im2colMap, Launch, Long, Program, Step, Struct, TiledMap
from convbench.cuda.tensor_map import OFFSETS, refusal
from convbench.problem import Pass, Problem
from convbench.registry import register

THREADS = 384
ROW_BYTES = 128  # of a tile: 64 channels of one tap
CHANNELS = 64
#: Tiles begin at multiples of ALIGNED_BYTES; a stage has two mbarriers of eight bytes.
ALIGNED_BYTES, BARRIER_BYTES = 1024, 16


class ImplicitGemmTma(CudaImplementation):
    """nhwc is read where it lies, the filter too; backward data turns the filter round first, packed weights once.

    TMA reads channels in multiples of 16 bytes, its numbers bound strides, dilations and paddings, and neighbouring
    results must be neighbours in one image: no groups, and stride 1 in backward data.
    """

    passes = (Pass.FORWARD, Pass.BACKWARD_DATA)
    layouts = ("nhwc",)
    least = (9, 0)
    architecture = "sm_90a"
    error_growth = 20.0
    reference = "Chetlur et al. 2014 (arXiv 1410.0759), section 3.2"
    #: ARITHMETIC of the kernel.
    code: ClassVar[int]
    #: One block an SM: a single one reaches the whole rate. Rates by what L2 must give (the kernel's header).
    tiles: ClassVar[tuple[Tile, ...]] = (
        Tile(128, 256, 1750.0, 1.0, (16, 256), 4), Tile(256, 128, 1650.0, 1.0, (32, 128), 4),
        Tile(128, 128, 1400.0, 1.0, (16, 128), 4), Tile(256, 64, 1100.0, 1.0, (32, 64), 4),
    )  # fmt: skip

    def limits(self, problem: Problem) -> str | None:
        """What TMA cannot name, and sizes within 32-bit numbers."""
        s = problem.shape
        if s.groups != 1:
            return f"implicit_gemm: TMA reads the channels of one group, there are {s.groups}"
        if problem.pass_ is Pass.BACKWARD_DATA and s.stride != (1, 1):
            return f"implicit_gemm: backward data by TMA needs stride 1, not {s.stride[0]}x{s.stride[1]}"
        name, depth = ("K", s.k) if problem.pass_ is Pass.BACKWARD_DATA else ("C", s.c)
        if depth % 8:
            return f"implicit_gemm: TMA reads channels by 16 bytes: {name} must be a multiple of 8, not {depth}"
        furthest = max((s.r - 1) * s.dilation[0], (s.s - 1) * s.dilation[1])
        if furthest > OFFSETS[1]:
            return f"implicit_gemm: TMA reaches taps up to {OFFSETS[1]} pixels from the first, not {furthest}"
        large = too_large(problem)
        if large:
            return large
        wrong = refusal(source_map(problem, self.tiles[0].m), problem.item_bytes)
        return f"implicit_gemm: TMA's map of the image: {wrong}" if wrong else None

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """pack_filter for backward data, the product, the sum of parts where the sum was cut."""
        return self._program(problem, cut_of(_geometry(problem), gpu, self.tiles))

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """The other tiles, and other numbers of parts."""
        chosen = cut_of(_geometry(problem), gpu, self.tiles)
        most = PARTS_BYTES // (4 * math.prod(problem.out_shape))
        numbers = [parts for parts in sorted({1, 2, chosen.parts}) if parts == 1 or parts <= most]
        cuts = [Cut(tile, parts) for tile in self.tiles for parts in numbers]
        programs = {f"{cut.tile.m}x{cut.tile.n}/{cut.parts}": self._program(problem, cut) for cut in cuts}
        return different(self._program(problem, chosen), programs)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Whole tiles, on a GPU like an H200; taps on padding and the rest of 64 channels of each tap included."""
        geometry = _geometry(problem)
        return {"multiply": 2.0 * geometry.multiplied(cut_of(geometry, H200, self.tiles).tile, CHANNELS)}

    # ---- parts

    def _program(self, problem: Problem, cut: Cut) -> Program:
        elements = math.prod(problem.out_shape)
        workspace: dict[str, Buffer] = {}
        filter_steps: tuple[Step, ...] = ()
        where = "b"
        if problem.pass_ is Pass.BACKWARD_DATA:
            where, depth = "filter", problem.shape.k
            workspace[where] = Buffer((math.prod(problem.b_shape),), problem.dtype)
            filter_steps = (pack_filter(_geometry(problem), depth, problem.item_bytes, transposed=False),)
        product = self._product(problem, cut, where)
        parts = product.grid[1]
        steps: tuple[Step, ...] = (product,)
        if parts > 1:
            workspace["parts"] = Buffer((parts, elements))
            steps += (self._add_parts(elements, parts),)
        return Program(steps, filter_steps, workspace)

    def _product(self, problem: Problem, cut: Cut, where: str) -> Launch:
        geometry, tile = _geometry(problem), cut.tile
        rows, depth = geometry.channels
        taps = problem.shape.r * problem.shape.s
        steps = taps * blocks(depth, CHANNELS)
        each = blocks(steps, cut.parts)
        parts = blocks(steps, each)
        filter_map = TiledMap(where, sizes=(depth, taps, rows), box=(CHANNELS, 1, tile.n))
        return Launch(
            "implicit_gemm_tma.cu",
            "implicit_gemm_tma",
            (geometry.grid(tile), parts, 1),
            (THREADS, 1, 1),
            (
                source_map(problem, tile.m), filter_map, At("out"), At("parts" if parts > 1 else "out"),
                walk(problem, each, geometry.tiles_n(tile)), Long(math.prod(problem.out_shape)),
            ),
            shared_bytes=ALIGNED_BYTES + tile.stages * ((tile.m + tile.n) * ROW_BYTES + BARRIER_BYTES),
            defines=(("ARITHMETIC", self.code), ("BLOCK_M", tile.m), ("BLOCK_N", tile.n), ("STAGES", tile.stages)),
        )  # fmt: skip

    def _add_parts(self, elements: int, parts: int) -> Launch:
        arguments = (At("parts"), At("out"), Long(elements), parts)
        grid, defines = (blocks(elements, THREADS_ADDING), 1, 1), (("OUTPUT", self.code),)
        return Launch("implicit_gemm_pack.cu", "add_parts", grid, (THREADS_ADDING, 1, 1), arguments, defines=defines)


def _geometry(problem: Problem) -> Geometry:
    """With the channels that are summed over in multiples of 64."""
    s = problem.shape
    return Geometry(problem, blocks(s.k if problem.pass_ is Pass.BACKWARD_DATA else s.c, CHANNELS) * CHANNELS)


def first_taps(problem: Problem) -> tuple[int, int]:
    """Where the first result of an image has its first tap, along H and W of the image that is read.

    Backward data meets dy at place + pad - tap * dilation, and goes through the taps from the last one on.
    """
    s = problem.shape
    if problem.pass_ is Pass.FORWARD:
        return -s.padding[0], -s.padding[2]
    return s.padding[0] - (s.r - 1) * s.dilation[0], s.padding[2] - (s.s - 1) * s.dilation[1]


def source_map(problem: Problem, pixels: int) -> Im2colMap:
    """The image that is read, `pixels` at a time: its bounding box has the first tap of every result."""
    s, (top, left) = problem.shape, first_taps(problem)
    if problem.pass_ is Pass.FORWARD:
        sizes, places = (s.c, s.w, s.h, s.n), (s.q, s.p)
    else:
        sizes, places = (s.k, s.q, s.p, s.n), (s.w, s.h)
    steps = s.stride[::-1]
    lower = (left, top)
    upper = tuple(first + (count - 1) * step + 1 - size for first, count, step, size in zip(
        lower, places, steps, sizes[1:3], strict=True))  # fmt: skip
    return Im2colMap("a", sizes=sizes, channels=CHANNELS, pixels=pixels, lower=lower, upper=(upper[0], upper[1]),
                     steps=(steps[0], steps[1]))  # fmt: skip


def walk(problem: Problem, each: int, tiles_n: int) -> Struct:
    """The struct Walk of the kernel."""
    s, (top, left), geometry = problem.shape, first_taps(problem), _geometry(problem)
    turned = problem.pass_ is Pass.BACKWARD_DATA
    height, width = (s.h, s.w) if turned else (s.p, s.q)
    return Struct((
        s.n * height * width, geometry.channels[0], height, width, top, left, *s.stride, s.r, s.s, *s.dilation,
        int(turned), blocks(geometry.channels[1], CHANNELS), each, tiles_n,
    ))  # fmt: skip


@register
class ImplicitGemmTmaFp16Cuda(ImplicitGemmTma):
    """float16 operands, float sums, results rounded to float16; error_growth as for `implicit_gemm_fp16_cuda`."""

    name = "implicit_gemm_tma_fp16_cuda"
    dtypes = ("float16",)
    arithmetic = "float16-acc32"
    code = 16


@register
class ImplicitGemmTmaBf16Cuda(ImplicitGemmTma):
    """bfloat16 operands, float sums, results rounded to bfloat16; error_growth as for `implicit_gemm_bf16_cuda`."""

    name = "implicit_gemm_tma_bf16_cuda"
    dtypes = ("bfloat16",)
    arithmetic = "bfloat16-acc32"
    code = 17
