"""The report of a run: a pure function of its directory, `build_report(run_dir)`.

It rebuilds summary.json, tables/, figures/ and report.html from records.jsonl and environment.json alone; no device
and no algorithm is imported.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from convbench.errors import OutputError


@dataclass(frozen=True)
class ReportPaths:
    """Where the report was written."""

    html: Path
    summary: Path
    tables: list[Path]
    figures: list[Path]
    headline: str


def build_report(run_dir: Path) -> ReportPaths:
    """Writes summary.json, tables/*.{md,csv}, tables/columns.md, figures/*.{svg,png} and report.html.

    Raises RecordsError for a directory that holds no readable run, OutputError where it cannot be written. Files of
    an earlier report are replaced, each at once.
    """
    from convbench.records import load_run
    from convbench.report.figures import all_figures
    from convbench.report.html import render_html
    from convbench.report.precision_figures import precision_figures
    from convbench.report.summary import analyse, summary
    from convbench.report.tables import all_tables, column_dictionary, write_tables
    from convbench.report.verdict import verdict

    run_dir = Path(run_dir)
    environment, records = load_run(run_dir)
    analysis = analyse(environment, records)
    tables, drawings, across = all_tables(analysis), all_figures(analysis), precision_figures(analysis.precision)
    said = verdict(analysis)
    content = summary(analysis) | {"verdict": {"headline": said.headline, "lines": said.lines, "caveats": said.caveats}}
    files: dict[str, bytes] = {
        "summary.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
        "report.html": render_html(analysis, tables, drawings, across).encode(),
    }
    for name, text in write_tables(tables, column_dictionary()).items():
        files[f"tables/{name}"] = text.encode()
    for drawing in [*drawings, *across]:
        for theme in drawing.svg:
            suffix = "" if theme == "light" else f"_{theme}"
            files[f"figures/{drawing.name}{suffix}.svg"] = drawing.svg[theme]
            files[f"figures/{drawing.name}{suffix}.png"] = drawing.png[theme]
    _remove_stale(run_dir, set(files))
    for relative, data in files.items():
        _write(run_dir / relative, data)
    return ReportPaths(
        html=run_dir / "report.html",
        summary=run_dir / "summary.json",
        tables=sorted(run_dir / name for name in files if name.startswith("tables/")),
        figures=sorted(run_dir / name for name in files if name.startswith("figures/")),
        headline=said.headline,
    )


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader never sees half a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise OutputError(
            f"cannot write {path}: {error.strerror}; the records are untouched: free some space or mend the "
            f"permissions, then run convbench report {path.parent}"
        ) from error


def _remove_stale(run_dir: Path, wanted: set[str]) -> None:
    """Tables and figures of an earlier report that this one no longer has."""
    for folder, kinds in (("tables", (".md", ".csv")), ("figures", (".svg", ".png"))):
        for path in (run_dir / folder).glob("*"):
            if path.suffix in kinds and f"{folder}/{path.name}" not in wanted:
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(f"cannot remove {path}: {error.strerror}") from error
