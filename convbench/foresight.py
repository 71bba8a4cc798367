"""What "auto" and `explain` know on this machine: its calibration, and the coefficients that come with the package.

A calibration counts where its environment is this one; a row of it where the row's source is that of the day it was
measured. What is missing is taken from DEFAULTS, measured on the machine that the file names (a copy of what
`convbench doctor --calibrate` wrote there), scaled by the peaks of the two machines where both are known. A row that
neither knows, such as a plug-in before the next calibration, has no prediction, and the note says so.
Standard library only.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convbench import catalog
from convbench.costmodel import DTYPE, Model, path_of, setting_of, this_env_id
from convbench.problem import Problem
from convbench.registry import Implementation

DEFAULTS = Path(__file__).resolve().parent / "default_calibration.json"


@dataclass(frozen=True)
class Prediction:
    """Nanoseconds of one call; None with the reason in `note`. `note` may also say that defaults were used."""

    ns: float | None
    note: str = ""


@dataclass
class Knowledge:
    """The calibration of this machine, if there is one that can be used, and the defaults. `status` says which."""

    own: Model | None
    default: Model | None
    status: str
    _sound: dict[tuple[str, int], bool] = field(default_factory=dict, repr=False)
    _names: set[str] = field(default_factory=set, repr=False)

    def predict(self, row: Implementation, problem: Problem, weights: str, threads: int) -> Prediction:
        """What is expected of a row that takes the problem."""
        if problem.dtype != DTYPE:
            return Prediction(None, f"only {DTYPE} is calibrated")
        note = ""
        if self.own is not None:
            if row.name not in self.own.sources:
                note = "not calibrated on this machine"
            elif not self._same_source(row):
                note = "its source changed after the calibration"
            else:
                ns = self.own.predict(row, problem, weights, threads)
                if ns is not None:
                    return Prediction(ns)
                note = f"{setting_of(problem)}: not calibrated on this machine"
        ns = None if self.default is None else self.default.predict(row, problem, weights, threads)
        if ns is None:
            return Prediction(None, note or "not among the default coefficients: convbench doctor --calibrate")
        return Prediction(ns * self._scale(threads), f"{note}: default coefficients" if note else "")

    def knows(self, name: str) -> bool:
        """Whether there may be a prediction for a row, whatever the problem."""
        if not self._names:
            self._names |= {row for model in (self.own, self.default) if model for row, _, _ in model.fits}
        return name in self._names

    def _same_source(self, row: Implementation) -> bool:
        key = (row.name, id(row))
        if key not in self._sound:
            assert self.own is not None
            self._sound[key] = catalog.source_sha(row) == self.own.sources[row.name]
        return self._sound[key]

    def _scale(self, threads: int) -> float:
        """How much slower this machine is than that of the defaults, where both peaks are known."""
        if self.own is None or self.default is None:
            return 1.0
        here, there = _nearest(self.own.peaks, threads), _nearest(self.default.peaks, threads)
        return there / here if here and there else 1.0


def _nearest(peaks: Mapping[int, float], threads: int) -> float | None:
    return peaks[min(peaks, key=lambda t: abs(t - threads))] if peaks else None


@functools.cache
def current() -> Knowledge:
    """What is known here; read once in the life of the process (`forget()` makes it read again). Never raises."""
    default, broken = None, ""
    try:
        default = Model.from_json(DEFAULTS.read_text())
    except (OSError, ValueError) as error:
        broken = f" (and those of the package cannot be read: {error})"
    fallback = f"default coefficients, measured on {default.machine}" if default else f"no coefficients{broken}"
    env_id = this_env_id()
    path = path_of(env_id)
    try:
        own = Model.from_json(path.read_text())
    except FileNotFoundError:
        return Knowledge(None, default, f"{fallback}; `convbench doctor --calibrate` measures this machine")
    except (OSError, ValueError) as error:
        reason = f"{path} cannot be used ({error}): run `convbench doctor --calibrate` again"
        return Knowledge(None, default, f"{fallback}; {reason}")
    if own.env_id != env_id:
        reason = f"{path} was measured in another environment ({own.env_id}, this is {env_id})"
        return Knowledge(None, default, f"{fallback}; {reason}: run `convbench doctor --calibrate` again")
    return Knowledge(own, default, f"calibrated on this machine, {own.measured}")


def forget() -> None:
    """Lets `current()` read the files again."""
    current.cache_clear()
