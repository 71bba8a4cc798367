"""The model behind "auto": what a fit recovers, when a calibration counts, what is said of it; no clock is read."""

import json
import math
import types
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convbench import catalog, choices, cli, costfit, costmodel, describe, environment, foresight, listing
from convbench.costfit import Measured
from convbench.costmodel import FEATURES, Fit, Model, coordinates, features
from convbench.descriptor import parse_descriptor, print_descriptor
from convbench.errors import OutputError, UsageError
from convbench.foresight import Knowledge
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Implementation
from convbench.resources import folder
from convbench.runner import calibrate
from convbench.runner.calibrate import Journal
from convbench.runner.plan import RunPlan
from convbench.shapes import load_shapes
from convbench.suite import ProblemCase

PROBLEM = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1))


def row(name, **attributes):
    def workspace(self, problem):
        return 0

    def prepare(self, problem, context, weights=None):
        raise AssertionError("a choice prepares nothing")

    methods = {"workspace_estimate": workspace, "prepare": prepare}
    return type(name, (Implementation,), {"name": name} | methods | attributes)()


def fewer_operations(self, problem):
    """A Winograd F(4x4,3x3) in outline: tiles of 4 x 4, four times fewer multiplications, three transforms."""
    s = problem.shape
    tiles = s.n * math.ceil(s.p / 4) * math.ceil(s.q / 4)
    return {
        "input_transform": 180.0 * tiles * s.c,
        "filter_transform": 100.0 * s.c * s.k,
        "multiply": 72.0 * tiles * s.c * s.k,
        "output_transform": 100.0 * tiles * s.k,
    }


def only_3x3(self, problem):
    return None if problem.shape.r == problem.shape.s == 3 and max(problem.shape.stride) == 1 else "3x3 only"


DIRECT = row("direct_toy_simd")
FAST = row("winograd_toy_simd", executed_flops=fewer_operations, limits=only_3x3)
VENDOR = row("onednn", vendor=True)
ROWS = {r.name: r for r in (DIRECT, FAST, VENDOR)}


def law(row_, problem, weights, threads=1):
    """Nanoseconds on the synthetic machine: rates by phase, bandwidth, a fixed cost."""
    s, flops = problem.shape, row_.executed_flops(problem)
    moved = problem.operand_bytes / 10
    if row_.name == "direct_toy_simd":
        ns = 2000 + flops["multiply"] / 180 * (1 + 20 / (s.n * s.p * s.q)) + moved
    elif row_.name == "onednn":
        ns = 9000 + flops["multiply"] / 200 + moved + (moved if problem.layout == "nchw" else 0)
    else:
        transforms = flops["input_transform"] / 20 + flops["output_transform"] / 25
        ns = 5000 + flops["multiply"] / 160 + transforms + moved
        ns += flops["filter_transform"] / 5 if weights == "raw" else 0
    return ns / threads**0.9 + 3000 * (threads > 1)


def measured(problems, threads=(1,)):
    return [
        Measured(r.name, p, w, t, law(r, p, w, t), r.executed_flops(p))
        for p, w in problems
        for r in ROWS.values()
        for t in threads
        if r.why_not(p, w) is None
    ]


def cases(text_shapes, passes=(Pass.FORWARD,)):
    for index, text in enumerate(text_shapes):
        for pass_ in passes:
            problem = replace(parse_descriptor(text).problem, pass_=pass_, layout=("nhwc", "nchw")[index % 2])
            yield problem, ("raw", "packed")[index // 2 % 2]


@pytest.fixture(scope="module")
def model():
    cases_ = measured(list(cases(calibrate.SHAPES)), (1, 4))
    return costfit.fit_model(
        cases_, machine="a synthetic machine", measured="2026-01-01", env_id="synthetic", peaks={1: 200.0, 4: 700.0}
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder; the defaults are those of the test, none by default."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(foresight, "DEFAULTS", tmp_path / "defaults.json")
    foresight.forget()
    yield tmp_path
    foresight.forget()


def evaluation():
    for network in ("vgg16", "resnet50", "googlenet"):
        for layer in load_shapes(folder("suites") / "shapes" / f"{network}.yaml").layers:
            for layout in ("nchw", "nhwc"):
                for weights in ("raw", "packed"):
                    yield Problem(layer.shape, layout=layout), weights


class TestFit:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_recovers_the_winner_of_a_known_machine(self, model, threads):
        regrets = []
        for problem, weights in evaluation():
            able = [r for r in ROWS.values() if r.why_not(problem, weights) is None]
            pick = min(able, key=lambda r: model.predict(r, problem, weights, threads))
            times = {r: law(r, problem, weights, threads) for r in able}
            regrets.append(times[pick] / min(times.values()))
        assert math.prod(regrets) ** (1 / len(regrets)) < 1.02 and max(regrets) < 1.3

    def test_predicts_times_it_has_not_seen(self, model):
        errors = sorted(
            abs(math.log(model.predict(r, problem, weights, 1) / law(r, problem, weights)))
            for problem, weights in evaluation()
            for r in ROWS.values()
            if r.why_not(problem, weights) is None
        )
        assert errors[len(errors) // 2] < 0.1 and errors[-1] < math.log(2)

    def test_coefficients_are_never_negative(self, model):
        assert all(c >= 0 for fit in model.fits.values() for c in fit.coefficients)

    def test_more_of_everything_never_costs_less(self, model):
        bare = replace(model, fits={key: Fit(fit.coefficients) for key, fit in model.fits.items()})
        for r in ROWS.values():
            batches = [replace(PROBLEM, shape=replace(PROBLEM.shape, n=n)) for n in (1, 2, 4, 8)]
            times = [bare.predict(r, problem, "raw", 1) for problem in batches]
            assert times == sorted(times)
            assert bare.predict(r, PROBLEM, "packed", 1) <= bare.predict(r, PROBLEM, "raw", 1)

    def test_neighbours_correct_what_the_sum_cannot_say(self):
        """A row that is twice as slow at C = 64 alone is predicted so there, and hardly elsewhere."""
        shapes = [ConvShape.make(1, c, 28, 28, k, 3, 3, padding=1) for c in (8, 16, 64, 250) for k in (16, 64, 128)]
        odd = []
        for problem in map(Problem, shapes):
            ns = law(DIRECT, problem, "raw") * (2 if problem.shape.c == 64 else 1)
            odd.append(Measured(DIRECT.name, problem, "raw", 1, ns, DIRECT.executed_flops(problem)))
        model = costfit.fit_model(odd, machine="", measured="", env_id="")
        near = Problem(ConvShape.make(1, 64, 28, 28, 96, 3, 3, padding=1))
        far = Problem(ConvShape.make(1, 12, 28, 28, 96, 3, 3, padding=1))
        assert model.predict(DIRECT, near, "raw", 1) > 1.6 * law(DIRECT, near, "raw")
        assert model.predict(DIRECT, far, "raw", 1) < 1.5 * law(DIRECT, far, "raw")

    def test_too_few_cases_make_no_fit(self):
        few = measured([(PROBLEM, "raw"), (replace(PROBLEM, layout="nhwc"), "raw")])
        assert costfit.fit_model(few, machine="", measured="", env_id="").fits == {}

    def test_a_row_with_few_cases_leans_on_its_family(self):
        """Four cases with many channels and the family's other row tell what an image of three channels costs."""
        sizes = [(c, h, k) for c in (3, 64, 256) for h in (14, 56) for k in (32, 96)]
        shapes = [ConvShape.make(1, c, h, h, k, 3, 3, padding=1) for c, h, k in sizes]
        known = [Measured("winograd_a_simd", p, "raw", 1, law(FAST, p, "raw"), FAST.executed_flops(p))
                 for p in map(Problem, shapes)]  # fmt: skip
        deep = [replace(c, row="winograd_b_simd", ns=1.2 * c.ns) for c in known if c.problem.shape.c == 256]
        strange = [replace(c, row="toy_b_simd") for c in deep]
        model = costfit.fit_model([*known, *deep, *strange], machine="", measured="", env_id="")
        case = known[1]  # three channels, K = 96, 14 x 14
        errors = {
            name: abs(math.log(model.predict_from(name, case.executed_flops, case.problem, "raw", 1) / (1.2 * case.ns)))
            for name in ("winograd_b_simd", "toy_b_simd")
        }
        assert errors["winograd_b_simd"] < 0.3 and errors["winograd_b_simd"] < errors["toy_b_simd"]

    def test_problems_seen_at_one_thread_correct_the_others_too(self, model):
        key = (DIRECT.name, "fwd", 4)
        few = dict.fromkeys(list(model.fits[key].residuals)[:2], 0.5)
        fits = model.fits | {key: Fit(model.fits[key].coefficients, few)}
        both = replace(model, fits=fits).corrected(*key)
        alone = model.fits[DIRECT.name, "fwd", 1].residuals
        assert both.residuals == {**alone, **few} and both.coefficients == model.fits[key].coefficients

    def test_no_prediction_promises_more_than_the_peak(self, model):
        slow = replace(model, peaks={1: 10.0})
        assert slow.predict(DIRECT, PROBLEM, "raw", 1) == sum(DIRECT.executed_flops(PROBLEM).values()) / 10
        assert model.predict(DIRECT, PROBLEM, "raw", 1) < slow.predict(DIRECT, PROBLEM, "raw", 1)

    def test_cross_validation_judges_each_problem_once(self):
        known = measured(list(cases(calibrate.SHAPES[:24])))
        regrets = costfit.left_out_regrets(known, folds=6)
        assert set(regrets) == {(c.problem, c.weights, c.threads) for c in known}
        assert min(regrets.values()) == 1 and math.prod(regrets.values()) ** (1 / len(regrets)) < 1.1
        upside_down = [replace(c, ns=1e15 / c.ns) if c.problem.shape == known[0].problem.shape else c for c in known]
        worse = costfit.left_out_regrets(upside_down, folds=6)
        first = known[0].problem, known[0].weights, 1
        assert worse[first] > 1.5 > regrets[first]  # what was held back did not teach its own judge

    def test_a_thread_count_in_between_takes_the_nearest(self, model):
        at = {t: model.predict(DIRECT, PROBLEM, "raw", t) for t in (1, 3, 4, 64)}
        assert at[3] == at[4] == at[64] < at[1]


class TestFeatures:
    def test_names_and_numbers(self):
        found = dict(zip(FEATURES, features(PROBLEM, "raw", FAST.executed_flops(PROBLEM)), strict=True))
        assert found["call"] == 1
        assert found["multiply"] == 72 * 49 * 64 * 64 / 1e3
        assert found["filter transform"] == 100 * 64 * 64 / 1e3
        assert found["bytes of raw filter"] == 64 * 64 * 9 * 4 / 1e3
        assert found["filter read"] == found["filter transform"]
        assert found["bytes, nchw"] == 2 * 64 * 28 * 28 * 4 / 1e3
        packed = dict(zip(FEATURES, features(PROBLEM, "packed", FAST.executed_flops(PROBLEM)), strict=True))
        assert packed["filter transform"] == packed["bytes of raw filter"] == 0
        assert packed["filter read"] == found["filter read"]
        direct = dict(zip(FEATURES, features(PROBLEM, "packed", DIRECT.executed_flops(PROBLEM)), strict=True))
        assert direct["filter read"] == found["bytes of raw filter"]

    @pytest.mark.parametrize("name", ["transform_in", "input_transform", "transform_input"])
    def test_the_names_that_rows_give_their_phases(self, name):
        found = dict(zip(FEATURES, features(PROBLEM, "raw", {name: 5e3, "anything": 7e3}), strict=True))
        assert found["input transform"] == 5 and found["multiply"] == 7

    def test_every_row_has_known_phases(self):
        for r in catalog.load().implementations.values():
            if r.why_not(PROBLEM) is None:
                flops = r.executed_flops(PROBLEM)
                found = dict(zip(FEATURES, features(PROBLEM, "raw", flops), strict=True))
                phases = ("multiply", "input transform", "output transform", "filter transform")
                assert sum(found[p] for p in phases) == pytest.approx(sum(flops.values()) / 1e3)

    def test_coordinates_tell_layouts_and_weights_apart(self):
        places = {coordinates(replace(PROBLEM, layout=y), w) for y in ("nchw", "nhwc") for w in ("raw", "packed")}
        assert len(places) == 4


class TestFile:
    def test_round_trip(self, model, home):
        model = replace(model, env_id=costmodel.this_env_id(), sources=dict.fromkeys(ROWS, "x"))
        path = costmodel.save(model)
        again = Model.from_json(path.read_text())
        assert path.parent == home / "convbench"
        for problem, weights in cases(calibrate.SHAPES):
            for r in ROWS.values():
                if r.why_not(problem, weights) is None:
                    want = model.predict(r, problem, weights, 1)
                    assert again.predict(r, problem, weights, 1) == pytest.approx(want, rel=1e-3)

    def edited(self, model, **changes):
        return json.dumps(json.loads(model.to_json()) | changes)

    def broken(self, model):
        good = model.to_json()
        fit = json.loads(good)["fits"][0]
        return {
            "empty": "",
            "cut short": good[: len(good) // 2],
            "not JSON": "calibration",
            "a list": "[1, 2]",
            "another schema": self.edited(model, schema=99),
            "no fits": json.dumps({k: v for k, v in json.loads(good).items() if k != "fits"}),
            "a negative coefficient": self.edited(model, fits=[fit | {"ns": {"call": -1.0}}]),
            "NaN": self.edited(model, fits=[fit | {"ns": {"call": math.nan}}]),
            "an unknown term": self.edited(model, fits=[fit | {"ns": {"luck": 1.0}}]),
            "points that are not there": self.edited(model, fits=[fit | {"at": [9999], "log": [0.0]}]),
            "too few numbers": self.edited(model, points=[[1.0]]),
            "no reach": self.edited(model, reach=0.0),
        }

    def test_a_broken_file_is_said_and_not_used(self, model, home):
        path = costmodel.path_of(costmodel.this_env_id())
        path.parent.mkdir(parents=True)
        foresight.DEFAULTS.write_text(model.to_json())
        for what, text in self.broken(model).items():
            path.write_text(text)
            foresight.forget()
            known = foresight.current()
            assert known.own is None and known.default is not None, what
            assert str(path) in known.status and "doctor --calibrate` again" in known.status, what
            assert choices.choose(PROBLEM, rows=ROWS).name in ROWS, what

    def test_bytes_that_are_no_text_and_a_folder_in_its_place(self, home):
        path = costmodel.path_of(costmodel.this_env_id())
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\xff\xfe\x00\x80")
        assert "cannot be used" in foresight.current().status
        path.unlink()
        path.mkdir()
        foresight.forget()
        assert "cannot be used" in foresight.current().status

    def test_of_another_environment(self, model, home):
        path = costmodel.path_of(costmodel.this_env_id())
        path.parent.mkdir(parents=True)
        path.write_text(model.to_json())
        assert foresight.current().own is None
        assert "another environment (synthetic" in foresight.current().status

    def test_none_at_all(self, home):
        known = foresight.current()
        assert known.own is known.default is None and "convbench doctor --calibrate" in known.status
        assert choices.choose(PROBLEM, rows=ROWS).reason == "the vendor's library takes this problem"

    def test_a_folder_that_cannot_be_written(self, model, home, monkeypatch):
        (home / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
        with pytest.raises(OutputError, match="set XDG_CACHE_HOME"):
            costmodel.save(model)

    def test_the_file_of_the_package_is_sound(self):
        model = Model.from_json(foresight.DEFAULTS.read_text())
        assert model.machine and model.measured
        assert {row for row, _, _ in model.fits} >= {"onednn", "direct_simd"}


class TestKnowledge:
    @pytest.fixture
    def known(self, model, monkeypatch):
        monkeypatch.setattr(catalog, "source_sha", lambda r: f"source of {r.name}")
        sources = {name: f"source of {name}" for name in ROWS}
        own = replace(model, sources=sources, peaks={1: 100.0})
        return Knowledge(own, replace(model, machine="elsewhere"), "calibrated on this machine, 2026-01-01")

    def test_its_own_measurements(self, known, model):
        got = known.predict(FAST, PROBLEM, "raw", 1)
        assert got.ns == model.predict(FAST, PROBLEM, "raw", 1) and got.note == ""

    def test_a_changed_source_falls_back_to_the_defaults_scaled(self, known, model):
        known.own.sources["winograd_toy_simd"] = "another"
        got = known.predict(FAST, PROBLEM, "raw", 1)
        assert got.ns == pytest.approx(2 * model.predict(FAST, PROBLEM, "raw", 1))  # peaks 200 there, 100 here
        assert got.note == "its source changed after the calibration: default coefficients"

    def test_a_plug_in_nobody_measured(self, known):
        got = known.predict(row("plugged_in_numpy"), PROBLEM, "raw", 1)
        assert got.ns is None and got.note == "not calibrated on this machine"

    def test_only_float32(self, known):
        assert known.predict(DIRECT, replace(PROBLEM, dtype="float64"), "raw", 1).note == "only float32 is calibrated"


class TestChoice:
    @pytest.fixture(autouse=True)
    def knowledge(self, model, monkeypatch):
        known = Knowledge(None, model, "default coefficients, measured on a synthetic machine")
        monkeypatch.setattr(foresight, "current", lambda: known)

    def test_auto_takes_the_least_and_says_so_in_one_sentence(self, model):
        times = {r.name: model.predict(r, PROBLEM, "raw", 1) for r in ROWS.values()}
        best, second, _ = sorted(times, key=times.get)
        choice = choices.choose(PROBLEM, rows=ROWS, threads=1)
        assert choice.name == best
        assert choice.reason.startswith(f"predicted {choices.duration(times[best])}, the least of 3; then {second}, ")
        assert choice.reason.endswith("(default coefficients, measured on a synthetic machine)")
        assert "\n" not in choice.reason

    def test_what_is_left_follows_in_order(self):
        unknown = row("toy_plain_numpy")
        names = [c.name for c in choices.resolve(PROBLEM, "raw", "auto", ROWS | {unknown.name: unknown}, 1)]
        assert names[:3] == sorted(ROWS, key=lambda n: foresight.current().predict(ROWS[n], PROBLEM, "raw", 1).ns)

    def test_what_has_no_prediction_is_taken_where_nothing_else_can(self):
        unknown = row("toy_plain_numpy")
        assert choices.choose(PROBLEM, rows={unknown.name: unknown}).name == "toy_plain_numpy"

    def test_a_row_that_refuses_is_never_predicted(self):
        problem = replace(PROBLEM, shape=replace(PROBLEM.shape, stride=(2, 2)))
        assert set(choices.predictions(problem, "raw", ROWS, 1)) == {"direct_toy_simd", "onednn"}

    def test_float64_goes_by_the_rules(self):
        choice = choices.choose(replace(PROBLEM, dtype="float64"), rows=ROWS)
        assert choice.name == "onednn" and "predicted" not in choice.reason

    def test_a_family_takes_its_fastest_member(self):
        slow = row("winograd_a_simd", executed_flops=lambda self, p: {"multiply": 1.0})  # fewer, but not calibrated
        rows = ROWS | {slow.name: slow}
        got = [c.name for c in choices.resolve(PROBLEM, "raw", "winograd", rows, 1)]
        assert got == ["winograd_toy_simd", "winograd_a_simd"]

    @pytest.mark.parametrize(("ns", "text"), [(1234.0, "1.23 us"), (5.6e6, "5.6 ms"), (2.5e9, "2.5 s")])
    def test_duration(self, ns, text):
        assert choices.duration(ns) == text

    def test_explain(self, monkeypatch):
        unknown = row("toy_plain_numpy")
        rows = ROWS | {unknown.name: unknown}
        monkeypatch.setattr(
            catalog, "load", lambda *_: types.SimpleNamespace(
                implementations=rows, broken=[], origins=dict.fromkeys(rows, catalog.Origin(None, "convbench", "1")),
            ),
        )  # fmt: skip
        text = print_descriptor(PROBLEM)
        document = json.loads(json.dumps(describe.describe({}, {}, [text], threads=1)))
        shown = listing.explain_text(parse_descriptor(text), document, "raw")
        assert "auto takes winograd_toy_simd: predicted" in shown
        assert "1 thread(s), raw weights; default coefficients, measured on a synthetic machine" in shown
        body = shown[shown.index("can ") :].splitlines()[1:5]
        order = [line.split()[0] for line in body]
        assert order[0] == "winograd_toy_simd" and order[3] == "toy_plain_numpy"
        assert body[3].split()[1] == "-" and "not among the default coefficients" in body[3]
        assert float(body[0].split()[1]) < float(body[1].split()[1]) < float(body[2].split()[1])


class TestCalibration:
    def test_no_shape_is_one_that_regret_is_measured_on(self):
        own = {parse_descriptor(text).problem.shape for text in calibrate.SHAPES}
        assert len(own) == len(calibrate.SHAPES)
        for file in sorted((folder("suites") / "shapes").glob("*.yaml")):
            assert not own & {layer.shape for layer in load_shapes(file).layers}, file.name

    def test_every_kind_comes_in_every_pass_layout_and_with_both_weights(self):
        problems = calibrate.in_rounds([parse_descriptor(text).problem for text in calibrate.SHAPES])
        assert len(problems) == len(calibrate.SHAPES)
        kinds = [calibrate.kind(p) for p in problems]
        assert len(set(kinds[: len(set(kinds))])) == len(set(kinds))  # each kind once before any comes twice
        third = [p for k in set(kinds) for p in [q for q in problems if calibrate.kind(q) == k][::3]]
        assert set(calibrate.in_rounds(problems, 3)) == set(third) and set(map(calibrate.kind, third)) == set(kinds)
        found = {(c.problem.pass_, c.problem.layout, c.weights) for c in calibrate.cases_of(problems, 1)}
        assert len(found) == 10

    def test_hopeless_rows_are_left_alone_by_kind(self, home):
        state = calibrate.State(["a", "b"], Journal(home / "j", {}), print)
        texts = ("ic8ih9oc8kh3", "ic8ih9oc8kh1")
        three, one = (ProblemCase(parse_descriptor(t).problem, "raw", 1, "hot", 0) for t in texts)
        state._judge(three, {"a": 1.0, "b": 3.0})
        assert not state._hopeless("b", three)
        state._judge(three, {"a": 1.0, "b": 4.0})
        assert state._hopeless("b", three) and not state._hopeless("b", one) and not state._hopeless("a", three)
        state._judge(one, {"a": 1.0, "b": 50.0})
        assert state._hopeless("b", one)

    def test_the_journal_keeps_what_counts(self, home):
        case = ProblemCase(PROBLEM, "raw", 1, "hot", 0)
        path = home / "convbench" / "journal.jsonl"
        Journal(path, {"a": "1"}).add(case, {"a": 5.0}, {"a": {"multiply": 7.0}})
        path.write_text(path.read_text() + '{"problem": "mb1ic8')
        again = Journal(path, {"a": "1"})
        assert again.find(case) == {"a": 5.0} and again.find(replace(case, threads=2)) is None
        assert [(m.row, m.ns, m.executed_flops) for m in again.measured()] == [("a", 5.0, {"multiply": 7.0})]
        assert Journal(path, {"a": "2"}).find(case) is None  # measured with another source

    def test_candidates(self):
        def described(name, **more):
            sound = {"unavailable": None, "device": "cpu", "dtypes": ["float32"], "semantics": "linear"}
            return {"name": name, "source_sha": "s"} | sound | more

        rows, skipped = calibrate.candidates(
            {
                "implementations": [
                    described("direct_simd"), described("torch"), described("a_mkl", unavailable="a_mkl needs mkl"),
                    described("b_cuda", device="cuda"), described("c_numpy", semantics="binary"),
                ]
            }
        )  # fmt: skip
        assert rows == {"direct_simd": "s"}
        assert skipped["a_mkl"] == "a_mkl needs mkl" and set(skipped) == {"torch", "a_mkl", "b_cuda", "c_numpy"}

    def test_a_slow_row_is_verified_and_not_sampled(self, monkeypatch):
        case = ProblemCase(PROBLEM, "raw", 1, "hot", 0)
        names = ["a", "b", "c", "d"]
        plan = RunPlan({"name": "calibration"}, [case], names, [], calibrate.POLICY)
        run = calibrate.CalibrationRun(plan, case, types.SimpleNamespace(memory_bytes=2**30), 6.0, lambda *_: None)
        for name, ns in (("a", 100), ("b", 240), ("c", 260)):
            run.progress[name].facts = {"first_run_ns": ns, "workspace_bytes": 0}
        run.progress["d"].end("wrong", "d: wrong")
        assert run._groups() == [["a", "b"]]
        assert run.progress["c"].status == "not_reached" and "times slower" in run.progress["c"].reason
        assert run.not_sampled() == {"c": 260.0}

    def test_the_oracle_is_kept_for_the_same_numbers_only(self):
        one = ProblemCase(replace(PROBLEM, layout="nchw"), "raw", 1, "hot", 0)
        other = ProblemCase(replace(PROBLEM, layout="nhwc"), "packed", 1, "hot", 0)
        assert calibrate.same_numbers(one, other)
        assert not calibrate.same_numbers(one, replace(other, problem=replace(PROBLEM, pass_=Pass.BACKWARD_DATA)))
        session = calibrate.OracleKeeper({"implementations": [], "broken": [], "skip": {}}, "", {})
        with session:
            kept = Path(session._cache.name) / "oracle.npz"
            kept.touch()
            session.keep = True
            session.drop(1, oracle=True)
            assert kept.exists()
            session.keep = False
            session.drop(1, oracle=True)
            assert not kept.exists()

    SMALL = ("mb1ic8ih10oc16kh3ph1", "mb1ic16ih9oc8kh1ph0", "mb1ic4ih12oc8kh5ph2")

    @pytest.fixture
    def two_rows(self, home, monkeypatch):
        monkeypatch.setattr(environment, "allowed_cores", lambda: 1)
        monkeypatch.setattr(calibrate, "SAMPLE_S", 0.5)  # so that all get their samples on a machine that is busy
        monkeypatch.delitem(calibrate.NOT_CANDIDATES, "kn2row_numpy")  # it is there whatever is installed
        real = calibrate.candidates

        def few(listing_):
            rows, skipped = real(listing_)
            return {n: rows[n] for n in ("direct_simd", "kn2row_numpy")}, skipped

        monkeypatch.setattr(calibrate, "candidates", few)

    def test_measures_fits_and_is_used(self, two_rows, home):
        said = []
        learnt = calibrate.calibrate(said.append, shapes=self.SMALL)
        assert not learnt.failed and learnt.cases == 12 and learnt.left_out == 0
        assert {key[0] for key in learnt.model.fits} == {"direct_simd", "kn2row_numpy"}
        assert {key[1] for key in learnt.model.fits} == {"fwd", "bwd_data", "bwd_weights"}
        assert said and learnt.path.is_file() and not list(home.rglob("*.jsonl"))
        assert len(learnt.regrets) == 12 and min(learnt.regrets) >= 1
        text = listing.calibration_text(learnt)
        assert "picks for shapes that were left out of the fit" in text and "geometric mean of 12 problems" in text
        assert str(learnt.path) in text and "direct_simd" in text and "not a candidate: torch" in text
        foresight.forget()
        choice = choices.choose(PROBLEM)
        assert choice.name in ("direct_simd", "kn2row_numpy") and "calibrated on this machine" in choice.reason

    def test_interrupted_it_keeps_the_old_file_and_goes_on(self, two_rows, home, monkeypatch):
        old = costmodel.path_of(environment.collect()["env_id"])
        old.parent.mkdir(parents=True)
        old.write_text("the calibration before")
        real, measured_ = calibrate.State.measure, []

        def interrupted(self, session, case, share):
            if len(measured_) == 3:
                raise KeyboardInterrupt
            measured_.append(case)
            return real(self, session, case, share)

        monkeypatch.setattr(calibrate.State, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate.calibrate(lambda line: None, shapes=self.SMALL)
        assert old.read_text() == "the calibration before"
        monkeypatch.setattr(calibrate.State, "measure", lambda *a: measured_.append(a[2]) or real(*a))
        learnt = calibrate.calibrate(lambda line: None, shapes=self.SMALL)
        assert len(measured_) == learnt.cases == 12  # none twice
        assert Model.from_json(old.read_text()).fits

    def test_no_time_leaves_problems_out_and_says_so(self, two_rows):
        with pytest.raises(Exception, match="nothing could be measured"):
            calibrate.calibrate(lambda line: None, minutes=0.0, shapes=self.SMALL)


class TestCommands:
    def test_doctor_calibrate(self, model, monkeypatch, tmp_path):
        path = tmp_path / "calibration.json"
        learnt = calibrate.Learnt(model, path, 42, 3.0, 5, {"torch": "a cross-check"}, ["x: wrong"])
        monkeypatch.setattr(calibrate, "calibrate", lambda tell: tell("1 thread(s): 42 of 42 problems") or learnt)
        result = CliRunner().invoke(cli.app, ["doctor", "--calibrate"])
        assert result.exit_code == 0
        for part in ("winograd_toy_simd", "GFLOP/s of products", "failed: x: wrong", "5 problems were left out"):
            assert part in result.output
        assert str(path) in result.output and "42 of 42" in result.output

    def test_doctor_calibrate_interrupted(self, monkeypatch):
        def interrupt(tell):
            raise KeyboardInterrupt

        monkeypatch.setattr(calibrate, "calibrate", interrupt)
        result = CliRunner().invoke(cli.app, ["doctor", "--calibrate"])
        assert "goes on from here" in result.output and result.exit_code != 0

    @pytest.mark.parametrize("threads", ["0", "-1", "two", ""])
    def test_explain_refuses_a_thread_count_that_is_none(self, threads):
        result = CliRunner().invoke(cli.app, ["explain", "ic8ih9oc8kh3ph1", "--threads", threads])
        assert isinstance(result.exception, UsageError)
        assert "--threads must be a number >= 1 or all" in str(result.exception)
