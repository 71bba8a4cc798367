"""int8 on tensor cores, emulated: implicit_gemm_int8_cuda's tiles, parts and edges; its instructions one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms._implicit_gemm_cuda import Cut
from convbench.cuda.gpu import A100, H200, T4
from convbench.cuda.model import predict
from convbench.cuda.program import Launch, Program
from convbench.devices.arrays import poison
from convbench.problem import INT8_PRODUCTS, LAYOUTS, ConvShape, Pass, Problem
from convbench.verify import Verifier
from convbench.verify.inputs import Recipe, make_inputs
from tests.cuda_on_cpu.build import KERNELS
from tests.cuda_on_cpu.emulated import EmulatedContext, EmulationError, SanitizerError, launch
from tests.cuda_on_cpu.exact import require_exact

ROW = catalog.load().implementations["implicit_gemm_int8_cuda"]
TILES = Path(__file__).parent / "probes" / "tiles.cu"
LANES = np.arange(32)
make = ConvShape.make
SHAPES = {
    "past_tiles": make(1, 40, 12, 13, 136, 3, 3, padding=1),
    "strided": make(2, 144, 11, 9, 24, 3, 3, stride=2, padding=1),
    "odd_channels": make(1, 17, 7, 8, 33, 3, 2, padding=1),
    "one_channel": make(2, 1, 9, 9, 5, 5, 5, padding=2),
    "stride_dilation": make(1, 16, 20, 22, 32, 3, 2, stride=(2, 3), padding=((3, 2), (0, 4)), dilation=(2, 3)),
    "grouped": make(2, 96, 8, 9, 80, 3, 3, padding=1, groups=2),
}


def problem_of(shape: ConvShape, pass_: Pass = Pass.FORWARD, layout: str = "nhwc") -> Problem:
    return Problem(shape, pass_, "int8", layout)


# ---- instructions


def fragments(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(32, 4) and (32, 2) registers of a (16, 32) and b (32, 8), of m16n8k32 in the tables of the PTX ISA."""
    four = np.arange(4)
    rows, columns = LANES[:, None] // 4, LANES[:, None] % 4 * 4 + four  # (32, 1), (32, 4)
    left = [a[rows + 8 * (i % 2), columns + 16 * (i // 2)] for i in range(4)]
    right = [b[columns + 16 * i, rows] for i in range(2)]
    pack = lambda parts: np.stack(parts, 1).astype(np.int8).view(np.uint32)[..., 0]  # noqa: E731
    return pack(left), pack(right)


@pytest.mark.parametrize("kernel", ["mma_s8_16832", "mma_s8_quarters"])
@pytest.mark.parametrize("order", [0, 1, 7])
def test_product_of_bytes_is_that_of_numpy(kernel: str, order: int) -> None:
    rng = np.random.default_rng(order)
    extreme = rng.choice([-128, 127], (16, 32))
    for a in (rng.integers(-128, 128, (16, 32)), extreme, np.full((16, 32), -128)):
        b = rng.integers(-128, 128, (32, 8)) if a is not extreme else rng.choice([-128, 127], (32, 8))
        d = rng.integers(-(2**30), 2**30, (16, 8))
        inside = np.stack([d[LANES // 4 + 8 * (i // 2), LANES % 4 * 2 + i % 2] for i in range(4)], 1).astype(np.int32)
        launch(TILES, f"run_{kernel}", (1, 1, 1), (32, 1, 1), [*fragments(a, b), inside], order=order)
        out = np.zeros_like(d)
        for i in range(4):
            out[LANES // 4 + 8 * (i // 2), LANES % 4 * 2 + i % 2] = inside[:, i]
        np.testing.assert_array_equal(out, d + a @ b)


# ---- the row


@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", SHAPES)
def test_sums_are_exact(name: str, pass_: Pass) -> None:
    for order, layout in enumerate(LAYOUTS):
        require_exact(ROW, problem_of(SHAPES[name], pass_, layout), order=order + 2 * (name == "grouped"))


@pytest.mark.parametrize("pass_", list(Pass))
def test_every_tile_in_parts(pass_: Pass) -> None:
    weights = pass_ is Pass.BACKWARD_WEIGHTS
    tiles = ROW.weights_tiles + ROW.swept_weights_tiles if weights else ROW.tiles + ROW.swept_tiles
    for tile, parts in itertools.product(tiles, (1, 3)):
        wide = tile.n + 24  # columns of the result
        shape = make(1, wide, 7, 19, 144, 1, 2) if pass_ is Pass.BACKWARD_DATA else make(1, 144, 7, 20, wide, 1, 2)
        problem = problem_of(shape, pass_)
        program = ROW._program(problem, Cut(tile, parts))
        assert {b.dtype for b in program.workspace.values()} <= {"int8", "int32"}
        require_exact(ROW.taking(program), problem, order=parts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_filters(layout: str) -> None:
    for pass_ in (Pass.FORWARD, Pass.BACKWARD_DATA):
        problem = problem_of(make(1, 16, 7, 6, 9, 3, 3, padding=1), pass_, layout)
        plan, verdict = Verifier(problem).verify(ROW, EmulatedContext, "packed")
        assert plan is not None, f"{problem}: {verdict.reason}"


@pytest.mark.parametrize("least", [True, False])
def test_the_longest_sum_of_the_largest_products(least: bool) -> None:
    problem = problem_of(make(1, INT8_PRODUCTS - 1, 1, 1, 2, 1, 1))
    a = np.full(problem.a_shape, -128, np.int8)
    b = np.full(problem.b_shape, -128 if least else 127, np.int8)
    out = np.empty(problem.out_shape, np.int32)
    poison(out)
    ROW.prepare(problem, EmulatedContext())(a, b, out)
    assert (out == (INT8_PRODUCTS - 1) * -128 * int(b.flat[0])).all()
    over = problem_of(make(1, INT8_PRODUCTS, 1, 1, 2, 1, 1))
    assert "may leave int32" in (ROW.why_not(over) or "")


def test_programs_by_gpu_and_by_shape() -> None:
    deep = problem_of(make(32, 256, 56, 56, 256, 3, 3, padding=1))

    def tile(problem: Problem, gpu: object) -> tuple[int, int]:
        (step,) = (s for s in ROW.program(problem, gpu).launches() if s.kernel.startswith("implicit_gemm_mma"))
        macros = dict(step.defines)
        return macros["BLOCK_M"], macros["BLOCK_N"]

    assert [tile(deep, gpu) for gpu in (H200, A100, T4)] == [(128, 256), (128, 128), (64, 64)]
    assert tile(replace(deep, pass_=Pass.BACKWARD_WEIGHTS), T4) == (64, 64)
    assert all(ROW.runs_on(gpu) for gpu in (H200, A100, T4))
    assert set(ROW.program(deep, H200).workspace) <= {"parts"}  # channels by 16 in nhwc are read where they lie
    odd = problem_of(make(1, 24, 8, 8, 16, 3, 3))
    assert set(ROW.program(odd, H200).workspace) >= {"a_channels_last", "filter"}
    assert ROW.executed_flops(odd)["multiply"] >= odd.direct_flops * 32 / 24


def test_alternatives_compute_the_same() -> None:
    for pass_ in Pass:
        problem = problem_of(make(1, 64, 5, 6, 72, 3, 3, padding=1), pass_)
        others = ROW.alternatives(problem, H200)
        assert "128x64" in {name.partition(" split ")[0] for name in others}
        for program in others.values():
            require_exact(ROW.taking(program), problem)


def test_predicted_below_the_peak_of_int8() -> None:
    problem = problem_of(make(32, 256, 56, 56, 256, 3, 3, padding=1))
    program, flops = ROW.program(problem, H200), ROW.executed_flops(problem)
    seconds = predict(program, problem, flops, ROW.arithmetic, H200, lambda launch: None).seconds
    assert 198e12 < problem.direct_flops / seconds < 1979e12


# ---- the kernels with a bug each

FORWARD, WEIGHTS = "implicit_gemm_mma.cu", "implicit_gemm_mma_weights.cu"
#: Bug -> file, what is replaced by what, and what each variant says: "right", "wrong", or part of a message.
BUGS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "results of whole bytes": (
        FORWARD, "16 / (int)sizeof(Result)) == 0;", "4) == 0 || true;", {"plain 0": "not aligned"}),
    "sums of a part at the place of another": (
        FORWARD, "parts += blockIdx.y * out_elements;", "", {"plain 0": "wrong"}),
    "channels of a pair exchanged in one operand": (
        WEIGHTS, "a[to][i][1] = __byte_perm(pairs[0], pairs[1], 0x7531);",
        "a[to][i][1] = __byte_perm(pairs[0], pairs[1], 0x6420);", {"plain 0": "wrong"}),
    "pixels of one operand in another order": (
        WEIGHTS, "b[to][j][1] = __byte_perm(pairs[2], pairs[3], 0x6420);",
        "b[to][j][1] = __byte_perm(pairs[3], pairs[2], 0x6420);", {"plain 0": "wrong"}),
    "columns that are not neighbours": (
        WEIGHTS, "values[j] = sums[i / 2][2 * g + j % 2][i % 2 * 2 + j / 2];",
        "values[j] = sums[i / 2][2 * g + j / 2][i % 2 * 2 + j % 2];", {"plain 0": "wrong"}),
    "rows of 64 channels swizzled as if they were longer": (
        WEIGHTS, "PITCH / CHUNK < 8 ? row / 2 % 4 : row % 8", "row % 8", {"plain 0": "wrong"}),
    "stages of 32 pixels": (WEIGHTS, "#define BLOCK_K (4 * CHUNK)", "#define BLOCK_K 32", {"plain 0": "wrong"}),
}  # fmt: skip


def outcome(file: str, path: Path, variant: str) -> str:
    """right, wrong, or what was said; small tiles, 23 filters in nhwc, the sum in two parts."""
    sanitizer, order = variant.split()
    pass_ = Pass.BACKWARD_WEIGHTS if file == WEIGHTS else Pass.FORWARD
    problem = problem_of(make(1, 80, 9, 17, 23, 1, 2), pass_)
    tile = (ROW.weights_tiles if pass_ is Pass.BACKWARD_WEIGHTS else ROW.tiles)[-1]
    program = ROW._program(problem, Cut(tile, 2))
    steps = tuple(
        replace(s, file=str(path)) if isinstance(s, Launch) and s.file == file else s for s in program.steps
    )
    a, b = make_inputs(problem, Recipe("whole", 1, 2))
    results = []
    for chosen in (program, Program(steps, program.filter_steps, program.workspace)):
        out = np.empty(problem.out_shape, np.int32)
        poison(out)
        try:
            EmulatedContext(order=int(order), sanitizer=sanitizer).bind(chosen)(a, b, out)
        except (EmulationError, SanitizerError) as found:
            return str(found)
        results.append(out)
    return "right" if np.array_equal(*results) else "wrong"


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_caught(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    file, old, new, want = BUGS[name]
    text = (KERNELS / file).read_text()
    assert text.count(old) == 1
    path = tmp_path / file
    path.write_text(text.replace(old, new))
    said = {variant: outcome(file, path, variant) for variant in want}
    record_property("emulated_bug", (f"int8: {name}", said))
    for variant, word in want.items():
        assert word in said[variant], (variant, said[variant])


def test_without_a_bug_nothing_is_found() -> None:
    for file in (FORWARD, WEIGHTS):
        assert {outcome(file, KERNELS / file, f"plain {order}") for order in range(4)} == {"right"}
