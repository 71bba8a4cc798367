"""The support matrix may only grow. To extend it: python -m convbench.testing.conformance --write-golden"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convbench.testing import conformance

GOLDEN = Path(__file__).parents[1] / "golden" / "support_matrix.json"


def test_no_supported_case_was_lost() -> None:
    golden = json.loads(GOLDEN.read_text())
    implementations, broken = conformance.built_in()
    assert broken == {}
    assert [name for name in golden if name not in implementations] == []
    assert conformance.lost(golden, conformance.support_matrix(implementations)) == []


def test_what_grew_is_in_the_golden_file() -> None:
    """A case that is supported but not in the file could be lost unseen."""
    golden = json.loads(GOLDEN.read_text())
    current = conformance.support_matrix(conformance.built_in()[0])
    assert [name for name in current if name not in golden] == [], "run the command at the top of this file"
    assert conformance.lost(current, golden) == [], "run the command at the top of this file"


def test_rows_for_a_gpu_are_in_the_file_without_a_gpu() -> None:
    """What they take does not depend on the machine; only vendors' libraries are asked."""
    golden, implementations = json.loads(GOLDEN.read_text()), conformance.built_in()[0]
    rows = {name for name, row in implementations.items() if row.device == "cuda" and not row.vendor}
    assert {"direct_cuda", "winograd_f4_cuda", "implicit_gemm_fp16_cuda"} <= rows <= golden.keys()
    assert len(golden["direct_cuda"]["fwd float32 nchw raw"]) == len(conformance.SHAPES)


def test_a_row_for_a_gpu_that_drops_a_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    implementations = conformance.built_in()[0]
    row = implementations["direct_tiled_cuda"]
    monkeypatch.setattr(
        type(row), "limits", lambda self, problem: "odd" if problem.shape == conformance.SHAPES["groups"] else None
    )
    gone = conformance.lost(json.loads(GOLDEN.read_text()), conformance.support_matrix({"direct_tiled_cuda": row}))
    assert "direct_tiled_cuda bwd_data float32 nhwc raw groups" in gone
    assert all(case.endswith(" groups") for case in gone)


def test_unavailable_is_no_loss_but_a_dropped_shape_is() -> None:
    golden = {"here_x_numpy": {"fwd float32 nchw raw": ["a", "b"]}, "elsewhere_x_mkl": {"fwd float32 nchw raw": ["a"]}}
    assert conformance.lost(golden, {"here_x_numpy": {"fwd float32 nchw raw": ["a", "b", "c"]}}) == []
    assert conformance.lost(golden, {"here_x_numpy": {"fwd float32 nchw raw": ["b"]}}) == [
        "here_x_numpy fwd float32 nchw raw a"
    ]


def test_writing_refuses_to_shrink(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    large = {"x_y_numpy": {"fwd float32 nchw raw": ["a", "b"]}, "z_y_mkl": {"fwd float32 nchw raw": ["a"]}}
    small = {"x_y_numpy": {"fwd float32 nchw raw": ["a"]}}
    assert conformance.write_golden(path, large, [], False) == []
    assert json.loads(path.read_text()) == large
    assert conformance.write_golden(path, small, [], False) == ["x_y_numpy fwd float32 nchw raw b"]
    assert json.loads(path.read_text()) == large
    assert conformance.write_golden(path, small, [], True) == []
    assert json.loads(path.read_text()) == small | {"z_y_mkl": large["z_y_mkl"]}
    assert conformance.write_golden(path, small, ["z_y_mkl"], False) == ["z_y_mkl (all of it)"]
