"""Suites: the built-in ones, the product of axes, overrides, selection, and what each error says."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convbench import resources
from convbench.descriptor import parse_descriptor, print_descriptor
from convbench.errors import OutputError, ProblemError, SuiteError, UnknownAlgorithm
from convbench.problem import INPUTS, ConvShape, Pass, Semantics
from convbench.suite import (
    BASELINE,
    Policy,
    expand,
    expansion_notes,
    is_descriptor,
    load_suite,
    open_suite,
    select,
    suite_from_descriptor,
)

NAMES = ["direct_numpy", "im2col_mkl", "im2col_numpy", "onednn", "winograd_f2_numpy", "winograd_f4_numpy"]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a suite file (by default one with a single small problem) and gives back its path."""

    def _write(text: str, problems: str = "['mb1ic3ih8oc4kh3n\"a\"', 'mb4ic8ih8oc8kh1n\"b\"*3']") -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text((f"problems: {problems}\n" if problems else "") + text)
        return path

    return _write


# ---- the built-in suites


def test_built_in_suites_load_and_expand() -> None:
    names = resources.suite_names()
    wanted = "smoke vgg vgg_full lavin resnet alexnet googlenet overfeat filter_size batch deepbench fbfft"
    assert set(wanted.split()) <= set(names)
    for name in names:
        suite = load_suite(name)
        cases = expand(suite, cores=2)
        assert cases and suite.title and suite.name == name and len(suite.sha) == 64
        if name not in ("headline_cpu", "precision", "xnor", "distribution"):
            assert suite.algorithms == ["*"]
        named = {"headline_cpu": ["onednn"], "gpu_headline": list(BASELINE)}  # the latter says none
        named |= {key: ["onednn", "im2col_numpy"] for key in ("precision", "distribution")}
        named["xnor"] = ["onednn", "im2col_numpy", "onednn_int8", "direct_naive_numba"]
        assert suite.baseline == named.get(name, ["onednn", "torch", "im2col_numpy"])
        assert len({(c.problem, c.weights, c.threads, c.mode, c.inputs) for c in cases}) == len(cases)
        assert expansion_notes(suite, cores=2) == []
        for case in cases:
            assert parse_descriptor(print_descriptor(case.problem)).problem == case.problem


def test_vgg_is_what_it_says() -> None:
    suite = load_suite("vgg")
    assert suite.policy == Policy(600.0, 8, 0.2, 0.03, 4 * 2**30, 0)
    cases = expand(suite, cores=2)
    assert len(cases) == 9 * 3
    assert {(c.problem.shape.n, c.problem.dtype, c.problem.layout, c.weights, c.threads, c.mode) for c in cases} == {
        (1, "float32", "nchw", "raw", 2, "hot")
    }
    assert sum(c.problem.shape.macs * c.count for c in cases if c.problem.pass_ is Pass.FORWARD) == 15_346_630_656
    assert (cases[0].label, cases[0].problem.pass_) == ("conv1_1", Pass.FORWARD)


def test_vgg_full_is_the_whole_product_without_packed_weight_gradients() -> None:
    cases = expand(load_suite("vgg_full"), cores=2)
    assert len(cases) == 9 * 3 * 2 * 2 * (3 + 2)  # layers, batches, layouts, threads, (raw passes + packed passes)
    assert not [c for c in cases if c.problem.pass_ is Pass.BACKWARD_WEIGHTS and c.weights == "packed"]


def test_smoke_covers_every_pass_layout_and_kind_of_layer() -> None:
    problems = [c.problem for c in expand(load_suite("smoke"), cores=2)]
    assert {p.pass_ for p in problems} == set(Pass)
    assert {p.layout for p in problems} == {"nchw", "nhwc"}
    assert {p.shape.r for p in problems} >= {1, 3, 5}
    assert {p.shape.stride for p in problems} >= {(1, 1), (2, 2)}
    assert any(p.shape.groups == p.shape.c for p in problems) and any(1 < p.shape.groups < p.shape.c for p in problems)
    assert load_suite("smoke").policy.time_budget_s < 60


def test_equal_shapes_are_measured_once_and_counted_together() -> None:
    cases = expand(load_suite("deepbench"), cores=2)
    assert sum(c.count for c in cases) == 94 + 107 + 16
    assert len(cases) < 90 + 103 + 15
    assert any("deepbench_training" in c.label and "deepbench_inference_server" in c.label for c in cases)


FORMATS = {(dtype, Semantics.LINEAR) for dtype in ("float32", "float16", "bfloat16", "int8")} | {
    ("float32", semantics) for semantics in Semantics if semantics is not Semantics.LINEAR
}


def test_precision_has_every_format_on_every_layer() -> None:
    cases = expand(load_suite("precision"), cores=2)
    assert len(cases) == (9 + 23) * 11 * 2
    by_shape: dict[ConvShape, set[Any]] = {}
    for case in cases:
        by_shape.setdefault(case.problem.shape, set()).add((case.problem.dtype, case.problem.semantics, case.weights))
    want = {(*chosen, weights) for chosen in FORMATS for weights in ("raw", "packed")}
    assert all(found == want for found in by_shape.values())
    assert {(c.problem.pass_, c.problem.layout, c.threads, c.problem.shape.n) for c in cases} == {
        (Pass.FORWARD, "nhwc", 1, 1)
    }


def test_xnor_has_the_axes_of_figure_4() -> None:
    cases = [c for c in expand(load_suite("xnor"), cores=2) if c.weights == "packed"]
    shapes = {c.problem.shape for c in cases}
    assert {s.c for s in shapes if s.r == 3} == {3, 8, 16, 32, 64, 128, 256, 512, 1024}
    assert {s.r for s in shapes if s.c == 256} == {1, 3, 5, 7, 9, 11}
    assert {(s.p, s.q, s.k) for s in shapes} == {(14, 14, 256)} and len(shapes) == 9 + 6 - 1
    kinds = {(c.problem.dtype, c.problem.semantics) for c in cases}
    assert kinds == {
        ("float32", Semantics.LINEAR), ("int8", Semantics.LINEAR), ("float32", Semantics.XNOR),
        ("float32", Semantics.BINARY),
    }  # fmt: skip
    assert len(cases) == len(kinds) * len(shapes)


def test_distribution_has_every_kind_of_inputs_in_every_format() -> None:
    cases = expand(load_suite("distribution"), cores=2)
    assert {(c.problem.dtype, c.problem.semantics, c.inputs) for c in cases} == {
        (*chosen, inputs) for chosen in FORMATS for inputs in INPUTS
    }
    assert len(cases) == 3 * 11 * 5


# ---- expanding


def test_axes_multiply_in_a_fixed_order(write: Write) -> None:
    path = write("axes: {batch: [1, 2], pass: [fwd, bwd_weights], weights: [raw, packed], threads: [1, all]}\n")
    cases = expand(load_suite(path), cores=4)
    assert [(c.threads, c.label, c.problem.shape.n, c.problem.pass_.value, c.weights) for c in cases[:4]] == [
        (1, "a", 1, "fwd", "raw"),
        (1, "a", 1, "fwd", "packed"),
        (1, "a", 1, "bwd_weights", "raw"),
        (1, "a", 2, "fwd", "raw"),
    ]
    assert [c.threads for c in cases] == [1] * 12 + [4] * 12
    assert [c.count for c in cases if c.label == "b"] == [3] * 12
    assert cases == expand(load_suite(path), cores=4)


def test_all_threads_on_one_core_is_not_counted_twice(write: Write) -> None:
    cases = expand(load_suite(write("axes: {threads: [1, all]}\n")), cores=1)
    assert [(c.label, c.count, c.threads) for c in cases] == [("a", 1, 1), ("b", 3, 1)]


def test_without_a_batch_axis_each_shape_keeps_its_own(write: Write) -> None:
    cases = expand(load_suite(write("")), cores=1)
    assert [c.problem.shape.n for c in cases] == [1, 4]


def test_batch_merges_what_differed_in_batch_only(write: Write) -> None:
    path = write("axes: {batch: 2}\n", "['mb1ic3ih8oc4kh3n\"a\"', 'mb4ic3ih8oc4kh3n\"b\"*2']")
    (case,) = expand(load_suite(path), cores=1)
    assert (case.label, case.count, case.problem.shape) == ("a, b", 3, ConvShape.make(2, 3, 8, 8, 4, 3, 3))


def test_packed_weight_gradients_are_noted_or_an_empty_product(write: Write) -> None:
    suite = load_suite(write("axes: {pass: [fwd, bwd_weights], weights: packed}\n"))
    assert {c.problem.pass_ for c in expand(suite, cores=1)} == {Pass.FORWARD}
    assert expansion_notes(suite, cores=1) == [
        "bwd_weights with packed weights is left out: there are no weights to pack"
    ]
    suite = load_suite(write("axes: {pass: bwd_weights, weights: packed}\n"))
    with pytest.raises(SuiteError, match=r"mine: the product .* is empty: bwd_weights with packed weights"):
        expand(suite, cores=1)


def test_formats_without_a_meaning_are_noted_or_an_empty_product(write: Write) -> None:
    axes = "dtype: [float32, float16], pass: [fwd, bwd_weights], semantics: [linear, xnor]"
    suite = load_suite(write(f"axes: {{{axes}}}\n"))
    found = {(c.problem.dtype, c.problem.pass_, c.problem.semantics) for c in expand(suite, cores=1)}
    assert len(found) == 2 * 2 + 1 and ("float32", Pass.FORWARD, Semantics.XNOR) in found
    assert sorted(expansion_notes(suite, cores=1)) == [
        "left out: semantics xnor is defined for fwd, not for bwd_weights",
        "left out: semantics xnor is defined on float32 operands, not float16: give it float32",
    ]
    suite = load_suite(write("axes: {dtype: float16, semantics: xnor}\n"))
    with pytest.raises(SuiteError, match=r"is empty: left out: .* on float32 operands, not float16"):
        expand(suite, cores=1)


def test_descriptor_options_settle_an_axis_that_is_not_given(write: Write) -> None:
    path = write("axes: {dtype: float64}\n", "['--dir=BWD_D --stag=axb ic3ih8oc4kh3', ic3ih8oc4kh3]")
    first, second = (c.problem for c in expand(load_suite(path), cores=1))
    assert (first.pass_, first.layout, first.dtype) == (Pass.BACKWARD_DATA, "nhwc", "float64")
    (signs,) = expand(load_suite(write("", "['--semantics=binary ic3ih8oc4kh3']")), cores=1)
    assert signs.problem.semantics is Semantics.BINARY
    assert (second.pass_, second.layout, second.semantics) == (Pass.FORWARD, "nchw", Semantics.LINEAR)


def test_shape_files_beside_the_suite_go_before_the_built_in_ones(write: Write, tmp_path: Path) -> None:
    path = write("", "shapes/vgg16.yaml")
    assert len(load_suite(path).entries) == 9
    sha = load_suite(path).sha
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/vgg16.yaml").write_text(
        'source: me\nconfirmed: true\nlayers: [{name: only, shape: "mb1ic3ih8oc4kh3"}]\n'
    )
    assert [e.label for e in load_suite(path).entries] == ["only"]
    assert load_suite(path).sha != sha


def test_sample_of_a_shape_file(write: Write) -> None:
    path = write("", "[{file: shapes/fbfft_space.yaml, sample: {count: 5, seed: 3}}]")
    labels = [e.label for e in load_suite(path).entries]
    assert len(set(labels)) == 5 and labels == [e.label for e in load_suite(path).entries]
    other = write("", "[{file: shapes/fbfft_space.yaml, sample: {count: 5, seed: 4}}]")
    assert labels != [e.label for e in load_suite(other).entries]


def test_policy_units(write: Write) -> None:
    policy = load_suite(
        write(
            "policy: {time_budget: 1.5 h, min_blocks: 4, min_time: 50 ms, ci_target: 0.01, workspace_limit: 500 MB,\n"
            "         seed: 7, max_blocks: 9, case_timeout: 30}\n"
        )
    ).policy
    assert policy == Policy(5400.0, 4, 0.05, 0.01, 500_000_000, 7, 9, 30.0)


# ---- the command line's options


def test_overrides_replace_axes() -> None:
    overrides: dict[str, Any] = {
        "pass": "bwd_data", "dtype": ["float64"], "layout": "nhwc,nchw", "weights": None, "threads": ("1",),
        "batch": "1,2", "mode": "cold", "match": ["conv1_"], "algorithm": ("im2col*",), "seed": 5, "quick": False,
    }  # fmt: skip
    suite = load_suite("vgg", overrides)
    cases = expand(suite, cores=2)
    assert len(cases) == 2 * 2 * 2
    assert {c.problem.pass_ for c in cases} == {Pass.BACKWARD_DATA}
    assert {(c.threads, c.mode, c.seed, c.problem.dtype) for c in cases} == {(1, "cold", 5, "float64")}
    assert {c.label for c in cases} == {"conv1_1", "conv1_2"}
    assert suite.algorithms == ["im2col*"] and suite.policy.seed == 5


def test_an_algorithm_named_on_the_command_line_is_not_excluded(write: Write) -> None:
    suite = load_suite(write("exclude: [onednn]\n"), {"algorithm": "onednn"})
    assert select(NAMES, suite.algorithms, suite.exclude) == ["onednn"]


@pytest.mark.parametrize(("pattern", "count"), [("conv1", 2), ("conv?_1", 5), (r"^conv[45]", 3), ("*", 9), ("(", 0)])
def test_match_is_a_part_a_glob_or_a_regular_expression(pattern: str, count: int) -> None:
    if count:
        assert len(load_suite("vgg", {"match": pattern}).entries) == count
    else:
        with pytest.raises(SuiteError, match="--match: no layer fits"):
            load_suite("vgg", {"match": pattern})


def test_quick_asks_for_less() -> None:
    long, quick = load_suite("vgg").policy, load_suite("vgg", {"quick": True}).policy
    assert quick.time_budget_s == long.time_budget_s / 5
    assert quick.min_blocks == 3 and quick.min_time_s < long.min_time_s and quick.ci_target > long.ci_target
    assert quick.workspace_limit_bytes == long.workspace_limit_bytes


def test_budget_replaces_the_suites_even_beside_quick() -> None:
    assert load_suite("vgg", {"budget": "90 s"}).policy.time_budget_s == 90
    both = load_suite("vgg", {"quick": True, "budget": "2 min"}).policy
    assert (both.time_budget_s, both.min_blocks) == (120, 3)
    with pytest.raises(SuiteError, match="--budget: must be a time such as 10 min"):
        load_suite("vgg", {"budget": "twelve"})


def test_options_keep_what_a_descriptor_settles() -> None:
    suite = load_suite("smoke", {"pass": "bwd_weights"})
    cases = expand(suite, cores=1)
    assert {c.problem.pass_ for c in cases} == {Pass.BACKWARD_WEIGHTS} and len(cases) == 2
    notes = expansion_notes(suite, cores=1)
    assert len(notes) == 8 and notes[0] == "3x3 is left out: its descriptor says pass fwd, not bwd_weights"


# ---- one problem


def test_suite_of_one_descriptor() -> None:
    text = '--dir=BWD_W --dt=f64 --stag=axb mb1ic3ih8oc4kh3n"a"*2'
    suite = suite_from_descriptor(text, {"threads": 1, "seed": 4})
    (case,) = expand(suite, cores=2)
    entry = parse_descriptor(text)
    assert (case.problem, case.label, case.count, case.threads, case.seed) == (entry.problem, "a", 2, 1, 4)
    assert (suite.name, suite.path, suite.algorithms) == ("descriptor", None, ["*"])
    passes = expand(suite_from_descriptor("mb1ic3ih8oc4kh3", {"pass": "fwd,bwd_data"}), cores=2)
    assert [c.problem.pass_ for c in passes] == [Pass.FORWARD, Pass.BACKWARD_DATA]
    assert passes[0].label == "3x8x8-4 3x3"


def test_a_descriptor_that_an_option_contradicts_is_an_empty_product() -> None:
    with pytest.raises(SuiteError, match=r"empty: .* descriptor says pass bwd_weights, not fwd"):
        expand(suite_from_descriptor("--dir=BWD_W ic3ih8oc4kh3", {"pass": "fwd"}), cores=1)


def test_open_suite_takes_names_paths_and_descriptors(write: Write) -> None:
    assert open_suite("vgg").name == "vgg"
    assert open_suite(str(write(""))).name == "mine"
    assert open_suite("ic3ih8oc4kh3").name == "descriptor"
    assert is_descriptor("--dir=FWD_D ic3") and is_descriptor("onednn_verbose,exec") and is_descriptor("g4mb1")
    assert not is_descriptor("vgg") and not is_descriptor("suites/vgg.yaml") and not is_descriptor("smoke")
    with pytest.raises(ProblemError, match="3-D"):
        open_suite("ic3id4ih8oc4kh3")


# ---- selecting algorithms


def test_select() -> None:
    assert select(NAMES, ["*"]) == NAMES
    assert select(NAMES, ["winograd_*", "direct_numpy"]) == ["direct_numpy", "winograd_f2_numpy", "winograd_f4_numpy"]
    assert select(NAMES, ["*"], ["*_numpy"]) == ["im2col_mkl", "onednn"]
    assert select(NAMES, ["*"], ["*_cuda"]) == NAMES  # nothing to leave out on this machine


@pytest.mark.parametrize(
    ("algorithms", "exclude", "parts"),
    [
        (["im2col_nunpy"], [], ["no algorithm 'im2col_nunpy'", "did you mean 'im2col_numpy'?"]),
        (["winogard*"], [], ["no algorithm fits 'winogard*'", "did you mean 'winograd_f"]),
        (["winograd"], [], ["no algorithm 'winograd'", "did you mean 'winograd_*' (winograd_f2_numpy, "]),
        (["zzz"], [], ["no algorithm 'zzz'", "convbench list"]),
        (["*"], ["onednm"], ["exclude: there is no algorithm 'onednm'", "did you mean 'onednn'?"]),
        (["onednn"], ["one*"], ["no algorithm is left", "onednn without one*"]),
    ],
)
def test_select_names_the_nearest(algorithms: list[str], exclude: list[str], parts: list[str]) -> None:
    with pytest.raises(UnknownAlgorithm) as error:
        select(NAMES, algorithms, exclude)
    for part in parts:
        assert part in str(error.value)


# ---- bad input

BAD_YAML = {
    "unknown key": ("titel: x\n", ["line 2: titel", "unknown key 'titel'", "did you mean 'title'?"]),
    "unknown axis": (
        "axes:\n  pass: [fwd]\n  bacth: [1]\n",
        ["line 4: axes.bacth", "did you mean 'batch'?", "batch, pass, dtype, layout, weights, threads, mode"],
    ),
    "unknown policy": ("policy: {time_budgt: 3 s}\n", ["line 2: policy.time_budgt", "did you mean 'time_budget'?"]),
    "duplicate key": ("title: x\ntitle: y\n", ["line 3", "duplicate key 'title' (first on line 2)", "keep one"]),
    "duplicate inner key": ("axes:\n  pass: fwd\n  pass: fwd\n", ["line 4", "duplicate key 'pass' (first on line 3)"]),
    "bad pass": ("axes: {pass: [fwd, bwd_dat]}\n", ["line 2: axes.pass", "'bwd_dat'", "did you mean 'bwd_data'?"]),
    "bad dtype": ("axes: {dtype: float23}\n", ["axes.dtype", "float64, float32", "did you mean 'float32'?"]),
    "bad layout": ("axes: {layout: nwhc}\n", ["axes.layout", "nchw, nhwc", "did you mean 'nhwc'?"]),
    "bad semantics": ("axes: {semantics: [linear, xnro]}\n", ["line 2: axes.semantics", "'xnro'", "mean 'xnor'?"]),
    "bad inputs": ("axes:\n  inputs: [normla]\n", ["line 3: axes.inputs", "uniform, relu", "did you mean 'normal'?"]),
    "bad batch": ("axes: {batch: [1, 0]}\n", ["axes.batch", "whole number >= 1, not 0"]),
    "bad threads": ("axes: {threads: [most]}\n", ["axes.threads", "number of cores or 'all', not 'most'"]),
    "batch of a wrong type": ("axes: {batch: true}\n", ["axes.batch", "whole number >= 1, not True"]),
    "empty axis": ("axes: {pass: []}\n", ["axes.pass", "the list is empty"]),
    "axes a list": ("axes: [fwd]\n", ["line 2: axes", "keys with values", "not ['fwd']"]),
    "empty algorithms": ("algorithms: []\n", ["algorithms", "the list is empty"]),
    "algorithms of a wrong type": ("algorithms: [{a: 1}]\n", ["algorithms", "must be text, not {'a': 1}"]),
    "title of a wrong type": ("title: [a]\n", ["line 2: title", "must be text, not ['a']"]),
    "unknown unit": ("policy: {time_budget: 10 mins}\n", ["policy.time_budget", "'10 mins'", "us, ms, s, min"]),
    "time of nothing": ("policy: {time_budget: 0}\n", ["policy.time_budget", "more than 0"]),
    "negative time": ("policy: {min_time: -1 s}\n", ["policy.min_time", "a time such as", "'-1 s'"]),
    "share of 3": ("policy: {ci_target: 3}\n", ["policy.ci_target", "such as 3 % or 0.03", "not 3"]),
    "size": ("policy: {workspace_limit: 4 gigs}\n", ["policy.workspace_limit", "4 GiB", "'4 gigs'"]),
    "seed": ("policy: {seed: -1}\n", ["policy.seed", ">= 0, not -1"]),
    "blocks": ("policy: {min_blocks: 9, max_blocks: 3}\n", ["line 2: policy.max_blocks", "3 is below min_blocks", "9"]),
    "several": ("axes: {pass: x}\ntitle: [a]\n", ["line 2: axes.pass", "(and 1 more)"]),
    "syntax": ("axes: {pass: [fwd}\n", ["line 2", "not valid YAML", "expected ',' or ']'"]),
    "tab": ("axes:\n\tpass: fwd\n", ["line 3", "not valid YAML"]),
    "tag": ("title: !!python/object/apply:os.system [ls]\n", ["line 2", "must be text"]),
    "bad scalar": ("title: !!int x\n", ["line 2", "cannot read the value 'x'"]),
    "complex key": ("? [a, b]\n: 1\n", ["line 2", "a key must be a word"]),
    "alias loop": ("title: &a [*a]\n", ["line 2", "aliases", "without end"]),
    "control character": ("title: \x01\n", ["not valid YAML", "special characters"]),
}  # fmt: skip

BAD_PROBLEMS = {
    "none": ("[]", ["line 1: problems", "the list is empty"]),
    "number": ("[3]", ["line 1: problems[0]", "a shape file, a descriptor", "not 3"]),
    "impossible": ("['ic3ih5oc4kh7']", ["line 1: problems[0]", "filter's height 7", "no output"]),
    "second line": ("\n  - ic3ih8oc4kh3\n  - ic3ih8zz", ["line 3: problems[1]", "'zz'"]),
    "missing file": ("[shapes/vgg61.yaml]", ["line 1: problems[0]", "no shape file", "mean 'shapes/vgg16.yaml'?"]),
    "unknown key": ("[{fiel: a.yaml}]", ["problems[0].fiel", "did you mean 'file'?"]),
    "neither": ("[{}]", ["problems[0]", "either 'file' or 'descriptor'"]),
    "sample too large": (
        "[{file: shapes/vgg16.yaml, sample: {count: 64}}]",
        ["problems[0].sample.count", "64 of 9 layers"],
    ),
    "sample key": ("[{file: shapes/vgg16.yaml, sample: {cuont: 4}}]", ["problems[0].sample.cuont", "'count'?"]),
}  # fmt: skip


def _error_of(path: Path) -> str:
    with pytest.raises(SuiteError) as error:
        load_suite(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize(("text", "parts"), BAD_YAML.values(), ids=BAD_YAML.keys())
def test_errors_name_file_line_key_and_what_was_meant(write: Write, text: str, parts: list[str]) -> None:
    message = _error_of(write(text))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(("problems", "parts"), BAD_PROBLEMS.values(), ids=BAD_PROBLEMS.keys())
def test_errors_in_problems(write: Write, problems: str, parts: list[str]) -> None:
    message = _error_of(write("", problems))
    for part in parts:
        assert part in message


def test_problems_are_needed(write: Write) -> None:
    assert "problems: the key 'problems' is missing" in _error_of(write("title: x\n", ""))


def test_a_descriptor_must_not_contradict_an_axis(write: Write) -> None:
    problems = "['--dir=BWD_D ic3ih8oc4kh3']"
    message = _error_of(write("title: x\naxes: {pass: [fwd, bwd_data]}\n", problems))
    assert "line 1: problems[0]" in message
    assert "says pass bwd_data, but axes.pass (line 3) says fwd, bwd_data: take one" in message
    assert load_suite(write("axes: {pass: bwd_data}\n", problems)).entries


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n- b\n", "line 1: keys with values are expected here, not a list"),
        (b"just text\n", "not a single value"),
        (b"title: caf\xe9\n", "not UTF-8 text (byte 10)"),
    ],
)
def test_files_that_are_no_suite(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert part in _error_of(path)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"pass": "fw"}, ["--pass", "'fw'", "did you mean 'fwd'?"]),
        ({"layout": ["nchw", "x"]}, ["--layout", "nchw, nhwc"]),
        ({"semantics": "xnro"}, ["--semantics", "binary_weights", "'xnro'", "did you mean 'xnor'?"]),
        ({"inputs": "ReLU"}, ["--inputs", "normal, uniform, relu, integers, zeros", "'ReLU'"]),
        ({"threads": "0"}, ["--threads", "number of cores or 'all', not '0'"]),
        ({"batch": "two"}, ["--batch", "whole number >= 1, not 'two'"]),
        ({"seed": "x"}, ["--seed", "whole number >= 0, not 'x'"]),
        ({"match": "conv9"}, ["--match", "no layer fits 'conv9'", "conv1_1, conv1_2", "did you mean 'conv"]),
        ({"layuot": "nchw"}, ["--layuot", "did you mean 'layout'?"]),
    ],
)
def test_bad_overrides_name_the_option(overrides: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SuiteError) as error:
        load_suite("vgg", overrides)
    for part in parts:
        assert part in str(error.value)


# ---- finding files


def test_find_suite(tmp_path: Path, write: Write) -> None:
    assert resources.find_suite("vgg") == resources.folder("suites") / "vgg.yaml"
    assert resources.find_suite(write("")) == tmp_path / "mine.yaml"
    for text, parts in {
        "vggg": ["no suite 'vggg'", "smoke", "did you mean 'vgg'?"],
        "suites/resnett.yaml": ["no suite file suites/resnett.yaml", "did you mean 'resnet'?"],
        str(tmp_path): ["is a folder"],
        "v" * 5000: ["no suite"],
    }.items():
        with pytest.raises(SuiteError) as error:
            resources.find_suite(text)
        assert all(part in str(error.value) for part in parts)


def test_folder_prefers_what_the_wheel_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "convbench"
    package.mkdir(parents=True)
    (tmp_path / "site" / "suites").mkdir()  # somebody else's
    monkeypatch.setattr(resources, "PACKAGE", package)
    with pytest.raises(OutputError, match="install convbench again"):
        resources.folder("suites")
    (package / "_suites").mkdir()
    assert resources.folder("suites") == package / "_suites"
    assert resources.suite_names() == []


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert resources.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")
    with pytest.raises(OutputError, match="cannot read"):
        resources.sha256(tmp_path / "b")


def test_suites_need_no_array_library() -> None:
    code = (
        "import sys; from convbench.suite import expand, load_suite; expand(load_suite('vgg'), cores=2);"
        "bad = {'numpy', 'scipy', 'numba', 'torch'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
