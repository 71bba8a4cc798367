"""report.html: one file that needs no network; interactive tables through the bundle that itables ships.

Everything that came from a run is text: jinja2 escapes it, JSON blocks escape < > &, scripts build cells as text, and
the content security policy admits the one script of this page by its hash and nothing from any address.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from convbench.report.drawing import Drawing
from convbench.report.model import Analysis, Score, Setting
from convbench.report.precision_html import precision_section
from convbench.report.tables import COLUMNS, Table, matrix_algorithms, show_bytes, show_number
from convbench.report.vendor import BEST
from convbench.report.verdict import PASS_TITLES, verdict
from convbench.stats import Interval

#: Columns of "Every row": header, key in the row's data, kind (how the page formats and sorts it).
ROW_COLUMNS = [
    ("Layer", "label", "text"),
    ("Pass", "pass", "text"),
    ("Type", "dtype", "text"),
    ("Layout", "layout", "text"),
    ("Batch", "batch", "int"),
    ("Weights", "weights", "text"),
    ("Threads", "threads", "int"),
    ("Mode", "mode", "text"),
    ("Semantics", "semantics", "text"),
    ("Inputs", "inputs", "text"),
    ("Algorithm", "algorithm", "text"),
    ("Arithmetic", "arithmetic", "text"),
    ("Status", "status", "status"),
    ("Time, ms", "time_s_median", "time"),
    ("Packing, ms", "packing_s", "ms"),
    ("Packing, %", "pct_packing", "number"),
    ("Speed-up", "speedup", "speedup"),
    ("Effective GFLOP/s", "gflops_direct", "number"),
    ("Executed GFLOP/s", "gflops_executed", "number"),
    ("Workspace", "workspace_bytes", "bytes"),
    ("Relative L2 error", "error_rel_l2", "number"),
    ("Exact result, ULP", "error_exact_ulp", "number"),
    ("Error / bound", "error_bound_ratio", "number"),
    ("Setup, ms", "setup_s", "ms"),
]
_VARYING = ("dtype", "layout", "batch", "weights", "threads", "mode", "semantics", "inputs", "arithmetic")
_SOMETIMES = ("error_exact_ulp", "packing_s", "pct_packing")  # shown where a row has them


def render_html(analysis: Analysis, tables: list[Table], drawings: list[Drawing], across: list[Drawing]) -> str:
    """The whole page. `across`: the figures across formats."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["factor"] = _factor
    script = _template_text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        title=analysis.suite.get("title") or analysis.suite.get("name") or "convbench run",
        verdict=verdict(analysis),
        facts=_facts(analysis),
        warnings=list(analysis.environment.get("warnings") or []),
        counts=_counts(analysis),
        baseline=analysis.baseline,
        summaries=[_summary_section(analysis, pass_) for pass_ in _passes(analysis)],
        vendor=_vendor(analysis),
        totals=_totals(analysis),
        best=_best(analysis),
        matrices=[_matrix(analysis, t) for t in tables if t.name.startswith("speedup_")],
        reasons=_reasons(analysis),
        rows=_row_data(analysis, tables),
        precision=precision_section(analysis),
        precision_figures=[_figure(drawing) for drawing in across],
        figures=[_figure(drawing) for drawing in drawings],
        columns=COLUMNS,
        script=Markup(script),
        script_sha256=digest,
        css=Markup(_template_text("report.css")),
        table_css=Markup(_bundle("dt_bundle.css").decode()),
        table_js=Markup(base64.b64encode(_bundle("dt_bundle.js")).decode()),
    )


def _template_text(name: str) -> str:
    return resources.files("convbench.report").joinpath("templates", name).read_text("utf-8")


def _bundle(name: str) -> bytes:
    """A file of DataTables as itables ships it; read as a file, so that itables need not be imported."""
    return resources.files("itables").joinpath("html", name).read_bytes()


def _passes(analysis: Analysis) -> list[str]:
    return list(dict.fromkeys(setting.pass_ for setting in analysis.settings))


def _varying(analysis: Analysis) -> list[str]:
    """Parts of the setting that are not the same in the whole run (pass left out)."""
    return [f for f in Setting._fields[1:] if len({getattr(s, f) for s in analysis.settings}) > 1]


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    """The machine and the run, as far as the environment knows them."""
    environment = analysis.environment
    machine, suite = environment.get("machine") or {}, analysis.suite
    build = environment.get("convbench") or {}
    facts = [("Processor", machine.get("cpu_model")), ("Cores allowed", machine.get("cores"))]
    facts.append(("Memory", show_bytes(machine["memory_bytes"]) if machine.get("memory_bytes") else None))
    facts.append(("Caches", _pairs(machine.get("caches"))))
    facts.append(("Clock governor", machine.get("governor")))
    peaks = environment.get("peaks") or {}
    measured = [f"{p['gflops']:.0f} at {n} thread(s)" for n, p in peaks.items() if (p or {}).get("gflops")]
    facts.append(("Measured peak, GFLOP/s", ", ".join(measured) or "not measured"))
    facts.append(("Same in all rows", _same(analysis)))
    facts.append(("Libraries", _pairs(environment.get("versions"))))
    dirty = " with local changes" if build.get("dirty") else ""
    facts.append(("convbench", f"{build.get('version', '?')} at {build.get('sha', '?')}{dirty}" if build else None))
    facts.append(("Suite", " ".join(str(suite[k]) for k in ("name", "path") if suite.get(k))))
    facts.append(("Policy", _pairs(suite.get("policy"))))
    facts.append(("Started, finished", _join(environment, "started_utc", "finished_utc")))
    argv = environment.get("argv")
    facts.append(("Command", " ".join(map(str, argv)) if argv else None))
    facts.append(("Environment id", environment.get("env_id")))
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _same(analysis: Analysis) -> str:
    if not analysis.settings:
        return ""
    return analysis.settings[0].text(skip=["pass", *_varying(analysis)])


def _pairs(mapping: Any) -> str:
    if not isinstance(mapping, dict):
        return str(mapping) if mapping else ""
    return ", ".join(f"{key} {value}" for key, value in mapping.items())


def _join(mapping: dict[str, Any], *keys: str) -> str:
    return " to ".join(str(mapping[key]) for key in keys if mapping.get(key))


def _counts(analysis: Analysis) -> list[tuple[str, int, str]]:
    """(word, count, class) for the strip of numbers under the verdict."""
    counts = analysis.statuses
    noisy = sum(row.noisy for row in analysis.rows)
    strip = [("timed", counts["ok"], "good"), ("noisy", noisy, "warn" if noisy else "quiet")]
    for status in ("wrong", "failed", "timed_out"):
        strip.append((status.replace("_", " "), counts[status], "bad" if counts[status] else "quiet"))
    return strip + [(s.replace("_", " "), counts[s], "quiet") for s in ("not_reached", "unavailable", "unsupported")]


def _summary_section(analysis: Analysis, pass_: str) -> dict[str, Any]:
    varying = _varying(analysis)
    scores = [s for s in analysis.scores if s.setting.pass_ == pass_]
    several = len(analysis.arithmetics) > 1
    return {
        "title": PASS_TITLES.get(pass_, pass_),
        "pass": pass_,
        "varying": varying + (["arithmetic"] if several else []),
        "rows": [_score_cells(analysis, s, varying, several) for s in scores],
    }


def _score_cells(analysis: Analysis, score: Score, varying: list[str], several: bool) -> dict[str, Any]:
    geomean = score.geomean
    state = "" if score.algorithm == analysis.baseline else _state(geomean)
    return {
        "algorithm": score.algorithm,
        "is_baseline": score.algorithm == analysis.baseline,
        "setting": [getattr(score.setting, f) for f in varying] + ([score.arithmetic] if several else []),
        "geomean": geomean,
        "vendor": score.vendor_geomean,
        "state": state,
        "score": score,
    }


def _vendor(analysis: Analysis) -> list[dict[str, Any]]:
    varying = _varying(analysis)
    return [
        {
            "score": score,
            "is_best": score.algorithm == BEST,
            "setting": _varying_text(score.setting, varying),
            "state": _state(score.geomean),
        }
        for score in analysis.vendor
    ]


def _varying_text(setting: Setting, varying: list[str]) -> str:
    """The pass and what is not the same in the whole run."""
    return setting.text(skip=[f for f in Setting._fields[1:] if f not in varying])


def _state(interval: Interval | None) -> str:
    """Class of a speed-up's cell: win or loss where the whole interval lies on one side of 1."""
    if interval is None or not interval.known:
        return ""
    return "win" if interval.lo > 1 else "loss" if interval.hi < 1 else ""


def _totals(analysis: Analysis) -> list[dict[str, Any]]:
    varying = _varying(analysis)
    return [
        {
            "total": total,
            "setting": _varying_text(total.setting, varying),
            "ms": None if total.seconds is None else show_number(total.seconds * 1e3),
            "ci": None if total.seconds_lo is None or total.seconds_hi is None
            else f"{show_number(total.seconds_lo * 1e3)} to {show_number(total.seconds_hi * 1e3)}",
        }
        for total in analysis.totals
    ]  # fmt: skip


def _best(analysis: Analysis) -> list[dict[str, Any]]:
    varying = _varying(analysis)
    return [
        {
            "best": best,
            "setting": _varying_text(best.setting, varying),
            "ms": show_number(best.time.value * 1e3),
            "speedup": best.speedup,
        }
        for best in analysis.best
    ]


def _matrix(analysis: Analysis, table: Table) -> dict[str, Any]:
    pass_ = table.name.removeprefix("speedup_")
    algorithms = matrix_algorithms(analysis, pass_)
    varying = _varying(analysis)
    lines = []
    for row in table.rows:
        values = [row.get(name) for name in algorithms]
        lines.append(
            {
                "label": row["label"],
                "problem": row["problem"],
                "setting": [row[f] for f in varying],
                "cells": [(value, _heat(value)) for value in values],
            }
        )
    return {"title": PASS_TITLES.get(pass_, pass_), "algorithms": algorithms, "varying": varying, "rows": lines}


def _factor(value: float) -> str:
    """A speed-up in a table: two decimals, two digits below 0.1."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _heat(speedup: float | None) -> str:
    """Class of a cell: how far from 1, three steps each way."""
    if speedup is None:
        return "none"
    for least, name in ((1.75, "up3"), (1.25, "up2"), (1.05, "up1"), (0.95, "par"), (0.8, "down1"), (0.5, "down2")):
        if speedup >= least:
            return name
    return "down3"


def _reasons(analysis: Analysis) -> list[tuple[str, str, str, int]]:
    """(status, algorithm, sentence, how often) of everything without a time."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in analysis.rows:
        if row.record.status != "ok":
            key = (row.record.status, row.algorithm, row.record.reason)
            counts[key] = counts.get(key, 0) + 1
    order = ("wrong", "failed", "timed_out", "not_reached", "unavailable", "unsupported")
    return [(*key, n) for key, n in sorted(counts.items(), key=lambda item: (order.index(item[0][0]), item[0]))]


def _row_data(analysis: Analysis, tables: list[Table]) -> dict[str, Any]:
    """What the script builds the big table from: columns shown, and every column of every row for the details."""
    table = next(t for t in tables if t.name == "problems")
    varying = set(_varying(analysis)) | ({"arithmetic"} if len(analysis.arithmetics) > 1 else set())
    known = {key for row in table.rows for key in _SOMETIMES if row[key] is not None}
    shown = [c for c in ROW_COLUMNS if c[1] not in (*_VARYING, *_SOMETIMES) or c[1] in varying | known]
    return {
        "columns": [{"title": title, "key": key, "kind": kind, "hint": COLUMNS[key]} for title, key, kind in shown],
        "keys": table.columns,
        "hints": {key: COLUMNS.get(key, "") for key in table.columns},
        "filters": [key for key in ("pass", "algorithm", "status", *_VARYING) if key in {c[1] for c in shown}],
        "rows": [[_plain(row[key]) for key in table.columns] for row in table.rows],
    }


def _plain(value: Any) -> Any:
    """JSON-ready, floats at six digits: the full precision is in the CSV."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _figure(drawing: Drawing) -> dict[str, str]:
    inline = {
        theme: "data:image/svg+xml;base64," + base64.b64encode(content).decode()
        for theme, content in drawing.svg.items()
    }
    return {"name": drawing.name, "title": drawing.title, "caption": drawing.caption, "alt": drawing.alt, **inline}


