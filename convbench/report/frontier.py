"""Accuracy against time across formats: one figure for a network, and one with a panel for each of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbench.problem import ConvShape
from convbench.report.drawing import (
    PASS_NAMES,
    Drawing,
    Theme,
    format_colour,
    format_marker,
    format_order,
    frame_slug,
    legend,
    log_ticks,
    margins,
    pad,
    pareto_front,
    power,
    render,
    times,
)
from convbench.report.labels import spread_labels
from convbench.report.model import FormatPoint, NetworkPoint, Precision, Setting
from convbench.report.precision import GIVEN_ROUNDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12  # layers of one network; those with most operations
PANELS_ACROSS = 3
NETWORK_CAPTION = (
    "A point is one row in one format over every layer of the network, each layer as often as the network has it; "
    "'fastest of each layer' takes each layer's fastest row of that format. Time is relative to the fastest float32 "
    "vendor row of each layer: against another function wherever the format is not float32. The error is the root of "
    "the mean square, over the layers, of the relative L2 error against the linear convolution in float64 of the "
    "operands as given: a semantics is given float32 numbers and rounds them itself, operands of type float16, "
    "bfloat16 or int8 come rounded. "
    "Outlined and bold on the dashed Pareto front: nothing else is both faster and more accurate."
)
LAYER_CAPTION = (
    "A panel is a layer, a point one row in one format; numbers name rows in the legend, with the format where the "
    "row's own name does not begin with it; colour and marker are the format's. "
    "Time is relative to the fastest float32 vendor row of that layer: against another function wherever the format is "
    "not float32. Dashed: the Pareto front of the layer. The same numbers: tables/precision.csv."
)
EXACT_CAPTION = (
    " An error of 0 stands on the line labelled 0. int8 operands were rounded before the clock started: their exact "
    "sums are no part of the front."
)


@dataclass(frozen=True)
class _Dot:
    """One point of a frontier: where, whose, in which format, and what stands beside it."""

    x: float
    y: float
    algorithm: str
    format: str
    label: str


def network_figure(precision: Precision, frame: Setting, network: str) -> Drawing | None:
    mine = [p for p in precision.networks if p.frame == frame and p.network == network and p.error is not None]
    mine = [p for p in mine if p.speedup] or mine
    relative = any(p.speedup for p in mine)
    dots = [
        _Dot(1 / p.speedup if p.speedup else p.seconds, p.error or 0.0, p.algorithm, p.format, _network_label(p))
        for p in mine
    ]
    if len(dots) < 2 or not any(dot.y for dot in dots):
        return None
    zero = _zero_line(dots)
    front = _front(dots)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_axes(margins(figure, left=0.95, right=2.2, bottom=0.75, top=0.5))
        places = _scatter(axes, dots, front, zero, theme, size=8.5)
        unit = "time relative to the fastest float32 vendor row" if relative else "time in seconds"
        axes.set_xlabel(f"{unit} (further left is faster)")
        axes.set_ylabel("relative L2 error (lower is better)")
        log_ticks(axes.xaxis, axes.get_xlim(), times if relative else power)
        _error_ticks(axes, zero)
        legend(axes, theme)
        bold = {dot.label: "bold" if dot in front else "normal" for dot in dots}
        spread_labels(axes, {dot.label: places[dot] for dot in dots}, bold, theme.ink, theme.page)

    layers = mine[0].n_layers
    setting = f"{PASS_NAMES[frame.pass_]} ({frame.text(skip=('pass',))})"
    title = f"Accuracy against time, {network} (layers: {layers}), {setting}"
    ordered = sorted(front, key=lambda dot: dot.x)
    alt = (
        f"Scatter plot of {len(dots)} rows in {len({d.format for d in dots})} formats, time against relative L2 error. "
        f"On the Pareto front, fastest first: {', '.join(f'{d.algorithm} in {d.format}' for d in ordered)}."
    )
    caption = NETWORK_CAPTION + (EXACT_CAPTION if zero else "")
    height = max(6.4, 1.5 + 0.3 * len(dots))
    name = f"precision_network_{frame_slug(frame, network, precision.frames)}"
    return render(name, title, caption, alt, (10, min(height, 9.5)), draw)


def _network_label(point: NetworkPoint) -> str:
    return f"{point.algorithm} ({point.format})"


def layer_figure(precision: Precision, frame: Setting, network: str) -> Drawing | None:
    panels: dict[ConvShape, list[FormatPoint]] = {}
    for p in precision.points:
        if p.frame == frame and network in p.networks and p.row.record.error.rel_l2 is not None:
            panels.setdefault(p.row.problem.shape, []).append(p)
    panels = {s: mine for s, mine in panels.items() if len({p.format for p in mine}) > 1 and any(map(_error, mine))}
    total = len(panels)
    if total > MAX_PANELS:
        heavy = sorted(panels, key=lambda s: -s.macs * panels[s][0].row.record.case.count)[:MAX_PANELS]
        panels = {s: mine for s, mine in panels.items() if s in set(heavy)}
    if not panels:
        return None
    relative = all(p.speedup for mine in panels.values() for p in mine)
    names = dict.fromkeys((p.row.algorithm, p.format) for mine in panels.values() for p in mine)
    numbers = {name: str(i) for i, name in enumerate(sorted(names, key=lambda n: (format_order(n[1]), n[0])), 1)}
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    size = (12.0, 1.25 + max(2.35 * down, 0.2 * len(numbers) + 0.2))
    exact = any(_error(p) == 0 for mine in panels.values() for p in mine)

    def draw(figure: Figure, theme: Theme) -> None:
        for i, mine in enumerate(panels.values()):
            axes = figure.add_axes(_panel(size, across, down, i))
            dots = [
                _Dot(
                    1 / p.speedup.value if relative and p.speedup else p.row.time.value,
                    _error(p), p.row.algorithm, p.format, numbers[p.row.algorithm, p.format],
                )
                for p in mine
            ]  # fmt: skip
            zero = _zero_line(dots)
            front = _front(dots)
            places = _scatter(axes, dots, front, zero, theme, size=6)
            log_ticks(axes.xaxis, axes.get_xlim(), times if relative else power, room=0.3)
            _error_ticks(axes, zero)
            axes.tick_params(labelsize=8.5)
            axes.set_title(_short(mine[0].row.layer), fontsize=10, loc="left")
            bold = {dot.label: "bold" if dot in front else "normal" for dot in dots}
            spread_labels(axes, {dot.label: places[dot] for dot in dots}, bold, theme.ink, theme.page)
        _numbered_legend(figure, size, numbers, theme)
        unit = "time relative to the fastest float32 vendor row" if relative else "time in seconds"
        figure.text(0.35, 0.16 / size[1], f"{unit} (further left is faster)", ha="center", color=theme.ink)
        figure.text(0.12 / size[0], 0.5, "relative L2 error", va="center", rotation=90, color=theme.ink)

    text = frame.text(skip=("pass",))
    title = f"Accuracy against time by layer, {network}, {PASS_NAMES[frame.pass_]} ({text})"
    if total > len(panels):
        title += f"; the {len(panels)} layers with most operations of {total}"
    alt = (
        f"{len(panels)} scatter plots, one a layer, of time against relative L2 error for {len(numbers)} rows in "
        f"{len({name for _, name in numbers})} formats; every number is in tables/precision.csv."
    )
    caption = LAYER_CAPTION + (EXACT_CAPTION if exact else "")
    return render(f"precision_layers_{frame_slug(frame, network, precision.frames)}", title, caption, alt, size, draw)


def _panel(size: tuple[float, float], across: int, down: int, number: int) -> tuple[float, float, float, float]:
    """Axes of one panel: a grid with the legend to its right."""
    left, right, bottom, top, gap_x, gap_y = 0.95, 3.0, 0.75, 0.75, 0.65, 0.62
    width = (size[0] - left - right - gap_x * (across - 1)) / across
    height = (size[1] - bottom - top - gap_y * (down - 1)) / down
    column, line = number % across, number // across
    x, y = left + column * (width + gap_x), size[1] - top - (line + 1) * height - line * gap_y
    return x / size[0], y / size[1], width / size[0], height / size[1]


def _numbered_legend(
    figure: Figure, size: tuple[float, float], names: dict[tuple[str, str], str], theme: Theme
) -> None:
    """Number, row and format to the right of the panels; colour and marker say the format."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], marker=format_marker(name), color=format_colour(name), markeredgecolor=theme.page, linestyle="none",
            label=f"{number} {algorithm}" + ("" if algorithm.startswith(name) else f", {name}"),
        )
        for (algorithm, name), number in names.items()
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1 - 2.9 / size[0], 1 - 0.6 / size[1]), frameon=False,
        labelcolor=theme.ink, fontsize=8.5, handlelength=1.2, labelspacing=0.35, borderaxespad=0,
    )  # fmt: skip


def _scatter(
    axes: Axes, dots: Sequence[_Dot], front: set[_Dot], zero: float | None, theme: Theme, size: float
) -> dict[_Dot, tuple[float, float]]:
    """Points, Pareto front and limits of a log-log plot; where each point was drawn."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    places = {dot: (dot.x, dot.y if dot.y else zero or 1.0) for dot in dots}
    line = sorted(places[dot] for dot in front)
    if len(line) > 1:
        axes.step(
            [x for x, _ in line], [y for _, y in line], where="post", color=theme.ink, linewidth=1.1,
            linestyle=(0, (4, 3)), zorder=1,
        )  # fmt: skip
    seen: set[str] = set()
    for dot in sorted(dots, key=lambda d: format_order(d.format)):
        axes.plot(
            [places[dot][0]], [places[dot][1]], format_marker(dot.format), color=format_colour(dot.format), zorder=3,
            markersize=size + 2 if dot in front else size, markeredgecolor=theme.ink if dot in front else theme.page,
            label=None if dot.format in seen else dot.format,
        )  # fmt: skip
        seen.add(dot.format)
    pad(axes, list(places.values()))
    if zero:
        axes.axhline(zero, color=theme.faint, linewidth=1.2, zorder=0)
    return places


def _zero_line(dots: Iterable[_Dot]) -> float | None:
    """Where errors of 0 stand on a logarithmic axis: a decade and more below all others; None without any."""
    errors = [dot.y for dot in dots]
    least = min((e for e in errors if e > 0), default=1e-8)
    return 10.0 ** (math.floor(math.log10(least)) - 1) if 0.0 in errors else None


def _error_ticks(axes: Axes, zero: float | None) -> None:
    """Powers of ten, every second or third where there are many; the line of errors of 0 is labelled 0."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    if zero is None:
        log_ticks(axes.yaxis, axes.get_ylim(), power)
        return
    first = round(math.log10(zero)) + 1
    step = max(1, math.ceil((high - first) / 6))
    ticks = [10.0**e for e in range(first, math.floor(high) + 1, step)]
    axes.set_yticks([zero, *ticks], ["0", *(power(tick) for tick in ticks)])
    axes.set_ylim(10**low, 10**high)
    axes.minorticks_off()


def _front(dots: Sequence[_Dot]) -> set[_Dot]:
    """The Pareto front, without int8 operands: what was rounded before the clock started is no gain in accuracy."""
    names = pareto_front({str(i): (dot.x, dot.y) for i, dot in enumerate(dots) if dot.format != GIVEN_ROUNDED})
    return {dots[int(i)] for i in names}


def _error(point: FormatPoint) -> float:
    return point.row.record.error.rel_l2 or 0.0


def _short(text: str, width: int = 30) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
