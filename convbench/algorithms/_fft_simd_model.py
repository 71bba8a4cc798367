"""Which plan of tiled FFT convolution in the simd tier is fastest: a model of the time; the operations of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from convbench.algorithms._fft_simd_plan import CACHE_BYTES, Plan
from convbench.algorithms._fft_simd_tiling import up
from convbench.problem import Pass, Problem

if TYPE_CHECKING:
    from convbench.simd.target import Target

LENGTHS = (8, 12, 16, 20, 24, 28, 32)
HALVES_BYTES = 6 << 20  # rows' transforms of a staged group: beyond, writing them takes three times as long
WEIGHTS_GROUP_BYTES = 64 << 20  # spectra of a group of backward weights

# One thread of a Xeon with AVX-512 at about 3.3 GHz, 2026-11.
PRODUCT_FLOPS_NS = 175.0  # full blocks of the real matrix kernels
COMPLEX_FLOPS_NS = {1: 172.0, 2: 180.0}  # of the complex ones, by the width of their panels
CALL_NS = 12.0  # of a matrix kernel, whatever its size
STREAM_BYTES_NS = 14.0  # beyond the second-level cache
FETCH_BYTES_NS = {True: 25.0, False: 17.0}  # the same, fetched ahead: once in a run, or for each block of tiles
FAR_BYTES, FAR_BYTES_NS = 64 << 20, 13.0  # filters of more bytes than that, read at all
RAW_SHARE = 0.1  # of the filters' transform: on the clock of raw weights alone, and one plan serves both
CACHE_BYTES_NS = 60.0  # from the second-level cache
SPECTRA_BYTES_NS = 26.0  # the same for spectra of a block of CACHE_BYTES; filters drive less of a smaller one out
# A vector of values of a tile, either direction, by the longer side.
TRANSFORM_NS = {8: 3.0, 12: 3.2, 16: 3.5, 20: 3.9, 24: 4.2, 28: 4.4, 32: 4.5}


def executed_flops(plan: Plan) -> dict[str, float]:
    """By phase, as the kernels are written: zeros and unwanted results cost nothing."""
    from convbench.simd.kernels import fft

    s, tiles, pairs = plan.problem.shape, plan.tiles, pair_count(plan)
    products = (6.0 if plan.products == 3 else 8.0) * plan.frequencies + 8.0
    if plan.depthwise and not plan.is_weights_pass:
        products /= 2  # nothing is added
    data = float(fft.forward_operations(plan.tile, plan.data.used)) * tiles
    if plan.is_weights_pass:
        return {
            "input_transform": data * s.c + fft.forward_operations(plan.tile, plan.gradient.used) * tiles * s.k,
            "multiply": products * tiles * pairs,
            "output_transform": float(fft.inverse_operations(plan.tile, plan.kept)) * pairs,
        }
    result = float(fft.inverse_operations(plan.tile, plan.step)) * tiles
    if plan.staged:
        above, below = row_counts(plan)
        data = tiles * float(fft.column_operations(plan.tile, plan.tile[0]))
        data += above * fft.row_operations(plan.tile[1], plan.tile[1])
        result = tiles * float(fft.column_inverse_operations(plan.tile, plan.step[0]))
        result += below * fft.row_inverse_operations(plan.tile[1], plan.step[1])
    return {
        "input_transform": data * plan.data.channels,
        "filter_transform": float(fft.forward_operations(plan.tile, plan.kept)) * pairs,
        "multiply": products * tiles * pairs,
        "output_transform": result * (s.c if plan.problem.pass_ is Pass.BACKWARD_DATA else s.k),
    }


def row_counts(plan: Plan) -> tuple[int, int]:
    """Rows of tiles' width that a staged data pass transforms: of the data, of the results."""
    count, (step, top) = 0, (plan.step[0], plan.data.begin[0])
    for i in range(plan.work_groups):
        first, end = (plan.tile_rows * k // plan.work_groups for k in (i, i + 1))
        while first < end:  # image by image
            row = first % plan.grid[0]
            here = min(end - first, plan.grid[0] - row)
            low = row * step - top
            high = low + (here - 1) * step + plan.tile[0]
            count += max(0, min(high, plan.data.size[0]) - max(low, 0))
            first += here
    return count * plan.grid[1], plan.problem.shape.n * plan.result_size[0] * plan.grid[1]


def pair_count(plan: Plan) -> int:
    """Channel pairs that have a filter."""
    return plan.problem.shape.k * plan.problem.shape.cg


# ---- time


def expected_ns(plan: Plan) -> float:
    """Time of one run with packed weights in one thread, roughly."""
    lanes = plan.target.lanes
    transform = TRANSFORM_NS[max(plan.tile)] * plan.tile[0] * plan.tile[1]
    vectors_in = plan.data_pitch // lanes
    if plan.is_weights_pass:
        total = transform * plan.tiles * (vectors_in + plan.gradient_pitch // lanes)
        total += transform * plan.parts * plan.c_in * plan.vectors
        total += product_ns(plan, plan.parts * plan.row_blocks, plan.rows, plan.tiles, 0.0)
        spectra = 4 * plan.planes * (plan.data_plane + plan.gradient_plane) * plan.work_groups
        total += spectra * 2 / STREAM_BYTES_NS + 4 * plan.planes * plan.tiles * (
            plan.data_pitch * (plan.parts - 1) + plan.gradient_pitch * (plan.row_blocks - 1)
        ) / CACHE_BYTES_NS
        if plan.work_groups > 1:
            total += 8 * plan.work_groups * plan.planes * pair_count(plan) / STREAM_BYTES_NS
        return total
    total = transform * plan.tiles * (vectors_in + plan.batches * plan.batch_pitch // lanes)
    total += RAW_SHARE * transform * plan.parts * plan.c_in * plan.vectors
    rows = -(-plan.tiles // plan.work_groups)
    filters = 4 * plan.filter_elements
    stream = filters / _reading(plan, filters)
    total += plan.work_groups * product_ns(plan, plan.parts, rows, plan.c_in, stream)
    if plan.staged:
        return total + 2 * 4 * plan.shared_elements * plan.work_groups / STREAM_BYTES_NS
    hidden = min(plan.vectors, 2)  # narrow panels have fewer operations to hide the reading of the data behind
    moved = 2 * plan.data_pitch * plan.panels_of_group / hidden + 2 * plan.result_pitch * plan.batches
    block = 4 * plan.planes * (plan.data_plane + plan.result_plane)
    rate = 80.0 if filters < CACHE_BYTES // 2 else min(80.0, SPECTRA_BYTES_NS * CACHE_BYTES / block)
    return total + 4 * plan.planes * plan.tiles * moved / rate


def _reading(plan: Plan, filters: int) -> float:
    """Bytes of filters a nanosecond."""
    if filters < CACHE_BYTES // 2:
        return CACHE_BYTES_NS
    if filters > FAR_BYTES:
        return FAR_BYTES_NS
    return FETCH_BYTES_NS[plan.work_groups == 1] if plan.products == 4 else STREAM_BYTES_NS


def product_ns(plan: Plan, parts: int, rows: int, depth: int, stream: float) -> float:
    """Matrix products of `rows` rows over all frequencies and `parts` panels; stream: reading the filters.

    Four products fetch the filters while they compute, but only during the first block of rows of each panel; three
    leave about half of that uncovered.
    """
    times = plan.products * plan.frequencies + 4
    if plan.depthwise:
        return times * parts * rows * (plan.vectors * 1.0 + 2.0) + stream
    blocks = -(-rows // plan.most_rows)
    calls = CALL_NS * parts * blocks * times / (4 if plan.products == 4 else 1)
    work = times * parts * 2.0 * rows * depth * min(plan.panel, plan.c_out)
    if plan.products == 4:
        speed = COMPLEX_FLOPS_NS[plan.vectors] * min(1.0, rows / blocks * plan.vectors / 4)  # few sums wait
        first = max(work / speed / blocks, stream)
        return calls + first + work / speed * (blocks - 1) / blocks
    used = rows / (blocks * plan.most_rows)  # a block of few rows waits for its additions and for B
    return calls + work / (PRODUCT_FLOPS_NS * min(1.0, 0.35 + 0.75 * used)) + stream / 2


# ---- choice


def lengths(taps: int, results: int) -> list[int]:
    """Sides of tiles worth a look: none that takes as many tiles as a shorter one."""
    found: dict[int, int] = {}
    for length in LENGTHS:
        if length >= taps:
            found.setdefault(-(-results // (length - taps + 1)), length)
    return list(found.values())


def candidates(problem: Problem, target: Target) -> Iterator[Plan]:
    """All plans that the model compares."""
    from convbench.simd.kernels.gemm import vectors_for

    weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
    any_plan = Plan(problem, target, (LENGTHS[-1], LENGTHS[-1]), 3, True, 1, 1)
    first = replace(any_plan, vectors=vectors_for(target, any_plan.c_out))
    sides = [lengths(*axis) for axis in zip(any_plan.kept, any_plan.result_size, strict=True)]
    for tile in product(sides[0], sides[1]):
        kinds = [(3, first.vectors)]
        if not first.depthwise:
            kinds += [(4, vectors) for vectors in complex_vectors(target, first.c_out)]
        for products, vectors in kinds:
            for staged in (True,) if weights else (True, False):
                plan = replace(first, tile=tile, products=products, vectors=vectors, staged=staged)
                yield replace(plan, block=_block(plan))


def complex_vectors(target: Target, columns: int) -> tuple[int, ...]:
    """Registers that hold a row of a panel of complex filters: two where there are registers enough for many rows."""
    return (1, 2) if target.registers >= 32 and columns > target.lanes else (1,)


def _block(plan: Plan) -> int:
    """Tiles of a block: what the budget holds, balanced, in whole blocks of the matrix kernel where they are many."""
    if plan.by_columns:
        return _group(plan)
    each = plan.planes * (plan.data_pitch + (plan.gradient_pitch if plan.is_weights_pass else plan.result_pitch))
    most = max(1, (WEIGHTS_GROUP_BYTES if plan.is_weights_pass else CACHE_BYTES) // (4 * each))
    rows = plan.most_rows
    if most >= plan.tiles:
        return plan.tiles
    if most > rows:
        most -= most % rows
    blocks = -(-plan.tiles // most)
    return min(most, up(-(-plan.tiles // blocks), rows) if most > rows else most)


def _group(plan: Plan) -> int:
    """Tiles of a group of whole rows of tiles: one column's spectra within CACHE_BYTES, rows within HALVES_BYTES."""
    wide = plan.grid[1]
    column = 4 * plan.slab * (plan.data_pitch + plan.result_pitch) * wide
    halves = 4 * plan.tile[1] * plan.step[0] * (plan.data_pitch + plan.result_pitch) * wide
    most = max(1, min(CACHE_BYTES // column, HALVES_BYTES // halves))
    groups = -(-plan.tile_rows // most)
    return -(-plan.tile_rows // groups) * wide


@lru_cache(maxsize=512)
def choose(problem: Problem, target: Target, only: tuple[tuple[str, Any], ...] = ()) -> Plan:
    """The plan that the model expects to be fastest. only: pairs (field, value) that it must have, for tests."""
    fitting = [p for p in candidates(problem, target) if all(getattr(p, name) == value for name, value in only)]
    return min(fitting, key=expected_ns)
