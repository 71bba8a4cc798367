"""benchmarks/gpu.py: the tile sweep on a fake GPU, how processes end, what is kept; nothing here needs a GPU."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu as command
from benchmarks import gpu_child, gpu_journal
from benchmarks.gpu_journal import Journal, run_process
from convbench import catalog
from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import Program
from convbench.devices import cuda, cuda_program
from convbench.errors import OutputError, Unavailable, UsageError
from convbench.problem import ConvShape, Problem
from convbench.shapes import Layer
from tests.fake_cuda import KERNEL_NS, Fake, install
from tests.fake_rows import FakeDirect, add_kernels

ROW = {"name": "direct_test_cuda", "device": "cuda", "unavailable": None}
FACTS = {"name": "NVIDIA H200", "compute_capability": "9.0"}


class Choosy(FakeDirect):
    """Offers a program that takes twice as long as the one it takes, and one that does nothing."""

    name = "choosy_test_cuda"

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        chosen = self.program(problem, gpu)
        return {"twice": Program(chosen.steps * 2), "nothing": Program(())}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = install(monkeypatch)
    add_kernels(fake)
    monkeypatch.setattr(cuda_program, "compile_for", lambda launch, gpu: types.SimpleNamespace(path=launch.file))
    yield fake
    cuda.forget()


LAYERS = [Layer("tiny", 1, ConvShape.make(1, 4, 8, 8, 4, 3, 3, padding=1))]


def test_the_sweep_times_what_is_right_and_names_what_is_not(fake: Fake) -> None:
    said = list(gpu_child.sweep(Choosy(), cuda.CudaDevice(), LAYERS, 2))
    labels = [f"tiny {p} float32 {n}" for n in ("nchw", "nhwc") for p in ("fwd", "bwd_data", "bwd_weights")]
    assert said[::2] == [{"trying": {"layer": label}} for label in labels]
    assert [line["layer"] for line in said[1::2]] == labels
    for line in said[1::2]:
        assert line["ms"]["chosen"] == pytest.approx(KERNEL_NS / 1e6, rel=0.05)
        assert line["ms"]["twice"] == pytest.approx(2 * KERNEL_NS / 1e6, rel=0.05)
        assert "unwritten" in line["wrong"]["nothing"]
    assert list(gpu_child.sweep(FakeDirect(), cuda.CudaDevice(), LAYERS, 2)) == []


def test_the_sweep_goes_on_where_it_stopped(fake: Fake) -> None:
    (_, last) = gpu_child.sweep(Choosy(), cuda.CudaDevice(), LAYERS, 2, start=5)
    assert last["layer"] == "tiny bwd_weights float32 nhwc"


def test_the_layers_of_the_sweep_have_tiles_in_every_row_that_offers_some() -> None:
    """Depthwise ones and 5x5 filters are among them: there is no row with tiles that none of them fits."""
    layers, rows = gpu_child.sweep_layers(), catalog.load().implementations.values()
    with_tiles = {"direct_tiled_cuda", "depthwise_cuda", "fft_tile_cuda", "winograd_f2_cuda", "winograd_f4_cuda",
                  "winograd_f4_cublas_cuda", "winograd_f4_5x5_cuda", "winograd_f6_cuda"}  # fmt: skip
    found = {
        row.name for row in rows for layer in layers
        if row.name in with_tiles and row.why_not(Problem(layer.shape)) is None
        and row.alternatives(Problem(layer.shape), H200)
    }  # fmt: skip
    assert found == with_tiles


def test_every_row_has_cases_for_the_sanitizer() -> None:
    rows = [row for row in catalog.load().implementations.values() if row.device == "cuda" and not row.vendor]
    cases = {row.name: {case.shape_name for case in gpu_child.cases_of(row, "sanitize")} for row in rows}
    assert cases["direct_cuda"] == {"odd_channels", "stride_2x1"}
    assert cases["depthwise_cuda"] == {"depthwise"} and cases["winograd_f4_5x5_cuda"] == {"filter_5x5"}
    assert all(cases.values())


# ---- processes, and what they leave


def python(folder: Path, program: str, seconds: float = 60.0) -> str:
    return run_process([sys.executable, "-c", program], seconds, folder / "out", folder / "log")


@pytest.mark.parametrize(
    "program, ending",
    [
        ("print(1)", ""),
        ("import sys; sys.exit('it broke')", "exit code 1: it broke"),
        ("import sys; print('===== Error: Race reported'); sys.exit(99)", "errors: ===== Error: Race reported"),
    ],
)
def test_how_a_process_ended_is_said(tmp_path: Path, program: str, ending: str) -> None:
    (tmp_path / "out").write_text("===== Error: of an earlier process\n")
    (tmp_path / "log").write_text("of an earlier process\n")
    assert python(tmp_path, program) == ending


def test_a_process_that_does_not_end_is_ended_and_keeps_what_it_said(tmp_path: Path) -> None:
    program = "import time; print('{\"a\": 1}', flush=True); time.sleep(60)"
    assert python(tmp_path, program, 3.0) == "no end within 3 s"
    assert (tmp_path / "out").read_text() == '{"a": 1}\n'


def test_a_journal_keeps_whole_lines_of_the_same_sources(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "j.jsonl", "one")
    journal.add({"trying": {"case": "x"}})
    journal.add({"case": "x", "status": "ok"})
    with journal.path.open("a") as file:
        file.write('===== noise\n{"trying": {"case": "y"}}\n{"case": "y", "sta')
    again = Journal(journal.path, "one")
    assert again.results() == [{"case": "x", "status": "ok"}] and again.trying() == {"case": "y"}
    assert again.fail("exit code -11")
    assert again.results()[1] == {"case": "y", "status": "failed", "reason": "exit code -11"}
    assert not again.fail("nothing is under way")
    assert Journal(journal.path, "two").results() == []


def test_a_step_that_takes_all_the_time_twice_has_failed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", "one")
    journal.late(90)  # it came to no step
    journal.add({"trying": {"case": "x"}})
    journal.late(90)
    assert journal.results() == [] and journal.trying() == {"case": "x"}
    journal.late(5)  # too little time to say so
    assert journal.results() == []
    journal.late(90)
    (result,) = journal.results()
    assert result["status"] == "failed" and "it did not end, twice" in result["reason"]
    assert journal.trying() is None


# ---- the command


def session(folder: Path, **listing: Any) -> command.Session:
    return command.Session({"gpu": FACTS, "implementations": [ROW], **listing}, 9.0, folder)


def test_where_no_gpu_is_there_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="none can be used here: no NVIDIA driver"):
        session(tmp_path / "out", gpu={"why": "no NVIDIA driver"})
    assert not (tmp_path / "out").exists()


class Children:
    """Stands for processes: says what `script` has for each, and how they end; keeps where they were told to start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *script: tuple[list[dict[str, Any]], str]) -> None:
        self.script, self.starts = list(script), []
        monkeypatch.setattr(command, "run_process", self.run)

    def run(self, words: list[str], seconds: float, output: Path, log: Path) -> str:
        assert words[-4:-2] == ["verify", "direct_test_cuda"]
        self.starts.append(int(words[-1]))
        lines, ending = self.script.pop(0)
        log.write_text(ending)
        with output.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        if ending == "killed":
            raise KeyboardInterrupt
        return ending


def tried(*cases: str, status: str = "ok") -> list[dict[str, Any]]:
    steps = [[{"trying": {"case": c}}, {"case": c, "status": status, "reason": "off by one"}] for c in cases]
    return [line for step in steps for line in step]


def kept(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "verify.json").read_text())["rows"]["direct_test_cuda"]


def test_what_is_finished_is_not_repeated_unless_the_sources_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch, (tried("a"), ""), (tried("a", status="wrong"), ""))
    assert session(tmp_path).run(["verify"]) == 0
    assert session(tmp_path).run(["verify"]) == 0
    assert children.starts == [0]
    monkeypatch.setattr(command, "code_id", lambda: "other")
    assert session(tmp_path).run(["verify"]) == 3
    assert "direct_test_cuda, a: off by one" in (tmp_path / "summary.md").read_text()


def test_a_kill_loses_the_step_under_way_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = [*tried("a", "b"), {"trying": {"case": "c"}}]
    children = Children(monkeypatch, (begun, "killed"), (tried("c", "d"), ""))
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path).run(["verify"])
    monkeypatch.setattr(gpu_journal, "_stopping", threading.Event())
    assert "verify: 1 not finished (direct_test_cuda)" in (tmp_path / "summary.md").read_text()
    assert session(tmp_path).run(["verify"]) == 0
    assert children.starts == [0, 2]
    assert [line["case"] for line in kept(tmp_path)["lines"]] == ["a", "b", "c", "d"]
    assert not list((tmp_path / "journals").iterdir())


def test_a_step_that_ends_its_process_is_kept_and_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = [*tried("a"), {"trying": {"case": "b"}}]
    children = Children(monkeypatch, (begun, "exit code -11: it said nothing"), (tried("c"), ""))
    assert session(tmp_path).run(["verify"]) == 6
    assert children.starts == [0, 2]
    assert [line["status"] for line in kept(tmp_path)["lines"]] == ["ok", "failed", "ok"]
    said = capsys.readouterr().err
    assert "1 wrong or failed, the first b: exit code -11" in said and "logs/verify-direct_test_cuda.txt" in said


def test_a_process_that_comes_to_no_step_is_tried_again_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch, ([], "exit code 1: no module named cupy"), (tried("a"), ""))
    assert session(tmp_path).run(["verify"]) == 6
    assert session(tmp_path).run(["verify"]) == 0
    assert children.starts == [0, 0]


def test_time_that_is_up_leaves_the_rest_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(monkeypatch, (tried("a", "b"), "no end within 20 s"), (tried("c"), ""))
    assert session(tmp_path).run(["verify"]) == 6
    assert session(tmp_path).run(["verify"]) == 0
    assert children.starts == [0, 2] and len(kept(tmp_path)["lines"]) == 3


def test_without_time_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = iter([0.0, *[1e6] * 99])
    listing = {"gpu": FACTS, "implementations": [ROW]}
    assert command.Session(listing, 9.0, tmp_path, clock=lambda: next(late)).run(["verify", "headline"]) == 6
    said = capsys.readouterr().err
    assert "verify: 1 not finished" in said and "headline: not finished: run the command again" in said


def test_where_nothing_can_run_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--row no\* fits none of the rows for a GPU: direct_test_cuda"):
        command.Session({"gpu": FACTS, "implementations": [ROW]}, 9.0, tmp_path, ["no*"])
    with pytest.raises(Unavailable, match="none of 1 rows can run here; direct_test_cuda: no CuPy"):
        session(tmp_path, implementations=[{**ROW, "unavailable": "no CuPy"}])
    with pytest.raises(UsageError, match="--minutes must be more than 0, not -1"):
        command.Session({"gpu": FACTS, "implementations": [ROW]}, -1, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to .*choose another folder with --output"):
        session(tmp_path / "file" / "out")


def test_cases_that_the_headline_did_not_reach_are_in_the_summary(tmp_path: Path) -> None:
    folder = tmp_path / "headline"
    folder.mkdir()
    for name, text in (("plan.json", "{}"), ("environment.json", '{"finished_utc": "now"}')):
        (folder / name).write_text(text)
    (folder / "records.jsonl").write_text('{"status": "ok"}\n{"status": "not_reached"}\n{"status": "not_reached"}\n')
    assert session(tmp_path).run(["headline"]) == 0
    text = (tmp_path / "summary.md").read_text()
    assert "2 not_reached, 1 ok" in text and "--only headline --minutes 30" in text


def test_folders_are_named_after_the_gpu() -> None:
    assert command.machine_name("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
