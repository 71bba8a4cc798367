"""PyTorch's convolutions on a GPU: a cross-check of the rows `cudnn_*`.

PyTorch, https://pytorch.org: aten::convolution and aten::convolution_backward, which call cuDNN. It tells neither the
engine nor the workspace.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

from convbench.algorithms.torch_cpu import _Call, _own_bytes
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, register


@register
class TorchCuda(Implementation):
    """aten's convolution and its two gradients over CuPy's memory, on the context's stream; strict float32.

    TF32 is off (PyTorch's default is on) and cudnn.benchmark is on: PyTorch times cuDNN's engines at the first run of
    a shape. As for the row `torch`, its own result is copied into `out` on the clock and F.pad does asymmetric padding.
    What its allocator takes beside the results, cuDNN's workspace above all, is not in the workspace column.

    Which engine runs is PyTorch's choice: on GPUs older than compute capability 9.0 a Winograd engine may, so results
    are held to Winograd's bound (as winograd_f4_cuda) over the whole result, and not to exact integers.
    """

    name = "torch_cuda"
    device = "cuda"
    dtypes = ("float32",)
    arithmetic = "float32"
    requires = ("cupy", "torch")
    vendor = True
    pool = "cuda"
    error_growth = 20.0
    exact_on_integers = False
    reference = "PyTorch, aten::convolution and aten::convolution_backward on CUDA"

    def unavailable(self) -> str | None:
        """A module, a driver, a GPU, or a PyTorch that was built for GPUs."""
        if importlib.util.find_spec("cupy") is None:
            return f"{self.name} needs cupy: pip install 'convbench[cuda]'"
        missing = super().unavailable()
        if missing is not None:
            return missing
        from convbench.devices import cuda  # brings NumPy

        why = cuda.why_not()
        if why is None:
            why = _torch_problem()
        return f"{self.name} needs an NVIDIA GPU and a PyTorch for it: {why}" if why else None

    def workspace_estimate(self, problem: Problem) -> int:
        """The result that PyTorch allocates, stand-ins for unused operands, padded copies; not cuDNN's workspace."""
        return sum(_own_bytes(problem).values())

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The whole result: the engine may transform."""
        s = problem.shape
        sizes = {Pass.FORWARD: (s.p, s.q), Pass.BACKWARD_DATA: (s.h, s.w), Pass.BACKWARD_WEIGHTS: (s.r, s.s)}
        return sizes[problem.pass_]

    def alternatives(self, problem: Problem, gpu: Any) -> dict[str, Any]:
        """Nothing for a sweep to compare: the library has chosen."""
        return {}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Sets PyTorch's switches for the process, and picks the call."""
        torch = importlib.import_module("torch")
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = True
        context.note("vendor_impl", f"torch {torch.__version__} (cuDNN {torch.backends.cudnn.version()})")
        call = _CudaCall(torch, problem, context)
        if weights is None:
            return call.on_stream
        kept = context.empty(weights.shape, weights.dtype)
        with context.stream:
            context.xp.copyto(kept, weights)
        context.stream.synchronize()
        context.note("packed", "nothing: the filter is kept as it is")
        return lambda a, out: call.on_stream(a, kept, out)


@functools.cache
def _torch_problem() -> str | None:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises becomes the reason
        return f"torch cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees none: install the build for CUDA, https://pytorch.org/get-started"
    return None


class _CudaCall(_Call):
    """The CPU row's calls on tensors that share CuPy's memory. Not thread-safe."""

    def __init__(self, torch: Any, problem: Problem, context: Context) -> None:
        super().__init__(torch, problem, context)
        self._stream = torch.cuda.ExternalStream(context.stream.ptr)

    def on_stream(self, a: Any, b: Any, out: Any) -> None:
        """Enqueues one convolution on the context's stream."""
        with self.torch.cuda.stream(self._stream):
            self.run(a, b, out)

    def _view(self, array: Any) -> Any:
        """The same memory as a tensor of logical shape (N, C, H, W) or (K, C/G, R, S); channels_last for nhwc."""
        tensor = self.torch.as_tensor(array, device="cuda")
        return tensor.permute(0, 3, 1, 2) if self.nhwc else tensor

    def _set_threads(self) -> None:
        """CPU threads are no matter here."""
