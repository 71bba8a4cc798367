"""Statistics: what the intervals cover, what they refuse, and the numbers of a record."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convbench.problem import Case, ConvShape, Options, Pass, Problem
from convbench.records import Record, Samples
from convbench.stats import (
    Interval,
    finite,
    geomean_ci,
    independent_ratio,
    mad,
    median_ci,
    metrics,
    ratio_ci,
    speedup_ci,
)

POSITIVE = st.floats(1e-3, 1e9)


def correlated(rho: float, n: int, series: int, seed: int) -> np.ndarray:
    """(series, n): AR(1) noise about 1000 with a standard deviation of 10."""
    noise = np.random.default_rng(seed).standard_normal((series, n + 50))
    for i in range(1, n + 50):
        noise[:, i] = rho * noise[:, i - 1] + math.sqrt(1 - rho * rho) * noise[:, i]
    return 1000 + 10 * noise[:, 50:]


def record(
    ns: list[int], blocks: list[int] | None = None, name: str = "im2col_numpy", **more: object
) -> Record:
    problem = Problem(ConvShape.make(1, 4, 8, 8, 6, 3, 3, padding=1), Pass.FORWARD)
    samples = Samples(ns, blocks or list(range(len(ns))), [0] * len(ns))
    return Record(Case(problem, name, Options()), "ok", samples=samples, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [8, 16, 48])
@pytest.mark.parametrize(("rho", "least"), [(0.0, 0.93), (0.3, 0.92)])
def test_median_interval_covers(rho: float, least: float, n: int) -> None:
    inside = [i.lo <= 1000 <= i.hi for i in map(median_ci, correlated(rho, n, 500, seed=n))]
    assert least <= np.mean(inside) <= 0.999


@pytest.mark.parametrize("n", [3, 5, 8, 16, 48])
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_ratio_interval_covers_aa_pairs(rho: float, n: int) -> None:
    a, b = correlated(rho, n, 400, seed=n), correlated(rho, n, 400, seed=n + 1000)
    intervals = [ratio_ci(x, range(n), y, range(n)) for x, y in zip(a, b, strict=True)]
    assert np.mean([i.lo <= 1 <= i.hi for i in intervals if i]) >= (0.92 if n >= 8 else 0.9)


def test_median_interval_narrows_with_more_samples_and_widens_with_correlation() -> None:
    def width(rho: float, n: int) -> float:
        return float(np.median([i.hi - i.lo for i in map(median_ci, correlated(rho, n, 100, seed=3))]))

    assert width(0, 64) < 0.6 * width(0, 16)
    assert width(0.6, 64) > 1.5 * width(0, 64)


@given(st.lists(POSITIVE, min_size=2, max_size=40))
def test_median_lies_in_its_interval(values: list[float]) -> None:
    interval = median_ci(values)
    assert interval.value == pytest.approx(np.median(values))
    assert interval.lo <= interval.value * (1 + 1e-12) and interval.value <= interval.hi * (1 + 1e-12)
    assert interval.lo > 0 and math.isfinite(interval.hi)


def test_median_interval_follows_the_blocks_not_the_order_of_arrival() -> None:
    drift = np.linspace(100, 200, 32)
    shuffled = np.random.default_rng(0).permutation(32)
    assert median_ci(drift[shuffled], shuffled) == median_ci(drift, range(32))
    assert median_ci([1, 3, 10], [0, 0, 1]).value == 6  # two samples of one block count as one


def test_median_interval_of_one_sample_is_unknown() -> None:
    one = median_ci([5.0])
    assert one.value == 5 and not one.known and one.relative_half_width == math.inf
    assert one.overlaps(Interval(1, 1, 1))
    two = median_ci([5.0, 5.1])
    assert two.known and two.hi - two.lo > 0.1  # far wider than the two samples lie apart


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_samples_must_be_there_and_finite(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="sample"):
        median_ci(bad)
    with pytest.raises(ValueError, match="sample"):
        mad(bad)


def test_block_numbers_must_match() -> None:
    with pytest.raises(ValueError, match="block numbers"):
        median_ci([1, 2, 3], [0, 1])


def test_mad() -> None:
    assert mad([1, 2, 3, 4, 100]) == 1
    assert mad([7]) == 0


def test_ratio_is_paired_on_shared_blocks_only() -> None:
    drift = np.exp(np.linspace(0, 3, 20))  # twenty-fold drift that hits both alike
    ratio = ratio_ci(2 * drift, range(20), drift[5:15], range(5, 15))
    assert ratio is not None
    assert ratio.value == pytest.approx(2) and ratio.hi - ratio.lo < 1e-9
    assert ratio_ci(drift, range(20), drift[:2], range(2)) is None
    assert ratio_ci(drift, range(20), drift, range(20, 40)) is None
    assert ratio_ci([], [], drift, range(20)) is None


def test_ratio_is_reproducible_and_inverts() -> None:
    rng = np.random.default_rng(5)
    a, b = np.exp(rng.normal(0, 0.1, 24)), np.exp(rng.normal(0.5, 0.1, 24))
    forth, back = ratio_ci(a, range(24), b, range(24)), ratio_ci(b, range(24), a, range(24))
    assert forth is not None and back is not None
    assert forth == ratio_ci(a, range(24), b, range(24))
    assert forth.inverse() == pytest.approx(back)
    with pytest.raises(ValueError, match="positive"):
        ratio_ci([1, 0, 2], range(3), [1, 1, 1], range(3))


def test_independent_ratio() -> None:
    ratio = independent_ratio(Interval(10, 9, 11), Interval(5, 5, 5))
    assert ratio == pytest.approx((2, 1.8, 2.2))
    assert not independent_ratio(Interval(10, math.nan, math.nan), Interval(5, 5, 5)).known


def test_geomean() -> None:
    mean = geomean_ci([0.5, 2.0, 1.0, 1.0, 4.0, 0.25, 1.0, 1.0, 1.0])
    assert mean.value == pytest.approx(1.0)
    assert mean.lo < 0.9 and mean.hi > 1.1
    assert geomean_ci([1, 4], weights=[1, 3]).value == pytest.approx(4 ** 0.75)
    assert not geomean_ci([1, 4]).known and geomean_ci([1, 4, 2]).known
    assert geomean_ci([3.0] * 12) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("bad", [[], [1, 0.0], [1, -2.0], [math.nan]])
def test_geomean_refuses(bad: list[float]) -> None:
    with pytest.raises(ValueError):
        geomean_ci(bad)
    with pytest.raises(ValueError, match="weights"):
        geomean_ci([1, 2, 3], weights=[1, 2])


@pytest.mark.parametrize("weighted", [False, True])
def test_geomean_interval_covers(weighted: bool) -> None:
    draw = np.random.default_rng(2)
    weights = draw.uniform(1, 3, 10) if weighted else None
    intervals = [geomean_ci(np.exp(draw.normal(0, 0.5, 10)), weights) for _ in range(300)]
    assert np.mean([i.lo <= 1 <= i.hi for i in intervals]) >= 0.89


def test_metrics_have_units_that_agree() -> None:
    more = {"executed_flops": {"multiply": 1e4}, "setup_ns": 5, "workspace_bytes": 64}
    rec = record([2000, 2200, 1800, 2000], loops=2, **more)
    m = metrics(rec, peak_gflops=50.0)
    assert m["time_s_median"] == pytest.approx(1e-6) and m["time_s_min"] == pytest.approx(0.9e-6)
    assert m["n_samples"] == 4 and m["workspace_bytes"] == 64 and m["setup_s"] == 5e-9
    assert m["gflops_direct"] == pytest.approx(rec.case.problem.direct_flops / 1000)
    assert m["gflops_executed"] == pytest.approx(10) and m["pct_peak_executed"] == pytest.approx(20)
    assert m["gbps_min"] == pytest.approx(rec.case.problem.min_bytes / 1000)
    assert m["time_s_ci_lo"] < 1e-6 < m["time_s_ci_hi"]  # type: ignore[operator]
    assert m["energy_j"] == "unavailable"
    assert metrics(rec)["pct_peak_executed"] is None


def test_metrics_of_a_record_without_samples() -> None:
    empty, full = metrics(record([])), metrics(record([1, 2, 3], executed_flops={"multiply": 1.0}))
    assert set(empty) == set(full)
    assert empty["n_samples"] == 0 and empty["time_s_median"] is None and empty["gflops_direct"] is None


def test_speedup_pairs_where_it_can() -> None:
    base, fast = record([200, 400, 800, 1600]), record([100, 200, 400, 800], name="winograd_f4_numpy")
    paired = speedup_ci(base, fast)
    assert paired == pytest.approx((2, 2, 2))
    apart = speedup_ci(base, record([100, 200, 400, 800], [10, 11, 12, 13]))
    assert apart is not None and apart.value == pytest.approx(2) and apart.hi > 3
    assert speedup_ci(base, record([])) is None


def test_finite_replaces_what_json_has_no_word_for() -> None:
    assert finite({"a": math.nan, "b": math.inf, "c": 1.5, "d": "x", "e": None}) == {
        "a": None, "b": None, "c": 1.5, "d": "x", "e": None,
    }  # fmt: skip
