"""What a call costs: predicted nanoseconds per row, by which "auto" chooses. Learnt once per machine.

A row's time for one pass and thread count, with groups or without, is a sum of non-negative terms (`features`):
executed operations of each phase, the product's operations again divided by each of its three lengths (short lengths
are inefficient), lanes that a remainder of channels leaves empty, bytes of activations, of the raw filter and of the
filter as it is multiplied (all of it is read in each call, however few tiles it is multiplied with), and a fixed cost.
Non-negative least squares on relative errors finds the coefficients (`costfit.py`). Beside them a row keeps
log(measured / predicted) of each calibrated problem; a new problem's prediction is multiplied by the mean of its
neighbours', weighted by 1 / (1 + (d/h)^2)^2, where d is the distance in octaves of sizes (`coordinates`), and drawn
to 1 far from all of them. On several threads, problems that were calibrated at one thread only count with what they
were off by there. No prediction promises more than the machine's peak of multiply-adds.

`convbench doctor --calibrate` writes the file of this machine into the user's cache folder; `foresight.py` says when
it is used. Only float32 is calibrated. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbench import environment
from convbench.errors import OutputError
from convbench.problem import Pass, Problem
from convbench.registry import Implementation

SCHEMA = 2
DTYPE = "float32"
LANES = 16
#: Names of the terms, in the order of the coefficients; `features` says what they are.
FEATURES = (
    "call", "multiply", "multiply/C", "multiply/K", "multiply/NPQ", "multiply/Q", "empty lanes", "multiply, nchw",
    "multiply, strided", "multiply, 1x1", "pixels of groups", "input transform", "output transform",
    "filter transform", "bytes in", "bytes out", "bytes, nchw", "bytes of raw filter", "filter read",
)  # fmt: skip
#: Octaves count by these factors: in C/G, K/G, P Q, N, R S, G, stride, dilation, width; then layout, packed weights.
SCALES = (1.0, 1.0, 0.7, 0.25, 1.0, 0.5, 1.5, 1.0, 0.3)
LAYOUT_DISTANCE, WEIGHTS_DISTANCE = 1.5, 0.7


def features(problem: Problem, weights: str, executed_flops: Mapping[str, float]) -> tuple[float, ...]:
    """One number per name in FEATURES: operations and bytes in thousands, so that coefficients are ns or so.

    Phases are told apart by their names: transforms of "filter", "in..." and "out...", "add"s; the rest multiplies.
    Packed weights leave the filter's transform and its raw bytes out. A transformed filter is as many bytes as its
    transform has operations, nearly enough: one of its numbers takes three to six.
    """
    s = problem.shape
    phases = dict.fromkeys(("multiply", "in", "out", "filter"), 0.0)
    for name, flops in executed_flops.items():
        phases[_kind(name)] += flops / 1e3
    multiply, raw = phases["multiply"], weights == "raw"
    side = s.c if problem.pass_ is Pass.BACKWARD_DATA else s.k  # of all groups: depthwise rows share lanes
    x, y = s.n * s.c * s.h * s.w * 4 / 1e3, s.n * s.k * s.p * s.q * 4 / 1e3
    w = s.k * s.cg * s.r * s.s * 4 / 1e3
    read, written = {Pass.FORWARD: (x, y), Pass.BACKWARD_DATA: (y, x), Pass.BACKWARD_WEIGHTS: (x + y, w)}[problem.pass_]
    nchw = problem.layout == "nchw"
    return (
        1.0,
        multiply,
        multiply / s.cg,
        multiply / s.kg,
        multiply / (s.n * s.p * s.q),
        multiply / s.q,
        multiply * (-side % LANES) / side,
        multiply * nchw,
        multiply * (max(s.stride) > 1),
        multiply * (s.r * s.s == 1),
        (s.groups > 1) * s.groups * s.n * s.p * s.q / 1e3,
        phases["in"],
        phases["out"],
        phases["filter"] * raw,
        read,
        written,
        (x + y) * nchw,
        w * raw,
        phases["filter"] or w,
    )


def _kind(phase: str) -> str:
    words = phase.split("_")
    if "filter" in words:
        return "filter"
    if "in" in words or "input" in words:
        return "in"
    return "out" if words[-1] in ("out", "output", "add") or words[0] == "output" else "multiply"


def setting_of(problem: Problem) -> str:
    """The pass, and whether there are groups, of one channel or several: what has coefficients of its own."""
    s = problem.shape
    if s.groups == 1:
        return str(problem.pass_)
    return f"{problem.pass_}, depthwise" if s.cg == 1 else f"{problem.pass_}, groups"


def without_groups(setting: str) -> str:
    """The setting of the same pass for problems without groups."""
    return setting.split(",")[0]


def coordinates(problem: Problem, weights: str) -> tuple[float, ...]:
    """Where a case lies among others: scaled octaves."""
    s = problem.shape
    sizes = (s.cg, s.kg, s.p * s.q, s.n, s.r * s.s, s.groups, s.stride[0] * s.stride[1], max(s.dilation), s.q / s.p)
    octaves = [scale * math.log2(size) for scale, size in zip(SCALES, sizes, strict=True)]
    return (*octaves, LAYOUT_DISTANCE * (problem.layout == "nchw"), WEIGHTS_DISTANCE * (weights == "packed"))


@dataclass(frozen=True)
class Fit:
    """One row, setting and thread count: coefficients in the order of FEATURES; log residuals at calibrated points."""

    coefficients: tuple[float, ...]
    residuals: Mapping[int, float] = field(default_factory=dict)


@dataclass
class Model:
    """What one calibration learnt. `points` are coordinates of calibrated cases, which residuals refer to.

    reach: h of the module's text; pull: weight of "no correction". sources: row -> hash of its source.
    """

    machine: str
    measured: str
    env_id: str
    fits: dict[tuple[str, str, int], Fit]
    points: list[tuple[float, ...]]
    reach: float = 1.0
    pull: float = 0.3
    sources: dict[str, str] = field(default_factory=dict)
    peaks: dict[int, float] = field(default_factory=dict)

    def threads_for(self, name: str, setting: str, threads: int) -> int | None:
        """The calibrated thread count nearest to `threads` (in octaves), or None for what was not calibrated."""
        known = [t for (row, s, t) in self.fits if row == name and s == setting]
        return min(known, key=lambda t: (abs(math.log(t / threads)), t)) if known else None

    def predict(self, row: Implementation, problem: Problem, weights: str, threads: int) -> float | None:
        """Nanoseconds of one call, or None where this row and setting were not calibrated."""
        if self.threads_for(row.name, setting_of(problem), threads) is None:
            return None
        return self.predict_from(row.name, row.executed_flops(problem), problem, weights, threads)

    def predict_from(
        self, row: str, executed_flops: Mapping[str, float], problem: Problem, weights: str, threads: int
    ) -> float | None:
        """The same, of a row's name and the operations that it executes."""
        setting = setting_of(problem)
        near = self.threads_for(row, setting, threads)
        if near is None:
            return None
        terms, place = features(problem, weights, executed_flops), coordinates(problem, weights)
        ns = self.time_of(self.corrected(row, setting, near), terms, place)
        peak = self.peaks.get(near)
        return ns if peak is None else max(ns, sum(executed_flops.values()) / peak)

    def corrected(self, row: str, setting: str, threads: int) -> Fit:
        """The fit of a calibrated row; points that were seen at one thread only have their residuals of there."""
        own, alone = self.fits[row, setting, threads], self.fits.get((row, setting, 1))
        return own if alone is None else Fit(own.coefficients, {**alone.residuals, **own.residuals})

    def time_of(self, fit: Fit, terms: tuple[float, ...], place: tuple[float, ...]) -> float:
        """Nanoseconds from a case's features and coordinates."""
        ns = sum(c * t for c, t in zip(fit.coefficients, terms, strict=True))
        closeness = self.closeness(place)
        total = self.pull
        correction = 0.0
        for point, residual in fit.residuals.items():
            total += closeness[point]
            correction += closeness[point] * residual
        return max(ns, 1.0) * math.exp(correction / total)

    def closeness(self, place: tuple[float, ...]) -> tuple[float, ...]:
        """The weight of each calibrated point at `place`."""
        if place != self._place:
            self._place, self._closeness = place, tuple(self._weight(place, p) for p in self.points)
        return self._closeness

    def _weight(self, here: tuple[float, ...], there: tuple[float, ...]) -> float:
        return (1 + math.dist(here, there) ** 2 / self.reach**2) ** -2

    _place: tuple[float, ...] = ()
    _closeness: tuple[float, ...] = ()

    def to_json(self) -> str:
        """The file's text."""
        rows = [
            {
                "row": row,
                "setting": setting,
                "threads": threads,
                "ns": {n: round(c, 9) for n, c in zip(FEATURES, fit.coefficients, strict=True) if c},
                "at": list(fit.residuals),
                "log": [round(r, 4) for r in fit.residuals.values()],
            }
            for (row, setting, threads), fit in sorted(self.fits.items())
        ]
        head = {
            "schema": SCHEMA,
            "machine": self.machine,
            "measured": self.measured,
            "env_id": self.env_id,
            "reach": self.reach,
            "pull": self.pull,
            "peaks": {str(t): round(v, 2) for t, v in self.peaks.items()},
            "sources": self.sources,
        }
        points = json.dumps([[round(v, 3) for v in p] for p in self.points])
        lines = ",\n".join(json.dumps(r) for r in rows)
        return f'{json.dumps(head, indent=1)[:-2]},\n "points": {points},\n "fits": [\n{lines}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Model:
        """Reads a file's text. Raises ValueError with what is wrong."""
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise ValueError(f"its schema is {data['schema']!r}, this convbench reads {SCHEMA}")
            model = cls(
                machine=str(data["machine"]),
                measured=str(data["measured"]),
                env_id=str(data["env_id"]),
                fits={(str(f["row"]), str(f["setting"]), int(f["threads"])): _fit(f) for f in data["fits"]},
                points=[tuple(float(v) for v in p) for p in data["points"]],
                reach=float(data["reach"]),
                pull=float(data["pull"]),
                sources={str(k): str(v) for k, v in data["sources"].items()},
                peaks={int(k): float(v) for k, v in data["peaks"].items()},
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        model._check()
        return model

    def _check(self) -> None:
        """Raises ValueError for numbers that no calibration writes: a wrong choice is worse than none."""
        width = len(SCALES) + 2
        if any(len(p) != width or not all(map(math.isfinite, p)) for p in self.points):
            raise ValueError(f"a point does not have {width} coordinates")
        if not (self.reach > 0 and self.pull > 0 and math.isfinite(self.reach + self.pull)):
            raise ValueError("reach and pull must be positive")
        for (row, _, threads), fit in self.fits.items():
            sound = all(math.isfinite(c) and c >= 0 for c in fit.coefficients) and threads >= 1
            if not sound or not all(0 <= i < len(self.points) for i in fit.residuals):
                raise ValueError(f"the coefficients of {row} make no sense")
            if not all(abs(r) < 50 for r in fit.residuals.values()):
                raise ValueError(f"the residuals of {row} make no sense")


def _fit(data: Mapping[str, Any]) -> Fit:
    unknown = set(data["ns"]) - set(FEATURES)
    if unknown:
        raise ValueError(f"unknown terms {', '.join(sorted(unknown))}")
    at = [int(i) for i in data["at"]]
    residuals = dict(zip(at, (float(r) for r in data["log"]), strict=True))
    return Fit(tuple(float(data["ns"].get(name, 0.0)) for name in FEATURES), residuals)


# ---- where it is kept


def this_env_id() -> str:
    """The environment's id, without what `environment.collect` adds."""
    return environment.env_id({"machine": environment.machine(), "versions": environment.versions()})


def path_of(env_id: str) -> Path:
    """Where the calibration of an environment is kept."""
    from convbench.simd.cache import user_cache_dir

    return user_cache_dir() / f"calibration-{env_id}.json"


def save(model: Model) -> Path:
    """Writes the file of the model's environment, as a whole or not at all. Raises OutputError."""
    path = path_of(model.env_id)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(model.to_json())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return path
