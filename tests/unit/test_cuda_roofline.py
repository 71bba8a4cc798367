"""The roofline: occupancy as NVIDIA's tables give it, times of small programs worked out by hand, the command."""

from __future__ import annotations

import csv
import math
from dataclasses import fields, replace

import pytest

from convbench import resources
from convbench.algorithms._cuda import CudaImplementation
from convbench.cuda import model, roofline
from convbench.cuda.compile import Kernel
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.model import L2_SHARE, PEAKS, predict
from convbench.cuda.occupancy import resident_blocks
from convbench.cuda.program import At, Buffer, Launch, Product, Program, Transform, Zero
from convbench.errors import EXIT_FAILED, Unavailable
from convbench.problem import ConvShape, Pass, Problem

PEAK = PEAKS[H200.name]
RTX_4090 = Gpu("NVIDIA RTX 4090", (8, 9), 128, 72 << 20, 99 << 10, 24 * 10**9)


@pytest.mark.parametrize(
    ("gpu", "threads", "registers", "shared", "blocks"),
    [
        (H200, 256, 32, 0, 8),  # threads
        (H200, 256, 33, 0, 6),  # 40 registers are handed out: 1280 a warp, 12 warps in a quarter
        (H200, 256, 128, 0, 2),
        (H200, 256, 255, 0, 1),
        (H200, 1024, 65, 0, 0),  # does not fit
        (H200, 32, 16, 0, 32),  # blocks
        (H200, 128, 32, 48 << 10, 4),  # 228 KB / (48 + 1 KB)
        (H200, 128, 32, 227 << 10, 1),
        (A100, 128, 32, 48 << 10, 3),  # 164 KB / (48 + 1 KB)
        (T4, 256, 32, 0, 4),
        (T4, 64, 32, 32 << 10, 2),
        (T4, 32, 16, 0, 16),
        (RTX_4090, 256, 32, 0, 6),
        (RTX_4090, 32, 16, 0, 24),
    ],
)
def test_blocks_of_a_multiprocessor(gpu, threads, registers, shared, blocks):
    assert resident_blocks(gpu, threads, registers, shared) == blocks


def _kernel(registers: int = 32) -> Kernel:
    return Kernel(registers, 0, 0, 0, 0, 0, 256, ())


def _launch(kernel: str, *arguments, blocks: int = 1320, threads: int = 256) -> Launch:
    return Launch("x.cu", kernel, (blocks, 1, 1), (threads, 1, 1), arguments)


def _predict(steps, problem, flops=None, arithmetic="float32", registers=32, filter_steps=(), **workspace):
    program = Program(tuple(steps), tuple(filter_steps), workspace)
    known = _kernel(registers)
    return predict(program, problem, flops or {}, arithmetic, H200, lambda launch: known)


def _pointwise(n: int, channels: int = 64, size: int = 64) -> Problem:
    """x and y of n * channels * size^2 floats each: n MiB where the others are left alone."""
    return Problem(ConvShape.make(n, channels, size, size, channels, 1, 1))


def test_a_large_copy_takes_what_memory_takes():
    problem = _pointwise(256)  # 256 MiB in, 256 MiB out: more than the L2 holds
    (step,) = _predict([_launch("pack_all", At("a"), At("out"))], problem).steps
    assert step.memory == pytest.approx(2 * (256 << 20) / PEAK.memory)
    assert step.compute == 0
    assert step.bound == "memory"
    assert step.seconds == step.memory + PEAK.launch


def test_what_the_l2_still_holds_is_not_read_from_memory():
    problem = _pointwise(8)
    first, second = _predict(
        [_launch("pack_in", At("a"), At("u")), _launch("pack_out", At("u"), At("out"))], problem, u=Buffer((2 << 20,))
    ).steps
    assert first.memory == second.memory == 0  # 24 MiB in all, and the second run finds all of it
    assert first.l2 == pytest.approx((16 << 20) / PEAK.l2)
    problem = _pointwise(32)  # 96 MiB: what is written is found, what was read long ago is not
    steps = [_launch("pack_in", At("a"), At("u")), _launch("pack_out", At("u"), At("out"))]
    first, second = _predict(steps, problem, u=Buffer((8 << 20,))).steps
    assert first.memory == pytest.approx((64 << 20) / PEAK.memory)
    assert second.memory == pytest.approx((32 << 20) / PEAK.memory)


def test_chunks_stay_in_the_l2():
    problem = _pointwise(128)  # 128 MiB, in chunks of 8
    images = 8 * 64 * 64 * 64
    steps = []
    for i in range(16):
        steps.append(_launch("pack_in", At("a", i * images), At("u")))
        steps.append(_launch("pack_out", At("u"), At("out", i * images)))
    predicted = _predict(steps, problem, u=Buffer((images,)))
    # Once in, once out: u is found each time.
    assert sum(s.memory for s in predicted.steps) == pytest.approx(2 * (128 << 20) / PEAK.memory)
    assert len(predicted.steps) == 32
    assert sum(s.launch for s in predicted.steps) == pytest.approx(32 * PEAK.launch)


def test_arithmetic_runs_at_the_peak_of_its_kind():
    problem = _pointwise(1024)
    flops = {"multiply": 1e12}
    steps = [_launch("some_kernel", At("a"), At("b"), At("out"))]
    assert _predict(steps, problem, flops).steps[0].compute == pytest.approx(1e12 / (0.30 * PEAK.vector))
    half = _predict(steps, problem, flops, "float16-acc32")
    assert half.steps[0].compute == pytest.approx(1e12 / (0.30 * PEAK.half))
    assert half.bound == "compute"
    with pytest.raises(ValueError, match="no peak is known for arithmetic 'float4', but for float32"):
        _predict(steps, problem, flops, "float4")


def test_efficiency_goes_by_the_first_name_that_fits():
    def share(kernel: str, kind: str, **defines: int) -> float:
        launch = Launch("x.cu", kernel, (1, 1, 1), (32, 1, 1), (), defines=tuple(defines.items()))
        return model.efficiency(launch, kind)

    assert share("implicit_gemm_mma_weights", "half") > share("implicit_gemm_mma_weights", "tf32")
    assert share("implicit_gemm_mma", "half", WGMMA=1) > share("implicit_gemm_mma", "half", WGMMA=0)
    assert share("direct_tiled_data", "vector") > share("direct_forward", "vector")
    assert share("anything", "vector") == 0.30
    assert all(0 < value < 1 for _, value in model.EFFICIENCY)


def test_a_last_wave_that_is_partly_empty_costs_a_whole_one():
    problem, flops = _pointwise(1), {"multiply": 1e12}

    def seconds(blocks: int) -> float:
        launch = _launch("some_kernel", At("a"), At("out"), blocks=blocks)
        return _predict([launch], problem, flops).steps[0].compute

    assert seconds(132) == pytest.approx(seconds(264))
    assert seconds(133) == pytest.approx(seconds(132) * 2 * 132 / 133)
    assert seconds(1) == pytest.approx(132 * seconds(132))


def test_few_warps_hide_no_latency():
    problem, flops = _pointwise(1), {"multiply": 1e12}
    wide = _predict([_launch("some_kernel", At("a"), At("out"))], problem, flops)
    narrow = _predict([_launch("some_kernel", At("a"), At("out"), blocks=132, threads=64)], problem, flops)
    assert narrow.steps[0].compute == pytest.approx(4 * wide.steps[0].compute)  # 2 warps where 8 are needed
    crowded = _predict([_launch("some_kernel", At("a"), At("out"), threads=128)], problem, flops, registers=255)
    assert crowded.steps[0].compute == pytest.approx(wide.steps[0].compute)  # 2 blocks of 4 warps


def test_products_read_again_what_tiles_share():
    """One 64 x 64 tile of results a block: each operation needs 1/64 of an element out of the L2."""
    problem = _pointwise(1)
    blocks = 64 * 64 * 64 // (64 * 64)
    (step,) = _predict([_launch("gemm", At("a"), At("b"), At("out"), blocks=blocks)], problem, {"multiply": 1e12}).steps
    share = blocks / 132 * min(1, 8 / model.WARPS_FOR_MEMORY)
    assert step.l2 == pytest.approx(1e12 / 64 * 4 / (PEAK.l2 * share))
    launch = _launch("gemm", At("a"), At("b"), At("out"), blocks=blocks)
    (thrice,) = _predict([launch], problem, {"multiply": 3e12}, "3xtf32").steps
    assert thrice.l2 == pytest.approx(step.l2)  # the same tiles, multiplied three times
    tiled = replace(launch, defines=(("BLOCK_M", 128), ("BLOCK_N", 32)))
    (oblong,) = _predict([tiled], problem, {"multiply": 1e12}).steps
    assert oblong.l2 == pytest.approx(step.l2 * (64 / 128 + 64 / 32) / 2)
    (staged,) = _predict([replace(launch, shared_bytes=32 << 10)], problem, {"multiply": 1e12}).steps
    assert staged.l2 == pytest.approx(1e12 / 64 * 4 / (PEAK.l2 * blocks / 132))


def test_operations_go_to_the_phase_that_does_them():
    problem = _pointwise(1)
    steps = [
        _launch("winograd_input", At("a"), At("v")),
        _launch("gemm", At("v"), At("u"), At("m"), blocks=264),
        _launch("gemm", At("v"), At("u"), At("m"), blocks=132),
        _launch("winograd_output", At("m"), At("out")),
    ]
    flops = {"input_transform": 1e9, "multiply": 3e9, "filter_transform": 2e9, "output_transform": 4e9, "other": 6e9}
    before = [_launch("winograd_filter", At("b"), At("u"))]
    workspace = {name: Buffer((1000,)) for name in "uvm"}
    program = Program(tuple(steps), tuple(before), workspace)
    assert model._operations(tuple(program.all_steps()), flops) == pytest.approx([2e9, 1e9, 6e9, 3e9, 4e9])
    raw = predict(program, problem, flops, "float32", H200, lambda launch: None)
    packed = predict(program, problem, flops, "float32", H200, lambda launch: None, packed=True)
    assert len(raw.steps) == len(packed.steps) + 1
    assert packed.seconds < raw.seconds


def test_operations_of_transforms_are_not_counted_twice():
    flops = {"input_transform": 1e9, "multiply": 3e9, "filter_transform": 2e9, "output_transform": 4e9}
    product = Product(At("u"), At("v"), At("m"), 10, 10, 10, 10, 10, 10)
    tiles = (
        _launch("fft_tile_forward", At("b"), At("u")),
        _launch("fft_tile_forward", At("a"), At("v")),
        product,
        _launch("fft_tile_inverse", At("m"), At("out")),
    )
    # The filter's have no launch of a name of their own: all transforms share them.
    assert model._operations(tiles, flops) == pytest.approx([0.5e9 + 2e9 / 3, 0.5e9 + 2e9 / 3, 2000, 4e9 + 2e9 / 3])
    whole = (
        _launch("fft_load", At("a"), At("u")),
        Transform("forward", At("u"), At("v"), 2, 8, 8),
        _launch("fft_multiply", At("v"), At("u"), At("m")),
        _launch("fft_store", At("m"), At("out")),
    )
    assert model._operations(whole, flops) == pytest.approx([0, 2.5 * 2 * 64 * 6, 3e9, 0])


def test_products_of_the_vendor_count_themselves():
    problem = _pointwise(1)
    product = Product(At("u"), At("v"), At("m"), 1024, 4096, 1024, 1024, 4096, 4096)
    workspace = {"u": Buffer((1 << 20,)), "v": Buffer((1 << 22,)), "m": Buffer((1 << 22,))}
    (step,) = _predict([product], problem, {"multiply": 1e15}, **workspace).steps
    done = 2.0 * 1024 * 4096 * 1024
    tiles, waves = 8 * 32, 2
    assert step.compute == pytest.approx(done / (0.78 * PEAK.vector) * waves * 132 / tiles)
    narrow = Product(At("u"), At("v"), At("m"), 3, 4096, 1024, 1024, 4096, 4096)
    (step,) = _predict([narrow], problem, **workspace).steps
    assert step.compute > 2.0 * 3 * 4096 * 1024 / PEAK.vector * 4  # most of every tile is empty
    half = Product(At("u"), At("v"), At("m"), 1024, 4096, 1024, 1024, 4096, 4096, arithmetic="float16-acc32")
    (step,) = _predict([half], problem, **workspace).steps
    assert step.compute == pytest.approx(done / (0.75 * PEAK.half) * waves * 132 / tiles)


def test_transforms_and_zeros_are_moves():
    problem = _pointwise(1)
    workspace = {"real": Buffer((512, 512, 512)), "half": Buffer((512, 512, 257), "complex64")}
    steps = [Transform("forward", At("real"), At("half"), 512, 512, 512), Zero("real")]
    transform, zero = _predict(steps, problem, **workspace).steps
    points = 512**3
    assert transform.memory == pytest.approx((4 * points + 8 * 512 * 512 * 257) / PEAK.memory)
    assert transform.compute == pytest.approx(2.5 * points * 18 / (PEAK.vector * model.TRANSFORM_EFFICIENCY))
    assert zero.memory == pytest.approx(4 * points / PEAK.memory)
    assert (zero.compute, zero.name) == (0, "zero")


def test_the_whole_is_bound_by_what_takes_most_of_its_time():
    problem = _pointwise(1024)
    many = [_launch("pack_bit", At("u"), At("v")) for _ in range(9)]
    small = {"u": Buffer((64,)), "v": Buffer((64,))}
    assert _predict(many, problem, **small).bound == "launch"
    both = [*many, _launch("gemm", At("a"), At("out"))]
    assert _predict(both, problem, {"multiply": 1e12}, **small).bound == "compute"


def test_a_cache_forgets_what_it_has_not_seen_for_longest():
    cache = model._L2(100)
    assert cache.missed({("a", 0): 60, ("b", 0): 40}) == 100
    assert cache.missed({("a", 0): 60}) == 0
    assert cache.missed({("c", 0): 10}) == 10  # b leaves
    assert cache.missed({("a", 0): 60}) == 0
    assert cache.missed({("b", 0): 40}) == 40  # c leaves
    assert cache.missed({("d", 0): 101}) == cache.missed({("d", 0): 101}) == 101
    assert L2_SHARE < 1


# ---- the command


class _Copies(CudaImplementation):
    name = "copies_cuda"
    arithmetic = "float32"
    passes = (Pass.FORWARD, Pass.BACKWARD_WEIGHTS)
    layouts = ("nchw",)

    def limits(self, problem: Problem) -> str | None:
        return "copies_cuda: at most 100 channels" if problem.shape.c > 100 else None

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        steps = (_launch("gemm", At("a"), At("u"), At("out")),)
        return Program(steps, (_launch("pack_filter", At("b"), At("u")),), {"u": Buffer((64,))})


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    def unavailable(launch, gpu):
        raise Unavailable("no compiler")

    monkeypatch.setattr(roofline, "compile_for", unavailable)
    monkeypatch.setattr("convbench.catalog.load", lambda: type("C", (), {"implementations": {"copies": _Copies()}}))
    path = tmp_path / "shapes.yaml"
    layers = '- {name: one, shape: "mb1ic64ih28oc64oh28kh3ph1"}\n  - {name: two, shape: "mb1ic128ih28oc64oh28kh3ph1"}'
    path.write_text(f"source: a test\nconfirmed: true\nlayers:\n  {layers}\n")
    return path


def test_the_command_prints_a_line_for_what_is_supported(shapes, capsys):
    passes = ["fwd", "bwd_data", "bwd_weights"]
    assert roofline.main([str(shapes), "--batch", "1", "8", "--pass", *passes, "--layout", "nchw", "nhwc"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["row", "layer", "N", "pass", "layout", "ms", "packed", "bound", "TFLOP/s"]
    assert [line.split()[:5] for line in lines] == [
        ["copies_cuda", "one", n, pass_, "nchw"] for n in ("1", "8") for pass_ in ("fwd", "bwd_weights")
    ]


def test_the_command_writes_a_file(shapes, tmp_path):
    assert roofline.main([str(shapes), "--pass", "fwd", "bwd_weights", "--csv", str(tmp_path / "p.csv")]) == 0
    forward, backward = csv.DictReader((tmp_path / "p.csv").open())
    assert (forward["row"], forward["layer"], forward["n"], forward["pass"]) == ("copies_cuda", "one", "1", "fwd")
    assert (forward["steps"], forward["workspace_bytes"]) == ("2", "256")
    assert float(forward["ms_packed"]) == pytest.approx(float(forward["ms"]) - 2.5e-3, abs=1e-4)
    flops = 2 * 28 * 28 * 64 * 64 * 9
    assert float(forward["tflops"]) == pytest.approx(flops / float(forward["ms"]) / 1e9, rel=1e-4)
    assert backward["ms_packed"] == ""
    assert not math.isnan(float(backward["ms"]))


def test_the_command_says_what_is_wrong(shapes, capsys):
    assert roofline.main([str(shapes), "--rows", "nothing_*"]) == EXIT_FAILED
    assert "no CUDA row is called nothing_*" in capsys.readouterr().err
    assert roofline.main([str(shapes) + "x"]) != 0
    assert "shapes.yamlx" in capsys.readouterr().err


def test_what_was_predicted_can_be_read():
    path = resources.folder("reports") / "reference" / "h200-predicted" / "predictions.csv"
    with path.open() as file:
        predicted = list(csv.DictReader(file))
    assert list(predicted[0]) == [f.name.rstrip("_") for f in fields(roofline.Line)]
    assert {line["n"] for line in predicted} == {"1", "8", "32", "128"}
    assert {line["pass"] for line in predicted} == {"fwd", "bwd_data", "bwd_weights"}
    assert all(0 < float(line["ms"]) < 1e5 for line in predicted)
    most = {"int8-acc32": PEAK.int8, "binary": PEAK.bit}
    assert all(float(line["tflops"]) < most.get(line["arithmetic"], 990e12) / 1e12 for line in predicted)
