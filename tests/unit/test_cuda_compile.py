"""NVRTC without a GPU: what the compiler says of a kernel, its errors, the cache, cubins carried to another machine."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from convbench.cuda import compile as compiler
from convbench.cuda import cubin, manifest, nvrtc
from convbench.cuda.compile import Failure, compile_file, compile_for, compile_matrix, main, store
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.manifest import ARCHITECTURES, Limits, Variant
from convbench.cuda.program import Launch
from convbench.errors import KernelError, OutputError, Unavailable

AXPY = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "conv.cuh"
#include "mine.cuh"
#ifndef THREADS
#define THREADS 128
#endif
extern "C" __global__ void __launch_bounds__(THREADS)
axpy(const float* __restrict__ x, float* y, Conv f, int n, long long offset, float a) {
    __shared__ float stage[THREADS];
    const int i = blockIdx.x * THREADS + threadIdx.x;
    stage[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) y[i + offset] = fmaf(a, stage[THREADS - 1 - threadIdx.x], y[i + offset]) + f.groups + MINE;
}
extern "C" __global__ void twice(__half* x) { x[threadIdx.x] = __hadd(x[threadIdx.x], x[threadIdx.x]); }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Kernels of this test's own, and a cache of its own."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "axpy.cu").write_text(AXPY)
    (tmp_path / "kernels" / "mine.cuh").write_text("#define MINE 1\n")
    monkeypatch.setattr(compiler, "_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "kernels"


@pytest.fixture
def compilations(monkeypatch) -> list[str]:
    """Names of the programs that NVRTC was given since."""
    names: list[str] = []
    real = nvrtc.compile_program

    def counted(source: str, name: str, options: list[str]) -> nvrtc.Compilation:
        names.append(name)
        return real(source, name, options)

    monkeypatch.setattr(nvrtc, "compile_program", counted)
    return names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_kernel_takes_is_known_on_every_architecture(folder, architecture):
    built = compile_file("axpy.cu", [("THREADS", 64)], architecture, folder)
    axpy = built.kernel("axpy")
    assert axpy.parameters == (8, 8, 64, 4, 8, 4)  # pointer, pointer, Conv, int, long long, float
    assert (axpy.max_threads, axpy.shared, axpy.barriers) == (64, 256, 1)
    assert 8 <= axpy.registers <= 40
    assert axpy.spill_bytes == axpy.stack == 0
    assert (built.kernel("twice").parameters, built.kernel("twice").max_threads) == ((8,), 0)
    assert built.cubin.startswith(b"\x7fELF")
    assert built.warnings == []


def test_instructions_are_counted_by_kernel(folder):
    code = cubin.opcodes(compile_file("axpy.cu", (), "80", folder).cubin)
    assert set(code) == {"axpy", "twice"}
    assert code["axpy"]["FFMA"] == 1
    assert code["axpy"]["BAR.SYNC.DEFER_BLOCKING"] == 1  # behind a predicate on no architecture, in braces on some
    assert any(name.startswith("HADD2") for name in code["twice"])
    assert "FFMA" not in code["twice"]


def test_a_kernel_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(KernelError, match=r"axpy\.cu has no kernel thrice, but axpy, twice"):
        compile_file("axpy.cu", (), "80", folder).kernel("thrice")


# ---- the cache


def test_a_second_time_it_comes_out_of_the_cache(folder, compilations):
    first = compile_file("axpy.cu", [("THREADS", 64), ("Z", 1)], "80", folder)
    second = compile_file("axpy.cu", [("Z", 1), ("THREADS", 64)], "80", folder)
    assert len(compilations) == 1
    assert (second, second.cubin) == (first, first.cubin)


@pytest.mark.parametrize("change", ["file", "included", "define", "architecture", "compiler"])
def test_whatever_shapes_the_code_makes_another_cubin(folder, compilations, monkeypatch, change):
    before = compile_file("axpy.cu", (), "80", folder)
    defines, architecture = [("THREADS", 32)] if change == "define" else [], "86" if change == "architecture" else "80"
    if change == "file":
        (folder / "axpy.cu").write_text(AXPY + "\n// a comment\n")
    elif change == "included":
        (folder / "mine.cuh").write_text("#define MINE 2\n")
    elif change == "compiler":
        monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    after = compile_file("axpy.cu", defines, architecture, folder)
    assert len(compilations) == 2
    assert after.path != before.path


@pytest.mark.parametrize("damage", ["cubin", "facts", "lost"])
def test_a_damaged_entry_is_compiled_again(folder, compilations, damage):
    built = compile_file("axpy.cu", (), "80", folder)
    code = built.cubin
    if damage == "cubin":
        built.path.write_bytes(code[:-1])
    elif damage == "facts":
        built.path.with_suffix(".json").write_text("{}")
    else:
        built.path.unlink()
    assert compile_file("axpy.cu", (), "80", folder).cubin == code
    assert len(compilations) == 2


def test_carried_cubins_need_no_compiler(folder, tmp_path, monkeypatch):
    built = compile_file("axpy.cu", (), "90a", folder)
    store(built, tmp_path / "carried")
    monkeypatch.setenv(compiler.CARRIED, str(tmp_path / "carried"))

    def missing() -> tuple[int, int]:
        raise Unavailable("no NVRTC here")

    monkeypatch.setattr(nvrtc, "version", missing)
    there = compile_file("axpy.cu", (), "90a", folder)
    assert there.path.parent == tmp_path / "carried"
    assert (there.cubin, there.kernels) == (built.cubin, built.kernels)
    with pytest.raises(Unavailable, match="no NVRTC here"):  # sources that have changed since
        (folder / "mine.cuh").write_text("#define MINE 2\n")
        compile_file("axpy.cu", (), "90a", folder)


def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path):
    built = compile_file("axpy.cu", (), "80", folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write machine code to .*file"):
        store(built, tmp_path / "file")


# ---- errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'extern "C" __global__ void __launch_bounds__((2 + 1) * 32, 2) first(float* x) { x[0] = 1; }\n'
            'extern "C" __global__ void\n__launch_bounds__(32)\nsecond(float* x) {\n    if (x[0] > min(1.0f, 2.0f))\n'
            "        x[0] = unheard_of(1); }\n",
            r"kernels/cuda/wrong\.cu, line 6, kernel second: identifier \"unheard_of\" is undefined \(A=1, sm_80\)",
        ),
        ('#include "nowhere.cuh"\n', r"wrong\.cu, line 1: cannot open source file \"nowhere\.cuh\""),
        (
            'extern "C" __global__ void vast(float* x) { __shared__ float s[99999]; s[threadIdx.x] = x[0]; '
            "__syncthreads(); x[threadIdx.x] = s[99 - threadIdx.x]; }\n",
            r"kernels/cuda/wrong\.cu: .*vast.* uses too much shared data",
        ),
    ],
    ids=["source", "include", "assembler"],
)
def test_an_error_names_file_line_kernel_and_what_to_do(folder, source, message):
    (folder / "wrong.cu").write_text(source)
    with pytest.raises(KernelError, match=message) as raised:
        compile_file("wrong.cu", [("A", 1)], "80", folder)
    assert "mend the kernel, or the manifest's variant" in str(raised.value)


def test_an_error_in_a_header_names_the_header(folder):
    (folder / "mine.cuh").write_text("\n#define MINE\n__device__ int broken() { return ; 1 + }\n")
    with pytest.raises(KernelError, match=r"mine\.cuh, line 3: .*expected"):
        compile_file("axpy.cu", (), "80", folder)


def test_other_mistakes_are_sentences(folder):
    with pytest.raises(KernelError, match=r"there is no kernel file .*nothing\.cu"):
        compile_file("nothing.cu", (), "80", folder)
    with pytest.raises(KernelError, match=r"sm_70.*NVRTC refuses its options"):
        compile_file("axpy.cu", (), "70", folder)
    with pytest.raises(ValueError, match="not a cubin"):
        cubin.signatures(b"something else")


def test_warnings_are_kept(folder):
    (folder / "odd.cu").write_text('extern "C" __global__ void odd(float* x) { int unused; x[0] = 1; }\n')
    (warning, *_) = compile_file("odd.cu", (), "80", folder).warnings
    assert 'variable "unused" was declared but never referenced' in warning


class _NotFound(Exception):
    pass


def _finder() -> types.SimpleNamespace:
    def no_library(name: str) -> None:
        raise _NotFound(name)

    return types.SimpleNamespace(
        DynamicLibNotFoundError=_NotFound,
        load_nvidia_dynamic_lib=no_library,
        find_nvidia_header_directory=lambda component: None,
        find_nvidia_binary_utility=lambda name: None,
    )


def test_what_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(nvrtc, "_pathfinder", _finder)
    with pytest.raises(Unavailable, match=r"needs NVRTC \(libnvrtc\): pip install 'convbench\[cuda\]'"):
        nvrtc._library.__wrapped__()
    with pytest.raises(Unavailable, match=r"headers \(cuda_fp16\.h\): pip install 'convbench\[cuda\]'"):
        nvrtc.include_folders.__wrapped__()
    with pytest.raises(Unavailable, match=r"needs nvdisasm: pip install 'convbench\[dev\]'"):
        nvrtc.disassembler.__wrapped__()


def test_without_pathfinder_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(Unavailable, match=r"needs cuda-pathfinder: pip install 'convbench\[cuda\]'"):
        nvrtc._pathfinder()


def test_the_compiler_knows_every_architecture_of_the_project():
    assert {int(a.rstrip("a")) for a in ARCHITECTURES} <= set(nvrtc.architectures())


# ---- launches and the command


@pytest.fixture
def project(folder, monkeypatch) -> Path:
    """The test's folder in place of kernels/cuda."""
    (folder / "include").mkdir()
    for module in (compiler, manifest):
        monkeypatch.setattr(module, "kernel_folder", lambda: folder)
    manifest.manifest_of.cache_clear()
    (folder / "include" / "conv.cuh").write_text("struct Conv { int groups; };\n")
    text = "variants:\n  - {defines: {THREADS: 64}, kernels: {axpy: {registers: 40}, twice: {registers: 20}}}\n"
    (folder / "axpy.yaml").write_text(text)
    yield folder
    manifest.manifest_of.cache_clear()


def _launch(kernel: str = "axpy", threads: int = 64) -> Launch:
    return Launch("axpy.cu", kernel, (1, 1, 1), (threads, 1, 1), (), defines=(("THREADS", threads),))


def test_a_launch_is_compiled_for_its_gpu(project):
    assert [compile_for(_launch(), gpu).architecture for gpu in (H200, A100, T4)] == ["90a", "80", "75"]
    assert compile_for(_launch(), Gpu("Jetson Orin", (8, 7), 16, 4 << 20, 163 << 10, 32 * 10**9)).architecture == "86"
    with pytest.raises(KernelError, match="has no kernel thrice"):
        compile_for(_launch("thrice"), H200)
    with pytest.raises(KernelError, match="lists no variant with THREADS=96"):
        compile_for(_launch(threads=96), H200)


def test_the_command_prints_the_table_and_writes_cubins(project, tmp_path, capsys):
    assert main(["--architectures", "80", "90a", "--file", "axpy.cu", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "axpy.cu, THREADS=64" in out
    assert "2 compiled, 0 failed" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("  axpy"))
    assert row[1] == "256"  # shared bytes
    assert all(8 <= int(registers) <= 40 for registers in row[3:])
    assert len(list((tmp_path / "out").glob("axpy-sm_*.cubin"))) == 2
    assert not list((tmp_path / "out").glob("*nvrtc*"))


def test_the_command_says_what_fails(project, capsys):
    (project / "mine.cuh").write_text("#define MINE nothing\n")
    assert main(["--architectures", "80"]) == KernelError.exit_code
    out = capsys.readouterr().out
    assert 'identifier "nothing" is undefined' in out
    assert "0 compiled, 1 failed" in out
    assert main(["--file", "axpi"]) == KernelError.exit_code
    assert "there is no kernel file axpi" in capsys.readouterr().err


def test_the_matrix_leaves_out_what_a_variant_does_not_list(project):
    variant = Variant(architectures=("80", "90"), why="a test", kernels={"axpy": Limits(registers=40)})
    ((file, _, results),) = compile_matrix([("axpy.cu", variant)], ("75", "80", "90"), jobs=2)
    assert (file, list(results)) == ("axpy.cu", ["80", "90"])
    assert not any(isinstance(r, Failure) for r in results.values())
