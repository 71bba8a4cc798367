"""Every kernel file x variant compiles: registers, spills and instructions as its manifest says.

Each variant for Hopper and for two of its other architectures in turn, so that a file is compiled for all of them; with
CONVBENCH_FULL=1, as by `python -m convbench.cuda.compile`, every variant for every architecture.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convbench.cuda.compile import compile_file
from convbench.cuda.manifest import Limits, Variant, kernel_files, kernel_folder, manifest_of, written
from convbench.errors import ConvbenchError
from tests.cuda_checks import findings, is_instruction

HOPPER = ("90", "90a")
IN_TURN = 2


def _variants() -> list:
    """(file, variant, architectures), a test each; a file whose manifest cannot be read is one test, which fails."""
    parameters = []
    for file in kernel_files():
        try:
            variants = manifest_of(file).variants
        except ConvbenchError:
            variants = (None,)
        for i, v in enumerate(variants):
            name = f"{file} {written(v.defines) if v else ''}".strip()
            parameters.append(pytest.param(file, v, _architectures(v, i, len(variants)) if v else (), id=name))
    return parameters


def _architectures(variant: Variant, place: int, count: int) -> tuple[str, ...]:
    """Those that a variant is compiled for here: all where a file has too few variants to take turns."""
    others = [a for a in variant.architectures if a not in HOPPER]
    if os.environ.get("CONVBENCH_FULL") or IN_TURN * count < len(others):
        return tuple(variant.architectures)
    turns = {others[(IN_TURN * place + i) % len(others)] for i in range(IN_TURN)} if others else set()
    return tuple(a for a in variant.architectures if a in HOPPER or a in turns)


@pytest.mark.parametrize(("file", "variant", "architectures"), _variants())
def test_a_variant_keeps_to_its_manifest(file, variant, architectures):
    variant, architectures = (variant, architectures) if variant else (manifest_of(file).variants[0], ())
    found = []
    for architecture in architectures:
        try:
            found += findings(compile_file(file, variant.defines.items(), architecture), variant)
        except ConvbenchError as error:
            found.append(str(error))
    assert not found, "\n".join(found)


def test_every_file_is_compiled_for_every_architecture_that_it_lists():
    compiled: dict[str, set[str]] = {}
    for parameter in _variants():
        file, _, architectures = parameter.values
        compiled.setdefault(file, set()).update(architectures)
    listed = {file: {a for v in manifest_of(file).variants for a in v.architectures} for file in kernel_files()}
    assert compiled == listed


def test_no_manifest_is_without_its_kernel_file():
    assert {path.stem for path in kernel_folder().glob("*.yaml")} == {Path(file).stem for file in kernel_files()}


# ---- the checks are alive

SUMS = r"""
extern "C" __global__ void __launch_bounds__(THREADS) sums(const float* x, float* y, int n) {
    float sum[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum[i] = x[i * THREADS + threadIdx.x];
    for (int k = 1; k < n; ++k) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sum[i] = fmaf(sum[i], x[k], sum[(i + 1) % COUNT]);
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) y[i * THREADS + threadIdx.x] = sum[i];
}
"""


def _check(folder: Path, source: str, architecture: str = "80", sass: dict | None = None, **limits: int) -> list[str]:
    (folder / "sums.cu").write_text(source)
    defines = {"COUNT": limits.pop("count", 32), "THREADS": limits.pop("threads", 256)}
    kernels = {"sums": Limits(**({"registers": 64} | limits))}
    variant = Variant(defines=defines, architectures=(architecture,), why="A test.", kernels=kernels, sass=sass or {})
    return findings(compile_file("sums.cu", defines.items(), architecture, folder), variant)


@pytest.mark.parametrize("architecture", ["75", "80", "90a", "120"])
def test_a_kernel_within_its_limits_passes(tmp_path, architecture):
    assert _check(tmp_path, SUMS, architecture, {architecture: {"sums": ["FFMA", "LDG.E"]}}) == []


@pytest.mark.parametrize("architecture", ["75", "80", "90a", "120"])
def test_more_registers_are_caught(tmp_path, architecture):
    (found,) = _check(tmp_path, SUMS, architecture, count=100)
    assert found.startswith(f"sm_{architecture}: sums: 1")
    assert found.endswith("registers, the manifest's limit is 64")


@pytest.mark.parametrize("architecture", ["75", "80", "90a", "120"])
def test_spills_are_caught(tmp_path, architecture):
    found = _check(tmp_path, SUMS, architecture, count=100, threads=1024)
    assert any("bytes spilled, the manifest's limit is 0" in sentence for sentence in found)
    assert any("bytes of stack, the manifest's limit is 0" in sentence for sentence in found)
    assert not _check(tmp_path, SUMS, architecture, count=100, threads=1024, spill_bytes=999, stack_bytes=999)


def test_an_array_in_local_memory_is_caught(tmp_path):
    source = SUMS.replace("sum[(i + 1) % COUNT]", "sum[(i + k) % COUNT]")
    assert any("bytes of stack" in sentence for sentence in _check(tmp_path, source))


def test_missing_instructions_are_caught(tmp_path):
    (found,) = _check(tmp_path, SUMS, sass={"80": {"sums": ["FFMA", "HMMA.16816.F32"]}})
    assert "sums: no HMMA.16816.F32; there are " in found
    assert "FFMA" in found
    assert _check(tmp_path, SUMS.replace("fmaf(sum[i], x[k],", "(sum[i] - x[k] +"), sass={"80": {"sums": ["FFMA"]}})


def test_kernels_that_the_manifest_does_not_list_are_caught(tmp_path):
    more = SUMS + 'extern "C" __global__ void __launch_bounds__(32) more(float* y) { y[0] = 1; }\n'
    (found,) = _check(tmp_path, more)
    assert found == "sm_80: kernels ['more', 'sums'], but the manifest lists ['sums']"


def test_kernels_without_launch_bounds_are_caught(tmp_path):
    (found,) = _check(tmp_path, SUMS.replace("__launch_bounds__(THREADS)", ""))
    assert found == "sm_80: sums: no __launch_bounds__"


def test_warnings_are_caught(tmp_path):
    (found, *_) = _check(tmp_path, SUMS.replace("{\n    float", "{\n    int unused; float", 1))
    assert 'variable "unused" was declared but never referenced' in found


def test_instructions_are_whole_words():
    assert is_instruction("LDGSTS.E.BYPASS.128", "LDGSTS")
    assert is_instruction("HMMA.16816.F32.BF16", "HMMA.16816.F32")
    assert not is_instruction("LDGSTS.E", "LDG")
    assert not is_instruction("HMMA.16816.F16", "HMMA.16816.F32")
