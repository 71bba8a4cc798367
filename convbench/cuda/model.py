"""A roofline over the steps of a program: what it would take on a GPU, before anything is measured.

Time of a step: the launch, and the longest of
- its operations over the peak of its arithmetic, times an efficiency assumed for that kernel (`EFFICIENCY`), times
  the share of multiprocessors that its grid keeps busy, and that have warps enough to hide latencies;
- what it moves through device memory: each buffer once, less what an L2 (least recently used) still holds from the
  steps before, in the steady state of a program that runs again and again;
- what it moves through the L2: the same buffers, and for products what blocks read again, tile by tile.
Williams, Waterman and Patterson 2009, "Roofline"; wave quantisation as in NVIDIA's "Matrix Multiplication Background".
The model knows neither bank conflicts nor instruction issue; the efficiencies stand for them.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from convbench.cuda.compile import Kernel
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.occupancy import WARP, resident_blocks
from convbench.cuda.program import ITEM_BYTES, At, Launch, Product, Program, Step, Transform, Zero
from convbench.problem import Problem

Usage = Callable[[Launch], Kernel | None]


@dataclass(frozen=True)
class Peaks:
    """What a card can do. Operations and bytes per second; launch: seconds from one step to the next in a graph."""

    vector: float  # fp32, without tensor cores
    tf32: float
    half: float
    int8: float
    bit: float
    memory: float
    l2: float
    launch: float = 2.5e-6


#: H200: fp32, TF32 and int8 of the datasheet, half and copy measured; L2: what was measured on an H100 elsewhere.
#: Bits: 8 times int8 on an A100's datasheet; taken for the same on an H200, whose datasheet has no such figure
#: (unconfirmed).
PEAKS = {
    H200.name: Peaks(67e12, 495e12, 790e12, 1979e12, 8 * 1979e12, 4.3e12, 5.5e12),
    A100.name: Peaks(19.5e12, 156e12, 312e12, 624e12, 4992e12, 1.75e12, 4.0e12),
    T4.name: Peaks(8.1e12, 8.1e12, 65e12, 130e12, 1040e12, 0.26e12, 1.0e12),
}

#: arithmetic of a row -> the peak that its products run at
ARITHMETIC = {
    "float32": "vector", "tf32": "tf32", "3xtf32": "tf32", "float16-acc32": "half", "bfloat16-acc32": "half",
    "int8-acc32": "int8", "binary": "bit",
}  # fmt: skip

#: Share of the peak that a kernel reaches where nothing else holds it up, by its name and perhaps the peak's; the first
#: that fits. From the instruction counts in the kernels' headers, less what such kernels usually lose to latencies;
#: mma.sync feeds Hopper's tensor cores at 60 to 65 % of what wgmma does;
#: where TMA brings the operands, no thread gathers, and wgmma waits less. mma.sync of bytes is taken for as far from
#: its peak as that of TF32 is, and that of bits for half of it: nothing is known of either (unconfirmed). Bits by POPC:
#: 16 words a clock and multiprocessor (CUDA C++ Programming Guide), a sixteenth of a T4's tensor cores.
EFFICIENCY: tuple[tuple[str, float], ...] = (
    ("direct_backward_weights", 0.03),
    ("direct_tiled_*", 0.50),
    ("direct_*", 0.05),
    ("depthwise_*", 0.30),
    ("sgemm_batched", 0.75),
    ("*wgmma*", 0.65),
    ("*popc*", 0.04),
    ("implicit_gemm_mma*:bit", 0.20),
    ("implicit_gemm_tma*", 0.70),
    ("implicit_gemm_mma*:half", 0.50),
    ("implicit_gemm_mma*", 0.43),
    ("implicit_gemm*", 0.70),
    ("winograd_f2", 0.60),
    ("*", 0.30),
)
PRODUCT_EFFICIENCY = {"vector": 0.78, "tf32": 0.65, "half": 0.75, "int8": 0.6, "bit": 0.3}
TRANSFORM_EFFICIENCY = 0.30
#: Square tiles that the vendor's BLAS is taken to choose from, and how much of its rate each keeps.
PRODUCT_TILES = ((128, 1.0), (64, 0.85), (32, 0.5))
#: Warps of a multiprocessor that keep its arithmetic, and its loads, busy.
WARPS_FOR_ARITHMETIC, WARPS_FOR_MEMORY = 8, 16
#: Or shared memory in use that copies in the background can fill: latency times bandwidth, for each multiprocessor.
STAGED_BYTES = 16 << 10
#: Products that a row counts for each product of elements.
PRODUCTS = {"3xtf32": 3.0}
#: Elements of a product in each element of a buffer that the product reads.
ELEMENTS = {"bit": 32.0}
#: Share of the L2 that what was read or written last may be found in.
L2_SHARE = 0.8
#: Names of kernels that only move data, and of those that do a phase's work; all others do "multiply".
MOVES = (
    "im2col*", "pack_*", "direct_tiled_filter", "depthwise_filter", "add_parts", "partial_sums", "fft_load",
    "fft_store", "fft_to_matrices", "fft_from_matrices",
)  # fmt: skip
PHASES = (
    ("fft_tile_forward", "input_transform"),
    ("fft_tile_inverse", "output_transform"),
    ("*filter*", "filter_transform"),
    ("*input*", "input_transform"),
    ("*gradient*", "input_transform"),
    ("winograd_weights", "output_transform"),
    ("*output*", "output_transform"),
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what would bound it."""

    name: str
    compute: float
    memory: float
    l2: float
    launch: float

    @property
    def seconds(self) -> float:
        """With the launch."""
        return max(self.compute, self.memory, self.l2) + self.launch

    @property
    def bound(self) -> str:
        """compute, memory, l2 or launch: the longest of them."""
        times = {"compute": self.compute, "memory": self.memory, "l2": self.l2, "launch": self.launch}
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Prediction:
    """All steps of a program."""

    steps: tuple[StepTime, ...]

    @property
    def seconds(self) -> float:
        """One after another."""
        return sum(step.seconds for step in self.steps)

    @property
    def bound(self) -> str:
        """What most of the time goes to."""
        spent: dict[str, float] = defaultdict(float)
        for step in self.steps:
            spent["launch"] += step.launch
            spent[max(("compute", "memory", "l2"), key=lambda name: getattr(step, name))] += step.seconds - step.launch
        return max(spent, key=lambda name: spent[name], default="launch")


def predict(
    program: Program, problem: Problem, flops: Mapping[str, float], arithmetic: str, gpu: Gpu, usage: Usage,
    packed: bool = False,
) -> Prediction:  # fmt: skip
    """Times of a program's steps; `flops` by phase as a row's executed_flops gives them. packed: without the filter's.

    usage: what a launch's kernel takes, or None where that is not known (then 32 registers are assumed).
    """
    if arithmetic not in ARITHMETIC:
        raise ValueError(f"no peak is known for arithmetic {arithmetic!r}, but for {', '.join(ARITHMETIC)}")
    steps = tuple(program.all_steps())
    sizes = _sizes(program, problem)
    todo = list(zip(steps, _operations(steps, flops), _regions(steps, sizes), strict=True))
    if packed:
        todo = todo[len(program.filter_steps) :]
    cache = _L2(gpu.l2_bytes * L2_SHARE)
    for _, _, moved in todo:  # the run before this one
        cache.missed(moved)
    times = []
    for step, work, moved in todo:
        missed, touched = cache.missed(moved), sum(moved.values())
        times.append(_time(step, work, missed, touched, sizes, arithmetic, gpu, usage))
    return Prediction(tuple(times))


def _time(
    step: Step, flops: float, missed: float, touched: float, sizes: Mapping[str, tuple[int, int]],
    arithmetic: str, gpu: Gpu, usage: Usage,
) -> StepTime:  # fmt: skip
    """missed, touched: bytes of buffers that come from memory, and all of them."""
    peaks, kind = PEAKS[gpu.name], ARITHMETIC[arithmetic]
    products = PRODUCTS.get(arithmetic, 1.0) * ELEMENTS.get(kind, 1.0)
    match step:
        case Launch():
            kernel = usage(step)
            threads, grid = math.prod(step.block), math.prod(step.grid)
            registers, static = (kernel.registers, kernel.shared) if kernel else (32, 0)
            resident = max(1, resident_blocks(gpu, threads, registers, static + step.shared_bytes))
            busy, warps = _busy(grid, resident, threads, gpu)
            moves, phase = _phase(step.kernel)
            peak = peaks.vector if moves or phase != "multiply" else getattr(peaks, kind)
            share = efficiency(step, kind)
            compute = flops / (peak * share * busy * min(1.0, warps / WARPS_FOR_ARITHMETIC))
            again = 0.0 if moves or phase != "multiply" else _read_again(step, flops / products, grid, sizes)
            staged = (static + step.shared_bytes) * warps * WARP / threads >= STAGED_BYTES
            full = (1.0 if staged else min(1.0, warps / WARPS_FOR_MEMORY)) * min(1.0, grid / gpu.multiprocessors)
            l2 = max(touched, again) / (peaks.l2 * full)
            return StepTime(step.kernel, compute, missed / (peaks.memory * full), l2, peaks.launch)
        case Product():
            own = ARITHMETIC[step.arithmetic]
            compute, again = min(_product_times(step, flops, own, peaks, gpu))
            return StepTime("product", compute, missed / peaks.memory, max(touched, again) / peaks.l2, peaks.launch)
        case Transform():
            # Rows, then columns: the half spectra are written, read and written again.
            spectra = 8.0 * step.batch * step.height * (step.width // 2 + 1)
            compute = flops / (peaks.vector * TRANSFORM_EFFICIENCY)
            passes = (missed / peaks.memory, (touched + 2 * spectra) / peaks.l2)
            return StepTime(f"transform {step.kind}", compute, *passes, 2 * peaks.launch)
        case Zero():
            return StepTime("zero", 0.0, missed / peaks.memory, touched / peaks.l2, peaks.launch)


def efficiency(launch: Launch, kind: str) -> float:
    """Share of a peak such as "half" that a kernel is assumed to reach; WGMMA and POPC belong to its name."""
    macros = dict(launch.defines)
    kernel = launch.kernel + "".join(f"_{macro.lower()}" for macro in ("WGMMA", "POPC") if macros.get(macro))
    return next(e for glob, e in EFFICIENCY if fnmatchcase(f"{kernel}:{kind}" if ":" in glob else kernel, glob))


def _busy(grid: int, resident: int, threads: int, gpu: Gpu) -> tuple[float, float]:
    """Share of the multiprocessors' time that blocks fill, the last wave being partly empty; warps on each."""
    most = -(-grid // gpu.multiprocessors)  # blocks of the multiprocessor that has most
    return grid / (most * gpu.multiprocessors), min(resident, most) * threads / WARP


def _read_again(step: Launch, flops: float, grid: int, sizes: Mapping[str, tuple[int, int]]) -> float:
    """Bytes that the blocks of a product read, each the two operands of a tile of its results.

    The tile: BLOCK_M x BLOCK_N or TILE_M x TILE_N of the macros, otherwise a square that holds as many results as there
    are for a block. The last buffer among the arguments is the one that is written.
    """
    buffers = [a.buffer for a in step.arguments if isinstance(a, At)]
    if len(buffers) < 2 or not flops:
        return 0.0
    macros = dict(step.defines)
    sides: tuple[float, float] = (math.sqrt(max(1.0, sizes[buffers[-1]][0] / grid)),) * 2
    for m, n in (("BLOCK_M", "BLOCK_N"), ("TILE_M", "TILE_N")):
        if m in macros and n in macros:
            sides = (float(macros[m]), float(macros[n]))
    return flops * sum(0.5 / side for side in sides) * sizes[buffers[0]][1]


def _product_times(p: Product, flops: float, kind: str, peaks: Peaks, gpu: Gpu) -> Iterator[tuple[float, float]]:
    """(seconds of arithmetic, bytes that tiles read) for each tile that BLAS may choose."""
    item = 2 if kind == "half" else 4
    for side, share in PRODUCT_TILES:
        tiles = -(-p.m // side) * -(-p.n // side) * p.batch
        # Long sums are cut into parts where tiles are few.
        parts = max(1, min(p.k // 512, gpu.multiprocessors // tiles))
        busy, _ = _busy(tiles * parts, 1, 256, gpu)
        done = 2.0 * tiles * side * side * p.k  # the tile's empty part included
        peak = getattr(peaks, kind) * PRODUCT_EFFICIENCY[kind]
        yield max(done, flops) / (peak * share * busy), 2.0 * tiles * side * p.k * item


# ---- operations


def _phase(kernel: str) -> tuple[bool, str]:
    """(whether it only moves data, the phase that it does)."""
    moves = any(fnmatchcase(kernel, pattern) for pattern in MOVES)
    return moves, next((phase for pattern, phase in PHASES if fnmatchcase(kernel, pattern)), "multiply")


def _operations(steps: Sequence[Step], flops: Mapping[str, float]) -> list[float]:
    """Operations of every step: products and transforms by their sizes, phases shared among their launches by blocks.

    Phases that have no launch of their own belong to those that multiply, or to all.
    """
    work = [0.0] * len(steps)
    workers: dict[str, list[int]] = defaultdict(list)
    grids = [math.prod(step.grid) if isinstance(step, Launch) else 0 for step in steps]
    for i, step in enumerate(steps):
        match step:
            case Product():
                work[i] = 2.0 * step.m * step.n * step.k * step.batch
            case Transform():
                points = step.height * step.width
                work[i] = 2.5 * step.batch * points * math.log2(max(2, points))
            case Launch():
                moves, phase = _phase(step.kernel)
                if not moves:
                    workers[phase].append(i)
    elsewhere = {"multiply"} if any(isinstance(step, Product) for step in steps) else set()
    if any(isinstance(step, Transform) for step in steps):
        elsewhere |= {"input_transform", "filter_transform", "output_transform"}
    for phase, count in flops.items():
        if phase in elsewhere:
            continue
        launches = workers.get(phase) or workers.get("multiply") or [i for found in workers.values() for i in found]
        blocks = sum(grids[i] for i in launches)
        for i in launches:
            work[i] += count * grids[i] / blocks
    return work


# ---- bytes

Region = tuple[str, int]


def _sizes(program: Program, problem: Problem) -> dict[str, tuple[int, int]]:
    """(elements, bytes of one) of every buffer."""
    operands = {"a": problem.a_shape, "b": problem.b_shape, "out": problem.out_shape}
    each = {"a": problem.item_bytes, "b": problem.item_bytes, "out": problem.out_item_bytes}
    sizes = {name: (math.prod(shape), each[name]) for name, shape in operands.items()}
    return sizes | {name: (math.prod(b.shape), ITEM_BYTES[b.dtype]) for name, b in program.workspace.items()}


def _regions(steps: Sequence[Step], sizes: Mapping[str, tuple[int, int]]) -> list[dict[Region, float]]:
    """For each step the bytes of each part of a buffer that it touches.

    A launch touches a buffer from its argument to where the next launch of the same kernel begins, or to its end.
    """
    begins: dict[tuple[str, int, str], set[int]] = defaultdict(set)
    for step in steps:
        if isinstance(step, Launch):
            for i, a in enumerate(step.arguments):
                if isinstance(a, At):
                    begins[step.kernel, i, a.buffer].add(a.offset)
    following = {}
    for (kernel, i, buffer), offsets in begins.items():
        ordered = sorted(offsets)
        for first, after in zip(ordered, [*ordered[1:], sizes[buffer][0]], strict=True):
            following[kernel, i, buffer, first] = after - first
    found = []
    for step in steps:
        touched: dict[Region, float] = {}
        for at, elements in _touched(step, following, sizes):
            region = (at.buffer, at.offset)
            touched[region] = max(touched.get(region, 0.0), float(elements * sizes[at.buffer][1]))
        found.append(touched)
    return found


def _touched(
    step: Step, following: Mapping[tuple[str, int, str, int], int], sizes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[At, int]]:
    match step:
        case Launch():
            for i, a in enumerate(step.arguments):
                if isinstance(a, At):
                    yield a, following[step.kernel, i, a.buffer, a.offset]
        case Product():
            yield step.a, step.m * step.k * (step.batch if step.step_a else 1)
            yield step.b, step.k * step.n * (step.batch if step.step_b else 1)
            yield step.c, step.m * step.n * (step.batch if step.step_c else 1)
        case Transform():
            real, half = (step.batch * step.height * w for w in (step.width, step.width // 2 + 1))
            yield step.source, real if step.kind == "forward" else half
            yield step.target, half if step.kind == "forward" else real
        case Zero():
            yield At(step.buffer), sizes[step.buffer][0]


class _L2:
    """What a cache of `capacity` bytes holds, the least recently used leaving first; larger parts are not kept."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self._held: OrderedDict[Region, float] = OrderedDict()

    def missed(self, regions: Mapping[Region, float]) -> float:
        """Touches parts of buffers; bytes that were not there."""
        missing = 0.0
        for region, size in regions.items():
            missing += max(0.0, size - self._held.pop(region, 0.0))
            if size <= self.capacity:
                self._held[region] = size
        while sum(self._held.values()) > self.capacity:
            self._held.popitem(last=False)
        return missing
