"""The tables across formats: every row beside the float32 vendor row, networks, memory of weights, XNOR's baselines."""

from __future__ import annotations

from typing import Any

from convbench.report.model import FormatPoint, NetworkPoint, Precision, Setting, WeightMemory, XnorLine, interval_dict
from convbench.report.precision import XNOR_BASELINES

Cells = dict[str, Any]

#: The time of converting operands, alone and as a share.
PACKING = ("packing_s", "pct_packing")
#: Columns of these tables that no other has: what they mean.
PRECISION_COLUMNS = {
    "format": "the semantics, or of the linear one the element type: 'int8' is float32 operands rounded to 8 bits with "
    "scales, 'int8 operands' those that are int8 already",
    "float32_vendor": "the fastest vendor row that multiplies in float32, on the same shape, pass, layout and options",
    "speedup_float32_vendor": "its time over the time of this row: against another function unless the format is "
    "float32, and then a ratio of medians that share no block",
    "speedup_float32_vendor_ci_lo": "lower end of its 95 % interval",
    "speedup_float32_vendor_ci_hi": "upper end of its 95 % interval",
    "weights_packing_s": "seconds that the filter's packing or rounding takes of a call: the row with raw weights less "
    "the same row with packed ones",
    "weight_bytes": "bytes of all filters in this format, scales included",
    "float32_bytes": "bytes of the same filters in float32",
    "float64_bytes": "bytes of the same filters in float64, which XNOR-Net compares with",
    "less_than_float32": "float32_bytes over weight_bytes",
    "less_than_float64": "float64_bytes over weight_bytes",
    "channels": "input channels of a group",
    "filter": "height x width of the filter",
    "theory_speedup": "XNOR-Net's formula for binary over real operations: 64 c N_W / (c N_W + 64)",
    **{
        key: text
        for name in XNOR_BASELINES
        for key, text in (
            (f"row {name}", f"the row behind '{name}': the real convolution of the same shape, another function"),
            (f"over {name}", f"time of that row over the time of this one: against another function ({name})"),
            (f"over {name}_ci_lo", "lower end of its 95 % interval"),
            (f"over {name}_ci_hi", "upper end of its 95 % interval"),
        )
    },
}


def precision_cells(precision: Precision | None) -> list[tuple[str, str, list[Cells]]]:
    """(file name, title, rows) of each table; none for a run of one format."""
    if precision is None:
        return []
    over_networks = "Formats over whole networks (error: root mean square over the layers)"
    tables = [
        ("precision", "Every format beside the fastest float32 vendor row", [_point(p) for p in precision.points]),
        ("precision_networks", over_networks, [_network(p) for p in precision.networks]),
        ("weights", "Memory of the filters by format", [_memory(entry) for entry in precision.memory]),
    ]
    if precision.xnor:
        title = "Rows on signs against rows of the real convolution: another function"
        tables.append(("xnor", title, [_xnor(line) for line in precision.xnor]))
    return [table for table in tables if table[2]]


def precision_dict(precision: Precision | None) -> dict[str, Any] | None:
    """The part of summary.json on formats, without the single rows; None for a run of one format."""
    if precision is None:
        return None
    return {
        "formats": precision.formats,
        "networks": [_network(p) for p in precision.networks],
        "weights": [_memory(entry) for entry in precision.memory],
        "xnor": [_xnor(line) for line in precision.xnor],
    }


def _shared(frame: Setting) -> Cells:
    """What the formats of a comparison share: the setting without type and semantics."""
    return {key: value for key, value in frame.as_dict().items() if key not in ("dtype", "semantics")}


def _point(point: FormatPoint) -> Cells:
    row = point.row
    return {
        "label": row.layer,
        "problem": row.descriptor,
        "count": row.record.case.count,
        "format": point.format,
        **_shared(point.frame),
        "algorithm": row.algorithm,
        "arithmetic": row.arithmetic,
        "vendor": row.record.vendor,
        "time_s_median": row.time.value,
        **{key: row.metrics[key] for key in PACKING},
        "float32_vendor": point.reference.algorithm if point.reference else None,
        **interval_dict("speedup_float32_vendor", point.speedup),
        "weights_packing_s": point.packing_s,
        "error_rel_l2": row.record.error.rel_l2,
        "error_exact_ulp": row.record.error.exact_ulp,
    }


def _network(point: NetworkPoint) -> Cells:
    return {
        "network": point.network,
        "format": point.format,
        **_shared(point.frame),
        "algorithm": point.algorithm,
        "n_layers": point.n_layers,
        "total_time_s": point.seconds,
        "speedup_float32_vendor": point.speedup,
        "error_rel_l2": point.error,
    }


def _memory(entry: WeightMemory) -> Cells:
    return {
        "network": entry.network,
        "format": entry.format,
        "n_layers": entry.n_layers,
        "weight_bytes": entry.bytes,
        "float32_bytes": entry.float32_bytes,
        "float64_bytes": entry.float64_bytes,
        "less_than_float32": entry.float32_bytes / entry.bytes,
        "less_than_float64": entry.float64_bytes / entry.bytes,
    }


def _xnor(line: XnorLine) -> Cells:
    row, shape = line.row, line.row.problem.shape
    cells: Cells = {
        "label": row.layer,
        "channels": shape.cg,
        "filter": f"{shape.r}x{shape.s}",
        "format": row.problem.semantics.value,
        **_shared(row.setting.over_formats),
        "algorithm": row.algorithm,
        "time_s_median": row.time.value,
        **{key: row.metrics[key] for key in PACKING},
        "weights_packing_s": line.packing_s,
        "theory_speedup": line.theory,
    }
    for name in XNOR_BASELINES:
        of, gain = line.against.get(name, (None, None))
        cells[f"row {name}"] = of.algorithm if of else None
        cells |= interval_dict(f"over {name}", gain)
    return cells
