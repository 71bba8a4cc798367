"""Suites for a GPU: devices, axes of single items, baselines, budgets, facts that count; nothing runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convbench import environment, resources
from convbench.errors import SuiteError, UnknownAlgorithm
from convbench.problem import Case, ConvShape, Problem
from convbench.runner import RunPlan, make_plan_for, repro_line
from convbench.runner.budget import weight
from convbench.runner.session import MEMORY_SHARE, Session
from convbench.suite import expand, load_suite

ROW = {"unavailable": None, "vendor": False, "arithmetic": "native", "source_sha": "0", "semantics": "linear"}
LISTING: dict[str, Any] = {
    "implementations": [
        {**ROW, "name": "im2col_numpy", "device": "cpu"},
        {**ROW, "name": "onednn", "device": "cpu", "vendor": True},
        {**ROW, "name": "cudnn_tf32", "device": "cuda", "vendor": True, "arithmetic": "tf32"},
        {**ROW, "name": "cudnn_fp32", "device": "cuda", "vendor": True, "arithmetic": "float32"},
        {**ROW, "name": "im2col_cuda", "device": "cuda"},
    ],
    "broken": [{"name": "bad_plugin", "reason": "it raised"}],
    "skip": {},
    "gpu": {"name": "NVIDIA H200", "memory_bytes": 100 << 30},
}


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def test_gpu_headline_covers_what_it_says() -> None:
    suite = load_suite("gpu_headline")
    assert suite.device == "cuda"
    cases = expand(suite, cores=16)
    assert {c.threads for c in cases} == {1}
    for layers, network in ((9, "vgg16:"), (23, "resnet50:")):
        of_network = [c for c in cases if network in c.label]
        for dtype, layout in (("float32", "nchw"), ("float16", "nhwc"), ("bfloat16", "nhwc")):
            forward = [c for c in of_network if (c.problem.dtype, c.problem.pass_) == (dtype, "fwd")]
            assert {c.problem.shape.n for c in forward} == {1, 8, 32, 128}
            assert {(c.problem.layout, c.weights) for c in forward} == {(layout, "packed")}
            assert len(forward) == 4 * layers
            for pass_ in ("bwd_data", "bwd_weights"):
                gradients = [c for c in of_network if (c.problem.dtype, c.problem.pass_) == (dtype, pass_)]
                assert len(gradients) == layers and {c.problem.shape.n for c in gradients} == {32}
    assert suite.policy.time_budget_s <= 480


@pytest.mark.parametrize("name", ["lavin", "fbfft"])
def test_older_suites_run_on_a_gpu_as_they_are(name: str) -> None:
    plan = make_plan_for(load_suite(name, {"device": "cuda"}), LISTING)
    assert plan.device == "cuda" and {p.threads for p in plan.problems} == {1}
    assert set(plan.algorithms) == {"cudnn_tf32", "cudnn_fp32", "im2col_cuda"}
    assert plan.baseline == ["cudnn_fp32", "cudnn_tf32", "im2col_cuda"]
    assert make_plan_for(load_suite(name), LISTING).algorithms == ["onednn", "im2col_numpy", "bad_plugin"]


def test_a_suite_s_own_gpu_baseline_goes_first(tmp_path: Path) -> None:
    text = "problems: [ic4ih8oc4oh8kh3ph1]\ndevice: cuda\nalgorithms: [im2col*]\nbaseline: [onednn, cudnn_tf32]\n"
    plan = make_plan_for(load_suite(written(tmp_path, text)), LISTING)
    assert plan.baseline == ["cudnn_tf32"] and plan.algorithms == ["cudnn_tf32", "im2col_cuda"]


def test_a_row_of_the_other_device_is_named(tmp_path: Path) -> None:
    suite = load_suite("vgg", {"algorithm": "im2col_cuda"})
    with pytest.raises(UnknownAlgorithm, match="im2col_cuda runs on cuda, and this run is for cpu: say --device cuda"):
        make_plan_for(suite, LISTING)


SIGNS = {**ROW, "name": "binary_packed_numpy", "device": "cpu", "semantics": "binary"}
BOTH = "problems: [ic4ih8oc4oh8kh3ph1]\naxes: {semantics: [linear, binary]}\n"


def test_a_row_takes_part_in_problems_of_its_own_semantics_unless_it_is_named(tmp_path: Path) -> None:
    listing = {**LISTING, "implementations": [*LISTING["implementations"], SIGNS], "broken": []}
    plan = make_plan_for(load_suite(written(tmp_path, BOTH)), listing)
    by_semantics = {p.problem.semantics: [c.implementation for c in plan.cases(p)] for p in plan.problems}
    assert by_semantics == {"linear": ["onednn", "im2col_numpy"], "binary": ["binary_packed_numpy"]}
    again = RunPlan.from_file(written(tmp_path, plan.to_json()))
    assert [again.cases(p) for p in again.problems] == [plan.cases(p) for p in plan.problems]
    suite = load_suite(written(tmp_path, BOTH), {"algorithm": ["im2col_numpy", "binary*"]})
    named = make_plan_for(suite, listing)
    assert [[c.implementation for c in named.cases(p)] for p in named.problems] == [
        ["onednn", "im2col_numpy"], ["im2col_numpy", "binary_packed_numpy"],
    ]  # fmt: skip


def test_semantics_that_no_chosen_row_computes_are_an_error(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, BOTH), {"algorithm": "im2col*"})
    with pytest.raises(UnknownAlgorithm, match=r"no algorithm out of im2col\* computes semantics binary"):
        make_plan_for(suite, {**LISTING, "broken": []})


def test_axes_of_an_item_go_before_the_suite_s_and_after_the_command_line_s(tmp_path: Path) -> None:
    text = (
        "problems:\n  - {descriptor: ic4ih8oc4oh8kh3ph1, axes: {dtype: [float16, bfloat16], layout: [nhwc]}}\n"
        "  - ic8ih8oc4oh8kh3ph1\naxes: {batch: [1, 2], dtype: [float32]}\n"
    )
    path = written(tmp_path, text)
    problems = [case.problem for case in expand(load_suite(path), cores=1)]
    found = [(p.shape.c, p.shape.n, p.dtype, p.layout) for p in problems]
    assert found == [
        (4, n, dtype, "nhwc") for n in (1, 2) for dtype in ("float16", "bfloat16")
    ] + [(8, n, "float32", "nchw") for n in (1, 2)]  # fmt: skip
    asked = expand(load_suite(path, {"dtype": "float64", "batch": "3"}), cores=1)
    assert {(c.problem.dtype, c.problem.shape.n) for c in asked} == {("float64", 3)}


@pytest.mark.parametrize(
    "text, said",
    [
        ("device: gpu\nproblems: [ic4ih8oc4oh8kh3ph1]\n", r"line 1: device: must be one of cpu, cuda, not 'gpu'"),
        (
            "problems:\n  - {descriptor: ic4ih8oc4oh8kh3ph1, axes: {dtyp: [float16]}}\n",
            r"line 2: problems\[0\]\.axes\.dtyp: .*did you mean 'dtype'",
        ),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SuiteError, match=said):
        load_suite(written(tmp_path, text))


def test_a_plan_keeps_its_device_and_older_plans_are_for_the_cpu(tmp_path: Path) -> None:
    plan = make_plan_for(load_suite("fbfft", {"device": "cuda", "match": "L1"}), LISTING)
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert RunPlan.from_file(path).device == "cuda"
    path.write_text(plan.to_json().replace(' "device": "cuda"', ' "mixed": false'))
    assert RunPlan.from_file(path).device == "cpu"


def test_the_command_that_repeats_a_case_names_the_device() -> None:
    case = Case(Problem(ConvShape.make(1, 4, 8, 8, 4, 3, 3)), "im2col_cuda")
    assert repro_line(case, "cuda") == repro_line(case) + " --device cuda"


def test_memory_is_that_of_the_device() -> None:
    with Session(LISTING, "", {}, device="cuda") as session:
        assert session.memory_bytes == int(MEMORY_SHARE * (100 << 30))


def test_on_a_gpu_small_problems_deserve_nearly_as_much_time_as_large_ones() -> None:
    small, large = (Problem(ConvShape.make(n, 64, 56, 56, 64, 3, 3, padding=1)) for n in (1, 32))
    assert weight(large) / weight(small) > 10 > 2 > weight(large, "cuda") / weight(small, "cuda")


def test_the_gpu_is_part_of_the_environment_s_identity() -> None:
    facts = {"name": "NVIDIA H200", "driver": "580", "temperature_c": 40, "nvml": "answers", "other_processes": 2}
    plain, on_gpu = environment.collect(), environment.collect(gpu=facts)
    assert "gpu" not in plain and on_gpu["gpu"]["name"] == "NVIDIA H200"
    assert plain["env_id"] != on_gpu["env_id"]
    warmer = environment.collect(gpu={**facts, "temperature_c": 60})
    assert warmer["env_id"] == on_gpu["env_id"]
    assert environment.collect(gpu={**facts, "driver": "590"})["env_id"] != on_gpu["env_id"]
    assert any("2 other process(es) use the GPU" in w for w in on_gpu["warnings"])


def test_gpu_headline_travels_with_the_package() -> None:
    assert "gpu_headline" in resources.suite_names()
