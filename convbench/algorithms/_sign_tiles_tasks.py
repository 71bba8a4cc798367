"""The task that packs filters for AMX's tiles; the tiles' own task is `_signs_simd_tasks`', with other kernels."""

from __future__ import annotations

from convbench.algorithms._signs_simd_tasks import (
    ALPHA,
    AVERAGE_FACTOR,
    CHANNELS,
    FILTER_SIGNS,
    FILTER_STEP,
    FILTERS,
    NAMES,
    PACKED,
    PANELS,
    SCALED,
    WIDTH,
    WINDOWS,
    WORDS,
    R,
    S,
    W,
)
from convbench.simd.driver import call, item, task

#: More parameters: rows, per_rows: threads' columns of the filter on their way into a panel, words of each; place,
#: place_table: the kernel that turns them, and where each of their words goes.
MORE = ("rows", "per_rows", "place", "place_table")
ROWS, PER_ROWS, PLACE, PLACE_TABLE = range(len(NAMES), len(NAMES) + len(MORE))


@task
def filter_task(index: int, thread: int, p: int) -> None:
    """Task: one panel of one group: its signs as words of four channels, and the means of its filters."""
    width, channels, taps = item(p, WIDTH), item(p, CHANNELS), item(p, R) * item(p, S)
    panel, group, words = index % item(p, PANELS), index // item(p, PANELS), item(p, WORDS)
    depth = taps * words
    rows = item(p, ROWS) + 4 * item(p, PER_ROWS) * thread
    sums = rows + 4 * depth * width
    count = min(width, item(p, FILTERS) - panel * width)
    for k in range(count):
        source = item(p, W) + 4 * (group * item(p, FILTERS) + panel * width + k) * taps * channels
        call(item(p, FILTER_SIGNS), (
            taps, channels, source, item(p, FILTER_STEP), rows + 4 * k * depth, words, 1, sums
        ))  # fmt: skip
        if item(p, SCALED) == 1:
            mean = item(p, ALPHA) + 4 * (index * width + k)
            call(item(p, WINDOWS), (1, 0, taps, 1, 1, taps, 1, sums, sums + 4 * taps, mean, item(p, AVERAGE_FACTOR)))
    to = item(p, PACKED) + 4 * index * depth * width
    call(item(p, PLACE), (count, depth, rows, depth, to, item(p, PLACE_TABLE)))
