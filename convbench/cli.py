"""The command line: a thin shell over the library. It alone prints and chooses exit codes (DESIGN, section 6)."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convbench import errors

if TYPE_CHECKING:
    from convbench.runner import RunPlan
    from convbench.suite import Suite

app = typer.Typer(
    name="convbench",
    help="Which convolution algorithm is fastest for this layer, on this machine - verified, with its error beside it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SuiteArgument = Annotated[
    str | None,
    typer.Argument(metavar="SUITE|DESCRIPTOR", help="A suite file, a built-in suite's name, or a benchdnn descriptor."),
]
PassOption = Annotated[list[str] | None, typer.Option("--pass", help="fwd, bwd_data or bwd_weights; repeatable.")]
DtypeOption = Annotated[
    list[str] | None, typer.Option("--dtype", help="float32, float64, float16, bfloat16, int8; repeatable.")
]
LayoutOption = Annotated[list[str] | None, typer.Option("--layout", help="nchw or nhwc; repeatable.")]
WeightsOption = Annotated[list[str] | None, typer.Option("--weights", help="raw or packed; repeatable.")]
ThreadsOption = Annotated[list[str] | None, typer.Option("--threads", help="A number of cores, or all; repeatable.")]
BatchOption = Annotated[list[int] | None, typer.Option("--batch", help="Batch size; repeatable.")]
SemanticsOption = Annotated[
    list[str] | None,
    typer.Option("--semantics", help="linear, binary, xnor, int8 ... (what is computed); repeatable."),
]
InputsOption = Annotated[
    list[str] | None,
    typer.Option("--inputs", help="What operands hold: normal, uniform, relu, integers, zeros; repeatable."),
]
ModeOption = Annotated[list[str] | None, typer.Option("--mode", help="hot or cold caches; repeatable.")]
AlgorithmOption = Annotated[list[str] | None, typer.Option("--algorithm", help="Name or glob; repeatable.")]
MatchOption = Annotated[str | None, typer.Option("--match", help="Only layers whose name contains this (or glob).")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of inputs, order and resampling.")]
BudgetOption = Annotated[str | None, typer.Option("--budget", help="Time for the whole run, such as '12 min'.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu (the default) or cuda, an NVIDIA GPU.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A fifth of the time, fewer blocks.")]


def main(argv: list[str] | None = None) -> int:
    """Entry point: maps every way to end to its exit code. Returns the code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        app(args=[_shielded(a) for a in arguments])
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else errors.EXIT_OK
    except errors.ConvbenchError as error:
        typer.echo(f"convbench: {error}", err=True)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"convbench: {where}{error.strerror or error}", err=True)
        return errors.EXIT_IO
    except Exception as error:  # noqa: BLE001 - the last net: say what happened and where to read more
        traceback.print_exc()
        typer.echo(
            f"convbench: internal error ({type(error).__name__}: {error}); this is a defect of convbench, please "
            "report it with the lines above",
            err=True,
        )
        return errors.EXIT_INTERNAL
    return errors.EXIT_OK


def _shielded(argument: str) -> str:
    """A descriptor may begin with its own `--dir=...`: a space before it keeps it from being read as an option.

    `--semantics=` is an option of ours too: part of a descriptor where more follows.
    """
    return f" {argument}" if re.match(r"--(dir|dt|stag|dtag)=|--semantics=\S+\s", argument) else argument


def command(name: str) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Registers a function that returns its exit code; Ctrl-C becomes errors.Interrupted."""

    def decorate(function: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(function)
        def ending(*arguments: Any, **options: Any) -> None:
            try:
                code = function(*arguments, **options)
                sys.stdout.flush()
            except KeyboardInterrupt:
                raise errors.Interrupted("interrupted; everything measured so far is kept") from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader left; nothing more to say to it
                code = errors.EXIT_IO
            raise typer.Exit(code)

        return app.command(name)(ending)

    return decorate


def _version(value: bool) -> None:
    if value:
        from convbench import __version__

        typer.echo(f"convbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@command("run")
def run(
    suite: SuiteArgument = None,
    pass_: PassOption = None,
    dtype: DtypeOption = None,
    layout: LayoutOption = None,
    weights: WeightsOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    mode: ModeOption = None,
    semantics: SemanticsOption = None,
    inputs: InputsOption = None,
    algorithm: AlgorithmOption = None,
    match: MatchOption = None,
    seed: SeedOption = None,
    quick: QuickOption = False,
    budget: BudgetOption = None,
    device: DeviceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cases and leave.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="The run directory itself.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this directory.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Resume even if machine or sources changed.")] = False,
) -> int:
    """Verify and time the cases of a suite (or of one descriptor), then write the report."""
    from convbench import probe, runner
    from convbench.environment import allowed_cores
    from convbench.suite import expansion_notes

    overrides = _overrides(
        pass_=pass_, dtype=dtype, layout=layout, weights=weights, threads=threads, batch=batch, mode=mode,
        semantics=semantics, inputs=inputs, algorithm=algorithm, match=match, seed=seed, quick=quick, budget=budget,
        device=device,
    )  # fmt: skip
    if resume is not None:
        if suite is not None or output is not None or overrides or dry_run:
            raise errors.UsageError(
                "--resume takes everything from the run directory: leave SUITE and all other options but --force away"
            )
        if not (resume / "plan.json").is_file():
            raise errors.UsageError(f"{resume} is no run directory (it holds no plan.json): nothing to resume there")
        plan = runner.RunPlan.from_file(resume / "plan.json")
        run_dir, listing = resume, probe.probe()
    else:
        if force:
            raise errors.UsageError("--force goes with --resume")
        loaded = _load(suite, overrides)
        listing = probe.probe()
        plan = runner.make_plan_for(loaded, listing)
        for note in expansion_notes(loaded, cores=allowed_cores()):
            typer.echo(f"note: {note}", err=True)
        if dry_run:
            return _print_cases(plan)
        _need_something_available(plan, listing)
        run_dir = runner.new_run_dir(plan, output)
    return _execute(plan, run_dir, listing, resume is not None, force)


def _execute(plan: RunPlan, run_dir: Path, listing: dict[str, Any], resume: bool, force: bool) -> int:
    from convbench import runner
    from convbench.progress import ProgressBar

    with ProgressBar() as bar:
        try:
            outcome = runner.execute(plan, run_dir, listing, bar, resume=resume, force=force)
        except KeyboardInterrupt:
            bar.stop()
            _report(run_dir)
            typer.echo(f"interrupted: go on with  convbench run --resume {run_dir}", err=True)
            raise
    _report(run_dir, summary=True)
    counts = ", ".join(f"{n} {status}" for status, n in sorted(outcome.counts.items()))
    typer.echo(f"{sum(outcome.counts.values())} cases: {counts}")
    return _exit_code(outcome.counts)


def _exit_code(counts: Mapping[str, int]) -> int:
    """What a run or a verification ends with, from its number of cases by status: the worst of them decides."""
    if counts.get("wrong"):
        return errors.EXIT_WRONG
    if counts.get("failed") or counts.get("timed_out"):
        return errors.EXIT_FAILED
    return errors.EXIT_OK if counts.get("ok") else errors.EXIT_NOTHING


def _report(run_dir: Path, summary: bool = False) -> None:
    """Builds the report where there is anything to report."""
    from convbench import listing
    from convbench.report import build_report

    if not (run_dir / "records.jsonl").is_file() or (run_dir / "records.jsonl").stat().st_size == 0:
        typer.echo(f"no problem was finished; nothing to report in {run_dir}", err=True)
        return
    paths = build_report(run_dir)
    if summary:
        typer.echo(listing.summary_text(json.loads(paths.summary.read_text())))
    typer.echo(f"report: {paths.html}")


@command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Also what is unavailable here, and broken plug-ins.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> int:
    """List the registered algorithms."""
    from convbench import listing, probe

    found = probe.probe()
    typer.echo(json.dumps(found, indent=1) if as_json else listing.algorithms_text(found, all_))
    return errors.EXIT_OK


@command("explain")
def explain(
    descriptor: Annotated[
        str,
        typer.Argument(
            help="A benchdnn descriptor, its --dir=, --dt=, --stag= and --semantics= in the same quotes, or a line of "
            "ONEDNN_VERBOSE output."
        ),
    ],
    weights: Annotated[str, typer.Option("--weights", help="raw or packed.")] = "raw",
    threads: Annotated[str, typer.Option("--threads", help="Predict times for this many threads, or all.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> int:
    """What auto takes and why; why each implementation can or cannot, predicted times, operations and workspace."""
    from convbench import listing, probe
    from convbench.descriptor import parse_descriptor, print_descriptor

    entry = parse_descriptor(descriptor)
    if weights not in ("raw", "packed"):
        raise errors.UsageError(f"--weights must be raw or packed, not {weights!r}")
    if threads != "all" and not (threads.isascii() and threads.isdigit() and int(threads) > 0):
        raise errors.UsageError(f"--threads must be a number >= 1 or all, not {threads!r}")
    count = None if threads == "all" else int(threads)
    found = probe.probe(problems=[print_descriptor(entry.problem)], threads=count)
    typer.echo(json.dumps(found, indent=1) if as_json else listing.explain_text(entry, found, weights))
    return errors.EXIT_OK


@command("verify")
def verify(
    suite: SuiteArgument = None,
    pass_: PassOption = None,
    dtype: DtypeOption = None,
    layout: LayoutOption = None,
    weights: WeightsOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    semantics: SemanticsOption = None,
    inputs: InputsOption = None,
    algorithm: AlgorithmOption = None,
    match: MatchOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> int:
    """Verify the cases of a suite against the float64 oracle; time nothing."""
    from convbench import probe, runner
    from convbench.progress import ProgressBar
    from convbench.runner.problem_run import ProblemRun
    from convbench.runner.session import Session

    overrides = _overrides(
        pass_=pass_, dtype=dtype, layout=layout, weights=weights, threads=threads, batch=batch, semantics=semantics,
        inputs=inputs, algorithm=algorithm, match=match, seed=seed, device=device,
    )  # fmt: skip
    listing = probe.probe()
    plan = runner.make_plan_for(_load(suite, overrides), listing)
    _need_something_available(plan, listing)
    counts: dict[str, int] = {}
    with ProgressBar() as bar, Session(listing, "", {}, device=plan.device) as session:
        bar.started(len(plan.problems), sum(len(plan.cases(p)) for p in plan.problems))
        threads_before = plan.problems[0].threads
        for problem in plan.problems:
            if problem.threads != threads_before:
                session.forget_worker(threads_before)
            threads_before = problem.threads
            tell = lambda name, doing, p=problem: bar.now(p, name, doing)  # noqa: E731
            for result in ProblemRun(plan, problem, session, plan.policy.case_timeout_s, tell).verify_only():
                status = result.status or "ok"
                counts[status] = counts.get(status, 0) + 1
                if status in ("wrong", "failed", "timed_out"):
                    typer.echo(f"{status}: {runner.repro_line(result.case, plan.device)}\n  {result.reason}")
            bar.problem_done(problem, [], 0.0)
    typer.echo(", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    return _exit_code(counts)


@command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
) -> int:
    """Rebuild tables, figures and report.html from the records of one or more runs."""
    from convbench.report import build_report

    for run_dir in runs:
        typer.echo(f"report: {build_report(run_dir).html}")
    return errors.EXIT_OK


@command("doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure what auto chooses by instead (up to 8 minutes).")
    ] = False,
) -> int:
    """Look at the machine: facts, warnings, measured peaks, and the noise of an A/A comparison."""
    from convbench import listing
    from convbench.runner.doctor import examine

    if calibrate:
        return _calibrate(as_json)
    found = examine()
    typer.echo(json.dumps(found, indent=1) if as_json else listing.doctor_text(found))
    return errors.EXIT_OK


def _calibrate(as_json: bool) -> int:
    from convbench import listing
    from convbench.runner.calibrate import calibrate

    try:
        learnt = calibrate(lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        typer.echo("interrupted: the next --calibrate goes on from here; auto chooses as it did before", err=True)
        raise
    typer.echo(learnt.model.to_json() if as_json else listing.calibration_text(learnt))
    return errors.EXIT_OK


def _overrides(**given: Any) -> dict[str, Any]:
    """The options that were given, by their names on the command line."""
    return {name.rstrip("_"): value for name, value in given.items() if value not in (None, False, [])}


def _load(text: str | None, overrides: dict[str, Any]) -> Suite:
    """A suite by path, by name, or made of one descriptor."""
    from convbench.suite import open_suite

    if text is None:
        raise errors.UsageError("give a suite (a path or a name such as vgg) or a descriptor; see convbench run --help")
    return open_suite(text, overrides)


def _need_something_available(plan: RunPlan, listing: dict[str, Any]) -> None:
    """Raises Unavailable, before anything is written, where no row of the plan can run here."""
    why = (listing.get("gpu") or {}).get("why")
    if plan.device == "cuda" and why:
        raise errors.Unavailable(
            f"{plan.suite['name']} is for an NVIDIA GPU, and nothing of it is available here: {why}. Run it on a "
            "machine with a GPU, its driver and convbench[cuda]; `convbench list --all` names what each algorithm lacks"
        )
    described = {d["name"]: d for d in listing["implementations"]}
    missing = {n: described[n]["unavailable"] for n in plan.algorithms if n in described}
    if missing and all(missing.values()):
        raise errors.Unavailable(
            "none of the suite's algorithms is available on this machine:\n  " + "\n  ".join(sorted(missing.values()))
        )


def _print_cases(plan: RunPlan) -> int:
    from convbench.runner import repro_line

    cases = [c for p in plan.problems for c in plan.cases(p)]
    for case in cases:
        typer.echo(repro_line(case, plan.device) + (f"  # {case.label}" if case.label else ""))
    typer.echo(f"{len(cases)} cases: {len(plan.problems)} problems, {len(plan.algorithms)} algorithms", err=True)
    return errors.EXIT_OK
