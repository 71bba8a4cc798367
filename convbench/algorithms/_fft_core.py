"""Convolution in the frequency domain: load, transform, multiply per frequency, transform back, store.

Mathieu, Henaff, LeCun 2013, "Fast Training of Convolutional Networks through FFTs" (arXiv 1312.5851); Vasilache et
al. 2014, "Fast Convolutional Nets With fbfft" (arXiv 1412.7580). With spectra X, W, Y (hats left out):
forward Y = X conj(W) summed over C; backward data X' = Y' W summed over K; backward weights W' = X conj(Y') summed
over images and tiles. For each frequency and group that is a small complex matrix product, formed from real ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._fft_backends import Backend
from convbench.algorithms._fft_filter import Block, FilterTransform
from convbench.algorithms._fft_geometry import image_view
from convbench.algorithms._fft_scheme import Scheme, dtypes, tiled, whole_image
from convbench.devices.arrays import matmul_of
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run


class FftImplementation(Implementation):
    """What the registered classes share; they choose a library and a grid."""

    backend: ClassVar[Backend]
    exact_on_integers = False

    def scheme(self, problem: Problem) -> Scheme:
        """Blocks and buffers for a problem."""
        raise NotImplementedError(f"{type(self).__name__} must implement scheme(problem)")

    def workspace_estimate(self, problem: Problem) -> int:
        """Bytes with raw weights, whose spectra exist only block by block."""
        return self.scheme(problem).workspace_bytes(packed=False)

    def packed_estimate(self, problem: Problem) -> int:
        """Bytes with packed weights: the spectra of all filters."""
        return self.scheme(problem).workspace_bytes(packed=True)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """By phase; a real transform of T points is counted 2.5 T log2 T."""
        return self.scheme(problem).executed_flops()

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Buffers, plans and Fourier matrices; with `weights` the spectra of all filters as well."""
        scheme = self.scheme(problem)
        if scheme.is_weights_pass:
            return WeightsPass(scheme, context).run
        data_pass = DataPass(scheme, context, packed=weights is not None)
        if weights is None:
            return data_pass.run
        data_pass.transform_filters(weights)
        return data_pass.run_packed


class WholeImageFft(FftImplementation):
    """One transform per image; takes every shape."""

    def scheme(self, problem: Problem) -> Scheme:
        """One transform per image."""
        return whole_image(problem, self.backend)

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The whole result shares a transform."""
        s = problem.shape
        return {
            Pass.FORWARD: (s.p, s.q),
            Pass.BACKWARD_DATA: (s.h, s.w),
            Pass.BACKWARD_WEIGHTS: (s.r, s.s),
        }[problem.pass_]


class TiledFft(FftImplementation):
    """Overlap-save tiles of 8 to 64 points a side."""

    def limits(self, problem: Problem) -> str | None:
        """Stride and dilation 1; a filter within the largest tile."""
        s = problem.shape
        for what, pair in (("stride", s.stride), ("dilation", s.dilation)):
            if pair != (1, 1):
                return f"fft_tiled: {what} must be 1, not {pair[0] if pair[0] == pair[1] else f'{pair[0]}x{pair[1]}'}"
        if max(s.r, s.s) > 64:
            return f"fft_tiled: the filter must fit a tile of 64x64, not {s.r}x{s.s}"
        return None

    def scheme(self, problem: Problem) -> Scheme:
        """The tile sizes that cost least."""
        return tiled(problem, self.backend)

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        """The valid part of a tile; backward weights sums over all tiles."""
        if problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return (problem.shape.r, problem.shape.s)
        return self.scheme(problem).grid.step  # type: ignore[union-attr]


# ---- passes


class Loaded:
    """An operand that is cut into tiles and transformed, one block of strips at a time."""

    def __init__(self, scheme: Scheme, role: str, storage: Any, context: Any) -> None:
        self.scheme = scheme
        real, _ = dtypes(scheme.problem)
        self.side = scheme.grid.loader(role, context, real)
        self.tiles = tile_view(scheme, storage, scheme.channels(role))
        self.transform = scheme.backend.forward(self.tiles, context)

    def spectra(self, array: Any, first: int) -> Any:
        """Strips first, first + 1 ... of one block -> (M, Th, Tw/2+1, C)."""
        scheme, grid = self.scheme, self.scheme.grid
        count = min(scheme.strips_per_block, grid.strips - first)
        for i in range(count):
            n, row = divmod(first + i, grid.rows)
            image = image_view(array, n, scheme.problem.layout)
            self.side.load(image, row, self.tiles[i * grid.tiles : (i + 1) * grid.tiles])
        self.tiles[count * grid.tiles :] = 0
        return self.transform()


def tile_view(scheme: Scheme, storage: Any, channels: int) -> Any:
    """The first part of flat storage as (M, Th, Tw, channels), in the order that the library likes."""
    height, width = scheme.grid.size
    return scheme.backend.arrange(storage, scheme.transforms, height, width, channels)


def tile_storage(scheme: Scheme, context: Any) -> Any:
    """One flat buffer that all operands' tiles share in turn."""
    s = scheme.problem.shape
    real, _ = dtypes(scheme.problem)
    return context.empty(scheme.transforms * scheme.grid.size[0] * scheme.grid.size[1] * max(s.c, s.k), real)


class DataPass:
    """Forward and backward data: activations through all filters."""

    def __init__(self, scheme: Scheme, context: Any, packed: bool) -> None:
        self.scheme = scheme
        problem, (role_in, role_out) = scheme.problem, scheme.roles
        storage = tile_storage(scheme, context)
        self.loaded = Loaded(scheme, role_in, storage, context)
        result = tile_view(scheme, storage, scheme.channels(role_out))
        self.result_spectra, self.inverse = scheme.backend.inverse(result, context)
        self.storer = scheme.grid.storer(role_out)
        forward = problem.pass_ is Pass.FORWARD
        real, _ = dtypes(problem)
        self.filters = FilterTransform(problem.shape, scheme.grid.size, scheme.filter_groups, forward, real)
        self.filters.bind(context, scheme.blocks, weights_pass=False)
        self.kept = packed or scheme.keeps_filter
        sizes = [block.count for block in scheme.blocks]
        pairs = 2 * problem.shape.k * problem.shape.cg
        # one flat buffer for all blocks, or for the largest, used again and again
        self.filter_spectra = context.empty((sum(sizes) if self.kept else max(sizes)) * pairs, real)
        self.product: Any = (PointwiseProduct if scheme.pointwise else GemmProduct)(scheme, context)

    def run(self, a: Any, w: Any, out: Any) -> None:
        """Raw weights: the filter's transform is on the clock."""
        if self.kept:
            self.transform_filters(w)
            self._convolve(a, out, made=True)
        else:
            self.filters.load_taps(w, self.scheme.problem.layout, self.scheme.pointwise)
            self._convolve(a, out, made=False)

    def run_packed(self, a: Any, out: Any) -> None:
        """Packed weights: the spectra are there."""
        self._convolve(a, out, made=True)

    def transform_filters(self, w: Any) -> None:
        """Makes and keeps all filter spectra."""
        self.filters.load_taps(w, self.scheme.problem.layout, self.scheme.pointwise)
        for block, spectra in self._filter_blocks():
            self.filters.spectra(block, spectra)

    def _filter_blocks(self) -> Any:
        """(block, its spectra (G, V, U, 2, KC)) for every block of frequencies."""
        s, start = self.scheme.problem.shape, 0
        groups = self.scheme.filter_groups
        columns = s.k * s.cg // groups
        for block in self.scheme.blocks:
            size = 2 * block.count * groups * columns
            flat = self.filter_spectra[start : start + size]
            yield block, flat.reshape(groups, block.nv, block.nu, 2, columns)
            start += size if self.kept else 0

    def _convolve(self, a: Any, out: Any, made: bool) -> None:
        scheme, grid = self.scheme, self.scheme.grid
        for first in range(0, grid.strips, scheme.strips_per_block):
            spectra = self.loaded.spectra(a, first)
            for block, filter_spectra in self._filter_blocks():
                if not made:
                    self.filters.spectra(block, filter_spectra)
                self.product.data(block, spectra, filter_spectra, self.result_spectra)
            del spectra  # before the inverse allocates
            tiles = self.inverse()
            for i in range(min(scheme.strips_per_block, grid.strips - first)):
                n, row = divmod(first + i, grid.rows)
                image = image_view(out, n, scheme.problem.layout)
                self.storer.store(tiles[i * grid.tiles : (i + 1) * grid.tiles], image, row)


class WeightsPass:
    """Backward weights: both activations in, sums over images and tiles in the frequency domain, filters out."""

    def __init__(self, scheme: Scheme, context: Any) -> None:
        self.scheme = scheme
        problem = scheme.problem
        storage = tile_storage(scheme, context)
        self.x, self.dy = (Loaded(scheme, role, storage, context) for role in scheme.roles)
        real, _ = dtypes(problem)
        self.filters = FilterTransform(problem.shape, scheme.grid.size, scheme.filter_groups, False, real)
        self.filters.bind(context, scheme.blocks, weights_pass=True)
        pairs = 2 * problem.shape.k * problem.shape.cg
        self.filter_spectra = context.empty(max(b.count for b in scheme.blocks) * pairs, real)
        self.product: Any = (PointwiseProduct if scheme.pointwise else GemmProduct)(scheme, context)

    def run(self, x: Any, dy: Any, dw: Any) -> None:
        """Each block of frequencies goes through its part of the inverse transform while it is in the cache."""
        scheme = self.scheme
        s, groups = scheme.problem.shape, scheme.filter_groups
        columns = s.k * s.cg // groups
        for first in range(0, scheme.grid.strips, scheme.strips_per_block):
            x_spectra, dy_spectra = self.x.spectra(x, first), self.dy.spectra(dy, first)
            for i, block in enumerate(scheme.blocks):
                flat = self.filter_spectra[: 2 * block.count * groups * columns]
                spectra = flat.reshape(groups, block.nv, block.nu, 2, columns)
                self.product.weights(block, x_spectra, dy_spectra, spectra)
                self.filters.add_gradient(block, spectra, first=first == 0 and i == 0)
            del x_spectra, dy_spectra  # before the next block's are allocated
        self.filters.store_taps(dw, scheme.problem.layout, scheme.pointwise)


# ---- products per frequency


def _frequencies_first(spectra: Any, block: Block, groups: int) -> Any:
    """(M, U, V, C) -> the block as a view (G, V, U, M, C/G)."""
    part = spectra[:, block.u0 : block.u1, block.v0 : block.v1]
    m, n_u, n_v, channels = part.shape
    return part.reshape(m, n_u, n_v, groups, channels // groups).transpose(3, 2, 1, 0, 4)


class GemmProduct:
    """Complex matrix products as batches of real ones over separate real and imaginary planes."""

    def __init__(self, scheme: Scheme, context: Any) -> None:
        self.xp, self.matmul = context.xp, matmul_of(context.xp)
        self.groups, self.shape = scheme.problem.shape.groups, scheme.problem.shape
        self.forward = scheme.problem.pass_ is Pass.FORWARD
        real, _ = dtypes(scheme.problem)
        largest = max(b.count for b in scheme.blocks)
        self.first, self.second = (context.empty(largest * n, real) for n in scheme.product_elements)

    def _take(self, storage: Any, *dims: int) -> Any:
        return storage[: int(np.prod(dims))].reshape(dims)

    def data(self, block: Block, spectra: Any, filters: Any, result: Any) -> None:
        """result = spectra times filters (already conjugated where the pass wants it), over the block."""
        s, g, xp = self.shape, self.groups, self.xp
        source = _frequencies_first(spectra, block, g)
        target = _frequencies_first(result, block, g)
        m, ci, co = source.shape[-2], source.shape[-1], target.shape[-1]
        planes = self._take(self.first, g, block.nv, block.nu, 1, 2, m, ci)
        xp.copyto(planes[:, :, :, 0, 0], source.real)
        xp.copyto(planes[:, :, :, 0, 1], source.imag)
        w = filters.reshape(g, block.nv, block.nu, 2, s.kg, s.cg)
        if self.forward:
            w = w.swapaxes(-1, -2)  # (G, V, U, 2, C/G, K/G)
        both = self._take(self.second, g, block.nv, block.nu, 2, 2, m, co)  # by plane of w, plane of the source
        self.matmul(
            planes.reshape(g, block.nv, block.nu, 1, 2 * m, ci),
            w,
            out=both.reshape(g, block.nv, block.nu, 2, 2 * m, co),
        )
        xp.subtract(both[:, :, :, 0, 0], both[:, :, :, 1, 1], out=target.real)
        xp.add(both[:, :, :, 0, 1], both[:, :, :, 1, 0], out=target.imag)

    def weights(self, block: Block, x: Any, dy: Any, filters: Any) -> None:
        """filters (G, V, U, 2, KC) = sum over M of x conj(dy), over the block."""
        s, g, xp = self.shape, self.groups, self.xp
        x, dy = _frequencies_first(x, block, g), _frequencies_first(dy, block, g)
        m = x.shape[-2]
        # plane 0 (xr, xi) gives the real part xr dr + xi di, plane 1 (xi, -xr) the imaginary part xi dr - xr di
        planes = self._take(self.first, g, block.nv, block.nu, 2, 2, m, s.cg)
        xp.copyto(planes[:, :, :, 0, 0], x.real)
        xp.copyto(planes[:, :, :, 0, 1], x.imag)
        xp.copyto(planes[:, :, :, 1, 0], x.imag)
        xp.negative(x.real, out=planes[:, :, :, 1, 1])
        d = self._take(self.second, g, block.nv, block.nu, 1, 2, m, s.kg)
        xp.copyto(d[:, :, :, 0, 0], dy.real)
        xp.copyto(d[:, :, :, 0, 1], dy.imag)
        self.matmul(
            d.reshape(g, block.nv, block.nu, 1, 2 * m, s.kg).swapaxes(-1, -2),
            planes.reshape(g, block.nv, block.nu, 2, 2 * m, s.cg),
            out=filters.reshape(g, block.nv, block.nu, 2, s.kg, s.cg),
        )


class PointwiseProduct:
    """Depthwise and nearly so: matrices too small for BLAS, multiplied element by element over all groups."""

    def __init__(self, scheme: Scheme, context: Any) -> None:
        self.xp, self.shape, self.scheme = context.xp, scheme.problem.shape, scheme
        _, self.dtype = dtypes(scheme.problem)
        largest = max(b.count for b in scheme.blocks)
        filters, temporaries = scheme.product_elements
        self.filters = context.empty(largest * filters // 2, self.dtype)
        self.temporary = context.empty(largest * temporaries // 2, self.dtype)

    def _operand(self, spectra: Any, block: Block, channels: int) -> Any:
        """(M, U, V, C) -> the block as (M, U, V, G, C/G)."""
        part = spectra[:, block.u0 : block.u1, block.v0 : block.v1]
        return part.reshape(*part.shape[:3], self.shape.groups, channels)

    def data(self, block: Block, spectra: Any, filters: Any, result: Any) -> None:
        """As GemmProduct.data."""
        s = self.shape
        forward = self.scheme.problem.pass_ is Pass.FORWARD
        source = self._operand(spectra, block, s.cg if forward else s.kg)
        target = self._operand(result, block, s.kg if forward else s.cg)
        pairs = (block.nu, block.nv, s.kg, s.cg, s.groups)
        w = self.filters[: int(np.prod(pairs))].reshape(pairs)
        planes = filters[0].reshape(block.nv, block.nu, 2, s.kg, s.cg, s.groups).swapaxes(0, 1)
        w.real, w.imag = planes[:, :, 0], planes[:, :, 1]
        term = self.temporary[: source[..., 0].size].reshape(source.shape[:-1])
        for k in range(s.kg):
            for c in range(s.cg):
                i, o, first = (c, k, c == 0) if forward else (k, c, k == 0)
                self.xp.multiply(source[..., i], w[:, :, k, c], out=target[..., o] if first else term)
                if not first:
                    self.xp.add(target[..., o], term, out=target[..., o])

    def weights(self, block: Block, x: Any, dy: Any, filters: Any) -> None:
        """As GemmProduct.weights."""
        s = self.shape
        x, dy = self._operand(x, block, s.cg), self._operand(dy, block, s.kg)
        dims = x.shape[:-1]  # (M, U, V, G)
        size = int(np.prod(dims))
        conjugate = self.temporary[:size].reshape(dims)
        term = self.temporary[size : 2 * size].reshape(dims)
        total = self.temporary[2 * size : 2 * size + size // dims[0]].reshape(dims[1:])
        planes = filters[0].reshape(block.nv, block.nu, 2, s.kg, s.cg, s.groups).swapaxes(0, 1)
        for k in range(s.kg):
            self.xp.conjugate(dy[..., k], out=conjugate)
            for c in range(s.cg):
                self.xp.multiply(x[..., c], conjugate, out=term)
                term.sum(axis=0, out=total)
                planes[:, :, 0, k, c], planes[:, :, 1, k, c] = total.real, total.imag
