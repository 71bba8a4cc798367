"""implicit_gemm by TMA and wgmma, emulated: tiles, parts, limits, and the kernel itself with a bug each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms import implicit_gemm_tma_cuda as rows
from convbench.algorithms._implicit_gemm_cuda import Cut
from convbench.cuda.gpu import A100, H200
from convbench.cuda.model import efficiency, predict
from convbench.cuda.program import Program
from convbench.devices.arrays import poison, widened
from convbench.problem import ConvShape, Pass, Problem
from convbench.verify.inputs import integer_recipe, make_inputs
from tests.cuda_on_cpu.build import KERNELS
from tests.cuda_on_cpu.emulated import EmulatedContext, EmulationError, SanitizerError
from tests.cuda_on_cpu.exact import require_exact
from tests.cuda_on_cpu.rows import accept

ALL = catalog.load().implementations
NAMES = ("fp16", "bf16")
ROWS = {name: ALL[f"implicit_gemm_tma_{name}_cuda"] for name in NAMES}
TILE = next(tile for tile in ROWS["fp16"].tiles if (tile.m, tile.n) == (128, 128))
make = ConvShape.make
#: Rows and columns past one tile, channels that 64 and 8 do not divide, every parameter of the bounding box.
SHAPES = {
    "past_tiles": make(1, 40, 12, 13, 136, 3, 3, padding=1),
    "strided": make(2, 72, 11, 9, 24, 3, 3, stride=2, padding=1),
    "odd_results": make(3, 8, 9, 10, 11, 3, 2, stride=(2, 3), padding=((3, 2), (0, 4)), dilation=(2, 3)),
    "pointwise": make(5, 136, 6, 7, 32, 1, 1),
    "pointwise_strided": make(3, 16, 9, 9, 30, 1, 1, stride=2),
    "dilated": make(2, 64, 13, 12, 72, 3, 3, padding=2, dilation=2),
    "padding_exceeds_filter": make(1, 16, 5, 6, 16, 2, 2, padding=3),
    "cropped": make(2, 24, 9, 8, 8, 3, 3),
    "far_taps": make(1, 8, 20, 24, 8, 2, 3, padding=((20, 0), (0, 24)), dilation=(20, 20)),
    "stride_8": make(1, 8, 40, 33, 16, 3, 3, stride=8, padding=1),
    "many_images": make(37, 16, 3, 4, 16, 3, 3, padding=1),
    "wide": make(1, 64, 16, 20, 128, 3, 3, padding=1),
}


def problem_of(name: str, shape: ConvShape, pass_: Pass = Pass.FORWARD) -> Problem:
    return Problem(shape, pass_, ROWS[name].dtypes[0], "nhwc")


def taken(pass_: Pass) -> list[str]:
    return [shape for shape in SHAPES if ROWS["fp16"].why_not(problem_of("fp16", SHAPES[shape], pass_)) is None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pass_", ROWS["fp16"].passes)
def test_results_are_exact_in_every_order(name: str, pass_: Pass) -> None:
    assert len(taken(pass_)) >= (12 if pass_ is Pass.FORWARD else 8)
    for shape, order in itertools.product(taken(pass_), range(4)):
        require_exact(ROWS[name], problem_of(name, SHAPES[shape], pass_), order=order)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers_find_nothing(sanitizer: str) -> None:
    for name, shape, pass_ in (("fp16", "odd_results", Pass.FORWARD), ("bf16", "dilated", Pass.BACKWARD_DATA)):
        require_exact(ROWS[name], problem_of(name, SHAPES[shape], pass_), order=3, sanitizer=sanitizer)


@pytest.mark.parametrize("name", NAMES)
def test_every_tile_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pass_, tile, parts in itertools.product(ROWS[name].passes, ROWS[name].tiles, (1, 3, 4)):
        c, k = (72, tile.n + 25) if pass_ is Pass.FORWARD else (tile.n + 18, 72)
        cut = Cut(tile, parts)
        monkeypatch.setattr(rows, "cut_of", lambda *_, cut=cut: cut)
        problem = problem_of(name, make(1, c, 7, 20, k, 1, 3, padding=((0, 0), (1, 0))), pass_)
        assert ROWS[name].program(problem, H200).steps[0].grid[1] == (1 if parts == 1 else 3)  # of six steps
        require_exact(ROWS[name], problem, order=parts)


def test_alternatives_compute_the_same() -> None:
    problem = problem_of("fp16", make(1, 200, 6, 6, 64, 3, 3, padding=1))
    others = ROWS["fp16"].alternatives(problem, H200)
    assert len(others) >= 7
    for program in others.values():
        a, b = operands(problem)
        assert np.array_equal(computed(program, problem, a, b), expected(problem, a, b))


@pytest.mark.parametrize("pass_", ROWS["fp16"].passes)
def test_verified_with_packed_weights(pass_: Pass) -> None:
    for name, order in zip(NAMES, (0, 2), strict=True):
        accept(ROWS[name], problem_of(name, SHAPES["dilated"], pass_), "packed", order)


def test_operands_are_read_where_they_lie() -> None:
    """No packing forward, no copy of the image in either pass."""
    shape = make(32, 64, 14, 14, 96, 3, 3, padding=1)
    forward, backward = (ROWS["fp16"].program(problem_of("fp16", shape, p), H200) for p in ROWS["fp16"].passes)
    assert not forward.filter_steps
    assert set(forward.workspace) <= {"parts"}
    assert [step.kernel for step in backward.filter_steps] == ["pack_filter"]
    assert set(backward.workspace) <= {"parts", "filter"}


# ---- limits


@pytest.mark.parametrize(
    ("shape", "pass_", "sentence"),
    [
        (make(1, 12, 8, 8, 16, 3, 3), Pass.FORWARD, "C must be a multiple of 8, not 12"),
        (make(1, 16, 8, 8, 12, 3, 3), Pass.BACKWARD_DATA, "K must be a multiple of 8, not 12"),
        (make(1, 16, 8, 8, 16, 3, 3, groups=2), Pass.FORWARD, "one group, there are 2"),
        (make(1, 16, 8, 8, 16, 3, 3, stride=(1, 2)), Pass.BACKWARD_DATA, "needs stride 1, not 1x2"),
        (make(1, 16, 40, 8, 16, 3, 3, stride=(9, 1)), Pass.FORWARD, "along the height it takes steps of 1 to 8 pixels"),
        (make(1, 16, 8, 600, 16, 1, 2, dilation=(1, 256)), Pass.FORWARD, "taps up to 255 pixels from the first"),
        (make(1, 8, 4, 8, 8, 1, 1, padding=((0, 0), (129, 0))), Pass.FORWARD, "along the width its bounding box must"),
        (make(1, 8, 4, 300, 8, 1, 130), Pass.FORWARD, "end within -128 to 127 of the image's ends, not at 0 and -129"),
        (make(1, 8, 4, 300, 8, 1, 130), Pass.BACKWARD_DATA, "ends, not at -129 and 0"),
        (make(400, 1024, 2400, 2400, 8, 1, 1), Pass.FORWARD, "fewer than 2^31"),
    ],
)
def test_what_tma_cannot_name_is_refused_in_a_sentence(shape: ConvShape, pass_: Pass, sentence: str) -> None:
    assert sentence in (ROWS["fp16"].why_not(problem_of("fp16", shape, pass_)) or "")


def test_the_ends_of_the_limits_work() -> None:
    for shape in (
        make(1, 8, 3, 300, 8, 1, 129),
        make(1, 8, 2, 300, 8, 1, 4, padding=((0, 0), (128, 127)), dilation=(1, 85)),
        make(1, 8, 200, 2, 8, 2, 1, padding=((127, 127), (0, 0)), dilation=(255, 1)),
    ):
        problem = problem_of("fp16", shape)
        assert ROWS["fp16"].why_not(problem) is None
        require_exact(ROWS["fp16"], problem)


def test_only_hopper_has_it() -> None:
    assert ROWS["bf16"].runs_on(H200)
    assert not ROWS["bf16"].runs_on(A100)
    assert not ROWS["bf16"].runs_on(replace(H200, features=""))


# ---- predictions


@pytest.mark.parametrize("pass_", ROWS["fp16"].passes)
def test_predicted_between_the_peak_and_a_tenth_of_it(pass_: Pass) -> None:
    row, problem = ROWS["fp16"], problem_of("fp16", make(32, 256, 56, 56, 256, 3, 3, padding=1), pass_)
    program = row.program(problem, H200)
    flops = row.executed_flops(problem)
    assert efficiency(program.steps[0], "half") == 0.70
    assert problem.direct_flops <= flops["multiply"] < 1.05 * problem.direct_flops
    predicted = predict(program, problem, flops, row.arithmetic, H200, lambda launch: None)
    product = next(step for step in predicted.steps if step.name == "implicit_gemm_tma")
    assert 79e12 < problem.direct_flops / predicted.seconds < 790e12
    # a tile of 128 x 256 reads three bytes for 256 products of two: 1 / 128 + 1 / 256 of the operations, in bytes
    assert product.l2 == pytest.approx(flops["multiply"] * (1 / 128 + 1 / 256) / 5.5e12)


def test_channels_that_do_not_fill_64_are_counted() -> None:
    problem = problem_of("fp16", make(32, 72, 32, 32, 128, 3, 3, padding=1))
    assert ROWS["fp16"].executed_flops(problem)["multiply"] >= problem.direct_flops * 128 / 72


# ---- the kernel with a bug each

WAITS_FULL = "mbarrier_wait(full + place.stage, place.parity);"
WAITS_EMPTY = "mbarrier_wait(empty + place.stage, place.parity ^ 1);"
EXPECTS = "mbarrier_arrive(full + place.stage, STAGE_BYTES);"
WAITS_PRODUCTS = "wgmma_wait<1>();"
WAITS_LAST = "wgmma_wait<0>();"
FREES = "if (i > 0 && lane == 0) mbarrier_arrive(empty + before);"
STUCK, MANY = "wait in a phase of an mbarrier", "more arrivals at an mbarrier than a phase of it has"
UNMADE, LEFT = "initialised as no mbarrier, or overwritten", "bulk copies are in flight when the block ends"
RACE = "data race at wgmma.cuh"
#: Bug -> what is replaced by what, and what each variant says: "right", "wrong", "NaN" or part of a message.
BUGS: dict[str, tuple[str, str, dict[str, str]]] = {
    "waits for the other phase of full": (
        WAITS_FULL, WAITS_FULL.replace("parity", "parity ^ 1"), {"plain 0": MANY, "plain 1": STUCK}),
    "waits for the first phase of full alone": (
        WAITS_FULL, WAITS_FULL.replace("place.parity", "0"), {"plain 0": MANY, "plain 1": STUCK}),
    "waits for the other phase of empty": (
        WAITS_EMPTY, WAITS_EMPTY.replace(" ^ 1", ""), {"plain 0": STUCK, "plain 1": STUCK}),
    "does not wait for full": (WAITS_FULL, "", {"plain 0": MANY, "plain 2": "NaN", "thread 0": RACE}),
    "does not wait for empty": (WAITS_EMPTY, "", {"plain 0": MANY, "plain 1": STUCK, "plain 2": MANY}),
    "expects the source's bytes only": (
        EXPECTS, EXPECTS.replace("STAGE_BYTES", "BLOCK_M * ROW_BYTES"), {"plain 0": LEFT, "plain 1": STUCK}),
    "expects more than is copied": (
        EXPECTS, EXPECTS.replace("STAGE_BYTES", "STAGE_BYTES + 128"), {"plain 0": STUCK, "plain 1": STUCK}),
    "expects nothing": (EXPECTS, EXPECTS.replace(", STAGE_BYTES", ""), {"plain 0": LEFT, "plain 1": STUCK}),
    "frees a stage before its products are done": (WAITS_PRODUCTS, "", {"plain 0": "wrong", "plain 1": "right"}),
    "frees no stage": (FREES, "", {"plain 0": STUCK, "plain 1": STUCK}),
    "frees the stage that is multiplied, and waits for its products later": (
        FREES, "if (lane == 0) mbarrier_arrive(empty + place.stage);", {"plain 1": "right", "thread 0": RACE}),
    "half of the warps free a stage": (
        "#define CONSUMERS 8", "#define CONSUMERS 4", {"plain 0": MANY, "plain 1": STUCK, "thread 0": RACE}),
    "two lanes of a warp free a stage": (
        FREES, FREES.replace("lane == 0", "lane <= 1"), {"plain 0": MANY, "plain 1": STUCK, "thread 0": RACE}),
    "lanes free a stage before others are done": ("__syncwarp();", "", {"plain 0": "right", "thread 0": RACE}),
    "does not wait for the last products": (WAITS_LAST, "", {"plain 0": "wrong", "plain 1": "right"}),
    "stages overlap": (
        "((BLOCK_M + BLOCK_N) * ROW_BYTES)", "((BLOCK_M + BLOCK_N) * ROW_BYTES - 1024)", {"plain 0": UNMADE}),
    "tiles begin at no multiple of 1024": (
        "dynamic + (1024 -", "dynamic + 128 + (1024 -", {"plain 0": "wgmma of rows from no multiple of 1024"}),
    "mbarriers are used before they are made": ("    __syncthreads();\n", "", {"plain 0": "right", "plain 1": UNMADE}),
    "sums one step too few": (
        "lane, step1 - step0)", "lane, step1 - step0 - 1)", {"plain 0": LEFT, "plain 1": "wrong"}),
}  # fmt: skip


def operands(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    recipe = integer_recipe(ROWS["fp16"], problem, seed=7)
    assert recipe is not None
    return make_inputs(problem, recipe)


def computed(program: Program, problem: Problem, a: np.ndarray, b: np.ndarray, **how: int | str) -> np.ndarray:
    out = np.empty(problem.out_shape, np.float16)
    poison(out)
    EmulatedContext(**how).bind(program)(a, b, out)
    return widened(out)


def expected(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return computed(ROWS["fp16"].program(problem, H200), problem, a, b)


def outcome(path: Path, variant: str) -> str:
    """right, wrong, NaN, or what was said; ten steps of the sum through four stages."""
    sanitizer, order = variant.split()
    problem = problem_of("fp16", make(1, 120, 5, 6, 16, 1, 5, padding=((0, 0), (2, 2))))
    (step,) = ROWS["fp16"]._program(problem, Cut(TILE, 1)).steps
    a, b = operands(problem)
    try:
        got = computed(Program((replace(step, file=str(path)),)), problem, a, b, order=int(order), sanitizer=sanitizer)
    except (EmulationError, SanitizerError) as found:
        return str(found)
    if np.array_equal(got, expected(problem, a, b)):
        return "right"
    return "NaN" if np.isnan(got).any() else "wrong"


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_caught(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    old, new, want = BUGS[name]
    text = (KERNELS / "implicit_gemm_tma.cu").read_text()
    assert text.count(old) == 1
    path = tmp_path / "implicit_gemm_tma.cu"
    path.write_text(text.replace(old, new))
    said = {variant: outcome(path, variant) for variant in want}
    record_property("emulated_bug", (f"TMA: {name}", said))
    for variant, word in want.items():
        assert word in said[variant], (variant, said[variant])
    assert any(word != "right" for word in said.values())


def test_without_a_bug_nothing_is_found() -> None:
    variants = [f"plain {order}" for order in range(6)] + [f"{s} {o}" for s in ("address", "thread") for o in (0, 2)]
    assert {outcome(KERNELS / "implicit_gemm_tma.cu", variant) for variant in variants} == {"right"}
