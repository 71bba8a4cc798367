"""The figures of a run: effective rate per layer, time against error, speed-up over batch.

Each is drawn twice, for a light and a dark page. A family of algorithms has one colour
everywhere (after Okabe & Ito, colour-blind safe) and its members have different markers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convbench.report.drawing import (
    MARKERS,
    PASS_NAMES,
    SPARE_COLOURS,
    Drawing,
    Theme,
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
from convbench.report.model import ALL_BATCHES, Analysis, Row, Score, Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ALGORITHMS = 8  # beside the baseline; more markers on one line cannot be told apart
MAX_LAYERS = 40
MAX_SETTINGS = 3  # figures of one kind for one pass; the rest is in the tables
FAMILY_COLOURS = {
    "direct": "#0072B2",
    "im2col": "#E69F00",
    "fft": "#009E73",
    "winograd": "#D55E00",
    "strassen": "#CC79A7",
    "torch": "#56B4E9",
    "kn2row": "#A0703C",
    "xnor": "#8E6CD1",
    "cudnn": "#7A9A01",
}
RATE_CAPTION = (
    "A bar is the baseline, a marker one algorithm (at most eight: those that lead a layer or on average). The "
    "effective rate divides the operations of direct convolution by the time, so an algorithm that needs fewer may "
    "exceed the peak."
)
ERROR_CAPTION = (
    "A marker is one algorithm: geometric mean of its times and median of its errors over the layers. Outlined and "
    "bold on the dashed Pareto front: nothing else is both faster and more accurate."
)
BATCH_CAPTION = "Geometric mean over the layers at each batch; a thin line is its 95 % interval (bootstrap)."


@dataclass(frozen=True)
class _Style:
    """Colour and marker of each algorithm, the same in every figure of a run."""

    markers: dict[str, str]

    def colour(self, name: str, theme: Theme) -> str:
        """By family; oneDNN is drawn in the colour of the text."""
        family = name.split("_")[0]
        if family == "onednn":
            return theme.ink
        return FAMILY_COLOURS.get(family) or SPARE_COLOURS[zlib.crc32(family.encode()) % len(SPARE_COLOURS)]


def all_figures(analysis: Analysis) -> list[Drawing]:
    """Every figure that the run has data for."""
    style = _Style(_markers({row.algorithm for row in analysis.rows if row.ok}))
    drawings = []
    for pass_ in dict.fromkeys(setting.pass_ for setting in analysis.settings):
        settings = [s for s in analysis.settings if s.pass_ == pass_][:MAX_SETTINGS]
        for kind in (_rate_figure, _error_figure):
            drawings += [d for s in settings if (d := kind(analysis, s, style))]
        over = dict.fromkeys(s._replace(batch=ALL_BATCHES) for s in analysis.settings if s.pass_ == pass_)
        drawings += [d for s in list(over)[:MAX_SETTINGS] if (d := _batch_figure(analysis, s, style))]
    return sorted(drawings, key=lambda d: ("gflops", "speedup", "time").index(d.name.split("_")[0]))


def leading(analysis: Analysis, setting: Setting) -> list[str]:
    """The algorithms worth drawing: the baseline, then those that lead most often or on average."""
    scores = [s for s in analysis.scores if s.setting == setting and s.n_ok]
    ranked = sorted(scores, key=lambda s: (-(_geomean(s) * (s.n_ok / s.n_total)), s.algorithm))
    winners = sorted((s for s in scores if s.best), key=lambda s: (-s.best, s.algorithm))
    names = list(dict.fromkeys(s.algorithm for s in [*winners, *ranked] if s.algorithm != analysis.baseline))
    names = names[:MAX_ALGORITHMS]
    order = {s.algorithm: i for i, s in enumerate(ranked)}
    base = [s.algorithm for s in scores if s.algorithm == analysis.baseline]
    return base + sorted(names, key=lambda name: order[name])


def _rate_figure(analysis: Analysis, setting: Setting, style: _Style) -> Drawing | None:
    rows = [row for row in analysis.rows if row.setting == setting and row.ok]
    if not rows:
        return None
    names = leading(analysis, setting)
    layers = list(dict.fromkeys(row.problem.shape for row in rows))
    dropped = len(layers) - MAX_LAYERS
    if dropped > 0:
        heavy = sorted(layers, key=lambda shape: -shape.macs)[:MAX_LAYERS]
        layers = [shape for shape in layers if shape in set(heavy)]
    position = {shape: i for i, shape in enumerate(layers)}
    rows = [row for row in rows if row.problem.shape in position and row.algorithm in names]

    def draw(figure: Figure, theme: Theme) -> None:
        labels = [_short(_layer(rows, shape)) for shape in layers]
        left = 0.45 + 0.095 * max(map(len, labels))
        axes = figure.add_axes(margins(figure, left=left, right=2.35, bottom=0.75, top=0.5))
        for number, name in enumerate(names):
            mine = [row for row in rows if row.algorithm == name]
            x = [float(row.metrics["gflops_direct"] or 0) for row in mine]
            shift = 0.0 if name == analysis.baseline else 0.5 * (number / len(names) - 0.5)  # none hides another
            y = [position[row.problem.shape] + shift for row in mine]
            if name == analysis.baseline:
                axes.barh(y, x, 0.72, color=theme.bar, zorder=1, label=f"{name} (baseline)")
                continue
            axes.plot(
                x, y, style.markers[name], color=style.colour(name, theme), markersize=7.5, label=name,
                markeredgecolor=theme.page, markeredgewidth=0.7, zorder=3,
            )  # fmt: skip
        axes.set_yticks(range(len(layers)), labels)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("effective rate in GFLOP/s (direct operations over time; further right is faster)")
        legend(axes, theme)

    text = setting.text(skip=("pass",))
    title = f"Effective rate per layer, {PASS_NAMES[setting.pass_]} ({text})"
    if dropped > 0:
        title += f"; the {MAX_LAYERS} layers with most operations of {MAX_LAYERS + dropped}"
    height = 1.5 + max(0.42 * len(layers), 0.24 * (len(names) + 1))
    alt = f"Dot plot of effective GFLOP/s for {len(layers)} layers and {len(names)} algorithms. " + _best_text(
        analysis, setting
    )
    return render(f"gflops_{_slug(analysis, setting)}", title, RATE_CAPTION, alt, (10, height), draw)


def _error_figure(analysis: Analysis, setting: Setting, style: _Style) -> Drawing | None:
    points = _time_and_error(analysis, setting)
    if len(points) < 2:
        return None
    front = pareto_front(points)
    relative = analysis.baseline is not None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_axes(margins(figure, left=0.95, right=0.3, bottom=0.75, top=0.5))
        axes.set_xscale("log")
        axes.set_yscale("log")
        line = sorted(front, key=lambda name: points[name])
        if len(line) > 1:
            axes.step(
                [points[n][0] for n in line], [points[n][1] for n in line], where="post", color=theme.ink,
                linewidth=1.2, linestyle=(0, (4, 3)), zorder=1,
            )  # fmt: skip
        for name, (x, y) in points.items():
            axes.plot(
                [x], [y], style.markers[name], color=style.colour(name, theme), zorder=3,
                markersize=10 if name in front else 7, markeredgecolor=theme.ink if name in front else theme.page,
            )  # fmt: skip
        pad(axes, list(points.values()))
        axes.set_xlabel(
            f"time relative to {analysis.baseline}, geometric mean over layers (further left is faster)"
            if relative else "median time in seconds, geometric mean over layers (further left is faster)"
        )  # fmt: skip
        axes.set_ylabel("relative L2 error (lower is better)")
        log_ticks(axes.xaxis, axes.get_xlim(), times if relative else power)
        log_ticks(axes.yaxis, axes.get_ylim(), power)
        bold = {name: "bold" if name in front else "normal" for name in points}
        spread_labels(axes, points, bold, theme.ink, theme.page)

    title = f"Time against error, {PASS_NAMES[setting.pass_]} ({setting.text(skip=('pass',))})"
    alt = (
        f"Scatter plot of {len(points)} algorithms, time against relative L2 error. On the Pareto front, where "
        f"nothing is both faster and more accurate: {', '.join(sorted(front, key=lambda n: points[n]))}."
    )
    return render(f"time_error_{_slug(analysis, setting)}", title, ERROR_CAPTION, alt, (10, 6.4), draw)


def _batch_figure(analysis: Analysis, setting: Setting, style: _Style) -> Drawing | None:
    scores = [s for s in analysis.scores if s.setting._replace(batch=ALL_BATCHES) == setting and s.geomean]
    batches = sorted({int(s.setting.batch) for s in scores if s.setting.batch != ALL_BATCHES})
    if len(batches) < 2 or analysis.baseline is None:
        return None
    names = [name for name in leading(analysis, setting) if name != analysis.baseline]
    series = {
        name: sorted(
            (int(s.setting.batch), s.geomean)
            for s in scores if s.algorithm == name and s.setting.batch != ALL_BATCHES and s.geomean
        )
        for name in names
    }  # fmt: skip

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_axes(margins(figure, left=0.95, right=2.35, bottom=0.75, top=0.5))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.axhline(1, color=theme.ink, linewidth=1.2, zorder=1, label=f"{analysis.baseline} (baseline)")
        for number, (name, points) in enumerate(series.items()):
            colour, nudge = style.colour(name, theme), 2 ** (0.05 * (number - len(series) / 2))
            x = [batch * nudge for batch, _ in points]
            axes.plot(
                x, [g.value for _, g in points], marker=style.markers[name], color=colour, label=name,
                linewidth=1.6, markersize=7, markeredgecolor="none", zorder=3,
            )  # fmt: skip
            known = [(at, g) for at, (_, g) in zip(x, points, strict=True) if g.known]
            axes.vlines([a for a, _ in known], [g.lo for _, g in known], [g.hi for _, g in known],
                        color=colour, linewidth=1, alpha=0.5, zorder=2)  # fmt: skip
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_xlabel("batch (images at once)")
        axes.set_ylabel(f"speed-up against {analysis.baseline}")
        log_ticks(axes.yaxis, axes.get_ylim(), times)
        legend(axes, theme)

    title = f"Speed-up over batch, {PASS_NAMES[setting.pass_]} ({setting.text(skip=('pass', 'batch'))})"
    alt = f"Line plot of the geometric mean speed-up at batch {', '.join(map(str, batches))} for {', '.join(names)}."
    return render(f"speedup_batch_{_slug(analysis, setting)}", title, BATCH_CAPTION, alt, (10, 5.2), draw)


def _time_and_error(analysis: Analysis, setting: Setting) -> dict[str, tuple[float, float]]:
    """(relative time, median relative L2 error) of each algorithm that covers at least half of the layers."""
    by_name: dict[str, list[Row]] = {}
    for row in analysis.rows:
        usable = row.ok and row.record.error.rel_l2 and (row.speedup or analysis.baseline is None)
        if row.setting == setting and usable:
            by_name.setdefault(row.algorithm, []).append(row)
    most = max((len(rows) for rows in by_name.values()), default=0)
    points = {}
    for name, rows in by_name.items():
        if 2 * len(rows) < most:
            continue
        relative = [1 / row.speedup.value if row.speedup else row.time.value for row in rows]
        errors = [row.record.error.rel_l2 or 0.0 for row in rows]
        points[name] = (math.exp(float(np.mean(np.log(relative)))), float(np.median(errors)))
    return points


def _markers(names: Iterable[str]) -> dict[str, str]:
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        members.setdefault(name.split("_")[0], []).append(name)
    return {name: MARKERS[i % len(MARKERS)] for family in members.values() for i, name in enumerate(family)}


def _geomean(score: Score) -> float:
    return score.geomean.value if score.geomean else 0.0


def _layer(rows: Sequence[Row], shape: Any) -> str:
    return next((row.layer for row in rows if row.problem.shape == shape), "")


def _short(text: str, width: int = 17) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _slug(analysis: Analysis, setting: Setting) -> str:
    """File name: the pass, and those parts of the setting that are not the same in the whole run."""
    parts = [setting.pass_]
    for key, value in setting._asdict().items():
        if key != "pass_" and len({getattr(s, key) for s in analysis.settings}) > 1 and value != ALL_BATCHES:
            parts.append(f"{key}{value}" if isinstance(value, int) else str(value))
    return "_".join(parts)


def _best_text(analysis: Analysis, setting: Setting) -> str:
    best = [b for b in analysis.best if b.setting == setting]
    return "Fastest: " + "; ".join(f"{b.layer}: {b.winner}" for b in best[:20]) + "."
