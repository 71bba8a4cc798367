"""Correct convolutions with one change each: proof that verification is alive.

Each mutant is an ordinary Implementation (never registered) around one readable convolution, tap by tap over a padded
copy, and each is right on at least one shape, `hides_on`: a suite of that shape alone would let it through. They are
rejected on the path that timing uses: limits(), then Verifier.verify.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import ALL_PASSES, Context, Implementation, Run
from convbench.testing.tap_by_tap import TapByTap, logical

_FORWARD, _DATA, _WEIGHTS = ALL_PASSES
_FLOATS, _EVERY_TYPE = ("float32", "float64"), ("float32", "float64", "int8")
#: Right for every mutant: one tap, two pixels, two channels.
TINY = ConvShape.make(1, 2, 2, 2, 3, 1, 1)
#: Wrong for every mutant but those that say otherwise: more than 16 channels, three images, nothing symmetric.
SMALL = ConvShape.make(3, 18, 9, 8, 20, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)))
#: The same at the suites' largest accumulation lengths: about 56,000 products forward, 400,000 (224 x 224) for weights.
LONG = {
    _FORWARD: ConvShape.make(2, 512, 15, 14, 18, 11, 10, stride=(2, 1), padding=((1, 0), (0, 2))),
    _DATA: ConvShape.make(2, 18, 13, 12, 512, 11, 10, stride=(2, 1), padding=((10, 5), (9, 4))),
    _WEIGHTS: ConvShape.make(8, 18, 448, 224, 3, 2, 2, stride=(2, 1), padding=((1, 0), (0, 1))),
}
#: Results that see nothing but padding (weights: taps that do).
PADDING_ONLY = ConvShape.make(2, 3, 5, 5, 4, 3, 3, stride=4, padding=4)
TAPS_OUTSIDE = ConvShape.make(2, 3, 1, 3, 4, 3, 3, padding=1)
#: Many channels: small errors drown in a sum over them.
DEEP = ConvShape.make(1, 64, 12, 12, 64, 3, 3, padding=1)
#: Sums of int8 that float32 cannot hold.
BEYOND_24_BITS = ConvShape.make(1, 512, 6, 6, 18, 3, 3, padding=1)
#: More results than are sampled.
WIDE = ConvShape.make(1, 4, 100, 90, 18, 3, 3, padding=1)


Break = Callable[[Problem, TapByTap, Context], Run]


@dataclass(frozen=True)
class Mutant:
    """One change: its name, what is wrong, in which passes and types it makes sense, and a shape on which it is right.

    Of int8, operands are exact in 16 bits and have no NaN, so what rounds them there or writes one is no change.
    """

    name: str
    change: str
    make: Break
    passes: tuple[Pass, ...] = ALL_PASSES
    hides_on: ConvShape = TINY
    wrong_on: ConvShape | None = None  # where SMALL does not show it
    dtypes: tuple[str, ...] = _EVERY_TYPE

    def implementation(self) -> Implementation:
        """A fresh, unregistered implementation with this change."""
        members = {"name": f"mutant_{self.name}_numpy", "passes": self.passes, "dtypes": self.dtypes}
        return type("Mutated", (MutantBase,), members | {"make": staticmethod(self.make)})()

    def small(self, pass_: Pass) -> ConvShape:
        """The small shape on which this mutant is wrong."""
        if self.name == "skips_padding_only" and pass_ is _WEIGHTS:
            return TAPS_OUTSIDE
        return self.wrong_on or SMALL

    def long(self, pass_: Pass) -> ConvShape:
        """The shape of the largest accumulation length; the small one again where a long one cannot be wrong."""
        return self.small(pass_) if self.wrong_on else LONG[pass_]


class MutantBase(Implementation):
    """What every mutant shares: it promises every shape and has nothing to pack."""

    make: ClassVar[Break]

    def workspace_estimate(self, problem: Problem) -> int:
        """Padded copy, accumulators and the window of one tap, and a little."""
        s = problem.shape
        height = s.h + s.padding[0] + s.padding[1] + s.extent[0] + s.stride[0]
        width = s.w + s.padding[2] + s.padding[3] + s.extent[1] + s.stride[1]
        return problem.out_item_bytes * s.n * (s.c * height * width + 2 * (s.c + s.k) * s.p * s.q)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """run(a, b, out), or run(a, out) over a copy of the weights."""
        run = type(self).make(problem, TapByTap(problem, context), context)
        if weights is None:
            return run
        kept = type(self).keep(problem, weights)
        return lambda a, out: run(a, kept, out)

    @classmethod
    def keep(cls, problem: Problem, weights: np.ndarray) -> np.ndarray:
        """The weights of a packed plan."""
        return weights.copy()


def _large(problem: Problem) -> bool:
    """Past the first tile: such mutants are right on images of at most 2 x 2."""
    return max(problem.shape.h, problem.shape.w) > 2


# ---- the changes


def _nothing(problem: Problem, correct: TapByTap, context: Context) -> Run:
    return correct


def _flipped_filter(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if problem.pass_ is not _WEIGHTS:
            axes = (2, 3) if problem.layout == "nchw" else (1, 2)
            correct(a, np.flip(b, axes), out)
            return
        correct(a, b, out)
        weights = logical(out, problem)
        weights[...] = weights[:, :, ::-1, ::-1].copy()

    return run


def _nan_corner(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(a, b, out)
        if _large(problem):
            logical(out, problem)[-1, -1, -1, -1] = np.nan

    return run


def _unwritten_row(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        result = np.empty_like(out)
        correct(a, b, result)
        rows = logical(out, problem).shape[2] - (1 if _large(problem) else 0)
        logical(out, problem)[:, :, :rows] = logical(result, problem)[:, :, :rows]

    return run


def _accumulates_into_out(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        result = np.empty_like(out)
        correct(a, b, result)
        if problem.shape.c > 16:  # "the second block of channels adds to the first"
            out += result
        else:
            out[...] = result

    return run


def _eats_its_input(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(a, b, out)
        if _large(problem):
            a[...] = 0

    return run


def _swapped_r_s(problem: Problem, correct: TapByTap, context: Context) -> Run:
    s = problem.shape

    def swap(weights: np.ndarray) -> np.ndarray:
        return weights.reshape(s.k, s.cg, s.s, s.r).transpose(0, 1, 3, 2)  # (K, C/G, R, S), read column by column

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if problem.pass_ is _WEIGHTS:
            correct(a, b, out)
            logical(out, problem)[...] = swap(logical(out, problem).copy())
            return
        swapped = np.empty_like(b)
        logical(swapped, problem)[...] = swap(logical(b, problem))
        correct(a, swapped, out)

    return run


def _half_precision(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def halved(array: np.ndarray) -> np.ndarray:
        if problem.is_integer:
            return array & np.int8(-16)  # the upper four bits
        half = np.float32 if problem.dtype == "float64" else np.float16
        return array.astype(half).astype(array.dtype)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if problem.accumulation_length > 8:
            a, b = halved(a), halved(b)
        correct(a, b, out)

    return run


def _short_mantissa(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def shorten(array: np.ndarray) -> np.ndarray:
        bits = array.astype(np.float32).view(np.uint32) + np.uint32(0x80) & np.uint32(0xFFFFFF00)
        return bits.view(np.float32).astype(array.dtype)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if problem.accumulation_length > 8:
            a, b = shorten(a), shorten(b)
        correct(a, b, out)

    return run


def _drops_channels(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        kept = a.copy()
        logical(kept, problem)[:, 16:] = 0
        correct(kept, b, out)

    return run


def _leaks_a_bias(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(a, b, out)
        if _large(problem):
            out += 1 if problem.is_integer else 0.5

    return run


def _swapped_strides(problem: Problem, correct: TapByTap, context: Context) -> Run:
    return TapByTap(problem, context, stride=problem.shape.stride[::-1])


def _wrong_padding_side(problem: Problem, correct: TapByTap, context: Context) -> Run:
    top, bottom, left, right = problem.shape.padding
    return TapByTap(problem, context, padding=(bottom, top, right, left))


def _remembers_first_inputs(problem: Problem, correct: TapByTap, context: Context) -> Run:
    remembered: list[np.ndarray] = []

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if not remembered:
            remembered.append(a.copy())
        correct(remembered[0] if _large(problem) else a, b, out)

    return run


def _writes_past_out(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(a, b, out)
        if _large(problem):  # one vector too far
            np.lib.stride_tricks.as_strided(out.reshape(-1), (out.size + 1,), (out.itemsize,))[out.size] = 0

    return run


def _last_image_only(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        last = a.copy()
        last[:-1] = 0
        correct(last, b, out)

    return run


def _neighbouring_image(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(np.roll(a, 1, axis=0), b, out)

    return run


def _trusts_workspace(problem: Problem, correct: TapByTap, context: Context) -> Run:
    return TapByTap(problem, context, clear=False) if _large(problem) else correct


def _returns_early(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def finish(out: np.ndarray, rest: np.ndarray) -> None:
        time.sleep(0.015)
        out[-1:] = rest

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if not _large(problem):
            correct(a, b, out)
            return
        result = np.empty_like(out)
        correct(a, b, result)
        out[:-1] = result[:-1]
        threading.Thread(target=finish, args=(out, result[-1:]), daemon=True).start()

    return run


def _hidden_temporary(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        scratch = np.ones((64 << 20) if _large(problem) else 1, np.uint8)
        correct(a, b, out)
        del scratch

    return run


def _skips_padding_only(problem: Problem, correct: TapByTap, context: Context) -> Run:
    reached = np.empty(problem.out_shape, problem.out_dtype)
    correct(np.ones(problem.a_shape, problem.dtype), np.ones(problem.b_shape, problem.dtype), reached)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        result = np.empty_like(out)
        correct(a, b, result)
        np.copyto(out, result, where=reached != 0)

    return run


def _damages_cached_filter(problem: Problem, correct: TapByTap, context: Context) -> Run:
    seen: list[np.ndarray] = []
    cached: list[np.ndarray] = []

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        if not seen or not np.array_equal(seen[0], b):
            seen[:], cached[:] = [b.copy()], [b.copy()]
        correct(a, cached[0], out)
        if _large(problem):
            cached[0] *= 2  # "transformed in place", once more at each call

    return run


def _saturates(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(a, b, out)
        if _large(problem):
            np.clip(out, -2048, 2048, out=out)

    return run


def _sums_in(dtype: type[np.generic]) -> Break:
    """Results that went through a type that is too narrow for them."""

    def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            correct(a, b, out)
            if _large(problem):
                out[...] = out.astype(dtype)

        return run

    return make


def _one_wrong_element(problem: Problem, correct: TapByTap, context: Context) -> Run:
    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        correct(a, b, out)
        if _large(problem):
            out.reshape(-1)[out.size * 3 // 7] += 1

    return run


class _SharedPacking(MutantBase):
    """Packs the weights of every plan of a problem into one buffer of the class."""

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """As the base class; the packed copy is found by the problem when it runs, so the last plan's wins."""
        correct = TapByTap(problem, context)
        if weights is None:
            return correct
        if _large(problem):
            _PACKED[problem] = weights.copy()
            return lambda a, out: correct(a, _PACKED[problem], out)
        kept = weights.copy()
        return lambda a, out: correct(a, kept, out)


_PACKED: dict[Problem, np.ndarray] = {}


@dataclass(frozen=True)
class PackedMutant(Mutant):
    """A mutant of the packed case: right with raw weights."""

    def implementation(self) -> Implementation:
        """A fresh, unregistered implementation with this change."""
        members = {"name": f"mutant_{self.name}_numpy", "passes": self.passes, "dtypes": self.dtypes}
        return type("Mutated", (_SharedPacking,), members)()


_ONE_TAP = ConvShape.make(3, 18, 9, 8, 20, 1, 1)
_EVEN = ConvShape.make(3, 5, 8, 8, 6, 3, 3, stride=2, padding=1)

#: The unchanged convolution: accepted everywhere, or the rest proves nothing.
UNCHANGED = Mutant("unchanged", "nothing", _nothing)

MUTANTS: tuple[Mutant, ...] = (
    Mutant("flipped_filter", "convolves where it should correlate", _flipped_filter, hides_on=_ONE_TAP),
    Mutant("nan_corner", "NaN in the last corner of the result", _nan_corner, dtypes=_FLOATS),
    Mutant("unwritten_row", "the last row of the result is never written", _unwritten_row),
    Mutant("accumulates_into_out", "adds to what the result held", _accumulates_into_out, hides_on=_EVEN),
    Mutant("eats_its_input", "overwrites its first operand when it is done", _eats_its_input),
    Mutant("swapped_r_s", "reads the filter's rows as columns", _swapped_r_s, hides_on=_ONE_TAP),
    Mutant("half_precision", "rounds both operands to half their width", _half_precision),
    Mutant("short_mantissa", "rounds both operands to 16 bits", _short_mantissa, wrong_on=DEEP, dtypes=_FLOATS),
    Mutant("drops_channels", "leaves out channels from 16 on", _drops_channels, hides_on=_EVEN),
    Mutant("leaks_a_bias", "adds 0.5 (to integers 1) to every result", _leaks_a_bias),
    Mutant("swapped_strides", "takes the vertical stride for the horizontal one", _swapped_strides, hides_on=_EVEN),
    Mutant("wrong_padding_side", "pads at the bottom and right what belongs to the top and left",
           _wrong_padding_side, hides_on=_ONE_TAP),
    Mutant("remembers_first_inputs", "computes with the first operand it was ever given", _remembers_first_inputs),
    Mutant("writes_past_out", "writes one element past the result's end", _writes_past_out),
    Mutant("last_image_only", "overwrites where it should sum over images", _last_image_only,
           passes=(_WEIGHTS,)),
    Mutant("neighbouring_image", "reads the image before its own", _neighbouring_image),
    Mutant("trusts_workspace", "expects its workspace to hold zeros", _trusts_workspace),
    Mutant("returns_early", "returns while a thread still writes the last image or filter", _returns_early),
    Mutant("skips_padding_only", "does not write results that see only padding", _skips_padding_only,
           wrong_on=PADDING_ONLY),
    Mutant("damages_cached_filter", "keeps a filter it has seen, and spoils it", _damages_cached_filter),
    Mutant("saturates", "clips results at 2,048", _saturates),
    Mutant("one_wrong_element", "one element of the whole result is off by one", _one_wrong_element),
)

#: Wrong in int8 only, where sums are exact.
INTEGER_MUTANTS: tuple[Mutant, ...] = (
    Mutant("sums_in_16_bits", "keeps sums in 16 bits", _sums_in(np.int16), dtypes=("int8",)),
    Mutant("sums_in_float32", "keeps sums in float32", _sums_in(np.float32), passes=(_FORWARD,),
           wrong_on=BEYOND_24_BITS, dtypes=("int8",)),
)

#: Wrong with packed weights only.
SHARED_PACKING = PackedMutant("shared_packing", "plans of one problem share packed weights", _nothing,
                              passes=(_FORWARD, _DATA))

#: Right, but allocates 64 MB that its estimate does not mention: `conformance.check` finds it.
HIDDEN_TEMPORARY = Mutant("hidden_temporary", "a temporary of 64 MB at each call", _hidden_temporary)
