"""Against the fastest vendor row: by network and setting, each algorithm, and the best of ours on each layer.

Every problem counts once, against the fastest vendor row for it in any layout. The best of ours is the fastest row
that is no vendor's; where none has a time the problem is missing, which the number of problems shows. Choosing the
fastest of several noisy medians flatters it a little; the intervals of the single rows say by how much at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from convbench.report.model import Analysis, Row, Setting
from convbench.stats import Interval, geomean_ci

BEST = "best of ours on each layer"


@dataclass(frozen=True)
class VendorScore:
    """One algorithm (or the best of ours) on one network: geometric mean of fastest vendor's time over its own."""

    setting: Setting
    network: str
    algorithm: str
    geomean: Interval
    n_problems: int
    n_total: int
    lowest: float
    lowest_layer: str
    n_noisy: int


def against_vendor(analysis: Analysis) -> list[VendorScore]:
    """Scores by setting, then network, the best of ours first; empty where no vendor's row or none of ours is timed."""
    groups: dict[tuple[Setting, str], list[Row]] = {}
    for row in analysis.rows:
        for network in networks(row.layer, str(analysis.suite.get("name") or "all problems")):
            groups.setdefault((row.setting, network), []).append(row)
    return [score for key, rows in groups.items() for score in _of_group(*key, rows)]


def networks(label: str, default: str) -> list[str]:
    """The networks that a layer belongs to: what stands before the colon in `vgg16:conv1_1, resnet50:...`."""
    found = [part.split(":")[0] for part in label.split(", ") if ":" in part]
    return list(dict.fromkeys(found)) or [default]


def vendor_score_dict(score: VendorScore) -> dict[str, Any]:
    """One line of the table."""
    known = score.geomean.known
    return {
        "network": score.network,
        **score.setting.as_dict(),
        "algorithm": score.algorithm,
        "speedup_fastest_vendor_geomean": score.geomean.value,
        "speedup_fastest_vendor_geomean_ci_lo": score.geomean.lo if known else None,
        "speedup_fastest_vendor_geomean_ci_hi": score.geomean.hi if known else None,
        "n_problems": score.n_problems,
        "n_total": score.n_total,
        "lowest_speedup": score.lowest,
        "lowest_layer": score.lowest_layer,
        "n_noisy": score.n_noisy,
    }


def _of_group(setting: Setting, network: str, rows: list[Row]) -> list[VendorScore]:
    own = [row for row in rows if row.ok and not row.record.vendor and row.vendor_speedup is not None]
    n_total = len({row.problem for row in rows})
    best: dict[Any, Row] = {}
    by_name: dict[str, list[Row]] = {}
    for row in own:
        by_name.setdefault(row.algorithm, []).append(row)
        held = best.get(row.problem)
        if row.arithmetic == setting.dtype and (held is None or row.time.value < held.time.value):
            best[row.problem] = row
    scores = [_score(setting, network, name, mine, n_total) for name, mine in by_name.items()]
    scores.sort(key=lambda score: (-score.geomean.value, score.algorithm))
    return ([_score(setting, network, BEST, best.values(), n_total)] if best else []) + scores


def _score(setting: Setting, network: str, name: str, rows: Iterable[Row], n_total: int) -> VendorScore:
    ratios = [(row.vendor_speedup.value, row.layer, row.noisy) for row in rows if row.vendor_speedup is not None]
    lowest, layer, _ = min(ratios)
    noisy = sum(ratio[2] for ratio in ratios)
    mean = geomean_ci([ratio[0] for ratio in ratios])
    return VendorScore(setting, network, name, mean, len(ratios), n_total, lowest, layer, noisy)
