"""The progress bar of long commands: problems done, what runs now, time left. Quiet where nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from convbench.records import Record
from convbench.suite import ProblemCase


class ProgressBar:
    """Watches a run (runner.Observer) and draws on standard error if that is a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bar away."""
        self._progress.stop()

    def started(self, problems: int, cases: int) -> None:
        """Draws an empty bar."""
        self._task = self._progress.add_task(f"{problems} problems, {cases} cases", total=problems, left="")

    def now(self, problem: ProblemCase, algorithm: str, doing: str) -> None:
        """Shows what runs at this moment."""
        if self._task is not None:
            label = problem.label or "problem"
            self._progress.update(self._task, description=f"{label} {problem.problem.pass_}: {doing} {algorithm}")

    def problem_done(self, problem: ProblemCase, records: list[Record], seconds_left: float) -> None:
        """One problem further, with the most that the rest may take."""
        if self._task is not None:
            minutes, seconds = divmod(max(0, int(seconds_left)), 60)
            self._progress.update(self._task, advance=1, left=f"about {minutes}:{seconds:02d} left")
