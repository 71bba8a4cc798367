"""oneDNN's own convolutions through its C API: the vendor's rows on the CPU.

Library: oneDNN 3.2 (wheel onednn-cpu-gomp 2023.2, GNU OpenMP), https://uxlfoundation.github.io/oneDNN, primitive
"Convolution". `_capi.py` binds the functions, `_plan.py` turns a problem into primitives.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from convbench.algorithms.onednn import _capi, _plan
from convbench.errors import Unavailable, Unsupported
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import ALL_PASSES, Context, Implementation, Run, register


class _Onednn(Implementation):
    """What the rows share; `formats` says who chooses the activations' format.

    error_growth: the largest |error| / (eps sqrt(n) sqrt(x^2 * w^2)) measured was 1.92, the largest relative L2 error
    0.18 eps sqrt(n), over seven shapes (C up to 512, depthwise, 7x7 stride 2, n from 9 to 4,608 forward) x three
    passes x two layouts, normal inputs, AVX-512; twice that is 4. FMA in one order or another, never a transform:
    exact on integers.
    """

    dtypes = ("float32",)
    arithmetic = "float32"
    vendor = True
    pool = "onednn"
    error_growth = 4.0
    reference = "oneDNN 3.2, primitive Convolution (direct or implicit GEMM; strict float32)"
    formats: ClassVar[_plan.Activations]

    def activations(self, problem: Problem) -> _plan.Activations:
        """The format in which oneDNN is given the activations of a problem."""
        return self.formats

    def unavailable(self) -> str | None:
        """A sentence where the wheel is missing or its library does not load."""
        return _capi.load_problem()

    def limits(self, problem: Problem) -> str | None:
        """Refuses what oneDNN refuses, and what it would hand to its unoptimised reference code.

        Without the library nothing is known, and `unavailable` speaks instead.
        """
        if self.unavailable():
            return None
        try:
            choice = _plan.choose(problem, self.activations(problem), _capi.threads())
        except Unsupported as refusal:
            return str(refusal)
        return self._refuse_reference(choice)

    def _refuse_reference(self, choice: _plan.Choice) -> str | None:
        if choice.implementation.startswith("ref"):
            return (
                f"{self.name}: picks the reference implementation {choice.implementation} for this problem, "
                "which is never a baseline"
            )
        return None

    def workspace_estimate(self, problem: Problem) -> int:
        """The largest scratchpad and the buffers of reordered operands; without the library, the filter's bytes."""
        if self.unavailable():
            shape = problem.shape
            return shape.k * shape.cg * shape.r * shape.s * problem.item_bytes
        choice = _plan.choose(problem, self.activations(problem), _capi.threads())
        return choice.scratchpad_bytes + choice.reordered_bytes

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Creates (compiles) the primitives; with `weights`, reorders them here. Raises Unsupported, Unavailable."""
        missing = self.unavailable()
        if missing:
            raise Unavailable(missing)
        choice = _plan.choose(problem, self.activations(problem), context.threads)
        refusal = self._refuse_reference(choice)
        if refusal:
            raise Unsupported(refusal)
        packed = weights is not None
        context.note("vendor_impl", choice.implementation)
        context.note("onednn_version", _capi.version_text())
        context.note("reorder", _plan.describe_reorders(choice, packed))
        _capi.set_threads(context.threads)
        return _plan.OnednnPlan(choice, context, weights).callable(packed)


@register
class Onednn(_Onednn):
    """oneDNN with activations where they lie, in the problem's layout, and the filter in the format it likes.

    The filter's reorder is on the clock (raw; a gradient's too) or in prepare (packed).
    """

    name = "onednn"
    formats = _plan.Activations.AS_THEY_LIE


@register
class OnednnBlocked(_Onednn):
    """oneDNN with every operand in the format it likes, activations included.

    Operands arrive and leave in the problem's layout, so entering and leaving the liked format is inside run() and
    on the clock: this row minus `onednn` is what the choice of format gains less what the conversions cost. The
    note "reorder" names the operands that crossed; where it names no activation, the liked format was the plain one.
    """

    name = "onednn_blocked"
    formats = _plan.Activations.LIKED


@register
class OnednnInt8(_Onednn):
    """oneDNN on int8, s8 times s8 summed in s32, with every operand in the format it likes: channels last.

    It likes nhwc as it is; nchw activations it would leave to its reference code, so those are converted inside run(),
    on the clock (`onednn_blocked` does the same with float32). The filter's reorder adds what oneDNN corrects its sums
    by where an instruction multiplies s8 by u8 only.

    Sums are exact where the processor has VNNI. Elsewhere oneDNN 3.2 is not: with ONEDNN_MAX_CPU_ISA at AVX2 and at
    AVX512_CORE every optimised kernel was wrong on numbers from all of int8 (by up to 2,730 with a 3x3 filter of 17
    channels); at AVX2_VNNI, at AVX512_CORE_VNNI and with AMX all of 32 shapes were exact. Elsewhere it is unavailable.

    Other types of operands were timed beside these (AMX, nhwc, packed, 1 thread, ten shapes of VGG-16 and ResNet-50):
    results in float32 take 0.86 to 1.06 of the time of s32, u8 inputs the same but for depthwise filters (0.78, by
    another kernel), and results in s8, which are a quarter of the bytes and no sums, 0.65 to 0.96 with 3x3 and 7x7
    filters, 0.40 to 0.93 with 1x1.
    """

    name = "onednn_int8"
    passes = (Pass.FORWARD,)
    dtypes = ("int8",)
    arithmetic = "int8-acc32"
    formats = _plan.Activations.LIKED
    reference = "oneDNN 3.2, primitive Convolution (s8, s8 to s32)"

    def unavailable(self) -> str | None:
        """A sentence where the library is missing, or where its sums would not be exact."""
        missing = super().unavailable()
        if missing or _capi.has_vnni():
            return missing
        return (
            f"{self.name} needs a processor with VNNI: without it oneDNN's sums of int8 are not exact (its developer "
            "guide, 'Nuances of int8 computations')"
        )


@lru_cache(maxsize=4)
def _answers(dtype: str) -> dict[Pass, str]:
    """What the library has for a 3x3 convolution of 16 channels, pass by pass: a name, or "unimplemented"."""
    answers = {}
    for pass_ in ALL_PASSES:
        problem = Problem(ConvShape.make(1, 16, 8, 8, 16, 3, 3, padding=1), pass_, dtype, "nhwc")
        try:
            answers[pass_] = _plan.choose(problem, _plan.Activations.AS_THEY_LIE, _capi.threads()).implementation
        except Unsupported:
            answers[pass_] = "unimplemented"
    return answers


class _OnednnHalf(_Onednn):
    """What the rows in 16-bit types share: available where the library has more than its reference code for a pass.

    error_growth is that of float32, in which the sums are; of it, no more than 0.43 was seen beyond half an ulp of
    the stored result (seven shapes, C up to 512, depthwise, 7x7 stride 2, all passes and layouts; bfloat16 0.10,
    float16 0.43; relative L2 error 0.44 half ulps in either, which is what rounding once gives).
    """

    formats = _plan.Activations.CHANNELS_LAST

    def unavailable(self) -> str | None:
        """A sentence where the library is missing, or has nothing but reference code here for any pass: asked of it."""
        missing = super().unavailable()
        if missing:
            return missing
        answers = _answers(self.dtypes[0])
        if not all(answer.startswith(("ref", "unimplemented")) for answer in answers.values()):
            return None
        said = ", ".join(f"{pass_} {answer}" for pass_, answer in answers.items())
        return (
            f"{self.name}: oneDNN {_capi.version_text()} has no optimised convolution in {self.dtypes[0]} for this "
            f"processor; asked for a 3x3 filter and 16 channels it answers: {said}"
        )


@register
class OnednnBf16(_OnednnHalf):
    """oneDNN in bfloat16: products summed in float32, rounded once; on AMX tiles, or by AVX512_BF16 or its emulation.

    Activations are channels last: nhwc as they lie, nchw converted inside run(), on the clock. With AMX that took the
    least time of what oneDNN offers (18 shapes, three passes, 1 thread). nhwc left to its liking: 1.2 to 2.4 times the
    time for depthwise and 32-group filters, for which it blocks channels; elsewhere the same. nchw as it lies, through
    im2col and GEMM: 1.05 to 12 times. But where the filter is 1x1 with stride 1, GEMM needs no im2col, and nchw stays:
    of ten such shapes in three passes 27 of 30 took 0.3 to 0.95 of the time with conversions, two 1.4 (64 to 256
    channels forward, 256 to 64 backward data), one 1.03; with packed weights two 7x7 images 1.2.
    """

    name = "onednn_bf16"
    dtypes = ("bfloat16",)
    arithmetic = "bfloat16-acc32"
    reference = "oneDNN 3.2, primitive Convolution (bfloat16, summed in float32)"

    def activations(self, problem: Problem) -> _plan.Activations:
        """Channels last, but as they lie where the convolution is one matrix product an image already."""
        s = problem.shape
        if (s.r, s.s, s.stride, s.padding, s.groups) == (1, 1, (1, 1), (0, 0, 0, 0), 1):
            return _plan.Activations.AS_THEY_LIE
        return self.formats


@register
class OnednnFp16(_OnednnHalf):
    """oneDNN in float16, products summed in float32 and rounded once, where the processor has AVX512_FP16.

    oneDNN 3.2 then has both forward and backward data, for activations that are channels last (nchw is converted inside
    run(), on the clock), and reference code alone for backward weights, which is refused. Elsewhere it has none.
    """

    name = "onednn_fp16"
    dtypes = ("float16",)
    arithmetic = "float16-acc32"
    reference = "oneDNN 3.2, primitive Convolution (float16, summed in float32)"
