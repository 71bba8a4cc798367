"""How tiled FFT convolution in the simd tier is cut: tile size, products, blocks; chosen by a model of the time.

Every pass is brought to one picture. Data of `c_in` channels go through filters to `c_out` channels: forward as it
is, backward data with turned filters and the channels exchanged. Backward weights has the tiles of x as its data, the
tiles of dy in place of the filters, and sums over tiles where the others sum over channels. Only taps that meet the
image for at least one output take part.

Two ways to go through the tiles of the data passes:

    blocked   a block of tiles is transformed, multiplied panel by panel and transformed back by one thread; its
              spectra stay in the second-level cache, the filter's are read again for every block.
    staged    all tiles (a large group of them) are transformed, then multiplied frequency by frequency, then
              transformed back: the filter's spectra are read once. Threads share tiles, frequencies, tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from convbench.algorithms._fft_geometry import Taps
from convbench.problem import Pass, Problem

if TYPE_CHECKING:
    from convbench.simd.target import Target

LENGTHS = (8, 12, 16, 20, 24, 28, 32)
CACHE_BYTES = 1 << 20  # of the second-level cache: what a thread's block may take
GROUP_BYTES = 6 << 20  # spectra of a staged group of tiles: beyond, writing them takes three times as long
WEIGHTS_GROUP_BYTES = 64 << 20  # the same for backward weights
STRIP_ELEMENTS = 1 << 16
PAD = 16  # elements between planes: their distance must not be a multiple of a large power of two
THREADS = 2  # that the estimates of workspace reckon with

# One thread of a Xeon with AVX-512 at about 3.3 GHz, 2026-11.
PRODUCT_FLOPS_NS = {3: 175.0, 4: 165.0}  # full blocks of the matrix kernels
CALL_NS = 12.0  # of a matrix kernel, whatever its size
STREAM_BYTES_NS = 14.0  # beyond the second-level cache
CACHE_BYTES_NS = 60.0  # from the second-level cache
# A vector of values of a tile, either direction, by the longer side.
TRANSFORM_NS = {8: 3.0, 12: 3.2, 16: 3.5, 20: 3.9, 24: 4.2, 28: 4.4, 32: 4.5}


def up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Side:
    """An activation as it is cut into tiles: channels, size, what lies before the first tile, tile distance, extent.

    used: rows and columns of a tile that hold data; beyond them it is zero.
    """

    channels: int
    size: tuple[int, int]
    begin: tuple[int, int]
    used: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """All decisions for one problem. tile: height, width. products: 3 or 4 real ones for a complex one.

    block: tiles in a block (blocked) or in a group (staged; all passes of backward weights are). vectors: width of
    the matrix kernel's panels.
    """

    problem: Problem
    target: Target = field(repr=False)
    tile: tuple[int, int]
    products: int
    staged: bool
    block: int
    vectors: int

    # ---- geometry

    @cached_property
    def taps(self) -> tuple[Taps, Taps]:
        """Useful taps of both axes."""
        return Taps.both(self.problem.shape)

    @property
    def kept(self) -> tuple[int, int]:
        """Taps that take part, rows and columns."""
        return self.taps[0].count, self.taps[1].count

    @property
    def is_weights_pass(self) -> bool:
        """Backward weights."""
        return self.problem.pass_ is Pass.BACKWARD_WEIGHTS

    @property
    def step(self) -> tuple[int, int]:
        """Results of a tile that are valid."""
        return self.tile[0] - self.kept[0] + 1, self.tile[1] - self.kept[1] + 1

    @property
    def result_size(self) -> tuple[int, int]:
        """What is cut into tiles: y (dy for backward weights), or dx."""
        s = self.problem.shape
        return (s.h, s.w) if self.problem.pass_ is Pass.BACKWARD_DATA else (s.p, s.q)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of an image."""
        return -(-self.result_size[0] // self.step[0]), -(-self.result_size[1] // self.step[1])

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.problem.shape.n * self.grid[0] * self.grid[1]

    @cached_property
    def data(self) -> Side:
        """What is transformed whole: x, or dy for backward data."""
        s, (rows, cols) = self.problem.shape, self.taps
        if self.problem.pass_ is Pass.BACKWARD_DATA:
            begin = (rows.count - 1 - rows.begin, cols.count - 1 - cols.begin)
            return Side(s.k, (s.p, s.q), begin, self.tile)
        return Side(s.c, (s.h, s.w), (rows.begin, cols.begin), self.tile)

    @cached_property
    def gradient(self) -> Side:
        """dy of backward weights: each of its elements in one tile alone."""
        s = self.problem.shape
        return Side(s.k, (s.p, s.q), (0, 0), self.step)

    # ---- channels

    @property
    def depthwise(self) -> bool:
        """One channel in and out of each group: products element by element."""
        s = self.problem.shape
        return s.groups > 1 and s.cg == s.kg == 1

    @property
    def c_in(self) -> int:
        """Channels of a group that a result sums over (backward weights: rows of the filter's matrix)."""
        s = self.problem.shape
        return s.kg if self.problem.pass_ is Pass.BACKWARD_DATA else s.cg

    @property
    def c_out(self) -> int:
        """Channels of a group of the result; all of a depthwise convolution, which has no use for its groups."""
        s = self.problem.shape
        if self.depthwise:
            return s.k
        return s.cg if self.problem.pass_ is Pass.BACKWARD_DATA else s.kg

    @property
    def groups(self) -> int:
        """Groups as the products see them."""
        return 1 if self.depthwise else self.problem.shape.groups

    @property
    def panel(self) -> int:
        """Elements of a row of a panel of filters."""
        return self.vectors * self.target.lanes

    @property
    def panels_of_group(self) -> int:
        """Panels that a group's c_out fill."""
        return -(-self.c_out // self.panel)

    @property
    def parts(self) -> int:
        """Panels of all groups."""
        return self.groups * self.panels_of_group

    @property
    def parts_together(self) -> int:
        """Small groups whose results are transformed back together."""
        return max(1, min(self.parts, 64 // self.c_out)) if self.panels_of_group == 1 else 1

    @property
    def batches(self) -> int:
        """Sets of parts that are transformed back together."""
        return -(-self.parts // self.parts_together)

    @property
    def batch_pitch(self) -> int:
        """Elements of a row of a batch's results."""
        return self.panel if self.parts_together == 1 else up(self.parts_together * self.c_out, self.target.lanes)

    # ---- planes

    @property
    def frequencies(self) -> int:
        """Complex ones; four more are real."""
        return self.tile[0] * self.tile[1] // 2 - 2

    @property
    def planes(self) -> int:
        """Planes of the data's spectra, of the filter's, of the products."""
        return (3 if self.products == 3 else 2) * self.frequencies + 4

    @property
    def data_pitch(self) -> int:
        """Elements of a tile's row in a plane of data."""
        return up(self.data.channels, self.target.lanes)

    @property
    def gradient_pitch(self) -> int:
        """The same for dy of backward weights."""
        return up(self.gradient.channels, self.target.lanes)

    @property
    def data_plane(self) -> int:
        """Elements from plane to plane."""
        return up(self.block * self.data_pitch, 16) + PAD

    @property
    def gradient_plane(self) -> int:
        """The same for dy."""
        return up(self.block * self.gradient_pitch, 16) + PAD

    @property
    def filter_plane(self) -> int:
        """Elements from plane to plane of one part of the filter's spectra."""
        return up(self.c_in * self.panel, 16) + PAD

    @property
    def result_pitch(self) -> int:
        """Elements of a tile's row in a plane of products."""
        return self.batch_pitch * (self.batches if self.staged else 1)

    @property
    def result_plane(self) -> int:
        """Elements from plane to plane of the products (data passes)."""
        return up(self.block * self.result_pitch, 16) + PAD

    @property
    def filter_elements(self) -> int:
        """All spectra of the filter."""
        return self.parts * self.planes * self.filter_plane

    @property
    def most_rows(self) -> int:
        """Rows of the largest block of the matrix kernel."""
        from convbench.simd.kernels.fft_product import rows_for
        from convbench.simd.kernels.gemm import shape_for

        if self.products == 4:
            return rows_for(self.target, self.vectors)
        return shape_for(self.target, self.vectors).rows

    # ---- strips

    def in_place(self, layout: str, channels: int) -> bool:
        """Whether tiles are read from (written to) an activation without a copy in between."""
        return layout == "nhwc" and (self.target.free_masks or channels % self.target.lanes == 0)

    def strip(self, side: Side) -> tuple[int, int]:
        """(tiles, channels) of a strip that is gathered at once."""
        rows, cols = side.used
        lanes = self.target.lanes
        run = (STRIP_ELEMENTS // (rows * lanes) - cols) // self.step[1] + 1
        run = max(1, min(run, self.grid[1]))
        span = (run - 1) * self.step[1] + cols
        wide = max(1, STRIP_ELEMENTS // (rows * span * lanes)) * lanes
        return run, min(wide, up(side.channels, lanes))

    def strip_elements(self, side: Side) -> int:
        """Elements of that strip."""
        run, wide = self.strip(side)
        return side.used[0] * ((run - 1) * self.step[1] + side.used[1]) * wide

    @property
    def result_run(self) -> int:
        """Tiles whose results are scattered at once."""
        each = self.step[0] * self.step[1] * self.batch_pitch
        return max(1, min(self.grid[1], STRIP_ELEMENTS // each))

    @property
    def tap_channels(self) -> int:
        """Input channels of a part whose taps are transformed (or written) at once."""
        s = self.problem.shape
        return max(1, min(self.c_in, STRIP_ELEMENTS // (s.r * s.s * self.panel)))

    # ---- backward weights

    @property
    def rows(self) -> int:
        """Rows (channels of x) of backward weights whose products are in cache at once, whole blocks if possible."""
        if self.depthwise:
            return 1
        most = max(1, CACHE_BYTES // (4 * self.planes * self.panel))
        pieces = -(-self.c_in // most)
        rows = -(-self.c_in // pieces)
        whole = up(rows, self.most_rows)
        return min(whole if whole <= most else rows, self.c_in)

    @property
    def row_blocks(self) -> int:
        """Blocks of such rows in a part."""
        return -(-self.c_in // self.rows)

    @property
    def weights_plane(self) -> int:
        """Elements from plane to plane of the products of backward weights."""
        return up(self.rows * self.panel, 16) + PAD

    @property
    def work_groups(self) -> int:
        """Groups of tiles (staged) or blocks (blocked)."""
        return -(-self.tiles // self.block)

    # ---- memory

    @property
    def thread_elements(self) -> int:
        """Scratch of one thread: a transform's, a strip, and where it works in blocks their spectra."""
        strips = [self.strip_elements(self.data)]
        s = self.problem.shape
        if self.is_weights_pass:
            strips += [self.strip_elements(self.gradient), self.kept[0] * self.kept[1] * self.rows * self.panel]
        else:
            strips += [self.result_run * self.step[0] * self.step[1] * self.batch_pitch]
            strips += [s.r * s.s * self.tap_channels * self.panel]
        total = self.scratch_elements + up(max(strips), 16) + PAD
        if self.is_weights_pass:
            return total + (self.planes * self.weights_plane if self.work_groups == 1 else 0)
        if not self.staged:
            total += self.planes * self.data_plane + self.planes * self.result_plane
        return total

    @property
    def scratch_elements(self) -> int:
        """Scratch of a transform, and a vector of zeros' and of unwanted results' places."""
        return (self.tile[0] + 1) * self.tile[1] * self.target.lanes + 2 * PAD

    @property
    def shared_elements(self) -> int:
        """Spectra that all threads share: data and products of a staged group; the filter's come on top."""
        if self.is_weights_pass:
            total = self.planes * (self.data_plane + self.gradient_plane)
            if self.work_groups > 1:
                total += self.parts * self.row_blocks * self.planes * self.weights_plane
            return total
        if not self.staged:
            return 0
        return self.planes * self.data_plane + self.planes * self.result_plane

    def workspace_bytes(self) -> int:
        """Everything, with THREADS threads."""
        filters = 0 if self.is_weights_pass else self.filter_elements
        return 4 * (THREADS * self.thread_elements + self.shared_elements + filters)

    # ---- operations

    def executed_flops(self) -> dict[str, float]:
        """By phase, as the kernels are written: zeros and unwanted results cost nothing."""
        from convbench.simd.kernels.fft import forward_operations, inverse_operations

        s, tiles, pairs = self.problem.shape, self.tiles, self.problem.shape.k * self.problem.shape.cg
        products = (6.0 if self.products == 3 else 8.0) * self.frequencies + 8.0
        if self.depthwise and not self.is_weights_pass:
            products /= 2  # nothing is added
        data = float(forward_operations(self.tile, self.data.used))
        if self.is_weights_pass:
            return {
                "input_transform": tiles * (data * s.c + forward_operations(self.tile, self.gradient.used) * s.k),
                "multiply": products * tiles * pairs,
                "output_transform": float(inverse_operations(self.tile, self.kept)) * pairs,
            }
        out = s.c if self.problem.pass_ is Pass.BACKWARD_DATA else s.k
        return {
            "input_transform": data * tiles * self.data.channels,
            "filter_transform": float(forward_operations(self.tile, self.kept)) * pairs,
            "multiply": products * tiles * pairs,
            "output_transform": float(inverse_operations(self.tile, self.step)) * tiles * out,
        }

    # ---- the model

    def expected_ns(self) -> float:
        """Time of one run with packed weights in one thread, roughly."""
        lanes = self.target.lanes
        points = self.tile[0] * self.tile[1]
        transform = TRANSFORM_NS[max(self.tile)] * points
        vectors_in = self.data_pitch // lanes
        if self.is_weights_pass:
            total = transform * self.tiles * (vectors_in + self.gradient_pitch // lanes)
            total += transform * self.parts * self.c_in * self.vectors
            total += self._product_ns(self.parts * self.row_blocks, self.rows, self.tiles, 0.0)
            spectra = 4 * self.planes * (self.data_plane + self.gradient_plane) * self.work_groups
            total += spectra * 2 / STREAM_BYTES_NS + 4 * self.planes * self.tiles * (
                self.data_pitch * (self.parts - 1) + self.gradient_pitch * (self.row_blocks - 1)
            ) / CACHE_BYTES_NS
            if self.work_groups > 1:
                total += 8 * self.work_groups * self.planes * pair_count(self) / STREAM_BYTES_NS
            return total
        total = transform * self.tiles * (vectors_in + self.batches * self.batch_pitch // lanes)
        rows = -(-self.tiles // self.work_groups)
        filters = 4 * self.filter_elements
        stream = filters / (CACHE_BYTES_NS if filters < CACHE_BYTES // 2 else STREAM_BYTES_NS)
        total += self.work_groups * self._product_ns(self.parts, rows, self.c_in, stream)
        if self.staged:
            spectra = self.planes * self.data_plane + self.planes * self.result_plane
            total += 2 * 4 * spectra * self.work_groups / STREAM_BYTES_NS
        return total

    def _product_ns(self, parts: int, rows: int, depth: int, stream: float) -> float:
        """Matrix products of `rows` rows over all frequencies and `parts` panels; stream: reading the filters.

        Four products fetch the filters while they compute; three leave about half of that uncovered.
        """
        times = self.products * self.frequencies + 4
        if self.depthwise:
            return times * parts * rows * (self.vectors * 1.0 + 2.0) + stream
        blocks = -(-rows // self.most_rows)
        used = rows / (blocks * self.most_rows)  # a block of few rows waits for its additions and for B
        speed = PRODUCT_FLOPS_NS[self.products] * min(1.0, 0.35 + 0.75 * used)
        calls = CALL_NS * parts * blocks * times / (4 if self.products == 4 else 1)
        compute = calls + times * parts * 2.0 * rows * depth * min(self.panel, self.c_out) / speed
        return compute + stream / 2 if self.products == 3 else max(compute, stream)


def pair_count(plan: Plan) -> int:
    """Channel pairs that have a filter."""
    return plan.problem.shape.k * plan.problem.shape.cg


def candidates(problem: Problem, target: Target) -> Iterator[Plan]:
    """All plans that the model compares."""
    from convbench.simd.kernels.gemm import vectors_for

    taps = Taps.both(problem.shape)
    weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
    for height in LENGTHS:
        for width in LENGTHS:
            if height < taps[0].count or width < taps[1].count:
                continue
            first = Plan(problem, target, (height, width), 3, True, 1, 1)
            first = replace(first, vectors=vectors_for(target, first.c_out))
            for products in (3,) if first.depthwise else (3, 4):
                vectors = complex_vectors(target, first.c_out) if products == 4 else first.vectors
                plan = replace(first, products=products, vectors=vectors)
                for staged in (True,) if weights else (True, False):
                    plan = replace(plan, staged=staged, block=1)
                    yield replace(plan, block=_block(plan))


def complex_vectors(target: Target, columns: int) -> int:
    """Registers that hold a row of a panel of complex filters: two where there are registers enough for many rows."""
    return 2 if target.registers >= 32 and columns > target.lanes else 1


def _block(plan: Plan) -> int:
    """Tiles of a block: what the budget holds, balanced, in whole blocks of the matrix kernel where they are many."""
    each = plan.planes * plan.data_pitch
    if plan.is_weights_pass:
        each += plan.planes * plan.gradient_pitch
    else:
        each += plan.planes * plan.result_pitch
    budget = GROUP_BYTES if plan.staged else CACHE_BYTES
    most = max(1, (WEIGHTS_GROUP_BYTES if plan.is_weights_pass else budget) // (4 * each))
    rows = plan.most_rows
    if most >= plan.tiles:
        return plan.tiles
    if most > rows:
        most -= most % rows
    blocks = -(-plan.tiles // most)
    return min(most, up(-(-plan.tiles // blocks), rows) if most > rows else most)


@lru_cache(maxsize=512)
def choose(problem: Problem, target: Target, only: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """The plan that the model expects to be fastest. only: pairs (field, value) that it must have, for tests."""
    fitting = [p for p in candidates(problem, target) if all(getattr(p, name) == value for name, value in only)]
    return min(fitting, key=Plan.expected_ns)
