"""What the rows `*_cupy` add to the NumPy rows that they derive from: the same code on CuPy's arrays, on a GPU."""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.problem import Problem
from convbench.registry import Context, Implementation, Run


class OnCupy(Implementation):
    """First base of a `*_cupy` row; the second is the NumPy row whose buffers and steps it takes over.

    Elementwise steps are CuPy's kernels, products cuBLAS in pedantic mode (`devices/cuda_matmul.py`): no TF32, whatever
    CUPY_TF32 says. All memory is taken in prepare(); run() enqueues on the context's stream and waits for nothing.
    Sums may run in another order than NumPy's, which the bound of the NumPy row covers: it does not ask for one.
    """

    device: ClassVar[str] = "cuda"
    requires: ClassVar[tuple[str, ...]] = ("cupy",)
    extra: ClassVar[str | None] = "cuda"
    pool: ClassVar[str] = "cuda"

    def unavailable(self) -> str | None:
        """What is missing: cupy, a driver, a GPU."""
        missing = super().unavailable()
        if missing is not None:
            return missing
        from convbench.devices import cuda  # brings NumPy

        why = cuda.why_not()
        return f"{self.name} needs an NVIDIA GPU: {why}" if why else None

    def alternatives(self, problem: Problem, gpu: Any) -> dict[str, Any]:
        """Nothing for a sweep to compare: there are no tiles to choose."""
        return {}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """The NumPy row's, with the context's stream as the current one; waits for what it has enqueued."""
        with context.stream:
            run = super().prepare(problem, context, weights)
        context.stream.synchronize()

        def on_stream(*operands: Any) -> None:
            with context.stream:
                run(*operands)

        return on_stream
