"""The loops of fused Winograd convolution: tasks for Numba. Loaded by prepare() only (see `winograd_simd.py`).

For a block of tiles: B^T d B of all channels into V[frequency][tile][channel]; then, for a few panels of output
channels at a time, products with the transformed filter into M[frequency][tile][output channel], and A^T M A
straight into the result. V, M and a piece of the filter stay in the second-level cache. SIZE: bytes of an element of
X, W and Y: 4, or 2 that are converted on the way in and out.
"""

from __future__ import annotations

from numba import njit

from convbench.simd import patch
from convbench.simd.driver import call, copy, item, put, task, zero

# The parameter table. Sizes are in elements, buffers are addresses. Those of a thread: base + 4 PER_THREAD thread.
NAMES = (
    "X", "W", "Y", "NCHW", "BACKWARD", "GROUPS", "C", "K", "H", "WIDTH", "P", "Q", "TOP", "LEFT", "STRIDE",
    "TAPS_H", "TAPS_W", "M", "ALPHA", "TAPS", "DOWN", "ACROSS", "TILES", "BLOCKS", "PANEL", "PANELS", "TOGETHER",
    "CHUNK", "DEPTH", "ROWS", "FLY", "RAW", "SPLIT", "ROW_V", "PLANE_V", "V_SIZE", "ROW_M", "PLANE_M", "PLANE_U",
    "PER_THREAD", "TABLE", "ZEROS", "DUMP", "BUFFER_M", "BUFFER_V", "STRIP_IN", "STRIP_OUT", "BUFFER_U", "BUFFER_TAPS",
    "TURNED", "FILTERS", "STRIP_ROW_IN", "STRIP_PIXEL_IN", "STRIP_ROW_OUT", "STRIP_PIXEL_OUT", "STRIP_CHANNELS",
    "INPUT_KERNEL", "FILTER_KERNEL", "OUTPUT_KERNEL", "PRODUCT_KERNEL", "TRANSPOSE", "PARTS", "PHASES",
    "SIZE", "CONVERT", "TRANSPOSE_OUT",
)  # fmt: skip
(
    X, W, Y, NCHW, BACKWARD, GROUPS, C, K, H, WIDTH, P, Q, TOP, LEFT, STRIDE,
    TAPS_H, TAPS_W, M, ALPHA, TAPS, DOWN, ACROSS, TILES, BLOCKS, PANEL, PANELS, TOGETHER,
    CHUNK, DEPTH, ROWS, FLY, RAW, SPLIT, ROW_V, PLANE_V, V_SIZE, ROW_M, PLANE_M, PLANE_U,
    PER_THREAD, TABLE, ZEROS, DUMP, BUFFER_M, BUFFER_V, STRIP_IN, STRIP_OUT, BUFFER_U, BUFFER_TAPS,
    TURNED, FILTERS, STRIP_ROW_IN, STRIP_PIXEL_IN, STRIP_ROW_OUT, STRIP_PIXEL_OUT, STRIP_CHANNELS,
    INPUT_KERNEL, FILTER_KERNEL, OUTPUT_KERNEL, PRODUCT_KERNEL, TRANSPOSE, PARTS, PHASES, SIZE, CONVERT, TRANSPOSE_OUT,
) = range(len(NAMES))  # fmt: skip

#: Bits of the parameter PHASES: benchmarks switch phases off one by one.
DO_INPUT, DO_FILTER, DO_PRODUCTS, DO_OUTPUT = 1, 2, 4, 8


@njit(error_model="numpy")
def _mine(p: int, name: int, thread: int) -> int:
    """Address of a thread's own buffer."""
    return item(p, name) + 4 * item(p, PER_THREAD) * thread


# ---- input transform


@njit(error_model="numpy")
def _input(p: int, thread: int, group: int, first: int, end: int, v: int) -> None:
    """V[frequency][t - first][phase, channel] for tiles first .. end - 1. v: address of the first tile's row."""
    across = item(p, ACROSS)
    t = first
    while t < end:
        row, column = t // across, t % across
        count = min(across - column, end - t)  # tiles beside each other
        to = v + 4 * (t - first) * item(p, ROW_V)
        if item(p, NCHW):
            _input_row_nchw(p, thread, group, row // item(p, DOWN), row % item(p, DOWN), column, count, to)
        else:
            _input_row(p, thread, group, row // item(p, DOWN), row % item(p, DOWN), column, count, to)
        t += count


@njit(error_model="numpy")
def _input_row(p: int, thread: int, group: int, image: int, row: int, column: int, count: int, v: int) -> None:
    """`count` tiles of a row, NHWC: the kernel reads x itself, zeros where a tile hangs over the edge."""
    alpha, s, channels = item(p, ALPHA), item(p, STRIDE), item(p, C)
    height, width = item(p, H), item(p, WIDTH)
    pixel = item(p, SIZE) * channels * item(p, GROUPS)
    table, zeros, kernel = _mine(p, TABLE, thread), _mine(p, ZEROS, thread), item(p, INPUT_KERNEL)
    x = item(p, X) + image * height * width * pixel + item(p, SIZE) * group * channels
    for j in range(column, column + count):
        for phase in range(s * s):
            h0 = row * item(p, M) * s - item(p, TOP) + phase // s
            w0 = j * item(p, M) * s - item(p, LEFT) + phase % s
            inside = w0 >= 0 and w0 + s * (alpha - 1) < width
            for i in range(alpha):
                h = h0 + i * s
                place = table + 8 * i * alpha
                if h < 0 or h >= height:
                    for k in range(alpha):
                        put(place, k, zeros)
                elif inside:
                    start = x + (h * width + w0) * pixel
                    for k in range(alpha):
                        put(place, k, start + k * s * pixel)
                else:
                    for k in range(alpha):
                        w = w0 + k * s
                        put(place, k, zeros if w < 0 or w >= width else x + (h * width + w) * pixel)
            to = v + 4 * ((j - column) * item(p, ROW_V) + phase * channels)
            call(kernel, (channels, table, 0, to, item(p, PLANE_V)))


@njit(error_model="numpy")
def _input_row_nchw(p: int, thread: int, group: int, image: int, row: int, column: int, count: int, v: int) -> None:
    """`count` tiles of a row, NCHW: some channels of the strip below them at a time become NHWC, zeros around."""
    alpha, s, m, channels = item(p, ALPHA), item(p, STRIDE), item(p, M), item(p, C)
    table, strip, kernel = _mine(p, TABLE, thread), _mine(p, STRIP_IN, thread), item(p, INPUT_KERNEL)
    strip_row, pixel = item(p, STRIP_ROW_IN), item(p, STRIP_PIXEL_IN)
    for c in range(0, channels, item(p, STRIP_CHANNELS)):
        some = min(item(p, STRIP_CHANNELS), channels - c)
        patch.gather(
            item(p, X), 1, channels * item(p, GROUPS), item(p, H), item(p, WIDTH),
            image, group * channels + c, some, row * m * s - item(p, TOP), s * alpha,
            column * m * s - item(p, LEFT), s * ((count - 1) * m + alpha), strip, strip_row, pixel, item(p, TRANSPOSE),
            item(p, SIZE),
        )  # fmt: skip
        for j in range(count):
            for phase in range(s * s):
                start = strip + 4 * (phase // s * strip_row + (j * m * s + phase % s) * pixel)
                for i in range(alpha):
                    for k in range(alpha):
                        put(table, i * alpha + k, start + 4 * (i * s * strip_row + k * s * pixel))
                to = v + 4 * (j * item(p, ROW_V) + phase * channels + c)
                call(kernel, (some, table, 0, to, item(p, PLANE_V)))


# ---- filter


@njit(error_model="numpy")
def _pack(p: int, thread: int, group: int, panel: int, first: int, count: int, to: int, step: int) -> None:
    """Taps as panels: to[tap, d, lane] for d = first .. first + count - 1 of the depth, all in one phase; step: of tap.

    Lanes are output channels of this pass; those beyond the group's are 0.
    """
    width, c, k = item(p, PANEL), item(p, C), item(p, K)
    k0 = panel * width
    lanes = min(width, k - k0)
    if lanes < width or item(p, STRIDE) > 1:
        for tap in range(item(p, TAPS) ** 2):
            zero(to + 4 * tap * step, count * width)
    if item(p, BACKWARD):
        _pack_backward(p, (group * c + first) * k + k0, lanes, count, to, step)
    elif item(p, NCHW):
        phase, c0 = first // c, first % c
        _pack_nchw(p, thread, (group * k + k0) * c + c0, phase, lanes, count, to, step)
    else:
        phase, c0 = first // c, first % c
        _pack_nhwc(p, (group * k + k0) * item(p, TAPS_H) * item(p, TAPS_W) * c + c0, phase, lanes, count, to, step)


@njit(error_model="numpy")
def _pack_nhwc(p: int, start: int, phase: int, lanes: int, count: int, to: int, step: int) -> None:
    """Forward, w[k, tap, c]: a transpose for each tap."""
    s, taps, c = item(p, STRIDE), item(p, TAPS), item(p, C)
    height, width = item(p, TAPS_H), item(p, TAPS_W)
    for i in range(taps):
        for j in range(taps):
            r, q = i * s + phase // s, j * s + phase % s
            if r < height and q < width:
                source = item(p, W) + item(p, SIZE) * (start + (r * width + q) * c)
                place = to + 4 * (i * taps + j) * step
                call(item(p, TRANSPOSE), (lanes, count, source, height * width * c, place, item(p, PANEL)))


@njit(error_model="numpy")
def _pack_nchw(p: int, thread: int, start: int, phase: int, lanes: int, count: int, to: int, step: int) -> None:
    """Forward, w[k, c, tap]: one transpose to [c, tap, k], then rows into their places."""
    s, taps, panel = item(p, STRIDE), item(p, TAPS), item(p, PANEL)
    height, width = item(p, TAPS_H), item(p, TAPS_W)
    every = height * width
    turned = _mine(p, TURNED, thread)
    source = item(p, W) + item(p, SIZE) * start * every
    call(item(p, TRANSPOSE), (lanes, count * every, source, item(p, C) * every, turned, panel))
    for c in range(count):
        for i in range(taps):
            for j in range(taps):
                r, q = i * s + phase // s, j * s + phase % s
                if r < height and q < width:
                    source = turned + 4 * (c * every + r * width + q) * panel
                    copy(to + 4 * ((i * taps + j) * step + c * panel), source, lanes)


@njit(error_model="numpy")
def _pack_backward(p: int, start: int, lanes: int, count: int, to: int, step: int) -> None:
    """Backward data: lanes are the filter's input channels, `count` output channels. (The matrix turns the taps.)"""
    panel, k = item(p, PANEL), item(p, K)
    every = item(p, TAPS_H) * item(p, TAPS_W)
    group_row = start // k * k  # of the filter: output channel
    lane = start - group_row
    for d in range(count):
        at = group_row * every + d * k * every
        if item(p, NCHW):
            source = item(p, W) + item(p, SIZE) * (at + lane * every)
            call(item(p, TRANSPOSE), (lanes, every, source, every, to + 4 * d * panel, step))
        elif item(p, SIZE) == 4:
            for tap in range(every):
                copy(to + 4 * (tap * step + d * panel), item(p, W) + 4 * (at + tap * k + lane), lanes)
        else:
            call(item(p, CONVERT), (every, lanes, item(p, W) + 2 * (at + lane), k, to + 4 * d * panel, step))


@njit(error_model="numpy")
def _piece(p: int, thread: int, group: int, panel: int, first: int, count: int, to: int) -> None:
    """A piece of the filter, transformed: to[frequency, d - first, lane]."""
    width = item(p, PANEL)
    if item(p, RAW):
        source, step = _mine(p, BUFFER_TAPS, thread), count * width
        _pack(p, thread, group, panel, first, count, source, step)
    else:
        step = item(p, DEPTH) * width
        whole = (group * item(p, PANELS) + panel) * item(p, TAPS) ** 2 * step
        source = item(p, FILTERS) + 4 * (whole + first * width)
    call(item(p, FILTER_KERNEL), (count * width, source, step, to, item(p, PLANE_U)))


@task
def pack_task(index: int, thread: int, p: int) -> None:
    """Packed weights, on the fly: one panel of taps as it is kept."""
    panel, group = index % item(p, PANELS), index // item(p, PANELS)
    step = item(p, DEPTH) * item(p, PANEL)
    to = item(p, FILTERS) + 4 * index * item(p, TAPS) ** 2 * step
    for phase in range(item(p, STRIDE) ** 2):
        for c in range(0, item(p, C), item(p, CHUNK)):
            first, count = phase * item(p, C) + c, min(item(p, CHUNK), item(p, C) - c)
            _pack(p, thread, group, panel, first, count, to + 4 * first * item(p, PANEL), step)


@task
def filter_task(index: int, thread: int, p: int) -> None:
    """The whole filter beforehand: one panel, transformed."""
    panel, group = index % item(p, PANELS), index // item(p, PANELS)
    if item(p, PHASES) & DO_FILTER == 0:
        return
    to = item(p, FILTERS) + 4 * index * item(p, ALPHA) ** 2 * item(p, PLANE_U)
    for phase in range(item(p, STRIDE) ** 2):
        for c in range(0, item(p, C), item(p, CHUNK)):
            first, count = phase * item(p, C) + c, min(item(p, CHUNK), item(p, C) - c)
            _piece(p, thread, group, panel, first, count, to + 4 * first * item(p, PANEL))


# ---- products


@njit(error_model="numpy")
def _products(
    p: int, tiles: int, v: int, u: int, u_panel: int, m: int, panels: int, depth: int, add: int, after: int
) -> None:
    """M (+)= V U for every frequency. v: first channel in use; u: first panel; u_panel: elements between panels.

    after: what the filter's stream goes on with when these panels are through.
    """
    width, kernel = item(p, PANEL), item(p, PRODUCT_KERNEL)
    row_v, row_m = item(p, ROW_V), item(p, ROW_M)
    parts = -(-tiles // item(p, ROWS))  # blocks of `rows` rows, the first `more` of them; the others have one less
    rows = -(-tiles // parts)
    more = tiles - parts * (rows - 1)
    frequencies = item(p, ALPHA) ** 2
    for f in range(frequencies):
        a, b, c = v + 4 * f * item(p, PLANE_V), u + 4 * f * item(p, PLANE_U), m + 4 * f * item(p, PLANE_M)
        for panel in range(panels):
            now, to = b + 4 * panel * u_panel, c + 4 * panel * width
            ahead = now + 4 * u_panel
            if panel == panels - 1:
                ahead = b + 4 * item(p, PLANE_U) if f < frequencies - 1 else after
            call(kernel, (rows, more, a, row_v, now, depth, to, row_m, add, ahead, 0))
            if more < parts:
                skipped = 4 * more * rows
                call(kernel, (
                    rows - 1, parts - more, a + skipped * row_v, row_v, now, depth, to + skipped * row_m, row_m, add,
                    ahead, more,
                ))  # fmt: skip


@njit(error_model="numpy")
def _multiply(p: int, thread: int, group: int, tiles: int, v: int, first: int, panels: int) -> None:
    """M of some panels, all frequencies, the whole depth."""
    m, phases = _mine(p, BUFFER_M, thread), item(p, PHASES)
    every = item(p, ALPHA) ** 2 * item(p, PLANE_U)
    if item(p, FLY) == 0:
        u = item(p, FILTERS) + 4 * (group * item(p, PANELS) + first) * every
        end = first + panels
        after = u + 4 * panels * every if end < item(p, PANELS) else u - 4 * first * every
        if phases & DO_PRODUCTS:
            _products(p, tiles, v, u, every, m, panels, item(p, DEPTH), 0, after)
        return
    u = _mine(p, BUFFER_U, thread)
    for phase in range(item(p, STRIDE) ** 2):
        for c in range(0, item(p, C), item(p, CHUNK)):
            start, count = phase * item(p, C) + c, min(item(p, CHUNK), item(p, C) - c)
            if phases & DO_FILTER:
                for panel in range(panels):
                    _piece(p, thread, group, first + panel, start, count, u + 4 * panel * every)
            if phases & DO_PRODUCTS:
                _products(p, tiles, v + 4 * start, u, every, m, panels, count, int(start > 0), u)


# ---- output transform


@njit(error_model="numpy")
def _output(p: int, thread: int, group: int, first: int, end: int, k0: int, count: int) -> None:
    """Output channels k0 .. k0 + count - 1 of tiles first .. end - 1, out of M."""
    across = item(p, ACROSS)
    t = first
    while t < end:
        row, column = t // across, t % across
        some = min(across - column, end - t)
        source = _mine(p, BUFFER_M, thread) + 4 * (t - first) * item(p, ROW_M)
        image, row = row // item(p, DOWN), row % item(p, DOWN)
        if item(p, NCHW):
            _output_row_nchw(p, thread, group * item(p, K) + k0, count, image, row, column, some, source)
        else:
            _output_row(p, thread, group * item(p, K) + k0, count, image, row, column, some, source)
        t += some


@njit(error_model="numpy")
def _output_row(
    p: int, thread: int, k0: int, count: int, image: int, row: int, column: int, tiles: int, source: int
) -> None:
    """Tiles of a row, NHWC: the kernel writes y itself; what hangs over the edge goes to a place nobody reads."""
    m, height, width = item(p, M), item(p, P), item(p, Q)
    table, dump = _mine(p, TABLE, thread), _mine(p, DUMP, thread)
    pixel = item(p, SIZE) * item(p, K) * item(p, GROUPS)
    y = item(p, Y) + image * height * width * pixel + item(p, SIZE) * k0
    for j in range(column, column + tiles):
        inside = (j + 1) * m <= width
        for i in range(m):
            h = row * m + i
            place = table + 8 * i * m
            start = y + (h * width + j * m) * pixel
            if h < height and inside:
                for k in range(m):
                    put(place, k, start + k * pixel)
            else:
                for k in range(m):
                    put(place, k, dump if h >= height or j * m + k >= width else start + k * pixel)
        tile = source + 4 * (j - column) * item(p, ROW_M)
        call(item(p, OUTPUT_KERNEL), (count, tile, item(p, PLANE_M), table, 0))


@njit(error_model="numpy")
def _output_row_nchw(
    p: int, thread: int, k0: int, count: int, image: int, row: int, column: int, tiles: int, source: int
) -> None:
    """Tiles of a row, NCHW: through an NHWC strip, some channels at a time."""
    m, strip_row, pixel = item(p, M), item(p, STRIP_ROW_OUT), item(p, STRIP_PIXEL_OUT)
    table, strip = _mine(p, TABLE, thread), _mine(p, STRIP_OUT, thread)
    for c in range(0, count, item(p, STRIP_CHANNELS)):
        some = min(item(p, STRIP_CHANNELS), count - c)
        for j in range(tiles):
            for i in range(m):
                for k in range(m):
                    put(table, i * m + k, strip + 4 * (i * strip_row + (j * m + k) * pixel))
            tile = source + 4 * (j * item(p, ROW_M) + c)
            call(item(p, OUTPUT_KERNEL), (some, tile, item(p, PLANE_M), table, 0))
        patch.scatter(
            item(p, Y), 1, item(p, K) * item(p, GROUPS), item(p, P), item(p, Q),
            image, k0 + c, some, row * m, m, column * m, tiles * m, strip, strip_row, pixel,
            item(p, TRANSPOSE_OUT), item(p, SIZE),
        )  # fmt: skip


# ---- tasks


@njit(error_model="numpy")
def _panels(p: int, thread: int, group: int, first: int, end: int, v: int, panel: int) -> None:
    """Products and output transform of TOGETHER panels from `panel` on."""
    panels, width = min(item(p, TOGETHER), item(p, PANELS) - panel), item(p, PANEL)
    _multiply(p, thread, group, end - first, v, panel, panels)
    if item(p, PHASES) & DO_OUTPUT:
        k0 = panel * width
        _output(p, thread, group, first, end, k0, min(panels * width, item(p, K) - k0))


@task
def block_task(index: int, thread: int, p: int) -> None:
    """A block of tiles of one group, from x to y."""
    blocks = item(p, BLOCKS)
    group = index // blocks
    first, end = patch.share(item(p, TILES), blocks, index % blocks)
    v = _mine(p, BUFFER_V, thread)
    if item(p, PHASES) & DO_INPUT:
        _input(p, thread, group, first, end, v)
    for panel in range(0, item(p, PANELS), item(p, TOGETHER)):
        _panels(p, thread, group, first, end, v, panel)


@task
def input_task(index: int, thread: int, p: int) -> None:
    """Where the tiles are too few for the threads: the input transform of a share of them, into the common V."""
    group, part = index // item(p, PARTS), index % item(p, PARTS)
    first, end = patch.share(item(p, TILES), item(p, PARTS), part)
    v = item(p, BUFFER_V) + 4 * (group * item(p, V_SIZE) + first * item(p, ROW_V))
    if item(p, PHASES) & DO_INPUT:
        _input(p, thread, group, first, end, v)


@task
def panel_task(index: int, thread: int, p: int) -> None:
    """And then all tiles for some of the output channels."""
    steps = -(-item(p, PANELS) // item(p, TOGETHER))
    group, panel = index // steps, index % steps * item(p, TOGETHER)
    v = item(p, BUFFER_V) + 4 * group * item(p, V_SIZE)
    _panels(p, thread, group, 0, item(p, TILES), v, panel)
