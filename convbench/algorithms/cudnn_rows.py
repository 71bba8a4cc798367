"""cuDNN's convolutions: the vendor's rows on a GPU, one for each numeric class, the fastest of all plans it offers.

Library: NVIDIA cuDNN 9 through nvidia-cudnn-frontend 1.22, https://docs.nvidia.com/deeplearning/cudnn. `_cudnn.py`
makes graphs and filters plans, `_cudnn_plan.py` times and runs them. What it offers for an H200, layer by layer, stands
in tests/data/cudnn_h200.csv and .json, made by benchmarks/cudnn_enumerate.py without a GPU: on compute capability 9.0
no engine has the note WINOGRAD or FFT, and none that gives sums of int8 in int32 has the note TENSOR_CORE.

One engine by itself is a row on demand: CONVBENCH_CUDNN_ENGINES="cudnn_fp32:2,70 cudnn_tf32:67" registers
cudnn_fp32_engine2, cudnn_fp32_engine70 and cudnn_tf32_engine67, each the fastest plan of that engine.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, ClassVar

from convbench.algorithms import _cudnn
from convbench.algorithms._cudnn import NumericClass
from convbench.errors import RegistrationError, Unavailable, Unsupported
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, register

ENGINES = "CONVBENCH_CUDNN_ENGINES"


class CudnnImplementation(Implementation):
    """What the rows share; `numeric` says which plans are candidates, `engine` names one engine or none.

    Every plan of the class is timed in prepare, on the context's stream; the note "vendor_impl" says which won.
    Workspace, transforms of the layout included, is the row's; the filter has nothing to pack.

    error_growth: not measured on a GPU yet. Strict float32 sums products in some order, as oneDNN does, hence its 4.0.
    Other classes as implicit_gemm_*_cuda: the same instructions.
    """

    device = "cuda"
    requires = ("cupy", "cudnn")
    extra = "cuda"
    vendor = True
    pool = "cuda"
    error_growth = 4.0
    reference = "NVIDIA cuDNN 9, graph API"
    numeric: ClassVar[NumericClass]
    engine: ClassVar[int | None] = None
    least: ClassVar[tuple[int, int]] = (7, 5)

    def unavailable(self) -> str | None:
        """What is missing: a module, a driver, a GPU, a compute capability, or cuDNN's own library."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                return f"{self.name} needs {module}: {_cudnn.INSTALL}"
        from convbench.devices import cuda  # brings NumPy

        why = cuda.why_not(self.least)
        if why is not None:
            return f"{self.name} needs an NVIDIA GPU: {why}"
        from convbench.algorithms import _cudnn_plan

        what = _cudnn_plan.missing()
        return f"{self.name} needs {what}" if what else None

    def limits(self, problem: Problem) -> str | None:
        """Refuses what cuDNN offers no plan for on this GPU. Elsewhere nothing is known, and `unavailable` speaks."""
        if self.unavailable():
            return None
        from convbench.algorithms import _cudnn_plan

        why = _cudnn_plan.refusal(self._question(problem))
        return f"{self.name}: {why}" if why else None

    def workspace_estimate(self, problem: Problem) -> int:
        """What a plan may take at most: which one wins is known when they were timed."""
        from convbench.algorithms import _cudnn_plan

        return _cudnn_plan.allowed_workspace(problem)

    def alternatives(self, problem: Problem, gpu: Any) -> dict[str, Any]:
        """Nothing for a sweep to compare: the library has chosen."""
        return {}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Builds and times the plans. Raises Unavailable, Unsupported."""
        missing = self.unavailable()
        if missing:
            raise Unavailable(missing)
        why = self.limits(problem)
        if why:
            raise Unsupported(why)
        from convbench.algorithms import _cudnn_plan

        return _cudnn_plan.prepare(self._question(problem), context, weights)

    def _question(self, problem: Problem) -> Any:
        from convbench.algorithms import _cudnn_plan

        return _cudnn_plan.Question(problem, self.numeric, self.engine)


@register
class CudnnFp32(CudnnImplementation):
    """Strict float32: no tensor cores, no inputs of lower precision, no transform. The baseline of float32 rows."""

    name = "cudnn_fp32"
    dtypes = ("float32",)
    arithmetic = "float32"
    numeric = _cudnn.FP32


@register
class CudnnTf32(CudnnImplementation):
    """float32 operands that may be multiplied in TF32, as PyTorch's allow_tf32; plans in float32 take part too.

    Plans that convert inputs to half precision do not: TF32 has its range and they have not.
    """

    name = "cudnn_tf32"
    dtypes = ("float32",)
    arithmetic = "tf32"
    error_growth = 2.0
    numeric = _cudnn.TF32
    least = (8, 0)


@register
class CudnnFp16(CudnnImplementation):
    """float16 operands and results, sums in float32. Plans that sum in float16 are left out."""

    name = "cudnn_fp16"
    dtypes = ("float16",)
    arithmetic = "float16-acc32"
    error_growth = 20.0
    numeric = _cudnn.FP16


@register
class CudnnBf16(CudnnImplementation):
    """bfloat16 operands and results, sums in float32."""

    name = "cudnn_bf16"
    dtypes = ("bfloat16",)
    arithmetic = "bfloat16-acc32"
    error_growth = 20.0
    numeric = _cudnn.BF16
    least = (8, 0)


@register
class CudnnInt8(CudnnImplementation):
    """int8 operands and their exact sums in int32, the forward pass: cuDNN offers no gradients of int8.

    For an H200 it offers engine 0 in both layouts and engine 28 in nhwc, neither with the note TENSOR_CORE. Asked for
    results in INT8 instead, which are cut off, it offers engines 60 and 69 too (3x3, C = K = 64, 56x56, batch 32, nhwc;
    not with C = 66): this row says nothing about how fast those are.
    """

    name = "cudnn_int8"
    passes = (Pass.FORWARD,)
    dtypes = ("int8",)
    arithmetic = "int8-acc32"
    numeric = _cudnn.INT8


class CudnnTransform(CudnnImplementation):
    """Rows of engines that transform: errors spread over the result. Their tiles are cuDNN's affair."""

    dtypes = ("float32",)
    arithmetic = "float32"
    exact_on_integers = False

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The whole result, for want of a known tile."""
        s = problem.shape
        sizes = {Pass.FORWARD: (s.p, s.q), Pass.BACKWARD_DATA: (s.h, s.w), Pass.BACKWARD_WEIGHTS: (s.r, s.s)}
        return sizes[problem.pass_]


@register
class CudnnFp32Winograd(CudnnTransform):
    """cuDNN's Winograd engines in strict float32, where it offers any. error_growth: as for winograd_f4_cuda."""

    name = "cudnn_fp32_winograd"
    error_growth = 20.0
    error_length = 1024
    numeric = _cudnn.FP32_WINOGRAD
    reference = "NVIDIA cuDNN 9, engines with the note WINOGRAD (Lavin and Gray 2015, arXiv 1509.09308)"


@register
class CudnnFp32Fft(CudnnTransform):
    """cuDNN's FFT engines in strict float32, where it offers any. error_growth: as for fft_cuda."""

    name = "cudnn_fp32_fft"
    error_growth = 5.5
    numeric = _cudnn.FP32_FFT
    reference = "NVIDIA cuDNN 9, engines with the note FFT (Mathieu, Henaff, LeCun 2013, arXiv 1312.5851)"


CLASSES = (CudnnFp32, CudnnTf32, CudnnFp16, CudnnBf16, CudnnInt8, CudnnFp32Winograd, CudnnFp32Fft)


def engine_rows(text: str) -> list[type[CudnnImplementation]]:
    """A class for each engine that "cudnn_fp32:2,70 cudnn_tf32:67" names. Raises RegistrationError."""
    bases = {cls.name: cls for cls in CLASSES}
    found: dict[str, type[CudnnImplementation]] = {}
    for part in text.split():
        base, _, numbers = part.partition(":")
        if base not in bases or not all(number.isdecimal() for number in numbers.split(",")):
            raise RegistrationError(
                f"{ENGINES}: {part!r} is not ROW:NUMBER,NUMBER,... with ROW one of {', '.join(bases)}, as in "
                '"cudnn_fp32:2,70"'
            )
        for number in map(int, numbers.split(",")):
            found[f"{base}_engine{number}"] = _one_engine(bases[base], number)
    return list(found.values())


def _one_engine(base: type[CudnnImplementation], number: int) -> type[CudnnImplementation]:
    """The row of one engine."""
    return type(
        f"{base.__name__}Engine{number}",
        (base,),
        {
            "name": f"{base.name}_engine{number}",
            "engine": number,
            "__doc__": f"The fastest plan of cuDNN's engine {number}, otherwise as {base.name}.",
            "__module__": __name__,
        },
    )


for _row in engine_rows(os.environ.get(ENGINES, "")):
    register(_row)
