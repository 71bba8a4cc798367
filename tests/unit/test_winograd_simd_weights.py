"""Backward weights of the simd tier's Winograd: its kernels, both orders, every unit, between forbidden pages."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from convbench.algorithms import _winograd_simd_weights as weights
from convbench.algorithms._cook_toom import as_array, cook_toom
from convbench.algorithms._simd import SimdImplementation
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import Context, Run
from convbench.simd.kernels.outer import most_rows, outer, outer_panel
from convbench.simd.kernels.tiles import collect, spread
from convbench.simd.target import host
from convbench.testing import conformance
from convbench.testing.guard_pages import PLACES, FencedContext, FencedOperands
from tests.simd_helpers import SENTINEL, Arena, address, integers, target

__all__ = ["target"]

MEMBERS = [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5)]
#: n, c, h, w, k, padding, groups; the filter is the member's own
SHAPES = {
    "plain": (1, 3, 8, 8, 4, 1, 1),
    "odd everything": (3, 5, 11, 13, 7, 1, 1),
    "one output": (2, 3, 5, 5, 4, 0, 1),
    "one pixel, padded": (1, 2, 1, 1, 3, 2, 1),
    "seventeen": (1, 17, 10, 19, 17, 2, 1),
    "many channels": (1, 130, 6, 9, 75, 1, 1),
    "many tiles": (1, 20, 61, 54, 19, 1, 1),
    "asymmetric padding": (1, 4, 9, 10, 3, ((0, 2), (3, 1)), 1),
    "padding beyond the filter": (1, 3, 6, 5, 2, ((7, 6), (8, 5)), 1),
    "two groups": (2, 34, 9, 9, 36, 1, 2),
    "depthwise": (2, 6, 9, 12, 6, 1, 6),
}


def problem(name: str, taps: int, layout: str) -> Problem:
    n, c, h, w, k, padding, groups = SHAPES[name]
    return Problem(
        ConvShape.make(n, c, h, w, k, taps, taps, 1, padding, 1, groups), Pass.BACKWARD_WEIGHTS, "float32", layout
    )


def tap_by_tap(p: Problem, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dw in float64, in the problem's layout: one product of matrices for each group and tap."""
    s = p.shape
    if p.layout == "nchw":
        x, dy = x.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    top, bottom, left, right = s.padding
    x = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    dw = np.zeros((s.k, s.r, s.s, s.cg))
    for g in range(s.groups):
        of_dy = dy[..., g * s.kg : (g + 1) * s.kg].astype(np.float64).reshape(-1, s.kg)
        of_x = x[..., g * s.cg : (g + 1) * s.cg]
        for r in range(s.r):
            for q in range(s.s):
                window = of_x[:, r : r + s.p, q : q + s.q].reshape(-1, s.cg)
                dw[g * s.kg : (g + 1) * s.kg, r, q] = of_dy.T @ window
    return dw if p.layout == "nhwc" else dw.transpose(0, 3, 1, 2)


def check(p: Problem, tile: int, unit, chosen=None, threads: int = 1, place: str = "flush") -> None:
    rng = np.random.default_rng(7)
    taps = p.shape.r
    context = FencedContext(threads, place)
    run = weights.prepare_backward_weights(p, context, tile, taps, unit, chosen)
    operands = FencedOperands((p.a_shape, p.b_shape, p.out_shape), np.float32, place)
    for shift in (0, 1):  # other values at other addresses
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in (p.a_shape, p.b_shape))
        x, dy, dw = operands.place(a, b, shift)
        dw.fill(np.nan)
        run(x, dy, dw)
        want = tap_by_tap(p, a, b)
        bound = tap_by_tap(p, abs(a), abs(b)).max()
        assert np.abs(dw - want).max() <= 3e-5 * bound
        assert operands.disturbed() is None and context.disturbed() is None
        np.testing.assert_array_equal(x, a)
        np.testing.assert_array_equal(dy, b)


def both_orders(p: Problem, tile: int, lanes: int) -> list[weights.Plan]:
    """The chosen plan, one that holds all tiles, and some of small pairs and chunks."""
    best = weights.plan(p, tile, p.shape.r, lanes)
    wide = -(-p.shape.cg // lanes) * lanes
    return [
        best,
        replace(best, fused=True, swapped=False, kb=lanes, cb=wide, tiles=best.total),
        replace(best, fused=False, swapped=False, kb=lanes, cb=2 * lanes, tiles=min(best.total, 5)),
        replace(best, fused=False, swapped=False, kb=2 * lanes, cb=5 * lanes, tiles=min(best.total, 9)),
        replace(best, fused=False, swapped=True, kb=lanes, cb=3 * lanes, tiles=min(best.total, 6)),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_every_member_on_every_shape(member: tuple[int, int], name: str, layout: str) -> None:
    p = problem(name, member[1], layout)
    for chosen in both_orders(p, member[0], host().lanes):
        check(p, member[0], host(), chosen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["odd everything", "seventeen", "many channels", "two groups"])
def test_every_unit(target, name: str, layout: str) -> None:
    p = problem(name, 3, layout)
    for chosen in both_orders(p, 4, target.lanes):
        check(p, 4, target, chosen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", PLACES)
def test_other_places_and_two_threads(place: str, layout: str) -> None:
    for name in ("many channels", "two groups", "many tiles"):
        p = problem(name, 3, layout)
        for chosen in [None, *both_orders(p, 4, host().lanes)]:
            check(p, 4, host(), chosen, 2, place)


class F4(SimdImplementation):
    """Backward weights alone, as the conformance suite takes a row."""

    name = "winograd_f4_of_this_test"
    passes = (Pass.BACKWARD_WEIGHTS,)
    exact_on_integers = False
    error_growth = 14.0
    error_length = 1024

    def limits(self, problem: Problem) -> str | None:
        s = problem.shape
        fits = (s.r, s.s, s.stride, s.dilation) == (3, 3, (1, 1), (1, 1))
        return None if fits else "winograd: 3x3 filters of stride 1"

    def error_footprint(self, problem: Problem) -> tuple[int, int]:
        return (3, 3)

    def workspace_estimate(self, problem: Problem) -> int:
        return weights.backward_weights_bytes(problem, 4, 3)

    def prepare(self, problem: Problem, context: Context, weights_: object = None) -> Run:
        return weights.prepare_backward_weights(problem, context, 4, 3)


def test_conformance_of_one_row() -> None:
    outcomes = [(case, conformance.check(F4(), case.problem, threads=2)) for case in conformance.cases(F4())]
    assert sum(outcome.status == "ok" for _, outcome in outcomes) >= 10
    assert [(str(case), outcome.reason) for case, outcome in outcomes if outcome.status == "wrong"] == []


# ---- kernels


def test_outer_for_every_row_count(target) -> None:
    rng = np.random.default_rng(3)
    lanes, planes = target.lanes, 3
    for vectors in (1, 2, 3, 4):
        kernel, most = outer(target, vectors), most_rows(target, vectors)
        assert 1 <= most <= lanes
        for rows in range(1, most + 1):
            for depth in (1, 2, 5):
                a, b = integers(rng, planes, depth, lanes), integers(rng, planes, vectors, depth, lanes)
                a_at, b_at = Arena(a.size).holding(a), Arena(b.size).holding(b)
                want = np.einsum("ftm,fvtn->fmvn", a[:, :, :rows], b)
                for accumulate in (0, 1):
                    c = Arena(planes * most * vectors * lanes).cut(planes, most, vectors, lanes)
                    c.fill(SENTINEL)
                    kernel(
                        rows, address(a_at), depth * lanes, address(b_at), vectors * depth * lanes, depth * lanes,
                        planes, depth, address(c), vectors * lanes, most * vectors * lanes, accumulate,
                    )  # fmt: skip
                    np.testing.assert_array_equal(c[:, :rows], want + accumulate * SENTINEL)
                    assert (c[:, rows:] == SENTINEL).all()


def test_outer_panel_for_every_row_count(target) -> None:
    rng = np.random.default_rng(4)
    lanes, depth = target.lanes, 3
    for vectors in (1, 2, 3, 4):
        for rows in range(1, 2 * lanes + 2):
            of_a = -(-rows // lanes)
            a, b = integers(rng, of_a, depth, lanes), integers(rng, vectors, depth, lanes)
            a_at, b_at = Arena(a.size).holding(a), Arena(b.size).holding(b)
            want = np.einsum("gtm,vtn->gmvn", a, b).reshape(of_a * lanes, vectors * lanes)[:rows]
            for accumulate in (0, 1):
                c = Arena((rows + 1) * vectors * lanes).cut(rows + 1, vectors * lanes)
                c.fill(SENTINEL)
                outer_panel(target, vectors)(
                    rows, address(a_at), depth * lanes, address(b_at), depth * lanes, depth,
                    address(c), vectors * lanes, accumulate,
                )  # fmt: skip
                np.testing.assert_array_equal(c[:rows], want + accumulate * SENTINEL)
                assert (c[rows:] == SENTINEL).all()


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_spread_and_collect(target, member: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    lanes, transform = target.lanes, cook_toom(member[1], member[0])
    for exact, name in ((transform.bt, "x"), (transform.g, "dy")):
        matrix = tuple(tuple(float(v) for v in row) for row in exact)
        m = as_array(exact, np.float64)
        tiles, step, size = 3, 2, len(matrix[0])
        for channels in (1, lanes - 1, lanes, 2 * lanes + 3):
            vectors = -(-channels // lanes)
            image = integers(rng, size, (tiles - 1) * step + size, channels)
            x = Arena(image.size).holding(image)
            out = Arena(vectors * len(m) ** 2 * tiles * lanes).cut(vectors, len(m) ** 2, tiles, lanes)
            out.fill(SENTINEL)
            spread(target, matrix, name)(
                tiles, channels, address(x), step * channels, image.shape[1] * channels, channels,
                address(out), tiles * lanes, len(m) ** 2 * tiles * lanes,
            )  # fmt: skip
            got = out.transpose(2, 1, 0, 3).reshape(tiles, len(m), len(m), vectors * lanes)
            for t in range(tiles):
                tile = image[:, t * step : t * step + size].astype(np.float64)
                want = np.einsum("ij,jkc,lk->ilc", m, tile, m)
                np.testing.assert_allclose(got[t, ..., :channels], want, rtol=1e-5, atol=1e-3)
                assert (got[t, ..., channels:] == 0).all()
    matrix = tuple(tuple(float(v) for v in row) for row in transform.at)
    m, rows = as_array(transform.at, np.float64), 3
    for columns in (1, lanes - 1, 2 * lanes + 1):
        width = -(-columns // lanes) * lanes
        sums = Arena(m.shape[1] ** 2 * rows * width).holding(integers(rng, m.shape[1] ** 2, rows, width))
        out = Arena(rows * len(m) ** 2 * columns).cut(rows, len(m) ** 2, columns)
        out.fill(np.nan)
        collect(target, matrix, "dw")(
            rows, columns, address(sums), width, rows * width, address(out), len(m) ** 2 * columns, columns
        )
        planes = sums.reshape(m.shape[1], m.shape[1], rows, width)[..., :columns].astype(np.float64)
        want = np.einsum("ij,jkrc,lk->rilc", m, planes, m).reshape(out.shape)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-3 * abs(want).max())


# ---- plans


def vgg(c: int, size: int, k: int) -> Problem:
    return Problem(ConvShape.make(1, c, size, size, k, 3, 3, 1, 1), Pass.BACKWARD_WEIGHTS, "float32", "nhwc")


def test_few_tiles_are_held_and_many_are_cut() -> None:
    assert weights.plan(vgg(512, 14, 512), 4, 3, 16).fused
    assert not weights.plan(vgg(64, 224, 64), 4, 3, 16).fused


def test_few_input_channels_are_rows() -> None:
    assert weights.plan(vgg(3, 224, 64), 4, 3, 16).swapped
    assert not weights.plan(vgg(64, 224, 3), 4, 3, 16).swapped


def test_only_kernels_that_are_called_are_made() -> None:
    chosen = weights.plan(vgg(64, 224, 64), 4, 3, 16)
    assert chosen.widths == {4}
    assert replace(chosen, cb=48).widths == {3, 1}
    assert replace(weights.plan(vgg(80, 224, 64), 4, 3, 16), cb=80).widths == {2, 3}


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_pairs_stay_in_the_cache(member: tuple[int, int], lanes: int) -> None:
    for c, size, k in ((3, 224, 64), (64, 224, 64), (256, 56, 256), (1000, 56, 17), (1, 300, 1)):
        chosen = weights.plan(vgg(c, size, k), 4, 3, lanes)
        if not chosen.fused:
            assert 4 * sum(chosen.own) <= weights.CACHE_BYTES + (64 << 10)
        p = replace(vgg(c, size, k), shape=ConvShape.make(1, c, size, size, k, member[1], member[1]))
        chosen = weights.plan(p, *member, lanes)
        assert 1 <= chosen.tiles <= chosen.total


def test_work_is_divided_among_threads() -> None:
    for p in (vgg(64, 224, 64), vgg(128, 112, 128), vgg(64, 56, 64)):
        for threads in (2, 4):
            chosen = weights.plan(p, 4, 3, 16, threads)
            pairs_k, pairs_c = chosen.pairs
            assert pairs_k * pairs_c >= threads


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_workspace_is_as_estimated(layout: str, threads: int) -> None:
    for c, size, k in ((64, 56, 64), (256, 14, 256), (3, 100, 5), (128, 30, 300), (1, 5, 1)):
        p = replace(vgg(c, size, k), layout=layout)
        context = FencedContext(threads)
        run = weights.prepare_backward_weights(p, context, 4, 3)
        x, dy, dw = (np.ones(shape, np.float32) for shape in (p.a_shape, p.b_shape, p.out_shape))
        run(x, dy, dw)
        tracemalloc.start()
        run(x, dy, dw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        measured, estimate = context.workspace_bytes + peak, weights.backward_weights_bytes(p, 4, 3)
        assert measured <= 1.25 * estimate + (1 << 20)
        assert estimate <= 4 * measured + (1 << 20)


def test_products_are_counted_once_and_transforms_as_often_as_they_run() -> None:
    p = vgg(512, 14, 512)
    flops = weights.backward_weights_flops(p, 4, 3)
    assert flops["multiply"] == 2 * 36 * 16 * 512 * 512
    assert set(flops) == {"input_transform", "multiply", "output_transform"}
    assert sum(flops.values()) < p.direct_flops
    cut = weights.plan(vgg(64, 224, 64), 4, 3, 16)
    again = replace(cut, kb=16, cb=16)
    assert again.flops["input_transform"] > 1.5 * cut.flops["input_transform"]
    assert again.flops["multiply"] == cut.flops["multiply"]
