"""What every figure is made of: themes for a light and a dark page, axes with room for labels, SVG and PNG files."""

from __future__ import annotations

import io
import math
import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convbench.report.model import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SPARE_COLOURS = ("#B5446E", "#3C8D93", "#9A7B00", "#6E7F80")
MARKERS = "os^DvPX<>hp*"
FORMAT_COLOURS = {
    "float64": "#6E7F80", "float32": "#0072B2", "float32 in tf32": "#3C8D93", "float16": "#56B4E9",
    "bfloat16": "#009E73", "int8 operands": "#E69F00", "int8": "#D55E00", "fixed16": "#A0703C",
    "fixed16_stochastic": "#B5446E", "dynamic_fixed": "#7A9A01", "binary_weights": "#CC79A7", "xnor": "#8E6CD1",
    "binary": "#4C6A92",
}  # fmt: skip
PASS_NAMES = {"fwd": "forward", "bwd_data": "backward data", "bwd_weights": "backward weights"}


@dataclass(frozen=True)
class Theme:
    """Colours of the page that a figure is drawn for."""

    name: str
    ink: str
    faint: str
    bar: str
    page: str


THEMES = (
    Theme("light", "#1c2330", "#c9ced6", "#dfe3e9", "#ffffff"),
    Theme("dark", "#e6e9ef", "#4a5364", "#333c4d", "#12161d"),
)


@dataclass
class Drawing:
    """One figure: file stem, title, how to read it, description for those who cannot see it, and its files by theme."""

    name: str
    title: str
    caption: str
    alt: str
    svg: dict[str, bytes]
    png: dict[str, bytes]


def pareto_front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Names that no other beats in one coordinate without losing in the other (smaller is better)."""
    return {
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    }


def render(
    name: str, title: str, caption: str, alt: str, size: tuple[float, float], draw: Callable[[Figure, Theme], None]
) -> Drawing:
    """Draws for both themes, without a display and without pyplot's global state."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    svg: dict[str, bytes] = {}
    png: dict[str, bytes] = {}
    for theme in THEMES:
        look: Any = {
            "font.family": "DejaVu Sans", "font.size": 10.5, "svg.hashsalt": name, "svg.fonttype": "path",
            "text.parse_math": False, "text.color": theme.ink, "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.faint, "xtick.color": theme.ink, "ytick.color": theme.ink,
            "grid.color": theme.faint, "axes.spines.top": False, "axes.spines.right": False,
            "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.facecolor": theme.page,
        }  # fmt: skip
        with mpl.rc_context(look):
            figure = Figure(figsize=size)
            figure.patch.set_facecolor(theme.page)
            FigureCanvasAgg(figure)
            draw(figure, theme)
            heading = textwrap.fill(title, 100)
            figure.text(0.012, 1 - 0.12 / size[1], heading, va="top", fontsize=12, fontweight="bold")
            for store, kind in ((svg, "svg"), (png, "png")):
                file = io.BytesIO()
                figure.savefig(file, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
                store[theme.name] = file.getvalue()
    return Drawing(name, title, caption, alt, svg, png)


def margins(figure: Figure, **inches: float) -> tuple[float, float, float, float]:
    """Axes that leave so many inches left, right, bottom and top, as fractions of the figure."""
    width, height = figure.get_size_inches()
    left, bottom = inches["left"] / width, inches["bottom"] / height
    return left, bottom, 1 - left - inches["right"] / width, 1 - bottom - inches["top"] / height


def legend(axes: Axes, theme: Theme) -> None:
    """To the right of the axes."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False, labelcolor=theme.ink,
        fontsize=10, handlelength=1.4,
    )  # fmt: skip


def pad(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Room around the points of a log-log plot for their labels."""
    for values, setter in ((0, axes.set_xlim), (1, axes.set_ylim)):
        logs = np.log10([point[values] for point in points])
        room = 0.14 * max(float(np.ptp(logs)), 0.5)
        setter(10 ** (logs.min() - room), 10 ** (logs.max() + room))


def log_ticks(axis: Axis, limits: tuple[float, float], text: Callable[[float], str], room: float = 1.0) -> None:
    """Ticks at 1, 2, 5 of each decade, more of them where the range is short, fewer where it is long.

    room: length of the axis, as a share of a whole figure's.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(limits[1] / limits[0]) / room
    subs = (1, 1.2, 1.5, 2, 3, 4, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 3.5 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def times(value: float) -> str:
    """A ratio on an axis: 2x."""
    return f"{value:g}x"


def power(value: float) -> str:
    """An error on an axis: 1e-7."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def format_order(name: str) -> int:
    """Where a format stands in legends: exact ones first."""
    return list(FORMAT_COLOURS).index(name) if name in FORMAT_COLOURS else len(FORMAT_COLOURS)


def format_colour(name: str) -> str:
    """The colour of a format, the same in every figure."""
    return FORMAT_COLOURS.get(name) or SPARE_COLOURS[zlib.crc32(name.encode()) % len(SPARE_COLOURS)]


def format_marker(name: str) -> str:
    """The marker of a format, the same in every figure."""
    return MARKERS[format_order(name) % len(MARKERS)]


def frame_slug(frame: Setting, network: str, frames: Sequence[Setting]) -> str:
    """File name: pass and network, and what else is not the same in all of `frames`."""
    parts = [frame.pass_, *([network] if network else [])]
    for key, value in frame._asdict().items():
        if key != "pass_" and len({getattr(other, key) for other in frames}) > 1:
            parts.append(f"{key}{value}" if isinstance(value, int) else str(value))
    return "_".join("".join(ch if ch.isalnum() else "-" for ch in part) for part in parts)
