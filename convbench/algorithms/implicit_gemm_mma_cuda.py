"""Implicit GEMM on a GPU's tensor cores (mma.sync): TF32, TF32 thrice, fp16, bfloat16, int8.

Chetlur et al. 2014 (arXiv 1410.0759), section 3.2, for the algorithm; Markidis et al. 2018 (arXiv 1803.04014) and
Ootomo and Yokota 2022 (arXiv 2203.03341) for the three products. Kernels: kernels/cuda/implicit_gemm_mma.cu (forward,
backward data), implicit_gemm_mma_weights.cu (backward weights), implicit_gemm_pack.cu (layouts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from convbench.algorithms._cuda import CudaImplementation, blocks, conv_struct
from convbench.algorithms._cuda_sums import THREADS, add_parts
from convbench.algorithms._implicit_gemm_cuda import (
    PASSES,
    Cut,
    Geometry,
    Tile,
    cut_of,
    other_cuts,
    pack_defines,
    pack_filter,
    too_large,
)
from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import At, Buffer, Launch, Long, Program, Step, Zero
from convbench.problem import Pass, Problem
from convbench.registry import register

ROW_BYTES = 128  # of a tile of forward and backward data: 64 halves or 32 floats of the sum
PLACE_BYTES = 20  # of each row of such a tile beside it
STATIC_BYTES = 256  # the most that the kernels take beside what a launch gives them


@dataclass
class Operands:
    """Where the product finds its operands, and what is to be done before. lengths: channels of a group, padded."""

    workspace: dict[str, Buffer] = field(default_factory=dict)
    filter_steps: tuple[Step, ...] = ()
    steps: tuple[Step, ...] = ()


class ImplicitGemmMma(CudaImplementation):
    """What the four arithmetics share. Operands that do not have channels innermost, in multiples of 16 bytes for each
    group, are brought into that form first, on the clock; packed weights once."""

    least = (8, 0)
    reference = "Chetlur et al. 2014 (arXiv 1410.0759), section 3.2"
    #: ARITHMETIC of the kernels.
    code: ClassVar[int]
    #: What shared memory needs beside, to begin at a multiple of it.
    aligned_bytes: ClassVar[int] = 0
    #: Tiles of forward and backward data; of backward weights.
    tiles: ClassVar[tuple[Tile, ...]]
    weights_tiles: ClassVar[tuple[Tile, ...]] = ()
    #: Tiles that the kernels are compiled with too, for a sweep.
    swept_tiles: ClassVar[tuple[Tile, ...]]
    swept_weights_tiles: ClassVar[tuple[Tile, ...]] = ()

    def limits(self, problem: Problem) -> str | None:
        """Every stride, dilation, group, padding and number of channels; sizes within 32-bit numbers."""
        s = problem.shape
        c, k = (s.groups * _padded(channels, problem.item_bytes) for channels in (s.cg, s.kg))
        pieces = max(s.n * s.h * s.w * c, s.n * s.p * s.q * k, k * s.r * s.s * c) * problem.item_bytes // 16
        if pieces >= 2**31 - 2**20:
            return f"implicit_gemm: an operand must have fewer than 2^31 - 2^20 pieces of 16 bytes, not {pieces}"
        return too_large(problem)

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Packing where it is needed, the product, the sum of parts where the sum was cut."""
        return self._program(problem, self._cut(problem, gpu))

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Other tiles, sums in more parts and in fewer: "128x64", "128x128 6 stages split 4"."""
        chosen, swept = self._tiles(problem, gpu)
        cuts = other_cuts(self._geometry(problem), gpu, chosen, swept)
        return {name: self._program(problem, cut) for name, cut in cuts.items()}

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Whole tiles, on a GPU like an H200; taps on padding included. Three products count thrice."""
        products = 3.0 if self.code == 96 else 1.0
        tile = self._cut(problem, H200).tile
        return {"multiply": 2.0 * products * self._geometry(problem).multiplied(tile, self._step(problem))}

    # ---- parts

    def _geometry(self, problem: Problem) -> Geometry:
        """With the channels of the gathered operand in multiples of 16 bytes."""
        gathered = problem.shape.kg if problem.pass_ is Pass.BACKWARD_DATA else problem.shape.cg
        return Geometry(problem, _padded(gathered, problem.item_bytes))

    def _step(self, problem: Problem) -> int:
        """Products of the sum in one tile."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return 64 // problem.item_bytes
        return ROW_BYTES // problem.item_bytes

    def _tiles(self, problem: Problem, gpu: Gpu) -> tuple[list[Tile], list[Tile]]:
        """Those that fit the GPU's shared memory: to choose from, and for a sweep."""
        weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
        every = (self.weights_tiles, self.swept_weights_tiles) if weights else (self.tiles, self.swept_tiles)
        most = gpu.shared_bytes - STATIC_BYTES
        chosen, swept = ([tile for tile in tiles if self._shared_bytes(problem, tile) <= most] for tiles in every)
        return chosen, swept

    def _cut(self, problem: Problem, gpu: Gpu) -> Cut:
        return cut_of(self._geometry(problem), gpu, self._tiles(problem, gpu)[0])

    def _program(self, problem: Problem, cut: Cut) -> Program:
        elements = math.prod(problem.out_shape)
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            operands, launch = self._weights(problem, cut)
        else:
            operands, launch = self._data(problem, cut)
        steps = (*operands.steps, launch)
        if cut.parts > 1:
            sums = "int32" if problem.is_integer else "float32"
            operands.workspace["parts"] = Buffer((cut.parts, elements), sums)
            steps += (self._add_parts(elements, cut.parts),)
        return Program(steps, operands.filter_steps, operands.workspace)

    def _shared_bytes(self, problem: Problem, tile: Tile) -> int:
        if problem.pass_ is not Pass.BACKWARD_WEIGHTS:
            return tile.stages * (tile.m + tile.n) * ROW_BYTES + tile.m * PLACE_BYTES + self.aligned_bytes
        pad = 8 if problem.item_bytes == 4 else 0  # floats that rows are longer
        return tile.stages * self._step(problem) * (tile.m + tile.n + 2 * pad) * problem.item_bytes

    def _defines(self, tile: Tile) -> tuple[tuple[str, int], ...]:
        return (
            ("ARITHMETIC", self.code), ("BLOCK_M", tile.m), ("BLOCK_N", tile.n), ("WARP_M", tile.warp[0]),
            ("WARP_N", tile.warp[1]), ("STAGES", tile.stages),
        )  # fmt: skip

    def _launch(
        self, problem: Problem, cut: Cut, kernel: str, source: str, other: str, numbers: tuple[int, ...]
    ) -> Launch:
        """The product: numbers are the kernel's own arguments after the tiles."""
        geometry, tile = self._geometry(problem), cut.tile
        threads = tile.m * tile.n // (tile.warp[0] * tile.warp[1]) * 32
        return Launch(
            f"{kernel}.cu",
            kernel,
            (geometry.grid(tile), cut.parts, 1),
            (threads, 1, 1),
            (
                At(source), At(other), At("out"), At("parts" if cut.parts > 1 else "out"), conv_struct(problem.shape),
                PASSES[problem.pass_], int(problem.layout == "nhwc"), geometry.tiles_m(tile), geometry.tiles_n(tile),
                *numbers, Long(math.prod(problem.out_shape)),
            ),
            shared_bytes=self._shared_bytes(problem, tile),
            defines=self._defines(tile),
        )  # fmt: skip

    def _add_parts(self, elements: int, parts: int) -> Launch:
        if self.code in (32, 96):
            return add_parts("parts", "out", elements, parts)
        arguments = (At("parts"), At("out"), Long(elements), parts)
        grid, defines = (blocks(elements, THREADS), 1, 1), (("OUTPUT", self.code),)
        return Launch("implicit_gemm_pack.cu", "add_parts", grid, (THREADS, 1, 1), arguments, defines=defines)

    def _data(self, problem: Problem, cut: Cut) -> tuple[Operands, Launch]:
        """Forward and backward data."""
        s, geometry, operands = problem.shape, self._geometry(problem), Operands()
        rows, depth = geometry.channels
        length = geometry.depth
        pixels = s.h * s.w if problem.pass_ is Pass.FORWARD else s.p * s.q
        source = self._channels_last(operands, problem, "a", pixels, depth, length)
        where = "b"
        if problem.pass_ is Pass.BACKWARD_DATA or problem.layout == "nchw" or length != depth:
            where = "filter"
            operands.workspace[where] = Buffer((s.groups * rows * s.r * s.s * length,), problem.dtype)
            pack = pack_filter(geometry, length, problem.item_bytes, transposed=False)
            operands.filter_steps = (pack,) if length == depth else (Zero(where), pack)
        return operands, self._launch(problem, cut, "implicit_gemm_mma", source, where, (length,))

    def _weights(self, problem: Problem, cut: Cut) -> tuple[Operands, Launch]:
        """Backward weights: both operands with channels innermost."""
        s, operands = problem.shape, Operands()
        c, k = _padded(s.cg, problem.item_bytes), _padded(s.kg, problem.item_bytes)
        x = self._channels_last(operands, problem, "a", s.h * s.w, s.cg, c)
        dy = self._channels_last(operands, problem, "b", s.p * s.q, s.kg, k)
        return operands, self._launch(problem, cut, "implicit_gemm_mma_weights", x, dy, (c, k))

    def _channels_last(
        self, operands: Operands, problem: Problem, name: str, pixels: int, channels: int, length: int
    ) -> str:
        """The buffer that holds an operand as [image, pixel][group][length]: itself, or a copy in the workspace."""
        if problem.layout == "nhwc" and length == channels:
            return name
        s, copy = problem.shape, f"{name}_channels_last"
        operands.workspace[copy] = Buffer((s.n * pixels * s.groups * length,), problem.dtype)
        grid = (s.n * s.groups * blocks(pixels, 32), blocks(length, 32), 1)
        numbers = (pixels, channels, s.groups, length, int(problem.layout == "nhwc"))
        defines = pack_defines(problem.item_bytes)
        arguments = (At(name), At(copy), *numbers)
        launch = Launch("implicit_gemm_pack.cu", "pack_activations", grid, (32, 8, 1), arguments, defines=defines)
        operands.steps += (launch,)
        return copy


def _padded(channels: int, item_bytes: int) -> int:
    """The next multiple of 16 bytes."""
    return blocks(channels * item_bytes, 16) * 16 // item_bytes


def _large(rate: float) -> Tile:
    return Tile(128, 256, rate, 1.0, (64, 64), 4)


def _middle(rate: float) -> Tile:
    return Tile(128, 128, rate, 0.6, (64, 64), 3)


def _little(rate: float) -> Tile:
    return Tile(64, 64, rate, 0.35, (32, 32), 4)


def _swept(rate: float) -> tuple[Tile, Tile]:
    """Taller tiles: for layers with few filters."""
    return Tile(256, 128, rate, 1.0, (64, 64), 3), Tile(128, 64, 0.8 * rate, 0.5, (64, 32), 4)


@register
class ImplicitGemmTf32Cuda(ImplicitGemmMma):
    """float32 operands rounded to TF32 (10 bits of mantissa) as they are multiplied, float sums.

    error_growth 2.0: a product is off by eps at most where both operands are rounded the far way; 0.5 is the largest
    seen, emulated, over the conformance shapes and sums of 4,608 and 3,280 products, three passes.
    """

    name = "implicit_gemm_tf32_cuda"
    arithmetic = "tf32"
    error_growth = 2.0
    code = 32
    tiles = (_large(600.0), _middle(560.0), _little(360.0))
    weights_tiles = (Tile(128, 128, 480.0, 1.0, (64, 32), 4), _little(300.0))
    swept_tiles = _swept(600.0)
    swept_weights_tiles = (Tile(128, 64, 400.0, 0.5, (64, 32), 4),)


@register
class ImplicitGemm3xTf32Cuda(ImplicitGemmMma):
    """Emulated fp32: each float as the sum of two TF32 numbers, three products for one, sums of a tile added by FADD.

    The second numbers hold 11 of the 13 bits that are left, and the product of the two is left out: errors of 2^-22 a
    product. error_growth 2.0: 0.7 is the largest seen, emulated, over the conformance shapes and sums of 4,608 and
    3,280 products, three passes; a tile's truncated additions stay far below the eps of 2^-21.
    """

    name = "implicit_gemm_3xtf32_cuda"
    arithmetic = "3xtf32"
    error_growth = 2.0
    code = 96
    reference = "Markidis et al. 2018 (arXiv 1803.04014); Ootomo and Yokota 2022 (arXiv 2203.03341)"
    tiles = (Tile(128, 128, 200.0, 1.0, (64, 32), 3), _little(150.0))
    weights_tiles = (Tile(128, 128, 180.0, 1.0, (64, 32), 4), _little(140.0))
    swept_tiles = (Tile(128, 64, 180.0, 0.5, (64, 32), 4),)
    swept_weights_tiles = (Tile(128, 64, 160.0, 0.5, (64, 32), 4),)


@register
class ImplicitGemmFp16Cuda(ImplicitGemmMma):
    """float16 operands, float sums, results rounded to float16.

    Products are exact, so the bound's eps is that of the float sums. error_growth 20: tensor cores truncate when they
    add. Sums of 16 products added with truncation, simulated for 4,000 results, err by 3.3 times eps * sqrt(n) *
    sqrt(x^2 * w^2) at most at n = 4,608, 8.3 times at 25,088 and 15.4 times at 100,352. Emulated, where sums are
    rounded to nearest, storing the result in half precision hides the rest.
    """

    name = "implicit_gemm_fp16_cuda"
    dtypes = ("float16",)
    arithmetic = "float16-acc32"
    error_growth = 20.0
    code = 16
    tiles = (_large(1250.0), _middle(1150.0), _little(700.0))
    weights_tiles = (Tile(128, 128, 1000.0, 0.6, (64, 64), 4), _little(600.0))
    swept_tiles = _swept(1250.0)
    swept_weights_tiles = (Tile(128, 64, 800.0, 0.5, (64, 32), 4),)


@register
class ImplicitGemmBf16Cuda(ImplicitGemmFp16Cuda):
    """bfloat16 operands, float sums, results rounded to bfloat16; error_growth as for float16: the same sums."""

    name = "implicit_gemm_bf16_cuda"
    dtypes = ("bfloat16",)
    arithmetic = "bfloat16-acc32"
    code = 17


@register
class ImplicitGemmInt8Cuda(ImplicitGemmMma):
    """int8 operands, exact sums in int32: nothing is rounded. Before sm_80 (sm_75) only the small tiles fit."""

    name = "implicit_gemm_int8_cuda"
    dtypes = ("int8",)
    arithmetic = "int8-acc32"
    least = (7, 5)
    code = 8
    tiles = (_large(2500.0), _middle(2300.0), Tile(64, 64, 1400.0, 0.35, (32, 32), 3))
    weights_tiles = (Tile(128, 128, 1800.0, 1.0, (64, 32), 4), Tile(64, 64, 1100.0, 0.35, (32, 32), 3))
    swept_tiles = (Tile(128, 64, 2000.0, 0.5, (64, 32), 4),)
    swept_weights_tiles = (Tile(128, 64, 1500.0, 0.5, (64, 32), 4),)


class ImplicitGemmWgmma(ImplicitGemmMma):
    """Hopper's wgmma: operands are read out of shared memory, forward and backward data."""

    passes = (Pass.FORWARD, Pass.BACKWARD_DATA)
    least = (9, 0)
    architecture = "sm_90a"
    aligned_bytes = 1024
    error_growth = 20.0
    tiles = (Tile(128, 256, 1700.0, 1.0, (16, 256), 4), Tile(128, 128, 1400.0, 0.8, (16, 128), 4))
    swept_tiles = (Tile(128, 256, 1700.0, 1.0, (16, 256), 3), Tile(128, 128, 1400.0, 0.8, (16, 128), 6))

    def _defines(self, tile: Tile) -> tuple[tuple[str, int], ...]:
        return (*super()._defines(tile), ("WGMMA", 1))


@register
class ImplicitGemmWgmmaFp16Cuda(ImplicitGemmWgmma):
    """float16 operands, float sums, results rounded to float16; error_growth as for `implicit_gemm_fp16_cuda`."""

    name = "implicit_gemm_wgmma_fp16_cuda"
    dtypes = ("float16",)
    arithmetic = "float16-acc32"
    code = 16


@register
class ImplicitGemmWgmmaBf16Cuda(ImplicitGemmWgmma):
    """bfloat16 operands, float sums, results rounded to bfloat16; error_growth as for `implicit_gemm_bf16_cuda`."""

    name = "implicit_gemm_wgmma_bf16_cuda"
    dtypes = ("bfloat16",)
    arithmetic = "bfloat16-acc32"
    code = 17
