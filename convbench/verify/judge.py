"""One result against what the oracle says: exact, within the statistical bound, or as exact as its semantics."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.devices.arrays import as_real, widened
from convbench.problem import Problem
from convbench.registry import Implementation
from convbench.verify import compare
from convbench.verify.compare import CheckFailed, ErrorFigures
from convbench.verify.inputs import Recipe, reduction_channels
from convbench.verify.reference import Reference, coefficients, project
from convbench.verify.semantics import sums_of
from convbench.verify.squares import mixed_squares, sampled_squares
from convbench.verify.tolerance import block_maximum, growth_of, storing_eps


class Judge:
    """Compares logical results of one problem with references, and keeps how far they were in `error`.

    checks: names of those that are on. usual: the kind of inputs whose error figures are kept. xp: whose arrays.
    The methods raise CheckFailed, or BoundExceeded where a second seed may show that it was chance.
    """

    def __init__(self, problem: Problem, checks: frozenset[str], usual: str, xp: Any) -> None:
        self.problem, self.checks, self._usual, self._xp = problem, checks, usual, xp
        self.error = ErrorFigures()

    def compare_integer(
        self, implementation: Implementation, reference: Reference, got: Any, recipe: Recipe
    ) -> None:
        """Every integer result is exact (implementations that are not exact on integers: after rounding)."""
        tol = 0.0 if implementation.exact_on_integers or self.problem.is_integer else 0.25
        if reference.want is not None:
            compare.require_close("integer", widened(got), reference.want, tol, self.problem)
            self._keep_figures(widened(got), reference.want, recipe)
            return
        if "sample" in self.checks and reference.index is not None and reference.sampled is not None:
            sampled = widened(got[tuple(reference.index)])
            compare.require_close("sample", sampled, reference.sampled, tol, self.problem, reference.index)
            self._keep_figures(sampled, reference.sampled, recipe)
        if "projection" in self.checks and reference.projected is not None:
            if tol:
                got = as_real(got)
                rounded = np.rint(got)
                compare.require_close("integer", got, rounded, 0.25, self.problem)
                got = rounded
            projected = project(got, self.problem, coefficients(self.problem, recipe.kind))
            compare.require_projection("projection", projected, reference.projected, 0.0, self.problem)

    def _keep_figures(self, got: Any, want: Any, recipe: Recipe) -> None:
        """Of int8 the error figures are those of the inputs that it is timed with, as of floats."""
        if recipe.kind == self._usual:
            self.error.widen(compare.figures(got, want, np.zeros_like(want), self.problem.dtype))

    def compare_meant(
        self, implementation: Implementation, reference: Reference, got: Any, recipe: Recipe
    ) -> None:
        """Results of another semantics: as exact as that is, and how far from the linear convolution."""
        index, check, results = reference.index, "integer" if recipe.kind == "edges" else "normal", widened(got)
        want, squares = reference.want, reference.squares
        if index is not None:
            check, results, want = "sample", results[tuple(index)], reference.sampled
            squares = reference.sampled_squares
        assert want is not None and reference.tolerance is not None and reference.plain is not None
        tol = reference.tolerance
        if squares is not None:
            tol = tol + growth_of(implementation, self.problem) * np.sqrt(squares)
        if check in self.checks:
            compare.require_close(check, results, want, tol, self.problem, index)
        if "projection" in self.checks and reference.projected is not None:
            sums = sums_of(reference.channel, reference.plane, self.problem, widened(got))
            projected = project(sums, self.problem, coefficients(self.problem, recipe.kind))
            compare.require_projection("projection", projected, reference.projected, 0.0, self.problem)
        if recipe.kind == self._usual:
            exact = compare.figures(results, want, tol, self.problem.dtype)
            found = compare.figures(results, reference.plain, tol, self.problem.dtype)
            found.bound_ratio, found.exact_ulp = exact.bound_ratio, exact.max_ulp
            self.error.widen(found)

    def compare_normal(
        self, implementation: Implementation, reference: Reference, got: Any, recipe: Recipe
    ) -> None:
        """Every result is within the statistical bound, and so is the L2 norm of all errors."""
        growth, stored = growth_of(implementation, self.problem), storing_eps(implementation, self.problem)
        footprint = implementation.error_footprint(self.problem)
        if reference.want is not None and reference.squares is not None:
            squares = mixed_squares(self.problem, reference.squares, recipe, footprint, self._xp)
            largest = block_maximum(squares, footprint)[..., : got.shape[2], : got.shape[3]]
            tol = growth * np.sqrt(largest) + stored * np.abs(reference.want)
            scale = float(np.sqrt(squares.sum()))
            self._within_bound("normal", widened(got), reference.want, tol, (growth + stored) * scale)
        elif reference.index is not None and reference.sampled is not None and "sample" in self.checks:
            squares = sampled_squares(self.problem, reference, recipe, footprint)
            tol = growth * np.sqrt(squares) + stored * np.abs(reference.sampled)
            sampled = widened(got[tuple(reference.index)])
            limit = (growth + stored) * float(np.sqrt(reference.sampled_squares.sum()))  # type: ignore[union-attr]
            self._within_bound("sample", sampled, reference.sampled, tol, limit, reference.index)
        if reference.projected is not None and reference.projected_squares is not None and "projection" in self.checks:
            # |sum_k v_k e_k| <= sum_k tol_k <= growth * sqrt(K * sum_k x^2 * w_k^2) for signs v (Cauchy-Schwarz)
            count = reduction_channels(self.problem)
            tol = (growth + stored) * np.sqrt(count * block_maximum(reference.projected_squares, footprint))
            projected = project(got, self.problem, coefficients(self.problem, recipe.kind))
            try:
                compare.require_projection("projection", projected, reference.projected, tol, self.problem)
            except CheckFailed as failed:
                raise BoundExceeded(failed.check, str(failed)) from None

    def _within_bound(
        self,
        check: str,
        got: Any,
        want: Any,
        tol: Any,
        l2_limit: float,
        index: np.ndarray | None = None,
    ) -> None:
        """Element by element, then the L2 norm of the error against that of sqrt(x^2 * w^2), which is the
        result's own in expectation (a handful of results can cancel to nearly nothing); keeps the figures."""
        found = compare.figures(got, want, tol, self.problem.dtype)
        self.error.widen(found)
        try:
            compare.require_close(check, got, want, tol, self.problem, index)
        except CheckFailed as failed:
            raise BoundExceeded(failed.check, str(failed)) from None
        error = float(np.sqrt(np.square(got - want).sum()))
        if not error <= l2_limit:
            raise BoundExceeded(check, f"the L2 norm of the error is {error:.3g}, allowed {l2_limit:.3g}")


class BoundExceeded(Exception):
    """The statistical bound did not hold with one seed."""

    def __init__(self, check: str, finding: str) -> None:
        super().__init__(finding)
        self.check = check
