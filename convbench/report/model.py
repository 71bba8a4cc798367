"""What the report speaks of: settings, rows, winners, scores and totals. Filled in by summary.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from convbench.problem import Options, Problem, Semantics
from convbench.records import STATUSES, Record
from convbench.stats import Interval, Metric

ALL_BATCHES = "all"
#: Type or semantics of a setting in which formats are compared.
ANY = "any"


class Setting(NamedTuple):
    """What is the same for all rows of a table: one geometric mean is taken inside one setting."""

    pass_: str
    dtype: str
    layout: str
    weights: str
    threads: int
    batch: int | str
    mode: str = "hot"
    semantics: str = "linear"
    inputs: str = "normal"

    @property
    def over_formats(self) -> Setting:
        """What is the same for all formats that are compared: the setting without type and semantics."""
        return self._replace(dtype=ANY, semantics=ANY)

    def as_dict(self) -> dict[str, Any]:
        """The same with the names that the tables use."""
        data = self._asdict()
        return {"pass": data.pop("pass_"), **data}

    def text(self, skip: Iterable[str] = ()) -> str:
        """For people: 'fwd, float32, nchw, raw weights, 2 threads, batch 1'."""
        parts = {
            "pass": self.pass_,
            "dtype": self.dtype,
            "layout": self.layout,
            "weights": f"{self.weights} weights",
            "threads": f"{self.threads} thread{'s' if self.threads != 1 else ''}",
            "batch": "all batches" if self.batch == ALL_BATCHES else f"batch {self.batch}",
        }
        if self.mode != "hot":
            parts["mode"] = self.mode
        if self.dtype == ANY:
            del parts["dtype"]
        if self.semantics not in (Semantics.LINEAR.value, ANY):
            parts["semantics"] = f"semantics {self.semantics}"
        if self.inputs != "normal":
            parts["inputs"] = f"{self.inputs} inputs"
        return ", ".join(v for k, v in parts.items() if k not in set(skip))


@dataclass
class Row:
    """One record with everything that the tables show of it."""

    record: Record
    arithmetic: str
    metrics: dict[str, Metric]
    speedup: Interval | None = None
    vendor_speedup: Interval | None = None
    fastest_vendor: str | None = None

    @property
    def algorithm(self) -> str:
        """Registered name of the implementation."""
        return self.record.case.implementation

    @property
    def problem(self) -> Problem:
        """What was computed."""
        return self.record.case.problem

    @property
    def options(self) -> Options:
        """How it was run."""
        return self.record.case.options

    @property
    def ok(self) -> bool:
        """Whether the row has a time."""
        return self.record.status == "ok" and bool(self.record.samples.ns)

    @property
    def noisy(self) -> bool:
        """Whether the wanted interval was not reached."""
        return "noisy" in self.record.flags

    @property
    def like_for_like(self) -> bool:
        """Whether it multiplies in the problem's own type; half types summed in float32 do ("float16-acc32").

        What a semantics with an exact result is computed in changes nothing of that result.
        """
        if self.exact:
            return True
        return self.arithmetic in (self.problem.dtype, f"{self.problem.dtype}-acc32")

    @property
    def exact(self) -> bool:
        """Whether its semantics has one exact result, whatever the machine multiplies in."""
        return self.problem.semantics not in (Semantics.LINEAR, Semantics.BINARY_WEIGHTS)

    @property
    def competes_in(self) -> str:
        """Rows of one problem compete where this is the same: the arithmetic, unless no result depends on it."""
        return "" if self.exact else self.arithmetic

    @cached_property
    def descriptor(self) -> str:
        """The problem as text."""
        return self.record.problem_text

    @property
    def layer(self) -> str:
        """Name for people: the label, else the descriptor."""
        return self.record.case.label or self.descriptor

    @cached_property
    def time(self) -> Interval:
        """Median seconds of one call; only for rows that are ok."""
        values = [self.metrics[k] for k in ("time_s_median", "time_s_ci_lo", "time_s_ci_hi")]
        return Interval(*(float("nan") if v is None else float(v) for v in values))

    @cached_property
    def setting(self) -> Setting:
        """The group of the row."""
        p, o = self.problem, self.options
        return Setting(
            p.pass_.value, p.dtype, p.layout, o.weights, o.threads, p.shape.n, o.mode, p.semantics.value, o.inputs
        )


@dataclass
class Best:
    """Who is fastest on one problem; a tie where intervals of the medians overlap."""

    setting: Setting
    layer: str
    descriptor: str
    count: int
    arithmetic: str
    winner: str
    tied: list[str]
    time: Interval
    speedup: Interval | None
    runner_up: str | None
    margin: float | None
    competed_in: str


@dataclass
class Score:
    """One algorithm in one setting."""

    setting: Setting
    algorithm: str
    arithmetic: str
    geomean: Interval | None
    n_problems: int
    vendor_geomean: Interval | None
    n_vendor_problems: int
    n_ok: int
    n_supported: int
    n_total: int
    n_noisy: int
    wins: int
    ties: int
    losses: int
    best: int
    best_tied: int


@dataclass
class Total:
    """Time of all layers of a setting, each as often as its network has it."""

    setting: Setting
    algorithm: str
    n_layers: int
    n_missing: int
    seconds: float | None
    seconds_lo: float | None
    seconds_hi: float | None
    speedup: float | None = None


@dataclass(frozen=True)
class VendorScore:
    """One algorithm (or the best of ours) on one network: geometric mean of fastest vendor's time over its own."""

    setting: Setting
    network: str
    algorithm: str
    geomean: Interval
    n_problems: int
    n_total: int
    lowest: float
    lowest_layer: str
    n_noisy: int


@dataclass(frozen=True)
class FormatPoint:
    """One timed row among rows of other formats on the same layer.

    reference: the fastest vendor row in strict float32, of the same shape, pass, layout and options; speedup: its time
    over this row's, another function's wherever the format is not float32. packing_s: seconds that packing the filter
    takes of a row with raw weights, where the run also has it packed.
    """

    row: Row
    format: str
    networks: list[str]
    reference: Row | None
    speedup: Interval | None
    packing_s: float | None

    @property
    def frame(self) -> Setting:
        """What all formats share."""
        return self.row.setting.over_formats


@dataclass(frozen=True)
class NetworkPoint:
    """One algorithm in one format over all layers of a network, each as often as the network has it.

    error: root of the mean of the squared relative L2 errors of the layers; None where one was not compared. speedup:
    time of the fastest float32 vendor rows over its own; None where a layer has no such row.
    """

    frame: Setting
    network: str
    algorithm: str
    format: str
    n_layers: int
    seconds: float
    speedup: float | None
    error: float | None


@dataclass(frozen=True)
class WeightMemory:
    """Bytes of all filters of a network's layers in one format, and in single and double precision."""

    network: str
    format: str
    n_layers: int
    bytes: int
    float32_bytes: int
    float64_bytes: int


@dataclass(frozen=True)
class XnorLine:
    """A row of binary operands against those that compute the real convolution of the same shape.

    theory: XNOR-Net's speed-up 64 c N_W / (c N_W + 64). against: name of the baseline -> its row and the speed-up.
    """

    row: Row
    theory: float
    packing_s: float | None
    against: dict[str, tuple[Row, Interval]]


@dataclass(frozen=True)
class Precision:
    """What a run of several formats says across them."""

    points: list[FormatPoint]
    networks: list[NetworkPoint]
    memory: list[WeightMemory]
    xnor: list[XnorLine]

    @property
    def formats(self) -> list[str]:
        """The formats that have a time, in the order of the run."""
        return list(dict.fromkeys(point.format for point in self.points))

    @property
    def frames(self) -> list[Setting]:
        """What formats are compared in, in the order of the run."""
        return list(dict.fromkeys(point.frame for point in self.points))


@dataclass
class Analysis:
    """Everything that the report shows."""

    environment: dict[str, Any]
    rows: list[Row]
    baseline: str | None
    baseline_note: str
    best: list[Best] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    totals: list[Total] = field(default_factory=list)
    vendor: list[VendorScore] = field(default_factory=list)
    precision: Precision | None = None

    @property
    def suite(self) -> dict[str, Any]:
        """What the environment says about the suite; empty where nothing."""
        return self.environment.get("suite") or {}

    @property
    def settings(self) -> list[Setting]:
        """Settings in the order in which the run has them."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    @property
    def statuses(self) -> dict[str, int]:
        """How many records ended how; every status is there."""
        counts = Counter(row.record.status for row in self.rows)
        return {status: counts[status] for status in STATUSES}

    @property
    def mixed(self) -> bool:
        """Whether the rows come from more than one machine, set of libraries or sources."""
        environments = {row.record.env_id for row in self.rows}
        return bool(self.environment.get("mixed")) or len(environments) > 1

    @property
    def above_peak(self) -> list[Row]:
        """Rows whose executed rate exceeds the measured peak: either number must be wrong."""
        return [row for row in self.rows if number(row.metrics["pct_peak_executed"]) > 100]

    @property
    def arithmetics(self) -> list[str]:
        """What the rows with a time multiply in."""
        return sorted({row.arithmetic for row in self.rows if row.ok})


def number(value: Metric) -> float:
    """A metric as a number; 0 where there is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def interval_dict(name: str, interval: Interval | None, ci_name: str | None = None) -> dict[str, float | None]:
    """{name, name_ci_lo, name_ci_hi}; None for what is unknown."""
    ci = ci_name or f"{name}_ci"
    if interval is None:
        return {name: None, f"{ci}_lo": None, f"{ci}_hi": None}
    lo, hi = (interval.lo, interval.hi) if interval.known else (None, None)
    return {name: interval.value, f"{ci}_lo": lo, f"{ci}_hi": hi}
