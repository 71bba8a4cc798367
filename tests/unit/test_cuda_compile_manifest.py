"""Manifests beside the kernel files: what they may say, what they complain about, which machine code a GPU takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from convbench import resources
from convbench.cuda import manifest
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.manifest import ARCHITECTURES, Limits, Variant, load, written
from convbench.errors import KernelError, OutputError

GOOD = """\
variants:
  - defines: {TILE: 64, TYPE: __half}
    architectures: [80, 90a]
    why: The instructions came with Ampere.
    kernels:
      gemm: {registers: 128, spill_bytes: 8}
      pack: {registers: 32}
    sass: {80: {gemm: [HMMA.16816.F32, LDSM]}, 90a: {gemm: [HGMMA]}}
  - kernels: {gemm: {registers: 64, stack_bytes: 16}}
"""


@pytest.fixture
def written_manifest(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "gemm.yaml"
        path.write_text(text)
        return path

    return write


def test_a_manifest_says_what_is_compiled_and_what_it_may_take(written_manifest):
    gemm = load(written_manifest(GOOD))
    assert gemm.file == "gemm.cu"
    first, second = gemm.variants
    assert first.defines == {"TILE": 64, "TYPE": "__half"}
    assert first.architectures == ("80", "90a")
    assert first.kernels == {"gemm": Limits(registers=128, spill_bytes=8), "pack": Limits(registers=32)}
    assert first.sass == {"80": {"gemm": ("HMMA.16816.F32", "LDSM")}, "90a": {"gemm": ("HGMMA",)}}
    assert (second.defines, second.architectures, second.sass) == ({}, ARCHITECTURES, {})
    assert second.kernels["gemm"] == Limits(registers=64, spill_bytes=0, stack_bytes=16)


def test_variants_are_found_by_their_macros_in_any_order(written_manifest):
    gemm = load(written_manifest(GOOD))
    assert gemm.variant([("TYPE", "__half"), ("TILE", 64)]) is gemm.variants[0]
    assert gemm.variant([]) is gemm.variants[1]
    wanted = r"gemm\.yaml lists no variant with TILE=64 TYPE=float; the nearest is TILE=64 TYPE=__half"
    with pytest.raises(KernelError, match=wanted):
        gemm.variant([("TILE", 64), ("TYPE", "float")])
    with pytest.raises(KernelError, match="lists no variant with TILE=64; "):
        gemm.variant([("TILE", 64)])


def _gpu(major: int, minor: int, features: str = "") -> Gpu:
    return Gpu("a GPU", (major, minor), 1, 1, 1, 1, features)


@pytest.mark.parametrize(
    ("architectures", "gpu", "expected"),
    [
        (ARCHITECTURES, H200, "90a"),
        (("75", "90"), H200, "90"),
        (ARCHITECTURES, A100, "80"),
        (ARCHITECTURES, T4, "75"),
        (ARCHITECTURES, _gpu(8, 7), "86"),
        (ARCHITECTURES, _gpu(12, 1), "120"),
        (("80", "90a"), _gpu(9, 0), None),  # without the features of 90a
        (("86",), A100, None),  # machine code of a later GPU
        (("80",), H200, None),  # of another generation
    ],
)
def test_a_gpu_takes_its_own_code_or_earlier_code_of_its_generation(architectures, gpu, expected):
    variant = Variant(architectures=architectures, why="A test.", kernels={"gemm": Limits(registers=1)})
    assert variant.architecture_for(gpu) == expected


def test_a_gpu_that_a_variant_is_not_made_for_is_told_why(written_manifest):
    gemm = load(written_manifest(GOOD))
    message = r"gemm\.cu with TILE=64 TYPE=__half is not made for sm_75 \(NVIDIA T4\), but for 80, 90a"
    with pytest.raises(KernelError, match=message) as raised:
        gemm.architecture_for(gemm.variants[0].defines.items(), T4)
    assert "(The instructions came with Ampere): choose another" in str(raised.value)
    assert gemm.architecture_for([], T4) == "75"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("spill_bytes", "spil_bytes", r"line 6: .*unknown key 'spil_bytes'; the keys here are .*spill_bytes"),
        ("variants:", "varients:", r"unknown key 'varients'.*variants"),
        ("    why: ", "    because: ", r"line 4: variants\[0\]\.because: unknown key 'because'"),
        ("    why: The instructions came with Ampere.\n", "", r"`why` must say in a sentence why 75, 86, 89, 90, 100"),
        ("[80, 90a]", "[80, 70]", r"line 3: .*must be one of 75, 80.*not 70"),
        ("[80, 90a]", "[]", r"line 3: .*the list is empty"),
        ("{80: {gemm", "{86: {gemm", r"sass names 86, which is not among the architectures"),
        ("{80: {gemm", "{80: {gems", r"sass names gems, which is not among the kernels"),
        ("registers: 128", "registers: 256", r"line 6: .*less than or equal to 255"),
        ("registers: 128, ", "", r"line 6: .*the key 'registers' is missing"),
        ("TILE: 64", "TILE: 6.4", r"line 2: .*a whole number or a word, not 6\.4"),
        ("TILE: 64", "2D: 64", r"line 2: variants\[0\]\.defines\.2D: not the name of a macro"),
        ("TILE: 64", "TILE: 64, TILE: 32", r"line 2: duplicate key 'TILE'"),
        ("  - kernels", "  - defines: {TYPE: __half, TILE: 64}\n    kernels", r"line 9: .*is listed twice: keep one"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(written_manifest, before, after, message):
    assert before in GOOD
    with pytest.raises(KernelError, match=message) as raised:
        load(written_manifest(GOOD.replace(before, after, 1)))
    assert "gemm.yaml" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"cannot read .*none\.yaml"):
        load(tmp_path / "none.yaml")
    with pytest.raises(KernelError, match=r"none\.cu: there is no manifest .*none\.yaml: list its variants there"):
        manifest.manifest_of("none.cu", tmp_path)


def test_macros_as_text():
    assert written({}) == "no macros"
    assert written({"TILE": 64, "STAGES": 3}) == "STAGES=3 TILE=64"


def test_kernels_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert (manifest.kernel_folder() / "include" / "conv.cuh").is_file()
    package = tmp_path / "convbench"
    monkeypatch.setattr(resources, "PACKAGE", package)
    with pytest.raises(OutputError, match=r"convbench's kernels are neither in .*_kernels nor in .*kernels"):
        manifest.kernel_folder()
    (package / "_kernels" / "cuda").mkdir(parents=True)
    (package / "_kernels" / "cuda" / "one.cu").write_text("")
    assert manifest.kernel_folder() == package / "_kernels" / "cuda"
    assert manifest.kernel_files() == ["one.cu"]
