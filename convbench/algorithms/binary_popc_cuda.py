"""Convolution of signs on a GPU by counting bits: plain binary, and XNOR-Net's with the scales of both operands.

Courbariaux et al. 2016 (arXiv 1602.02830); Rastegari et al. 2016, "XNOR-Net" (arXiv 1603.05279), section 3.2. Kernels:
kernels/cuda/pack_signs.cu (signs as bits), implicit_gemm_mma.cu (the product); include/signs.cuh says what is counted.
"""

from __future__ import annotations

import math
from typing import ClassVar

from convbench.algorithms._cuda import CudaImplementation, blocks, conv_struct, different
from convbench.algorithms._implicit_gemm_cuda import Geometry, Tile, too_large
from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import At, Buffer, Launch, Long, Program
from convbench.formats import too_many_signs
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import register

WORD = 32  # signs
CHUNK_WORDS = 4  # 16 bytes, which a thread copies at once
ROW_BYTES, ROW_WORDS = 128, 32  # of a tile in shared memory
PLACE_BYTES = 44  # of each row of the source's tile beside it
STATIC_BYTES = 256  # the most that the product takes beside
#: By mma.sync, largest first; the last fits every GPU.
TILES = (Tile(128, 128, 0.0, warp=(64, 32)), Tile(64, 64, 0.0, warp=(32, 32)))
SWEPT = (Tile(128, 64, 0.0, warp=(64, 32)),)


class SignsCuda(CudaImplementation):
    """What both rows share. Signs of x are packed on the clock, those of the filter once where weights are packed.

    Channels of a group are counted by 128: fewer take the time of 128. Before sm_80 the instruction popc does the work
    of tensor cores; on sm_100 and sm_120 the compiler makes eight products of bytes of one of bits.
    """

    semantics = Semantics.BINARY
    passes = (Pass.FORWARD,)
    dtypes = ("float32",)
    arithmetic = "binary"
    reference = "Courbariaux et al. 2016 (arXiv 1602.02830), section 1.3"
    scaled: ClassVar[bool] = False

    def limits(self, problem: Problem) -> str | None:
        """Every stride, dilation, group, padding and number of channels; sizes within 32-bit numbers."""
        s = problem.shape
        pieces = max(s.n * s.h * s.w * s.groups, s.k * s.r * s.s) * _words(problem) // CHUNK_WORDS
        if pieces >= 2**31 - 2**20:
            return f"popc: the signs of an operand must be fewer than 2^31 - 2^20 pieces of 128, not {pieces}"
        if (table := math.prod(_table(problem))) >= 2**31:
            return f"popc: (R + 1) (S + 1) K must be less than 2^31, not {table}"
        if sentence := too_many_signs(problem):
            return f"popc: {sentence}"
        return too_large(problem)

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """Signs of x, and the product: the largest tiles that keep all multiprocessors busy."""
        return self._program(problem, _tile(problem, gpu), gpu)

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Other tiles: "128x64"."""
        others = {f"{t.m}x{t.n}": self._program(problem, t, gpu) for t in (*_tiles(gpu), *_fitting(SWEPT, gpu))}
        return different(self.program(problem, gpu), others)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Whole tiles, on a GPU like an H200; a sign counts as a product and a sum. Means of |x|: a sum an element."""
        tile = _tile(problem, H200)
        signs = WORD * Geometry(problem, _words(problem)).multiplied(tile, ROW_WORDS)
        return {"multiply": 2.0 * signs, "input_transform": float(math.prod(problem.a_shape))}

    def _program(self, problem: Problem, tile: Tile, gpu: Gpu) -> Program:
        s, depth, nhwc = problem.shape, _words(problem), int(problem.layout == "nhwc")
        workspace = {
            "signs": Buffer((s.n * s.h * s.w * s.groups, depth), "uint32"),
            "pixels": Buffer((s.n * s.h * s.w * s.groups, 2)),  # an int and a float each
            "filter_signs": Buffer((s.k * s.r * s.s, depth), "uint32"),
            "table": Buffer(_table(problem), "int32"),
            "scales": Buffer((s.k,)),
        }
        pack = Launch(
            "pack_signs.cu", f"pack_signs_{problem.layout}", (s.n * s.groups * blocks(s.h * s.w, 32), 1, 1), (32, 8, 1),
            (At("a"), At("signs"), At("pixels"), s.h * s.w, s.cg, s.groups, depth),
        )  # fmt: skip
        pack_filter = Launch(
            "pack_signs.cu", "pack_filter_signs", (s.k, 1, 1), (256, 1, 1),
            (At("b"), At("filter_signs"), At("table"), At("scales"), conv_struct(s), depth, nhwc),
        )  # fmt: skip
        return Program((pack, self._product(problem, tile, gpu)), (pack_filter,), workspace)

    def _product(self, problem: Problem, tile: Tile, gpu: Gpu) -> Launch:
        geometry = Geometry(problem, _words(problem))
        defines: tuple[tuple[str, int], ...] = (
            ("ARITHMETIC", 1), ("BLOCK_M", tile.m), ("BLOCK_N", tile.n), ("WARP_M", tile.warp[0]),
            ("WARP_N", tile.warp[1]), ("STAGES", tile.stages),
        )  # fmt: skip
        if not _counts_bits(gpu):
            defines += (("POPC", 1),)
        return Launch(
            "implicit_gemm_mma.cu",
            "implicit_gemm_mma",
            (geometry.grid(tile), 1, 1),
            (tile.m * tile.n // (tile.warp[0] * tile.warp[1]) * 32, 1, 1),
            (
                At("signs"), At("filter_signs"), At("out"), At("table"), conv_struct(problem.shape), 0,
                int(problem.layout == "nhwc"), geometry.tiles_m(tile), geometry.tiles_n(tile), _words(problem),
                Long(math.prod(problem.out_shape)), At("pixels"), At("table"), At("scales"), int(self.scaled),
            ),
            shared_bytes=_shared_bytes(tile),
            defines=defines,
        )  # fmt: skip


@register
class BinaryPopcCuda(SignsCuda):
    """Sums of sign(x) sign(w): whole numbers, exact."""

    name = "binary_popc_cuda"


@register
class XnorPopcCuda(SignsCuda):
    """XNOR-Net: the sums times mean |w| of the filter and the mean of |x| under it.

    Sums of signs are exact; the two means are sums of floats, rounded at each step.
    """

    name = "xnor_popc_cuda"
    semantics = Semantics.XNOR
    reference = "Rastegari et al. 2016 (arXiv 1603.05279), section 3.2"
    scaled = True


def _words(problem: Problem) -> int:
    """Words of a group's channels at one pixel: whole pieces of 16 bytes."""
    return blocks(problem.shape.cg, WORD * CHUNK_WORDS) * CHUNK_WORDS


def _table(problem: Problem) -> tuple[int, int, int]:
    """Prefix sums of the filters' bits."""
    s = problem.shape
    return (s.r + 1, s.s + 1, s.k)


def _shared_bytes(tile: Tile) -> int:
    return tile.stages * (tile.m + tile.n) * ROW_BYTES + tile.m * PLACE_BYTES


def _counts_bits(gpu: Gpu) -> bool:
    """Whether mma.sync takes bits with and.popc."""
    return gpu.at_least(8)


def _fitting(tiles: tuple[Tile, ...], gpu: Gpu) -> tuple[Tile, ...]:
    if not _counts_bits(gpu):
        return ()
    return tuple(tile for tile in tiles if _shared_bytes(tile) <= gpu.shared_bytes - STATIC_BYTES)


def _tiles(gpu: Gpu) -> tuple[Tile, ...]:
    """Those to choose from, largest first."""
    return _fitting(TILES, gpu) or TILES[-1:]


def _tile(problem: Problem, gpu: Gpu) -> Tile:
    """The largest of which there is one for each multiprocessor, or the smallest."""
    geometry, tiles = Geometry(problem, _words(problem)), _tiles(gpu)
    return next((tile for tile in tiles if geometry.grid(tile) >= gpu.multiprocessors), tiles[-1])
