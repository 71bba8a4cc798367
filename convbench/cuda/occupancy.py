"""How many blocks of a kernel a multiprocessor holds at a time, from registers, shared memory and threads.

Limits and allocation units: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability", and
the toolkit's cuda_occupancy.h. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbench.cuda.gpu import Gpu

WARP = 32
REGISTERS = 65536
#: Registers are handed out to warps in units of this many, to four quarters of a multiprocessor.
REGISTER_UNIT, QUARTERS = 256, 4
#: Shared memory is handed out in units of this many bytes.
SHARED_UNIT = 128


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one. reserved: bytes of shared memory that each block takes beside its own."""

    threads: int
    blocks: int
    shared_bytes: int
    reserved: int


def multiprocessor_of(gpu: Gpu) -> Multiprocessor:
    """The limits of a GPU's multiprocessors by compute capability."""
    if gpu.compute < (8, 0):
        return Multiprocessor(1024, 16, gpu.shared_bytes, 0)
    blocks = {(8, 6): 16, (8, 7): 16, (8, 9): 24}.get(gpu.compute, 24 if gpu.compute >= (12, 0) else 32)
    threads = 1536 if gpu.compute in ((8, 6), (8, 7), (8, 9)) or gpu.compute >= (12, 0) else 2048
    return Multiprocessor(threads, blocks, gpu.shared_bytes + 1024, 1024)


def resident_blocks(gpu: Gpu, threads: int, registers: int = 32, shared_bytes: int = 0) -> int:
    """Blocks of `threads` threads that one multiprocessor holds; 0 if not even one.

    registers: of a thread; shared_bytes: of a block, static and dynamic.
    """
    m = multiprocessor_of(gpu)
    warps = -(-threads // WARP)
    of_warp = _rounded(registers * WARP, REGISTER_UNIT)
    by_registers = REGISTERS // QUARTERS // max(1, of_warp) * QUARTERS // warps
    by_threads = m.threads // (warps * WARP)
    taken = _rounded(shared_bytes + m.reserved, SHARED_UNIT)
    by_shared = m.shared_bytes // taken if taken else m.blocks
    return min(m.blocks, by_registers, by_threads, by_shared)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
