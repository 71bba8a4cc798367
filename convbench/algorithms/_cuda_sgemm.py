"""Batched single-precision products by kernels/cuda/sgemm_batched.cu: which tile size, how many blocks."""

from __future__ import annotations

from dataclasses import dataclass

from convbench.algorithms._cuda import blocks
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Launch, Long

TILE_K, STAGES = 16, 3
#: Tiles of the result that each way of reading the operands is compiled for: (A_ROWS, B_ROWS) -> (TILE_M, TILE_N).
TILES = {
    (False, False): ((128, 128), (64, 128), (64, 64), (128, 32)),
    (True, False): ((128, 64), (32, 128)),
    (True, True): ((128, 64), (64, 64)),
}
#: Tiles that are compiled too, for a sweep to compare with those.
SWEPT = {
    (False, False): ((128, 64),),
    (True, False): ((64, 128), (64, 64)),
    (True, True): ((64, 128),),
}
#: Speed of a full multiprocessor, relative; a model: smaller tiles read more for each product, and the L2 gives 5 to 6
#: TB/s. A thread makes 8 x 8 results in all of them.
EFFICIENCY = {(128, 128): 1.0, (64, 128): 0.95, (128, 64): 0.95, (64, 64): 0.75, (128, 32): 0.6, (32, 128): 0.6}


#: Part of the peak that the best of them reaches, and warps that it takes to reach it.
BEST, WARPS = 0.75, 8


@dataclass(frozen=True)
class Operands:
    """C[i] = A[i] B[i] for i < batch, m x n, a sum of k; see sgemm_batched.cu for rows, steps and splits.

    a_rows: A lies as m x k, otherwise as k x m; b_rows: B as n x k, otherwise as k x n.
    """

    a: str
    b: str
    c: str
    m: int
    n: int
    k: int
    row_a: int
    row_b: int
    row_c: int
    batch: int
    step_a: int
    step_b: int
    step_c: int
    a_rows: bool = False
    b_rows: bool = False
    splits: int = 1
    step_split: int = 0
    add: bool = False


def cycles(o: Operands, gpu: Gpu, tile: tuple[int, int]) -> float:
    """Expected time in cycles: of the multiprocessor that has most blocks, 128 lanes, which few warps do not fill."""
    most = blocks(blocks_of(o, tile), gpu.multiprocessors)
    area = tile[0] * tile[1]
    busy = min(1.0, most * area / 64 / 32 / WARPS)
    return most * area * split_length(o) / (128 * BEST * EFFICIENCY[tile] * busy)


def blocks_of(o: Operands, tile: tuple[int, int]) -> int:
    """Blocks of threads."""
    return o.batch * o.splits * blocks(o.m, tile[0]) * blocks(o.n, tile[1])


def split_length(o: Operands) -> int:
    """Steps of the sum that a block takes."""
    return TILE_K * blocks(blocks(o.k, o.splits), TILE_K)


def tile_of(o: Operands, gpu: Gpu) -> tuple[int, int]:
    """(TILE_M, TILE_N) with the least expected time."""
    return min(TILES[o.a_rows, o.b_rows], key=lambda tile: cycles(o, gpu, tile))


def sgemm(o: Operands, gpu: Gpu, tile: tuple[int, int] | None = None) -> Launch:
    """The launch, with the best tiles or with those given. Every row, step and offset must be a multiple of 4."""
    for name in ("row_a", "row_b", "row_c", "step_a", "step_b", "step_c", "step_split"):
        if getattr(o, name) % 4:
            raise ValueError(f"sgemm_batched: {name} must be a multiple of 4, not {getattr(o, name)}")
    tile_m, tile_n = tile or tile_of(o, gpu)
    grid = blocks_of(o, (tile_m, tile_n))
    arguments = (
        At(o.a), At(o.b), At(o.c), o.m, o.n, o.k, o.row_a, o.row_b, o.row_c, Long(o.step_a), Long(o.step_b),
        Long(o.step_c), o.splits, split_length(o), Long(o.step_split), int(o.add),
    )  # fmt: skip
    defines = (("A_ROWS", int(o.a_rows)), ("B_ROWS", int(o.b_rows)), ("TILE_M", tile_m), ("TILE_N", tile_n))
    shared_bytes = 4 * STAGES * TILE_K * (tile_m + tile_n)
    return Launch("sgemm_batched.cu", "sgemm_batched", (grid, 1, 1), (tile_m * tile_n // 64, 1, 1), arguments,
                  shared_bytes, defines)  # fmt: skip
