"""Depthwise convolution, lanes = channels: straight-line kernels for small filters, a sliding kernel for large ones.

A block of outputs (rows x columns of pixels) stays in registers while the taps go by. Which input pixel meets which
tap for which output is a `Pattern` along each axis, so that one generator serves any stride and dilation, and
backward data (where an output sees only the taps of its phase) as well as forward. Filters are packed
[channel vector][tap][lane].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter, Value
from convbench.simd.target import Target


@dataclass(frozen=True)
class Pattern:
    """One axis of a block of `size` outputs: output j reads offsets[index] with `tap`, for (j, index, tap) in uses.

    Offsets are input positions relative to the block's base; the next block's base is `step` further.
    """

    size: int
    offsets: tuple[int, ...]
    uses: tuple[tuple[int, int, int], ...]
    step: int

    @staticmethod
    def forward(size: int, taps: int, stride: int, dilation: int) -> Pattern:
        """Output j reads j stride + tap dilation; the base is (block size stride) - padding."""
        uses = [(j, j * stride + tap * dilation, tap) for j in range(size) for tap in range(taps)]
        return Pattern._of(size, uses, size * stride)

    @staticmethod
    def backward(size: int, taps: int, stride: int, dilation: int, padding: int) -> Pattern:
        """Input j of forward receives from output (j + padding - tap dilation) / stride where that is whole.

        size is a multiple of the stride; the base is (block size / stride).
        """
        reads = [(j, j + padding - tap * dilation, tap) for j in range(size) for tap in range(taps)]
        return Pattern._of(size, [(j, at // stride, tap) for j, at, tap in reads if at % stride == 0], size // stride)

    @staticmethod
    def _of(size: int, uses: list[tuple[int, int, int]], step: int) -> Pattern:
        offsets = tuple(sorted({at for _, at, _ in uses}))
        return Pattern(size, offsets, tuple((j, offsets.index(at), tap) for j, at, tap in uses), step)

    def reads(self, index: int) -> list[tuple[int, int]]:
        """The (output, tap) pairs that use one offset."""
        return [(j, tap) for j, i, tap in self.uses if i == index]


#: x: address of the input pixel at the base, first channel. x_row, x_pixel, y_row, y_pixel: strides in elements.
#: y: of the first output. filters: of the first channel vector's taps. blocks: how many, side by side in a row.
STRIDED = ("x", "x_row", "x_pixel", "y", "y_row", "y_pixel", "filters", "channels", "blocks")
#: table: addresses of the window's pixels (row-major), then of the block's outputs. For edges: pixels outside the
#: image are some zeros, outputs outside it are somewhere to write.
TABLED = ("table", "filters", "channels")


@kernel
def straight(
    target: Target, rows: Pattern, columns: Pattern, taps: int, width: int, table: bool = False, weights: bool = False
) -> Emitter:
    """One block, or a row of blocks, of outputs, all channels of a block before the next block.

    taps: of the whole filter. width: of a filter row. weights: backward weights, where `y` is read and the sums over
    the block are added to `filters`.
    """
    kind = f"{rows.size}x{columns.size}_{len(rows.offsets)}x{len(columns.offsets)}"
    name = f"depthwise_{target.name}_{kind}{'_table' if table else ''}{'_weights' if weights else ''}"
    e = Emitter(target, name, TABLED if table else STRIDED)
    body = _weights if weights else _outputs
    if table:
        address, filters, channels = e.args
        entries = e.pointer(address, I64)
        wide = len(columns.offsets)
        first_y = len(rows.offsets) * wide

        def x_entry(i: int, j: int) -> Value:
            return e.pointer(e.load_int(e.at(entries, i * wide + j)))

        def y_entry(i: int, j: int) -> Value:
            return e.pointer(e.load_int(e.at(entries, first_y + i * columns.size + j)))

        _channels(e, channels, filters, taps, x_entry, y_entry, lambda *a: body(e, rows, columns, width, *a))
        return e
    x, x_row, x_pixel, y, y_row, y_pixel, filters, channels, blocks = e.args
    x_step, y_step = e.mul(x_pixel, columns.step), e.mul(y_pixel, columns.size)
    with e.loop(blocks, name="block") as block:
        x_base, y_base = e.at(e.pointer(x), e.mul(block.index, x_step)), e.at(e.pointer(y), e.mul(block.index, y_step))

        def x_pixel_at(i: int, j: int) -> Value:
            return e.at(x_base, e.mul(x_row, rows.offsets[i]), e.mul(x_pixel, columns.offsets[j]))

        def y_pixel_at(i: int, j: int) -> Value:
            return e.at(y_base, e.mul(y_row, i), e.mul(y_pixel, j))

        _channels(e, channels, filters, taps, x_pixel_at, y_pixel_at, lambda *a: body(e, rows, columns, width, *a))
    return e


Place = Callable[[int, int], Value]


def _channels(
    e: Emitter, channels: Value, filters: Value, taps: int, x: Place, y: Place, body: Callable[..., None]
) -> None:
    """The loop over channel vectors: masked throughout where masks are free, otherwise only the last vector."""

    def vector(index: Value, mask: Value | None) -> None:
        taps_at = e.at(e.pointer(filters), e.mul(index, taps))
        body(lambda i, j: e.at(x(i, j), index), lambda i, j: e.at(y(i, j), index), taps_at, mask)

    if e.target.free_masks:
        with e.loop(channels, step=e.lanes, name="channel") as c:
            vector(c.index, e.mask(e.sub(channels, c.index)))
        return
    whole = e.mul(e.b.sdiv(channels, e.i(e.lanes)), e.lanes)
    with e.loop(whole, step=e.lanes, name="channel") as c:
        vector(c.index, None)
    left = e.sub(channels, whole)
    with e.loop(left, step=e.lanes, name="last"):
        vector(whole, e.mask(left))


def _outputs(
    e: Emitter, rows: Pattern, columns: Pattern, width: int, x: Place, y: Place, taps: Value, mask: Value | None
) -> None:
    sums: dict[tuple[int, int], Value] = {}
    used = {(r, s) for _, _, r in rows.uses for _, _, s in columns.uses}
    few = len(used) <= 9 and e.target.registers >= 32

    def tap(r: int, s: int) -> Value:
        return e.load(e.at(taps, (r * width + s) * e.lanes))

    held = {(r, s): tap(r, s) for r, s in sorted(used)} if few else {}

    def add(j: int, q: int, pixel: Value, factor: Value) -> None:
        known = sums.get((j, q))
        sums[j, q] = e.fmul(pixel, factor) if known is None else e.fma(pixel, factor, known)

    for i in range(len(rows.offsets)):
        if few:
            for index in range(len(columns.offsets)):
                pixel = e.load(x(i, index), mask)
                for j, r in rows.reads(i):
                    for q, s in columns.reads(index):
                        add(j, q, pixel, held[r, s])
            continue
        window = [e.load(x(i, index), mask) for index in range(len(columns.offsets))]
        for j, r in rows.reads(i):
            for s in sorted({s for _, _, s in columns.uses}):
                factor = tap(r, s)
                for q, index, t in columns.uses:
                    if t == s:
                        add(j, q, window[index], factor)
    for j in range(rows.size):
        for q in range(columns.size):
            e.store(sums.get((j, q), e.splat_constant(0.0)), y(j, q), mask)


def _weights(
    e: Emitter, rows: Pattern, columns: Pattern, width: int, x: Place, y: Place, taps: Value, mask: Value | None
) -> None:
    gradient = {(j, q): e.load(y(j, q), mask) for j in range(rows.size) for q in range(columns.size)}
    heights = sorted({r for _, _, r in rows.uses})
    together = max(1, (e.target.registers - 3 - len(gradient)) // width)  # filter rows whose sums fit in registers
    for first in range(0, len(heights), together):
        chosen = heights[first : first + together]
        sums: dict[tuple[int, int], Value] = {}
        for i in range(len(rows.offsets)):
            reads = [(j, r) for j, r in rows.reads(i) if r in chosen]
            if not reads:
                continue
            for index in range(len(columns.offsets)):
                pixel = e.load(x(i, index), mask)
                for j, r in reads:
                    for q, s in columns.reads(index):
                        known, dy = sums.get((r, s)), gradient[j, q]
                        sums[r, s] = e.fmul(pixel, dy) if known is None else e.fma(pixel, dy, known)
        for (r, s), value in sums.items():
            place = e.at(taps, (r * width + s) * e.lanes)
            e.store(e.fadd(e.load(place), value), place)


#: x: address of the input pixel that tap (0, 0) reads for output (0, 0); x_row: from one filter row to the next, x_tap:
#: from one tap to the next. filters, f_row, f_tap: likewise. height, width: taps. y, y_row, y_pixel: outputs, of which
#: the first `rows` x `columns` are written. accumulate: 1 adds to them.
SLIDING = (
    "x", "x_row", "x_tap", "filters", "f_row", "f_tap", "height", "width", "y", "y_row", "y_pixel", "rows", "columns",
    "channels", "accumulate",
)  # fmt: skip


@kernel
def sliding(target: Target, rows: int, columns: int, step: int, unroll: int = 1) -> Emitter:
    """rows x columns outputs of one channel vector, for a filter of any size (height >= rows): loops over taps.

    Output (j, q) reads x + j x_row + q step lanes: rows of outputs are as far apart as rows of taps, so that an input
    vector serves all rows of the block. x has whole vectors; y is written under the mask. unroll: so many taps in a
    turn share a window of input vectors in registers; only for step 1 and an x_tap of one vector.
    """
    e = Emitter(target, f"depthwise_sliding_{target.name}_{rows}x{columns}_{step}_{unroll}", SLIDING)
    x, x_row, x_tap, filters, f_row, f_tap, height, width, y, y_row, y_pixel, n_rows, n_columns, channels, more = e.args
    sums = [e.splat_constant(0.0)] * (rows * columns)

    def across(state: list[Value], x_at: Value, f_at: Value, first: int, end: int) -> list[Value]:
        """One input row, used by output rows first .. end - 1; f_at is the filter row of output row 0."""
        active = range(first, end)
        chosen = [j * columns + q for j in active for q in range(columns)]
        f_rows = [e.at(f_at, e.mul(f_row, -j)) for j in active]
        now = [*[state[a] for a in chosen], x_at, *f_rows]
        for taps in dict.fromkeys((unroll, 1)):
            turns = width if unroll == 1 else e.b.sdiv(width, e.i(unroll)) if taps > 1 else e.b.srem(width, e.i(unroll))
            with e.loop(turns, now, name=f"tap{taps}_") as turn:
                acc, (x_now, *f_now) = turn.carried[: len(chosen)], turn.carried[len(chosen) :]
                pixels: dict[int, Value] = {}
                for t in range(taps):
                    if taps == 1:
                        factors = [e.load(f) for f in f_now]
                        for q in range(columns):
                            pixel = e.load(e.at(x_now, q * step * e.lanes))
                            for n, factor in enumerate(factors):
                                acc[n * columns + q] = e.fma(pixel, factor, acc[n * columns + q])
                    else:  # an input vector stays for the taps to come
                        for q in range(columns):
                            if t + q not in pixels:
                                pixels[t + q] = e.load(e.at(x_now, (t + q) * e.lanes))
                        for n, f in enumerate(f_now):
                            factor = e.load(f)
                            for q in range(columns):
                                acc[n * columns + q] = e.fma(pixels[t + q], factor, acc[n * columns + q])
                    f_now = [e.at(f, f_tap) for f in f_now]
                turn.result = [*acc, e.at(x_now, e.mul(x_tap, taps)), *f_now]
            now = turn.result
        after = list(state)
        for a, value in zip(chosen, now, strict=False):
            after[a] = value
        return after

    x_at, f_at = e.pointer(x), e.pointer(filters)
    for i in range(rows - 1):  # rows that the later outputs do not see
        sums = across(sums, e.at(x_at, e.mul(x_row, i)), e.at(f_at, e.mul(f_row, i)), 0, i + 1)
    x_at, f_at = e.at(x_at, e.mul(x_row, rows - 1)), e.at(f_at, e.mul(f_row, rows - 1))
    with e.loop(e.sub(height, rows - 1), [*sums, x_at, f_at], name="row") as row:
        *state, x_now, f_now = row.carried
        row.result = [*across(state, x_now, f_now, 0, rows), e.at(x_now, x_row), e.at(f_now, f_row)]
    *sums, x_at, f_at = row.result
    for i in range(1, rows):  # rows that the earlier outputs do not see any more
        sums = across(sums, e.at(x_at, e.mul(x_row, i - 1)), e.at(f_at, e.mul(f_row, i - 1)), i, rows)

    zero = e.splat_constant(0.0)
    for j in range(rows):
        for q in range(columns):
            exists = e.b.and_(e.less(j, n_rows), e.less(q, n_columns))
            mask = e.mask(e.b.select(exists, channels, e.i(0)))
            place = e.at(e.pointer(y), e.mul(y_row, j), e.mul(y_pixel, q))
            place = e.b.select(exists, place, e.pointer(y))

            def write(place: Value = place, mask: Value = mask, value: Value = sums[j * columns + q]) -> list[Value]:
                known = e.choose(e.b.icmp_signed("!=", more, e.i(0)), lambda: [e.load(place, mask)], lambda: [zero])
                e.store(e.fadd(value, known[0]), place, mask)
                return []

            e.choose(exists, write, list)
    return e


#: to[i, j, c] = from_[i, j, c], i < rows, j < pixels, c < channels. Addresses; strides in elements.
MOVE = ("rows", "pixels", "channels", "from_", "from_row", "from_pixel", "to", "to_row", "to_pixel")


@kernel
def move(target: Target) -> Emitter:
    """Copies a few channels (one vector at most) of a rectangle of pixels."""
    e = Emitter(target, f"depthwise_move_{target.name}", MOVE)
    rows, pixels, channels, source, from_row, from_pixel, to, to_row, to_pixel = e.args
    mask = e.mask(channels)

    def rectangle(chosen: Value | None) -> list[Value]:
        with e.loop(rows, name="row") as row:
            first = e.at(e.pointer(source), e.mul(from_row, row.index))
            with e.loop(pixels, [first, e.at(e.pointer(to), e.mul(to_row, row.index))], name="pixel") as pixel:
                a, b = pixel.carried
                e.store(e.load(a, chosen), b, chosen)
                pixel.result = [e.at(a, from_pixel), e.at(b, to_pixel)]
        return []

    e.choose(e.less(e.lanes - 1, channels), lambda: rectangle(None), lambda: rectangle(mask))
    return e
