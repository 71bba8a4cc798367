"""How tiled FFT convolution in the simd tier is cut: tile size, products, blocks (`_fft_simd_model.py` chooses them).

`_fft_simd_tiling.py` brings all passes to one picture. Two ways to go through the tiles of the data passes:

    blocked   a block of tiles is transformed, multiplied panel by panel and transformed back by one thread; its
              spectra stay in the second-level cache, the filter's are read again for every block.
    staged    all rows (of a large group of tiles) are transformed along the width, tiles above each other sharing
              them; then one column of frequencies after the other of all tiles is transformed along the height,
              multiplied and transformed back; then all rows back. The filter's spectra are read once, and those of
              a column's tiles stay in the second-level cache. Threads share rows, columns, rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from convbench.algorithms._fft_simd_tiling import Side, Tiling, odd_lines, up

CACHE_BYTES = 1 << 20  # of the second-level cache: what a thread's block may take
STRIP_ELEMENTS = 1 << 16
PAD = 16  # elements between planes: their distance must not be a multiple of a large power of two
THREADS = 2  # that the estimates of workspace reckon with


@dataclass(frozen=True)
class Plan(Tiling):
    """All decisions for one problem. products: 3 or 4 real ones for a complex one.

    block: tiles in a block (blocked) or in a group (staged; all plans of backward weights are). In the data passes a
    group consists of whole rows of tiles, at least one. vectors: width of the matrix kernel's panels.
    """

    products: int
    staged: bool
    block: int
    vectors: int

    # ---- groups

    @cached_property
    def by_columns(self) -> bool:
        """Staged data passes: columns of frequencies one by one, groups of whole rows of tiles."""
        return self.staged and not self.is_weights_pass

    @cached_property
    def tile_rows(self) -> int:
        """Rows of tiles of all images."""
        return self.problem.shape.n * self.grid[0]

    @cached_property
    def group_rows(self) -> int:
        """Rows of tiles of a group at most."""
        return min(self.tile_rows, max(1, self.block // self.grid[1]))

    @cached_property
    def at_once(self) -> int:
        """Tiles whose spectra stand beside each other at most."""
        return self.group_rows * self.grid[1] if self.by_columns else self.block

    @cached_property
    def work_groups(self) -> int:
        """Groups of tiles (staged) or blocks (blocked)."""
        if self.by_columns:
            return -(-self.tile_rows // self.group_rows)
        return -(-self.tiles // self.block)

    # ---- panels

    @cached_property
    def panel(self) -> int:
        """Elements of a row of a panel of filters."""
        return self.vectors * self.target.lanes

    @cached_property
    def panels_of_group(self) -> int:
        """Panels that a group's c_out fill."""
        return -(-self.c_out // self.panel)

    @cached_property
    def parts(self) -> int:
        """Panels of all groups."""
        return self.groups * self.panels_of_group

    @cached_property
    def parts_together(self) -> int:
        """Small groups whose results are transformed back together."""
        return max(1, min(self.parts, 64 // self.c_out)) if self.panels_of_group == 1 else 1

    @cached_property
    def batches(self) -> int:
        """Sets of parts that are transformed back together."""
        return -(-self.parts // self.parts_together)

    @cached_property
    def batch_pitch(self) -> int:
        """Elements of a row of a batch's results."""
        return self.panel if self.parts_together == 1 else up(self.parts_together * self.c_out, self.target.lanes)

    # ---- planes

    @cached_property
    def frequencies(self) -> int:
        """Complex ones; four more are real."""
        return self.tile[0] * self.tile[1] // 2 - 2

    @cached_property
    def planes(self) -> int:
        """Planes of the data's spectra, of the filter's, of the products."""
        return (3 if self.products == 3 else 2) * self.frequencies + 4

    @cached_property
    def data_pitch(self) -> int:
        """Elements of a tile's row in a plane of data."""
        return up(self.data.channels, self.target.lanes)

    @cached_property
    def gradient_pitch(self) -> int:
        """The same for dy of backward weights."""
        return up(self.gradient.channels, self.target.lanes)

    @cached_property
    def data_plane(self) -> int:
        """Elements from plane to plane."""
        return up(self.at_once * self.data_pitch, 16) + PAD

    @cached_property
    def gradient_plane(self) -> int:
        """The same for dy."""
        return up(self.at_once * self.gradient_pitch, 16) + PAD

    @cached_property
    def filter_plane(self) -> int:
        """Elements from plane to plane of one part of the filter's spectra."""
        return up(self.c_in * self.panel, 16) + PAD

    @cached_property
    def result_pitch(self) -> int:
        """Elements of a tile's row in a plane of products."""
        return self.batch_pitch * (self.batches if self.staged else 1)

    @cached_property
    def result_plane(self) -> int:
        """Elements from plane to plane of the products (data passes)."""
        return up(self.at_once * self.result_pitch, 16) + PAD

    @cached_property
    def slab(self) -> int:
        """Planes of the largest column of frequencies."""
        return (3 if self.products == 3 else 2) * self.tile[0]

    @cached_property
    def half_rows(self) -> int:
        """Rows of a group that are transformed along the width, at most: tiles above each other share them."""
        images = min(self.problem.shape.n - 1, -(-(self.group_rows - 1) // self.grid[0]))
        return (self.group_rows - 1) * self.step[0] + self.tile[0] + images * (self.tile[0] - self.step[0])

    @cached_property
    def half_row(self) -> int:
        """Elements from such a row to the next; an odd number of lines."""
        return odd_lines(self.grid[1] * self.data_pitch)

    @cached_property
    def half_part(self) -> int:
        """Elements from the real or imaginary parts of one frequency of all those rows to the next."""
        return odd_lines(self.half_rows * self.half_row)

    @cached_property
    def result_row(self) -> int:
        """The same for rows of results whose columns are transformed back."""
        return odd_lines(self.grid[1] * self.result_pitch)

    @cached_property
    def result_part(self) -> int:
        """The same for their parts."""
        return odd_lines(self.group_rows * self.step[0] * self.result_row)

    @cached_property
    def filter_elements(self) -> int:
        """All spectra of the filter."""
        return self.parts * self.planes * self.filter_plane

    @cached_property
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

    @cached_property
    def result_run(self) -> int:
        """Tiles whose results are scattered at once."""
        each = self.step[0] * self.step[1] * self.batch_pitch
        return max(1, min(self.grid[1], STRIP_ELEMENTS // each))

    def row_wide(self, span: int, channels: int) -> int:
        """Channels of a strip of one row of `span` pixels."""
        lanes = self.target.lanes
        return min(max(1, STRIP_ELEMENTS // (span * lanes)) * lanes, up(channels, lanes))

    @cached_property
    def spans(self) -> tuple[int, int]:
        """Pixels of a row of tiles: data, results."""
        return (self.grid[1] - 1) * self.step[1] + self.tile[1], self.grid[1] * self.step[1]

    @cached_property
    def tap_channels(self) -> int:
        """Input channels of a part whose taps are transformed (or written) at once."""
        s = self.problem.shape
        return max(1, min(self.c_in, STRIP_ELEMENTS // (s.r * s.s * self.panel)))

    # ---- backward weights

    @cached_property
    def rows(self) -> int:
        """Rows (channels of x) of backward weights whose products are in cache at once, whole blocks if possible."""
        if self.depthwise:
            return 1
        most = max(1, CACHE_BYTES // (4 * self.planes * self.panel))
        pieces = -(-self.c_in // most)
        rows = -(-self.c_in // pieces)
        whole = up(rows, self.most_rows)
        return min(whole if whole <= most else rows, self.c_in)

    @cached_property
    def row_blocks(self) -> int:
        """Blocks of such rows in a part."""
        return -(-self.c_in // self.rows)

    @cached_property
    def weights_plane(self) -> int:
        """Elements from plane to plane of the products of backward weights."""
        return up(self.rows * self.panel, 16) + PAD

    # ---- memory

    @cached_property
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

    @cached_property
    def block_elements(self) -> int:
        """Spectra and products that a thread keeps of its own."""
        if self.is_weights_pass:
            return self.planes * self.weights_plane if self.work_groups == 1 else 0
        return (self.slab if self.staged else self.planes) * (self.data_plane + self.result_plane)

    @cached_property
    def scratch_elements(self) -> int:
        """Scratch of a transform, and a vector of zeros' and of unwanted results' places."""
        return (self.tile[0] + 1) * self.tile[1] * self.target.lanes + 2 * PAD

    @cached_property
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
