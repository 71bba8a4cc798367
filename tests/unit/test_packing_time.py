"""The time of packing by itself: from a row's `pack` through the worker into the record, the tables and the page."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convbench.algorithms.im2col_numpy import Im2colNumpy
from convbench.devices.cpu import CpuDevice
from convbench.measure.packing import BUDGET_NS, MOST, packing_ns
from convbench.problem import ConvShape, Problem
from convbench.records import Record
from convbench.registry import Context, Run, with_packing
from convbench.report.html import render_html
from convbench.report.model import Analysis
from convbench.report.summary import analyse
from convbench.report.tables import Table, all_tables
from convbench.runner.plan import RunPlan
from convbench.runner.problem_run import ProblemRun
from convbench.suite import Policy, ProblemCase
from convbench.verify.reference import CACHE
from convbench.worker import Worker
from tests.precision_runs import SIGN_ROWS, xnor_records
from tests.report_runs import environment
from tests.unit.test_sampler import FakeClock, work

PROBLEM = Problem(ConvShape.make(1, 8, 9, 9, 8, 3, 3, padding=1))


class Packs(Im2colNumpy):
    """Its pack counts its calls, and does nothing else."""

    name = "im2col_packs_numpy"
    calls = 0

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        factor = np.ones(1, np.float32)
        inner = super().prepare(problem, context, weights)

        def run(*arrays: np.ndarray) -> None:
            inner(*arrays)
            arrays[-1][...] *= factor

        return with_packing(run, lambda *operands: self.pack(operands, factor))

    def pack(self, operands: tuple[np.ndarray, ...], factor: np.ndarray) -> None:
        Packs.calls += 1


class Raises(Packs):
    """Its pack does not work."""

    name = "im2col_raises_numpy"

    def pack(self, operands: tuple[np.ndarray, ...], factor: np.ndarray) -> None:
        raise ValueError("no signs here")


class Leaves(Packs):
    """Its pack leaves something behind that run() uses."""

    name = "im2col_leaves_numpy"

    def pack(self, operands: tuple[np.ndarray, ...], factor: np.ndarray) -> None:
        factor[0] = 2


class Writes(Packs):
    """Its pack writes to an operand."""

    name = "im2col_writes_numpy"

    def pack(self, operands: tuple[np.ndarray, ...], factor: np.ndarray) -> None:
        operands[0].flat[0] = 1


class InProcess:
    """A session whose worker is an object in this process."""

    device, env_id, memory_bytes = "cpu", "", 1 << 33

    def __init__(self, rows: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self.described: dict[str, Any] = {}
        self.served = Worker(self.events.append)
        self.served.device, self.served.memory_bytes = CpuDevice(), 1 << 33
        self.served.catalog = types.SimpleNamespace(implementations=rows)

    def worker(self, threads: int) -> InProcess:
        return self

    def send(self, op: str, **command: Any) -> None:
        self.served.serve({"op": op, **command})

    def next_event(self, timeout_s: float) -> dict[str, Any]:
        return self.events.pop(0)

    def drop(self, threads: int, oracle: bool = False) -> None:
        pass

    def refusal(self, name: str) -> None:
        return None

    def learn_rate(self, key: Any, rate: float) -> None:
        pass

    def versions_for(self, name: str) -> dict[str, str]:
        return {}


@pytest.fixture
def records_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """records_of(row, weights, mode): the record of a row, by a worker in this process."""
    monkeypatch.setattr("convbench.lifeline.cap_memory", lambda n_bytes: None)
    monkeypatch.setattr("convbench.worker.thread_pools", list)

    def run(row: type[Packs], weights: str = "raw", mode: str = "hot") -> Record:
        policy = Policy(min_blocks=3, min_time_s=0.001, ci_target=0.9, max_blocks=4)
        case = ProblemCase(PROBLEM, weights, 1, mode, 0)
        plan = RunPlan({"name": "packing"}, [case], [row.name], [], policy)
        session: Any = InProcess({row.name: row()})
        (record,) = ProblemRun(plan, case, session, 2.0, lambda *_: None).run()
        return record

    yield run
    CACHE.clear()


@pytest.mark.parametrize("weights", ["raw", "packed"])
@pytest.mark.parametrize("mode", ["hot", "cold"])
def test_the_time_of_a_pack_is_in_the_record(records_of: Any, weights: str, mode: str) -> None:
    Packs.calls = 0
    record = records_of(Packs, weights, mode)
    assert record.status == "ok" and Packs.calls > 3
    assert record.packing_ns is not None and record.packing_ns > 0
    assert "no_packing_time" not in record.flags


def test_a_row_without_a_pack_has_no_time_of_it(records_of: Any) -> None:
    record = records_of(Im2colNumpy)
    assert (record.status, record.packing_ns) == ("ok", None) and "no_packing_time" not in record.flags


def test_a_pack_that_raises_costs_the_field_alone(records_of: Any, capfd: pytest.CaptureFixture[str]) -> None:
    record = records_of(Raises)
    assert (record.status, record.packing_ns) == ("ok", None) and len(record.samples.ns) >= 3
    assert "no_packing_time" in record.flags
    assert "ValueError: no signs here" in capfd.readouterr().err


@pytest.mark.parametrize("row", [Leaves, Writes])
def test_a_pack_that_changes_results_or_operands_is_wrong(records_of: Any, row: type[Packs]) -> None:
    record = records_of(row)
    assert (record.status, record.packing_ns, record.samples.ns) == ("wrong", None, [])
    assert record.reason.startswith("after timing")


@pytest.mark.parametrize("mode", ["hot", "cold"])
def test_it_is_a_median_within_a_bounded_time(mode: str) -> None:
    clock = FakeClock()
    assert packing_ns("row", work(clock, "row", 40_000, 9_000), clock, mode, lambda _: None) == pytest.approx(40e3, 0.1)
    assert clock.ns <= 1.1 * BUDGET_NS
    assert clock.log.count("flush") == (MOST if mode == "cold" else 0)


def test_a_long_one_is_called_once() -> None:
    clock = FakeClock()
    assert packing_ns("row", work(clock, "row", 2 * BUDGET_NS), clock, "hot", lambda _: None) == 2 * BUDGET_NS
    assert clock.log == ["row"]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """Made-up rows; those on signs spend a quarter of their time on packing."""
    records = [
        replace(record, packing_ns=0.25 * float(np.median(record.ns_per_call)))
        if record.case.implementation in SIGN_ROWS else record
        for record in xnor_records(("packed",))
    ]  # fmt: skip
    return analyse(environment(), records)


def table_of(analysis: Analysis, name: str) -> Table:
    return next(table for table in all_tables(analysis) if table.name == name)


@pytest.mark.parametrize("name", ["problems", "precision", "xnor"])
def test_tables_show_seconds_and_share(analysis: Analysis, name: str) -> None:
    for row in table_of(analysis, name).rows:
        packs = row["algorithm"] in SIGN_ROWS
        assert row["packing_s"] == (pytest.approx(0.25 * row["time_s_median"]) if packs else None)
        assert row["pct_packing"] == (pytest.approx(25) if packs else None)


def test_the_page_shows_it_where_a_row_has_it(analysis: Analysis) -> None:
    page = render_html(analysis, all_tables(analysis), [], [])
    assert "Packing, ms" in page and "Packing, %" in page and "<small>25 %</small>" in page
    without = analyse(environment(), [replace(row.record, packing_ns=None) for row in analysis.rows])
    page = render_html(without, all_tables(without), [], [])
    assert "Packing, %" not in page and "<small>25 %</small>" not in page
