"""What the emulator is tested with is CUDA: NVRTC takes every probe and every planted kernel as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convbench.cuda.compile import compile_file
from tests.cuda_on_cpu.build import HERE, KERNELS, kernels_of

FILES = sorted((HERE / "probes").glob("*.cu")) + sorted((HERE / "planted").glob("*.cu"))


@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nvrtc_takes_it(path: Path, architecture: str, tmp_path: Path) -> None:
    shutil.copytree(KERNELS / "include", tmp_path / "include")
    shutil.copy(path, tmp_path)
    compiled = compile_file(path.name, (), architecture, tmp_path)
    assert set(compiled.kernels) == set(kernels_of(path, {}))
