"""What must not be done ends as an error of the launch that says where, and the process goes on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from convbench.cuda.gpu import T4
from convbench.cuda.program import Long
from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.emulated import EmulationError, launch

PROBES = Path(__file__).parent / "probes"
ONE = (1, 1, 1)
#: Kernel, threads, arguments beside the array -> what the message must say.
FAULTS = {
    "follow": (64, [Long(-(1 << 40))], r"memory that is not there: address 0x.*block 0,0,0, thread 5,0,0"),
    "divide": (64, [0], "division of an integer by zero"),
    "too_deep": (64, [100000], "memory that is not there"),
    "traps": (64, None, r"__trap\(\) at faults.cu:\d+ \(block 0,0,0, thread 3,0,0\)"),
    "different_barriers": (64, [], r"different barriers: others at faults.cu:\d+, this one at faults.cu:\d+"),
    "one_warp_only": (64, [], r"after some threads of the block exited; threads 0-31 wait in __syncthreads at "
                              r"faults.cu:\d+; threads 32-63 have exited"),
    "lane_is_missing": (32, [], r"deadlock.*threads 0-8, 10-31 wait in a shuffle with mask ffffffff at faults.cu:\d+; "
                                r"threads 9 wait in __syncwarp"),
    "not_in_its_mask": (32, [], "a shuffle with mask 0000ffff by lane 16, which is not in it"),
    "half_a_warp_multiplies": (
        64, [], "mma and ldmatrix need all 32 lanes, and some have exited; threads 0-15, 32-47 wait in mma"
    ),
    "tile_off_by_8": (32, [], r"ldmatrix from an address that is no multiple of 16 at faults.cu"),
    "copies_to_global": (32, [], r"cp.async to outside shared memory at faults.cu"),
    "odd_width": (32, [], "width of a shuffle"),
    "too_much_shared": (32, [], "a write 0 bytes after the end of dynamic shared memory of 112 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_errors_with_a_place(name: str) -> None:
    threads, rest, pattern = FAULTS[name]
    out = np.zeros(256, np.float32)
    arguments = [] if rest is None else [out, *rest]
    with pytest.raises(EmulationError, match=pattern) as raised:
        launch(PROBES / "faults.cu", name, ONE, (threads, 1, 1), arguments, shared_bytes=112)
    assert str(raised.value).startswith(f"{name}: ")
    test_a_launch_after_faults_works()


def test_a_launch_after_faults_works() -> None:
    out = np.zeros(64, np.int32)
    launch(PROBES / "warp.cu", "handed_on", ONE, (64, 1, 1), [out])
    assert (out == np.arange(64) // 32 * 32 + (np.arange(64) + 5) % 32).all()


def test_faults_of_kernels_that_do_not_end() -> None:
    with pytest.raises(EmulationError, match="never_ends: the kernel does not end"):
        launch(PROBES / "faults.cu", "never_ends", ONE, (64, 1, 1), [np.zeros(1, np.int32)], seconds=1)


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "sentence"),
    [
        (ONE, (128, 1, 1), 0, "128 threads in a block, more than __launch_bounds__ promises: 64"),
        (ONE, (64, 1, 1), (64 << 10) + 4, "shared memory, more than 65536"),
    ],
)
def test_faults_of_launches_that_a_gpu_refuses(
    grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int, sentence: str
) -> None:
    with pytest.raises(EmulationError, match=sentence):
        launch(PROBES / "faults.cu", "traps", grid, block, [], shared_bytes, gpu=T4)


def test_arguments_must_be_what_the_kernel_takes() -> None:
    out = np.zeros(64, np.float32)
    with pytest.raises(EmulationError, match="follow takes pl, the launch gives pi"):
        launch(PROBES / "faults.cu", "follow", ONE, (64, 1, 1), [out, 0])
    with pytest.raises(EmulationError, match="has no kernel nothing; it has follow, divide"):
        launch(PROBES / "faults.cu", "nothing", ONE, (64, 1, 1), [out, 0])


def test_what_the_compiler_says_is_in_the_error(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('#include "device.cuh"\nextern "C" __global__ void k(int* x) { *x = nonsense; }\n')
    with pytest.raises(build.CompilationError, match=re.escape("nonsense")):
        build.build(source)
    source.write_text('#include "device.cuh"\nint nothing;\n')
    with pytest.raises(build.CompilationError, match="has no extern"):
        build.build(source)


def test_kernels_are_found_whatever_their_declaration_looks_like(tmp_path: Path) -> None:
    source = tmp_path / "many.cu"
    source.write_text(
        """#include "device.cuh"
        #define KERNEL(name) extern "C" __global__ void __launch_bounds__((TILE / 2) * 4, 2) name(int* x) { *x = TILE; }
        KERNEL(first)
        extern "C" __global__ __launch_bounds__(max_threads()) void second(int* x, float y);
        extern "C" __global__ void third() {}
        #if TILE == 9
        extern "C" __global__ void fourth() {}
        #endif
        """
    )
    found = build.kernels_of(source, {"TILE": 8})
    assert {name: bounds.replace(" ", "") for name, bounds in found.items()} == {
        "first": "(8/2)*4,2", "second": "max_threads()", "third": "",
    }  # fmt: skip
