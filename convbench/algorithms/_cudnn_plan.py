"""cuDNN on the current GPU: its library, what it offers a problem, the fastest plan, and running it on a stream."""

from __future__ import annotations

import functools
import importlib
import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.algorithms import _cudnn
from convbench.algorithms._cudnn import INSTALL, NumericClass, Offer
from convbench.devices.arrays import address, narrowed, storage
from convbench.errors import Unsupported
from convbench.problem import Problem
from convbench.registry import Context, Run

LEAST_VERSION = 90000
#: A plan may take so much workspace, or twice the operands if that is more: room for operands in another layout, and
#: on all but the largest problems for the matrix of an explicit GEMM.
WORKSPACE_BYTES = 8 << 30
#: Plans that are timed again after the first round, and how often.
FINALISTS, SAMPLES = 4, 7


def missing() -> str | None:
    """What stands between this process and cuDNN, CuPy and the GPU left aside, or None."""
    try:
        version = int(importlib.import_module("cudnn").backend_version())
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises becomes the reason
        return f"cuDNN 9 ({' '.join(str(error).split())}): {INSTALL}"
    if version < LEAST_VERSION:
        return f"cuDNN 9, this is {version // 1000}.{version % 1000 // 100}: {INSTALL}"
    return None


def allowed_workspace(problem: Problem) -> int:
    """Bytes that a plan may take."""
    s = problem.shape
    matrix = s.n * s.p * s.q * s.c * s.r * s.s * problem.item_bytes  # im2col of the whole batch
    operands = 2 * problem.operand_bytes + (64 << 20)
    return max(operands, min(operands + matrix, WORKSPACE_BYTES))


@dataclass(frozen=True)
class Question:
    """What limits() asks: a problem, a class, perhaps one engine."""

    problem: Problem
    numeric: NumericClass
    engine: int | None = None


@functools.lru_cache(maxsize=4096)
def refusal(question: Question) -> str | None:
    """Why cuDNN has no plan for this on the current GPU, or None. The first plan that can be built settles it."""
    from convbench.devices.cuda import this_gpu

    cudnn, handle = importlib.import_module("cudnn"), _asking()
    problem, numeric, engine = question.problem, question.numeric, question.engine
    try:
        count, able = _takers(problem)
        plans = _cudnn.plans_of(cudnn, problem, numeric, able, engine, handle=handle)
        least = None
        for plan in plans:
            if plan.workspace_bytes <= allowed_workspace(problem):
                return None
            least = min(least or plan.workspace_bytes, plan.workspace_bytes)
    except _cudnn.refusals(cudnn) as error:
        return f"cuDNN makes no graph of this problem: {' '.join(str(error).split())[:160]}"
    if least is not None:
        return f"cuDNN's plans take {least} bytes of workspace at least, allowed are {allowed_workspace(problem)}"
    gpu = this_gpu()
    return _cudnn.not_offered(cudnn.backend_version_string(), numeric, count, engine, f"{gpu.name} (sm_{gpu.compute[0]}"
                              f"{gpu.compute[1]})")  # fmt: skip


@functools.lru_cache(maxsize=64)
def _takers(problem: Problem) -> tuple[int, tuple[int, ...]]:
    """(number of engines, those that take the problem) on the current GPU."""
    cudnn, handle = importlib.import_module("cudnn"), _asking()
    count = int(_cudnn.graph_of(cudnn, problem, handle=handle).get_engine_count())
    return count, _cudnn.takers(cudnn, problem, range(count), handle=handle)


@functools.cache
def _asking() -> int:
    """The process's handle for questions; nothing runs on it."""
    return int(importlib.import_module("cudnn").create_handle())


def forget() -> None:
    """Asks again when it is next asked: another library, another GPU."""
    refusal.cache_clear()
    _takers.cache_clear()
    _asking.cache_clear()


class CudnnPlan:
    """The fastest plan of a class for one problem, its workspace and a handle on the context's stream.

    Every plan that fits is timed here, on normal numbers. Not thread-safe. Raises Unsupported where none runs.
    """

    def __init__(self, question: Question, context: Any) -> None:
        cudnn = importlib.import_module("cudnn")
        self._handle = cudnn.create_handle()
        weakref.finalize(self, cudnn.destroy_handle, self._handle)
        cudnn.set_stream(handle=self._handle, stream=context.stream.ptr)
        problem, limit = question.problem, allowed_workspace(question.problem)
        try:
            offered = _cudnn.offers(cudnn, problem, question.numeric, question.engine, handle=self._handle)
        except _cudnn.refusals(cudnn) as error:
            raise Unsupported(f"cuDNN makes no graph of this problem: {' '.join(str(error).split())[:160]}") from None
        plans = [plan for plan in offered.plans if plan.workspace_bytes <= limit]
        race = _Race(cudnn, problem, context, self._handle)
        self._plan = race.fastest(plans)
        notes = _cudnn.numeric_notes(cudnn, problem, self._plan.engine, handle=self._handle)
        self._workspace = context.empty(self._plan.workspace_bytes, "uint8") if self._plan.workspace_bytes else None
        context.note("vendor_impl", f"{self._plan.name} [{' '.join(notes) or 'no numeric note'}]")
        context.note("cudnn_version", f"{cudnn.backend_version_string()}, frontend {cudnn.__version__}")
        context.note("cudnn_workspace", f"{self._plan.workspace_bytes} bytes")
        context.note(
            "cudnn_plans",
            f"{len(race.timed)} timed of {len(offered.plans)} offered ({offered.engines} engines); "
            f"{len(offered.plans) - len(plans)} above {limit} bytes of workspace, {race.failed} did not run",
        )

    def run(self, a: Any, b: Any, out: Any) -> None:
        """Enqueues one convolution on the context's stream."""
        _enqueue(self._plan, self._handle, (a, b, out), self._workspace)

    def callable(self, weights: Any, context: Any) -> Run:
        """run(a, b, out); with `weights`, run(a, out) over a copy: cuDNN packs no filter ahead of a convolution."""
        context.launches = 1
        if weights is None:
            return self.run
        kept = context.empty(weights.shape, weights.dtype)
        with context.stream:
            context.xp.copyto(kept, weights)
        context.stream.synchronize()
        return lambda a, out: self.run(a, kept, out)


def _enqueue(plan: Offer, handle: int, operands: Sequence[Any], workspace: Any) -> None:
    pack = {uid: address(array) for uid, array in zip(_cudnn.UIDS.values(), operands, strict=True)}
    scratch = address(workspace) if workspace is not None else 0
    plan.graph.execute_plan_at_index(pack, scratch, plan.index, handle=handle)


class _Race:
    """Times plans on operands of its own, by events on the context's stream; all of it is given back."""

    def __init__(self, cudnn: Any, problem: Problem, context: Any, handle: int) -> None:
        self._cudnn, self._problem, self._context, self._handle = cudnn, problem, context, handle
        self.timed: dict[str, float] = {}
        self.failed = 0

    def fastest(self, plans: Sequence[Offer]) -> Offer:
        """Each plan is warmed up and timed once, the best few several times; the least median wins."""
        if len(plans) == 1:
            self.timed[plans[0].name] = 0.0
            return plans[0]
        xp = self._context.xp
        with self._context.stream:
            operands = self._operands()
            scratch = xp.empty(max((plan.workspace_bytes for plan in plans), default=0) or 1, np.uint8)
            for plan in plans:
                self._first_round(plan, operands, scratch)
            ranked = sorted((p for p in plans if p.name in self.timed), key=lambda p: self.timed[p.name])
            if not ranked:
                raise Unsupported(f"none of the {len(plans)} plans that cuDNN offers for this problem runs")
            for plan in ranked[:FINALISTS]:
                samples = [self._time(plan, operands, scratch) for _ in range(SAMPLES)]
                self.timed[plan.name] = statistics.median(samples)
        return min(ranked[:FINALISTS], key=lambda p: self.timed[p.name])

    def _first_round(self, plan: Offer, operands: Sequence[Any], scratch: Any) -> None:
        try:
            _enqueue(plan, self._handle, operands, scratch)
            self.timed[plan.name] = self._time(plan, operands, scratch)
        except _cudnn.refusals(self._cudnn):  # offered, and then it does not run: the note says how many
            self.failed += 1

    def _operands(self) -> tuple[Any, Any, Any]:
        """Normal numbers, or all of int8: what a GPU's clock does depends on how many bits flip."""
        xp, p = self._context.xp, self._problem
        generator = xp.random.Generator(xp.random.Philox4x3210(0))

        def numbers(shape: tuple[int, ...]) -> Any:
            if p.is_integer:
                return narrowed(generator.integers(-128, 127, shape, np.int32, endpoint=True), p.dtype)
            return narrowed(generator.standard_normal(shape, dtype=np.float32), p.dtype)

        return numbers(p.a_shape), numbers(p.b_shape), xp.empty(p.out_shape, storage(p.out_dtype))

    def _time(self, plan: Offer, operands: Sequence[Any], scratch: Any) -> float:
        """Milliseconds of one run."""
        cuda, stream = self._context.xp.cuda, self._context.stream
        begin, end = cuda.Event(), cuda.Event()
        begin.record(stream)
        _enqueue(plan, self._handle, operands, scratch)
        end.record(stream)
        end.synchronize()
        return float(cuda.get_elapsed_time(begin, end))


def prepare(question: Question, context: Context, weights: Any) -> Run:
    """The callable of a row."""
    return CudnnPlan(question, context).callable(weights, context)
