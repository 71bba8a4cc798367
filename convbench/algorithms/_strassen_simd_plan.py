"""Strassen's product in 1x1 convolution: which pixels are multiplied, the sizes of blocks and buffers, the operations.

Both passes compute out[o(i, j), :] = a[a(i, j), :] B on a grid of pixels (i, j) that lies evenly spaced in both images:
forward, every stride-th pixel of the input and the output pixels that are not on padding; backward data, the same
with the two exchanged. Pixels of the result that no (i, j) reaches are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbench.problem import Pass, Problem
from convbench.simd.kernels import gemm, gemm_pixels
from convbench.simd.kernels.strassen import ENTRY, PRODUCTS
from convbench.simd.target import Target

#: A product with a shorter side stays whole: little to gain, and a result of few terms would have the rounding errors
#: of a neighbour that is many times as large.
LEAST_SIDE = 8
#: Channels that one product of halves spans at most: longer sums are put down in between, so that the panel that is
#: read and the next one stay in the second-level cache beside the pixels.
HALF = 256
#: A filter with its sums of at most so many bytes stays in the second-level cache: then blocks of pixels are small, so
#: that their sums are still near when they are multiplied, and the next pixels are fetched ahead, not the filter.
NEAR_BYTES = 1 << 20
#: One image of at most so many pixels, raw weights: all pixels are one block, and each panel of the filter is packed
#: just before it is used, into a buffer that stays in the second-level cache.
FLY_PIXELS = 256
#: Pairs of pixels that are turned together.
TURNED_PAIRS = 8
#: Most cache lines of the next panel that are fetched in a turn of the k loop.
MOST_FETCHES = 3
#: Blocks of rows of the micro-kernel in each half of such a block of pixels.
NEAR_BLOCKS = 3
#: Pairs of pixels of a block otherwise: the filter is read from the third-level cache for each of them.
FAR_PAIRS = 49


@dataclass(frozen=True)
class Axis:
    """Grid points along one axis, and where they lie in `a` and in the result: start + index * step."""

    count: int
    a_start: int
    a_step: int
    out_start: int
    out_step: int

    @staticmethod
    def of(problem: Problem, which: int) -> Axis:
        """Rows (0) or columns (1)."""
        s = problem.shape
        size, outputs = (s.h, s.w)[which], (s.p, s.q)[which]
        stride, begin = s.stride[which], s.padding[2 * which]
        first = -(-begin // stride)
        count = max(0, min(outputs, (size - 1 + begin) // stride + 1) - first)
        x, y = (first * stride - begin, stride), (first, 1)
        return Axis(count, *x, *y) if problem.pass_ is Pass.FORWARD else Axis(count, *y, *x)


@dataclass(frozen=True)
class Plan:
    """Sizes for one problem and vector unit; channels and filters are of one group, of `a` and of the result.

    blocks: of an image's pixels. fly: panels are packed one by one. shape: of the micro-kernel. strip, turned: pixels
    are copied together first (nchw, or an odd number of channels); results are turned at the end (nchw).
    """

    images: int
    groups: int
    channels: int
    filters: int
    rows: Axis
    columns: Axis
    a_size: tuple[int, int]
    out_size: tuple[int, int]
    turned: bool
    shape: gemm.Shape
    width: int
    blocks: int
    fly: bool

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.rows.count * self.columns.count

    @property
    def depth(self) -> int:
        """Channels, and one of zeros where their number is odd."""
        return self.channels + self.channels % 2

    @property
    def half(self) -> int:
        """Depth of the products, except where channels end."""
        blocks = -(-self.depth // (2 * HALF))
        even = -(-self.depth // (2 * blocks))
        return min(self.depth // 2, -(-even // 16) * 16)

    @property
    def steps(self) -> int:
        """Sums that are added up in the result."""
        return -(-self.depth // (2 * self.half))

    @property
    def left(self) -> int:
        """Filters in the left half, the larger one."""
        return -(-self.filters // 2)

    @property
    def panels(self) -> int:
        """Panels of each half of the filters."""
        return -(-self.left // self.width)

    @property
    def near(self) -> bool:
        """Whether the filter stays in the second-level cache."""
        return _near(self.channels, self.filters)

    @property
    def strip(self) -> bool:
        """Whether pixels are copied together."""
        return self.turned or self.channels % 2 == 1

    @property
    def merged(self) -> bool:
        """Whether pixels lie beside each other over the ends of rows."""
        c = self.columns
        return c.a_step == c.out_step == self.rows.a_step == self.rows.out_step == 1 and (
            c.count == self.a_size[1] == self.out_size[1]
        )

    @property
    def covers(self) -> bool:
        """Whether every pixel of the result is on the grid."""
        return self.pixels == self.out_size[0] * self.out_size[1]

    @property
    def top(self) -> int:
        """Rows of the upper half of the largest block."""
        return -(-self.units // self.blocks) * self.unit

    @property
    def unit(self) -> int:
        """Pairs of pixels that stay in one block: nchw is turned 16 pixels at a time."""
        return TURNED_PAIRS if self.turned else 1

    @property
    def units(self) -> int:
        """Of one image."""
        return -(-self.pairs // self.unit)

    @property
    def pairs(self) -> int:
        """Of pixels of one image, one in each half of a block; the last one may lack its partner."""
        return -(-self.pixels // 2)

    @property
    def packed_floats(self) -> int:
        """Of the filter and its sums, where they are kept."""
        return 0 if self.fly else self.groups * self.panels * PRODUCTS * (self.depth // 2) * self.width

    def scratch(self) -> dict[str, int]:
        """Where the parts of one thread's scratch begin, in bytes; `end` is its size."""
        pixels = 2 * self.top
        sizes = {
            "table": 8 * ENTRY * self.top,
            "tile": 4 * 2 * self.shape.rows * self.width,
            "spare": 4 * self.filters,
            "panel": 4 * PRODUCTS * self.half * self.width if self.fly else 0,
            "sums": 4 * self.top * self.sum_row,
            "strip": 4 * pixels * self.strip_step * self.strip_row if self.strip else 0,
            "result": 4 * pixels * self.columns.out_step * self.result_row if self.turned else 0,
        }
        places, at = {}, 0
        for name, size in sizes.items():
            places[name], at = at, at + -(-size // 64) * 64
        return places | {"end": at + 64}

    @property
    def sum_row(self) -> int:
        """Floats between the sums of two rows, off powers of two."""
        return 4 * self.half + 16

    @property
    def strip_row(self) -> int:
        """Floats of a pixel in the strip, off powers of two."""
        return self.depth + 16

    @property
    def result_row(self) -> int:
        """Floats of a pixel of results that are to be turned."""
        return self.filters + 16

    @property
    def fetches(self) -> int:
        """Cache lines fetched in a turn of the k loop, so that the next panel is near in time."""
        if self.near or self.fly:
            return 1
        lines = self.shape.unroll * self.width // 16  # as many of this panel are read in a turn
        return min(MOST_FETCHES, -(-lines // -(-self.top // self.shape.rows)))

    @property
    def strip_step(self) -> int:
        """Pixels of a strip from one grid point to the next: nchw rows are copied whole."""
        return self.columns.a_step if self.turned else 1


def splits(problem: Problem) -> bool:
    """Whether a product is split at all: see LEAST_SIDE."""
    s = problem.shape
    return min(s.cg, s.kg, Axis.of(problem, 0).count * Axis.of(problem, 1).count) >= LEAST_SIDE


def _near(channels: int, filters: int) -> bool:
    return PRODUCTS * channels * filters <= NEAR_BYTES  # 7 matrices of a quarter of the filter's floats


def plan(problem: Problem, target: Target, raw: bool) -> Plan:
    """Of forward or backward data. raw: the filter comes with each call."""
    s, forward = problem.shape, problem.pass_ is Pass.FORWARD
    channels, filters = (s.cg, s.kg) if forward else (s.kg, s.cg)
    image, gradient = (s.h, s.w), (s.p, s.q)
    a_size, out_size = (image, gradient) if forward else (gradient, image)
    vectors = gemm.vectors_for(target, -(-filters // 2))
    shape = gemm.Shape(gemm_pixels.rows_for(target, vectors), vectors, 4)
    axes = Axis.of(problem, 0), Axis.of(problem, 1)
    turned, pairs = problem.layout == "nchw", max(1, -(-axes[0].count * axes[1].count // 2))
    most = NEAR_BLOCKS * shape.rows if _near(channels, filters) else FAR_PAIRS
    fly = raw and s.n == 1 and 2 * pairs <= FLY_PIXELS
    if turned:
        pairs, most = -(-pairs // TURNED_PAIRS), -(-most // TURNED_PAIRS)
    return Plan(
        s.n, s.groups, channels, filters, *axes, a_size, out_size, turned,
        shape, shape.columns(target), 1 if fly else -(-pairs // most), fly,
    )  # fmt: skip


def bytes_of(made: Plan, threads: int) -> int:
    """Of all buffers."""
    return 4 * made.packed_floats + threads * made.scratch()["end"] + 16 * made.half


def flops(made: Plan) -> dict[str, float]:
    """Executed operations by phase; the pixel that an odd number of them lacks is multiplied all the same.

    The filter's sums are counted as if they were formed in each call, as they are with raw weights.
    """
    rows, half = float(made.images * made.groups * made.pairs), made.depth // 2
    return {
        "input_sums": 4.0 * rows * half,
        "filter_sums": 4.0 * made.groups * half * made.left,
        "multiply": 2.0 * PRODUCTS * rows * half * made.left,
        "output_sums": (2.0 * made.steps + 4.0 * (made.steps - 1)) * rows * made.left,
    }
