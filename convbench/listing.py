"""Plain text for `list`, `explain`, `doctor` (from what a child process said, see describe.py) and the end of a run."""

from __future__ import annotations

import math
import statistics
from typing import Any

from convbench.descriptor import Entry, print_descriptor
from convbench.problem import Semantics

MIB = 2**20


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns padded to their widest cell; the last column is left as it is."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows])


def algorithms_text(found: dict[str, Any], everything: bool) -> str:
    """One line per implementation: name, device, passes, types, semantics unless linear, what it is."""
    rows, missing = [], []
    for d in found["implementations"]:
        if d["unavailable"] is not None:
            missing.append([d["name"], d["device"], d["unavailable"]])
            continue
        passes = "all" if len(d["passes"]) == 3 else ",".join(d["passes"])
        semantics = "" if d["semantics"] == "linear" else d["semantics"]
        source = f"plug-in {d['plugin']} ({d['distribution']} {d['version']})" if d["plugin"] else d["summary"]
        types = ",".join(d["dtypes"])
        rows.append([d["name"], d["device"], passes, types, semantics, ",".join(d["layouts"]), source])
    text = table(["algorithm", "device", "passes", "types", "semantics", "layouts", "what it is"], rows)
    hidden = len(missing) + len(found["broken"])
    if everything:
        if missing:
            text += "\n\nunavailable here\n" + table(["algorithm", "device", "why"], missing)
        if found["broken"]:
            text += "\n\nbroken\n" + table(
                ["name", "from", "why"], [[b["name"], b["origin"], b["reason"]] for b in found["broken"]]
            )
    elif hidden:
        text += f"\n\n{hidden} more unavailable or broken here: convbench list --all says why"
    return text


def explain_text(entry: Entry, found: dict[str, Any], weights: str) -> str:
    """What a problem costs, what auto takes, and each implementation's why or why not."""
    problem, answer = entry.problem, found["problems"][0]
    shape = problem.shape
    semantics = "" if problem.semantics is Semantics.LINEAR else f", semantics {problem.semantics}"
    lines = [
        print_descriptor(problem) + (f"  # {entry.name}" if entry.name else ""),
        f"{problem.pass_}, {problem.dtype}, {problem.layout}{semantics}: "
        f"N={shape.n} C={shape.c} H={shape.h} W={shape.w} K={shape.k} R={shape.r} S={shape.s} P={shape.p} Q={shape.q} "
        f"groups={shape.groups}",
        f"direct {answer['direct_flops'] / 1e9:.4g} GFLOP (without padding taps {answer['valid_flops'] / 1e9:.4g}), "
        f"at least {answer['min_bytes'] / MIB:.4g} MiB moved, "
        f"{answer['direct_flops'] / answer['min_bytes']:.4g} FLOP per byte",
        f"auto takes {answer['auto'][weights]['name']}: {answer['auto'][weights]['reason']}",
        f"predicted times: one call, {answer['threads']} thread(s), {weights} weights; {answer['calibration']}",
        "",
    ]
    missing = {d["name"]: d["unavailable"] for d in found["implementations"]}
    able, unable = [], []
    times: dict[str, float | None] = {}
    for name, row in answer["rows"].items():
        why_not = missing[name] or row["why_not"][weights]
        if why_not is not None:
            unable.append([name, why_not])
            continue
        flops = sum(row["executed_flops"].values())
        phases = ", ".join(f"{phase} {100 * f / flops:.0f} %" for phase, f in row["executed_flops"].items() if flops)
        expected = row["predicted"].get(weights, {"ns": None, "note": ""})
        able.append(
            [
                name,
                "-" if expected["ns"] is None else f"{expected['ns'] / 1e6:.4g}",
                f"{flops / 1e9:.4g}",
                f"{flops / answer['direct_flops']:.2f}",
                f"{row['workspace_estimate'][weights] / MIB:,.1f}",
                phases,
                *([expected["note"]] if expected["note"] else []),
            ]
        )
        times[name] = expected["ns"]
    able.sort(key=lambda cells: (times[cells[0]] is None, times[cells[0]] or 0.0))
    head = ["can", "predicted ms", "GFLOP executed", "of direct", "workspace MiB (estimate)", "phases"]
    if max(map(len, able), default=0) > len(head):
        head.append("about the prediction")
    lines.append(table(head, [cells + [""] * (len(head) - len(cells)) for cells in able]))
    lines += ["", table(["cannot", "why"], unable)] if unable else []
    for broken in found["broken"]:
        lines.append(f"broken: {broken['name']}: {broken['reason']}")
    return "\n".join(lines)


def doctor_text(found: dict[str, Any]) -> str:
    """The machine in a dozen lines."""
    machine = found["machine"]
    rows = [[k, ", ".join(map(str, v)) if isinstance(v, list) else str(v)] for k, v in machine.items()]
    lines = [table(["machine", ""], rows), ""]
    lines.append(table(["library", "version"], [[k, str(v)] for k, v in found["versions"].items() if v]))
    gpu = found.get("gpu") or {}
    if "why" in gpu:
        lines += ["", f"no GPU: {gpu['why']}"]
    elif gpu:
        lines += ["", table(["GPU", ""], [[k, str(v)] for k, v in gpu.items()])]
    lines += ["", f"environment {found['env_id']}"]
    for threads, peak in found["peaks"].items():
        if not peak:
            lines.append(f"peak at {threads} thread(s): could not be measured")
            continue
        lines.append(
            f"measured at {threads} thread(s), GFLOP/s: multiply-adds {peak['gflops']:.0f} (float64 "
            f"{peak['gflops_float64']:.0f}), sgemm {peak['gflops_sgemm']:.0f}"
        )
    for noise in found["noise"]:
        lines.append(
            f"A/A noise at {noise['threads']} thread(s), {noise['samples']} pairs of the same {noise['what']}: "
            f"95 % of single ratios within {noise['p95_percent']:.1f} %, medians differ by "
            f"{noise['median_percent']:.2f} %"
        )
    lines += [f"warning: {w}" for w in found["warnings"]] or ["no warnings"]
    return "\n".join(lines)


def calibration_text(learnt: Any) -> str:
    """What a calibration learnt (`runner.calibrate.Learnt`): coefficients of each fit that count, and its error."""
    from convbench.costfit import errors_of

    model = learnt.model
    body = []
    for (row, setting, threads), fit in sorted(model.fits.items()):
        multiply = fit.coefficients[1]
        rate = f"{1e3 / multiply:.0f}" if multiply else "-"
        body.append([row, setting, str(threads), str(len(fit.residuals)), rate, *errors_of(model, fit)])
    head = ["algorithm", "setting", "threads", "cases", "GFLOP/s of products", "error of the sum", "with neighbours"]
    lines = [table(head, body), "", "errors: median |measured / predicted - 1|, a case's own measurement left out"]
    if learnt.regrets:
        mean = math.exp(statistics.fmean(map(math.log, learnt.regrets)))
        lines.append(
            f"picks for shapes that were left out of the fit: {mean:.3f} times the fastest row's time (geometric mean "
            f"of {len(learnt.regrets)} problems), {max(learnt.regrets):.2f} at worst"
        )
    lines += [f"not a candidate: {name}: {why}" for name, why in sorted(learnt.skipped.items())]
    lines += [f"failed: {sentence}" for sentence in learnt.failed]
    if learnt.left_out:
        lines.append(f"{learnt.left_out} problems were left out for want of time")
    lines.append(f"{learnt.cases} problems in {learnt.seconds:.0f} s; kept in {learnt.path}")
    return "\n".join(lines)


def summary_text(summary: dict[str, Any]) -> str:
    """Geometric-mean speed-ups against the baseline: a line per algorithm and setting, a column per pass."""
    keys = ("dtype", "layout", "weights", "threads", "batch", "mode", "semantics", "inputs")
    settings: dict[tuple[Any, ...], dict[str, dict[str, dict[str, Any]]]] = {}
    for score in summary["algorithms"]:
        rows = settings.setdefault(tuple(score[k] for k in keys), {})
        rows.setdefault(score["algorithm"], {})[score["pass"]] = score
    lines = [summary["verdict"]["headline"], *summary["verdict"]["caveats"]]
    for setting, rows in settings.items():
        if not any(score["speedup_geomean"] for row in rows.values() for score in row.values()):
            continue  # the baseline computes nothing of this: what is to be said is said across formats
        passes = [p for p in ("fwd", "bwd_data", "bwd_weights") if any(p in row for row in rows.values())]
        lines += ["", "speed-up against " + str(summary["baseline"]) + ", " + ", ".join(map(str, setting[:3]))]
        lines[-1] += f", {setting[3]} thread(s), batch {setting[4]}, {setting[5]}"
        lines[-1] += "" if setting[6] == "linear" else f", semantics {setting[6]}"
        lines[-1] += "" if setting[7] == "normal" else f", {setting[7]} inputs"
        lines.append("geometric mean [95 % interval] problems with a speed-up/all problems")
        body = [[name, *(_score(row.get(p)) for p in passes)] for name, row in rows.items()]
        lines.append(table(["algorithm", *passes], body))
    return "\n".join(lines + _across_formats(summary.get("precision")))


def _across_formats(precision: dict[str, Any] | None) -> list[str]:
    """Networks in every format: time against the fastest float32 vendor rows, and the error beside it."""
    if not precision or not precision["networks"]:
        return []
    body = []
    for p in precision["networks"]:
        speedup, error = p["speedup_float32_vendor"], p["error_rel_l2"]
        network = f"{p['network']} ({p['n_layers']})"
        where = f"{network}, {p['pass']}, {p['weights']}, {p['threads']} thread(s), batch {p['batch']}"
        body.append(
            [
                where if p["inputs"] == "normal" else f"{where}, {p['inputs']} inputs",
                p["format"],
                p["algorithm"],
                f"{p['total_time_s'] * 1e3:.4g}",
                "-" if speedup is None else f"{speedup:.2f}",
                "-" if error is None else f"{error:.1e}",
            ]
        )
    head = ["layers of (how many)", "format", "algorithm", "ms", "over float32 vendor", "relative L2 error"]
    return ["", "across formats: times of another function wherever the format is not float32", table(head, body)]


def _score(score: dict[str, Any] | None) -> str:
    if score is None or score["speedup_geomean"] is None:
        return "-"
    lo, hi = score["speedup_geomean_ci_lo"], score["speedup_geomean_ci_hi"]
    interval = f" [{lo:.2f}, {hi:.2f}]" if lo is not None and hi is not None else ""
    return f"{score['speedup_geomean']:.2f}{interval} {score['n_problems']}/{score['n_total']}"
