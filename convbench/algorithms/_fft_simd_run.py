"""Tables, buffers and kernels of one tiled FFT convolution in the simd tier: a Plan made ready to run."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms import _fft_simd as loops
from convbench.algorithms import _fft_simd_columns as columns
from convbench.algorithms import _fft_simd_weights as of_weights
from convbench.algorithms._fft_simd_plan import PAD, Plan
from convbench.algorithms._fft_simd_tiling import Side
from convbench.algorithms._simd import address_of
from convbench.problem import Pass
from convbench.registry import Context
from convbench.simd.driver import Runner
from convbench.simd.kernels import fft, fft_halves
from convbench.simd.kernels.fft_product import complex_product, rows_for
from convbench.simd.kernels.gemm import brgemm, shape_for
from convbench.simd.kernels.transpose import transpose

TASKS_PER_THREAD = 4  # so that shares come out even


class Prepared:
    """One plan with its workspace. The kernels' addresses stay valid because the kernels are kept for the process."""

    def __init__(self, plan: Plan, context: Context, phases: int = -1) -> None:
        self.plan, self.threads = plan, context.threads
        self.table = np.zeros(loops.N_PARAMETERS, np.int64)
        self._kept: list[Any] = []  # what the table holds addresses of
        self._buffers(context)
        self._scalars(phases)
        self._filter_strides()
        self.data = self._side(plan.data, fft.DATA_3 if plan.products == 3 else fft.DATA_4)
        self.table[loops.DATA] = address_of(self.data)
        self.data[[loops.S_PITCH, loops.S_PLANE]] = plan.data_pitch, plan.data_plane
        if plan.is_weights_pass:
            self.gradient = self._side(plan.gradient, fft.FILTER_3 if plan.products == 3 else fft.FILTER_4)
            self.gradient[[loops.S_PITCH, loops.S_PLANE]] = plan.gradient_pitch, plan.gradient_plane
            self.gradient[loops.S_SPECTRA] = self.data[loops.S_SPECTRA] + 4 * plan.planes * plan.data_plane
            self.table[loops.GRADIENT] = address_of(self.gradient)
        self._kernels()
        self._runners()

    # ---- what the table holds

    def _keep(self, array: Any) -> int:
        self._kept.append(array)
        return address_of(array)

    def _buffers(self, context: Context) -> None:
        plan, t = self.plan, self.table
        per_thread = (plan.thread_elements + 511) // 512 * 512 + PAD
        t[loops.SCRATCH] = self._keep(context.empty(per_thread * self.threads, np.float32))
        t[loops.PER_THREAD] = per_thread
        t[loops.STRIP] = plan.scratch_elements
        small = context.empty(2 * PAD, np.float32)
        small[:] = 0.0
        t[loops.ZEROS] = self._keep(small)
        t[loops.DUMP] = t[loops.ZEROS] + 4 * PAD
        spectra = plan.shared_elements
        self._shared = self._keep(context.empty(spectra, np.float32)) if spectra else 0
        if not plan.is_weights_pass:
            t[loops.FILTER] = self._keep(context.empty(plan.filter_elements, np.float32))

    def _scalars(self, phases: int) -> None:
        plan, t, s = self.plan, self.table, self.plan.problem.shape
        backward = plan.problem.pass_ is Pass.BACKWARD_DATA
        out_channels = s.c if backward else s.k
        values = {
            loops.OUT_NCHW: plan.problem.layout == "nchw", loops.OUT_CHANNELS: out_channels,
            loops.OUT_HEIGHT: plan.result_size[0], loops.OUT_WIDTH: plan.result_size[1],
            loops.OUT_IN_PLACE: plan.in_place(plan.problem.layout, plan.c_out), loops.OUT_RUN: plan.result_run,
            loops.FILTER_PLANE: plan.filter_plane, loops.PRODUCTS: plan.products,
            loops.FREQUENCIES: plan.frequencies, loops.PANEL: plan.panel, loops.PARTS: plan.parts,
            loops.PANELS_OF_GROUP: plan.panels_of_group, loops.C_IN: plan.c_in, loops.C_OUT: plan.c_out,
            loops.DEPTHWISE: plan.depthwise, loops.TOGETHER: plan.parts_together, loops.BATCHES: plan.batches,
            loops.BATCH_PITCH: plan.batch_pitch, loops.RESULT_PITCH: plan.result_pitch,
            loops.RESULT_PLANE: plan.result_plane, loops.STEP_H: plan.step[0], loops.STEP_W: plan.step[1],
            loops.GRID_H: plan.grid[0], loops.GRID_W: plan.grid[1], loops.TILES: plan.tiles,
            loops.LANES: plan.target.lanes, loops.MOST_ROWS: shape_for(plan.target, plan.vectors).rows,
            loops.TAPS_R: s.r, loops.TAPS_S: s.s, loops.FIRST_R: plan.taps[0].first,
            loops.FIRST_S: plan.taps[1].first, loops.KEPT_R: plan.kept[0], loops.KEPT_S: plan.kept[1],
            loops.TURNED: backward, loops.TAP_SLICES: -(-plan.c_in // plan.tap_channels),
            loops.ROW_BLOCKS: plan.row_blocks if plan.is_weights_pass else 0, loops.PHASES: phases,
            loops.TILE_H: plan.tile[0], loops.TILE_W: plan.tile[1],
            loops.RUNS: plan.batches if plan.parts_together > 1 else plan.groups,
            loops.BLOCK_SPECTRA: plan.thread_elements - plan.block_elements,
        }  # fmt: skip
        for index, value in values.items():
            t[index] = int(value)
        if plan.is_weights_pass:
            t[loops.WEIGHTS_PLANE] = plan.weights_plane
            if plan.work_groups > 1:
                t[loops.RESULTS] = self._shared + 4 * plan.planes * (plan.data_plane + plan.gradient_plane)
        elif plan.staged:
            t[[loops.HALVES, loops.HALF_ROW, loops.HALF_PART]] = self._shared, plan.half_row, plan.half_part
            t[loops.RESULT_HALVES] = self._shared + 4 * plan.tile[1] * plan.half_part
            t[[loops.RESULT_ROW, loops.RESULT_PART]] = plan.result_row, plan.result_part
            t[loops.RESULT_WIDE] = plan.row_wide(plan.spans[1], plan.result_pitch)

    def _filter_strides(self) -> None:
        """Strides of w in elements, by the roles that K and C play in the pass."""
        plan, t, s = self.plan, self.table, self.plan.problem.shape
        of_k = s.cg * s.r * s.s
        of_c, of_tap = (s.r * s.s, 1) if plan.problem.layout == "nchw" else (1, s.cg)
        if plan.depthwise:
            of_out, of_in, of_group = of_k, 0, 0
        elif plan.problem.pass_ is Pass.BACKWARD_DATA:
            of_out, of_in, of_group = of_c, of_k, s.kg * of_k
        else:
            of_out, of_in, of_group = of_k, of_c, s.kg * of_k
        t[[loops.W_OUT, loops.W_IN, loops.W_TAP, loops.W_GROUP]] = of_out, of_in, of_tap, of_group

    def _side(self, side: Side, planes: str) -> np.ndarray:
        """The table of an activation that is cut into tiles."""
        plan, table = self.plan, np.zeros(loops.S_END_W + 1, np.int64)
        self._kept.append(table)
        run, wide = plan.strip(side)
        in_place = plan.in_place(plan.problem.layout, side.channels)
        run = 1 if in_place else run
        tiles = min(plan.block, plan.tiles)
        if plan.by_columns:
            wide = plan.row_wide(plan.spans[0], side.channels)
        chunks = plan.tile[0] if plan.by_columns else -(-tiles // run)
        vectors = -(-side.channels // plan.target.lanes)
        slices = 1
        if self.threads > 1 and chunks < TASKS_PER_THREAD * self.threads:
            slices = min(vectors, -(-TASKS_PER_THREAD * self.threads // chunks))
        whole = None if plan.by_columns else fft.forward(plan.target, plan.tile, side.used, planes)
        values = {
            loops.S_NCHW: plan.problem.layout == "nchw", loops.S_CHANNELS: side.channels,
            loops.S_HEIGHT: side.size[0], loops.S_WIDTH: side.size[1], loops.S_TOP: side.begin[0],
            loops.S_LEFT: side.begin[1], loops.S_ROWS: side.used[0], loops.S_COLUMNS: side.used[1],
            loops.S_IN_PLACE: in_place, loops.S_KERNEL: whole.address if whole else 0, loops.S_RUN: run,
            loops.S_WIDE: wide, loops.S_SLICES: slices, loops.S_CHUNK: run,
            loops.S_SPECTRA: self._shared, loops.S_END_H: side.end[0], loops.S_END_W: side.end[1],
        }  # fmt: skip
        for index, value in values.items():
            table[index] = int(value)
        return table

    def _kernels(self) -> None:
        plan, t = self.plan, self.table
        target, shape = plan.target, shape_for(plan.target, plan.vectors)
        t[loops.TRANSPOSE] = transpose(target).address
        if plan.depthwise:
            t[loops.MULTIPLY] = (fft.multiply_sum if plan.is_weights_pass else fft.multiply)(target).address
        else:
            t[loops.GEMM] = brgemm(target, shape, not plan.is_weights_pass).address
        if plan.products == 4:
            t[loops.COMPLEX_GEMM] = complex_product(target, plan.vectors, plan.is_weights_pass).address
            t[loops.COMPLEX_ROWS] = rows_for(target, plan.vectors)
        if plan.by_columns:
            planes = fft.DATA_3 if plan.products == 3 else fft.DATA_4
            t[loops.ROW_KERNEL] = fft_halves.row(target, plan.tile[1], plan.tile[1]).address
            t[loops.COLUMN_KERNEL] = fft_halves.column(target, plan.tile, planes).address
            inverse = fft_halves.column_inverse(target, plan.tile, plan.step[0], plan.products)
            t[loops.COLUMN_INVERSE] = inverse.address
            t[loops.ROW_INVERSE] = fft_halves.row_inverse(target, plan.tile[1], plan.step[1]).address
        else:
            kept = plan.kept if plan.is_weights_pass else plan.step
            t[loops.INVERSE] = fft.inverse(target, plan.tile, kept, plan.products).address
        if not plan.is_weights_pass:
            planes = fft.FILTER_3 if plan.products == 3 else fft.FILTER_4
            t[loops.FILTER_KERNEL] = fft.forward(target, plan.tile, plan.kept, planes).address
        t[loops.SEGMENTS] = self._keep(np.zeros(2, np.int64))

    def _runners(self) -> None:
        plan, t = self.plan, self.table

        def runner(work: Any) -> Runner:
            return Runner(work, t, self.threads)

        if plan.is_weights_pass:
            self.load, self.products = runner(of_weights.load_task), runner(of_weights.weights_task)
            return
        self.filters = runner(of_weights.filter_task)
        if not plan.staged:
            blocks = plan.work_groups
            if self.threads > 1 and blocks % self.threads:  # every thread as many
                blocks = min(plan.tiles, -(-blocks // self.threads) * self.threads)
            t[loops.BLOCKS] = blocks
            self.blocks = runner(loops.block_task)
            return
        self.load, self.products = runner(columns.rows_task), runner(columns.columns_task)
        self.store = runner(columns.results_task)
        columns_of_all, wanted = plan.tile[1] // 2, TASKS_PER_THREAD * self.threads if self.threads > 1 else 1
        t[loops.SPLITS] = min(plan.tiles // plan.work_groups, -(-wanted // columns_of_all))

    # ---- running

    def transform_filters(self, w: Any) -> None:
        """Spectra of all filters."""
        self.table[loops.W] = address_of(w)
        self.filters(int(self.plan.parts * self.table[loops.TAP_SLICES]))

    def run_raw(self, a: Any, w: Any, out: Any) -> None:
        """The filter's transform is on the clock."""
        self.transform_filters(w)
        self.run(a, out)

    def run(self, a: Any, out: Any) -> None:
        """The filter's spectra are there."""
        plan, t = self.plan, self.table
        self.data[loops.S_ADDRESS], t[loops.OUT] = address_of(a), address_of(out)
        if not plan.staged:
            self.blocks(int(t[loops.BLOCKS]))
            return
        for _ in self._groups():
            first, last = int(t[loops.FIRST]), int(t[loops.END]) - 1
            images = last // plan.grid[0] - first // plan.grid[0]
            rows = (last - first) * plan.step[0] + plan.tile[0] + images * (plan.tile[0] - plan.step[0])
            self.load(rows * int(self.data[loops.S_SLICES]))
            self.products(plan.tile[1] // 2 * int(t[loops.SPLITS]))
            self.store((last - first + 1) * plan.step[0] * int(t[loops.RUNS]))

    def run_weights(self, x: Any, dy: Any, dw: Any) -> None:
        """Backward weights."""
        plan, t = self.plan, self.table
        self.data[loops.S_ADDRESS], self.gradient[loops.S_ADDRESS] = address_of(x), address_of(dy)
        t[loops.W] = address_of(dw)
        if plan.kept != (plan.problem.shape.r, plan.problem.shape.s):
            dw.fill(0)  # taps that read padding alone
        for i in self._groups():
            t[loops.ACCUMULATE], t[loops.LAST] = int(i > 0), int(i == plan.work_groups - 1)
            self.load(int(self.data[loops.S_COUNT] + self.gradient[loops.S_COUNT]))
            self.products(plan.parts * plan.row_blocks)

    def _groups(self) -> Any:
        """Sets the table to one group of tiles (by columns: of rows of tiles) after the other."""
        plan, t = self.plan, self.table
        total = plan.tile_rows if plan.by_columns else plan.tiles
        for i in range(plan.work_groups):
            first, end = (total * k // plan.work_groups for k in (i, i + 1))
            t[[loops.FIRST, loops.END]] = first, end
            for side in (self.data, self.gradient) if plan.is_weights_pass else ():
                side[loops.S_COUNT] = -(-(end - first) // int(side[loops.S_CHUNK])) * side[loops.S_SLICES]
            yield i
