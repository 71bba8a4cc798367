"""implicit_gemm on tensor cores, emulated: four arithmetics by mma.sync, two by wgmma; tiles, parts, channels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms._implicit_gemm_cuda import Cut
from convbench.cuda.gpu import A100, H200, Gpu
from convbench.cuda.program import Launch
from convbench.devices.arrays import storage, widened
from convbench.problem import ConvShape, Pass, Problem
from convbench.testing.conformance import SHAPES
from convbench.verify import Verifier
from convbench.verify.inputs import to_logical
from convbench.verify.oracle import convolve
from tests.cuda_on_cpu.emulated import EmulatedContext
from tests.cuda_on_cpu.exact import require_exact

ALL = catalog.load().implementations
NAMES = ["tf32", "3xtf32", "fp16", "bf16", "wgmma_fp16", "wgmma_bf16"]
ROWS = {name: ALL[f"implicit_gemm_{name}_cuda"] for name in NAMES}
make = ConvShape.make
LARGER = {
    "past_tiles": make(1, 40, 12, 13, 136, 3, 3, padding=1),
    "strided": make(2, 72, 11, 9, 24, 3, 3, stride=2, padding=1),
    "pointwise_strided": make(3, 16, 9, 9, 32, 1, 1, stride=2),
    "stride_dilation": make(1, 8, 20, 22, 16, 3, 2, stride=(2, 3), padding=((3, 2), (0, 4)), dilation=(2, 3)),
    "grouped": make(2, 48, 8, 9, 80, 3, 3, padding=1, groups=2),
}
PASSES = [(name, pass_) for name in NAMES for pass_ in ROWS[name].passes]


def problem_of(name: str, shape: ConvShape, pass_: Pass, layout: str = "nhwc") -> Problem:
    return Problem(shape, pass_, ROWS[name].dtypes[0], layout)


@pytest.mark.parametrize(("name", "pass_"), PASSES)
def test_conformance_shapes(name, pass_):
    """All shapes are shared out among rows and layouts; every pass of every row has four of them or more."""
    turn = NAMES.index(name)
    for number, shape in enumerate(SHAPES.values()):
        if (number + list(Pass).index(pass_)) % len(NAMES) == turn:
            problem = problem_of(name, shape, pass_, ("nchw", "nhwc")[number // len(NAMES) % 2])
            context = lambda order=number % 4: EmulatedContext(order=order)  # noqa: E731
            plan, verdict = Verifier(problem).verify(ROWS[name], context)
            assert plan is not None, f"{problem}: {verdict.reason}"


@pytest.mark.parametrize("name", NAMES)
def test_packed_weights(name):
    for pass_, layout, shape in (
        (Pass.FORWARD, "nhwc", make(1, 16, 7, 6, 9, 3, 3, padding=1)),  # read as they are, from a copy
        (Pass.FORWARD, "nchw", SHAPES["asymmetric_everything"]),
        (Pass.BACKWARD_DATA, "nhwc", SHAPES["stride_2x1"]),
    ):
        problem = problem_of(name, shape, pass_, layout)
        plan, verdict = Verifier(problem).verify(ROWS[name], EmulatedContext, "packed")
        assert plan is not None, f"{problem}: {verdict.reason}"


@pytest.mark.parametrize(("name", "pass_"), PASSES)
def test_shapes_larger_than_tiles(name, pass_):
    for number, shape in enumerate(LARGER.values()):
        layout = ("nhwc", "nchw")[(number + NAMES.index(name)) % 2]
        require_exact(ROWS[name], problem_of(name, shape, pass_, layout), order=number % 4)


@pytest.mark.parametrize("name", NAMES)
def test_every_tile_in_parts(name):
    row = ROWS[name]
    for pass_ in row.passes:
        weights = pass_ is Pass.BACKWARD_WEIGHTS
        tiles = row.weights_tiles + row.swept_weights_tiles if weights else row.tiles + row.swept_tiles
        for tile, parts in itertools.product(tiles, (1, 3)):
            wide = tile.n + 24  # columns of the result
            shape = make(1, wide, 7, 19, 72, 1, 2) if pass_ is Pass.BACKWARD_DATA else make(1, 72, 7, 20, wide, 1, 2)
            problem = problem_of(name, shape, pass_)
            require_exact(row.taking(row._program(problem, Cut(tile, parts))), problem, order=parts)


@pytest.mark.parametrize(("name", "pass_"), PASSES)
def test_alternatives_compute_the_same(name, pass_):
    row, problem = ROWS[name], problem_of(name, make(1, 64, 5, 6, 72, 3, 3, padding=1), pass_)
    others, chosen = row.alternatives(problem, H200), row.program(problem, H200)
    assert len({program.steps for program in (chosen, *others.values())}) == len(others) + 1
    for other, program in others.items():
        launch = next(step for step in program.launches() if step.kernel.startswith("implicit_gemm_mma"))
        assert other.startswith("{BLOCK_M}x{BLOCK_N}".format(**dict(launch.defines)))
        assert launch.grid[1] == int(other.partition(" split ")[2] or 1)
        require_exact(row.taking(program), problem)


def test_alternatives_are_named_after_what_differs():
    deep = make(1, 512, 7, 7, 512, 3, 3, padding=1)
    assert list(ROWS["wgmma_fp16"].alternatives(problem_of("wgmma_fp16", deep, Pass.FORWARD), H200)) == [
        "128x256 4 stages", "128x256 4 stages split 16", "128x256 4 stages split 32",
        "128x128 4 stages", "128x128 4 stages split 12",
        "128x256 3 stages", "128x256 3 stages split 16", "128x256 3 stages split 32",
        "128x128 6 stages", "128x128 6 stages split 12", "128x128 6 stages split 24",
    ]  # fmt: skip
    large = problem_of("fp16", make(32, 256, 56, 56, 256, 3, 3, padding=1), Pass.FORWARD)
    assert list(ROWS["fp16"].alternatives(large, H200)) == ["128x128", "64x64", "256x128", "128x64"]
    assert list(ROWS["fp16"].alternatives(large, A100)) == ["64x64", "256x128", "128x64"]  # 128x256 does not fit


def test_tiles_that_do_not_fit_a_gpu_are_left_out():
    problem = problem_of("fp16", make(32, 256, 56, 56, 256, 3, 3, padding=1), Pass.FORWARD)
    small = Gpu("RTX 4090", (8, 9), 128, 72 << 20, 99 << 10, 24 * 10**9)

    def columns(gpu: Gpu) -> int:
        (launch,) = (step for step in ROWS["fp16"].program(problem, gpu).steps if isinstance(step, Launch))
        assert launch.shared_bytes <= gpu.shared_bytes
        return dict(launch.defines)["BLOCK_N"]

    assert (columns(H200), columns(A100), columns(small)) == (256, 128, 128)


def test_aligned_nhwc_is_read_where_it_lies():
    shape = make(2, 64, 14, 14, 96, 3, 3, padding=1)
    for name in NAMES:
        program = ROWS[name].program(problem_of(name, shape, Pass.FORWARD), H200)
        assert not program.filter_steps
        assert set(program.workspace) <= {"parts"}
        gradient = ROWS[name].program(problem_of(name, shape, Pass.BACKWARD_DATA), H200)
        assert set(gradient.workspace) <= {"parts", "filter"}
    odd = ROWS["fp16"].program(problem_of("fp16", make(1, 12, 8, 8, 16, 3, 3), Pass.FORWARD), H200)
    assert set(odd.workspace) >= {"a_channels_last", "filter"}


def test_three_products_of_tf32_are_as_exact_as_fp32_and_one_is_not():
    """Results of sums of 288 products: errors in units of 2^-23 of the root of the squares' sum."""
    shape, errors = make(1, 32, 9, 9, 16, 3, 3), {}
    generator = np.random.default_rng(5)
    for name in ("tf32", "3xtf32"):
        problem = problem_of(name, shape, Pass.FORWARD)
        a, b = (generator.standard_normal(s).astype(np.float32) for s in (problem.a_shape, problem.b_shape))
        out = np.empty(problem.out_shape, np.float32)
        ROWS[name].prepare(problem, EmulatedContext())(a, b, out)
        left, right = (widened(to_logical(x, "nhwc")) for x in (a, b))
        want = convolve(shape, Pass.FORWARD, left, right)
        scale = np.sqrt(convolve(shape, Pass.FORWARD, left, right * right, square_a=True))
        errors[name] = float((np.abs(to_logical(out, "nhwc") - want) / scale).max() * 2**23)
    assert errors["3xtf32"] < 32
    assert errors["tf32"] > 400


def test_half_results_are_rounded_to_nearest():
    """1 + 2^-11 is a tie: to even in float16; bfloat16 keeps 8 bits."""
    shape = make(1, 8, 1, 1, 8, 1, 1)
    for name, bits, want in (("fp16", 11, 1.0), ("bf16", 8, 1.0)):
        problem = problem_of(name, shape, Pass.FORWARD)
        a, b = np.zeros(problem.a_shape, np.float32), np.zeros(problem.b_shape, np.float32)
        a[..., :3] = 1.0
        b[0, 0, 0, 0], b[0, 0, 0, 1] = 1.0, 2.0**-bits
        b[1, 0, 0, 0], b[1, 0, 0, 1], b[1, 0, 0, 2] = 1.0, 2.0**-bits, 2.0 ** -(bits + 4)
        if name == "bf16":
            a, b = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
        else:
            a, b = a.astype(np.float16), b.astype(np.float16)
        out = np.empty(problem.out_shape, storage(problem.dtype))
        ROWS[name].prepare(problem, EmulatedContext())(a, b, out)
        result = widened(out).ravel()
        assert (result[0], result[1]) == (want, 1.0 + 2.0 ** (1 - bits))
        assert (result[2:] == 0).all()


def test_operands_beyond_32_bits_are_refused_in_a_sentence():
    problem = problem_of("tf32", make(400, 1024, 224, 224, 8, 1, 1), Pass.FORWARD)
    assert "pieces of 16 bytes" in (ROWS["tf32"].why_not(problem) or "")
