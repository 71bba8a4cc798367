"""How an FFT convolution is cut into blocks, decided before anything is allocated.

Operands are transformed for a block of strips at a time, products are formed for a block of frequencies at a time.
If all strips fit one block, filter spectra are made block by block and thrown away; otherwise (or when the weights
are packed) they are made once and kept. So memory stays bounded on any layer, and the numbers here serve both the
allocation and `workspace_estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import Any

import numpy as np

from convbench.algorithms._fft_backends import MIB, Backend, half
from convbench.algorithms._fft_filter import Block, FilterTransform, frequency_blocks
from convbench.algorithms._fft_geometry import Taps, TileGrid, WholeGrid
from convbench.problem import Pass, Problem

KEPT_BYTES = 512 * MIB  # filter spectra above this are made again for each block of strips (raw weights)
TILE_SIZES = (8, 16, 32, 64)
POINTWISE_PAIRS = 16  # groups of at most this many channel pairs are multiplied element by element


@dataclass(frozen=True)
class Scheme:
    """Blocks and buffers for one problem; `grid` says where the transforms lie."""

    problem: Problem
    grid: WholeGrid | TileGrid
    backend: Backend

    @property
    def is_weights_pass(self) -> bool:
        """Backward weights: two operands in, the filter out."""
        return self.problem.pass_ is Pass.BACKWARD_WEIGHTS

    @property
    def roles(self) -> tuple[str, str]:
        """x or y: (loaded, stored), or for backward weights (loaded, loaded)."""
        return ("y", "x") if self.problem.pass_ is Pass.BACKWARD_DATA else ("x", "y")

    def channels(self, role: str) -> int:
        """C for x, K for y."""
        return self.problem.shape.c if role == "x" else self.problem.shape.k

    @cached_property
    def pointwise(self) -> bool:
        """Products element by element: grouped with few channels, or one channel pair."""
        s = self.problem.shape
        pairs = s.cg * s.kg
        return pairs == 1 or (s.groups > 1 and pairs <= POINTWISE_PAIRS)

    @property
    def filter_groups(self) -> int:
        """Batches of the filter's transform."""
        return 1 if self.pointwise else self.problem.shape.groups

    @property
    def frequencies(self) -> int:
        """Frequencies of one real transform."""
        return self.grid.size[0] * half(self.grid.size[1])

    @property
    def filter_bytes(self) -> int:
        """Bytes of all filter spectra."""
        s = self.problem.shape
        return 2 * self.problem.item_bytes * self.frequencies * s.k * s.cg

    @cached_property
    def strips_per_block(self) -> int:
        """Strips transformed together, balanced over the blocks."""
        size, item = self.grid.size, self.problem.item_bytes
        points = 2 * self.frequencies + size[0] * size[1]
        each = self.grid.tiles * item * points * (self.problem.shape.c + self.problem.shape.k)
        budget = max(self.backend.strip_bytes, min(self.filter_bytes, KEPT_BYTES))
        blocks = -(-self.grid.strips // max(1, budget // each))
        return -(-self.grid.strips // blocks)

    @property
    def transforms(self) -> int:
        """M: transforms of one block of strips."""
        return self.strips_per_block * self.grid.tiles

    @property
    def keeps_filter(self) -> bool:
        """Raw weights: filter spectra are made once per call rather than once per block of strips."""
        many = self.strips_per_block < self.grid.strips
        return many and not self.is_weights_pass and self.filter_bytes <= KEPT_BYTES

    @property
    def product_elements(self) -> tuple[int, int]:
        """Real elements per frequency that a product needs: (operand planes, results or temporaries)."""
        s, m = self.problem.shape, self.transforms
        if self.pointwise:
            filters = 2 * s.k * s.cg
            return (filters, 4 * m * s.groups + 2 * s.groups) if self.is_weights_pass else (filters, 2 * m * s.groups)
        if self.is_weights_pass:
            return (4 * m * s.c, 2 * m * s.k)
        return (2 * m * self.channels(self.roles[0]), 4 * m * self.channels(self.roles[1]))

    @cached_property
    def blocks(self) -> list[Block]:
        """Blocks of frequencies."""
        s = self.problem.shape
        each = self.problem.item_bytes * (2 * s.k * s.cg + sum(self.product_elements))
        return frequency_blocks(self.grid.size, each, self.backend.frequency_bytes)

    def workspace_bytes(self, packed: bool = False) -> int:
        """Bytes from the context plus the library's temporaries."""
        s, item, m = self.problem.shape, self.problem.item_bytes, self.transforms
        size = self.grid.size
        loads, stores = self.channels(self.roles[0]), self.channels(self.roles[1])
        both = self.is_weights_pass
        elements = m * size[0] * size[1] * max(s.c, s.k)
        elements += self.grid.strip_elements(self.roles[0])
        elements += self.grid.strip_elements(self.roles[1]) if both else 0
        largest = max(b.count for b in self.blocks)
        elements += largest * sum(self.product_elements)
        elements += FilterTransform.scratch_elements(s, self.blocks, both)
        total = item * elements
        total += self.backend.bytes([loads, stores] if both else [loads], [] if both else [stores], m, size, item)
        if packed or self.keeps_filter:
            return total + self.filter_bytes
        return total + 2 * item * largest * s.k * s.cg

    def executed_flops(self) -> dict[str, float]:
        """Operations by phase, with the filter's transform (raw weights).

        A real transform of T = Th Tw points is counted 2.5 T log2 T (half the usual 5 T log2 T of a complex one),
        a complex product and sum 8, each real multiply-add of the filter's Fourier matrices 2.
        """
        s = self.problem.shape
        points = self.grid.size[0] * self.grid.size[1]
        n_tiles = self.grid.strips * self.grid.tiles
        one = 2.5 * points * log2(points) if points > 1 else 0.0
        pairs = s.k * s.cg
        rows, cols = Taps.both(s)
        filter_flops = pairs * rows.count * (4.0 * cols.count * half(self.grid.size[1]) + 8.0 * self.frequencies)
        multiply = 8.0 * n_tiles * self.frequencies * pairs
        per_side = {"x": n_tiles * s.c * one, "y": n_tiles * s.k * one}
        if self.is_weights_pass:
            return {
                "transform_input": per_side["x"] + per_side["y"],
                "multiply": multiply,
                "transform_filter": filter_flops,
            }
        return {
            "transform_input": per_side[self.roles[0]],
            "transform_filter": filter_flops,
            "multiply": multiply,
            "transform_output": per_side[self.roles[1]],
        }


def whole_image(problem: Problem, backend: Backend) -> Scheme:
    """One transform per image."""
    return Scheme(problem, WholeGrid(problem, backend.next_fast_len), backend)


def tiled(problem: Problem, backend: Backend) -> Scheme:
    """The cheapest pair of tile sizes out of TILE_SIZES.

    Cost: executed flops, where one of a transform counts 10 (an FFT runs at about a tenth of the rate of a product)
    and each element of a filter spectrum 32 more (it is written and read once, however few tiles share it).
    """
    s = problem.shape

    def cost(scheme: Scheme) -> float:
        flops = scheme.executed_flops()
        transforms = flops["transform_input"] + flops.get("transform_output", 0.0)
        spectra = 32.0 * scheme.frequencies * s.k * s.cg
        return flops["multiply"] + flops["transform_filter"] + 10 * transforms + spectra

    rows, cols = Taps.both(s)
    heights = [t for t in TILE_SIZES if t >= rows.count]
    widths = [t for t in TILE_SIZES if t >= cols.count]
    schemes = [Scheme(problem, TileGrid(problem, (h, w)), backend) for h in heights for w in widths]
    return min(schemes, key=cost)


def dtypes(problem: Problem) -> tuple[Any, Any]:
    """(real, complex) element types."""
    real = np.dtype(problem.dtype)
    return real, np.result_type(real, np.complex64)
