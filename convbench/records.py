"""Records: one case, one line of JSON, raw samples inside.

Schema history
  1  2026-11  first: case, status, reason, samples, setup, memory, error, operations, environment, repeat command.
  2  2026-11  GPUs: device, launches; samples carry host_ns, sm_mhz and reasons (empty lists on a CPU).
  3  2026-11  semantics beside the linear one: error.exact_ulp; options.inputs may be other than normal; packing_ns.

Every earlier schema still reads (tests/golden), as a record of this one; an unknown newer one is RecordsError. A file
whose last line was cut by a kill reads up to that line.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from convbench.descriptor import parse_descriptor, print_descriptor
from convbench.errors import ConvbenchError, OutputError, RecordsError
from convbench.problem import Case, Options

SCHEMA = 3
STATUSES = ("ok", "unsupported", "unavailable", "wrong", "failed", "timed_out", "not_reached")


@dataclass
class Samples:
    """Raw samples: nanoseconds of `loops` calls each, with the block and the position in it.

    On a GPU also, for each: host_ns, one call as the host sees it, launches and waiting included; sm_mhz, the clock of
    the multiprocessors; reasons, why that is what it is (NVML's names). None where a reading could not be had.
    """

    ns: list[int] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    host_ns: list[int | None] = field(default_factory=list)
    sm_mhz: list[int | None] = field(default_factory=list)
    reasons: list[list[str] | None] = field(default_factory=list)


@dataclass
class Errors:
    """How far the result was from the linear convolution in float64, on inputs as they are timed; None: not compared.

    exact_ulp: of another semantics, how far from its own exact result, in units of the last place; bound_ratio then
    is that distance over the allowed one.
    """

    rel_l2: float | None = None
    max_abs: float | None = None
    max_ulp: float | None = None
    bound_ratio: float | None = None
    exact_ulp: float | None = None


@dataclass
class Record:
    """What became of one case. `reason` is a sentence whenever status is not ok.

    launches: kernels and library calls that one run enqueues on a GPU; None where that is not known. packing_ns: one
    call's conversion of operands (signs packed, numbers quantised), timed by itself; the samples contain it. None where
    the row has no such phase, or it was not timed.
    """

    case: Case
    status: str
    reason: str = ""
    flags: list[str] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)
    loops: int = 1
    packing_ns: float | None = None
    setup_ns: int | None = None
    workspace_bytes: int | None = None
    workspace_estimate_bytes: int | None = None
    peak_bytes: int | None = None
    error: Errors = field(default_factory=Errors)
    executed_flops: dict[str, float] = field(default_factory=dict)
    arithmetic: str = ""
    vendor: bool = False
    vendor_impl: str | None = None
    predicted_ns: float | None = None
    device: str = "cpu"
    launches: int | None = None
    energy_j: float | str = "unavailable"
    env_id: str = ""
    source_sha: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    repro: str = ""
    started_utc: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise RecordsError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")

    @property
    def problem_text(self) -> str:
        """The problem as a benchdnn descriptor."""
        return print_descriptor(self.case.problem)

    @property
    def ns_per_call(self) -> list[float]:
        """Samples divided by the calls in each."""
        return [ns / self.loops for ns in self.samples.ns]

    def to_json(self) -> str:
        """One line of JSON without a newline."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("case", "samples", "error")}
        case = self.case
        data["case"] = {
            "id": case.id,
            "problem": print_descriptor(case.problem),
            "implementation": case.implementation,
            "options": asdict(case.options),
            "label": case.label,
            "count": case.count,
        }
        data["samples"], data["error"] = asdict(self.samples), asdict(self.error)
        return json.dumps(data, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The inverse of to_json. Raises RecordsError."""
        try:
            data = json.loads(text)
            schema = data["schema"]
            if not isinstance(schema, int) or schema > SCHEMA:
                raise RecordsError(
                    f"record schema {schema!r} is newer than this convbench reads ({SCHEMA}): update convbench"
                )
            data["schema"] = SCHEMA  # what an earlier one lacks has its default
            case = data.pop("case")
            data["samples"], data["error"] = Samples(**data["samples"]), Errors(**data["error"])
            problem = parse_descriptor(case["problem"]).problem
            options = Options(**case["options"])
            return cls(Case(problem, case["implementation"], options, case["label"], case["count"]), **data)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise RecordsError(f"not a convbench record: {type(error).__name__}: {error}") from error


class RecordWriter:
    """Appends records to a file; they are on disk before `append_all` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _drop_torn_tail(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def append_all(self, records: list[Record]) -> None:
        """Writes the records in one piece and fsyncs. A write that fails is taken back: no torn line stays."""
        data = b"".join(record.to_json().encode() + b"\n" for record in records)
        descriptor = self._file.fileno()
        start = os.fstat(descriptor).st_size
        try:
            done = 0
            while done < len(data):
                done += os.write(descriptor, data[done:])
            os.fsync(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, start)
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; every finished problem before this one is kept: free "
                f"some space, then go on with --resume {self.path.parent}"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """All records of a records.jsonl file; a last line without a newline was cut by a kill and is left out.

    Raises RecordsError naming file and line for anything else that is no record, OutputError if unreadable.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    records = []
    lines = raw.split(b"\n")[:-1]  # what follows the last newline is empty or torn
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(Record.from_json(line.decode()))
        except (UnicodeDecodeError, ConvbenchError) as error:
            raise RecordsError(f"{path}, line {number}: {error}") from error
    return records


def load_run(run_dir: Path) -> tuple[dict[str, Any], list[Record]]:
    """(environment, records) of a run directory. Raises RecordsError or OutputError."""
    if not run_dir.is_dir():
        raise OutputError(f"no run directory at {run_dir}: give the folder that holds records.jsonl")
    records_path, environment_path = run_dir / "records.jsonl", run_dir / "environment.json"
    if not records_path.is_file():
        raise RecordsError(f"{run_dir} holds no records.jsonl: is it a run directory?")
    environment: dict[str, Any] = {}
    if environment_path.is_file():
        try:
            environment = json.loads(environment_path.read_text())
        except (OSError, ValueError) as error:
            raise RecordsError(f"{environment_path} cannot be read: {error}") from error
    return environment, read_records(records_path)


def _drop_torn_tail(path: Path) -> None:
    """Cuts what a kill left after the last newline, so that the next record starts a line of its own."""
    if not path.exists():
        return
    raw = path.read_bytes()
    keep = raw.rfind(b"\n") + 1
    if keep != len(raw):
        with open(path, "r+b") as file:
            file.truncate(keep)
