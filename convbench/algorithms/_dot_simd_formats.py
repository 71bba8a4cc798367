"""The plain formats of `_dot_simd`: int8 to exact int32, bfloat16 to bfloat16."""

from __future__ import annotations

from convbench.algorithms._dot_simd import FLIP, Format
from convbench.simd.kernels import ends, strips
from convbench.simd.kernels.transpose import transpose

INT8 = Format(
    kind="s8s8", a_bytes=1, w_bytes=1, strip_bytes=1, out_bytes=4,
    fill=lambda target, from_planes, flip: strips.copied(target, 1, from_planes, flip),
    weigh=lambda target, from_planes: strips.copied(target, 1, from_planes, False),
    blank=lambda target, flip: strips.blank(target, 1, FLIP if flip else 0),
    end=ends.integers, held=ends.integers, turn=transpose, copies=True, direct=True,
    fill_few=lambda target, from_planes, flip, *sizes: strips.copied_few(target, 1, from_planes, flip, *sizes),
)  # fmt: skip

BFLOAT16 = Format(
    kind="bf16", a_bytes=2, w_bytes=2, strip_bytes=2, out_bytes=2,
    fill=lambda target, from_planes, flip: strips.copied(target, 2, from_planes, False),
    weigh=lambda target, from_planes: strips.copied(target, 2, from_planes, False),
    blank=lambda target, flip: strips.blank(target, 2),
    end=lambda target, vectors, offsets: ends.bfloat16(target, vectors),
    held=lambda target, vectors, offsets: ends.unchanged(target, vectors),
    turn=ends.turned_bfloat16, copies=True,
    fill_few=lambda target, from_planes, flip, *sizes: strips.copied_few(target, 2, from_planes, False, *sizes),
)  # fmt: skip
