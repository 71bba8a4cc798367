"""implicit_gemm_cuda emulated: every way of loading, every tile, sums in parts, shapes that leave remainders."""

from __future__ import annotations

import pytest

from convbench import catalog
from convbench.algorithms import _implicit_gemm_cuda as plans
from convbench.algorithms import implicit_gemm_cuda as rows
from convbench.algorithms._implicit_gemm_cuda import Cut, Geometry, cut_of
from convbench.cuda.gpu import A100, H200, T4
from convbench.problem import ConvShape, Pass, Problem
from convbench.testing.conformance import PACKED_SHAPES, SHAPES
from convbench.verify import Verifier
from tests.cuda_on_cpu.emulated import EmulatedContext
from tests.cuda_on_cpu.exact import require_exact

ROW = catalog.load().implementations["implicit_gemm_cuda"]
make = ConvShape.make
#: Rows, columns and sums past one tile, with remainders; channels that TAPS and QUADS take.
LARGER = {
    "past_tiles": make(2, 32, 11, 13, 148, 3, 3, padding=1),
    "short_sum": make(1, 16, 9, 15, 132, 1, 1),
    "strided": make(2, 16, 17, 15, 32, 3, 3, stride=2, padding=1),
    "pointwise_strided": make(3, 32, 9, 9, 16, 1, 1, stride=2),
    "stride_dilation": make(1, 16, 20, 22, 16, 3, 2, stride=(2, 3), padding=((3, 2), (0, 4)), dilation=(2, 3)),
    "grouped": make(2, 64, 8, 9, 96, 3, 3, padding=1, groups=2),
    "stride_4": make(1, 3, 31, 27, 16, 11, 11, stride=4, padding=2),
}
CASES = [(pass_, layout) for pass_ in Pass for layout in ("nchw", "nhwc")]


@pytest.mark.parametrize(("pass_", "layout"), CASES)
def test_conformance_shapes(pass_, layout):
    """Each shape in one of the layouts, alternating; packed weights in the same."""
    for number, (name, shape) in enumerate(SHAPES.items()):
        if (number + list(Pass).index(pass_)) % 2 != ("nchw", "nhwc").index(layout):
            continue
        problem = Problem(shape, pass_, "float32", layout)
        packed = name in PACKED_SHAPES and pass_ is not Pass.BACKWARD_WEIGHTS
        for weights in ("raw", "packed") if packed else ("raw",):
            context = lambda order=number % 4: EmulatedContext(order=order)  # noqa: E731
            plan, verdict = Verifier(problem).verify(ROW, context, weights)
            assert plan is not None, f"{problem} {weights}: {verdict.reason}"


@pytest.mark.parametrize(("pass_", "layout"), CASES)
def test_shapes_larger_than_tiles(pass_, layout):
    for number, shape in enumerate(LARGER.values()):
        require_exact(ROW, Problem(shape, pass_, "float32", layout), order=number % 4)


@pytest.mark.parametrize("loads", [rows.DIGITS, rows.TAPS, rows.QUADS])
def test_every_tile_in_parts(loads):
    shape = make(2, 12, 9, 9, 20, 3, 3, padding=1) if loads == rows.DIGITS else make(2, 32, 7, 11, 80, 3, 2, padding=1)
    for pass_, layout in CASES:
        problem = Problem(shape, pass_, "float32", layout)
        if rows.loads_of(problem) != loads:
            continue
        kind = loads, pass_ is Pass.BACKWARD_WEIGHTS
        for tile in (*rows.TILES[kind], *rows.SWEPT[kind]):
            for parts in (1, 3, 64):  # 64: more than there are tiles of the sum, so that some have nothing to add
                program = rows._program(problem, Cut(tile, parts))
                require_exact(ROW.taking(program), problem, order=parts % 3)


@pytest.mark.parametrize(("pass_", "layout"), CASES)
def test_alternatives_compute_the_same(pass_, layout):
    problem = Problem(make(1, 64, 6, 7, 68, 3, 3, padding=1), pass_, "float32", layout)
    others = ROW.alternatives(problem, H200)
    chosen = ROW.program(problem, H200)
    assert len({program.steps for program in (chosen, *others.values())}) == len(others) + 1
    for name, program in others.items():
        launch = next(step for step in program.launches() if step.kernel == "implicit_gemm")
        size, _, parts = name.partition(" split ")
        tile = "{BLOCK_M}x{BLOCK_N}".format(**dict(launch.defines))
        assert size in (tile, f"{tile} {dict(launch.defines)['STAGES']} stages")
        assert launch.grid[1] == int(parts or 1)
        require_exact(ROW.taking(program), problem)


def test_alternatives_have_every_tile_and_other_numbers_of_parts():
    problem = Problem(make(1, 512, 7, 7, 512, 3, 3, padding=1))
    assert cut_of(Geometry(problem), H200, rows.TILES[rows.TAPS, False]) == Cut(rows.LITTLE, 32)
    assert list(ROW.alternatives(problem, H200)) == [
        "128x128 3 stages", "128x128 3 stages split 16", "128x128 3 stages split 32",
        "128x64", "128x64 split 16", "128x64 split 32", "64x64", "64x64 split 16",
        "128x128 2 stages", "128x128 2 stages split 16", "128x128 2 stages split 32",
        "64x128", "64x128 split 16", "64x128 split 32",
    ]  # fmt: skip


def test_every_run_gives_the_same_bits():
    shape = make(1, 256, 7, 7, 48, 3, 3, padding=1)
    problem = Problem(shape, Pass.FORWARD, "float32", "nhwc")
    assert ROW.program(problem, H200).workspace["parts"].shape[0] > 4
    plan, verdict = Verifier(problem).verify(ROW, EmulatedContext)
    assert plan is not None, verdict.reason
    a, b, out = Verifier(problem).operands()
    results = []
    for order in range(3):  # of threads and blocks
        ROW.prepare(problem, EmulatedContext(order=order))(a, b, out)
        results.append(out.copy())
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()


def test_loads_follow_channels_and_layout():
    def loads(channels: int, filters: int, pass_: Pass, layout: str) -> int:
        return rows.loads_of(Problem(make(1, channels, 8, 8, filters, 3, 3), pass_, "float32", layout))

    assert loads(32, 5, Pass.FORWARD, "nchw") == rows.TAPS
    assert loads(24, 16, Pass.FORWARD, "nhwc") == rows.DIGITS
    assert loads(24, 16, Pass.BACKWARD_DATA, "nhwc") == rows.TAPS
    assert loads(24, 16, Pass.BACKWARD_WEIGHTS, "nhwc") == rows.QUADS
    assert loads(24, 16, Pass.BACKWARD_WEIGHTS, "nchw") == rows.DIGITS


def test_few_tiles_are_cut_into_parts():
    def parts(shape: ConvShape, pass_: Pass) -> int:
        return cut_of(Geometry(Problem(shape, pass_)), H200, rows.TILES[rows.TAPS, False]).parts

    assert parts(make(32, 256, 56, 56, 256, 3, 3, padding=1), Pass.FORWARD) == 1
    assert parts(make(1, 512, 7, 7, 512, 3, 3, padding=1), Pass.FORWARD) > 4
    assert parts(make(32, 64, 56, 56, 64, 3, 3, padding=1), Pass.BACKWARD_WEIGHTS) > 16


@pytest.mark.parametrize("gpu", [T4, A100, H200], ids=lambda gpu: gpu.name)
def test_shared_memory_fits_every_gpu(gpu):
    for shape in (*SHAPES.values(), *LARGER.values()):
        for pass_, layout in CASES:
            for launch in ROW.program(Problem(shape, pass_, "float32", layout), gpu).launches():
                assert launch.shared_bytes <= gpu.shared_bytes


def test_phases_hold_every_pixel_and_tap_once():
    for shape in (*SHAPES.values(), *LARGER.values()):
        geometry = Geometry(Problem(shape, Pass.BACKWARD_DATA))
        assert len(geometry.phases) == shape.stride[0] * shape.stride[1]
        assert sum(phase.rows for phase in geometry.phases) == shape.n * shape.h * shape.w
        axes = [plans._axis(*axis) for axis in (
            (shape.h, shape.r, shape.stride[0], shape.padding[0], shape.dilation[0]),
            (shape.w, shape.s, shape.stride[1], shape.padding[2], shape.dilation[1]),
        )]  # fmt: skip
        assert [sum(taps for _, taps in axis) for axis in axes] == [shape.r, shape.s]


def test_sizes_beyond_32_bits_are_refused_in_a_sentence():
    images = Problem(make(2**15, 1, 512, 512, 1, 1, 1), Pass.FORWARD)
    assert "fewer than 2^31" in (ROW.why_not(images) or "")
    wide = Problem(make(1, 65536, 200, 200, 1, 1, 1), Pass.FORWARD)
    assert "fewer than 2^30" in (ROW.why_not(wide) or "")
    far = make(128, 1024, 128, 128, 1, 128, 128)  # images with one result each: 128 of them in the rows of one tile
    assert "neighbouring results" in (ROW.why_not(Problem(far, Pass.FORWARD)) or "")
    assert ROW.why_not(Problem(far, Pass.BACKWARD_WEIGHTS)) is None
    assert ROW.why_not(Problem(make(32, 1024, 128, 128, 1, 128, 128), Pass.FORWARD)) is None
