"""Against the fastest vendor row: by network and setting, each algorithm, and the best of ours on each layer.

Every problem counts once, against the fastest vendor row for it in any layout. The best of ours is the fastest row
that is no vendor's; where none has a time the problem is missing, which the number of problems shows. Choosing the
fastest of several noisy medians flatters it a little; the intervals of the single rows say by how much at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from convbench.report.model import Analysis, Row, Setting, VendorScore
from convbench.stats import geomean_ci

BEST = "best of ours on each layer"


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


def _of_group(setting: Setting, network: str, rows: list[Row]) -> list[VendorScore]:
    own = [row for row in rows if row.ok and not row.record.vendor and row.vendor_speedup is not None]
    n_total = len({row.problem for row in rows})
    best: dict[Any, Row] = {}
    by_name: dict[str, list[Row]] = {}
    for row in own:
        by_name.setdefault(row.algorithm, []).append(row)
        held = best.get(row.problem)
        if row.like_for_like and (held is None or row.time.value < held.time.value):
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
