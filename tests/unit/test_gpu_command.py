"""benchmarks/gpu.py: the tile sweep on a fake GPU, how children end, the summary; nothing here needs a GPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu as command
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import Program
from convbench.devices import cuda, cuda_program
from convbench.errors import Unavailable
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


def test_the_sweep_times_what_is_right_and_names_what_is_not(fake: Fake) -> None:
    layers = [Layer("tiny", 1, ConvShape.make(1, 4, 8, 8, 4, 3, 3, padding=1))]
    found = list(command.sweep(Choosy(), cuda.CudaDevice(), layers, 2))
    assert [line["layer"] for line in found] == [f"tiny {p} float32 nchw" for p in ("fwd", "bwd_data", "bwd_weights")]
    for line in found:
        assert line["ms"]["chosen"] == pytest.approx(KERNEL_NS / 1e6, rel=0.05)
        assert line["ms"]["twice"] == pytest.approx(2 * KERNEL_NS / 1e6, rel=0.05)
        assert "unwritten" in line["wrong"]["nothing"]
    assert list(command.sweep(FakeDirect(), cuda.CudaDevice(), layers, 2)) == []


def test_the_layers_of_the_sweep_are_in_the_suite() -> None:
    assert [layer.name for layer in command.sweep_layers()] == list(command.SWEEP_LAYERS)


@pytest.mark.parametrize(
    "program, lines, ending",
    [
        ("print('{\"a\": 1}'); print('noise'); print('{\"b\": 2}')", [{"a": 1}, {"b": 2}], ""),
        ("import sys; print('{\"a\": 1}'); sys.exit('it broke')", [{"a": 1}], "exit code 1: it broke"),
        ("import sys; print('===== Error: Race reported'); sys.exit(99)", [], "errors: ===== Error: Race reported"),
    ],
)
def test_how_a_child_ended_is_said(program: str, lines: list[Any], ending: str) -> None:
    assert command.run_child([sys.executable, "-c", program], 60.0) == (lines, ending)


def test_a_child_that_does_not_end_is_ended_and_keeps_what_it_said() -> None:
    program = "import time; print('{\"a\": 1}', flush=True); time.sleep(60)"
    lines, ending = command.run_child([sys.executable, "-c", program], 3.0)
    assert lines == [{"a": 1}] and ending == "no end within 3 s"


def session(folder: Path, **listing: Any) -> command.Session:
    return command.Session({"gpu": FACTS, "implementations": [ROW], **listing}, 9.0, folder)


def test_where_no_gpu_is_there_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="none can be used here: no NVIDIA driver"):
        session(tmp_path / "out", gpu={"why": "no NVIDIA driver"})
    assert not (tmp_path / "out").exists()


def test_what_is_finished_is_not_repeated_and_what_is_wrong_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, ran = ["ok"], []

    def child(words: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
        ran.append(words[-2:])
        return [{"case": "fwd float32", "status": status[0], "reason": "off by one"}], ""

    monkeypatch.setattr(command, "run_child", child)
    assert session(tmp_path).run(["verify"]) == 0
    assert session(tmp_path).run(["verify"]) == 0
    assert ran == [["verify", "direct_test_cuda"]]
    (tmp_path / "verify.json").unlink()
    status[0] = "wrong"
    assert session(tmp_path).run(["verify"]) == 3
    assert "direct_test_cuda, fwd float32: off by one" in (tmp_path / "summary.md").read_text()


def test_folders_are_named_after_the_gpu() -> None:
    assert command.machine_name("NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
