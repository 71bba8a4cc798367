"""Filling strips of narrow numbers: rows of an operand converted to bytes or 16-bit numbers, channels innermost.

pixels   to[j pixel + c] = convert(from_[j row_from + c])    for j < pixels, c < channels: channels lie together
planes   to[j pixel + c] = convert(from_[c row_from + j])    the same from planes of one channel each

Both write a kernel around a function convert(e, vector, constants), which may change the type of the elements: int8 and
bfloat16 are copied, float32 may be quantised, or become signs. What lies behind the last channel of a pixel is left as
it is. A filter is packed by way of the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I8, I32, Emitter, Value
from convbench.simd.kernels.transpose import in_registers
from convbench.simd.target import Target

I16 = ir.IntType(16)
#: row_from, pixel: strides in elements of the source and of the strip. constants: address that `convert` is handed.
ARGUMENTS = ("pixels", "channels", "from_", "row_from", "to", "pixel", "constants")
#: Of a kernel that writes `count` elements of padding.
BLANK = ("count", "to", "constants")

Convert = Callable[[Emitter, Value, Value], Value]


def pixels(target: Target, name: str, source: ir.Type, element: ir.IntType, convert: Convert) -> Emitter:
    """The kernel for channels that lie together; `convert` is given vectors of `source` and gives vectors of `element`.

    Vectors have as many elements as a register holds of the strip's, or one.
    """
    e = Emitter(target, f"{name}_pixels_{target.name}", ARGUMENTS)
    count, channels, from_, row_from, to, pixel, constants = e.args
    most = target.bits // element.width

    def run(read: Value, write: Value, length: Value) -> None:
        whole = e.mul(e.b.sdiv(length, e.i(most)), most)
        with e.loop(whole, step=most, name="c") as c:
            value = convert(e, load_elements(e, e.at(read, c.index), most), constants)
            store_elements(e, value, e.at(write, c.index))
        read, write, left = e.at(read, whole), e.at(write, whole), e.sub(length, whole)
        if not target.free_masks:
            with e.loop(left, name="one") as c:
                value = convert(e, load_elements(e, e.at(read, c.index), 1), constants)
                store_elements(e, value, e.at(write, c.index))
            return
        mask = mask_of(e, left, most)

        def rest() -> list[Value]:
            store_elements(e, convert(e, load_elements(e, read, most, mask), constants), write, mask)
            return []

        e.choose(e.less(0, left), rest, list)

    together = e.b.and_(e.b.icmp_signed("==", row_from, channels), e.b.icmp_signed("==", pixel, channels))

    def one_run() -> list[Value]:
        run(e.pointer(from_, source), e.pointer(to, element), e.mul(count, channels))
        return []

    def each_pixel() -> list[Value]:
        with e.loop(count, name="j") as j:
            read = e.at(e.pointer(from_, source), e.mul(row_from, j.index))
            run(read, e.at(e.pointer(to, element), e.mul(pixel, j.index)), channels)
        return []

    e.choose(together, one_run, each_pixel)
    return e


def planes(target: Target, name: str, source: ir.Type, element: ir.IntType, convert: Convert) -> Emitter:
    """The kernel for planes of channels: squares of lanes x lanes words are turned in registers."""
    e = Emitter(target, f"{name}_planes_{target.name}", ARGUMENTS)
    count, channels, from_, row_from, to, pixel, constants = e.args
    lanes, of_word = e.lanes, 32 // element.width
    most = lanes * of_word
    with e.loop(channels, step=most, name="c") as c:
        channels_left = e.sub(channels, c.index)
        with e.loop(count, step=lanes, name="j") as j:
            pixels_left = e.sub(count, j.index)
            read = e.at(e.pointer(from_, source), e.mul(row_from, c.index), j.index)
            write = e.at(e.pointer(to, element), e.mul(pixel, j.index), c.index)
            square = _Square(e, read, row_from, write, pixel, constants, convert)

            def part(square: _Square = square, left: tuple[Value, Value] = (channels_left, pixels_left)) -> list[Value]:
                (square.masked if target.free_masks else square.one_by_one)(*left)
                return []

            whole = e.b.and_(e.less(most - 1, channels_left), e.less(lanes - 1, pixels_left))
            e.choose(whole, square.whole, part)
    return e


def few(
    target: Target, name: str, source: ir.Type, element: ir.IntType, convert: Convert, channels: int, pixel: int
) -> Emitter:
    """As `pixels` for a fixed, small number of channels, which are all there are: row_from equals `channels`.

    Some pixels at once, moved to their places within a register. What rounds a pixel up becomes 0.
    """
    e = Emitter(target, f"{name}_few{channels}in{pixel}_{target.name}", ARGUMENTS)
    count, _, from_, _, to, _, constants = e.args
    most = target.bits // element.width
    together, nothing = most // pixel, ir.Constant(ir.VectorType(element, most), [element(0)] * most)
    order = [j * channels + c if c < channels else most for j in range(together) for c in range(pixel)]
    places = ir.Constant(ir.VectorType(I32, most), order + [most] * (most - len(order)))
    with e.loop(count, step=together, name="j") as j:
        here = e.minimum(e.sub(count, j.index), together)
        read = e.at(e.pointer(from_, source), e.mul(j.index, channels))
        values = load_elements(e, read, most, mask_of(e, e.mul(here, channels), most))
        moved = e.b.shuffle_vector(convert(e, values, constants), nothing, places)
        to_j = e.at(e.pointer(to, element), e.mul(j.index, pixel))
        store_elements(e, moved, to_j, mask_of(e, e.mul(here, pixel), most))
    return e


def few_planes(
    target: Target, name: str, source: ir.Type, element: ir.IntType, convert: Convert, channels: int, pixel: int
) -> Emitter:
    """As `planes` for a fixed number of channels that take one or two words of a pixel, which has no more."""
    e = Emitter(target, f"{name}_few_planes{channels}in{pixel}_{target.name}", ARGUMENTS)
    count, _, from_, row_from, to, _, constants = e.args
    lanes, of_word = e.lanes, 32 // element.width
    with e.loop(count, step=lanes, name="j") as j:
        left = e.sub(count, j.index)
        read, mask = e.at(e.pointer(from_, source), j.index), mask_of(e, left, lanes)
        loaded = [load_elements(e, e.at(read, e.mul(row_from, c)), lanes, mask) for c in range(channels)]
        parts = [convert(e, values, constants) for values in loaded]
        parts += [ir.Constant(parts[0].type, [element(0)] * lanes)] * (pixel - channels)
        words = [e.b.bitcast(_joined(e, parts[w : w + of_word]), ir.VectorType(I32, lanes))
                 for w in range(0, pixel, of_word)]  # fmt: skip
        to_j = e.at(e.pointer(to, I32), e.mul(j.index, len(words)))
        store_elements(e, _joined(e, words), to_j, mask_of(e, e.mul(left, len(words)), lanes * len(words)))
    return e


class _Square:
    """lanes pixels of lanes words of channels."""

    def __init__(
        self, e: Emitter, read: Value, row_from: Value, write: Value, pixel: Value, constants: Value, convert: Convert
    ) -> None:
        self.e, self.read, self.row_from, self.write, self.pixel = e, read, row_from, write, pixel
        self.constants, self.convert = constants, convert
        self.of_word = 32 // write.type.pointee.width

    def whole(self) -> list[Value]:
        e = self.e
        channels = [e.at(self.read, e.mul(self.row_from, c)) for c in range(self.of_word * e.lanes)]
        for m, vector in enumerate(self._turned([load_elements(e, place, e.lanes) for place in channels])):
            store_elements(e, vector, e.at(self.write, e.mul(self.pixel, m)))
        return []

    def masked(self, channels: Value, pixels: Value) -> None:
        e, zero, vectors = self.e, self.e.i(0), []
        for c in range(self.of_word * e.lanes):
            exists = e.less(c, channels)
            place = e.at(self.read, e.b.select(exists, e.mul(self.row_from, c), zero))
            vectors.append(load_elements(e, place, e.lanes, mask_of(e, e.b.select(exists, pixels, zero), e.lanes)))
        last = mask_of(e, channels, self.of_word * e.lanes)
        none = ir.Constant(last.type, [0] * (self.of_word * e.lanes))
        for m, vector in enumerate(self._turned(vectors)):
            exists = e.less(m, pixels)
            place = e.at(self.write, e.b.select(exists, e.mul(self.pixel, m), zero))
            octets = e.b.bitcast(vector, ir.VectorType(self.write.type.pointee, self.of_word * e.lanes))
            store_elements(e, octets, place, e.b.select(exists, last, none))

    def one_by_one(self, channels: Value, pixels: Value) -> None:
        e, most = self.e, self.of_word * self.e.lanes
        with e.loop(e.minimum(channels, most), name="plane") as c, e.loop(e.minimum(pixels, e.lanes), name="one") as j:
            read = e.at(self.read, e.mul(self.row_from, c.index), j.index)
            value = self.convert(e, load_elements(e, read, 1), self.constants)
            store_elements(e, value, e.at(self.write, e.mul(self.pixel, j.index), c.index))

    def _turned(self, channels: list[Value]) -> list[Value]:
        """Words of pixel 0, pixel 1 ... out of vectors of one channel each."""
        e, words = self.e, []
        for first in range(0, len(channels), self.of_word):
            parts = [self.convert(e, v, self.constants) for v in channels[first : first + self.of_word]]
            words.append(e.b.bitcast(_joined(e, parts), ir.VectorType(I32, e.lanes)))
        return in_registers(e, words)


def _joined(e: Emitter, parts: list[Value]) -> Value:
    """1, 2 or 4 vectors element by element: the first of each, the second of each ..."""
    while len(parts) > 1:  # of four, elements 0 and 2, and 1 and 3, are joined first
        half = len(parts) // 2
        parts = [_interleaved(e, parts[i], parts[i + half]) for i in range(half)]
    return parts[0]


def _interleaved(e: Emitter, x: Value, y: Value) -> Value:
    n = x.type.count
    order = [i // 2 + n * (i % 2) for i in range(2 * n)]
    return e.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, 2 * n), order))


def mask_of(e: Emitter, count: Value, n: int) -> Value:
    """Lanes 0 .. count - 1 of n on; count may be anything."""
    count = e.b.select(e.less(count, n), count, e.i(n))
    count = e.b.trunc(e.b.select(e.less(count, 0), e.i(0), count), I8)
    kind = ir.VectorType(I8, n)
    first = e.b.insert_element(ir.Constant(kind, ir.Undefined), count, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, n), [0] * n)
    splat = e.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)
    return e.b.icmp_signed("<", ir.Constant(kind, list(range(n))), splat)


def _bytes(element: ir.Type) -> int:
    return int(element.width) // 8 if isinstance(element, ir.IntType) else 4


def _suffix(kind: ir.VectorType) -> str:
    element = kind.element
    return f"v{kind.count}{f'i{element.width}' if isinstance(element, ir.IntType) else 'f32'}.p0"


def load_elements(e: Emitter, pointer: Value, n: int, mask: Value | None = None) -> Value:
    """n elements; those that the mask turns off are 0 and not read."""
    element = pointer.type.pointee
    kind = ir.VectorType(element, n)
    place = e.b.bitcast(pointer, kind.as_pointer())
    if mask is None:
        return e.b.load(place, align=_bytes(element))
    function = ir.FunctionType(kind, [place.type, I32, mask.type, kind])
    nothing = ir.Constant(kind, [element(0)] * n)
    masked = e.declare(f"llvm.masked.load.{_suffix(kind)}", function)
    return e.b.call(masked, [place, ir.Constant(I32, _bytes(element)), mask, nothing])


def store_elements(e: Emitter, value: Value, pointer: Value, mask: Value | None = None) -> None:
    """A vector of any type to a pointer; of its elements those that the mask turns on."""
    align = _bytes(pointer.type.pointee)
    place = e.b.bitcast(pointer, value.type.as_pointer())
    if mask is None:
        e.b.store(value, place, align=align)
        return
    function = ir.FunctionType(ir.VoidType(), [value.type, place.type, I32, mask.type])
    masked = e.declare(f"llvm.masked.store.{_suffix(value.type)}", function)
    e.b.call(masked, [value, place, ir.Constant(I32, align), mask])


# ---- copies


def flip_bytes(e: Emitter, value: Value, constants: Value) -> Value:
    """int8 as the unsigned byte that is 128 larger."""
    return e.b.xor(value, ir.Constant(value.type, [128] * value.type.count))


def as_it_is(e: Emitter, value: Value, constants: Value) -> Value:
    """No conversion."""
    return value


@kernel
def copied(target: Target, n_bytes: int, from_planes: bool, flip: bool = False) -> Emitter:
    """Elements of 1 or 2 bytes as they are; flip: int8 to unsigned bytes 128 larger."""
    element = I8 if n_bytes == 1 else I16
    build = planes if from_planes else pixels
    return build(target, f"copy{8 * n_bytes}{'_flip' if flip else ''}", element, element,
                 flip_bytes if flip else as_it_is)  # fmt: skip


@kernel
def copied_few(target: Target, n_bytes: int, from_planes: bool, flip: bool, channels: int, pixel: int) -> Emitter:
    """As `copied`, for so many channels alone, in so many elements of a strip."""
    element, build = (I8 if n_bytes == 1 else I16), few_planes if from_planes else few
    convert, name = (flip_bytes, "flip") if flip else (as_it_is, "copy")
    return build(target, f"{name}{8 * n_bytes}", element, element, convert, channels, pixel)


@kernel
def blank(target: Target, n_bytes: int, value: int = 0) -> Emitter:
    """`count` elements of one value."""
    e = Emitter(target, f"blank{8 * n_bytes}_{value}_{target.name}", BLANK)
    count, to, _ = e.args
    element = I8 if n_bytes == 1 else I16
    most = target.bits // element.width
    whole = e.mul(e.b.sdiv(count, e.i(most)), most)
    place = e.pointer(to, element)
    with e.loop(whole, step=most, name="i") as i:
        store_elements(e, ir.Constant(ir.VectorType(element, most), [value] * most), e.at(place, i.index))
    with e.loop(e.sub(count, whole), name="rest") as i:
        store_elements(e, ir.Constant(ir.VectorType(element, 1), [value]), e.at(place, whole, i.index))
    return e
