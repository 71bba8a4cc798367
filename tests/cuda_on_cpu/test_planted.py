"""Kernels with one bug each: every bug is caught, by what this table says, and without the bug nothing is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.cuda_on_cpu.emulated import EmulationError, SanitizerError, launch

PLANTED = Path(__file__).parent / "planted"
ORDERS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Job:
    """A launch and what it must compute. out: which argument is the result."""

    file: str
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    make: Callable[[], tuple[list, np.ndarray]]
    out: int
    shared_bytes: int = 0


def product_job() -> tuple[list, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 10, (48, 48)).astype(np.float32) for _ in range(2))
    return [a, b, np.full((48, 48), np.nan, np.float32), 48], a @ b


def reduction_job() -> tuple[list, np.ndarray]:
    x = np.arange(1000, dtype=np.float32)
    return [x, np.full(1, np.nan, np.float32), x.size], np.array([x.sum()])


def pipeline_job() -> tuple[list, np.ndarray]:
    x = np.arange(6 * 128, dtype=np.float32).reshape(6, 128)
    return [x, np.full_like(x, np.nan), 6], 2 * x + np.roll(x, -4, axis=1)


def fragments_job() -> tuple[list, np.ndarray]:
    a, b = np.arange(256, dtype=np.float16).reshape(16, 16), np.arange(128, dtype=np.float16).reshape(8, 16)
    return [a, b, np.full((16, 8), np.nan, np.float32)], a.astype(np.float32) @ b.astype(np.float32).T


def neighbours_job() -> tuple[list, np.ndarray]:
    x = np.arange(1000, dtype=np.float32)
    return [x, np.full(1000, np.nan, np.float32), 1000], x + np.append(x[1:], 0)


def turned_job() -> tuple[list, np.ndarray]:
    x = np.arange(64, dtype=np.float32)
    return [x, np.full(64, np.nan, np.float32)], x[::-1]


def turned_fixed_job(count: int) -> Callable[[], tuple[list, np.ndarray]]:
    def make() -> tuple[list, np.ndarray]:
        arguments, want = turned_job()
        return [*arguments, count], want

    return make


ONE = (1, 1, 1)
PRODUCT = Job("tiled_product.cu", "tiled_product", (3, 3, 1), 256, product_job, 2)
REDUCTION = Job("reduction.cu", "reduction", ONE, 128, reduction_job, 1)
PIPELINE = Job("pipeline.cu", "pipeline", ONE, 128, pipeline_job, 1, 1024)
FRAGMENTS = Job("fragments.cu", "fragments", ONE, 32, fragments_job, 2)
NEIGHBOURS = Job("bounds.cu", "neighbours", (16, 1, 1), 64, neighbours_job, 1)
TURNED = Job("bounds.cu", "turned", ONE, 64, turned_job, 1, 256)
TURNED_SHORT = Job("bounds.cu", "turned", ONE, 64, turned_job, 1, 240)
FIXED = Job("bounds.cu", "turned_fixed", ONE, 128, turned_fixed_job(64), 1)
FIXED_PAST = Job("bounds.cu", "turned_fixed", ONE, 128, turned_fixed_job(68), 1)

#: Name -> job, BUG, what each variant says: "right", "wrong", "NaN", or part of a message; "plain 1" is order 1.
BUGS: dict[str, tuple[Job, int, dict[str, str]]] = {
    "no barrier after the tiles are filled": (
        PRODUCT, 1, {"plain 0": "NaN", "plain 1": "NaN", "thread 0": "data race"}),
    "no barrier before the tiles are filled anew": (
        PRODUCT, 2, {"plain 0": "wrong", "plain 1": "wrong", "thread 0": "data race"}),
    "sums that start from nothing": (PRODUCT, 3, {"plain 0": "wrong"}),
    "no barrier in a reduction": (
        REDUCTION, 1, {"plain 0": "right", "plain 1": "NaN", "thread 0": "data race"}),
    "no barrier within a warp": (REDUCTION, 2, {"plain 0": "right", "plain 1": "NaN", "thread 0": "data race"}),
    "barrier after some threads left": (
        REDUCTION, 3, {"plain 0": "after some threads of the block exited", "address 0": "exited"}),
    "cp.async: waits for one group too few": (PIPELINE, 1, {"plain 0": "NaN", "plain 2": "NaN"}),
    "cp.async: no barrier after the wait": (PIPELINE, 2, {"plain 0": "NaN", "thread 0": "data race"}),
    "cp.async: a stage is filled while it is read": (PIPELINE, 3, {"plain 1": "wrong", "thread 0": "data race"}),
    "two registers of a fragment exchanged": (FRAGMENTS, 1, {"plain 0": "wrong"}),
    "a fragment read transposed": (FRAGMENTS, 2, {"plain 0": "wrong"}),
    "a read behind the last element": (NEIGHBOURS, 1, {"plain 0": "right", "address 0": "heap-buffer-overflow"}),
    "a result that is not written": (NEIGHBOURS, 2, {"plain 0": "NaN"}),
    "a write behind the last element": (NEIGHBOURS, 3, {"address 0": "heap-buffer-overflow"}),
    "a vector from an odd place": (NEIGHBOURS, 4, {"plain 0": "not aligned", "address 0": "misaligned address"}),
    "an index that overflows": (NEIGHBOURS, 5, {"plain 0": "right", "address 0": "signed integer overflow"}),
    "dynamic shared memory 16 bytes short": (
        TURNED_SHORT, 0, {"plain 0": "after the end of dynamic shared memory", "address 0": "heap-buffer-overflow"}),
    "static shared memory 16 bytes short": (FIXED_PAST, 0, {"address 0": "global-buffer-overflow"}),
}  # fmt: skip


def outcome(job: Job, bug: int, variant: str) -> str:
    """right, wrong, NaN, or what was said."""
    sanitizer, order = variant.split()
    arguments, want = job.make()
    try:
        launch(
            PLANTED / job.file, job.kernel, job.grid, (job.threads, 1, 1), arguments, job.shared_bytes, {"BUG": bug},
            int(order), sanitizer,
        )  # fmt: skip
    except SanitizerError as found:
        assert job.file in found.report, found.report  # it says where
        return str(found)
    except EmulationError as found:
        return str(found)
    got = arguments[job.out]
    if np.array_equal(got, want):
        return "right"
    return "NaN" if np.isnan(got).any() else "wrong"


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    job, bug, expected = BUGS[name]
    said = {variant: outcome(job, bug, variant) for variant in expected}
    record_property("emulated_bug", (name, said))
    for variant, want in expected.items():
        assert want in said[variant], (variant, said[variant])
    assert any(word != "right" for word in said.values())


@pytest.mark.parametrize("job", [PRODUCT, REDUCTION, PIPELINE, FRAGMENTS, NEIGHBOURS, TURNED, FIXED],
                         ids=lambda job: job.kernel)  # fmt: skip
def test_without_its_bug_nothing_is_found(job: Job) -> None:
    variants = [f"plain {order}" for order in ORDERS]
    variants += [f"{sanitizer} {order}" for sanitizer in ("address", "thread") for order in (0, 2)]
    said = {variant: outcome(job, 0, variant) for variant in variants}
    assert set(said.values()) == {"right"}, said
