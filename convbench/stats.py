"""Statistics over raw samples: medians, ratios and geometric means with intervals, and a record's metrics.

Pure functions. Nothing is trimmed, and no function looks at anything but its arguments.

Median: its bootstrap distribution needs no resampling, it is a set of binomial weights on the order
statistics (Maritz & Jarrett 1978), so the interval lies between two order statistics. Samples of a series are
correlated, which binomial weights ignore: the number of samples below the median then varies more than they
say, by a factor that is estimated here from the signs about the median.
Ratio: paired per-block log ratios with a moving-block bootstrap (Kuensch 1989; Kalibera & Jones 2013,
"Rigorous benchmarking in reasonable time"), studentised: percentiles over 8 to 16 blocks are too narrow.

Coverage of the nominal 95 % intervals, measured on 2,000 series a cell (2026-11); normal noise / Student t
with 3 degrees of freedom / normal with 8 % one-sided exponential spikes of 20 sigma. AR(1) is the correlation
of a sample with the next; a ratio is of two series with the same true median.

    AR(1)   n    median_ci             ratio_ci              percentile bootstrap, median (150 series)
    0.0     8    0.990 0.994 0.990     0.973 0.977 0.979     0.907 0.927 0.907
    0.0    16    0.983 0.983 0.983     0.969 0.970 0.960     0.953 0.947 0.927
    0.0    64    0.962 0.963 0.965     0.947 0.951 0.960     0.940 0.920 0.927
    0.3     8    0.969 0.962 0.970     0.958 0.959 0.967     0.827 0.853 0.827
    0.3    16    0.960 0.963 0.961     0.946 0.959 0.962     0.813 0.840 0.893
    0.3    64    0.951 0.948 0.943     0.945 0.952 0.942     0.873 0.833 0.867
    0.6     8    0.881 0.867 0.905     0.919 0.912 0.926     0.633 0.653 0.653
    0.6    16    0.917 0.933 0.914     0.907 0.923 0.924     0.780 0.653 0.707
    0.6    64    0.933 0.945 0.936     0.932 0.933 0.932     0.700 0.687 0.733

Stopping as soon as an interval is narrow enough costs a little more: looked at after 8, 16, 32, 48 and 64
samples with a target of 3 %, the median's coverage is 0.96-0.99, 0.93-0.96 and 0.86-0.94 at AR(1) 0, 0.3 and
0.6 (standard deviations of 2, 4 and 8 %, 800 series each). Below 8 samples both are
Student t intervals on logarithms: 0.96-0.98, 0.92-0.96 and 0.80-0.93. A geomean over 3 to 30 problems:
0.93-0.95 where the log ratios are normal, 0.86-0.93 where they are exponential.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convbench.records import Record, Samples

Metric = float | int | str | None
MIN_SHARED_BLOCKS = 3
N_RESAMPLES = 1000
_FEW = 8  # below this many samples the order statistics alone cannot promise 95 %


class Interval(NamedTuple):
    """A value with its confidence interval; lo and hi are NaN where there is too little to say."""

    value: float
    lo: float
    hi: float

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.lo) and math.isfinite(self.hi)

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width over the value; infinite where the interval is unknown."""
        if not self.known or self.value == 0:
            return math.inf
        return (self.hi - self.lo) / 2 / abs(self.value)

    def overlaps(self, other: Interval) -> bool:
        """Whether the two cannot be told apart. An unknown interval overlaps everything."""
        if not (self.known and other.known):
            return True
        return self.lo <= other.hi and other.lo <= self.hi

    def inverse(self) -> Interval:
        """1 / x of a positive quantity."""
        return Interval(1 / self.value, 1 / self.hi, 1 / self.lo)


def median_ci(
    ns_per_call: Sequence[float],
    blocks: Sequence[int] | None = None,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Median of the samples with its interval, in the samples' unit. About 0.1 ms for 64 samples.

    blocks puts the samples into the order in which they were taken (default: as given); several samples of
    one block count as one, their median. One sample has no interval (NaN); fewer than eight have at least
    that of a Student t on their logarithms. Raises ValueError for no sample, or one that is not finite.
    """
    series = _by_block(ns_per_call, blocks)[1]
    n = len(series)
    centre = float(np.median(series))
    if n == 1:
        return Interval(centre, math.nan, math.nan)
    inflation = _inflation(np.sign(series - centre))
    # The number of samples below the true median: mean n/2, variance n/4 times the inflation.
    half = _student(confidence, max(n / inflation - 1, 2.0)) * math.sqrt(n * inflation) / 2
    ordered, ranks = np.sort(series), np.arange(n)
    at = n / 2 - half - 0.5
    lo, hi = float(np.interp(at, ranks, ordered)), float(np.interp(n - 1 - at, ranks, ordered))
    if n < _FEW:
        few_lo, few_hi = _few_samples(series, centre, confidence)
        lo, hi = min(lo, few_lo), max(hi, few_hi)
    return Interval(centre, lo, hi)


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation from the median, unscaled, in the samples' unit."""
    data = _finite(values)
    return float(np.median(np.abs(data - np.median(data))))


def ratio_ci(
    ns_a: Sequence[float],
    blocks_a: Sequence[int],
    ns_b: Sequence[float],
    blocks_b: Sequence[int],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Interval | None:
    """Time of a over time of b, exp(median of the per-block log ratios), on the blocks that both have.

    The speed-up of an algorithm over a baseline is ratio_ci(baseline, ..., algorithm, ...). None where fewer
    than three blocks are shared. Raises ValueError where a time is not positive.
    """
    blocks, log_a, log_b = _shared(ns_a, blocks_a, ns_b, blocks_b)
    if len(blocks) < MIN_SHARED_BLOCKS:
        return None
    logs = log_a - log_b  # (B,)
    n, centre = len(logs), float(np.median(logs))
    if n < _FEW:
        half = _few_half_width(logs, confidence)
        return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half))
    length = _block_length(n)
    resampled = np.median(logs[_block_indices(n, length, n_resamples, seed)], axis=1)  # (n_resamples,)
    # Resampled blocks hold the neighbours of one another, so their spread is short by (n - length) / n.
    spread = float(resampled.std()) * math.sqrt(n / (n - length))
    half = _student(confidence, max(n / length - 1, 2.0)) * spread
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half))


def independent_ratio(a: Interval, b: Interval) -> Interval:
    """a over b for two positive quantities that share no blocks (two layouts, say).

    The relative half-widths are added in quadrature on the log scale; NaN where one of them is unknown.
    """
    value = a.value / b.value
    if not (a.known and b.known):
        return Interval(value, math.nan, math.nan)
    below = math.hypot(_log(a.value / a.lo), _log(b.hi / b.value))
    above = math.hypot(_log(a.hi / a.value), _log(b.value / b.lo))
    return Interval(value, value * math.exp(-below), value * math.exp(above))


def geomean_ci(
    ratios: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = 4000,
) -> Interval:
    """Geometric mean of positive ratios, weighted where weights are given, with a bootstrap over problems.

    The percentiles are moved outwards for small samples (Hesterberg 2015, "What teachers should know about
    the bootstrap": expanded percentile interval); below eight ratios it is a Student t interval of the
    logarithms, below three there is none (NaN). Raises ValueError for an empty list or a ratio <= 0.
    """
    logs = np.log(_positive(ratios))
    weight = np.ones(len(logs)) if weights is None else _positive(weights)
    if len(weight) != len(logs):
        raise ValueError(f"{len(logs)} ratios need as many weights, not {len(weight)}")
    centre = math.exp(float(np.average(logs, weights=weight)))
    n = len(logs)
    if n < MIN_SHARED_BLOCKS:
        return Interval(centre, math.nan, math.nan)
    if n < _FEW:
        spread = math.sqrt(float(np.average((logs - math.log(centre)) ** 2, weights=weight)) / (n - 1))
        half = _student(confidence, n - 1) * spread
        return Interval(centre, centre * math.exp(-half), centre * math.exp(half))
    index = _block_indices(n, 1, n_resamples, seed)
    means = (logs * weight)[index].sum(axis=1) / weight[index].sum(axis=1)
    tail = _normal_tail(math.sqrt(n / (n - 1)) * _student(confidence, n - 1))
    lo, hi = np.quantile(means, [tail, 1 - tail])
    return Interval(centre, math.exp(float(lo)), math.exp(float(hi)))


#: NVML's names of what means that a GPU is slower than it was set to be.
THROTTLING = frozenset(
    {"sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"}
)
CLOCK_DROP = 0.05  # of the best clock of a series: what a GPU's clock wanders by itself is less


def is_throttled(samples: Samples) -> bool:
    """Whether a series shows the GPU held back, or its clock CLOCK_DROP below its best. False without readings."""
    if any(THROTTLING.intersection(reasons or ()) for reasons in samples.reasons):
        return True
    clocks = [mhz for mhz in samples.sm_mhz if mhz]
    return bool(clocks) and min(clocks) < (1 - CLOCK_DROP) * max(clocks)


def metrics(record: Record, peak_gflops: float | None = None) -> dict[str, Metric]:
    """The numbers of one record, each name with its unit; None where there is none.

    peak_gflops: the machine's measured peak at the record's thread count; else pct_peak_executed is None.
    Rates and times are None for a record without samples.
    """
    problem, error = record.case.problem, record.error
    values: dict[str, Metric] = dict.fromkeys(
        ("time_s_median", "time_s_ci_lo", "time_s_ci_hi", "time_s_min", "time_s_mad")
    )
    values |= dict.fromkeys(("gflops_direct", "gflops_executed", "pct_peak_executed", "gbps_min", "time_host_s_median"))
    values |= {
        "n_samples": len(record.samples.ns),
        "packing_s": None if record.packing_ns is None else record.packing_ns / 1e9,
        "pct_packing": None,
        "setup_s": None if record.setup_ns is None else record.setup_ns / 1e9,
        "workspace_bytes": record.workspace_bytes,
        "peak_bytes": record.peak_bytes,
        "error_rel_l2": error.rel_l2,
        "error_max_abs": error.max_abs,
        "error_max_ulp": error.max_ulp,
        "error_bound_ratio": error.bound_ratio,
        "energy_j": record.energy_j,
    }
    if not record.samples.ns:
        return values
    ns = record.ns_per_call
    time = median_ci(ns, record.samples.block)
    values |= {
        "time_s_median": time.value / 1e9,
        "time_s_ci_lo": _or_none(time.lo / 1e9),
        "time_s_ci_hi": _or_none(time.hi / 1e9),
        "time_s_min": min(ns) / 1e9,
        "time_s_mad": mad(ns) / 1e9,
        "gflops_direct": problem.direct_flops / time.value,  # flop / ns = Gflop / s
        "gbps_min": problem.min_bytes / time.value,
        "pct_packing": None if record.packing_ns is None else 100 * record.packing_ns / time.value,
    }
    host = [value for value in record.samples.host_ns if value is not None]
    if host:
        values["time_host_s_median"] = float(np.median(host)) / 1e9
    if record.executed_flops:
        executed = sum(record.executed_flops.values()) / time.value
        values["gflops_executed"] = executed
        values["pct_peak_executed"] = 100 * executed / peak_gflops if peak_gflops else None
    return values


def speedup_ci(base: Record, other: Record) -> Interval | None:
    """How many times faster `other` is than `base`: paired on shared blocks, else from the two medians.

    None where one of them has no samples.
    """
    if not (base.samples.ns and other.samples.ns):
        return None
    paired = None
    if base.case.problem == other.case.problem and base.case.options == other.case.options:
        paired = ratio_ci(base.ns_per_call, base.samples.block, other.ns_per_call, other.samples.block)
    if paired is not None:
        return paired
    return independent_ratio(
        median_ci(base.ns_per_call, base.samples.block), median_ci(other.ns_per_call, other.samples.block)
    )


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping with NaN and infinity as None, as JSON wants it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError("at least one sample is needed")
    if not np.isfinite(data).all():
        raise ValueError("samples must be finite")
    return data


def _positive(values: Sequence[float]) -> NDArray[np.float64]:
    data = _finite(values)
    if not (data > 0).all():
        raise ValueError("values must be positive")
    return data


def _by_block(
    values: Sequence[float], blocks: Sequence[int] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(block numbers, one value a block) in the order of the blocks."""
    data = _finite(values)
    if blocks is None:
        return np.arange(len(data)), data
    number = np.asarray(blocks, dtype=np.int64)
    if number.shape != data.shape:
        raise ValueError(f"{len(data)} samples need as many block numbers, not {len(number)}")
    unique, first = np.unique(number, return_index=True)
    if len(unique) == len(data):
        return unique, data[first]
    return unique, np.array([np.median(data[number == block]) for block in unique])


def _shared(
    ns_a: Sequence[float], blocks_a: Sequence[int], ns_b: Sequence[float], blocks_b: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    if not (len(ns_a) and len(ns_b)):
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    number_a, a = _by_block(_positive(ns_a).tolist(), blocks_a)
    number_b, b = _by_block(_positive(ns_b).tolist(), blocks_b)
    shared, in_a, in_b = np.intersect1d(number_a, number_b, assume_unique=True, return_indices=True)
    return shared, np.log(a[in_a]), np.log(b[in_b])


def _inflation(signs: NDArray[np.float64]) -> float:
    """By how much correlation inflates the variance of the number of samples below the median; at least 1.

    The lag-1 correlation of the signs, corrected for its bias in short series, is turned into that of a
    Gaussian AR(1) process (arcsine law), whose further lags then follow.
    """
    n = len(signs)
    centred = signs - signs.mean()
    power = float(centred @ centred)
    if n < 4 or power == 0:
        return 1.0
    first = float(centred[1:] @ centred[:-1]) / power
    first = min(max(first + (1 + 3 * first) / n, 0.0), 0.9)
    lags = np.arange(1, n)
    of_signs = 2 / math.pi * np.arcsin(math.sin(math.pi / 2 * first) ** lags)
    return 1 + 2 * float(((1 - lags / n) * of_signs).sum())


def _few_samples(series: NDArray[np.float64], centre: float, confidence: float) -> tuple[float, float]:
    """(lo, hi) for the median of a few values: on their logarithms where all are positive."""
    if not (series > 0).all():
        half = _few_half_width(series, confidence)
        return centre - half, centre + half
    half = _few_half_width(np.log(series), confidence)
    return centre * math.exp(-half), centre * math.exp(half)


def _few_half_width(values: NDArray[np.float64], confidence: float) -> float:
    """Student t, times the 1.2533 by which a median spreads more than a mean; capped: exp stays finite."""
    n = len(values)
    return min(_student(confidence, n - 1) * 1.2533 * float(values.std(ddof=1)) / math.sqrt(n), 50.0)


def _block_length(n: int) -> int:
    """Length of the moving blocks: the square root of the series (of eight or more)."""
    return math.ceil(math.sqrt(n))


@lru_cache(maxsize=64)
def _block_indices(n: int, length: int, n_resamples: int, seed: int) -> NDArray[np.intp]:
    """Indices of n_resamples series, each put together from moving blocks. (n_resamples, n)"""
    draw = np.random.default_rng(seed)
    pieces = -(-n // length)
    starts = draw.integers(0, n - length + 1, (n_resamples, pieces))
    return (starts[:, :, None] + np.arange(length)).reshape(n_resamples, -1)[:, :n]


@lru_cache(maxsize=1024)
def _student(confidence: float, freedom: float) -> float:
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _normal_tail(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def _log(x: float) -> float:
    return math.log(x) if x > 0 else math.inf


def _or_none(x: float) -> float | None:
    return x if math.isfinite(x) else None
