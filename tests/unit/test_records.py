"""Records: what is written comes back, torn lines, newer schemas, full disks, the golden file of every schema."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from convbench.errors import OutputError, RecordsError
from convbench.problem import Case, ConvShape, Options, Pass, Problem, Semantics
from convbench.records import SCHEMA, Errors, Record, RecordWriter, Samples, load_run, read_records

GOLDEN = Path(__file__).parents[1] / "golden"


def a_record(name: str = "im2col_numpy", status: str = "ok") -> Record:
    shape = ConvShape.make(n=2, c=8, h=17, w=15, k=12, r=3, s=5, stride=(2, 1), padding=((1, 0), (2, 3)), groups=4)
    problem = Problem(shape, Pass.BACKWARD_DATA, "float32", "nhwc")
    case = Case(problem, name, Options("raw", 2, "hot", "normal", 7), label="conv<script>", count=3)
    return Record(
        case=case,
        status=status,
        reason="" if status == "ok" else f"{name}: stride must be 1, not 2",
        flags=["noisy"],
        samples=Samples([10_000_000, 11_000_000, 12_000_000], [0, 1, 2], [1, 0, 1]),
        loops=4,
        setup_ns=5,
        workspace_bytes=1 << 20,
        workspace_estimate_bytes=1 << 20,
        peak_bytes=1 << 21,
        error=Errors(1e-7, 1e-6, 3.0, 0.25),
        executed_flops={"multiply": 1e6},
        arithmetic="float32",
        vendor=False,
        vendor_impl=None,
        predicted_ns=2.5e6,
        env_id="abc",
        source_sha="0123456789ab",
        versions={"numpy": "2.0"},
        repro="python -m convbench run ...",
        started_utc="2026-11-22T00:00:00+00:00",
    )


def a_gpu_record() -> Record:
    """The same of a GPU, with what goes with its samples."""
    record = a_record("winograd_f4_cuda")
    record.device, record.launches, record.energy_j = "cuda", 4, 0.125
    record.flags = ["throttled"]
    record.samples.host_ns = [12_000, 13_000, None]
    record.samples.sm_mhz = [1980, 1980, None]
    record.samples.reasons = [["gpu_idle"], ["sw_power_cap"], None]
    return record


def a_binary_record() -> Record:
    """Of another semantics and other inputs than usual, with the distance from its own exact result, and packing."""
    record = a_record("binary_popcount_simd")
    case = record.case
    problem = Problem(case.problem.shape, Pass.FORWARD, "float32", "nhwc", Semantics.BINARY)
    record.case = replace(case, problem=problem, options=replace(case.options, inputs="relu"))
    record.arithmetic, record.error = "binary", Errors(0.6, 40.0, 1e7, 0.0, 0.0)
    record.packing_ns = 1_250_000.5
    return record


@pytest.mark.parametrize("record", [a_record(), a_gpu_record(), a_binary_record()], ids=["cpu", "cuda", "binary"])
def test_a_record_comes_back_as_it_was(record):
    again = Record.from_json(record.to_json())
    assert again == record
    assert (again.case.label, again.case.count) == ("conv<script>", 3)
    assert again.case.id == record.case.id
    assert again.ns_per_call == [2_500_000.0, 2_750_000.0, 3_000_000.0]


def test_label_and_count_are_no_part_of_the_identity():
    case = a_record().case
    other = Case(case.problem, case.implementation, case.options, label="else", count=9)
    assert case == other and case.id == other.id


def test_an_unknown_status_is_refused():
    with pytest.raises(RecordsError, match="status must be one of"):
        a_record(status="maybe")


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_every_schema_still_reads(schema):
    records = read_records(GOLDEN / f"records_schema{schema}.jsonl")
    assert [r.status for r in records[:2]] == ["ok", "unsupported"]
    assert records[0] == a_record()
    assert records[2:] == [a_gpu_record(), a_binary_record()][: schema - 1]


def test_a_newer_schema_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "records.jsonl"
    data = json.loads(a_record().to_json()) | {"schema": SCHEMA + 1}
    path.write_text(a_record().to_json() + "\n" + json.dumps(data) + "\n")
    with pytest.raises(RecordsError, match=r"records.jsonl, line 2: record schema .* newer"):
        read_records(path)


def test_a_line_cut_by_a_kill_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "records.jsonl"
    whole = a_record().to_json()
    path.write_text(whole + "\n" + whole[:100])
    assert read_records(path) == [a_record()]
    writer = RecordWriter(path)
    writer.append_all([a_record("direct_numpy")])
    writer.close()
    assert [r.case.implementation for r in read_records(path)] == ["im2col_numpy", "direct_numpy"]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"schema": 1}\n' + a_record().to_json() + "\n")
    with pytest.raises(RecordsError, match="line 1: not a convbench record"):
        read_records(path)


def test_a_full_disk_takes_nothing_back_but_the_problem_in_hand(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path)
    writer.append_all([a_record()])
    real, calls = os.write, []

    def half_then_full(descriptor: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) == 1:
            return real(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OutputError, match=r"No space left on device.*--resume"):
        writer.append_all([a_record("direct_numpy"), a_record("kn2row_numpy")])
    monkeypatch.undo()
    writer.close()
    assert path.read_text() == a_record().to_json() + "\n"


def test_what_is_no_run_directory_says_so(tmp_path):
    with pytest.raises(OutputError, match="no run directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RecordsError, match=r"holds no records.jsonl"):
        load_run(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(RecordsError, match=r"environment\.json cannot be read"):
        load_run(tmp_path)
