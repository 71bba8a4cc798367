"""The vendor rows (oneDNN through its C API, torch) against tap-by-tap float64 loops, and what they refuse."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest

from convbench.algorithms import onednn as rows
from convbench.algorithms import torch_cpu
from convbench.algorithms.onednn import _capi, _plan
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.errors import ProblemError, Unavailable, Unsupported
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import Implementation, implementations

needs_onednn = pytest.mark.skipif(_capi.library_path() is None, reason="the wheel onednn-cpu-gomp is not installed")

SHAPES = {
    "plain": ConvShape.make(2, 16, 9, 9, 32, 3, 3, padding=1),
    "c17_k19": ConvShape.make(1, 17, 7, 8, 19, 3, 3, padding=1),
    "one_channel": ConvShape.make(1, 1, 9, 13, 1, 3, 3, stride=3, padding=((1, 2), (3, 0)), dilation=(1, 2)),
    "one_pixel": ConvShape.make(3, 5, 1, 1, 7, 1, 1),
    "pointwise": ConvShape.make(1, 24, 6, 5, 40, 1, 1),
    "row_filter": ConvShape.make(1, 4, 6, 11, 6, 1, 5, padding=((0, 0), (2, 2))),
    "column_filter_strided": ConvShape.make(2, 3, 12, 5, 8, 7, 1, stride=(2, 1), padding=((3, 3), (0, 0))),
    "stride_3_dilated": ConvShape.make(1, 6, 17, 14, 9, 3, 2, stride=(3, 2), padding=2, dilation=(2, 3)),
    "asymmetric": ConvShape.make(2, 8, 8, 7, 16, 3, 3, stride=2, padding=((0, 1), (2, 1))),
    "padding_beyond_filter": ConvShape.make(1, 3, 4, 4, 5, 2, 2, padding=4),
    "groups": ConvShape.make(2, 12, 7, 7, 18, 3, 3, padding=1, groups=3),
    "depthwise": ConvShape.make(1, 18, 10, 9, 18, 3, 3, stride=2, padding=1, groups=18),
    "depthwise_multiplier": ConvShape.make(1, 4, 6, 6, 12, 3, 3, padding=((1, 0), (0, 1)), groups=4),
}


def taps(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The result in float64, one filter tap and one group at a time."""
    s = problem.shape
    if problem.layout == "nhwc":
        a, b = a.transpose(0, 3, 1, 2), b.transpose(0, 3, 1, 2)
    a, b = a.astype(np.float64), b.astype(np.float64)
    top, bottom, left, right = s.padding
    x = np.zeros((s.n, s.c, s.h + top + bottom, s.w + left + right))
    y, w = np.zeros((s.n, s.k, s.p, s.q)), np.zeros((s.k, s.cg, s.r, s.s))
    if problem.pass_ is not Pass.BACKWARD_DATA:
        x[:, :, top : top + s.h, left : left + s.w] = a
    for g in range(s.groups):
        cs, ks = slice(g * s.cg, (g + 1) * s.cg), slice(g * s.kg, (g + 1) * s.kg)
        for i in range(s.r):
            for j in range(s.s):
                rows_ = i * s.dilation[0] + s.stride[0] * np.arange(s.p)[:, None]
                cols = j * s.dilation[1] + s.stride[1] * np.arange(s.q)[None, :]
                if problem.pass_ is Pass.FORWARD:
                    y[:, ks] += np.einsum("ncpq,kc->nkpq", x[:, cs][:, :, rows_, cols], b[ks, :, i, j])
                elif problem.pass_ is Pass.BACKWARD_DATA:
                    part = np.einsum("nkpq,kc->ncpq", a[:, ks], b[ks, :, i, j])
                    x[:, cs.start : cs.stop, rows_, cols] += part
                else:
                    w[ks, :, i, j] = np.einsum("ncpq,nkpq->kc", x[:, cs][:, :, rows_, cols], b[:, ks])
    out = {Pass.FORWARD: y, Pass.BACKWARD_DATA: x[:, :, top : top + s.h, left : left + s.w],
           Pass.BACKWARD_WEIGHTS: w}[problem.pass_]  # fmt: skip
    return out.transpose(0, 2, 3, 1) if problem.layout == "nhwc" else out


def whole_numbers(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    array = aligned_empty(shape, dtype)
    array[...] = rng.integers(-50, 51, shape)
    return array


def poisoned(problem: Problem) -> np.ndarray:
    out = aligned_empty(problem.out_shape, problem.dtype)
    out.fill(np.nan)
    return out


def row(name: str) -> Implementation:
    if name == "torch":
        pytest.importorskip("torch")
    return implementations()[name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", ["onednn", "onednn_blocked", "torch"])
def test_whole_numbers_exactly_on_other_arrays_and_threads(name: str, pass_: Pass, layout: str) -> None:
    implementation = row(name)
    if implementation.unavailable():
        pytest.skip(str(implementation.unavailable()))
    rng = np.random.default_rng(7)
    for label, shape in SHAPES.items():
        for dtype in implementation.dtypes:
            problem = Problem(shape, pass_, dtype, layout)
            assert implementation.why_not(problem) is None, label
            for threads in (1, 2):
                plan = make_plan(implementation, problem, CpuContext(threads))
                for _ in range(2):  # a second pair of arrays: nothing of the first may be remembered
                    a, b = (whole_numbers(s, dtype, rng) for s in (problem.a_shape, problem.b_shape))
                    a_before, b_before, out = a.copy(), b.copy(), poisoned(problem)
                    a.flags.writeable = b.flags.writeable = False
                    plan.run(a, b, out)
                    np.testing.assert_array_equal(out, taps(problem, a, b), err_msg=f"{label} {dtype} {threads}")
                    assert (a == a_before).all() and (b == b_before).all(), label


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", [Pass.FORWARD, Pass.BACKWARD_DATA])
@pytest.mark.parametrize("name", ["onednn", "onednn_blocked", "torch"])
def test_packed_weights_are_those_given_to_prepare(name: str, pass_: Pass, layout: str) -> None:
    implementation = row(name)
    if implementation.unavailable():
        pytest.skip(str(implementation.unavailable()))
    rng = np.random.default_rng(8)
    for label, shape in SHAPES.items():
        problem = Problem(shape, pass_, "float32", layout)
        for _ in range(2):  # once with other weights
            w = whole_numbers(problem.b_shape, "float32", rng)
            kept = w.copy()
            plan = make_plan(implementation, problem, CpuContext(1), w)
            w.fill(np.nan)  # the caller may reuse its array
            for _ in range(2):
                a, out = whole_numbers(problem.a_shape, "float32", rng), poisoned(problem)
                plan.run(a, None, out)
                np.testing.assert_array_equal(out, taps(problem, a, kept), err_msg=label)


@needs_onednn
def test_problems_that_differ_only_in_strides_of_unit_axes_do_not_share_a_primitive() -> None:
    """With oneDNN 3.2's primitive cache on, the second of these gets the first one's primitive and crashes."""
    rng = np.random.default_rng(9)
    plans = []
    for layout in (*LAYOUTS, *LAYOUTS):
        problem = Problem(SHAPES["one_channel"], layout=layout)
        plans.append((problem, make_plan(implementations()["onednn"], problem, CpuContext(1))))
    for problem, plan in plans:
        a, b = (whole_numbers(s, "float32", rng) for s in (problem.a_shape, problem.b_shape))
        out = poisoned(problem)
        plan.run(a, b, out)
        np.testing.assert_array_equal(out, taps(problem, a, b))


@needs_onednn
def test_a_primitive_that_is_not_the_promised_one_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = _plan.choose(Problem(SHAPES["plain"]), _plan.Activations.AS_THEY_LIE, 1)
    real = _capi.implementation_name
    names = iter(("another one",))
    monkeypatch.setattr(_capi, "implementation_name", lambda desc: next(names, None) or real(desc))
    with pytest.raises(_capi.OnednnError, match=f"promised {choice.implementation} and made another one"):
        _capi.Primitive(choice.desc, {})


@needs_onednn
@pytest.mark.parametrize("name", ["onednn", "onednn_blocked"])
def test_the_reference_implementation_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels-last activations with a *plain* filter really fall to ref:any; ours never ask for that."""
    problem = Problem(SHAPES["plain"], layout="nhwc")
    choice = _plan.choose(problem, _plan.Activations.AS_THEY_LIE, 1)
    desc = _plan._convolution(problem, [operand.plain for operand in choice.operands])
    assert desc.implementation == "ref:any"
    refused = dataclasses.replace(choice, desc=desc, implementation=desc.implementation)
    monkeypatch.setattr(_plan, "choose", lambda *_: refused)
    sentence = f"{name}: picks the reference implementation ref:any for this problem, which is never a baseline"
    assert implementations()[name].limits(problem) == sentence
    with pytest.raises(Unsupported, match="ref:any"):
        implementations()[name].prepare(problem, CpuContext(1))


@needs_onednn
def test_what_onednn_does_not_implement_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(ConvShape.make(1, 3, 5, 5, 3, 3, 3, padding=1, stride=2))
    monkeypatch.setitem(_capi.DATA, "float32", 7)  # float64, which oneDNN's CPU convolutions do not take
    _plan.choose.cache_clear()
    assert implementations()["onednn"].limits(problem) == "onednn: has no implementation of this convolution"
    _plan.choose.cache_clear()


@needs_onednn
def test_limits_and_estimate_agree_with_prepare() -> None:
    for name in ("onednn", "onednn_blocked"):
        for layout in LAYOUTS:
            for pass_ in Pass:
                problem = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1), pass_, layout=layout)
                _capi.set_threads(1)
                estimate = implementations()[name].workspace_estimate(problem)
                context = CpuContext(1)
                implementations()[name].prepare(problem, context)
                assert context.workspace_bytes <= 1.25 * estimate + 2**20
                assert estimate <= 4 * context.workspace_bytes + 2**20


@needs_onednn
def test_notes_say_what_was_picked_and_what_was_reordered() -> None:
    problem = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1), layout="nhwc")
    raw, packed = CpuContext(1), CpuContext(1)
    implementations()["onednn"].prepare(problem, raw)
    implementations()["onednn"].prepare(problem, packed, weights=np.zeros(problem.b_shape, np.float32))
    assert raw.notes["vendor_impl"] == packed.notes["vendor_impl"] != ""
    assert not raw.notes["vendor_impl"].startswith("ref")
    assert raw.notes["onednn_version"].startswith("3.")
    assert raw.notes["reorder"].startswith("on the clock: w acdb to ")
    assert packed.notes["reorder"].startswith("on the clock: nothing; in prepare: w acdb to ")


@needs_onednn
def test_blocked_names_the_activations_that_crossed_formats() -> None:
    """Under another instruction set oneDNN may like other formats: the note follows the descriptors."""
    problem = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1))
    context = CpuContext(1)
    implementations()["onednn_blocked"].prepare(problem, context)
    choice = _plan.choose(problem, _plan.Activations.LIKED, 1)
    crossed = [o.name for o in choice.operands if not o.plain.equals(o.liked)]
    on_the_clock = context.notes["reorder"].split(";")[0]
    assert [name for name in ("x", "w", "y") if f"{name} ab" in on_the_clock or f"{name} aB" in on_the_clock] == crossed


@needs_onednn
def test_tags_are_spelt_as_onednn_does() -> None:
    assert _capi.MemoryDesc.plain((2, 3, 4, 5), (60, 20, 5, 1), "float32").tag() == "abcd"
    assert _capi.MemoryDesc.plain((2, 3, 4, 5), (60, 1, 15, 3), "int8").tag() == "acdb"
    assert _capi.MemoryDesc.plain((2, 3, 4, 5, 6), (360, 120, 1, 24, 4), "int32").tag() == "abdec"


@needs_onednn
@pytest.mark.parametrize("role", ["a", "b", "out"])
def test_arrays_that_do_not_fit_are_refused_before_c_sees_them(role: str) -> None:
    problem = Problem(SHAPES["plain"])
    run = implementations()["onednn"].prepare(problem, CpuContext(1))
    arrays = {"a": np.zeros(problem.a_shape, np.float32), "b": np.zeros(problem.b_shape, np.float32),
              "out": np.zeros(problem.out_shape, np.float32)}  # fmt: skip
    for wrong in (arrays[role][..., :-1], arrays[role].astype(np.float64), np.asfortranarray(arrays[role])):
        with pytest.raises(ProblemError, match="C-contiguous float32"):
            run(**{**arrays, role: wrong})


def test_a_missing_wheel_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    problem = Problem(SHAPES["plain"])
    _capi.load_problem.cache_clear()
    try:
        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        for name in ("onednn", "onednn_blocked"):
            implementation = implementations()[name]
            assert implementation.unavailable() == "onednn needs the wheel onednn-cpu-gomp: pip install onednn-cpu-gomp"
            assert implementation.why_not(problem) is None
            assert implementation.workspace_estimate(problem) > 0
            with pytest.raises(Unavailable, match="onednn-cpu-gomp"):
                implementation.prepare(problem, CpuContext(1))
    finally:
        _capi.load_problem.cache_clear()


def test_a_library_that_does_not_load_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    _capi.load_problem.cache_clear()
    _capi.library.cache_clear()
    try:
        monkeypatch.setattr(_capi, "library_path", lambda: "/nowhere/libdnnl.so.3")
        sentence = implementations()["onednn"].unavailable()
        assert sentence is not None and sentence.startswith("onednn cannot load /nowhere/libdnnl.so.3: ")
        assert "pip install" in sentence
    finally:
        _capi.load_problem.cache_clear()
        _capi.library.cache_clear()


def test_importing_the_rows_loads_neither_library() -> None:
    code = (
        "import sys; from convbench.algorithms import onednn, torch_cpu; from convbench.algorithms.onednn import _capi;"
        "assert 'torch' not in sys.modules and _capi.library.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_onednn
def test_a_process_with_live_plans_ends_cleanly() -> None:
    code = (
        "import numpy as np; from convbench.algorithms import onednn; from convbench.registry import implementations;"
        "from convbench.problem import ConvShape, Problem; from convbench.devices.cpu import CpuContext;"
        "p = Problem(ConvShape.make(1, 16, 8, 8, 16, 3, 3, padding=1));"
        "run = implementations()['onednn_blocked'].prepare(p, CpuContext(2));"
        "a, b, y = (np.ones(s, np.float32) for s in (p.a_shape, p.b_shape, p.out_shape)); run(a, b, y);"
        "gone = implementations()['onednn'].prepare(p, CpuContext(2)); del gone; print(y[0, 0, 1, 1])"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("144.0\n", "")


def test_torch_says_what_it_packed() -> None:
    implementation = row("torch")
    for label, wanted in (("plain", "the filter"), ("asymmetric", "nothing")):
        problem = Problem(SHAPES[label], layout="nhwc")
        context = CpuContext(1)
        implementation.prepare(problem, context, weights=np.ones(problem.b_shape, np.float32))
        assert context.notes["packed"].startswith(wanted)
        assert context.notes["vendor_impl"].startswith("torch ")


def test_both_are_candidates_for_baseline() -> None:
    assert all(cls.vendor for cls in (rows.Onednn, rows.OnednnBlocked, torch_cpu.TorchCpu))
