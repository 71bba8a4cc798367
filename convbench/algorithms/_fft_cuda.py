"""What fft_cuda is made of: where tensors lie on the circle, and steps that load, transform, multiply and store.

The geometry is `_fft_geometry.py`'s, the kernels are kernels/cuda/fft_pointwise.cu, the matrices those of
kernels/cuda/include/spectra.cuh.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from convbench.algorithms._cuda import blocks, conv_struct
from convbench.algorithms._fft_geometry import Taps, WholeAxis, fast_length
from convbench.cuda.program import At, Buffer, Float, Launch, Product, Program, Step, Struct, Transform
from convbench.problem import Pass, Problem

CHUNK_BYTES = 256 << 20  # of circles, spectra and matrices of the images that are transformed together
POINTWISE_PAIRS = 16  # groups of at most this many pairs of channels are multiplied without matrices
PLAIN, FORWARD, BACKWARD, PARTS, TURNED, GRADIENT = range(6)  # roles of spectra.cuh
FILE = "fft_pointwise.cu"
BLOCK = (32, 8, 1)


@dataclass(frozen=True)
class Map:
    """struct Map of fft_pointwise.cu: element e lies at m (mod length) if e divide = m multiply + begin."""

    length: int
    multiply: int
    divide: int
    begin: int
    first: int
    stop: int

    @property
    def struct(self) -> Struct:
        """As the kernels take it."""
        return Struct((self.length, self.multiply, self.divide, self.begin, self.first, self.stop))


def maps(axis: WholeAxis, taps: Taps, dilation: int, length: int) -> dict[str, Map]:
    """Of x, y and w along one axis."""
    first = max(0, -(-(axis.begin - axis.extent + 1) // axis.stride))  # outputs that read at least one element
    stop = max(first, min(axis.outputs, (axis.size - 1 + axis.begin) // axis.stride + 1))
    w = Map(length, 1, dilation, taps.first * dilation, taps.first, taps.first + taps.count)
    if axis.extent > 1:
        x = Map(length, 1, 1, 0, 0, axis.size)
        return {"x": x, "y": Map(length, 1, axis.stride, axis.begin, first, stop), "w": w}
    # one tap: the circle holds outputs alone, and the elements that they read
    read = (first * axis.stride - axis.begin, (stop - 1) * axis.stride - axis.begin + 1) if first < stop else (0, 0)
    x = Map(length, axis.stride, 1, -axis.begin, *read)
    return {"x": x, "y": Map(length, 1, 1, 0, first, stop), "w": w}


@dataclass(frozen=True)
class WholeImage:
    """The program for one problem, and the numbers that its size follows from."""

    problem: Problem

    @cached_property
    def axes(self) -> tuple[dict[str, Map], dict[str, Map]]:
        """Maps of rows and columns."""
        s = self.problem.shape
        rows, columns = Taps.both(s)
        found = []
        for taps, size, outputs, stride, dilation, even in (
            (rows, s.h, s.p, s.stride[0], s.dilation[0], False),
            (columns, s.w, s.q, s.stride[1], s.dilation[1], True),
        ):
            axis = WholeAxis(size, outputs, taps.extent, stride, taps.begin)
            found.append(maps(axis, taps, dilation, fast_length(axis.needed, even)))
        return found[0], found[1]

    @cached_property
    def size(self) -> tuple[int, int]:
        """Th, Tw."""
        return self.axes[0]["x"].length, self.axes[1]["x"].length

    @property
    def points(self) -> int:
        """Of one circle."""
        return self.size[0] * self.size[1]

    @property
    def frequencies(self) -> int:
        """Of one real transform."""
        return self.size[0] * (self.size[1] // 2 + 1)

    @property
    def pointwise(self) -> bool:
        """Whether the product goes without matrices: groups of few channels, or one pair of channels."""
        s = self.problem.shape
        return s.cg * s.kg == 1 or (s.groups > 1 and s.cg * s.kg <= POINTWISE_PAIRS)

    @property
    def of_weights(self) -> bool:
        """Backward weights."""
        return self.problem.pass_ is Pass.BACKWARD_WEIGHTS

    @cached_property
    def chunk(self) -> int:
        """Images that are transformed together, evenly."""
        s, f = self.problem.shape, self.frequencies
        widest, both = max(s.c, s.k), s.c + s.k
        matrices = 2 * s.c + s.k if self.of_weights else both
        each = 4 * self.points * widest + 8 * f * (both if self.pointwise else widest + matrices)
        return blocks(s.n, blocks(s.n, max(1, CHUNK_BYTES // each)))

    @cached_property
    def filters(self) -> int:
        """Filters that are transformed together, evenly: circles and spectra within CHUNK_BYTES."""
        s = self.problem.shape
        circles = CHUNK_BYTES // (4 * self.points + 8 * self.frequencies)
        return blocks(s.k, blocks(s.k, max(1, circles // s.cg)))

    def program(self) -> Program:
        """Steps and buffers."""
        s, f = self.problem.shape, self.frequencies
        circles = max(self.chunk * max(s.c, s.k), self.filters * s.cg)
        workspace = {"circles": Buffer((circles * self.points,))}
        pairs = s.k * s.cg
        if self.pointwise:
            workspace |= {
                "x_spectra": Buffer((self.chunk * s.c * f,), "complex64"),
                "y_spectra": Buffer((self.chunk * s.k * f,), "complex64"),
                "w_spectra": Buffer((pairs * f,), "complex64"),
            }
        else:
            twice = self.of_weights
            workspace |= {
                "spectra": Buffer((circles * f,), "complex64"),
                "x_matrices": Buffer(((4 if twice else 2) * self.chunk * s.c * f,)),
                "y_matrices": Buffer((2 * self.chunk * s.k * f,)),
                "w_matrices": Buffer(((2 if twice else 4) * pairs * f,)),
            }
        chunks = [(first, min(self.chunk, s.n - first)) for first in range(0, s.n, self.chunk)]
        steps: list[Step] = []
        for first, images in chunks:
            steps += self._weights(first, images) if self.of_weights else self._data(first, images)
        if self.of_weights:
            return Program((*steps, *self._store_filter()), workspace=workspace)
        return Program(tuple(steps), tuple(self._load_filter()), workspace)

    # ---- passes

    def _data(self, first: int, images: int) -> list[Step]:
        """One chunk of images, forward or backward data."""
        role_in, role_out = ("y", "x") if self.problem.pass_ is Pass.BACKWARD_DATA else ("x", "y")
        spectra_in = f"{role_in}_spectra" if self.pointwise else "spectra"
        spectra_out = f"{role_out}_spectra" if self.pointwise else "spectra"
        steps = self._spectra_of(role_in, "a", first, images, spectra_in)
        if self.pointwise:
            steps.append(self._multiply(images, add=False))
        else:
            steps.append(self._turn("fft_to_matrices", "spectra", f"{role_in}_matrices", role_in, PLAIN, images))
            steps.append(self._product(images, add=False))
            steps.append(self._turn("fft_from_matrices", f"{role_out}_matrices", "spectra", role_out, PLAIN, images))
        steps.append(self._transform("inverse", spectra_out, images * self._channels(role_out)))
        return [*steps, self._move("fft_store", role_out, "circles", "out", first, images)]

    def _weights(self, first: int, images: int) -> list[Step]:
        """One chunk of images of backward weights: its products are added to those before."""
        steps: list[Step] = []
        for role, operand, kind in (("x", "a", TURNED), ("y", "b", PARTS)):
            spectra = f"{role}_spectra" if self.pointwise else "spectra"
            steps += self._spectra_of(role, operand, first, images, spectra)
            if not self.pointwise:
                steps.append(self._turn("fft_to_matrices", "spectra", f"{role}_matrices", role, kind, images))
        return [*steps, (self._multiply if self.pointwise else self._product)(images, first > 0)]

    def _load_filter(self) -> list[Step]:
        """The spectra of all filters, a few at a time."""
        s = self.problem.shape
        role = BACKWARD if self.problem.pass_ is Pass.BACKWARD_DATA else FORWARD
        steps: list[Step] = []
        for first in range(0, s.k, self.filters):
            count = min(self.filters, s.k - first)
            steps.append(self._move("fft_load", "w", "b", "circles", first, count))
            offset = first * s.cg * self.frequencies if self.pointwise else 0
            target = At("w_spectra" if self.pointwise else "spectra", offset)
            steps.append(Transform("forward", At("circles"), target, count * s.cg, *self.size))
            if not self.pointwise:
                steps.append(self._turn("fft_to_matrices", "spectra", "w_matrices", "w", role, count, first))
        return steps

    def _store_filter(self) -> list[Step]:
        """dw from its spectra, a few filters at a time."""
        s = self.problem.shape
        steps: list[Step] = []
        for first in range(0, s.k, self.filters):
            count = min(self.filters, s.k - first)
            source = At("w_spectra", first * s.cg * self.frequencies)
            if not self.pointwise:
                steps.append(self._turn("fft_from_matrices", "w_matrices", "spectra", "w", GRADIENT, count, first))
                source = At("spectra")
            steps.append(Transform("inverse", source, At("circles"), count * s.cg, *self.size))
            steps.append(self._move("fft_store", "w", "circles", "out", first, count))
        return steps

    # ---- steps

    def _channels(self, role: str) -> int:
        s = self.problem.shape
        return {"x": s.c, "y": s.k, "w": s.cg}[role]

    def _spectra_of(self, role: str, operand: str, first: int, images: int, spectra: str) -> list[Step]:
        load = self._move("fft_load", role, operand, "circles", first, images)
        return [load, self._transform("forward", spectra, images * self._channels(role))]

    def _transform(self, kind: str, spectra: str, batch: int) -> Transform:
        ends = (At("circles"), At(spectra)) if kind == "forward" else (At(spectra), At("circles"))
        return Transform(kind, *ends, batch, *self.size)

    def _move(self, kernel: str, role: str, source: str, target: str, first: int, images: int) -> Launch:
        """fft_load from a tensor, or fft_store to it, from its image (or filter) `first` on."""
        s = self.problem.shape
        height, width = {"x": (s.h, s.w), "y": (s.p, s.q), "w": (s.r, s.s)}[role]
        channels = self._channels(role)
        lines = self.size if kernel == "fft_load" else (height, width)
        grid = (blocks(images * channels * lines[0], 8), 1, 1)
        if self.problem.layout == "nhwc":
            grid = (images * lines[0] * blocks(lines[1], 32), blocks(channels, 32), 1)
        tensor = At(source if kernel == "fft_load" else target, first * channels * height * width)
        ends = (tensor, At(target)) if kernel == "fft_load" else (At(source), tensor)
        maps = (self.axes[0][role].struct, self.axes[1][role].struct)
        scale = () if kernel == "fft_load" else (Float(1.0 / self.points),)
        return self._launch(kernel, grid, (*ends, images, channels, height, width, *maps, *scale))

    def _turn(
        self, kernel: str, source: str, target: str, role: str, kind: int, images: int, first: int = 0
    ) -> Launch:
        """Spectra into matrices or back."""
        s = self.problem.shape
        channels = self._channels(role)
        rows, columns = {
            FORWARD: (s.cg, s.kg), BACKWARD: (s.kg, s.cg), GRADIENT: (s.kg, s.cg),
        }.get(kind, (images, channels // s.groups))  # fmt: skip
        outer, inner = (channels, images) if kind == FORWARD else (images, channels)
        grid = (blocks(self.frequencies, 32) * outer, blocks(inner, 32), 1)
        matrices = Struct((kind, s.groups, rows, columns))
        arguments = (At(source), At(target), matrices, self.frequencies, images, channels, first)
        return self._launch(kernel, grid, arguments)

    def _product(self, images: int, add: bool) -> Product:
        """All frequencies and groups."""
        return spectral_product(self.problem, images, self.frequencies, add)

    def _multiply(self, images: int, add: bool) -> Launch:
        """The product without matrices."""
        s = self.problem.shape
        number = list(Pass).index(self.problem.pass_)
        outer, inner = ((images, s.k), (images, s.c), (s.k, s.cg))[number]
        fields = list(conv_struct(s).fields)
        fields[0] = images
        grid = (blocks(self.frequencies, 256), min(outer, 65535), min(inner, 65535))
        spectra = (At("x_spectra"), At("w_spectra"), At("y_spectra"))
        return self._launch("fft_multiply", grid, (*spectra, number, int(add), Struct(tuple(fields)), self.frequencies))

    def _launch(self, kernel: str, grid: tuple[int, int, int], arguments: tuple) -> Launch:
        defines = (("NHWC", int(self.problem.layout == "nhwc")),)
        return Launch(FILE, kernel, grid, BLOCK, arguments, defines=defines)


def spectral_product(problem: Problem, rows: int, frequencies: int, add: bool = False) -> Product:
    """x, w and y_matrices of spectra.cuh, of `rows` images or tiles: the two of the pass give the third."""
    s = problem.shape
    batch = frequencies * s.groups
    x, w, y = At("x_matrices"), At("w_matrices"), At("y_matrices")
    wide_c, wide_k = 2 * s.cg, 2 * s.kg
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return Product(y, x, w, s.kg, wide_c, 2 * rows, s.kg, wide_c, wide_c, transpose_a=True, batch=batch,
                       step_a=2 * rows * s.kg, step_b=2 * rows * wide_c, step_c=s.kg * wide_c, add=add)  # fmt: skip
    source, target, ci, co = (x, y, wide_c, wide_k) if problem.pass_ is Pass.FORWARD else (y, x, wide_k, wide_c)
    return Product(source, w, target, rows, co, ci, ci, co, co, batch=batch,
                   step_a=rows * ci, step_b=ci * co, step_c=rows * co)  # fmt: skip
