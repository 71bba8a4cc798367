"""What the page's part on precision shows: networks, memory of weights, XNOR's baselines, and its figures."""

from __future__ import annotations

from typing import Any

from convbench.report.model import Analysis, Precision, Row, Setting, number
from convbench.report.precision import XNOR_BASELINES
from convbench.report.precision_figures import frames_beyond
from convbench.report.precision_tables import PACKING
from convbench.report.tables import show_bytes, show_number


def precision_section(analysis: Analysis) -> dict[str, Any] | None:
    """Values for the template; None for a run of one format."""
    precision = analysis.precision
    if precision is None:
        return None
    varying = [f for f in Setting._fields if len({getattr(frame, f) for frame in precision.frames}) > 1]
    return {
        "formats": precision.formats,
        "several": bool(varying),
        "beyond": frames_beyond(precision),
        "networks": _networks(precision, varying),
        "memory": [
            {
                "entry": entry,
                "shown": [show_bytes(n) for n in (entry.bytes, entry.float32_bytes, entry.float64_bytes)],
                "factors": [entry.float32_bytes / entry.bytes, entry.float64_bytes / entry.bytes],
            }
            for entry in precision.memory
        ],
        "baselines": list(XNOR_BASELINES),
        "xnor": _xnor(precision, varying),
    }


def _setting(frame: Setting, varying: list[str]) -> str:
    """What is not the same in the whole comparison."""
    return frame.text(skip=["pass" if f == "pass_" else f for f in Setting._fields if f not in varying])


def _networks(precision: Precision, varying: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "point": point,
            "setting": _setting(point.frame, varying),
            "ms": show_number(point.seconds * 1e3),
            "error": "" if point.error is None else show_number(point.error) if point.error else "0",
        }
        for point in precision.networks
    ]


def _packing(row: Row) -> tuple[float, str, str] | None:
    """(seconds, as milliseconds, share of the time) of converting the operands, timed by itself."""
    seconds, share = (row.metrics[key] for key in PACKING)
    if seconds is None:
        return None
    return number(seconds), show_number(number(seconds) * 1e3), f"{number(share):.0f} %"


def _xnor(precision: Precision, varying: list[str]) -> list[dict[str, Any]]:
    rows = []
    for line in precision.xnor:
        shape = line.row.problem.shape
        rows.append(
            {
                "line": line,
                "layer": line.row.layer,
                "setting": _setting(line.row.setting.over_formats, varying),
                "semantics": line.row.problem.semantics.value,
                "shape": f"{shape.cg} channels, {shape.r}x{shape.s}",
                "products": shape.cg * shape.r * shape.s,
                "ms": show_number(line.row.time.value * 1e3),
                "packing": _packing(line.row),
                "filter_packing": None if line.packing_s is None else show_number(line.packing_s * 1e3),
                "against": [line.against.get(name) for name in XNOR_BASELINES],
            }
        )
    return rows
