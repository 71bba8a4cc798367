"""The verdict of a run in plain words: who wins where, by how much, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convbench.report.model import ALL_BATCHES, Analysis, Score, Setting
from convbench.stats import Interval

MAX_LINES = 9
MAX_NAMES = 4
PASS_TITLES = {"fwd": "Forward", "bwd_data": "Backward data", "bwd_weights": "Backward weights"}


@dataclass
class Verdict:
    """One headline, one line a setting, and the caveats; `bad` where a result was wrong or a case failed."""

    headline: str
    lines: list[tuple[str, str]]
    caveats: list[str]
    bad: bool


def verdict(analysis: Analysis) -> Verdict:
    """What a reader should know before the first table."""
    settings = _headline_settings(analysis)
    lines = [(_setting_title(analysis, setting), _sentence(analysis, setting)) for setting in settings[:MAX_LINES]]
    counts = analysis.statuses
    caveats = [analysis.baseline_note, _trouble(analysis)]
    if analysis.mixed:
        caveats.insert(
            0, "This run is mixed: it was begun and resumed on different machines, libraries or sources (--force)."
        )
    if len(settings) > MAX_LINES:
        caveats.insert(0, f"{len(settings) - MAX_LINES} further settings are in the tables.")
    said = (_noise(analysis), _arithmetic(analysis), _formats(analysis), _above_peak(analysis))
    caveats += [text for text in said if text]
    bad = bool(counts["wrong"] + counts["failed"] + counts["timed_out"] or analysis.above_peak)
    return Verdict(_headline(analysis, settings), lines, caveats, bad)


def times(interval: Interval, of: int | None = None) -> str:
    """'1.42x (95 % CI 1.30 to 1.55)', with the number of problems where given."""
    inside = [f"95 % CI {interval.lo:.2f} to {interval.hi:.2f}"] if interval.known else []
    if of is not None:
        inside.append(f"{of} problem{'s' if of != 1 else ''}")
    return f"{interval.value:.2f}x" + (f" ({', '.join(inside)})" if inside else "")


def _headline(analysis: Analysis, settings: Sequence[Setting]) -> str:
    if not analysis.rows:
        return "The run holds no record."
    if not any(row.ok for row in analysis.rows):
        return "No case has a time."
    if analysis.baseline is None:
        return f"{sum(row.ok for row in analysis.rows)} cases were timed, with no baseline to compare them with."
    places: dict[str, list[str]] = {}
    for setting in settings:
        leader = _leader(analysis, setting)
        if leader and leader.geomean:
            gain = "" if leader.algorithm == analysis.baseline else f"{leader.geomean.value:.2f}x "
            proven = not gain or (leader.geomean.known and leader.geomean.lo > 1)
            title = _setting_title(analysis, setting).lower()
            places.setdefault(leader.algorithm, []).append(gain + title + ("" if proven else " (not proven)"))
    if not places:
        return f"No algorithm has a speed-up against {analysis.baseline}."
    if set(places) == {analysis.baseline}:
        among = " among rows of its own format" if analysis.precision else ""
        return f"Nothing is faster than {analysis.baseline} on average{among}."
    told = [f"{name} – {_listing(where)}" for name, where in places.items()]
    return f"Fastest on average, against {analysis.baseline}: {'; '.join(told)}."


def _listing(parts: Sequence[str]) -> str:
    if len(parts) > MAX_NAMES:
        parts = [*parts[:MAX_NAMES], f"{len(parts) - MAX_NAMES} more"]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _sentence(analysis: Analysis, setting: Setting) -> str:
    leader = _leader(analysis, setting)
    if leader is None:
        timed = sum(s.n_ok for s in analysis.scores if s.setting == setting)
        if not timed:
            return "no case has a time."
        absent = f"the baseline, {analysis.baseline}, has no time here, so there is no speed-up"
        return f"{absent}. {_winners(analysis, setting)}"
    text = f"{leader.algorithm} is the fastest on average"
    if leader.algorithm == analysis.baseline:
        text = f"nothing is faster on average than the baseline, {leader.algorithm}"
        second = _leader(analysis, setting, beside=leader.algorithm)
        if second and second.geomean:
            text += f"; next is {second.algorithm} with {times(second.geomean, second.n_problems)}"
    elif leader.geomean:
        text += f": {times(leader.geomean, leader.n_problems)} against {analysis.baseline}"
        if leader.geomean.known and leader.geomean.lo <= 1:
            text += ", an interval that holds 1, so not a proven win"
        if leader.vendor_geomean and abs(leader.vendor_geomean.value / leader.geomean.value - 1) > 0.005:
            text += f"; {leader.vendor_geomean.value:.2f}x against the fastest vendor row of each problem"
    partial = _partial_leader(analysis, setting, leader)
    if partial and partial.geomean:
        text += (
            f". {partial.algorithm} reaches {times(partial.geomean)}, but on {partial.n_problems} of "
            f"{partial.n_total} problems only"
        )
    return f"{text}. {_winners(analysis, setting)}{_network(analysis, setting)}"


def _winners(analysis: Analysis, setting: Setting) -> str:
    best = [b for b in analysis.best if b.setting == setting or _over(b.setting) == setting]
    if not best:
        return ""
    alone: dict[str, int] = {}
    for entry in best:
        alone[entry.winner] = alone.get(entry.winner, 0) + 1
    ties = alone.pop("tie", 0)
    ranked = sorted(alone.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{name} {count}" for name, count in ranked[:MAX_NAMES]]
    if len(ranked) > MAX_NAMES:
        parts.append(f"others {sum(count for _, count in ranked[MAX_NAMES:])}")
    if ties:
        parts.append(f"tie {ties}")
    return f"Fastest of {len(best)}: {', '.join(parts)}. "


def _network(analysis: Analysis, setting: Setting) -> str:
    for total in analysis.totals:
        if total.setting == setting and total.algorithm == "best of each layer" and total.seconds:
            gain = f", {total.speedup:.2f}x against {analysis.baseline}" if total.speedup else ""
            return f"With the best of each layer the whole network takes {total.seconds * 1e3:.4g} ms{gain}."
    return ""


def _leader(analysis: Analysis, setting: Setting, beside: str | None = None) -> Score | None:
    """Best geometric mean among those that cover the most problems."""
    scores = [
        s for s in analysis.scores
        if s.setting == setting and s.n_ok and s.algorithm != beside and (s.geomean or not analysis.baseline)
    ]  # fmt: skip
    if not scores:
        return None
    most = max(s.n_problems for s in scores)
    return max(
        (s for s in scores if s.n_problems == most), key=lambda s: (s.geomean.value if s.geomean else 0.0, s.best)
    )


def _partial_leader(analysis: Analysis, setting: Setting, leader: Score) -> Score | None:
    for score in analysis.scores:  # sorted, best first
        if score.setting == setting and score.geomean and leader.geomean and score.n_problems < leader.n_problems:
            return score if score.geomean.value > leader.geomean.value else None
    return None


def _headline_settings(analysis: Analysis) -> list[Setting]:
    """Settings of the run; batches of one setting are taken together."""
    scored = list(dict.fromkeys(score.setting for score in analysis.scores))
    together = {s for s in scored if s.batch == ALL_BATCHES}
    return [s for s in scored if s in together or _over(s) not in together]


def _over(setting: Setting) -> Setting:
    return setting._replace(batch=ALL_BATCHES)


def _setting_title(analysis: Analysis, setting: Setting) -> str:
    same = [f for f in Setting._fields if len({getattr(s, f) for s in analysis.settings}) == 1]
    rest = setting.text(skip=["pass", *same])
    return PASS_TITLES.get(setting.pass_, setting.pass_) + (f" ({rest})" if rest else "")


def _trouble(analysis: Analysis) -> str:
    counts = analysis.statuses
    said = []
    for status, word in (("wrong", "wrong"), ("failed", "failed"), ("timed_out", "timed out")):
        rows = [row for row in analysis.rows if row.record.status == status]
        if rows:
            names = list(dict.fromkeys(f"{row.algorithm} on {row.layer} ({row.setting.pass_})" for row in rows))
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            said.append(f"{counts[status]} {word}: {', '.join(names[:MAX_NAMES])}{more}")
    if not said:
        text = "No result was wrong and no case failed."
    else:
        text = "Trouble: " + "; ".join(said) + "."
    left = {k: counts[k] for k in ("unsupported", "unavailable", "not_reached") if counts[k]}
    if left:
        text += " Not run: " + ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in left.items()) + "."
    return text


def _noise(analysis: Analysis) -> str:
    noisy = sum(row.noisy for row in analysis.rows)
    throttled = sum("throttled" in row.record.flags for row in analysis.rows)
    timed = sum(row.ok for row in analysis.rows)
    if not noisy and not throttled:
        return f"All {timed} timed rows reached the wanted interval." if timed else ""
    text = f"{noisy} of {timed} timed rows are noisy: they did not reach the wanted interval, and count in every mean."
    return text + (f" {throttled} ran under a throttled clock." if throttled else "")


def _arithmetic(analysis: Analysis) -> str:
    kinds = analysis.arithmetics
    if len(kinds) < 2:
        return f"Every timed row multiplies in {kinds[0]}." if kinds else ""
    return (
        f"The rows multiply in {', '.join(kinds)}: the column arithmetic says which, and two arithmetics never "
        "compete for the best of a problem, unless its result depends on neither; a speed-up across them is no "
        "like-for-like comparison."
    )


def _formats(analysis: Analysis) -> str:
    if analysis.precision is None:
        return ""
    return (
        f"The run holds {len(analysis.precision.formats)} formats; means and winners are each format's own, and what "
        "one is worth against another, error beside time, is said under Precision."
    )


def _above_peak(analysis: Analysis) -> str:
    rows = analysis.above_peak
    if not rows:
        return ""
    names = ", ".join(dict.fromkeys(row.algorithm for row in rows))
    return (
        f"{len(rows)} rows execute more operations a second than the measured peak ({names}): the peak or the "
        "operation count is wrong, so do not trust their executed rate."
    )
