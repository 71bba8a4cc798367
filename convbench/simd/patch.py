"""Reading and writing parts of an activation: layouts are converted and padding is added here, a strip at a time.

A strip is rows x width pixels, channels innermost, in a buffer that stays in cache: strip[i, j, c] at
strip + 4 (i row + j pixel + c) bytes. Kernels then see NHWC without edges, whatever the problem's layout and padding.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from convbench.simd.driver import call, copy, zero


@njit(error_model="numpy")
def gather(
    x: int, nchw: int, channels: int, height: int, width: int,
    image: int, first: int, count: int, top: int, rows: int, left: int, columns: int,
    strip: int, row: int, pixel: int, transpose: int, size: int = 4, convert: int = 0,
) -> None:  # fmt: skip
    """strip[i, j, c] = x[image, first + c, top + i, left + j], 0 outside the image; i < rows, j < columns, c < count.

    x: address of an activation (channels, height, width) in NCHW (nchw = 1) or NHWC. row, pixel: strides of the
    strip in elements. transpose: address of the kernel of that name. size: bytes of an element of x; where it is not 4,
    transpose makes float32 of such elements, and so does convert, the address of that kernel. Where they make one word
    of two channels, pixel may be less than count.
    """
    blank = min(count, pixel)
    start, end = max(left, 0), min(left + columns, width)  # what exists of each row
    for i in range(rows):
        h = top + i
        to = strip + 4 * i * row
        if h < 0 or h >= height or end <= start:
            _zero_pixels(to, columns, blank, pixel)
            continue
        _zero_pixels(to, start - left, blank, pixel)
        inner = to + 4 * (start - left) * pixel
        if nchw:
            source = x + size * (((image * channels + first) * height + h) * width + start)
            call(transpose, (count, end - start, source, height * width, inner, pixel))
        elif size != 4:
            source = x + size * (((image * height + h) * width + start) * channels + first)
            call(convert, (end - start, count, source, channels, inner, pixel))
        else:
            source = x + 4 * (((image * height + h) * width + start) * channels + first)
            _copy_pixels(inner, pixel, source, channels, end - start, count)
        _zero_pixels(to + 4 * (end - left) * pixel, left + columns - end, blank, pixel)


@njit(error_model="numpy")
def scatter(
    y: int, nchw: int, channels: int, height: int, width: int,
    image: int, first: int, count: int, top: int, rows: int, left: int, columns: int,
    strip: int, row: int, pixel: int, transpose: int, size: int = 4,
) -> None:  # fmt: skip
    """y[image, first + c, top + i, left + j] = strip[i, j, c]; the reverse of gather. Pixels outside y are left out.

    size: bytes of an element of y, which transpose makes; only of NCHW may it be other than 4.
    """
    start, end = max(left, 0), min(left + columns, width)
    for i in range(max(0, -top), min(rows, height - top)):
        h = top + i
        source = strip + 4 * (i * row + (start - left) * pixel)
        if end <= start:
            continue
        if nchw:
            to = y + size * (((image * channels + first) * height + h) * width + start)
            call(transpose, (end - start, count, source, pixel, to, height * width))
        else:
            to = y + 4 * (((image * height + h) * width + start) * channels + first)
            _copy_pixels(to, channels, source, pixel, end - start, count)


@njit(error_model="numpy")
def _copy_pixels(to: int, to_pixel: int, source: int, from_pixel: int, pixels: int, count: int) -> None:
    if to_pixel == count and from_pixel == count:
        copy(to, source, pixels * count)
        return
    for j in range(pixels):
        copy(to + 4 * j * to_pixel, source + 4 * j * from_pixel, count)


@njit(error_model="numpy")
def _zero_pixels(to: int, pixels: int, count: int, pixel: int) -> None:
    if pixel == count:
        zero(to, pixels * count)
        return
    for j in range(pixels):
        zero(to + 4 * j * pixel, count)


@njit(error_model="numpy")
def share(total: int, parts: int, part: int) -> Any:
    """(first, end) of one of `parts` contiguous shares of range(total) that differ by at most one in size."""
    return part * total // parts, (part + 1) * total // parts
