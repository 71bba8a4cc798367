"""Bad input of every kind: one clear message that says what, where and what next, the right exit code, nothing lost.

`python tests/integration/test_bad_input.py` prints the table of messages and exit codes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.plugins.activate import site_with  # noqa: E402

PROBLEM = "mb1ic8ih10oc8kh3ph1"
GOOD = f"""title: one small problem
problems: ['{PROBLEM}n"one"']
axes: {{pass: [fwd], threads: [1]}}
algorithms: [im2col_numpy, direct_numpy]
baseline: [im2col_numpy]
policy: {{time_budget: 5 s, min_blocks: 3, min_time: 0.01 s, ci_target: 50 %}}
"""


@dataclass
class Bad:
    """One kind of bad input. `setup` gets a folder and gives (arguments, further environment)."""

    kind: str
    code: int
    message: str
    setup: Callable[[Path], list[str]]
    env: Callable[[Path], dict[str, str]] = field(default=lambda folder: {})
    file_bytes: int | None = None


def suite(text: str | bytes) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        path = folder / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["run", str(path), "--output", str(folder / "run")]

    return write


def command(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: [a.replace("@", str(folder)) for a in arguments]


def finished_run(folder: Path) -> Path:
    """A finished run of GOOD to spoil; made once, copied."""
    kept = Path(tempfile.gettempdir()) / f"convbench-good-run-{os.getpid()}"
    if not kept.exists():
        (folder / "good.yaml").write_text(GOOD)
        convbench(["run", str(folder / "good.yaml"), "--output", str(kept)], {}, check=True)
    return Path(shutil.copytree(kept, folder / "done"))


def spoiled(change: Callable[[Path], object], *arguments: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        run_dir = finished_run(folder)
        change(run_dir)
        return [a.replace("@", str(run_dir)) for a in arguments]

    return make


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def newer(run_dir: Path) -> None:
    path = run_dir / "records.jsonl"
    first = json.loads(path.read_text().splitlines()[0]) | {"schema": 999}
    path.write_text(json.dumps(first) + "\n")


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def lock(run_dir: Path) -> None:
    file = open(run_dir / ".lock", "w")  # noqa: SIM115 - held until this process ends
    fcntl.flock(file, fcntl.LOCK_EX)
    HELD.append(file)


HELD: list[object] = []

CASES = [
    Bad("unknown command", 2, r"No such command 'rnu'", command("rnu")),
    Bad("unknown option", 2, r"No such option", command("run", "smoke", "--bathc", "2")),
    Bad("no suite given", 2, r"give a suite", command("run")),
    Bad("unknown suite", 2, r"smok.*smoke", command("run", "smok")),
    Bad("missing suite file", 2, r"nowhere\.yaml", command("run", "@/nowhere.yaml")),
    Bad("YAML syntax error", 2, r"mine\.yaml.*line 3", suite("title: a\nproblems: [\n")),
    Bad("unknown YAML key", 2, r"mine\.yaml.*line 4.*algoritms.*algorithms", suite(GOOD.replace("algorithms", "algoritms"))),
    Bad("duplicate YAML key", 2, r"mine\.yaml.*line 7.*title", suite(GOOD + "title: again\n")),
    Bad("wrong type in YAML", 2, r"mine\.yaml.*line 6.*min_blocks", suite(GOOD.replace("min_blocks: 3", "min_blocks: many"))),
    Bad("unknown unit in YAML", 2, r"mine\.yaml.*time_budget", suite(GOOD.replace("5 s", "5 parsecs"))),
    Bad("empty product", 2, r"mine\.yaml.*pass", suite(GOOD.replace("[fwd]", "[]"))),
    Bad("empty suite file", 2, r"mine\.yaml", suite("")),
    Bad("a suite that is not UTF-8", 2, r"mine\.yaml.*UTF-8", suite(b"title: \xff\xfe\n")),
    Bad("missing shape file", 2, r"line 2.*shapes/none\.yaml", suite(GOOD.replace(f"'{PROBLEM}n\"one\"'", "shapes/none.yaml"))),
    Bad("unknown algorithm in a suite", 2, r"im2col_nump.*im2col_numpy", suite(GOOD.replace("[im2col_numpy, d", "[im2col_nump, d"))),
    Bad("unknown algorithm as option", 2, r"winograd_f3_numpy.*winograd_f\d_numpy", command("run", PROBLEM, "--algorithm", "winograd_f3_numpy")),
    Bad("a glob that matches nothing", 2, r"quantum\*", command("run", PROBLEM, "--algorithm", "quantum*")),
    Bad("a pass that there is not", 2, r"sideways", command("run", "smoke", "--pass", "sideways")),
    Bad("more threads than cores", 2, r"threads 4096.*core", command("run", PROBLEM, "--threads", "4096")),
    Bad("impossible shape", 2, r"filter.*exceeds the padded input", command("run", "mb1ic8ih4oc8kh9ph0")),
    Bad("channels that groups do not divide", 2, r"not a multiple of groups", command("run", "g3mb1ic8ih9oc9kh3ph1")),
    Bad("garbage in a descriptor", 2, r"zz", command("explain", "mb1ic8ih9oc8kh3ph1zz7")),
    Bad("a 3-D descriptor", 2, r"3-D", command("explain", "mb1ic8id9ih9oc8kd3kh3ph1")),
    Bad("report of no directory", 74, r"no run directory", command("report", "@/none")),
    Bad("report of a directory without records", 2, r"no records\.jsonl", command("report", "@")),
    Bad("a broken line amid the records", 2, r"records\.jsonl, line 1", spoiled(lambda d: (d / "records.jsonl").write_text("{}\n"), "report", "@")),
    Bad("records of a newer schema", 2, r"newer than this convbench reads", spoiled(newer, "report", "@")),
    Bad("records cut in the middle of a line", 0, r"report: .*report\.html", spoiled(lambda d: cut(d / "records.jsonl", 0.7), "report", "@")),
    Bad("an environment that is no JSON", 2, r"environment\.json cannot be read", spoiled(lambda d: cut(d / "environment.json", 0.5), "report", "@")),
    Bad("output inside a file", 74, r"cannot write to .*--output", command("run", PROBLEM, "--output", "/etc/hostname/run")),
    Bad("output that holds a run", 2, r"holds a run already.*--resume", spoiled(lambda d: None, "run", PROBLEM, "--output", "@")),
    Bad("resume of what is no run", 2, r"no run directory", command("run", "--resume", "@")),
    Bad("resume with a torn plan", 2, r"not the plan of a run", spoiled(lambda d: cut(d / "plan.json", 0.5), "run", "--resume", "@")),
    Bad("resume on another machine", 5, r"env_id elsewhere.*--force", spoiled(lambda d: edit_json(d / "environment.json", env_id="elsewhere"), "run", "--resume", "@")),
    Bad("resume while another run writes", 2, r"another run is writing", spoiled(lock, "run", "--resume", "@")),
    Bad("a plug-in that raises on import", 6, r"1 failed", command("run", PROBLEM, "--threads", "1", "--algorithm", "im2col_numpy", "--algorithm", "bad_raise_import", "--quick", "--output", "@/run"), lambda folder: site_with(folder, "raise_import")),
    Bad("disk full", 74, r"(File too large|No space left).*--resume", command("run", PROBLEM, "--threads", "1", "--algorithm", "im2col*", "--algorithm", "direct*", "--algorithm", "fft*", "--quick", "--output", "@/run"), file_bytes=8000),
]  # fmt: skip


def convbench(
    arguments: list[str], env: dict[str, str], file_bytes: int | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        [sys.executable, "-m", "convbench", *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=check,
        preexec_fn=limit,
    )


def message_of(done: subprocess.CompletedProcess[str]) -> str:
    """What a user reads: standard error, or the end of standard output where all is well."""
    return (done.stderr.strip() or done.stdout.strip().splitlines()[-1]).strip()


@pytest.mark.parametrize("bad", CASES, ids=lambda b: b.kind.replace(" ", "-"))
def test_bad_input(bad, tmp_path):
    done = convbench(bad.setup(tmp_path), bad.env(tmp_path), bad.file_bytes)
    text = done.stderr + done.stdout
    assert done.returncode == bad.code, text
    assert re.search(bad.message, text, re.DOTALL), text
    assert "Traceback" not in text
    assert "internal error" not in text


def main() -> None:
    for bad in CASES:
        with tempfile.TemporaryDirectory() as folder:
            done = convbench(bad.setup(Path(folder)), bad.env(Path(folder)), bad.file_bytes)
            print(f"{done.returncode:3}  {bad.kind}\n     {message_of(done).replace(folder, 'DIR')}")


if __name__ == "__main__":
    main()
