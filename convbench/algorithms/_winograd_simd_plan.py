"""How a Winograd convolution is cut into blocks: sizes, strides and buffers, before anything is allocated.

One description serves forward, backward data (the filter turned, C and K exchanged) and strided convolution: a
stride of s is s x s decimated images of stride 1 ("phases"), whose channels stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from convbench.algorithms._cook_toom import CookToom, cook_toom
from convbench.problem import Pass, Problem
from convbench.simd.kernels.gemm import EFFICIENCY, Shape, shape_for
from convbench.simd.kernels.transform import operations
from convbench.simd.target import Target

#: Finite points beside those of `_cook_toom.POINTS`, for the filters of 2 and 4 taps that a stride of 2 leaves. Of
#: four points, -2 had a third less error than 1/2 or 2; of six, the choices between +-2 and +-1/2 hardly differ.
POINTS = {
    4: (Fraction(0), Fraction(1), Fraction(-1), Fraction(-2)),
    6: (Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), Fraction(1, 2)),
}
#: float32 in a cache line: rows and planes are multiples of it.
LINE = 16
#: Channels that an NCHW strip converts at a time.
STRIP_CHANNELS = 64
#: A block of tiles: their transforms may take so many bytes, but so many tiles are enough and so few are needed, for
#: fewer read the filter too often. Measured on VGG-16's layers, F(4x4) and F(6x6): flat within 5 % around that.
TILE_BYTES, TILES, FEWEST_TILES = 2 << 20, 48, 24
#: Bytes of a piece of the filter that is transformed inside the loop.
FILTER_BYTES = 600 << 10
#: Fewer tiles than this for each thread: the filter's panels are divided over the threads, not the tiles. (Threads that
#: share the tiles read the same filter at the same time. On two cores, tiles or panels divided, 512 channels take 0.98
#: or 0.83 ms with 4 tiles, 2.8 or 2.1 with 9 of F(6x6), 1.36 or 1.54 with 16; 128 channels with 49 take 0.23 or 0.32.)
SPLIT_TILES = 6
#: With raw weights, fewer tiles than this in all: the filter is transformed piece by piece and never written out (512
#: channels, F(4x4): 3.7 ms for 7.1 with 16 tiles, 9.3 for 10.9 with 49).
FLY_TILES = 64


@dataclass(frozen=True)
class Geometry:
    """One pass as tiles. Sizes of the tensor that is read (c, h, w) and of the one written (k, p, q), per image."""

    transform: CookToom
    layout: str
    backward: bool
    n: int
    groups: int
    c: int  # in each group, of the tensor that is read
    k: int  # in each group, of the tensor that is written
    h: int
    w: int
    p: int
    q: int
    top: int
    left: int
    stride: int
    taps: tuple[int, int]  # of the problem's filter

    @property
    def phases(self) -> int:
        """Decimated images."""
        return self.stride**2

    @property
    def depth(self) -> int:
        """Length of the sums in the products."""
        return self.phases * self.c

    @property
    def frequencies(self) -> int:
        """Products per tile, channel and output channel."""
        return self.transform.alpha**2

    @property
    def down(self) -> int:
        """Tiles of an image, vertically."""
        return -(-self.p // self.transform.m)

    @property
    def across(self) -> int:
        """Tiles of an image, horizontally."""
        return -(-self.q // self.transform.m)

    @property
    def tiles(self) -> int:
        """Of the whole batch."""
        return self.n * self.down * self.across


def geometry(problem: Problem, tile: int, taps: int) -> Geometry:
    """The tiles of a forward or backward-data problem; `taps`: of the (decimated) filter along each axis."""
    s = problem.shape
    top, left = s.padding[0], s.padding[2]
    transform = cook_toom(tile, taps, POINTS.get(tile + taps - 2))
    if problem.pass_ is Pass.BACKWARD_DATA:
        sizes = (s.kg, s.cg, s.p, s.q, s.h, s.w, s.r - 1 - top, s.s - 1 - left)
    else:
        sizes = (s.cg, s.kg, s.h, s.w, s.p, s.q, top, left)
    backward = problem.pass_ is Pass.BACKWARD_DATA
    return Geometry(
        transform, problem.layout, backward, s.n, s.groups, *sizes, max(s.stride), (s.r, s.s)
    )


@dataclass(frozen=True)
class Plan:
    """Blocks and buffers. All sizes in elements (float32), all multiples of a cache line.

    fly: the filter is kept as panels of taps and transformed, piece by piece, inside the loop; otherwise it is
    transformed as a whole beforehand. blocks: of tiles. together: panels of output channels between one product
    phase and its output transform. chunk: channels of a piece.
    """

    geometry: Geometry
    shape: Shape
    lanes: int
    fly: bool
    blocks: int
    together: int
    chunk: int
    split: bool
    ahead: bool = True

    @property
    def width(self) -> int:
        """Output channels of a panel."""
        return self.shape.vectors * self.lanes

    @property
    def panels(self) -> int:
        """Panels of a group's output channels."""
        return -(-self.geometry.k // self.width)

    @property
    def most_tiles(self) -> int:
        """In a block."""
        return -(-self.geometry.tiles // self.blocks)

    @property
    def lines_ahead(self) -> int:
        """Cache lines of the next panel that each step of the products asks for."""
        if self.fly or not self.ahead:
            return 0
        blocks = -(-self.most_tiles // self.shape.rows)
        return -(-self.width // (LINE * blocks))

    @property
    def row_v(self) -> int:
        """Between the tiles of V."""
        return _row(self.geometry.depth)

    @property
    def plane_v(self) -> int:
        """Between the frequencies of V."""
        return _plane(self.most_tiles * self.row_v)

    @property
    def row_m(self) -> int:
        """Between the tiles of M."""
        return _row(self.together * self.width)

    @property
    def plane_m(self) -> int:
        """Between the frequencies of M."""
        return _plane(self.most_tiles * self.row_m)

    @property
    def plane_u(self) -> int:
        """Between the frequencies of a transformed panel (of one piece of it, where made on the fly)."""
        return _plane((self.chunk if self.fly else self.geometry.depth) * self.width)

    @property
    def taps(self) -> int:
        """Of a (decimated) filter in the plane."""
        return self.geometry.transform.r**2

    @property
    def strip_in(self) -> tuple[int, int, int]:
        """(rows, pixels, stride between pixels) of an input strip: NCHW only."""
        g, t = self.geometry, self.geometry.transform
        tiles = min(g.across, self.most_tiles)
        return g.stride * t.alpha, g.stride * ((tiles - 1) * t.m + t.alpha), strip_pixel(g.c)

    @property
    def strip_out(self) -> tuple[int, int, int]:
        """(rows, pixels, stride between pixels) of an output strip: NCHW only."""
        g, t = self.geometry, self.geometry.transform
        return t.m, min(g.across, self.most_tiles) * t.m, strip_pixel(min(g.k, self.together * self.width))

    def v_size(self) -> int:
        """Transformed input."""
        return self.geometry.frequencies * self.plane_v

    def kept_filters(self) -> int:
        """What is kept of the filter: transformed panels or, on the fly, panels of taps (packed weights only)."""
        g = self.geometry
        if self.fly:
            return g.groups * self.panels * self.taps * g.depth * self.width
        return g.groups * self.panels * g.frequencies * self.plane_u

    def private(self) -> dict[str, int]:
        """Buffers of each thread, by name."""
        g = self.geometry
        sizes = {
            "table": 2 * max(g.frequencies, g.transform.m**2) + LINE,
            "zeros": max(g.c, STRIP_CHANNELS) + LINE,
            "dump": self.together * self.width + LINE,
            "m": g.frequencies * self.plane_m,
        }
        if not self.split:
            sizes["v"] = self.v_size()
        if g.layout == "nchw":
            for name, (rows, pixels, pixel) in (("strip_in", self.strip_in), ("strip_out", self.strip_out)):
                sizes[name] = rows * pixels * pixel
        if self.fly:
            sizes["u"] = self.together * g.frequencies * self.plane_u
        sizes["taps"] = self.taps * self.chunk * self.width
        if g.layout == "nchw" and not g.backward:
            sizes["turned"] = g.taps[0] * g.taps[1] * self.chunk * self.width
        return {name: _up(size) for name, size in sizes.items()}

    def bytes(self, raw: bool, threads: int) -> int:
        """Workspace, packed weights included."""
        total = threads * (sum(self.private().values()) + LINE)
        if self.split:
            total += self.geometry.groups * self.v_size()
        if not (raw and self.fly):
            total += self.kept_filters()
        return 4 * total


def strip_pixel(channels: int) -> int:
    """Stride between the pixels of a strip."""
    return _up(min(channels, STRIP_CHANNELS)) + LINE


def choose(g: Geometry, target: Target, threads: int, raw: bool, **forced: int) -> Plan:
    """The plan for a problem. `forced`: vectors, tiles, together, fly, chunk, split, for measurements."""
    per_tile = 4 * g.frequencies * g.depth
    tiles = forced.get("tiles", max(FEWEST_TILES, min(TILES, TILE_BYTES // per_tile)))
    fly = bool(forced.get("fly", raw and g.tiles < FLY_TILES))
    blocks = 1 if fly and "tiles" not in forced else max(1, round(g.tiles / tiles))
    few = threads > 1 and blocks * g.groups < 2 * threads
    # on the fly each block would transform all of the filter
    split = bool(forced.get("split", few and (fly or g.tiles * g.groups < SPLIT_TILES * threads)))
    if split:
        blocks = 1
    elif threads > 1 and g.groups == 1:
        blocks = min(-(-blocks // threads) * threads, g.tiles)
    most = -(-g.tiles // blocks)
    vectors = forced.get("vectors", _vectors(target, g.k, most))
    shape = shape_for(target, vectors)
    width = vectors * target.lanes
    panels = -(-g.k // width)
    chunk = max(LINE, FILTER_BYTES // (4 * g.frequencies * width) // LINE * LINE)
    chunk = min(forced.get("chunk", chunk), g.c)
    together = 1 if fly or split else max(1, min(panels, (512 << 10) // (4 * g.frequencies * most * width)))
    together, ahead = forced.get("together", together), bool(forced.get("ahead", 1))
    return Plan(g, shape, target.lanes, fly, blocks, together, chunk, split, ahead)


def _vectors(target: Target, columns: int, rows: int) -> int:
    """Panel width: least work at each width's speed, where a block has few rows wide panels."""
    needed = -(-columns // target.lanes)

    def cost(vectors: int) -> tuple[float, int]:
        work = -(-needed // vectors) * vectors
        most = shape_for(target, vectors).rows
        chains = min(rows, most) * vectors  # sums in flight: a multiply-add takes 4 cycles
        again = 1 + 0.05 * (-(-rows // most) - 1) if rows <= FEWEST_TILES else 1.0  # a panel is read for each block
        return work * again / EFFICIENCY[vectors] / min(1.0, chains / 12), -vectors

    return min(EFFICIENCY, key=cost)


def _up(size: int) -> int:
    return -(-size // LINE) * LINE


def _row(size: int) -> int:
    """A row's stride: whole lines, off multiples of a large power of two."""
    size = _up(size)
    return size + LINE if size % 128 == 0 else size


def _plane(size: int) -> int:
    """A plane's stride: an odd number of lines, so that planes spread over the sets of a cache."""
    return (_up(size) // LINE | 1) * LINE


def flops(g: Geometry) -> dict[str, float]:
    """Executed operations by phase: whole tiles, also where they hang over the edge."""
    t = g.transform
    alpha, m, r = t.alpha, t.m, t.r

    def transform(matrix: tuple[tuple[Fraction, ...], ...], columns: int, rows: int) -> float:
        return float(operations(tuple(tuple(float(v) for v in row) for row in matrix)) * (columns + rows))

    tiles = float(g.tiles * g.groups)
    return {
        "input_transform": tiles * g.depth * transform(t.bt, alpha, alpha),
        "filter_transform": float(g.groups * g.depth * g.k) * transform(t.g, r, alpha),
        "multiply": 2.0 * g.frequencies * tiles * g.depth * g.k,
        "output_transform": tiles * g.k * transform(t.at, alpha, m),
    }
