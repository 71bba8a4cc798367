"""Convolution of signs on tensor cores and by POPC, emulated: packing, the padding's share, scales, edges of values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms.binary_popc_cuda import SWEPT, TILES
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.model import PEAKS, efficiency, predict
from convbench.cuda.program import Program
from convbench.devices.arrays import poison
from convbench.problem import LAYOUTS, ConvShape, Problem
from convbench.verify import Verifier
from convbench.verify.inputs import to_logical
from tests.cuda_on_cpu.build import KERNELS
from tests.cuda_on_cpu.emulated import EmulatedContext, EmulationError, SanitizerError

ALL = catalog.load().implementations
NAMES = ("binary_popc_cuda", "xnor_popc_cuda")
make = ConvShape.make
SHAPES = {
    "past_tiles": make(1, 160, 7, 10, 72, 3, 3, padding=1),
    "many_words": make(1, 1000, 3, 4, 70, 3, 3, padding=1),
    "one_channel": make(2, 1, 9, 9, 5, 5, 5, padding=2),
    "stride_dilation": make(1, 34, 20, 22, 32, 3, 2, stride=(2, 3), padding=((3, 2), (0, 4)), dilation=(2, 3)),
    "grouped": make(2, 96, 4, 9, 40, 3, 3, padding=1, groups=2),
    "filter_over_all": make(1, 5, 3, 2, 7, 7, 6, padding=((3, 3), (3, 4))),
    "windows_in_the_padding": make(1, 3, 2, 2, 4, 2, 2, padding=((5, 5), (4, 6)), dilation=2),
    "pointwise": make(3, 130, 5, 5, 65, 1, 1, stride=2),
}


def problem_of(name: str, shape: ConvShape, layout: str = "nhwc") -> Problem:
    return Problem(shape, layout=layout, semantics=ALL[name].semantics)


def operands(problem: Problem, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Normal numbers; some are 0, some -0."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (problem.a_shape, problem.b_shape)]
    for array in arrays:
        array[rng.random(array.shape) < 0.1] = 0.0
        array[rng.random(array.shape) < 0.1] *= -1
    return arrays[0], arrays[1]


def expected(problem: Problem, a: np.ndarray, b: np.ndarray, scaled: bool) -> np.ndarray:
    """As XNOR-Net defines it, window by window in Python's and NumPy's float64, in (N, K, P, Q)."""
    s = problem.shape
    x, w = (to_logical(array, problem.layout).astype(np.float64) for array in (a, b))
    signs_x, signs_w = np.where(x >= 0, 1, -1), np.where(w >= 0, 1, -1)
    y = np.zeros((s.n, s.k, s.p, s.q))
    for n, k, p, q in np.ndindex(y.shape):
        channels = slice(k // s.kg * s.cg, (k // s.kg + 1) * s.cg)
        window = 0.0
        for r, t in itertools.product(range(s.r), range(s.s)):
            i = p * s.stride[0] - s.padding[0] + r * s.dilation[0]
            j = q * s.stride[1] - s.padding[2] + t * s.dilation[1]
            if 0 <= i < s.h and 0 <= j < s.w:
                y[n, k, p, q] += signs_x[n, channels, i, j] @ signs_w[k, :, r, t]
                window += np.abs(x[n, channels, i, j]).mean()
        if scaled:
            y[n, k, p, q] *= np.abs(w[k]).mean() * window / (s.r * s.s)
    return y


def computed(name: str, problem: Problem, a: np.ndarray, b: np.ndarray, gpu: Gpu = H200, order: int = 0) -> np.ndarray:
    out = np.empty(problem.out_shape, np.float32)
    poison(out)
    ALL[name].prepare(problem, EmulatedContext(gpu=gpu, order=order))(a, b, out)
    return to_logical(out, problem.layout)


@pytest.mark.parametrize("gpu", [H200, T4], ids=["tensor cores", "popc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_defined(shape: str, gpu: Gpu) -> None:
    for order, (name, layout) in enumerate(itertools.product(NAMES, LAYOUTS)):
        problem = problem_of(name, SHAPES[shape], layout)
        a, b = operands(problem)
        got, want = computed(name, problem, a, b, gpu, order), expected(problem, a, b, name.startswith("xnor"))
        if name.startswith("xnor"):
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=0)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_verified_where_popc_counts_and_weights_are_packed(name: str, layout: str) -> None:
    problem = problem_of(name, make(1, 33, 6, 5, 9, 3, 3, padding=1), layout)
    for gpu, weights in itertools.product((H200, T4), ("raw", "packed")):
        plan, verdict = Verifier(problem).verify(ALL[name], lambda gpu=gpu: EmulatedContext(gpu=gpu), weights)
        assert plan is not None, verdict.reason


@pytest.mark.parametrize("layout", LAYOUTS)
def test_signs_of_special_values(layout: str) -> None:
    """+1: 0, -0, denormals, infinity; -1: NaN and all below 0."""
    values = np.array([0.0, -0.0, np.inf, 1e-45, -1e-45, -np.inf, np.nan, -1.0], np.float32)
    signs = [1, 1, 1, 1, -1, -1, -1, -1]
    problem = problem_of("binary_popc_cuda", make(1, 1, 8, 1, 1, 1, 1), layout)
    one = np.ones(problem.b_shape, np.float32)
    assert computed("binary_popc_cuda", problem, values.reshape(problem.a_shape), one).ravel().tolist() == signs
    problem = problem_of("binary_popc_cuda", make(1, 1, 1, 1, 8, 1, 1), layout)
    one = np.ones(problem.a_shape, np.float32)
    assert computed("binary_popc_cuda", problem, one, values.reshape(problem.b_shape)).ravel().tolist() == signs


@pytest.mark.parametrize("name", NAMES)
def test_every_tile(name: str) -> None:
    problem = problem_of(name, make(1, 160, 7, 20, 150, 1, 2))
    a, b = operands(problem)
    want = expected(problem, a, b, name.startswith("xnor"))
    for tile, order in itertools.product(TILES + SWEPT, (0, 3)):
        program = ALL[name]._program(problem, tile, H200)
        out = np.empty(problem.out_shape, np.float32)
        EmulatedContext(order=order).bind(program)(a, b, out)
        np.testing.assert_allclose(to_logical(out, "nhwc"), want, rtol=2e-6, atol=0)
    assert set(ALL[name].alternatives(problem, H200)) == {"128x128", "128x64"}
    assert not ALL[name].alternatives(problem, T4)


def test_programs_by_gpu() -> None:
    large = problem_of("binary_popc_cuda", make(32, 256, 28, 28, 256, 3, 3, padding=1))

    def macros(problem: Problem, gpu: Gpu) -> dict[str, int | str]:
        return dict(ALL["binary_popc_cuda"].program(problem, gpu).steps[-1].defines)

    small = Gpu("RTX 4090", (8, 9), 128, 72 << 20, 99 << 10, 24 * 10**9)
    chosen = [(m["BLOCK_M"], m.get("POPC")) for m in (macros(large, gpu) for gpu in (H200, A100, small, T4))]
    assert chosen == [(128, None), (128, None), (64, None), (64, 1)]
    assert macros(problem_of("binary_popc_cuda", make(1, 256, 7, 7, 256, 3, 3)), H200)["BLOCK_M"] == 64
    program = ALL["binary_popc_cuda"].program(large, H200)
    assert not program.reads_filter()  # packed plans keep the signs alone
    signs = program.workspace["signs"].nbytes
    assert 32 * signs == 4 * 32 * 28 * 28 * 256 * 4 / 4  # a bit for each float


def test_what_cannot_be_computed_is_said() -> None:
    deep = make(1, 2**24 + 1, 1, 1, 1, 1, 1)
    why = ALL["binary_popc_cuda"].why_not(problem_of("binary_popc_cuda", deep)) or ""
    assert "sums of more than 2^24 signs may be no float32 numbers, these have 16777217" in why
    assert ALL["xnor_popc_cuda"].why_not(problem_of("xnor_popc_cuda", deep)) is None
    wide = make(1, 1, 1, 1, 2**30, 1, 1)
    assert "(R + 1) (S + 1) K" in (ALL["xnor_popc_cuda"].limits(problem_of("xnor_popc_cuda", wide)) or "")


def test_predicted_below_the_peak_of_bits() -> None:
    problem = problem_of("binary_popc_cuda", make(32, 512, 28, 28, 512, 3, 3, padding=1))
    row = ALL["binary_popc_cuda"]
    for gpu, kind in ((H200, 0.20), (T4, 0.04)):
        program, flops = row.program(problem, gpu), row.executed_flops(problem)
        assert efficiency(program.steps[-1], "bit") == kind
        predicted = predict(program, problem, flops, row.arithmetic, gpu, lambda launch: None)
        _, pack, product = predicted.steps
        assert (pack.name, product.name) == ("pack_signs_nhwc", "implicit_gemm_mma")
        assert product.compute >= problem.direct_flops / (kind * PEAKS[gpu.name].bit)
        assert pack.memory >= 4 * 32 * 28 * 28 * 512 / PEAKS[gpu.name].memory and pack.bound == "memory"


# ---- the kernels with a bug each

BENT = make(1, 600, 6, 5, 46, 3, 4, padding=1, groups=2)  # ten words of channels, more than a block packs at once
PRODUCT, PACK, HEADER = "implicit_gemm_mma.cu", "pack_signs.cu", "include/signs.cuh"
#: Bug -> file, what is replaced by what, and what each variant says.
BUGS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "0 has no sign": (PACK, "exists && value >= 0.0f", "exists && value > 0.0f", {"plain 0": "wrong"}),
    "0 has no sign, nchw": (PACK, "(*at >= 0.0f) << bit", "(*at > 0.0f) << bit", {"plain nchw": "wrong"}),
    "a channel that does not exist counts": (
        PACK, "channels - channel)", "channels - channel + 1)", {"address nchw": "heap-buffer-overflow"}),
    "padding counts as -1": (
        HEADER, "window.above = r.x > 0 ? table_at(f, r.x, s.y) : 0;", "", {"plain 0": "wrong"}),
    "corners are taken away twice": (
        HEADER, "column[window.before] - column[window.above]", "-column[window.above]", {"plain 0": "wrong"}),
    "all taps count": (
        HEADER, "(r.y - r.x) * (s.y - s.x)", "f.r * f.s", {"plain 0": "wrong"}),
    "bits are counted once": (HEADER, "+ 4 * common[j]", "+ 2 * common[j]", {"plain 0": "wrong"}),
    "no barrier before words are written": (
        PACK, "        words[lane][warp] = word;\n        __syncthreads();", "        words[lane][warp] = word;",
        {"plain nchw": "wrong", "thread nchw": "data race"}),
    "no barrier before words are written anew": (
        PACK, "words[pixel][lane % 8];\n        __syncthreads();", "words[pixel][lane % 8];",
        {"thread nchw": "data race"}),
    "no barrier between rows and columns of the table": (
        PACK, "    __syncthreads();\n    for (int s = thread + 1", "    for (int s = thread + 1",
        {"thread 0": "data race"}),
    "scales of the first group": (
        PRODUCT, "scales + product.group * size_n", "scales", {"plain 0": "wrong"}),
    "the mean of the window is that of its pixels inside": (
        HEADER, "sum / (float)(f.r * f.s)", "sum / (float)((r.y - r.x) * (s.y - s.x))", {"plain 0": "wrong"}),
}  # fmt: skip


def outcome(program: Program, problem: Problem, variant: str, want: np.ndarray) -> str:
    """right, wrong, or what was said."""
    sanitizer = variant.split()[0]
    out = np.empty(problem.out_shape, np.float32)
    poison(out)
    try:
        EmulatedContext(order=1, sanitizer=sanitizer).bind(program)(*operands(problem), out)
    except (EmulationError, SanitizerError) as found:
        return str(found)
    right = np.allclose(to_logical(out, problem.layout), want, rtol=2e-6, atol=0)
    return "right" if right else "wrong"


def bent(folder: Path, program: Program) -> Program:
    """The program with kernels from a folder of its own."""
    steps, filter_steps = (
        tuple(replace(step, file=str(folder / step.file)) for step in steps)
        for steps in (program.steps, program.filter_steps)
    )
    return Program(steps, filter_steps, program.workspace)


def with_change(folder: Path, file: str, old: str, new: str) -> None:
    (folder / "include").mkdir()
    for name in (PRODUCT, PACK, HEADER):
        text = (KERNELS / name).read_text()
        assert name != file or text.count(old) == 1
        (folder / name).write_text(text.replace(old, new) if name == file else text)
    if file == HEADER:  # found before the project's own
        (folder / "include" / "signs.cuh").rename(folder / "signs.cuh")


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_caught(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    file, old, new, said_by = BUGS[name]
    with_change(tmp_path, file, old, new)
    said = {}
    for variant in said_by:
        problem = problem_of("xnor_popc_cuda", BENT, "nchw" if "nchw" in variant else "nhwc")
        want = expected(problem, *operands(problem), True)
        program = bent(tmp_path, ALL["xnor_popc_cuda"].program(problem, H200))
        said[variant] = outcome(program, problem, variant, want)
    record_property("emulated_bug", (f"signs: {name}", said))
    for variant, word in said_by.items():
        assert word in said[variant], (variant, said[variant])


def test_without_a_bug_nothing_is_found(tmp_path: Path) -> None:
    with_change(tmp_path, PACK, "#define WARPS 8", "#define WARPS 8")
    for variant in ("plain nhwc", "plain nchw", "thread nhwc", "thread nchw", "address nhwc", "address nchw"):
        problem = problem_of("xnor_popc_cuda", BENT, variant.split()[1])
        want = expected(problem, *operands(problem), True)
        assert outcome(bent(tmp_path, ALL["xnor_popc_cuda"].program(problem, H200)), problem, variant, want) == "right"


def test_shared_memory_that_is_short_is_noticed() -> None:
    problem = problem_of("xnor_popc_cuda", BENT)
    program = ALL["xnor_popc_cuda"].program(problem, H200)
    pack, product = program.steps
    missing = 24 * (64 - BENT.p * BENT.q + 1)  # the last pixel's window
    short = replace(program, steps=(pack, replace(product, shared_bytes=product.shared_bytes - missing)))
    said = outcome(short, problem, "plain", expected(problem, *operands(problem), True))
    assert "after the end of dynamic shared memory" in said
