"""Comparisons that say where and by how much; written so that NaN fails: bad = ~(|got - want| <= tol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.devices.arrays import as_real, namespace, poisoned
from convbench.problem import Pass, Problem

_AXES = {Pass.FORWARD: "nkpq", Pass.BACKWARD_DATA: "nchw", Pass.BACKWARD_WEIGHTS: "kcrs"}


class CheckFailed(Exception):
    """A check that an implementation did not pass; `check` is its name, the message the finding."""

    def __init__(self, check: str, finding: str) -> None:
        super().__init__(finding)
        self.check = check


@dataclass
class ErrorFigures:
    """How far a result was from the linear convolution's, by the oracle; None where nothing was compared.

    Of another semantics, exact_ulp is how far it was from the exact result of that semantics, in units of the last
    place, and bound_ratio that distance over the one that is allowed.
    """

    rel_l2: float | None = None
    max_abs: float | None = None
    max_ulp: float | None = None
    bound_ratio: float | None = None
    exact_ulp: float | None = None

    def widen(self, other: ErrorFigures) -> None:
        """Keeps the larger of each."""
        for name in ("rel_l2", "max_abs", "max_ulp", "bound_ratio", "exact_ulp"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is not None:
                setattr(self, name, theirs if mine is None else max(mine, theirs))


def place_name(problem: Problem, position: tuple[int, ...]) -> str:
    """out[n=0, k=1, p=2, q=3], whatever the layout."""
    letters = _AXES[problem.pass_]
    return "out[" + ", ".join(f"{letter}={i}" for letter, i in zip(letters, position, strict=True)) + "]"


def require_written(out: np.ndarray, problem: Problem) -> None:
    """Every element of a logical result is a finite number, or not poison; else CheckFailed("unwritten").

    No sum in int32 is its poison: `Problem.overflow` keeps them above it.
    """
    if problem.is_integer:
        _require_none("unwritten", poisoned(out), out, problem, "were not written")
        return
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs
        total = float(as_real(out).sum(dtype=np.float64))
    if np.isfinite(total):
        return
    bad = ~np.isfinite(as_real(out))  # none where the sum overflowed and no element did
    _require_none("unwritten", bad, out, problem, "were not written or are not finite")


def _require_none(check: str, bad: Any, out: np.ndarray, problem: Problem, what: str) -> None:
    """No element of a logical result is bad; else CheckFailed(check) with how many, and the first."""
    if not bad.any():
        return
    first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), out.shape))
    raise CheckFailed(
        check,
        f"{int(bad.sum())} of {out.size} elements {what}, the first is "
        f"{place_name(problem, first)} = {as_real(out)[first]}",
    )


def require_close(
    check: str,
    got: np.ndarray,
    want: np.ndarray,
    tol: np.ndarray | float,
    problem: Problem,
    index: np.ndarray | None = None,
) -> None:
    """|got - want| <= tol everywhere; else CheckFailed(check) with the worst element.

    got, want: logical results, or (COUNT,) samples with their positions in `index` (4, COUNT).
    """
    difference = np.abs(got - want)
    bad = ~(difference <= tol)
    if not bad.any():
        return
    xp = namespace(got)
    with np.errstate(over="ignore"):  # where nothing is allowed every difference is infinitely too large
        excess = xp.where(bad, difference / np.maximum(tol, np.finfo(np.float64).tiny), -1.0)
    worst = np.unravel_index(int(xp.nan_to_num(excess, nan=np.inf).argmax()), got.shape)
    position = tuple(int(i) for i in (worst if index is None else index[:, worst[0]]))
    allowed = float(xp.broadcast_to(xp.asarray(tol), got.shape)[worst])
    raise CheckFailed(
        check,
        f"{int(bad.sum())} of {got.size} compared elements are wrong, worst {place_name(problem, position)}: "
        f"expected {float(want[worst]):.9g}, got {float(got[worst]):.9g}, allowed difference {allowed:.3g}",
    )


def require_projection(
    check: str, got: np.ndarray, want: np.ndarray, tol: np.ndarray | float, problem: Problem
) -> None:
    """Every element of the contracted results agrees; else CheckFailed(check) with the place of the worst."""
    difference = np.abs(got - want)
    bad = ~(difference <= tol)
    if not bad.any():
        return
    excess = np.nan_to_num(np.where(bad, difference, -1.0), nan=np.inf)
    at = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), bad.shape))
    letters, place = ("gcrs" if problem.pass_ is Pass.BACKWARD_WEIGHTS else "ngpq"), at[1:]
    where = ", ".join(f"{letter}={i}" for letter, i in zip(letters, place, strict=True))
    channels = "C" if problem.pass_ is Pass.BACKWARD_DATA else "K"
    raise CheckFailed(
        check,
        f"the sum of the results over {channels}, with seeded coefficients, is wrong in {int(bad.any(axis=0).sum())} "
        f"places, worst at {where}: expected {float(want[at]):.9g}, got {float(got[at]):.9g}",
    )


def figures(got: Any, want: Any, tol: Any, dtype: str) -> ErrorFigures:
    """Error figures of float64 copies of results on normal inputs; `tol` is the bound of each element."""
    difference = np.abs(got - want)
    norm = float(np.sqrt(np.square(want).sum()))
    rel_l2 = float(np.sqrt(np.square(difference).sum())) / norm if norm else _largest(difference)
    bounded = tol > 0
    ratio = _largest(difference[bounded] / tol[bounded])
    ulp = None
    if dtype in ("float16", "float32", "float64"):  # below the smallest normal number an ulp says nothing
        normal = np.abs(want) >= np.finfo(dtype).tiny
        ulp = _largest(difference[normal] / _spacing(np.abs(want[normal]), dtype))
    largest = _largest(difference)
    return ErrorFigures(*(value if value is not None and np.isfinite(value) else None
                          for value in (rel_l2, largest, ulp, ratio)))  # fmt: skip


def _largest(values: Any) -> float:
    return float(values.max()) if values.size else 0.0


def _spacing(values: Any, dtype: str) -> Any:
    """The distance from each normal number to the next in a coarser dtype: 2^(exponent - fraction's bits)."""
    rounded = values.astype(dtype).astype(np.float64)
    mantissa = namespace(values).frexp(rounded)[0]  # in [0.5, 1)
    return rounded / mantissa * (float(np.finfo(dtype).eps) / 2)
