"""How tiled FFT convolution in the simd tier is cut: tile size, products, blocks (`_fft_simd_model.py` chooses them).

Every pass is brought to one picture. Data of `c_in` channels go through filters to `c_out` channels: forward as it
is, backward data with turned filters and the channels exchanged. Backward weights has the tiles of x as its data, the
tiles of dy in place of the filters, and sums over tiles where the others sum over channels. Only taps that meet the
image for at least one output take part.

Two ways to go through the tiles of the data passes:

    blocked   a block of tiles is transformed, multiplied panel by panel and transformed back by one thread; its
              spectra stay in the second-level cache, the filter's are read again for every block.
    staged    all rows (of a large group of tiles) are transformed along the width, tiles above each other sharing
              them; then one column of frequencies after the other of all tiles is transformed along the height,
              multiplied and transformed back; then all rows back. The filter's spectra are read once, and those of
              a column's tiles stay in the second-level cache. Threads share rows, columns, rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from convbench.algorithms._fft_geometry import Taps
from convbench.problem import Pass, Problem

if TYPE_CHECKING:
    from convbench.simd.target import Target

CACHE_BYTES = 1 << 20  # of the second-level cache: what a thread's block may take
STRIP_ELEMENTS = 1 << 16
PAD = 16  # elements between planes: their distance must not be a multiple of a large power of two
THREADS = 2  # that the estimates of workspace reckon with


def up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def odd_lines(value: int) -> int:
    """The next multiple of 16 elements that is no multiple of 32, so that strides spread over the cache's sets."""
    lines = -(-value // 16)
    return 16 * (lines + 1 - lines % 2)


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

    block: tiles in a block (blocked) or in a group (staged; all plans of backward weights are). In the data passes a
    group consists of whole rows of tiles, at least one. vectors: width of the matrix kernel's panels.
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

    # ---- groups

    @property
    def by_columns(self) -> bool:
        """Staged data passes: columns of frequencies one by one, groups of whole rows of tiles."""
        return self.staged and not self.is_weights_pass

    @property
    def tile_rows(self) -> int:
        """Rows of tiles of all images."""
        return self.problem.shape.n * self.grid[0]

    @property
    def group_rows(self) -> int:
        """Rows of tiles of a group at most."""
        return min(self.tile_rows, max(1, self.block // self.grid[1]))

    @property
    def at_once(self) -> int:
        """Tiles whose spectra stand beside each other at most."""
        return self.group_rows * self.grid[1] if self.by_columns else self.block

    @property
    def work_groups(self) -> int:
        """Groups of tiles (staged) or blocks (blocked)."""
        if self.by_columns:
            return -(-self.tile_rows // self.group_rows)
        return -(-self.tiles // self.block)

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
        return up(self.at_once * self.data_pitch, 16) + PAD

    @property
    def gradient_plane(self) -> int:
        """The same for dy."""
        return up(self.at_once * self.gradient_pitch, 16) + PAD

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
        return up(self.at_once * self.result_pitch, 16) + PAD

    @property
    def slab(self) -> int:
        """Planes of the largest column of frequencies."""
        return (3 if self.products == 3 else 2) * self.tile[0]

    @property
    def half_rows(self) -> int:
        """Rows of a group that are transformed along the width, at most: tiles above each other share them."""
        images = min(self.problem.shape.n - 1, -(-(self.group_rows - 1) // self.grid[0]))
        return (self.group_rows - 1) * self.step[0] + self.tile[0] + images * (self.tile[0] - self.step[0])

    @property
    def half_row(self) -> int:
        """Elements from such a row to the next; an odd number of lines."""
        return odd_lines(self.grid[1] * self.data_pitch)

    @property
    def half_part(self) -> int:
        """Elements from the real or imaginary parts of one frequency of all those rows to the next."""
        return odd_lines(self.half_rows * self.half_row)

    @property
    def result_row(self) -> int:
        """The same for rows of results whose columns are transformed back."""
        return odd_lines(self.grid[1] * self.result_pitch)

    @property
    def result_part(self) -> int:
        """The same for their parts."""
        return odd_lines(self.group_rows * self.step[0] * self.result_row)

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

    def row_wide(self, span: int, channels: int) -> int:
        """Channels of a strip of one row of `span` pixels."""
        lanes = self.target.lanes
        return min(max(1, STRIP_ELEMENTS // (span * lanes)) * lanes, up(channels, lanes))

    @property
    def spans(self) -> tuple[int, int]:
        """Pixels of a row of tiles: data, results."""
        return (self.grid[1] - 1) * self.step[1] + self.tile[1], self.grid[1] * self.step[1]

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

    # ---- memory

    @property
    def thread_elements(self) -> int:
        """Scratch of one thread: a transform's, a strip, and where it works in blocks their spectra."""
        s = self.problem.shape
        if self.is_weights_pass:
            strips = [self.strip_elements(self.data), self.strip_elements(self.gradient)]
            strips += [self.kept[0] * self.kept[1] * self.rows * self.panel]
        elif self.staged:
            strips = [
                span * self.row_wide(span, channels)
                for span, channels in zip(self.spans, (self.data.channels, self.result_pitch), strict=True)
            ]
        else:
            strips = [self.strip_elements(self.data), self.result_run * self.step[0] * self.step[1] * self.batch_pitch]
        if not self.is_weights_pass:
            strips += [s.r * s.s * self.tap_channels * self.panel]
        return self.scratch_elements + up(max(strips), 16) + PAD + self.block_elements

    @property
    def block_elements(self) -> int:
        """Spectra and products that a thread keeps of its own."""
        if self.is_weights_pass:
            return self.planes * self.weights_plane if self.work_groups == 1 else 0
        return (self.slab if self.staged else self.planes) * (self.data_plane + self.result_plane)

    @property
    def scratch_elements(self) -> int:
        """Scratch of a transform, and a vector of zeros' and of unwanted results' places."""
        return (self.tile[0] + 1) * self.tile[1] * self.target.lanes + 2 * PAD

    @property
    def shared_elements(self) -> int:
        """What all threads share of a staged group: rows' transforms (backward weights: spectra); no filters."""
        if self.is_weights_pass:
            total = self.planes * (self.data_plane + self.gradient_plane)
            if self.work_groups > 1:
                total += self.parts * self.row_blocks * self.planes * self.weights_plane
            return total
        return self.tile[1] * (self.half_part + self.result_part) if self.staged else 0

    def workspace_bytes(self) -> int:
        """Everything, with THREADS threads."""
        filters = 0 if self.is_weights_pass else self.filter_elements
        return 4 * (THREADS * self.thread_elements + self.shared_elements + filters)
