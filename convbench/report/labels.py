"""Labels beside points that overlap neither each other nor a point: greedy, nearest free place first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
_ANGLES = [0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90]
_DISTANCES = [10, 18, 28, 40, 54, 70, 90, 115, 145, 180]  # points


def spread_labels(
    axes: Axes, points: dict[str, tuple[float, float]], weights: dict[str, str], ink: str, page: str
) -> None:
    """Writes each name beside its point (data coordinates); a thin line leads to one that had to move away.

    ink and page are the colours of the text and of the ground, which covers the lines under a label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    scale = renderer.points_to_pixels(1.0)
    at = {name: tuple(axes.transData.transform(point)) for name, point in points.items()}
    taken: list[Box] = [(x - 7 * scale, y - 7 * scale, x + 7 * scale, y + 7 * scale) for x, y in at.values()]
    frame = axes.get_window_extent(renderer)
    inside = (frame.x0, frame.y0, frame.x1, frame.y1)
    for name in sorted(points, key=lambda n: (weights[n] != "bold", at[n])):
        text = axes.text(0, 0, name, fontsize=9.5, fontweight=weights[name], color=ink)
        extent = text.get_window_extent(renderer)
        text.remove()
        size = (extent.width + 5 * scale, extent.height + scale)
        box, distance, own = _free_place(at[name], size, taken, inside, scale)
        taken.append(box)
        x, y = (box[0] - at[name][0]) / scale, (box[1] - at[name][1]) / scale
        arrow = {"arrowstyle": "-", "color": ink, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4, "relpos": own}
        axes.annotate(
            name, points[name], (x, y), textcoords="offset points", fontsize=9.5, fontweight=weights[name],
            color=ink, va="bottom", ha="left", zorder=4, arrowprops=arrow if distance > _DISTANCES[0] else None,
            bbox={"facecolor": page, "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )  # fmt: skip


def _free_place(
    point: tuple[float, ...], size: tuple[float, float], taken: list[Box], inside: Box, scale: float
) -> tuple[Box, float, tuple[float, float]]:
    """(box, distance, the point of the box that faces the marker) of the first place that is free."""
    width, height = size
    fallback: tuple[float, Box] | None = None
    for distance in _DISTANCES:
        for angle in _ANGLES:
            c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = point[0] + distance * scale * c, point[1] + distance * scale * s
            left = x if c > 0.3 else x - width if c < -0.3 else x - width / 2
            bottom = y - height / 2 if abs(s) < 0.3 else y if s > 0 else y - height
            box = (left, bottom, left + width, bottom + height)
            if box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]:
                continue
            overlap = sum(_overlap(box, other) for other in taken)
            facing = (0.0 if c > 0.3 else 1.0 if c < -0.3 else 0.5, 0.5)
            if overlap == 0:
                return box, distance, facing
            if fallback is None or overlap < fallback[0]:
                fallback = (overlap, box)
    box = fallback[1] if fallback else (point[0], point[1], point[0] + width, point[1] + height)
    return box, _DISTANCES[-1], (0.0, 0.5)


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
