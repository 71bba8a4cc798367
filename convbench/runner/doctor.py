"""`convbench doctor`: the machine's facts, its measured peaks, and the noise of comparing a thing with itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench import environment, probe
from convbench.descriptor import print_descriptor
from convbench.errors import WorkerFailed
from convbench.problem import ConvShape, Problem
from convbench.runner.session import Session

NOISE_PROBLEM = Problem(ConvShape.make(n=1, c=64, h=56, w=56, k=64, r=3, s=3, padding=1))
NOISE_ALGORITHM = "im2col_numpy"
NOISE_BLOCKS = 40


def examine() -> dict[str, Any]:
    """Facts, warnings, peaks and A/A noise at one thread and at all cores. Takes some seconds."""
    facts = environment.collect()
    env_id = facts["env_id"]
    listing = probe.probe()
    facts["gpu"] = listing.get("gpu")
    counts = sorted({1, environment.allowed_cores()})
    peaks, noise = {}, []
    with Session(listing, env_id, facts["versions"]) as session:
        for threads in counts:
            peaks[str(threads)] = session.peaks(threads)
            noise.append(_noise(session, threads))
            session.forget_worker(threads)
    return {**facts, "peaks": peaks, "noise": noise}


def _noise(session: Session, threads: int) -> dict[str, Any]:
    worker = session.worker(threads)
    worker.send(
        "noise",
        problem=print_descriptor(NOISE_PROBLEM),
        implementation=NOISE_ALGORITHM,
        blocks=NOISE_BLOCKS,
        seed=0,
    )
    event = worker.next_event(120.0)
    if event["ev"] != "noise":
        raise WorkerFailed(f"the noise of {NOISE_ALGORITHM} could not be measured: {event.get('reason')}")
    a, b = (np.asarray(event["ns"][key], float) for key in ("a", "b"))
    logs = np.abs(np.log(a / b))
    return {
        "threads": threads,
        "what": NOISE_ALGORITHM,
        "samples": len(a),
        "p95_percent": float(100 * np.expm1(np.quantile(logs, 0.95))),
        "median_percent": float(100 * abs(np.median(a) / np.median(b) - 1)),
    }
