"""The table against the fastest vendor row: by network, each layer once, the best of ours on each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from convbench.problem import ConvShape, Pass, Problem
from convbench.records import Record
from convbench.report.summary import analyse
from convbench.report.vendor import BEST, against_vendor, networks
from tests.report_runs import environment, one_record


def timed(label: str, name: str, ms: float, c: int = 64, threads: int = 1) -> Record:
    """A record whose every sample is the same."""
    problem = Problem(ConvShape.make(1, c, 28, 28, 64, 3, 3, padding=1), Pass.FORWARD, "float32", "nhwc")
    record = one_record(problem, name, label, threads=threads, blocks=8)
    record.samples.ns[:] = [int(ms * 1e6 * record.loops)] * 8
    record.flags.clear()
    return record


def test_best_of_ours_against_the_fastest_vendor_by_network() -> None:
    records = [
        timed("a:one", "onednn", 6.0), timed("a:one", "onednn_blocked", 4.0),
        timed("a:one", "winograd_f4_numpy", 1.0), timed("a:one", "im2col_numpy", 8.0),
        timed("a:two, b:too", "onednn", 9.0, c=32), timed("a:two, b:too", "winograd_f4_numpy", 18.0, c=32),
        timed("a:two, b:too", "im2col_numpy", 3.0, c=32),
        timed("a:three", "onednn", 1.0, c=16),
    ]  # fmt: skip
    scores = {(s.network, s.algorithm): s for s in against_vendor(analyse(environment(), records))}
    best = scores["a", BEST]
    assert best.geomean.value == pytest.approx(math.sqrt(4.0 * 3.0), rel=1e-6)
    assert (best.n_problems, best.n_total, best.lowest_layer) == (2, 3, "a:two, b:too")
    assert best.lowest == pytest.approx(3.0, rel=1e-6)
    assert scores["a", "winograd_f4_numpy"].geomean.value == pytest.approx(math.sqrt(4.0 * 0.5), rel=1e-6)
    assert scores["a", "im2col_numpy"].lowest == pytest.approx(0.5, rel=1e-6)
    assert scores["b", BEST].geomean.value == pytest.approx(3.0, rel=1e-6)
    assert not any(name.startswith("onednn") for _, name in scores)


def test_settings_are_never_mixed_and_no_vendor_means_no_score() -> None:
    alone = [timed("one", "im2col_numpy", 1.0)]
    assert against_vendor(analyse(environment(), alone)) == []
    records = [timed("one", n, ms, threads=t) for t in (1, 2) for n, ms in (("onednn", 4.0 / t), ("im2col_numpy", 2.0))]
    best = [s for s in against_vendor(analyse(environment(), records)) if s.algorithm == BEST]
    means = [(s.setting.threads, round(s.geomean.value, 6), s.network) for s in best]
    assert means == [(1, 2.0, "vgg"), (2, 1.0, "vgg")]


def test_arithmetics_are_never_mixed_and_half_types_that_sum_in_float32_are_their_own() -> None:
    """TF32 is measured against the vendor's TF32 and is no best of float32; float16-acc32 is float16's best."""
    single = Problem(ConvShape.make(1, 64, 28, 28, 64, 3, 3, padding=1), Pass.FORWARD, "float32", "nhwc")
    half = replace(single, dtype="float16")
    records = [
        in_arithmetic(single, "onednn", 6.0, "float32"), in_arithmetic(single, "torch", 2.0, "tf32"),
        in_arithmetic(single, "im2col_numpy", 3.0, "float32"), in_arithmetic(single, "kn2row_numpy", 1.0, "tf32"),
        in_arithmetic(half, "torch", 2.0, "float16-acc32"), in_arithmetic(half, "im2col_numpy", 0.5, "float16-acc32"),
    ]  # fmt: skip
    found = {(s.setting.dtype, s.algorithm): s.geomean.value for s in against_vendor(analyse(environment(), records))}
    assert found == pytest.approx({
        ("float32", BEST): 2.0, ("float32", "im2col_numpy"): 2.0, ("float32", "kn2row_numpy"): 2.0,
        ("float16", BEST): 4.0, ("float16", "im2col_numpy"): 4.0,
    }, rel=1e-6)  # fmt: skip


def in_arithmetic(problem: Problem, name: str, ms: float, arithmetic: str) -> Record:
    """A record of one sample value, of a row that multiplies in `arithmetic`."""
    record = one_record(problem, name, "one", blocks=8)
    record.samples.ns[:] = [int(ms * 1e6 * record.loops)] * 8
    record.flags.clear()
    return replace(record, arithmetic=arithmetic, vendor=name in ("onednn", "torch"))


@pytest.mark.parametrize(
    ("label", "want"),
    [("vgg16:conv1_1", ["vgg16"]), ("conv1_1", ["all"]), ("a:x, b:y, a:z", ["a", "b"]), ("", ["all"])],
)
def test_networks_of_a_label(label: str, want: list[str]) -> None:
    assert networks(label, "all") == want
