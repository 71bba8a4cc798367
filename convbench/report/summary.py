"""What a run says: rows with speed-ups, the best of each problem, geometric means, totals. summary.json.

A pure function of the environment and the records. Two arithmetics never compete: the best of a problem is looked
for among rows that multiply in the same type, but for semantics whose exact result no arithmetic changes. Every record
is counted somewhere; noisy ones count in every mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from convbench.formats import ARITHMETIC
from convbench.problem import ConvShape, Semantics
from convbench.records import Record
from convbench.report.model import (
    ALL_BATCHES,
    Analysis,
    Best,
    Row,
    Score,
    Setting,
    Total,
    VendorScore,
    interval_dict,
)
from convbench.report.precision import across_formats
from convbench.report.precision_tables import precision_dict
from convbench.report.vendor import against_vendor
from convbench.stats import geomean_ci, metrics, speedup_ci

DEFAULT_BASELINES = ("onednn", "torch", "im2col_numpy")
SUMMARY_SCHEMA = 1


def analyse(environment: dict[str, Any], records: Sequence[Record]) -> Analysis:
    """Rows, winners, geometric means and totals of one run. No record is left out."""
    known = {_row_and_format(r): r.arithmetic for r in records if r.arithmetic}
    rows = []
    for record in records:
        arithmetic = _arithmetic(record, known)
        peak = peak_gflops(environment, record.case.options.threads, _multiplied_in(arithmetic))
        rows.append(Row(record, arithmetic, metrics(record, peak)))
    baseline, note = choose_baseline(environment, rows)
    _add_speedups(rows, baseline)
    analysis = Analysis(environment, rows, baseline, note)
    analysis.best = _best(rows)
    analysis.scores = _scores(analysis)
    analysis.totals = _totals(analysis)
    analysis.vendor = against_vendor(analysis)
    analysis.precision = across_formats(analysis)
    return analysis


def peak_gflops(environment: dict[str, Any], threads: int, dtype: str) -> float | None:
    """The machine's measured peak for this thread count, or None where doctor did not measure it."""
    peaks = (environment.get("peaks") or {}).get(str(threads)) or {}
    value = peaks.get(f"gflops_{dtype}", peaks.get("gflops") if dtype == "float32" else None)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def choose_baseline(environment: dict[str, Any], rows: Sequence[Row]) -> tuple[str | None, str]:
    """(name, sentence): the first of the suite's baselines that has a time, said aloud."""
    wanted = list((environment.get("suite") or {}).get("baseline") or ())
    source = "the suite's list" if wanted else "the default list, as the run names none"
    wanted = wanted or list(DEFAULT_BASELINES)
    timed = {row.algorithm for row in rows if row.ok}
    for position, name in enumerate(wanted):
        if name in timed:
            passed = f"; no time for {', '.join(wanted[:position])}" if position else ""
            return name, f"The baseline is {name}, the first with a time in {source} ({', '.join(wanted)}){passed}."
    return None, f"There is no baseline: none of {', '.join(wanted)} has a time, so there are no speed-ups."


def summary(analysis: Analysis) -> dict[str, Any]:
    """The content of summary.json: numbers only, None for unknown, names with units."""
    return {
        "schema": SUMMARY_SCHEMA,
        "suite": analysis.suite.get("name"),
        "env_id": analysis.environment.get("env_id"),
        "baseline": analysis.baseline,
        "baseline_note": analysis.baseline_note,
        "mixed": analysis.mixed,
        "confidence": 0.95,
        "arithmetics": analysis.arithmetics,
        "counts": {
            "records": len(analysis.rows),
            **analysis.statuses,
            "noisy": sum(row.noisy for row in analysis.rows),
            "throttled": sum("throttled" in row.record.flags for row in analysis.rows),
            "above_measured_peak": len(analysis.above_peak),
        },
        "algorithms": [score_dict(s) for s in analysis.scores],
        "best": [best_dict(b) for b in analysis.best],
        "totals": [total_dict(t) for t in analysis.totals],
        "precision": precision_dict(analysis.precision),
    }


def score_dict(score: Score) -> dict[str, Any]:
    """One line of the summary table."""
    data = asdict(score)
    for key in ("setting", "geomean", "vendor_geomean"):
        data.pop(key)
    return {
        **score.setting.as_dict(),
        "algorithm": data.pop("algorithm"),
        "arithmetic": data.pop("arithmetic"),
        **interval_dict("speedup_geomean", score.geomean),
        "n_problems": data.pop("n_problems"),
        **interval_dict("speedup_fastest_vendor_geomean", score.vendor_geomean),
        **data,
    }


def vendor_score_dict(score: VendorScore) -> dict[str, Any]:
    """One line of the table against the fastest vendor row."""
    return {
        "network": score.network,
        **score.setting.as_dict(),
        "algorithm": score.algorithm,
        **interval_dict("speedup_fastest_vendor_geomean", score.geomean),
        "n_problems": score.n_problems,
        "n_total": score.n_total,
        "lowest_speedup": score.lowest,
        "lowest_layer": score.lowest_layer,
        "n_noisy": score.n_noisy,
    }


def best_dict(best: Best) -> dict[str, Any]:
    """One line of the table of winners."""
    return {
        **best.setting.as_dict(),
        "label": best.layer,
        "problem": best.descriptor,
        "count": best.count,
        "arithmetic": best.arithmetic,
        "best": best.winner,
        "tied": best.tied,
        **interval_dict("time_s_median", best.time, "time_s_ci"),
        **interval_dict("speedup", best.speedup),
        "runner_up": best.runner_up,
        "margin_over_runner_up": best.margin,
    }


def total_dict(total: Total) -> dict[str, Any]:
    """One line of the table of network totals."""
    return {
        **total.setting.as_dict(),
        "algorithm": total.algorithm,
        "total_time_s": total.seconds,
        "total_time_s_ci_lo": total.seconds_lo,
        "total_time_s_ci_hi": total.seconds_hi,
        "speedup": total.speedup,
        "n_layers": total.n_layers,
        "n_missing": total.n_missing,
    }


def _row_and_format(record: Record) -> tuple[str, str, Semantics]:
    problem = record.case.problem
    return record.case.implementation, problem.dtype, problem.semantics


def _arithmetic(record: Record, known: dict[tuple[str, str, Semantics], str]) -> str:
    """A case that was not run does not say: it is what the row multiplied in elsewhere, else what is usual."""
    problem = record.case.problem
    said = record.arithmetic or known.get(_row_and_format(record)) or ARITHMETIC.get(problem.semantics, "native")
    return problem.native_arithmetic if said == "native" else said


def _multiplied_in(arithmetic: str) -> str:
    """The type whose peak a row is compared with: "tf32" for "3xtf32", "float16" for "float16-acc32"."""
    return arithmetic.split("-")[0].removeprefix("3x")


def _add_speedups(rows: Sequence[Row], baseline: str | None) -> None:
    """Against the baseline on the same problem, and against the fastest vendor row over layouts."""
    base = {(r.problem, r.options): r for r in rows if r.ok and r.algorithm == baseline}
    vendors: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = _over_layouts(row)
        if row.ok and row.record.vendor and (key not in vendors or row.time.value < vendors[key].time.value):
            vendors[key] = row
    for row in rows:
        if not row.ok:
            continue
        of, vendor = base.get((row.problem, row.options)), vendors.get(_over_layouts(row))
        row.speedup = speedup_ci(of.record, row.record) if of else None
        if vendor:
            row.fastest_vendor = f"{vendor.algorithm} ({vendor.problem.layout})"
            row.vendor_speedup = row.speedup if vendor is of else speedup_ci(vendor.record, row.record)


def _over_layouts(row: Row) -> tuple[Any, ...]:
    p = row.problem
    return (p.shape, p.pass_, p.dtype, p.semantics, row.options, row.arithmetic)


def _best(rows: Sequence[Row]) -> list[Best]:
    rivals: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.ok:
            rivals.setdefault((row.problem, row.options, row.competes_in), []).append(row)
    result = []
    for group in rivals.values():
        ranked = sorted(group, key=lambda row: row.time.value)
        first = ranked[0]
        tied = [row.algorithm for row in ranked if row is first or row.time.overlaps(first.time)]
        second = ranked[1] if len(ranked) > 1 else None
        result.append(
            Best(
                first.setting,
                first.layer,
                first.descriptor,
                first.record.case.count,
                first.arithmetic,
                first.algorithm if len(tied) == 1 else "tie",
                tied if len(tied) > 1 else [],
                first.time,
                first.speedup,
                second.algorithm if second else None,
                second.time.value / first.time.value if second else None,
                first.competes_in,
            )
        )
    return result


def _groups(analysis: Analysis) -> dict[Setting, list[Row]]:
    """Rows by setting, and once more over all batches where a setting has more than one."""
    groups: dict[Setting, list[Row]] = {}
    for row in analysis.rows:
        groups.setdefault(row.setting, []).append(row)
    families: dict[Setting, list[Setting]] = {}
    for setting in groups:
        families.setdefault(setting._replace(batch=ALL_BATCHES), []).append(setting)
    for over_batches, members in families.items():
        if len(members) > 1:
            groups[over_batches] = [row for setting in members for row in groups[setting]]
    return groups


def _scores(analysis: Analysis) -> list[Score]:
    winners: Counter[tuple[Setting, str, str]] = Counter()
    ties: Counter[tuple[Setting, str, str]] = Counter()
    for best in analysis.best:
        for setting in (best.setting, best.setting._replace(batch=ALL_BATCHES)):
            winners[setting, best.winner, best.competed_in] += 1
            ties.update((setting, name, best.competed_in) for name in best.tied)
    scores = []
    several = len({(row.problem.dtype, row.problem.semantics) for row in analysis.rows}) > 1
    for setting, rows in _groups(analysis).items():
        by_algorithm: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            by_algorithm.setdefault((row.algorithm, row.arithmetic), []).append(row)
        of_setting = [
            _score(setting, name, arithmetic, mine, winners, ties)
            for (name, arithmetic), mine in by_algorithm.items()
        ]
        if several:  # a suite names its rows once: those that do not take this format have no line in it
            of_setting = [score for score in of_setting if score.n_supported] or of_setting
        scores += sorted(of_setting, key=lambda s: (-(s.geomean.value if s.geomean else 0.0), s.algorithm))
    return scores


def _score(
    setting: Setting,
    name: str,
    arithmetic: str,
    rows: Sequence[Row],
    winners: Counter[tuple[Setting, str, str]],
    ties: Counter[tuple[Setting, str, str]],
) -> Score:
    speedups = [row.speedup for row in rows if row.speedup is not None]
    vendor = [row.vendor_speedup for row in rows if row.vendor_speedup is not None]
    wins = sum(s.known and s.lo > 1 for s in speedups)
    losses = sum(s.known and s.hi < 1 for s in speedups)
    return Score(
        setting=setting,
        algorithm=name,
        arithmetic=arithmetic,
        geomean=geomean_ci([s.value for s in speedups]) if speedups else None,
        n_problems=len(speedups),
        vendor_geomean=geomean_ci([s.value for s in vendor]) if vendor else None,
        n_vendor_problems=len(vendor),
        n_ok=sum(row.ok for row in rows),
        n_supported=sum(row.record.status not in ("unsupported", "unavailable") for row in rows),
        n_total=len(rows),
        n_noisy=sum(row.noisy for row in rows),
        wins=wins,
        ties=len(speedups) - wins - losses,
        losses=losses,
        best=winners[setting, name, rows[0].competes_in],
        best_tied=ties[setting, name, rows[0].competes_in],
    )


def _totals(analysis: Analysis) -> list[Total]:
    """Sum of count x median for each algorithm and for the best of each layer; None where a layer is missing."""
    result = []
    for setting, rows in _groups(analysis).items():
        if setting.batch == ALL_BATCHES:
            continue
        layers: dict[ConvShape, list[Row]] = {}
        by_algorithm: dict[str, dict[ConvShape, Row]] = {}
        for row in rows:
            layers.setdefault(row.problem.shape, [])
            if row.ok:
                by_algorithm.setdefault(row.algorithm, {})[row.problem.shape] = row
                if row.like_for_like:
                    layers[row.problem.shape].append(row)
        totals = [_total(setting, name, mine.values(), len(layers)) for name, mine in by_algorithm.items()]
        fastest = [min(rivals, key=lambda row: row.time.value) for rivals in layers.values() if rivals]
        totals.append(_total(setting, "best of each layer", fastest, len(layers)))
        base = next((t.seconds for t in totals if t.algorithm == analysis.baseline), None)
        for total in totals:
            if base and total.seconds:
                total.speedup = base / total.seconds
        result += sorted(totals, key=lambda t: (t.seconds is None, t.seconds or 0, t.algorithm))
    return result


def _total(setting: Setting, name: str, rows: Iterable[Row], n_layers: int) -> Total:
    mine = list(rows)
    missing = n_layers - len(mine)
    if missing or not mine:
        return Total(setting, name, n_layers, missing, None, None, None)
    seconds = sum(row.record.case.count * row.time.value for row in mine)
    below = sum((row.record.case.count * (row.time.value - row.time.lo)) ** 2 for row in mine) ** 0.5
    above = sum((row.record.case.count * (row.time.hi - row.time.value)) ** 2 for row in mine) ** 0.5
    if below != below or above != above:  # a layer without an interval leaves the total without one
        return Total(setting, name, n_layers, 0, seconds, None, None)
    return Total(setting, name, n_layers, 0, seconds, seconds - below, seconds + above)
