"""1x1 convolution of nchw images without turning them: out[K, PQ] = filter[K, C] x input[C, PQ] for each image.

Pixels lie beside each other in nchw, so they take the columns of the product and the filter's rows take the place of
pixels: `gemm_pixels` with the operands exchanged. A task copies one panel of pixels, (C, width), beside each other into
its scratch (rows of a panel lie a whole plane apart in the image) and multiplies it with all rows of the filter.
Backward data is the same with the filter turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.algorithms._simd import address_of
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run
from convbench.simd.driver import Runner, call, item, task
from convbench.simd.kernels import gemm, gemm_pixels, pack
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target

#: The table of parameters. rows: pairs (place in the filter, place in the result) of the filter's rows. block:
#: channels between two accumulations. copy: the kernel that fills a panel.
NAMES = (
    "a", "filter", "out", "scratch", "per_thread", "images", "groups", "panels", "width", "pixels", "channels",
    "filters", "block", "kernel", "rows", "segments", "copy", "w", "turned", "transpose",
)  # fmt: skip
(
    A, FILTER, OUT, SCRATCH, PER_THREAD, IMAGES, GROUPS, PANELS, WIDTH, PIXELS, CHANNELS,
    FILTERS, BLOCK, KERNEL, ROWS, SEGMENTS, COPY, W, TURNED, TRANSPOSE,
) = range(len(NAMES))  # fmt: skip

#: Steps of k after which accumulators are put down, as in `_gemm_simd`.
DEPTH = 1152


@dataclass(frozen=True)
class Sizes:
    """Of one problem, per group: channels are summed over, filters are the rows of the product."""

    images: int
    groups: int
    channels: int
    filters: int
    pixels: int
    turned: bool  # the filter

    @staticmethod
    def of(problem: Problem) -> Sizes:
        """Of forward or backward data."""
        s, backward = problem.shape, problem.pass_ is Pass.BACKWARD_DATA
        channels, filters = (s.kg, s.cg) if backward else (s.cg, s.kg)
        return Sizes(s.n, s.groups, channels, filters, s.p * s.q, backward)

    @property
    def block(self) -> int:
        """Channels between two accumulations, about the same for all."""
        return -(-self.channels // -(-self.channels // DEPTH))


#: Fewest pixels of an image. With 56 x 56 this way took 0.71 to 0.91 of the time of turned strips (1 thread of a Xeon
#: with AVX-512, 2026-11; 64 -> 64, 64 -> 256, 256 -> 64 channels), with 28 x 28 0.99 to 1.03, with 14 x 14 1.08 to
#: 1.15: rows of a small plane are not aligned.
LEAST_PIXELS = 1024


def applies(problem: Problem) -> bool:
    """Whether pixels are the columns: nchw, no stride, no padding, and a plane that is large enough."""
    s = problem.shape
    plain = problem.layout == "nchw" and s.stride == (1, 1) and s.padding == (0, 0, 0, 0) and s.r == s.s == 1
    return plain and problem.pass_ is not Pass.BACKWARD_WEIGHTS and s.p * s.q >= LEAST_PIXELS


def shape_of(problem: Problem, target: Target) -> gemm.Shape:
    """Block of the micro-kernel: vectors of pixels, rows of the filter."""
    vectors = gemm.vectors_for(target, problem.shape.p * problem.shape.q)
    return gemm.Shape(gemm_pixels.rows_for(target, vectors), vectors, 2)


def workspace_bytes(problem: Problem, target: Target, packed: bool) -> int:
    """One thread's panel, tables and, where it is turned or kept, the filter."""
    z, width = Sizes.of(problem), shape_of(problem, target).columns(target)
    filter_floats = z.groups * z.channels * z.filters if packed or z.turned else 0
    return 4 * (z.channels * width + filter_floats) + 8 * (2 * z.filters + 2)


@task
def panel_task(index: int, thread: int, p: int) -> None:
    """Task: image, group, panel of pixels, the last changing fastest."""
    panels, groups, width = item(p, PANELS), item(p, GROUPS), item(p, WIDTH)
    pixels, channels, filters = item(p, PIXELS), item(p, CHANNELS), item(p, FILTERS)
    panel, group, image = index % panels, index // panels % groups, index // (panels * groups)
    left = min(width, pixels - panel * width)
    scratch = item(p, SCRATCH) + 4 * item(p, PER_THREAD) * thread
    plane = image * groups + group
    source = item(p, A) + 4 * (plane * channels * pixels + panel * width)
    call(item(p, COPY), (channels, left, source, pixels, scratch))
    rows = item(p, FILTER) + 4 * group * filters * channels
    out = item(p, OUT) + 4 * (plane * filters * pixels + panel * width)
    for first in range(0, channels, item(p, BLOCK)):
        depth = min(item(p, BLOCK), channels - first)
        call(item(p, KERNEL), (
            filters, left, item(p, ROWS), rows + 4 * first, scratch + 4 * first * width, item(p, SEGMENTS), 1, depth,
            out, 1 if first > 0 else 0, rows, 0,
        ))  # fmt: skip


@task
def turn_task(index: int, thread: int, p: int) -> None:
    """Task: the filter of one group, (channels, filters) turned to (filters, channels)."""
    channels, filters = item(p, CHANNELS), item(p, FILTERS)
    offset = 4 * index * channels * filters
    call(item(p, TRANSPOSE), (channels, filters, item(p, W) + offset, filters, item(p, TURNED) + offset, channels))


def prepare(problem: Problem, context: Context, weights: Any, target: Target) -> Run:
    """run(a, b, out), or run(a, out) where the filter is given now."""
    z, shape = Sizes.of(problem), shape_of(problem, target)
    width = shape.columns(target)
    per_thread = z.channels * width + 16
    scratch = context.empty(per_thread * context.threads, np.float32)
    numbers = np.arange(z.filters)
    rows = np.ascontiguousarray(np.stack([numbers * z.channels, numbers * z.pixels], axis=1), np.int64)  # (filters, 2)
    segments = np.zeros(2, np.int64)
    own = context.empty(z.groups * z.channels * z.filters, np.float32) if z.turned or weights is not None else None
    context.account(rows.nbytes + segments.nbytes, "tables")
    panels = -(-z.pixels // width)
    values = {
        "filter": 0 if own is None else address_of(own), "scratch": address_of(scratch), "per_thread": per_thread,
        "images": z.images, "groups": z.groups, "panels": panels, "width": width, "pixels": z.pixels,
        "channels": z.channels, "filters": z.filters, "block": z.block,
        "kernel": gemm_pixels.pixels(target, shape).address, "rows": address_of(rows),
        "segments": address_of(segments), "copy": pack.panel(target, shape.vectors).address,
        "turned": 0 if own is None else address_of(own), "transpose": transpose(target).address,
    }  # fmt: skip
    parameters = np.zeros(len(NAMES), np.int64)
    for name, value in values.items():
        parameters[NAMES.index(name)] = value
    products, turning = (Runner(t, parameters, context.threads) for t in (panel_task, turn_task))
    kept = (scratch, rows, segments, own)

    def run_packed(a: np.ndarray, out: np.ndarray, kept: Any = kept) -> None:
        parameters[A], parameters[OUT] = address_of(a), address_of(out)
        products(z.images * z.groups * panels)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        parameters[W if z.turned else FILTER] = address_of(b)
        if z.turned:
            turning(z.groups)
        run_packed(a, out)

    if weights is None:
        return run
    assert own is not None
    if z.turned:
        parameters[W] = address_of(weights)
        turning(z.groups)
    else:
        own[...] = weights.ravel()
    return run_packed
