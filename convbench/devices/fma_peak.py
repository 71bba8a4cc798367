"""The raw multiply-add peak of the CPU's cores: independent chains of vector FMA in registers, no memory touched.

What an executed rate is compared with: no kernel can be above it, a BLAS product (some 80 to 95 % of it) can be
beaten. The instruction is emitted as LLVM vector IR through Numba, as wide as the host's registers.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

CHAINS = 16  # more than latency (4 to 5 cycles) times FMA units (2), fewer than there are registers
ITERATIONS = 5_000_000  # some 20 ms: scheduling is lost in it
FACTOR, ADDEND = 0.5, 0.25  # x -> x / 2 + 1 / 4 settles at 1 / 2: no overflow, no denormals


def measure(threads: int, dtype: str = "float32", seconds: float = 0.4) -> float:
    """GFLOP/s of `threads` cores at once: the best of the rounds that fit into `seconds`. Raises RuntimeError."""
    chain, lanes = _compiled(dtype)
    chain(1, 1.0)
    flops = 2.0 * CHAINS * lanes * ITERATIONS * threads
    best_s, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best_s = min(best_s, _round(chain, threads))
    if best_s == float("inf"):
        raise RuntimeError("the peak could not be measured: no round fitted into its time")
    return flops / best_s / 1e9


def run_chain(iterations: int, start: float, dtype: str = "float32") -> float:
    """The sum of all lanes of all chains after so many steps x -> x * FACTOR + ADDEND from `start`."""
    return float(_compiled(dtype)[0](iterations, start))


def lanes_of(dtype: str) -> int:
    """Elements of `dtype` in one vector register of this host."""
    return int(_compiled(dtype)[1])


def _round(chain: Callable[[int, float], float], threads: int) -> float:
    """Seconds from the first thread's start to the last one's end, each read in the thread itself."""
    ready = threading.Barrier(threads)
    moments: list[float] = []

    def work() -> None:
        ready.wait()
        start = time.perf_counter()
        chain(ITERATIONS, 1.0)
        moments.extend((start, time.perf_counter()))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(moments) - min(moments)


@functools.cache
def _compiled(dtype: str) -> tuple[Any, int]:
    """(chain(iterations, start) -> sum of all lanes, number of lanes)."""
    import llvmlite.binding as llvm
    import llvmlite.ir as ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    features = llvm.get_host_cpu_features()
    width = 64 if features.get("avx512f") else 32 if features.get("avx") else 16
    element = ir.FloatType() if dtype == "float32" else ir.DoubleType()
    lanes = width // (4 if dtype == "float32" else 8)
    vector = ir.VectorType(element, lanes)
    fused = bool(features.get("fma") or features.get("neon"))

    def constant(value: float) -> Any:
        return ir.Constant(vector, [value] * lanes)

    @intrinsic
    def chains(typing_context: Any, iterations: Any, start: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count, first = arguments
            scalar = builder.fptrunc(first, element) if dtype == "float32" else first
            initial = constant(0.0)
            for lane in range(lanes):
                initial = builder.insert_element(initial, scalar, ir.Constant(ir.IntType(32), lane))
            name = f"llvm.fma.v{lanes}f{element.intrinsic_name[1:]}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            slots = [cgutils.alloca_once_value(builder, initial) for _ in range(CHAINS)]
            with cgutils.for_range(builder, count):
                for slot in slots:  # registers after LLVM's mem2reg
                    value = builder.load(slot)
                    if fused:
                        stepped = builder.call(fma, [value, constant(FACTOR), constant(ADDEND)])
                    else:
                        stepped = builder.fadd(builder.fmul(value, constant(FACTOR)), constant(ADDEND))
                    builder.store(stepped, slot)
            total = ir.Constant(ir.DoubleType(), 0.0)
            for slot in slots:
                value = builder.load(slot)
                for lane in range(lanes):
                    part = builder.extract_element(value, ir.Constant(ir.IntType(32), lane))
                    part = builder.fpext(part, ir.DoubleType()) if dtype == "float32" else part
                    total = builder.fadd(total, part)
            return total

        return types.float64(types.int64, types.float64), generate

    @njit(nogil=True)
    def chain(iterations: int, start: float) -> float:
        return float(chains(iterations, start))  # type: ignore[call-arg]

    return chain, lanes
