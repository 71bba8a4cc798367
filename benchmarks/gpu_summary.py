"""summary.md of `make gpu`: what each stage found, as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

Stages = dict[str, dict[str, Any]]  # stage -> row -> what its process found


def render(gpu: dict[str, Any], missing: dict[str, str], stages: Stages, open_points: list[str], folder: Path) -> str:
    """missing: rows that cannot run here, with reasons. open_points: what failed or is not done. folder: headline/."""
    lines = [f"# {gpu['name']}", "", *(f"- {key}: {gpu[key]}" for key in gpu if key != "name"), ""]
    if open_points:
        lines += ["## Failed, or not done", "", *(f"- {point}" for point in open_points), ""]
    if missing:
        lines += ["## Rows that cannot run here", "", *(f"- {name}: {why}" for name, why in missing.items()), ""]
    lines += _correctness(stages["verify"]) + _sanitizer(stages["sanitize"])
    lines += ["", "## Ceilings", ""]
    for found in stages["ceilings"].values():
        lines += [f"- {key}: {value:,.0f}" for line in found["lines"] for key, value in line.get("peaks", {}).items()]
    lines += ["", "## Tiles: the best against the one that is chosen", "", "| row | layer | chosen | best | gain |",
              "|---|---|--:|---|--:|"]  # fmt: skip
    for row, found in stages["sweep"].items():
        lines += [_sweep_line(row, line) for line in found["lines"] if "ms" in line]
    wrong = [
        f"- {row}, {line['layer']}, {name}: {why}"
        for row, found in stages["sweep"].items() for line in found["lines"]
        for name, why in line.get("wrong", {}).items()
    ]  # fmt: skip
    lines += ["", *wrong] if wrong else []
    return "\n".join([*lines, "", "## Headline", "", *_headline(folder)]) + "\n"


def _correctness(rows: dict[str, Any]) -> list[str]:
    lines = ["## Correctness", "", "| row | ok | unsupported | wrong or failed | process |", "|---|--:|--:|--:|---|"]
    for row, found in rows.items():
        statuses = Counter(line["status"] for line in found["lines"])
        bad = statuses["wrong"] + statuses["failed"]
        ending = "; ".join(found["failures"]) or "ended well"
        lines.append(f"| {row} | {statuses['ok']} | {statuses['unsupported']} | {bad} | {ending} |")
    for row, found in rows.items():
        bad_lines = [x for x in found["lines"] if x["status"] in ("wrong", "failed")]
        lines += [f"- {row}, {x['case']}: {x['reason']}" for x in bad_lines]
    return lines


def _sanitizer(rows: dict[str, Any]) -> list[str]:
    lines = ["", "## compute-sanitizer", ""]
    for row, found in rows.items():
        lines += [f"- {row}: {'; '.join(found['failures']) or 'clean'}"] if row else [f"- {n}" for n in found["notes"]]
    return lines


def _sweep_line(row: str, line: dict[str, Any]) -> str:
    times = line["ms"]
    best = min(times, key=times.__getitem__)
    gain = times["chosen"] / times[best]
    return f"| {row} | {line['layer']} | {times['chosen']:.4f} ms | {best}, {times[best]:.4f} ms | {gain:.3f} |"


def _headline(folder: Path) -> list[str]:
    if not (folder / "plan.json").is_file():
        return ["Not run yet."]
    lines = ["[Report](headline/report.html)"] if (folder / "report.html").is_file() else []
    if not headline_done(folder):
        return [*lines, "Not finished: run the command again."]
    statuses = headline_statuses(folder)
    lines.append(", ".join(f"{count} {status}" for status, count in statuses.most_common()))
    if statuses["not_reached"]:
        lines.append(
            f"{statuses['not_reached']} cases were not reached in the time. For more of them: "
            "python benchmarks/gpu.py --only headline --minutes 30 --output ANOTHER_FOLDER"
        )
    return lines


def headline_done(folder: Path) -> bool:
    """Whether the suite went to its end."""
    try:
        return "finished_utc" in json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return False


def headline_statuses(folder: Path) -> Counter[str]:
    """How many records of each status there are."""
    try:
        lines = (folder / "records.jsonl").read_text().splitlines()
        return Counter(json.loads(line)["status"] for line in lines if line.startswith("{"))
    except (OSError, ValueError, KeyError):
        return Counter({"unreadable": 1})
