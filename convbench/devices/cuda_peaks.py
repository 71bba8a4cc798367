"""What a GPU gives at best: products by the vendor's BLAS in each arithmetic, and copying memory. Measured, by events.

Executed rates are compared with these. A product's rate lies below the raw peak of the multiply-add units, so float32
takes the larger of the product's and the units' number times the clock where NVML knows that.
"""

from __future__ import annotations

from typing import Any

from convbench.cuda.program import At, Product, Program
from convbench.devices import nvml
from convbench.devices.arrays import narrowed

SIZE = 8192
COPY_BYTES = 1 << 30
REPEATS = 5
#: float32 multiply-adds that a multiprocessor of each compute capability makes in a cycle (CUDA C++ Programming Guide).
LANES = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (12, 0): 128}
#: key -> (arithmetic of the product, type of its operands)
PRODUCTS = {
    "gflops_sgemm": ("float32", "float32"),
    "gflops_tf32": ("tf32", "float32"),
    "gflops_float16": ("float16-acc32", "float16"),
    "gflops_bfloat16": ("bfloat16-acc32", "bfloat16"),
}


def measure(device: Any) -> dict[str, float]:
    """{"gflops", "gflops_sgemm", "gflops_tf32", "gflops_float16", "gflops_bfloat16", "copy_gbps"}."""
    found = {key: _product(device, SIZE, *what) for key, what in PRODUCTS.items() if _has(device.gpu.compute, key)}
    found["gflops"] = max(found["gflops_sgemm"], _units(device))
    found["copy_gbps"] = _copy(device)
    return found


def _has(compute: tuple[int, int], key: str) -> bool:
    """Turing's tensor cores know float16 alone."""
    return compute >= (8, 0) or key in ("gflops_sgemm", "gflops_float16")


def _units(device: Any) -> float:
    """GFLOP/s of all float32 units at the highest clock, or 0 where that is not known."""
    clock = nvml.Monitor(device.xp.cuda.Device().pci_bus_id).facts().get("sm_mhz_max")
    return 2e-3 * device.gpu.multiprocessors * LANES.get(device.gpu.compute, 0) * (clock or 0)


def _product(device: Any, size: int, arithmetic: str, dtype: str) -> float:
    context = device.context()
    product = Product(At("a"), At("b"), At("out"), size, size, size, size, size, size, arithmetic=arithmetic)
    run = context.bind(Program((product,)))
    generator = device.xp.random.Generator(device.xp.random.Philox4x3210(1))
    with context.stream:  # random numbers: products of zeros would take less power, at a higher clock
        a, b = (narrowed(generator.standard_normal((size, size), dtype="float32"), dtype) for _ in range(2))
    out = context.empty((size, size), dtype)
    seconds = _fastest(device, context, lambda: run(a, b, out))
    return 2 * size**3 / seconds / 1e9


def _copy(device: Any) -> float:
    """Bytes read and written, in GB/s."""
    context = device.context()
    source, target = (context.empty(COPY_BYTES, "uint8") for _ in range(2))

    def copy() -> None:
        with context.stream:
            target.data.copy_from_device_async(source.data, COPY_BYTES)

    return 2 * COPY_BYTES / _fastest(device, context, copy) / 1e9


def _fastest(device: Any, context: Any, run: Any) -> float:
    """Seconds of the fastest of some runs, the first left out."""
    cuda, best = device.xp.cuda, float("inf")
    run()
    for _ in range(REPEATS):
        begin, end = cuda.Event(), cuda.Event()
        begin.record(context.stream)
        run()
        end.record(context.stream)
        end.synchronize()
        best = min(best, cuda.get_elapsed_time(begin, end) / 1e3)
    return best
