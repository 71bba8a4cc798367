"""The report: its numbers against a script that shares nothing with it, its tables, its files, its bad days."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_runs import HOSTILE, environment, make_records, make_run, one_record

from convbench.errors import OutputError, RecordsError
from convbench.problem import Case, ConvShape, Options, Pass, Problem
from convbench.records import Record
from convbench.report import build_report
from convbench.report.drawing import pareto_front
from convbench.report.figures import leading
from convbench.report.model import ALL_BATCHES, Analysis, Score
from convbench.report.summary import analyse, summary
from convbench.report.tables import COLUMNS, all_tables, column_dictionary, show_bytes, show_number
from convbench.report.verdict import verdict
from convbench.stats import Interval


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_run(tmp_path_factory.mktemp("report") / "run")
    build_report(directory)
    return directory


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(environment(), make_records())


def score_of(analysis: Analysis, algorithm: str, pass_: str = "fwd") -> Score:
    return next(s for s in analysis.scores if s.algorithm == algorithm and s.setting.pass_ == pass_)


def test_geomeans_agree_with_ten_lines_over_the_records(run: Path) -> None:
    raw = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    ratios: dict[tuple[str, str], list[float]] = {}
    ok = [r for r in raw if r["status"] == "ok"]
    base = {r["case"]["problem"]: r for r in ok if r["case"]["implementation"] == "onednn"}
    for r in ok:
        b = base[r["case"]["problem"]]
        pairs = [x / b["loops"] / (y / r["loops"]) for x, y in zip(b["samples"]["ns"], r["samples"]["ns"], strict=True)]
        direction = re.search(r"--dir=(\w+)", r["case"]["problem"])
        assert direction
        key = (r["case"]["implementation"], direction.group(1))
        ratios.setdefault(key, []).append(float(np.exp(np.median(np.log(pairs)))))
    directions = {"fwd": "FWD_D", "bwd_data": "BWD_D", "bwd_weights": "BWD_W"}
    lines = json.loads((run / "summary.json").read_text())["algorithms"]
    compared = 0
    for line in lines:
        mine = ratios.get((line["algorithm"], directions[line["pass"]]), [])
        assert line["n_problems"] == len(mine)
        if mine:
            assert line["speedup_geomean"] == pytest.approx(math.exp(np.mean(np.log(mine))), rel=1e-9)
            compared += 1
    assert compared == 54


def test_summary_counts_every_record_and_names_the_baseline(run: Path) -> None:
    content = json.loads((run / "summary.json").read_text())
    counts = content["counts"]
    statuses = ("ok", "unsupported", "unavailable", "wrong", "failed", "timed_out", "not_reached")
    assert counts["records"] == 540 == sum(counts[s] for s in statuses)
    assert (counts["wrong"], counts["failed"], counts["timed_out"], counts["unsupported"]) == (1, 1, 3, 27)
    assert content["baseline"] == "onednn" and "onednn, torch, im2col_numpy" in content["baseline_note"]
    assert content["arithmetics"] == ["float32"]
    for line in content["algorithms"]:
        assert line["wins"] + line["ties"] + line["losses"] == line["n_problems"]
        if line["n_problems"] >= 3:
            assert line["speedup_geomean_ci_lo"] <= line["speedup_geomean"] <= line["speedup_geomean_ci_hi"]


def test_coverage_says_what_the_mean_is_over(analysis: Analysis) -> None:
    partial = score_of(analysis, "winograd_f6_numpy")
    assert (partial.n_ok, partial.n_problems, partial.n_supported, partial.n_total) == (8, 8, 9, 9)
    absent = score_of(analysis, "winograd_f2_5x5_numpy")
    assert (absent.n_ok, absent.n_supported, absent.n_total, absent.geomean) == (0, 0, 9, None)


def test_next_baseline_when_the_first_has_no_time() -> None:
    records = [r for r in make_records(layers=2) if r.case.implementation != "onednn"]
    result = analyse(environment(), records)
    assert result.baseline == "torch" and "no time for onednn" in result.baseline_note
    assert analyse({}, records).baseline_note.count("default list") == 1


def test_no_baseline_at_all() -> None:
    records = [r for r in make_records(layers=2) if r.case.implementation.startswith("fft")]
    result = analyse(environment(), records)
    assert result.baseline is None and "no speed-ups" in result.baseline_note
    assert all(score.geomean is None for score in result.scores)
    assert "no baseline" in verdict(result).headline


def test_a_tie_is_a_tie() -> None:
    problem = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1))
    first = one_record(problem, "onednn", "a")
    slower = replace(first, case=Case(problem, "torch", first.case.options, "a"))
    slower.samples = replace(first.samples, ns=[int(ns * 1.001) for ns in first.samples.ns])
    much_slower = replace(first, case=Case(problem, "fft_scipy", first.case.options, "a"))
    much_slower.samples = replace(first.samples, ns=[ns * 2 for ns in first.samples.ns])
    (best,) = analyse(environment(), [much_slower, slower, first]).best
    assert best.winner == "tie" and best.tied == ["onednn", "torch"] and best.runner_up == "torch"
    (clear,) = analyse(environment(), [much_slower, first]).best
    assert clear.winner == "onednn" and clear.tied == [] and clear.margin == pytest.approx(2)


def test_winners_and_ties_add_up_to_the_problems(analysis: Analysis) -> None:
    for pass_ in Pass:
        alone = sum(s.best for s in analysis.scores if s.setting.pass_ == pass_)
        ties = sum(b.winner == "tie" for b in analysis.best if b.setting.pass_ == pass_)
        assert alone + ties == 9


def test_noisy_rows_count_in_the_mean_and_win_only_outside_their_interval() -> None:
    problem = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1))
    base = one_record(problem, "onednn", "a")
    noise = np.random.default_rng(0).choice([0.5, 1.9], 16)
    wild = replace(base, case=Case(problem, "torch", base.case.options, "a"), flags=["noisy"])
    wild.samples = replace(base.samples, ns=[int(ns * x) for ns, x in zip(base.samples.ns, noise, strict=True)])
    score = score_of(analyse(environment(), [base, wild]), "torch")
    assert (score.n_noisy, score.n_problems, score.wins, score.ties) == (1, 1, 0, 1)


def test_two_arithmetics_never_compete() -> None:
    problem = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1))
    base = one_record(problem, "onednn", "a")
    quick = replace(one_record(problem, "torch", "a"), arithmetic="tf32")
    quick.samples = replace(base.samples, ns=[ns // 9 for ns in base.samples.ns])
    result = analyse(environment(), [base, quick])
    assert {(b.arithmetic, b.winner) for b in result.best} == {("float32", "onednn"), ("tf32", "torch")}
    assert any("tf32" in text and "never compete" in text for text in verdict(result).caveats)
    layer_best = next(t for t in result.totals if t.algorithm == "best of each layer")
    assert layer_best.seconds == pytest.approx(next(t.seconds for t in result.totals if t.algorithm == "onednn"))


def test_fastest_vendor_is_taken_over_layouts() -> None:
    shape = ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1)
    slow, fast = Problem(shape, layout="nchw"), Problem(shape, layout="nhwc")
    records = [one_record(slow, "onednn", "a"), one_record(fast, "onednn", "a"), one_record(slow, "fft_scipy", "a")]
    records[1].samples = replace(records[0].samples, ns=[ns // 2 for ns in records[0].samples.ns])
    records[1].loops = records[0].loops
    rows = analyse(environment(), records).rows
    assert [row.fastest_vendor for row in rows] == ["onednn (nhwc)"] * 3
    assert rows[0].speedup is not None and rows[0].speedup.value == pytest.approx(1)
    assert rows[0].vendor_speedup is not None and rows[0].vendor_speedup.value == pytest.approx(0.5, rel=1e-3)
    assert rows[2].speedup is not None and rows[2].vendor_speedup is not None
    assert rows[2].vendor_speedup.value < rows[2].speedup.value


def test_totals_are_weighted_by_count_and_only_where_complete(analysis: Analysis) -> None:
    totals = {t.algorithm: t for t in analysis.totals if t.setting.pass_ == "fwd"}
    rows = [r for r in analysis.rows if r.algorithm == "onednn" and r.setting.pass_ == "fwd"]
    by_hand = sum(r.record.case.count * np.median(r.record.ns_per_call) / 1e9 for r in rows)
    assert totals["onednn"].seconds == pytest.approx(by_hand)
    assert totals["winograd_f6_numpy"].seconds is None and totals["winograd_f6_numpy"].n_missing == 1
    best = totals["best of each layer"].seconds
    assert best is not None and all(best <= t.seconds for t in totals.values() if t.seconds)
    assert sum(r.record.case.count for r in rows) == 13


def test_over_all_batches_there_is_a_mean_of_its_own() -> None:
    result = analyse(environment(), make_records(layers=2, algorithms=5, batches=(1, 8), trouble=False))
    batches = {s.setting.batch for s in result.scores}
    assert batches == {1, 8, ALL_BATCHES}
    score = next(s for s in result.scores if s.setting.batch == ALL_BATCHES and s.algorithm == "torch")
    assert score.n_problems == 4


def test_executed_rate_above_the_measured_peak_is_said() -> None:
    env = environment(peaks={"2": {"gflops": 1.0}})
    result = analyse(env, make_records(layers=1, algorithms=3, trouble=False))
    said = verdict(result)
    assert said.bad and any("measured peak" in text for text in said.caveats)
    assert summary(result)["counts"]["above_measured_peak"] == 9


def test_verdict_names_trouble_and_partial_leaders(analysis: Analysis) -> None:
    said = verdict(analysis)
    text = " ".join([said.headline, *(f"{a} {b}" for a, b in said.lines), *said.caveats])
    assert said.bad
    for piece in ("1 wrong: winograd_f6_numpy on conv5_1 (fwd)", "8 of 9 problems only", "noisy", "float32"):
        assert piece in text
    calm = verdict(analyse(environment(), make_records(layers=2, algorithms=6, trouble=False)))
    assert not calm.bad and any("No result was wrong" in text for text in calm.caveats)


def test_csv_is_complete_and_reads_back(run: Path, analysis: Analysis) -> None:
    with open(run / "tables" / "problems.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 540
    assert list(rows[0])[:3] == ["label", "problem", "count"]
    for row, want in zip(rows, analysis.rows, strict=True):
        assert row["case_id"] == want.record.case.id and row["repro"] == want.record.repro
        assert (row["time_s_median"] != "") == (row["status"] == "ok")
        if row["status"] == "ok":
            assert float(row["time_s_median"]) == want.time.value
            assert float(row["error_rel_l2"]) == want.record.error.rel_l2
            assert int(row["workspace_bytes"]) == want.record.workspace_bytes
        else:
            assert row["reason"]
    assert any(HOSTILE in row["label"] for row in rows)


def test_every_column_is_in_the_dictionary(analysis: Analysis) -> None:
    text = column_dictionary()
    for table in all_tables(analysis):
        for column in table.columns:
            if table.name.startswith("speedup_") and column not in COLUMNS:
                assert any(row.algorithm == column for row in analysis.rows)
            else:
                assert f"| `{column}` |" in text, column


def test_markdown_has_one_line_a_row_and_no_live_html(run: Path, analysis: Analysis) -> None:
    for table in all_tables(analysis):
        text = (run / "tables" / f"{table.name}.md").read_text()
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert "<script" not in text


def test_speedup_matrix_is_layers_by_algorithms(run: Path) -> None:
    with open(run / "tables" / "speedup_fwd.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows][:1] == ["conv1_1"] and len(rows) == 9
    assert all(float(row["onednn"]) == 1 for row in rows)
    assert rows[8]["winograd_f6_numpy"] == "" and float(rows[0]["winograd_f6_numpy"]) > 0


def test_files_of_the_report(run: Path) -> None:
    figures = {path.name for path in (run / "figures").iterdir()}
    for pass_ in Pass:
        for kind in ("gflops", "time_error"):
            for suffix in (".svg", ".png", "_dark.svg", "_dark.png"):
                assert f"{kind}_{pass_.value}{suffix}" in figures
    assert (run / "figures" / "gflops_fwd.png").read_bytes().startswith(b"\x89PNG")
    assert b"<script" not in (run / "figures" / "gflops_fwd.svg").read_bytes()
    assert not any("batch" in name for name in figures)
    assert not list(run.rglob("*.tmp"))


def test_batch_figure_where_there_is_more_than_one_batch(tmp_path: Path) -> None:
    records = make_records(layers=3, algorithms=5, batches=(1, 8, 64), trouble=False)
    paths = build_report(make_run(tmp_path, records))
    assert "speedup_batch_fwd.svg" in {path.name for path in paths.figures}


class Loads(HTMLParser):
    """Collects everything that a page would fetch, and the scripts that it would run."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "srcset", "href", "data", "poster", "action") and v]
        self.scripts += tag == "script" and values.get("type") is None
        if tag == "meta" and (values.get("http-equiv") or "").lower() == "content-security-policy":
            self.policy = values.get("content") or ""


def test_page_is_self_contained(run: Path) -> None:
    page = (run / "report.html").read_text()
    loads = Loads()
    loads.feed(page)
    assert loads.addresses and all(a.startswith(("data:image/svg+xml;base64,", "#")) for a in loads.addresses)
    assert loads.scripts == 1
    assert "default-src 'none'" in loads.policy and "http" not in loads.policy
    assert "@import" not in page and not re.search(r"url\(\s*['\"]?(?!data:)", page)
    assert page.count('id="table-bundle"') == 1
    assert HOSTILE not in page
    assert len(page) < 6e6


def test_order_of_the_page(run: Path) -> None:
    page = (run / "report.html").read_text()
    places = [page.index(f'id="{name}"') for name in ("verdict", "machine", "summary", "rows", "figures")]
    assert places == sorted(places)
    assert all(match.strip() for match in re.findall(r'<img [^>]*alt="([^"]*)"', page))


def test_report_is_a_pure_function_of_the_run(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "copy"
    again.mkdir()
    for name in ("environment.json", "records.jsonl"):
        (again / name).write_bytes((run / name).read_bytes())
    (again / "tables").mkdir()
    (again / "tables" / "speedup_old.csv").write_text("from an earlier report")
    build_report(again)
    files = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert files == {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}


def test_report_needs_no_algorithm_library(run: Path, tmp_path: Path) -> None:
    make_run(tmp_path, make_records(layers=1, algorithms=4, trouble=False))
    script = f"""
import sys
blocked = ("numba", "pyfftw", "torch", "cupy", "mkl", "onednn", "convbench.algorithms", "convbench.devices",
           "convbench.catalog", "convbench.engine", "convbench.worker")
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in blocked):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from convbench.report import build_report
print(build_report(Path({str(tmp_path)!r})).html)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 1e6


@pytest.mark.parametrize(
    "records",
    [
        [],
        [Record(Case(Problem(ConvShape.make(1, 1, 4, 4, 1, 3, 3)), "im2col_numpy", Options()), "failed", "it broke")],
        make_records(layers=1, algorithms=1, trouble=False),
    ],
    ids=["no record", "nothing timed", "baseline alone"],
)
@pytest.mark.parametrize("env", [{}, {"suite": {}, "machine": {}, "peaks": {"2": None}}], ids=["bare", "hollow"])
def test_poor_runs_still_give_a_report(tmp_path: Path, records: list[Record], env: dict[str, Any]) -> None:
    paths = build_report(make_run(tmp_path, records, env))
    assert paths.html.is_file() and paths.headline
    json.loads(paths.summary.read_text())


def test_a_record_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path, make_records(layers=1, algorithms=3, trouble=False))
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-200])
    build_report(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["records"] == 8


def test_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no run directory"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(RecordsError, match=r"no records\.jsonl"):
        build_report(tmp_path)
    make_run(tmp_path, make_records(layers=1, algorithms=2, trouble=False))
    (tmp_path / "tables").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="records are untouched"):
        build_report(tmp_path)


def test_pareto_front() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 2.0), "c": (3.0, 3.0), "d": (4.0, 1.0), "twin of b": (2.0, 2.0)}
    assert pareto_front(points) == {"a", "b", "d", "twin of b"}


def test_leading_draws_the_baseline_and_every_winner_it_has_room_for(analysis: Analysis) -> None:
    for setting in analysis.settings:
        names = leading(analysis, setting)
        winners = {b.winner for b in analysis.best if b.setting == setting} - {"tie"}
        assert names[0] == "onednn" and len(names) == len(set(names)) <= 9 and winners <= set(names)


def test_numbers_for_people() -> None:
    shown = [show_number(x) for x in (0.0, 1.0, 0.01234567, 1234.5678, 99999.0, 1e5, 1.5e-7, math.nan)]
    assert shown == ["0.000", "1.000", "0.01235", "1235", "99999", "1.00e+05", "1.50e-07", ""]
    assert [show_bytes(x) for x in (0, 1023, 1024, 150 * 1024**2, 5 * 1024**4)] == [
        "0 B", "1023 B", "1.0 KiB", "150 MiB", "5120 GiB",
    ]  # fmt: skip


def test_an_unknown_interval_is_no_win(tmp_path: Path) -> None:
    records = make_records(layers=1, algorithms=3, trouble=False)
    for record in records:
        record.samples = replace(record.samples, ns=record.samples.ns[:1], block=[0], position=[0])
    result = analyse(environment(), records)
    assert all(not row.speedup.known for row in result.rows if row.speedup)
    assert all(score.wins == score.losses == 0 for score in result.scores)
    assert all(best.winner == "tie" for best in result.best)
    assert Interval(1, math.nan, math.nan).overlaps(Interval(2, 2, 2))
    build_report(make_run(tmp_path, records))


def test_a_mixed_run_says_so() -> None:
    records = make_records(layers=1, algorithms=4, trouble=False, hostile=False)
    assert not analyse(environment(), records).mixed
    marked = analyse(environment(mixed=True), records)
    elsewhere = analyse(environment(), [replace(records[0], env_id="another"), *records[1:]])
    for analysis in (marked, elsewhere):
        assert analysis.mixed
        assert "This run is mixed" in verdict(analysis).caveats[0]
        assert summary(analysis)["mixed"] is True
