"""oneDNN's own convolutions through its C API: the vendor's rows on the CPU.

Library: oneDNN 3.2 (wheel onednn-cpu-gomp 2023.2, GNU OpenMP), https://uxlfoundation.github.io/oneDNN, primitive
"Convolution". `_capi.py` binds the functions, `_plan.py` turns a problem into primitives.
"""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.algorithms.onednn import _capi, _plan
from convbench.errors import Unavailable, Unsupported
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, register


class _Onednn(Implementation):
    """What the rows share; `blocked` says who chooses the activations' format.

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
    blocked: ClassVar[bool]

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
            choice = _plan.choose(problem, self.blocked, _capi.threads())
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
        choice = _plan.choose(problem, self.blocked, _capi.threads())
        return choice.scratchpad_bytes + choice.reordered_bytes

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Creates (compiles) the primitives; with `weights`, reorders them here. Raises Unsupported, Unavailable."""
        missing = self.unavailable()
        if missing:
            raise Unavailable(missing)
        choice = _plan.choose(problem, self.blocked, context.threads)
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
    blocked = False


@register
class OnednnBlocked(_Onednn):
    """oneDNN with every operand in the format it likes, activations included.

    Operands arrive and leave in the problem's layout, so entering and leaving the liked format is inside run() and
    on the clock: this row minus `onednn` is what the choice of format gains less what the conversions cost. The
    note "reorder" names the operands that crossed; where it names no activation, the liked format was the plain one.
    """

    name = "onednn_blocked"
    blocked = True


@register
class OnednnInt8(_Onednn):
    """oneDNN on int8, s8 times s8 summed in s32, with every operand in the format it likes: channels last.

    It likes nhwc as it is; nchw activations it would leave to its reference code, so those are converted inside run(),
    on the clock (`onednn_blocked` does the same with float32). The filter's reorder adds what oneDNN corrects its sums
    by where an instruction multiplies s8 by u8 only.

    Sums are exact where the processor has VNNI. Elsewhere oneDNN 3.2 is not: with ONEDNN_MAX_CPU_ISA at AVX2 and at
    AVX512_CORE every optimised kernel was wrong on numbers from all of int8 (by up to 2,730 with a 3x3 filter of 17
    channels); at AVX2_VNNI, at AVX512_CORE_VNNI and with AMX all of 32 shapes were exact. Elsewhere it is unavailable.
    """

    name = "onednn_int8"
    passes = (Pass.FORWARD,)
    dtypes = ("int8",)
    arithmetic = "int8-acc32"
    blocked = True
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
