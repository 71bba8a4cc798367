"""Signs as bytes +1 and -1, for AMX's tiles: padding is the byte 0, so that it adds nothing.

pixels, planes   as in `signs`, but bytes: to[4 j pixel + c] = -1 where from_ is not >= 0, +1 elsewhere; on AVX-512
products         blocks of pixels times a panel of filters, sums as float32, or times alpha[column] beta[pixel]

A block is 2 x 2 tiles of sums, which with two tiles of A and two of B are all eight there are. A tile of A is up to 16
pixels, equally far apart, and up to 64 channels of each; a tile of B as many channels of 16 filters, four in a word.
(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.)
"""

from __future__ import annotations

import itertools

import llvmlite.ir as ir
import numpy as np

from convbench.simd.compiler import kernel
from convbench.simd.emit import I8, I32, I64, Emitter, Value
from convbench.simd.kernels.carry_save import ARGUMENTS as PRODUCTS
from convbench.simd.kernels.signs import ARGUMENTS, added, is_negative, joined_masks, magnitudes, sum_across
from convbench.simd.kernels.strips import store_elements
from convbench.simd.kernels.transpose import in_registers
from convbench.simd.target import Target

#: Channels that are converted together: the bytes of a register.
CHANNELS = 64
TILE_ROWS, TILE_WORDS = 16, 16
#: Integers at the beginning of the blocks: address of the tiles' configuration, rows of a tile, words from one row of A
#: to the next, words of a step of k, elements of the result from one pixel to the next.
HEAD = 5
#: Integers of a block: tiles of A (1 or 2), offset of the first and of the second, pairs (row of the sums, pixel) that
#: are results, their address.
BLOCK = 5

_SUMS, _A, _B = (0, 1, 2, 3), (4, 5), (6, 7)


@kernel
def pixels(target: Target, summed: bool) -> Emitter:
    """The kernel for channels that lie together. Bytes behind the last channel stay as they are."""
    e = Emitter(target, f"sign_bytes{'_summed' if summed else ''}_{target.name}", ARGUMENTS)
    count, channels, from_, row_from, to, pixel, _, sums = e.args
    whole = e.mul(e.b.sdiv(channels, e.i(CHANNELS)), CHANNELS)
    left, parts = e.sub(channels, whole), CHANNELS // e.lanes
    masks = [e.mask(e.sub(left, part * e.lanes)) for part in range(parts)]
    octets = ir.VectorType(I8, CHANNELS)
    plus, minus = (ir.Constant(octets, [value] * CHANNELS) for value in (1, -1))
    with e.loop(count, name="pixel") as j:
        source = e.at(e.pointer(from_), e.mul(row_from, j.index))
        place = e.at(e.pointer(to, I8), e.mul(e.mul(pixel, 4), j.index))

        def some(at: Value, place: Value, state: list[Value], masked: bool) -> list[Value]:
            vectors = [e.load(e.at(at, p * e.lanes), masks[p] if masked else None) for p in range(parts)]
            value = e.b.select(joined_masks(e, [is_negative(e, vector) for vector in vectors]), minus, plus)
            store_elements(e, value, place, joined_masks(e, masks) if masked else None)
            return [added(e, [*state, *(magnitudes(e, vector) for vector in vectors)])] if summed else []

        start = [e.splat_constant(0.0)] if summed else []
        with e.loop(whole, start, step=CHANNELS, name="c") as c:
            c.result = some(e.at(source, c.index), e.at(place, c.index), c.carried, masked=False)
        rest, to_rest, state = e.at(source, whole), e.at(place, whole), c.result
        last = (rest, to_rest, state, True)
        found = e.choose(e.less(0, left), lambda some=some, last=last: some(*last), lambda state=state: state)
        if summed:
            e.b.store(sum_across(e, found[0]), e.at(e.pointer(sums), j.index), align=4)
    return e


@kernel
def planes(target: Target, summed: bool) -> Emitter:
    """The kernel for planes: a lane is a pixel until words of four channels are turned. Whole words are written; what
    lies behind the last channel is 0."""
    e = Emitter(target, f"sign_byte_planes{'_summed' if summed else ''}_{target.name}", ARGUMENTS)
    count, channels, from_, row_from, to, pixel, _, sums = e.args
    with e.loop(count, step=e.lanes, name="pixels") as j:
        left = e.sub(count, j.index)
        source = e.at(e.pointer(from_), j.index)
        place = e.at(e.pointer(to, I32), e.mul(pixel, j.index))
        start = [e.splat_constant(0.0)] if summed else []
        with e.loop(channels, start, step=CHANNELS, name="c") as c:
            here = e.at(source, e.mul(row_from, c.index))
            words_at, remain = e.at(place, e.b.sdiv(c.index, e.i(4))), e.sub(channels, c.index)
            c.result = _square(e, here, words_at, (left, remain), c.carried)
        if summed:
            e.store(c.result[0], e.at(e.pointer(sums), j.index), e.mask(left))
    return e


def _square(e: Emitter, source: Value, place: Value, left: tuple[Value, Value], state: list[Value]) -> list[Value]:
    """lanes pixels of CHANNELS channels, or as many as there are (left: pixels, channels)."""
    pixel, row_from = e.args[5], e.args[3]
    mask, words = e.mask(left[0]), ir.VectorType(I32, e.lanes)
    none = ir.Constant(mask.type, [0] * e.lanes)

    def every(value: int) -> Value:
        return ir.Constant(words, [value - (1 << 32) if value >> 31 else value] * e.lanes)

    def written(whole: bool) -> list[Value]:
        vectors, found = [], state
        for first in range(0, CHANNELS, 4):
            word = every(0)
            for byte in range(4):
                exists = e.less(first + byte, left[1])
                offset = e.mul(row_from, first + byte)
                at = e.at(source, offset if whole else e.b.select(exists, offset, e.i(0)))
                vector = e.load(at, mask if whole else e.b.select(exists, mask, none))
                sign = e.b.select(is_negative(e, vector), every(0xFF << 8 * byte), every(1 << 8 * byte))
                word = e.b.or_(word, sign if whole else e.b.select(exists, sign, every(0)))
                found = [added(e, [*found, magnitudes(e, vector)])] if found else []
            vectors.append(word)
        filled = e.mask(e.b.sdiv(e.add(left[1], 3), e.i(4)))
        for m, row in enumerate(in_registers(e, vectors)):
            exists = e.less(m, left[0])
            to = e.at(place, e.b.select(exists, e.mul(pixel, m), e.i(0)))
            store_elements(e, row, to, e.b.select(exists, filled, none))
        return found

    return e.choose(e.less(CHANNELS - 1, left[1]), lambda: written(True), lambda: written(False))


@kernel
def products(target: Target, vectors: int, scaled: bool) -> Emitter:
    """The kernel for panels of `vectors` (1 or 2) tiles, with the arguments of `carry_save.products`: `pixels` counts
    blocks, `pairs` steps; `entries` is the address of HEAD integers and of the blocks. `base` is not read."""
    e = Emitter(target, f"sign_tiles_{vectors}{'_scaled' if scaled else ''}_{target.name}", PRODUCTS)
    count, _, entries, *_ = e.args
    head = e.pointer(entries, I64)
    way, rows, row_a, chunk, stride = (e.load_int(e.at(head, i)) for i in range(HEAD))
    sums = e.b.alloca(ir.ArrayType(I32, 2 * TILE_ROWS * vectors * e.lanes))
    sums.align = 4 * TILE_WORDS
    held = e.b.ptrtoint(sums, I64)
    _on_tiles(e, "ldtilecfg", [e.pointer(way, I8)])
    with e.loop(count, name="block") as turn:
        block = e.at(head, HEAD, e.mul(turn.index, BLOCK))
        with e.cases(e.load_int(block), (1, 2)) as each:
            for tiles in each:
                _multiply(e, block, (tiles, vectors), (row_a, chunk))
                for m, n in itertools.product(range(tiles), range(vectors)):
                    to = e.add(held, e.mul(rows, m * vectors * 4 * e.lanes), 4 * e.lanes * n)
                    at = [_tile(_SUMS[2 * m + n]), e.pointer(to, I8), e.i(4 * vectors * e.lanes)]
                    _on_tiles(e, "tilestored64", at)
        _finish(e, block, vectors, (held, stride), scaled)
    _on_tiles(e, "tilerelease", [])
    return e


def _multiply(e: Emitter, block: Value, sizes: tuple[int, int], strides: tuple[Value, Value]) -> None:
    """The sums of a block of (tiles of A, tiles of B), in tiles; strides: words of a row of A, rows of a step of B."""
    _, _, _, a, b, steps, count, *_ = e.args
    tiles, vectors = sizes
    row_a, chunk = strides
    for m, n in itertools.product(range(tiles), range(vectors)):
        _on_tiles(e, "tilezero", [_tile(_SUMS[2 * m + n])])
    a_tiles = [e.add(a, e.mul(e.load_int(e.at(block, 1 + m)), 4)) for m in range(tiles)]
    row_b = 4 * e.lanes * vectors
    with e.loop(count, [b], name="k") as k:
        b_k = k.carried[0]
        offset = e.mul(e.load_int(e.at(e.pointer(steps, I64), k.index)), 4)
        for n in range(vectors):
            _on_tiles(e, "tileloadd64", [_tile(_B[n]), e.pointer(e.add(b_k, 4 * e.lanes * n), I8), e.i(row_b)])
        for m in range(tiles):
            _on_tiles(e, "tileloadd64", [_tile(_A[m]), e.pointer(e.add(a_tiles[m], offset), I8), e.mul(row_a, 4)])
            for n in range(vectors):
                _on_tiles(e, "tdpbssd", [_tile(t) for t in (_SUMS[2 * m + n], _A[m], _B[n])])
        k.result = [e.add(b_k, e.mul(chunk, row_b))]


def _finish(e: Emitter, block: Value, vectors: int, places: tuple[Value, Value], scaled: bool) -> None:
    """Sums of a block as float32, scaled; places: address of the sums, elements from pixel to pixel of the result."""
    columns, out, alpha, beta = e.args[1], e.args[7], e.args[9], e.args[10]
    held, stride = places
    masks = [e.mask(e.sub(columns, v * e.lanes)) for v in range(vectors)]
    scales = [e.load(e.at(e.pointer(alpha), v * e.lanes), mask) for v, mask in enumerate(masks)] if scaled else []
    table, words = e.pointer(e.load_int(e.at(block, 4)), I64), ir.VectorType(I32, e.lanes)
    with e.loop(e.mul(e.load_int(e.at(block, 3)), 2), step=2, name="row") as row:
        number, pixel = (e.load_int(e.at(table, row.index, i)) for i in range(2))
        source = e.at(e.pointer(held), e.mul(number, vectors * e.lanes))
        place = e.at(e.pointer(out), e.mul(pixel, stride))
        for v in range(vectors):
            value = e.b.sitofp(e.b.bitcast(e.load(e.at(source, v * e.lanes)), words), e.vector)
            if scaled:
                value = e.fmul(value, e.fmul(scales[v], e.broadcast(e.at(e.pointer(beta), pixel))))
            e.store(value, e.at(place, v * e.lanes), masks[v])


def configuration(rows: int, chunk: int) -> np.ndarray:
    """64 bytes for LDTILECFG: sums and A have `rows` rows, B has `chunk`, as many as a row of A has words."""
    flat = np.zeros(64, np.uint8)
    flat[0] = 1  # the palette
    bytes_of_row, rows_of = flat[16:32].view(np.uint16), flat[48:56]
    bytes_of_row[:], rows_of[:] = 4 * TILE_WORDS, rows
    for tile in _A:
        bytes_of_row[tile] = 4 * chunk
    for tile in _B:
        rows_of[tile] = chunk
    return flat


def _tile(number: int) -> Value:
    return ir.Constant(I8, number)


def _on_tiles(e: Emitter, instruction: str, arguments: list[Value]) -> None:
    """One instruction on tiles; their numbers are immediate, so LLVM does not allocate them."""
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in arguments])
    e.b.call(e.declare(f"llvm.x86.{instruction}", kind), arguments)
