"""Learns a cost model (`costmodel.py`) from measured calls: non-negative least squares on relative errors.

Many rows see few problems that they are good at, so what the data do not settle stays near what is known beforehand:
on several threads, the row's fit at one; with groups, its fit without; else the fit of all rows of its family and tier
together (they run the same code with other sizes); else a fit of three terms.

Lawson and Hanson 1974, "Solving Least Squares Problems", chapter 23 (scipy.optimize.nnls).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convbench.costmodel import FEATURES, Fit, Model, coordinates, features, setting_of, without_groups
from convbench.problem import Problem

LEAST_POINTS, LEAST_LEANING = 3, 1  # measured cases below which there is no fit; where it leans on another
ROUNDS = 6  # of reweighting: relative errors above and below count alike
SIMPLE = 1.0  # how much a fit is drawn to that of three terms: a call, all operations at one rate, all bytes at one
FAMILY = 0.1  # how much a fit is drawn to that of its family
UNGROUPED = 0.3  # how much a fit with groups is drawn to that without
ONE_THREAD = 3.0  # how much a fit at several threads is drawn to that at one
FOLDS = 10  # of cross-validation, each with its part of the shapes
REACHES, PULLS = (0.6, 1.0, 1.6, 2.5), (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Measured:
    """One verified and timed case."""

    row: str
    problem: Problem
    weights: str
    threads: int
    ns: float
    executed_flops: Mapping[str, float]


def fit_model(cases_measured: Iterable[Measured], **facts: Any) -> Model:
    """A model of everything measured. facts: the other fields of Model (machine, measured, env_id, sources, peaks)."""
    places: dict[tuple[float, ...], int] = {}
    groups: dict[tuple[str, str, int], list[Measured]] = {}
    for case in cases_measured:
        places.setdefault(coordinates(case.problem, case.weights), len(places))
        groups.setdefault((case.row, setting_of(case.problem), case.threads), []).append(case)
    model = Model(fits={}, points=list(places), **facts)
    families = _family_fits(groups)
    for key in sorted(groups, key=lambda k: (k[2], k[1])):  # one thread and no groups first: the others lean on them
        cases = groups[key]
        start, strength = _leans_on(key, model, families)
        if len(cases) < (LEAST_POINTS if start is None else LEAST_LEANING):
            continue
        terms, ns = _arrays(cases)
        coefficients = fit(terms, ns, start, strength)
        at = [places[coordinates(c.problem, c.weights)] for c in cases]
        logs = np.log(ns / np.maximum(terms @ coefficients, 1.0))
        model.fits[key] = Fit(tuple(map(float, coefficients)), _means(at, logs))
    model.reach, model.pull = _tune(model)
    return model


def _arrays(cases: list[Measured]) -> tuple[np.ndarray, np.ndarray]:
    """(cases, features) and nanoseconds (cases,)."""
    terms = [features(c.problem, c.weights, c.executed_flops) for c in cases]
    return np.array(terms), np.array([c.ns for c in cases])


def family_of(row: str) -> str:
    """Family and tier: "winograd simd" for winograd_f2_simd and winograd_f4_5x5s2_simd."""
    words = row.split("_")
    return f"{words[0]} {words[-1]}"


def _family_fits(groups: Mapping[tuple[str, str, int], list[Measured]]) -> dict[tuple[str, str], np.ndarray]:
    """(family, setting) -> coefficients at one thread, where a family has several rows."""
    members: dict[tuple[str, str], list[Measured]] = {}
    for (row, setting, threads), cases in groups.items():
        if threads == 1:
            members.setdefault((family_of(row), setting), []).extend(cases)
    return {key: fit(*_arrays(cases)) for key, cases in members.items() if len({c.row for c in cases}) > 1}


def _leans_on(
    key: tuple[str, str, int], model: Model, families: Mapping[tuple[str, str], np.ndarray]
) -> tuple[np.ndarray | None, float]:
    """The coefficients that a fit is drawn to, and how much; None where there are only the three terms."""
    row, setting, threads = key
    alone, ungrouped = model.fits.get((row, setting, 1)), model.fits.get((row, without_groups(setting), 1))
    if threads > 1:
        return (None, SIMPLE) if alone is None else (np.array(alone.coefficients), ONE_THREAD)
    if ungrouped is not None:
        return np.array(ungrouped.coefficients), UNGROUPED
    return families.get((family_of(row), setting)), FAMILY


def fit(terms: np.ndarray, ns: np.ndarray, start: np.ndarray | None = None, strength: float = SIMPLE) -> np.ndarray:
    """Coefficients >= 0 for terms (cases, features) and times (cases,).

    start: coefficients that it is drawn to, made slower or faster to suit the cases; a fit of three terms by default.
    """
    assert terms.shape[1] == len(FEATURES)
    if start is not None and (terms @ start > 0).all():
        logs = np.log(ns / (terms @ start))
        return _drawn_to(start * math.exp(logs.sum() / (len(ns) + 1)), strength, terms, ns)
    groups = np.array([_simple_term(name) for name in FEATURES])  # (features,)
    shared = np.eye(groups.max() + 1)[groups]  # (features, terms of the simple fit + those it leaves out)
    shared[:, 0] = 0.0
    simple = _drawn_to(np.zeros(shared.shape[1]), 1e-6, terms @ shared, ns)
    return _drawn_to(shared @ simple, SIMPLE, terms, ns)


def _simple_term(name: str) -> int:
    """Which of the three terms of the simple fit a feature belongs to; 0: none."""
    if name == "call":
        return 1
    if name == "multiply" or name.endswith("transform"):
        return 2
    return 3 if name.startswith("bytes ") else 0


def _drawn_to(start: np.ndarray, strength: float, terms: np.ndarray, ns: np.ndarray) -> np.ndarray:
    """Least squares on relative errors, coefficients >= 0, with a ridge around `start`."""
    from scipy.optimize import nnls

    guess, coefficients, root = ns.copy(), start, math.sqrt(strength)
    for _ in range(ROUNDS):
        scale = 1 / np.sqrt(ns * guess)  # (p - t)^2 / (p t) is, near its minimum, (log p - log t)^2
        left, right = terms * scale[:, None], ns * scale
        size = np.linalg.norm(left, axis=0)
        size[size == 0] = 1.0
        penalty = root * np.eye(len(start))
        stacked = np.vstack([left / size, penalty]), np.concatenate([right, penalty @ (start * size)])
        coefficients = nnls(*stacked, maxiter=1000)[0] / size
        guess = np.clip(terms @ coefficients, ns / 20, ns * 20)
    return np.asarray(coefficients)


def _means(at: list[int], logs: np.ndarray) -> dict[int, float]:
    """The mean residual at each point."""
    sums: dict[int, list[float]] = {}
    for point, value in zip(at, logs, strict=True):
        sums.setdefault(point, []).append(float(value))
    return {point: sum(v) / len(v) for point, v in sums.items()}


def left_out_regrets(cases: Iterable[Measured], folds: int = FOLDS) -> dict[tuple[Problem, str, int], float]:
    """Cross-validation: time of the row picked over that of the fastest, by (problem, weights, threads).

    Each problem is judged by a model that has not seen its shape in any pass, layout or thread count.
    """
    cases = list(cases)
    shapes = list(dict.fromkeys(c.problem.shape for c in cases))
    regrets = {}
    for fold in range(min(folds, len(shapes))):
        held = set(shapes[fold::folds])
        model = fit_model((c for c in cases if c.problem.shape not in held), machine="", measured="", env_id="")
        times: dict[tuple[Problem, str, int], dict[str, tuple[float, float]]] = {}
        for c in (c for c in cases if c.problem.shape in held):
            known = model.predict_from(c.row, c.executed_flops, c.problem, c.weights, c.threads)
            times.setdefault((c.problem, c.weights, c.threads), {})[c.row] = (known or math.inf, c.ns)
        for key, rows in times.items():
            regrets[key] = min(rows.values())[1] / min(ns for _, ns in rows.values())
    return regrets


def left_out_errors(model: Model, reach: float, pull: float) -> np.ndarray:
    """Log errors of all cases, each corrected by the others of its row, pass and thread count only."""
    points = np.array(model.points)
    squared = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)  # (points, points)
    weights = (1 + squared / reach**2) ** -2.0
    np.fill_diagonal(weights, 0.0)
    errors = []
    for known in model.fits.values():
        at, logs = np.array(list(known.residuals)), np.array(list(known.residuals.values()))
        w = weights[np.ix_(at, at)]
        errors.append(logs - (w @ logs) / (w.sum(axis=1) + pull))
    return np.concatenate(errors)


def errors_of(model: Model, fit: Fit) -> tuple[str, str]:
    """Median relative error of a fit's sum alone, and with the correction by its other cases, as text."""
    alone = np.array(list(fit.residuals.values()))
    with_neighbours = left_out_errors(replace(model, fits={("", "", 1): fit}), model.reach, model.pull)
    first, second = (f"{100 * float(np.median(np.abs(np.expm1(e)))):.0f} %" for e in (alone, with_neighbours))
    return first, second


def _tune(model: Model) -> tuple[float, float]:
    """Reach and pull with the smallest left-out error."""
    if not model.fits:
        return model.reach, model.pull
    tried = {(r, p): float(np.mean(left_out_errors(model, r, p) ** 2)) for r in REACHES for p in PULLS}
    return min(tried, key=lambda key: tried[key])
