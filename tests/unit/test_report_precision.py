"""The report across formats: its join against sums done by hand, what it must not mix, its tables and figures."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convbench.formats import weight_bytes
from convbench.listing import summary_text
from convbench.problem import ConvShape, Options, Semantics
from convbench.records import Record
from convbench.report import build_report
from convbench.report.frontier import _Dot, _front, _zero_line
from convbench.report.model import Analysis, Precision
from convbench.report.precision import FASTEST, XNOR_BASELINES, xnor_theory
from convbench.report.precision_figures import precision_figures
from convbench.report.summary import analyse
from convbench.report.tables import COLUMNS, all_tables
from convbench.report.verdict import verdict
from tests.precision_runs import FORMATS, format_record, precision_records, xnor_records
from tests.report_runs import environment, make_records, make_run

SHAPE = ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1)


def median(record: Record) -> float:
    return float(np.median(record.ns_per_call)) / 1e9


def across(records: list[Record]) -> Precision:
    precision = analyse(environment(), records).precision
    assert precision is not None
    return precision


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(environment(), precision_records())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_run(tmp_path_factory.mktemp("precision") / "run", xnor_records())
    build_report(directory)
    return directory


def test_a_run_of_one_format_has_no_such_part(tmp_path: Path) -> None:
    records = make_records(layers=1, algorithms=4, trouble=False)
    assert analyse(environment(), records).precision is None and precision_figures(None) == []
    paths = build_report(make_run(tmp_path, records))
    assert 'id="precision"' not in paths.html.read_text()
    assert json.loads(paths.summary.read_text())["precision"] is None
    assert not {"precision.csv", "weights.csv", "xnor.csv"} & {path.name for path in paths.tables}


def test_every_row_meets_the_fastest_float32_vendor_row_of_its_own_place(analysis: Analysis) -> None:
    assert analysis.precision is not None
    of = {(r.case.implementation, r.problem_text, r.case.options.weights): r for r in precision_records()}
    for point in analysis.precision.points:
        record = point.row.record
        plain = format_record(record.case.problem.shape, "onednn_blocked", "", options=record.case.options)
        want = of["onednn_blocked", plain.problem_text, record.case.options.weights]
        assert point.reference is not None and point.reference.record.case.id == want.case.id
        assert point.speedup is not None
        assert point.speedup.value == pytest.approx(median(want) / median(record), rel=1e-2)


def test_formats_are_named_by_what_they_round_and_when(analysis: Analysis) -> None:
    assert analysis.precision is not None
    names = {point.row.algorithm: point.format for point in analysis.precision.points}
    assert names["onednn_int8"] == "int8 operands" and names["int8_simd"] == "int8"
    assert names["direct_fp16_simd"] == "float16" and names["winograd_f4_simd"] == "float32"
    quick = format_record(SHAPE, "onednn", "a")
    quick.arithmetic = "tf32"
    formats = across([quick, format_record(SHAPE, "onednn_blocked", "a")]).formats
    assert formats == ["float32 in tf32", "float32"]


def test_another_layout_number_of_threads_weights_inputs_or_seed_is_no_reference() -> None:
    mine = format_record(SHAPE, "xnor_simd", "a")
    others = [Options(threads=2), Options(weights="packed"), Options(inputs="relu"), Options(seed=1)]
    others.append(Options(mode="cold"))
    precision = across([mine, *(format_record(SHAPE, "onednn", "a", options=options) for options in others)])
    (point,) = [p for p in precision.points if p.format == "xnor"]
    assert point.reference is None and point.speedup is None and precision.xnor[0].against == {}


def test_tf32_vendor_rows_and_ours_are_no_reference() -> None:
    vendor = format_record(SHAPE, "onednn", "a")
    vendor.arithmetic = "tf32"
    precision = across([vendor, format_record(SHAPE, "winograd_f4_simd", "a"), format_record(SHAPE, "xnor_simd", "a")])
    assert all(point.reference is None for point in precision.points)


def test_networks_weigh_layers_by_their_count(analysis: Analysis) -> None:
    assert analysis.precision is not None
    of = {(p.algorithm, p.format, p.frame.weights): p for p in analysis.precision.networks}
    for name, (_, _, _, _, error, _) in FORMATS.items():
        mine = [r for r in precision_records(("packed",)) if r.case.implementation == name]
        point = next(p for (algorithm, _, weights), p in of.items() if (algorithm, weights) == (name, "packed"))
        assert point.n_layers == 9 and sum(r.case.count for r in mine) == 13
        assert point.seconds == pytest.approx(sum(r.case.count * median(r) for r in mine))
        assert point.error == pytest.approx(error) and point.network == "vgg16"
    assert of["onednn_blocked", "float32", "packed"].speedup == pytest.approx(1)
    assert of["xnor_simd", "xnor", "packed"].speedup == pytest.approx(0.93 / 0.06, rel=0.1)
    assert not any(name == FASTEST for name, *_ in of)  # one row is the fastest everywhere


def test_fastest_of_each_layer_and_rows_with_a_layer_missing() -> None:
    small = ConvShape.make(1, 8, 28, 28, 64, 3, 3, padding=1)
    records = [format_record(s, n, label) for s, label in ((SHAPE, "a"), (small, "b")) for n in ("onednn", "int8_simd")]
    quick = format_record(SHAPE, "winograd_f4_simd", "a")
    precision = across([*records, quick])
    of = {(p.algorithm, p.format): p for p in precision.networks}
    assert set(of) == {("onednn", "float32"), ("int8_simd", "int8"), (FASTEST, "float32")}
    fastest = of[FASTEST, "float32"]
    assert fastest.seconds == pytest.approx(median(quick) + median(records[2]))
    assert fastest.error == pytest.approx(math.sqrt((9.4e-7**2 + 2.1e-7**2) / 2))


def test_an_error_that_was_not_compared_leaves_the_network_without_one() -> None:
    records = [format_record(SHAPE, name, "a") for name in ("onednn", "xnor_simd")]
    records[1].error.rel_l2 = None
    (point,) = [p for p in across(records).networks if p.format == "xnor"]
    assert point.error is None and point.speedup is not None


def test_packing_is_what_raw_weights_cost_beyond_packed_ones(analysis: Analysis) -> None:
    assert analysis.precision is not None
    for point in analysis.precision.points:
        if point.row.options.weights == "packed":
            assert point.packing_s is None
        else:
            assert point.packing_s == pytest.approx(point.row.time.value / 11, rel=1e-3)


def test_memory_of_weights(analysis: Analysis) -> None:
    assert analysis.precision is not None
    of = {entry.format: entry for entry in analysis.precision.memory}
    elements = sum(r.case.count * r.case.problem.shape.k * r.case.problem.shape.c * 9
                   for r in precision_records(("raw",)) if r.case.implementation == "onednn")  # fmt: skip
    filters = 64 + 64 + 128 + 128 + 256 + 2 * 256 + 512 + 2 * 512 + 3 * 512
    assert elements == 14_710_464 and of["float32"].bytes == 4 * elements
    assert of["binary"].bytes == elements // 8 and of["xnor"].bytes == elements // 8 + 4 * filters
    assert of["int8 operands"].bytes == elements and of["dynamic_fixed"].bytes == elements * 10 // 8
    for entry in of.values():
        assert (entry.float32_bytes, entry.float64_bytes, entry.n_layers) == (4 * elements, 8 * elements, 9)
    problem = format_record(SHAPE, "xnor_simd", "a").case.problem
    assert weight_bytes(problem) == 64 * 64 * 9 // 8 + 4 * 64


def test_the_formula_is_the_papers() -> None:
    shapes = {(256, 3): 62.27, (3, 3): 19.0, (256, 1): 51.2}
    for (c, r), want in shapes.items():
        shape = ConvShape.make(1, c, 14, 14, 256, r, r, padding=r // 2)
        assert xnor_theory(format_record(shape, "xnor_simd", "a").case.problem) == pytest.approx(want, abs=0.05)


def test_signs_meet_all_four_baselines_of_their_own_place() -> None:
    records = [format_record(SHAPE, name, "a") for name in FORMATS]
    lines = {line.row.problem.semantics: line for line in across(records).xnor}
    assert set(lines) == {Semantics.XNOR, Semantics.BINARY}
    line = lines[Semantics.XNOR]
    got = {name: (row.algorithm, row.problem.dtype) for name, (row, _) in line.against.items()}
    assert got == {
        "naive float32": ("direct_naive_numba", "float32"), "im2col + BLAS float32": ("im2col_numpy", "float32"),
        "oneDNN float32": ("onednn_blocked", "float32"), "oneDNN int8": ("onednn_int8", "int8"),
    }  # fmt: skip
    assert list(XNOR_BASELINES) == list(got)
    for row, gain in line.against.values():
        assert gain.value == pytest.approx(median(row.record) / line.row.time.value, rel=1e-2)


def test_xnor_table_and_curves(run: Path) -> None:
    with open(run / "tables" / "xnor.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 12  # weights, semantics, shapes: c = 256 with 3x3 is on both axes
    first = next(r for r in rows if r["label"].endswith("c1024") and r["format"] == "xnor" and r["weights"] == "packed")
    assert float(first["theory_speedup"]) == pytest.approx(64 * 9216 / 9280)
    assert all(float(first[f"over {name}"]) > 0 and first[f"row {name}"] for name in XNOR_BASELINES)
    assert float(first["over oneDNN float32"]) == pytest.approx(0.93 / (0.06 * (1 + 64 / 9216)), rel=0.02)
    figures = {path.name for path in (run / "figures").iterdir()}
    for name in ("xnor_channels_fwd_packed", "xnor_filter_fwd_raw", "binary_channels_fwd_raw"):
        assert {f"{name}.svg", f"{name}_dark.png"} <= figures
    assert not any(name.startswith("precision_") for name in figures)  # sweeps are no networks
    page = (run / "report.html").read_text()
    assert page.index('id="totals"') < page.index('id="precision"') < page.index('id="best"')
    assert page.count("against another function") >= 2


def test_figures_of_networks_say_row_and_format(analysis: Analysis) -> None:
    drawings = {drawing.name: drawing for drawing in precision_figures(analysis.precision)}
    assert set(drawings) == {
        *(f"precision_{kind}_fwd_vgg16_{weights}" for kind in ("network", "layers") for weights in ("packed", "raw")),
        "precision_memory",
    }
    drawing = drawings["precision_network_fwd_vgg16_packed"]
    assert "against another function" in drawing.caption and "int8" in drawing.caption
    assert drawing.alt.endswith(
        "fastest first: binary_simd in binary, xnor_simd in xnor, onednn_bf16 in bfloat16, winograd_f4_simd in "
        "float32, onednn_blocked in float32, im2col_numpy in float32."
    )


def test_no_accuracy_of_zeros_is_drawn() -> None:
    names = [d.name for d in precision_figures(across(precision_records(("raw",), ("relu", "zeros"))))]
    assert names == ["precision_network_fwd_vgg16_relu", "precision_layers_fwd_vgg16_relu", "precision_memory"]


def test_exact_sums_of_rounded_operands_are_no_part_of_the_front() -> None:
    dots = [_Dot(1.0, 1e-7, "a", "float32", "a"), _Dot(0.5, 0.0, "b", "int8 operands", "b")]
    dots.append(_Dot(0.6, 1e-2, "c", "int8", "c"))
    assert {dot.label for dot in _front(dots)} == {"a", "c"}
    exact = _Dot(0.7, 0.0, "d", "float32", "d")  # whole numbers, exactly
    assert {dot.label for dot in _front([*dots, exact])} == {"c", "d"}
    assert _zero_line(dots) == pytest.approx(1e-8) and _zero_line(dots[:1]) is None


def test_inputs_and_semantics_are_settings_of_their_own() -> None:
    records = [format_record(SHAPE, name, "a", options=Options(inputs=inputs))
               for name in ("onednn", "im2col_numpy", "int8_simd")
               for inputs in ("normal", "zeros", "relu")]  # fmt: skip
    analysis = analyse(environment(), records)
    assert {(s.semantics, s.inputs) for s in analysis.settings} == {
        (semantics, inputs) for semantics in ("linear", "int8") for inputs in ("normal", "zeros", "relu")
    }
    assert all(score.n_total == 1 for score in analysis.scores)
    assert all(total.n_layers == 1 for total in analysis.totals)
    for table in all_tables(analysis):
        if table.name not in ("weights",):
            assert {row["inputs"] for row in table.rows} == {"normal", "zeros", "relu"}, table.name
        assert all(column in COLUMNS or column in FORMATS for column in table.columns)
    titles = [title for title, _ in verdict(analysis).lines]
    assert any("zeros inputs" in title for title in titles) and any("int8" in title for title in titles)


def test_a_setting_without_the_baseline_still_says_who_is_fastest(analysis: Analysis) -> None:
    said = dict(verdict(analysis).lines)
    title = next(title for title in said if "float16" in title)
    assert said[title].startswith("the baseline, onednn, has no time here") and "direct_fp16_simd 9" in said[title]
    assert any("holds 10 formats" in text for text in verdict(analysis).caveats)


def test_arithmetics_compete_where_the_result_is_exact() -> None:
    records = [format_record(SHAPE, name, "a") for name in ("onednn", "binary_simd")]
    slow = format_record(SHAPE, "binary_simd", "a")
    tiles = replace(slow, case=replace(slow.case, implementation="binary_amx_simd"), arithmetic="int8-acc32")
    tiles.samples = replace(slow.samples, ns=[ns // 2 for ns in slow.samples.ns])
    analysis = analyse(environment(), [*records, tiles])
    (best,) = [b for b in analysis.best if b.setting.semantics == "binary"]
    assert (best.winner, best.runner_up, best.arithmetic) == ("binary_amx_simd", "binary_simd", "int8-acc32")
    scores = {s.algorithm: s.best for s in analysis.scores if s.setting.semantics == "binary"}
    assert scores == {"binary_amx_simd": 1, "binary_simd": 0}
    (total,) = [t for t in analysis.totals if t.algorithm == "best of each layer" and t.setting.semantics == "binary"]
    assert total.seconds == pytest.approx(median(tiles))
    weights = format_record(SHAPE, "binary_weights_simd", "a")
    halves = replace(weights, case=replace(weights.case, implementation="bwn_bf16"), arithmetic="bfloat16-acc32")
    assert len(analyse(environment(), [weights, halves]).best) == 2  # a sum that is rounded depends on it


def test_rows_that_do_not_take_a_format_have_no_line_among_its_scores() -> None:
    def not_run(like: Record, name: str, status: str) -> Record:
        case, samples = replace(like.case, implementation=name), replace(like.samples, ns=[])
        return replace(like, case=case, status=status, samples=samples, arithmetic="")

    float32, half = format_record(SHAPE, "onednn", "a"), format_record(SHAPE, "direct_fp16_simd", "a")
    alone = analyse(environment(), [float32, not_run(float32, "direct_fp16_simd", "unsupported")])
    assert {s.algorithm for s in alone.scores} == {"onednn", "direct_fp16_simd"}
    refused = [not_run(float32, "direct_fp16_simd", "unsupported"), not_run(half, "onednn", "unsupported")]
    both = analyse(environment(), [float32, half, *refused])
    lines = [(s.setting.dtype, s.algorithm) for s in both.scores]
    assert lines == [("float32", "onednn"), ("float16", "direct_fp16_simd")]


def test_a_case_that_was_not_run_belongs_to_what_its_row_multiplies_in() -> None:
    layers = [(SHAPE, "a"), (ConvShape.make(1, 32, 28, 28, 64, 3, 3, padding=1), "b")]
    ran, left = (format_record(shape, "direct_fp16_simd", label) for shape, label in layers)
    left = replace(left, status="not_reached", arithmetic="", samples=replace(left.samples, ns=[]))
    (score,) = analyse(environment(), [ran, left]).scores
    assert (score.arithmetic, score.n_ok, score.n_total) == ("float16-acc32", 1, 2)
    never = format_record(SHAPE, "xnor_simd", "a")
    (row,) = analyse(environment(), [replace(never, status="not_reached", arithmetic="")]).rows
    assert row.arithmetic == "binary"


def test_both_errors_stand_in_the_table_of_every_row(analysis: Analysis) -> None:
    table = next(table for table in all_tables(analysis) if table.name == "problems")
    for row in table.rows:
        _, semantics, _, _, error, ulp = FORMATS[row["algorithm"]]
        assert (row["error_rel_l2"], row["error_exact_ulp"], row["semantics"]) == (error, ulp, semantics.value)
    assert "not rounded" in COLUMNS["error_rel_l2"] and "exact result" in COLUMNS["error_exact_ulp"]


def test_summary_in_the_terminal_keeps_inputs_and_semantics_apart(tmp_path: Path) -> None:
    records = [format_record(SHAPE, name, "a", options=Options(inputs=inputs))
               for name in ("onednn", "im2col_numpy", "int8_simd") for inputs in ("normal", "zeros")]  # fmt: skip
    paths = build_report(make_run(tmp_path, records))
    text = summary_text(json.loads(paths.summary.read_text()))
    assert text.count("speed-up against onednn, ") == 2 and text.count("hot, zeros inputs") == 1
    _, across = text.split("across formats: times of another function")
    lines = [line for line in across.splitlines() if " int8 " in line]
    assert len(lines) == 2 and all(line.endswith("1.1e-02") and "int8_simd" in line for line in lines)
    assert sum("zeros inputs" in line for line in lines) == 1
    assert all(" (1), fwd" in line for line in lines), lines
