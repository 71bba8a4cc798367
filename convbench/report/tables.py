"""The tables of a run: as rows of plain values for CSV, as Markdown, and the dictionary of their columns.

CSV holds raw numbers with the unit in the column's name and empty cells for unknown; Markdown holds rounded text.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convbench.problem import Pass
from convbench.report.model import Analysis, Row, Setting, interval_dict
from convbench.report.precision_tables import PACKING, PRECISION_COLUMNS, precision_cells
from convbench.report.summary import best_dict, score_dict, total_dict, vendor_score_dict

Cells = dict[str, Any]

#: Every column of every table: what it means.
COLUMNS = {
    "label": "name of the layer, as the suite gives it; the descriptor where it has none",
    "problem": "the problem as a oneDNN benchdnn descriptor: everything needed to repeat it",
    "count": "how often the layer occurs in its network",
    "pass": "fwd: output from input and filter; bwd_data: gradient of the input; bwd_weights: of the filter",
    "dtype": "element type of both operands and the result",
    "layout": "memory layout of the operands: nchw or nhwc",
    "batch": "images at once (N)",
    "weights": "raw: the filter transform is on the clock; packed: it was done before (inference)",
    "threads": "threads that the implementation could use",
    "mode": "hot: the same operands again and again; cold: operands out of the cache",
    "semantics": "which function is computed: linear is the convolution; binary, xnor, binary_weights, int8, fixed16, "
    "fixed16_stochastic and dynamic_fixed first round its float32 operands to that format",
    "inputs": "what the operands hold while they are timed: normal, uniform, relu, integers or zeros",
    "algorithm": "registered name of the implementation: family_variant_tier",
    "arithmetic": "what the machine multiplies in; two arithmetics never compete for the best of a problem, unless its "
    "semantics has one exact result",
    "vendor": "whether a vendor's library did the work",
    "status": "ok, unsupported, unavailable, wrong, failed, timed_out or not_reached; only ok has a time",
    "reason": "one sentence on why there is no time",
    "flags": "noisy: the wanted interval was not reached in time; throttled: the clock was held down; no_packing_time: "
    "its packing raised an error when it was timed by itself",
    "time_s_median": "median seconds of one call, all samples, nothing trimmed",
    "time_s_ci_lo": "lower end of the 95 % interval of the median",
    "time_s_ci_hi": "upper end of the 95 % interval of the median",
    "time_s_min": "fastest sample, seconds of one call (secondary)",
    "time_s_mad": "median absolute deviation of the samples, seconds",
    "n_samples": "samples taken, one a block",
    "packing_s": "seconds in which one call converts its operands before they are multiplied (signs packed, scales "
    "found, numbers quantised, strips of narrow types filled; the filter's too where weights are raw): part of the "
    "time, timed once more by itself, where no products share the caches with it; empty where there is no such phase",
    "pct_packing": "packing_s in percent of the median time; what remains may be more or less than the products take, "
    "and small problems may pass 100",
    "baseline": "the implementation that speed-ups are given against",
    "speedup": "time of the baseline over time of this row, median over shared blocks; above 1 is faster",
    "speedup_ci_lo": "lower end of its 95 % interval (moving-block bootstrap over shared blocks)",
    "speedup_ci_hi": "upper end of its 95 % interval",
    "fastest_vendor": "the fastest vendor row for the same problem in any layout, and that layout",
    "speedup_fastest_vendor": "time of the fastest vendor row over time of this row",
    "speedup_fastest_vendor_ci_lo": "lower end of its 95 % interval",
    "speedup_fastest_vendor_ci_hi": "upper end of its 95 % interval",
    "gflops_direct": "effective rate: 2 N K P Q (C/G) R S over time, padding taps included; may exceed the peak",
    "gflops_executed": "executed rate: operations that the algorithm really does, over time",
    "pct_peak_executed": "executed rate in percent of the measured peak at this thread count; above 100 is an error",
    "gbps_min": "bytes of both operands and the result, over time, in 1e9 bytes a second",
    "workspace_bytes": "measured: memory beside the operands and the result",
    "workspace_estimate_bytes": "what the implementation said before it allocated anything",
    "peak_bytes": "measured: operands, result and workspace at the highest moment",
    "error_rel_l2": "relative L2 error against the linear convolution in float64 of the operands as they are given, "
    "not rounded to any format, on inputs as they are timed; where that is 0 everywhere, the largest absolute error",
    "error_max_abs": "largest absolute error, against the same",
    "error_max_ulp": "largest error in units in the last place, against the same",
    "error_exact_ulp": "of a semantics other than linear: largest distance from its own exact result, in units in the "
    "last place",
    "error_bound_ratio": "largest error over its proven or measured bound (of another semantics: error_exact_ulp over "
    "what is allowed); above 1 would be wrong",
    "setup_s": "untimed preparation: plans, compilation, packing, in seconds",
    "energy_j": "energy of one call in joules, or unavailable",
    "predicted_s": "for not_reached: the predicted seconds of one call",
    "executed_flops": "floating-point operations executed by one call, all phases",
    "vendor_impl": "what the vendor's library picked inside",
    "case_id": "identity of the case, the same on every machine",
    "env_id": "identity of machine and libraries",
    "source_sha": "hash of the implementation's source",
    "repro": "command that repeats this row",
    "n_problems": "problems behind the geometric mean: baseline and algorithm both have a time",
    "n_vendor_problems": "problems behind the geometric mean against the fastest vendor row",
    "n_ok": "problems with a time",
    "n_supported": "problems that the implementation can compute and that this machine has the libraries for",
    "n_total": "problems of the setting",
    "n_noisy": "rows flagged noisy; they count in every mean",
    "wins": "problems where the whole interval of the speed-up lies above 1",
    "ties": "problems where that interval holds 1 or is unknown",
    "losses": "problems where the whole interval lies below 1",
    "best": "problems where it is fastest of all (summary), or who that is (best): tie where intervals overlap",
    "best_tied": "problems where it shares the first place: its median's interval overlaps that of the fastest",
    "tied": "who shares the first place",
    "speedup_geomean": "geometric mean of the speed-ups, one a problem, unweighted",
    "speedup_geomean_ci_lo": "lower end of its 95 % interval (bootstrap over problems)",
    "speedup_geomean_ci_hi": "upper end of its 95 % interval",
    "speedup_fastest_vendor_geomean": "the same against the fastest vendor row over layouts",
    "speedup_fastest_vendor_geomean_ci_lo": "lower end of its 95 % interval",
    "speedup_fastest_vendor_geomean_ci_hi": "upper end of its 95 % interval",
    "network": "the part of the suite that the layers belong to: what stands before the colon of their labels",
    "lowest_speedup": "the least speed-up against the fastest vendor row on any of these layers",
    "lowest_layer": "the layer of that speed-up",
    "runner_up": "the second fastest",
    "margin_over_runner_up": "its time over the time of the fastest",
    "n_layers": "different layers of the setting",
    "n_missing": "layers without a time: with one missing there is no total",
    "total_time_s": "sum over layers of count x median",
    "total_time_s_ci_lo": "lower end of its 95 % interval, layers taken as independent",
    "total_time_s_ci_hi": "upper end of its 95 % interval",
    **PRECISION_COLUMNS,
}

SETTING_COLUMNS = ("pass", "dtype", "layout", "weights", "threads", "batch", "mode", "semantics", "inputs")


@dataclass
class Table:
    """A table by its file name: title, columns, rows of raw values."""

    name: str
    title: str
    columns: list[str]
    rows: list[Cells]

    def to_csv(self) -> str:
        """Comma-separated, one header line, full precision, empty for unknown."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_raw(row.get(column)) for column in self.columns] for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """A GitHub table; columns that are empty or the same everywhere are said once above it."""
        shown, once = self._split_columns()
        lines = [f"# {_escape(self.title)}", ""]
        if once:
            lines += [", ".join(f"{column}: {_escape(show(column, value))}" for column, value in once.items()), ""]
        if not self.rows:
            return "\n".join([*lines, "Nothing to show.", ""])
        numeric = {c for c in shown if all(isinstance(r.get(c), int | float | None) for r in self.rows)}
        lines.append("| " + " | ".join(_escape(column) for column in shown) + " |")
        lines.append("|" + "|".join("---:" if column in numeric else "---" for column in shown) + "|")
        for row in self.rows:
            lines.append("| " + " | ".join(_escape(show(column, row.get(column))) for column in shown) + " |")
        return "\n".join([*lines, ""])

    def _split_columns(self) -> tuple[list[str], Cells]:
        if len(self.rows) < 2:
            return self.columns, {}
        shown, once = [], {}
        for column in self.columns:
            values = {_raw(row.get(column)) for row in self.rows}
            if len(values) > 1 or column not in (*SETTING_COLUMNS, "baseline", "env_id", "arithmetic"):
                if values != {""}:
                    shown.append(column)
            elif values != {""}:
                once[column] = self.rows[0].get(column)
        return shown, once


def all_tables(analysis: Analysis) -> list[Table]:
    """Every table of the run, in the order of the report."""
    algorithms = [score_dict(score) for score in analysis.scores]
    vendor = [vendor_score_dict(score) for score in analysis.vendor]
    tables = [
        Table("summary", f"Speed-up against {analysis.baseline or 'nothing'}", _columns(algorithms), algorithms),
        _table("vendor", "Speed-up against the fastest vendor row", vendor),
        _table("totals", "Time of the whole network", [total_dict(total) for total in analysis.totals]),
        _table("best", "The fastest algorithm of each problem", [best_dict(best) for best in analysis.best]),
        _table("problems", "Every row", [row_cells(row, analysis.baseline) for row in analysis.rows]),
    ]
    tables += [_table(name, title, rows) for name, title, rows in precision_cells(analysis.precision)]
    return tables + [speedup_matrix(analysis, pass_.value) for pass_ in Pass if _has(analysis, pass_.value)]


def row_cells(row: Row, baseline: str | None) -> Cells:
    """One row of the per-problem table."""
    record, m = row.record, row.metrics
    before = ("time_s_median", "time_s_ci_lo", "time_s_ci_hi", "time_s_min", "time_s_mad", "n_samples", *PACKING)
    after = ("gflops_direct", "gflops_executed", "pct_peak_executed", "gbps_min", "workspace_bytes")
    error = ("error_rel_l2", "error_max_abs", "error_max_ulp", "error_bound_ratio", "setup_s", "energy_j")
    return {
        "label": row.layer,
        "problem": row.descriptor,
        "count": record.case.count,
        **row.setting.as_dict(),
        "algorithm": row.algorithm,
        "arithmetic": row.arithmetic,
        "vendor": record.vendor,
        "status": record.status,
        "reason": record.reason,
        "flags": record.flags,
        **{key: m[key] for key in before},
        "baseline": baseline,
        **interval_dict("speedup", row.speedup),
        "fastest_vendor": row.fastest_vendor,
        **interval_dict("speedup_fastest_vendor", row.vendor_speedup),
        **{key: m[key] for key in after},
        "workspace_estimate_bytes": record.workspace_estimate_bytes,
        "peak_bytes": record.peak_bytes,
        **{key: m[key] for key in error},
        "error_exact_ulp": record.error.exact_ulp,
        "predicted_s": None if record.predicted_ns is None else record.predicted_ns / 1e9,
        "executed_flops": sum(record.executed_flops.values()) if record.executed_flops else None,
        "vendor_impl": record.vendor_impl,
        "case_id": record.case.id,
        "env_id": record.env_id,
        "source_sha": record.source_sha,
        "repro": record.repro,
    }


def speedup_matrix(analysis: Analysis, pass_: str) -> Table:
    """Layers x algorithms, a speed-up in each cell, as in the tables of Lavin & Gray (2016)."""
    rows = [row for row in analysis.rows if row.setting.pass_ == pass_]
    algorithms = matrix_algorithms(analysis, pass_)
    cells: dict[tuple[Setting, str, str], Cells] = {}
    for row in rows:
        line = cells.setdefault(
            (row.setting, row.layer, row.descriptor),
            {**row.setting.as_dict(), "label": row.layer, "problem": row.descriptor},
        )
        line[row.algorithm] = row.speedup.value if row.speedup else None
    columns = [*SETTING_COLUMNS, "label", "problem", *algorithms]
    title = f"Speed-up against {analysis.baseline}, {pass_}" if analysis.baseline else f"No baseline, {pass_}"
    return Table(f"speedup_{pass_}", title, columns, list(cells.values()))


def matrix_algorithms(analysis: Analysis, pass_: str) -> list[str]:
    """Algorithms with a speed-up somewhere in this pass, best geometric mean first."""
    means: dict[str, list[float]] = {}
    for score in analysis.scores:
        if score.setting.pass_ == pass_ and score.geomean:
            means.setdefault(score.algorithm, []).append(math.log(score.geomean.value))
    return sorted(means, key=lambda name: (-sum(means[name]) / len(means[name]), name))


def column_dictionary() -> str:
    """tables/columns.md."""
    lines = ["# Columns of the tables", "", "| column | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {_escape(meaning)} |" for name, meaning in COLUMNS.items()]
    lines += ["", "Other columns of speedup_*: an algorithm's speed-up against the baseline on that layer.", ""]
    return "\n".join(lines)


def show(column: str, value: Any) -> str:
    """A value as text for people: at most four digits, bytes as MiB, tuples joined."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    if isinstance(value, int | float) and column.endswith("_bytes"):
        return show_bytes(value)
    if isinstance(value, float):
        return show_number(value)
    return str(value)


def show_number(value: float) -> str:
    """Four significant digits, no exponent where none is needed."""
    if not math.isfinite(value):
        return ""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 6)}f}"
    return f"{value:.2e}"


def show_bytes(value: float) -> str:
    """Bytes in the largest binary unit that leaves at least one whole."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the loop ends at GiB")


def _table(name: str, title: str, rows: list[Cells]) -> Table:
    return Table(name, title, _columns(rows), rows)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(rows[0]) if rows else []


def _has(analysis: Analysis, pass_: str) -> bool:
    return any(setting.pass_ == pass_ for setting in analysis.settings)


def _raw(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ";".join(str(v) for v in value)
    return repr(value) if isinstance(value, float) else value


def _escape(text: str) -> str:
    """Text that stays text in a Markdown table."""
    flat = " ".join(text.split())
    flat = html.escape(flat, quote=False).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("`", "\\`").replace("*", "\\*").replace("[", "\\[")


def write_tables(tables: Iterable[Table], columns: str) -> dict[str, str]:
    """{file name: content} of everything below tables/."""
    files = {"columns.md": columns}
    for table in tables:
        files[f"{table.name}.csv"] = table.to_csv()
        files[f"{table.name}.md"] = table.to_markdown()
    return files
