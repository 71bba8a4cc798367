"""What rows offer to the sweep computes the same as what they choose: every alternative on shapes beyond its tiles."""

from __future__ import annotations

import itertools

import pytest

from convbench.algorithms import depthwise_cuda, direct_cuda, fft_tile_cuda, winograd_cuda  # noqa: F401 - rows
from convbench.algorithms._cuda import different
from convbench.cuda.gpu import H200, T4
from convbench.cuda.program import Launch, Program, Zero
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.testing.conformance import SHAPES
from tests.cuda_on_cpu.rows import ORDERS, accept, row_of

make = ConvShape.make


def of_channels(n: int, c: int, h: int, w: int, taps: int, stride: int = 1) -> ConvShape:
    return make(n, c, h, w, c, taps, taps, stride=stride, padding=taps // 2, groups=c)


TILES = {"128x64", "64x128", "64x64", "128x32", "32x128"}
#: row -> shapes, each with what must be offered in one of its passes and layouts.
CASES = {
    "direct_tiled_cuda": {
        "past 128 channels": (make(1, 5, 9, 17, 130, 3, 3, padding=1), {"8x2", "16x8", "16x4", "8x4", "1x1"}),
        "groups of 20 to 36": (make(1, 40, 5, 6, 72, 3, 2, stride=(2, 1), padding=1, groups=2), {"8x2", "16x4", "8x4"}),
        "three channels": (make(2, 3, 11, 7, 3, 5, 5, stride=2, padding=2), {"1x1", "8x4"}),
    },
    "depthwise_cuda": {
        "3x3": (of_channels(2, 72, 12, 20, 3), {"2 along pixels", "16 along pixels", "3x16x20, 8 a thread"}),
        "5x5, stride 2": (of_channels(1, 16, 33, 34, 5, 2), {"1x20x17, 4 a thread", "a channel a thread"}),
    },
    "winograd_f2_cuda": {"past 64": (make(2, 13, 30, 23, 66, 3, 3, padding=1), {"depth 4", "not fused", "2 chunks"})},
    "winograd_f4_cuda": {
        "264 tiles": (make(2, 34, 46, 44, 40, 3, 3, padding=1), {"2 chunks", "1 splits", "2 splits"} | TILES)
    },
    "winograd_f4_cublas_cuda": {"264 tiles": (make(2, 6, 46, 44, 5, 3, 3, padding=1), {"2 chunks"})},
    "winograd_f6_cuda": {"140 tiles": (make(4, 34, 30, 42, 9, 3, 3, padding=1), {"2 chunks", "2 splits"} | TILES)},
    "winograd_f4_5x5_cuda": {"140 tiles": (make(4, 34, 20, 28, 9, 5, 5, padding=2), {"2 chunks", "2 splits"} | TILES)},
    "fft_tile_cuda": {"17 channels": (make(3, 17, 18, 15, 18, 3, 3, padding=1), {"32x32"})},
}
#: Their products and chunks are those of winograd_f4_cuda: a third of the programs, taking turns.
ALIKE = ("winograd_f6_cuda", "winograd_f4_5x5_cuda")
PARAMETERS = [pytest.param(row, *case, id=f"{row}, {name}") for row, of in CASES.items() for name, case in of.items()]


@pytest.mark.parametrize(("name", "shape", "expected"), PARAMETERS)
def test_alternatives_are_right(name: str, shape: ConvShape, expected: set[str]) -> None:
    row, offered = row_of(name), set()
    numbers = itertools.count()
    for pass_, layout in itertools.product(Pass, LAYOUTS):
        problem = Problem(shape, pass_, "float32", layout)
        programs = row.alternatives(problem, H200)
        offered |= programs.keys()
        for program in programs.values():
            number = next(numbers)
            if name not in ALIKE or number % 3 == 0:
                accept(row.taking(program), problem, order=ORDERS[number % len(ORDERS)])
    assert expected <= offered, sorted(offered)


@pytest.mark.parametrize("name", CASES)
def test_alternatives_are_programs_of_their_own(name: str) -> None:
    row = row_of(name)
    for shape, pass_, layout, gpu in itertools.product(SHAPES.values(), Pass, LAYOUTS, (H200, T4)):
        problem = Problem(shape, pass_, "float32", layout)
        if row.why_not(problem) is None:
            programs = row.alternatives(problem, gpu)
            assert different(row.program(problem, gpu), programs) == programs


def test_packed_weights_of_alternatives() -> None:
    problem = Problem(SHAPES["odd_channels"])
    for name in ("direct_tiled_cuda", "winograd_f2_cuda", "winograd_f4_cuda", "fft_tile_cuda"):
        for program in row_of(name).alternatives(problem, H200).values():
            accept(row_of(name).taking(program), problem, "packed")


@pytest.mark.parametrize(
    ("name", "choice"),
    [("direct_tiled_cuda", "16x4"), ("winograd_f2_cuda", "depth 4"), ("winograd_f4_cuda", "128x64")],
)
def test_alternatives_keep_to_their_memory(name: str, choice: str) -> None:
    row, problem = row_of(name), Problem(SHAPES["many_channels"])
    accept(row.taking(row.alternatives(problem, H200)[choice]), problem, sanitizer="address")


def test_a_program_given_twice_is_offered_once() -> None:
    chosen, other = Program((Zero("out"),)), Program((Zero("out"), Zero("out")))
    assert different(chosen, {"the same": chosen, "other": other, "again": other}) == {"other": other}


def test_chunks_that_stay_in_the_cache_are_offered() -> None:
    """VGG-16 conv1_2, 32 images: 1.8 GB between the kernels; 30 MB of it, half of an H200's L2, at a time."""
    problem = Problem(make(32, 64, 224, 224, 64, 3, 3, padding=1))
    programs = row_of("winograd_f4_cuda").alternatives(problem, H200)
    sizes = {name: max(p.workspace[v].nbytes for v in "vm") for name, p in programs.items() if "chunks" in name}
    assert len(sizes) >= 2 and min(sizes.values()) <= H200.l2_bytes / 4
    few = row_of("fft_tile_cuda").alternatives(Problem(make(32, 128, 56, 56, 128, 5, 5, padding=2)), H200)
    assert few["chunks in the L2"].workspace["x_matrices"].nbytes <= H200.l2_bytes / 2


def test_blocks_that_share_the_pixels_are_offered_in_other_numbers() -> None:
    row, shape = row_of("depthwise_cuda"), of_channels(32, 128, 56, 56, 3)
    for layout in LAYOUTS:
        problem = Problem(shape, Pass.BACKWARD_WEIGHTS, "float32", layout)
        programs = {"4 rounds of blocks": row.program(problem, H200), **row.alternatives(problem, H200)}
        two, four, eight = (programs[f"{n} rounds of blocks"].workspace["sums"].shape[0] for n in (2, 4, 8))
        assert 2 * two - 1 <= four <= 2 * two and 2 * four - 1 <= eight <= 2 * four


def test_a_sum_that_is_cut_is_offered_whole() -> None:
    problem = Problem(make(1, 200, 5, 6, 7, 3, 3, padding=1))
    row = row_of("winograd_f4_cuda")
    programs = {"chosen": row.program(problem, H200), **row.alternatives(problem, H200)}
    splits = {
        name: step.arguments[12] for name, p in programs.items() for step in p.steps
        if isinstance(step, Launch) and step.kernel == "sgemm_batched" and ("splits" in name or name == "chosen")
    }  # fmt: skip
    assert splits == {"chosen": 3, "1 splits": 1, "6 splits": 6}
    for program in programs.values():
        accept(row.taking(program), problem)
