"""Figures across formats: accuracy against time by network and by layer, memory of weights, XNOR-Net's figure 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from convbench.problem import ConvShape, Semantics
from convbench.report.drawing import (
    MARKERS,
    Drawing,
    Theme,
    format_colour,
    frame_slug,
    legend,
    log_ticks,
    margins,
    render,
    times,
)
from convbench.report.frontier import layer_figure, network_figure
from convbench.report.model import Precision, Setting, WeightMemory, XnorLine
from convbench.report.precision import XNOR_BASELINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_FRAMES = 4  # settings that are drawn; the rest is in the tables
LEAST_CURVE = 3  # points that make a curve
BASELINE_COLOURS = dict(zip(XNOR_BASELINES, ("#A0703C", "#E69F00", "#0072B2", "#D55E00"), strict=True))
MEMORY_CAPTION = (
    "Bytes of all filters of the network's convolutions, scales of filters included, in the formats of this run; "
    "float32 and float64 for comparison. XNOR-Net's figure 4 (a) compares with double precision: the second factor. "
    "Fully connected layers are not part of it."
)
XNOR_CAPTION = (
    "Speed-up of the fastest row on signs ({rows}) over rows that compute the real convolution of the same shape, "
    "against another function: {function}. Dashed: XNOR-Net's formula 64 c N_W / (c N_W + 64), which counts operations "
    "and knows neither packing nor memory. Measured times include the packing of the input{weights}; oneDNN int8 is "
    "given int8 operands and rounds nothing. A thin line is the 95 % interval."
)


def precision_figures(precision: Precision | None) -> list[Drawing]:
    """The figures of a run of several formats; curves first."""
    if precision is None:
        return []
    drawings, swept = _curves(precision)
    frames = precision.frames[:MAX_FRAMES]
    shapes: dict[str, set[ConvShape]] = {}
    for point in precision.points:
        for network in point.networks:
            shapes.setdefault(network, set()).add(point.row.problem.shape)
    real = [network for network, layers in shapes.items() if not layers <= swept]  # the others are sweeps of one size
    # of zeros no error is relative to anything
    told = [(frame, network) for frame in frames if frame.inputs != "zeros" for network in real]
    for figure in (network_figure, layer_figure):
        drawings += [d for frame, network in told if (d := figure(precision, frame, network))]
    memory = _memory_figure([entry for entry in precision.memory if entry.network in real])
    return drawings + ([memory] if memory else [])


def frames_beyond(precision: Precision) -> int:
    """Settings that have no figure."""
    return max(0, len(precision.frames) - MAX_FRAMES)


# ---- memory


def _memory_figure(memory: Sequence[WeightMemory]) -> Drawing | None:
    if len({entry.format for entry in memory}) < 2:
        return None
    found = {
        network: _with_references([e for e in memory if e.network == network])
        for network in dict.fromkeys(e.network for e in memory)
    }
    size = (10.0, 1.0 + sum(0.55 + 0.27 * len(bars) for bars in found.values()))

    def draw(figure: Figure, theme: Theme) -> None:
        top = size[1] - 0.5
        for network, bars in found.items():
            height = 0.27 * len(bars)
            axes = figure.add_axes((1.95 / size[0], (top - 0.3 - height) / size[1], 5.0 / size[0], height / size[1]))
            top -= height + 0.55
            for i, (name, n_bytes, _, _) in enumerate(bars):
                axes.barh(i, n_bytes / 2**20, 0.7, color=format_colour(name))
            single, double = (next(b[1] for b in bars if b[0] == name) for name in ("float32", "float64"))
            for i, (name, n_bytes, _, _) in enumerate(bars):
                text = f"{n_bytes / 2**20:.3g} MiB"
                text += "" if name in ("float32", "float64") else f", {_ratio(single / n_bytes)} less than float32"
                text += "" if name == "float64" else f", {_ratio(double / n_bytes)} less than float64"
                axes.annotate(text, (n_bytes / 2**20, i), (4, 0), textcoords="offset points", va="center",
                              fontsize=9, color=theme.ink, annotation_clip=False)  # fmt: skip
            axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=9)
            axes.set_ylim(len(bars) - 0.5, -0.5)
            axes.set_title(f"{network}, layers: {bars[0][2]}", fontsize=10, loc="left")
            axes.grid(visible=False)
        figure.text(4.45 / size[0], 0.12 / size[1], "MiB of filters", ha="center")

    title = "Memory of the filters by format"
    alt = "Bar chart of the bytes of all filters. " + " ".join(
        f"{e.network} in {e.format}: {e.bytes / 2**20:.3g} MiB, {_ratio(e.float32_bytes / e.bytes)} less than float32."
        for e in memory
    )
    return render("precision_memory", title, MEMORY_CAPTION, alt, size, draw)


def _with_references(entries: Sequence[WeightMemory]) -> list[tuple[str, int, int, str]]:
    """(format, bytes, layers, network), largest first, float64 and float32 among them."""
    first = entries[0]
    sizes = {"float64": first.float64_bytes, "float32": first.float32_bytes} | {e.format: e.bytes for e in entries}
    return [(name, n, first.n_layers, first.network) for name, n in sorted(sizes.items(), key=lambda item: -item[1])]


def _ratio(value: float) -> str:
    return f"{value:.3g}x"


# ---- XNOR-Net's figure 4


def _curves(precision: Precision) -> tuple[list[Drawing], set[ConvShape]]:
    """Speed-up against channels, and against the side of the filter, where the run varies them alone; their shapes."""
    drawings: list[Drawing] = []
    swept: set[ConvShape] = set()
    for frame in precision.frames[:MAX_FRAMES]:
        for semantics in (Semantics.XNOR, Semantics.BINARY):
            mine = [
                line for line in precision.xnor
                if line.row.setting.over_formats == frame and line.row.problem.semantics is semantics and line.against
            ]  # fmt: skip
            for kind, x_of, same in (("channels", _channels, _but_channels), ("filter", _side, _but_filter)):
                curve = _longest(mine, x_of, same)
                if len(curve) >= LEAST_CURVE:
                    drawings.append(_curve_figure(frame, semantics, kind, curve, precision.frames))
                    swept |= {line.row.problem.shape for line in curve.values()}
    return drawings, swept


def _channels(shape: ConvShape) -> int | None:
    return shape.c if shape.groups == 1 else None


def _side(shape: ConvShape) -> int | None:
    return shape.r if shape.r == shape.s and shape.groups == 1 else None


def _but_channels(s: ConvShape) -> tuple[object, ...]:
    return s.n, s.h, s.w, s.k, s.r, s.s, s.stride, s.padding, s.dilation


def _but_filter(s: ConvShape) -> tuple[object, ...]:
    """Padding goes with the filter: it keeps the size of the image."""
    return s.n, s.c, s.h, s.w, s.k, s.stride, s.dilation, s.p, s.q


def _longest(
    lines: Iterable[XnorLine],
    x_of: Callable[[ConvShape], int | None],
    same: Callable[[ConvShape], tuple[object, ...]],
) -> dict[int, XnorLine]:
    """The longest series in which x alone varies: x -> the fastest row there."""
    series: dict[tuple[object, ...], dict[int, XnorLine]] = {}
    for line in lines:
        shape = line.row.problem.shape
        x = x_of(shape)
        if x is None:
            continue
        held = series.setdefault(same(shape), {})
        if x not in held or line.row.time.value < held[x].row.time.value:
            held[x] = line
    return dict(sorted(max(series.values(), key=len, default={}).items()))


def _curve_figure(
    frame: Setting, semantics: Semantics, kind: str, curve: dict[int, XnorLine], frames: Sequence[Setting]
) -> Drawing:
    shape = next(iter(curve.values())).row.problem.shape

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_axes(margins(figure, left=0.95, right=2.35, bottom=0.75, top=0.75))
        axes.set_yscale("log")
        if kind == "channels":
            axes.set_xscale("log", base=2)
        axes.plot(
            list(curve), [line.theory for line in curve.values()], color=theme.ink, linestyle=(0, (5, 3)),
            linewidth=1.4, label="formula", zorder=2,
        )  # fmt: skip
        for number, (name, colour) in enumerate(BASELINE_COLOURS.items()):
            points = [(x, line.against[name][1]) for x, line in curve.items() if name in line.against]
            axes.plot(
                [x for x, _ in points], [g.value for _, g in points], marker=MARKERS[number], color=colour,
                linewidth=1.6, markersize=7, markeredgecolor=theme.page, label=f"over {name}", zorder=3,
            )  # fmt: skip
            known = [(x, g) for x, g in points if g.known]
            axes.vlines([x for x, _ in known], [g.lo for _, g in known], [g.hi for _, g in known], color=colour,
                        linewidth=1, alpha=0.6, zorder=2)  # fmt: skip
        axes.axhline(1, color=theme.faint, linewidth=1.2, zorder=1)
        axes.set_xticks(list(curve), [str(x) if kind == "channels" else f"{x}x{x}" for x in curve])
        axes.minorticks_off()
        axes.set_xlabel("channels c" if kind == "channels" else "filter")
        axes.set_ylabel("speed-up (higher is faster)")
        log_ticks(axes.yaxis, axes.get_ylim(), times)
        legend(axes, theme)

    fixed = f"{shape.r}x{shape.s} filter" if kind == "channels" else f"{shape.c} channels"
    what = "channels" if kind == "channels" else "filter size"
    title = (
        f"Speed-up of {semantics} against {what}: {fixed}, {shape.k} filters, {shape.h}x{shape.w} image "
        f"({frame.text(skip=('pass',))})"
    )
    rows = ", ".join(dict.fromkeys(line.row.algorithm for line in curve.values()))
    function = (
        "signs scaled by mean absolute values" if semantics is Semantics.XNOR else "the convolution of signs alone"
    )
    weights = "" if frame.weights == "packed" else " and of the filter"
    caption = XNOR_CAPTION.format(rows=rows, function=function, weights=weights)
    alt = f"Line plot of the speed-up of {rows} at {what} {', '.join(map(str, curve))}. " + " ".join(
        f"Over {name}: {', '.join(f'{gain:.3g}' for gain in gains)}." for name, gains in _gains(curve).items() if gains
    )  # fmt: skip
    return render(f"{semantics}_{kind}_{frame_slug(frame, '', frames)}", title, caption, alt, (10, 5.6), draw)


def _gains(curve: dict[int, XnorLine]) -> dict[str, list[float]]:
    """Baseline -> the speed-ups of a curve."""
    lines = curve.values()
    return {name: [line.against[name][1].value for line in lines if name in line.against] for name in XNOR_BASELINES}
