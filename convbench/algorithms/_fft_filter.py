"""The filter's transform, both ways, as products with pruned Fourier matrices.

Of the Th x Tw points of a filter's transform only R x S are not zero (and of a weight gradient only R x S are
wanted; fewer where taps read padding alone). So two small matrix products, first along S, then along R, need fewer
passes over memory than an FFT and run at the speed of BLAS. Being sums over taps for each frequency, they can be
asked for any block of frequencies: the spectra of all filters never need to exist at once.

Spectra are kept as separate planes of real and imaginary parts: real products then replace complex ones (a batch
of sgemm was 1.0 to 2.6 times as fast as cgemm, OpenBLAS 0.3.31, 2 cores with AVX-512, 2026-11).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from convbench.algorithms._fft_backends import half
from convbench.algorithms._fft_geometry import Taps
from convbench.devices.arrays import matmul_of
from convbench.problem import ConvShape


@dataclass(frozen=True)
class Block:
    """Frequencies v0 <= v < v1 of the halved axis, u0 <= u < u1 of the full one."""

    v0: int
    v1: int
    u0: int
    u1: int

    @property
    def count(self) -> int:
        """Frequencies in the block."""
        return (self.v1 - self.v0) * (self.u1 - self.u0)

    @property
    def nv(self) -> int:
        """Halved-axis frequencies."""
        return self.v1 - self.v0

    @property
    def nu(self) -> int:
        """Full-axis frequencies."""
        return self.u1 - self.u0


def frequency_blocks(size: tuple[int, int], bytes_each: int, budget: int) -> list[Block]:
    """All frequencies in balanced blocks of about `budget` bytes: several v, or part of the u of one v."""
    n_u, n_v = size[0], half(size[1])
    most = max(1, budget // max(1, bytes_each))
    if most >= n_u:
        return [Block(a, b, 0, n_u) for a, b in _split(n_v, most // n_u)]
    return [Block(v, v + 1, a, b) for v in range(n_v) for a, b in _split(n_u, most)]


def _split(total: int, most: int) -> list[tuple[int, int]]:
    pieces = -(-total // most)
    edges = [total * i // pieces for i in range(pieces + 1)]
    return list(pairwise(edges))


def _angles(frequencies: int, taps: int, dilation: int, length: int) -> np.ndarray:
    """2 pi f tap dilation / length, (frequencies, taps), reduced before it is rounded."""
    turns = np.outer(np.arange(frequencies), np.arange(taps) * dilation) % length
    return 2 * np.pi * turns / length


class FilterTransform:
    """Matrices and scratch for the filters of one problem.

    groups: as the products see them. pairs: (K/G, C/G) or, for products element by element, (1, all pairs).
    conjugate: forward needs conj(W), backward data W. Scratch comes from `context`.
    """

    def __init__(
        self, shape: ConvShape, size: tuple[int, int], groups: int, conjugate: bool, dtype: Any
    ) -> None:
        self.shape, self.size, self.groups, self.dtype = shape, size, groups, np.dtype(dtype)
        rows, cols = self.axes = Taps.both(shape)
        self.n_r, self.n_s = rows.count, cols.count
        self.columns = shape.k * shape.cg // groups  # filters of one batch
        sign = 1.0 if conjugate else -1.0
        scale = 1.0 / (size[0] * size[1])
        phi = _angles(size[0], self.n_r, shape.dilation[0], size[0])
        theta = _angles(half(size[1]), self.n_s, shape.dilation[1], size[1])
        self.along_s = np.stack([np.cos(theta), sign * np.sin(theta)]).astype(dtype)  # (2, V, S)
        along_r = np.array([[np.cos(phi), -sign * np.sin(phi)], [sign * np.sin(phi), np.cos(phi)]])  # (2, 2, U, R)
        # rows (u, re/im), columns (re/im, r)
        self.along_r = np.ascontiguousarray((scale * along_r).transpose(2, 0, 1, 3), dtype)  # (U, 2, 2, R)
        back_r = np.array([[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]])  # (2, 2, U, R)
        self.back_r = np.ascontiguousarray((scale * back_r).transpose(0, 3, 2, 1), dtype)  # (2, R, U, 2)
        twice = np.full(half(size[1]), 2.0)  # a frequency and its conjugate
        twice[0] = 1.0
        if size[1] % 2 == 0:
            twice[-1] = 1.0
        back_s = np.stack([np.cos(theta), -np.sin(theta)]) * twice[:, None]  # (2, V, S)
        self.back_s = np.ascontiguousarray(back_s.transpose(2, 1, 0), dtype)  # (S, V, 2)

    @staticmethod
    def scratch_elements(shape: ConvShape, blocks: list[Block], weights_pass: bool) -> int:
        """Elements that `bind` takes: the half-transformed filters of a block, the taps, and a partial sum."""
        pairs = shape.k * shape.cg
        rows, cols = Taps.both(shape)
        taps = pairs * rows.count * cols.count
        return max(b.nv for b in blocks) * 2 * rows.count * pairs + taps * (2 if weights_pass else 1)

    def bind(self, context: Any, blocks: list[Block], weights_pass: bool) -> None:
        """Takes the scratch, and puts the matrices where it lies."""
        self._xp, self._matmul = context.xp, matmul_of(context.xp)
        for name in ("along_s", "along_r", "back_r", "back_s"):
            setattr(self, name, self._xp.asarray(getattr(self, name)))
        most = max(b.nv for b in blocks)
        self._rows = context.empty(self.groups * most * 2 * self.n_r * self.columns, self.dtype)
        taps_shape = (self.groups, self.n_r, self.n_s, self.columns)
        self.taps = context.empty(taps_shape, self.dtype)
        if weights_pass:
            self._partial = context.empty(taps_shape, self.dtype)

    def load_taps(self, w: Any, layout: str, pointwise: bool) -> None:
        """w in its layout -> taps (G, R, S, K/G C/G), or (1, R, S, K/G C/G G) for products element by element."""
        self._xp.copyto(self._taps_view(self.taps, pointwise), self._w_view(w, layout))

    def store_taps(self, dw: Any, layout: str, pointwise: bool) -> None:
        """taps -> the weight gradient in its layout; taps that read padding alone have gradient 0."""
        if (self.n_r, self.n_s) != (self.shape.r, self.shape.s):
            dw.fill(0)
        self._xp.copyto(self._w_view(dw, layout), self._taps_view(self.taps, pointwise))

    def _w_view(self, w: Any, layout: str) -> Any:
        """The useful taps of w as (G, K/G, C/G, R, S)."""
        s, (rows, cols) = self.shape, self.axes
        if layout == "nchw":
            w = w.reshape(s.groups, s.kg, s.cg, s.r, s.s)
        else:
            w = w.reshape(s.groups, s.kg, s.r, s.s, s.cg).transpose(0, 1, 4, 2, 3)
        return w[..., rows.first : rows.first + rows.count, cols.first : cols.first + cols.count]

    def _taps_view(self, taps: Any, pointwise: bool) -> Any:
        """taps as (G, K/G, C/G, R, S)."""
        s = self.shape
        if pointwise:
            return taps.reshape(self.n_r, self.n_s, s.kg, s.cg, s.groups).transpose(4, 2, 3, 0, 1)
        return taps.reshape(s.groups, self.n_r, self.n_s, s.kg, s.cg).transpose(0, 3, 4, 1, 2)

    def _rows_of(self, block: Block) -> Any:
        """Scratch (G, V, 2, R, KC) for a block."""
        dims = (self.groups, block.nv, 2, self.n_r, self.columns)
        return self._rows[: int(np.prod(dims))].reshape(dims)

    def spectra(self, block: Block, out: Any) -> None:
        """Writes the block's spectra: out (G, V, U, 2, KC), real and imaginary planes, scaled by 1 / (Th Tw)."""
        rows = self._rows_of(block)
        groups, n_v, _, n_r, columns = rows.shape
        matrix = self.along_s[None, :, None, block.v0 : block.v1]  # (1, 2, 1, V, S)
        self._matmul(matrix, self.taps[:, None], out=rows.transpose(0, 2, 3, 1, 4))  # (G, 2, R, V, KC)
        matrix = self.along_r[block.u0 : block.u1].reshape(2 * block.nu, 2 * n_r)  # (2U, 2R)
        self._matmul(
            matrix,
            rows.reshape(groups, n_v, 2 * n_r, columns),
            out=out.reshape(groups, n_v, 2 * block.nu, columns),
        )

    def add_gradient(self, block: Block, spectra: Any, first: bool) -> None:
        """Adds a block's part of the inverse transform to taps; spectra (G, V, U, 2, KC)."""
        rows = self._rows_of(block)
        groups, n_v, _, n_r, columns = rows.shape
        matrix = self.back_r[:, :, block.u0 : block.u1].reshape(2 * n_r, 2 * block.nu)  # (2R, 2U)
        self._matmul(
            matrix,
            spectra.reshape(groups, n_v, 2 * block.nu, columns),
            out=rows.reshape(groups, n_v, 2 * n_r, columns),
        )
        matrix = self.back_s[:, block.v0 : block.v1].reshape(self.n_s, 2 * n_v)  # (S, 2V)
        by_tap = rows.reshape(groups, 2 * n_v, n_r, columns).transpose(0, 2, 1, 3)  # (G, R, 2V, KC)
        target = self.taps if first else self._partial
        self._matmul(matrix, by_tap, out=target)  # (G, R, S, KC)
        if not first:
            self._xp.add(self.taps, self._partial, out=self.taps)
