"""No plan is timed before it has passed here: DESIGN section 4 as code.

Every check can be switched off by name, so that a test can show what each of them alone catches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from convbench.devices.arrays import poison, poisoned
from convbench.devices.base import Plan, make_plan
from convbench.devices.cpu import CpuDevice
from convbench.problem import Problem, Semantics
from convbench.registry import Implementation
from convbench.verify import compare
from convbench.verify.buffers import Operands, same_bytes, timing_copies
from convbench.verify.compare import CheckFailed
from convbench.verify.inputs import Recipe, integer_recipe, to_logical, usual_recipe
from convbench.verify.judge import BoundExceeded, Judge
from convbench.verify.reference import FULL_MACS, Reference, inputs_of, reference_of
from convbench.verify.verdict import ALL_CHECKS, Verdict

#: How long a result is watched for late writes, in seconds; longer when it looks unfinished.
SETTLE_S = 0.002
SETTLE_UNFINISHED_S = 0.1
# Seeds are 16 * seed + one of these, so that verification, repetition and recheck never share inputs.
_FIRST, _OTHER, _FRESH, _RETRY = 0, 1, 2, 4


class Verifier:
    """Verifies implementations on one problem.

    cache_dir: where oracle results are kept for other processes. checks: names out of ALL_CHECKS (all but tests
    leave it alone). full_macs: multiply-adds up to which every element is compared with the oracle directly.
    operands: makes where a, b and out lie, of shapes, the operands' type and the result's: something like
    `buffers.Operands` (fuzzing puts them against forbidden pages).
    device: whose memory that is, where inputs and oracle results are calculated and results are compared, and who
    waits for what run() has enqueued.
    inputs: what operands hold that are timed (`problem.INPUTS`).
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        cache_dir: Path | None = None,
        checks: frozenset[str] = ALL_CHECKS,
        full_macs: int = FULL_MACS,
        operands: Callable[[tuple[tuple[int, ...], ...], str, str], Any] | None = None,
        device: Any = None,
        inputs: str = "normal",
    ) -> None:
        unknown = set(checks) - ALL_CHECKS
        if unknown:
            raise ValueError(f"unknown checks {sorted(unknown)}: choose out of {', '.join(sorted(ALL_CHECKS))}")
        self.problem = problem
        self.checks = checks
        self._seed = seed
        self._kind = inputs
        self._cache_dir = cache_dir
        self._full_macs = full_macs
        self._device = device or CpuDevice()
        self._xp = self._device.xp
        shapes = (problem.a_shape, problem.b_shape, problem.out_shape)
        types = problem.dtype, problem.out_dtype
        self._operands = operands(shapes, *types) if operands else Operands(shapes, types[0], self._xp, types[1])
        self._timing: tuple[Any, Any, Any] | None = None
        self._verdict = Verdict(True)
        self._judge = Judge(problem, checks, usual_recipe(problem, 0, inputs).kind, self._xp)

    # ---- what the worker calls

    def verify(
        self, implementation: Implementation, context_factory: Callable[[], Any], weights: str = "raw"
    ) -> tuple[Plan | None, Verdict]:
        """The full check: (the plan that may be timed, verdict), (None, verdict) when something is wrong.

        raw: one plan sees integer, then normal inputs at other addresses, each twice. packed: the plan holds the
        normal weights and sees two other `a`; a second plan, with integer weights, comes in between. What the
        implementation raises goes through.
        """
        self._verdict = Verdict(True)
        self._judge.error = self._verdict.error
        try:
            if weights == "packed":
                plan = self._verify_packed(implementation, context_factory)
            else:
                plan = self._verify_raw(implementation, context_factory)
        except CheckFailed as failed:
            return None, self._failed(failed)
        return plan, self._verdict

    def recheck(self, plan: Plan) -> Verdict:
        """Once more, after timing, on inputs that the plan has not seen (packed: its weights stay)."""
        self._verdict = Verdict(True)
        self._judge.error = self._verdict.error
        fresh = self._seed_of(_FRESH)
        seed_b = self._seed_of(_FIRST) if plan.weights == "packed" else fresh
        try:
            self._judge_usual(plan, self._usual(fresh).with_seeds(fresh, seed_b), shift=1, runs=1)
        except CheckFailed as failed:
            return self._failed(failed)
        return self._verdict

    def operands(self) -> tuple[Any, Any, Any]:
        """(a, b, out) for timing: aligned usual inputs that no later check writes to, and a poisoned result.

        b is what packed plans of `verify` were packed with.
        """
        if self._timing is None:
            a, b = self._inputs(self._usual(self._seed_of(_FIRST)))
            self._timing = timing_copies(a, b, self.problem.out_shape, self.problem.out_dtype)
            self._device.synchronize()
        return self._timing

    # ---- the order of events

    def _verify_raw(self, implementation: Implementation, factory: Callable[[], Any]) -> Plan:
        plan = make_plan(implementation, self.problem, self._context(factory))
        if "integer" in self.checks:
            self._judge_integer(plan, self._integer(implementation))
            if "other_inputs" not in self.checks:
                plan = make_plan(implementation, self.problem, self._context(factory))
        if "normal" in self.checks:
            self._judge_usual(plan, self._usual(self._seed_of(_FIRST)), shift=1)
        return plan

    def _verify_packed(self, implementation: Implementation, factory: Callable[[], Any]) -> Plan:
        first = self._usual(self._seed_of(_FIRST))
        plan = self._packed_plan(implementation, factory, first)
        if "normal" in self.checks:
            self._judge_usual(plan, first, shift=0)
        integer = self._integer(implementation) if "integer" in self.checks else None
        if integer is not None and "other_weights" in self.checks:
            other = self._packed_plan(implementation, factory, integer)
            self._judge_integer(other, integer)
        if "normal" in self.checks and "other_inputs" in self.checks:
            seeds = self._seed_of(_OTHER), self._seed_of(_FIRST)
            self._judge_usual(plan, first.with_seeds(*seeds), shift=1, runs=1)
        return plan

    def _packed_plan(
        self, implementation: Implementation, factory: Callable[[], Any], recipe: Recipe
    ) -> Plan:
        """A plan packed with the recipe's weights; the array given to prepare() is overwritten afterwards."""
        a, b = self._inputs(recipe)
        _, given, _ = self._operands.place(a, b, 0)
        self._device.synchronize()
        plan = make_plan(implementation, self.problem, self._context(factory), weights=given)
        self._device.synchronize()
        if "inputs_unchanged" in self.checks and not same_bytes(given, b):
            raise CheckFailed("inputs_unchanged", "prepare() changed the weights that it was given")
        self._require_guards()
        poison(given)  # packed weights are the plan's own: it must not look at this array again
        return plan

    def _context(self, factory: Callable[[], Any]) -> Any:
        """A context; with the check "workspace" off its memory holds zeros instead of poison."""
        context = factory()
        if "workspace" not in self.checks:
            poisoned = context.empty

            def zeroed(shape: tuple[int, ...] | int, dtype: Any) -> Any:
                array = poisoned(shape, dtype)
                array.fill(0)
                return array

            setattr(context, "empty", zeroed)  # noqa: B010 - this one context only
        return context

    def _integer(self, implementation: Implementation) -> Recipe | None:
        recipe = integer_recipe(implementation, self.problem, self._seed_of(_FIRST))
        if recipe is None:
            self._verdict.notes.append(
                f"no integer inputs: at accumulation length {self.problem.accumulation_length} the error bound of "
                f"{implementation.name} reaches 1/4 for the sparsest of them; judged on normal inputs alone"
            )
        return recipe

    def _usual(self, seed: int) -> Recipe:
        return usual_recipe(self.problem, seed, self._kind)

    def _inputs(self, recipe: Recipe) -> tuple[Any, Any]:
        return inputs_of(self.problem, recipe, self._xp)

    def _reference(self, recipe: Recipe) -> Reference:
        return reference_of(self.problem, recipe, self._cache_dir, self._full_macs, self._xp)

    def _seed_of(self, role: int) -> int:
        return 16 * self._seed + role

    # ---- running

    def _runs(self, plan: Plan, recipe: Recipe, shift: int, runs: int) -> Iterator[Any]:
        """Runs once or twice on the recipe's inputs; gives each result, in logical order, for judging."""
        runs = runs if "twice" in self.checks else 1
        previous: Any = None
        for number in range(runs):
            out = self._run(plan, recipe, shift, first=number == 0, traced=number == 1)
            if previous is not None and same_bytes(previous, out):
                return  # judged already, and no memory of the first run showed
            yield to_logical(out, self.problem.layout)
            if number + 1 < runs:
                previous = out.copy()

    def _run(self, plan: Plan, recipe: Recipe, shift: int, first: bool, traced: bool) -> Any:
        """One run and the checks that look at memory rather than at values; gives `out`."""
        pristine_a, pristine_b = self._inputs(recipe)
        kept = self._operands.arrays[2].copy() if not first and "unwritten" not in self.checks else None
        a, b, out = self._operands.place(pristine_a, pristine_b, shift)
        if "unwritten" in self.checks:
            poison(out)
        elif kept is not None:
            self._xp.copyto(out, kept)
        else:
            out.fill(0)
        self._device.synchronize()  # run() may read on another stream than what put the operands here
        self._timed(plan, a, b, out, traced)
        self._require_settled(plan, out, first)
        self._require_guards()
        if "inputs_unchanged" in self.checks:
            for name, array, pristine in (("a", a, pristine_a), ("b", b, pristine_b)):
                if not same_bytes(array, pristine):
                    raise CheckFailed("inputs_unchanged", f"run() changed its input {name}")
        if "unwritten" in self.checks:
            compare.require_written(to_logical(out, self.problem.layout), self.problem)
        return out

    def _timed(self, plan: Plan, a: Any, b: Any, out: Any, traced: bool) -> None:
        """One run, from its call to the end of what it enqueued; traced: memory is watched instead of time."""
        device = self._device
        with device.on(plan.context):
            if traced:
                with device.watch_memory() as peak:
                    plan.run(a, b, out)
                    device.finish(plan.context)
                self._verdict.peak_bytes = max(self._verdict.peak_bytes, peak.n_bytes)
                return
            start = time.perf_counter_ns()
            plan.run(a, b, out)
            device.finish(plan.context)
            taken = time.perf_counter_ns() - start
        self._verdict.first_run_ns = min(self._verdict.first_run_ns or taken, taken)

    def _require_settled(self, plan: Plan, out: Any, first: bool) -> None:
        """Nothing is written after run() has returned and its stream is done, by another thread or on another stream.

        Switched off: waits until it has surely settled.
        """
        device = self._device
        if "settled" not in self.checks:
            time.sleep(SETTLE_UNFINISHED_S)
        if "settled" not in self.checks or not first:
            device.synchronize()
            return
        with device.on(plan.context):
            at_return = out.copy()
            device.finish(plan.context)
        time.sleep(SETTLE_S)
        device.synchronize()
        if poisoned(at_return).any():
            time.sleep(SETTLE_UNFINISHED_S)
        if not same_bytes(at_return, out):
            raise CheckFailed("settled", "run() returned before it had finished: the result changed afterwards")

    def _require_guards(self) -> None:
        finding = self._operands.disturbed() if "guard" in self.checks else None
        if finding:
            raise CheckFailed("guard", f"wrote outside its arrays; {finding}")

    # ---- judging

    def _judge_usual(self, plan: Plan, recipe: Recipe, shift: int, runs: int = 2) -> None:
        """On the inputs that a row is timed with: within its bound, in int8 and of other semantics exact.

        There no second seed and no footprint is of use: a result is right or it is not.
        """
        if self.problem.is_integer or self.problem.semantics is not Semantics.LINEAR:
            self._judge_integer(plan, recipe, shift, runs)
        else:
            self._judge_normal(plan, recipe, shift, runs)

    def _judge_integer(self, plan: Plan, recipe: Recipe | None, shift: int = 0, runs: int = 2) -> None:
        """Every integer result is exact (implementations that are not exact on integers: after rounding)."""
        if recipe is None:
            return
        reference = self._reference(recipe)
        linear = self.problem.semantics is Semantics.LINEAR
        compared = self._judge.compare_integer if linear else self._judge.compare_meant
        for number, got in enumerate(self._runs(plan, recipe, shift, runs)):
            self._second_run(number, compared, plan.implementation, reference, got, recipe)

    def _judge_normal(self, plan: Plan, recipe: Recipe, shift: int, runs: int = 2) -> None:
        """Within the statistical bound; a first failure is repeated with a second seed before it is called wrong."""
        try:
            self._judge_normal_once(plan, recipe, shift, runs)
        except BoundExceeded as first:
            seed_b = recipe.seed_b if plan.weights == "packed" else recipe.seed_b + _RETRY
            try:
                self._judge_normal_once(plan, recipe.with_seeds(recipe.seed_a + _RETRY, seed_b), shift, runs)
            except BoundExceeded as second:
                raise CheckFailed(second.check, f"{second} (and with another seed: {first})") from None
            self._verdict.notes.append(f"beyond the bound with one seed, within it with the second: {first}")

    def _judge_normal_once(self, plan: Plan, recipe: Recipe, shift: int, runs: int) -> None:
        reference = self._reference(recipe)
        for number, got in enumerate(self._runs(plan, recipe, shift, runs)):
            self._second_run(number, self._judge.compare_normal, plan.implementation, reference, got, recipe)

    def _second_run(self, number: int, judge: Callable[..., None], *arguments: Any) -> None:
        """Judges a result; what only the second run on the same inputs shows is a finding of "twice"."""
        if number == 0:
            judge(*arguments)
            return
        try:
            judge(*arguments)
        except (CheckFailed, BoundExceeded) as failed:
            finding = f"right at the first run, wrong at the second on the same inputs: {failed}"
            raise CheckFailed("twice", finding) from None

    def _failed(self, failed: CheckFailed) -> Verdict:
        verdict = self._verdict
        verdict.ok, verdict.check, verdict.reason = False, failed.check, f"{failed.check}: {failed}"
        return verdict
