"""Binary and XNOR convolution in NumPy: signs packed to bits, products counted with xor and bitwise_count. The lesson.

Courbariaux et al. 2016 (arXiv 1602.02830); Rastegari et al. 2016 (arXiv 1603.05279), section 3.2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._window import taps
from convbench.formats import too_many_signs
from convbench.problem import Pass, Problem, Semantics
from convbench.registry import Context, Implementation, Run, register, with_packing

#: Bits of a word; channels are rounded up to whole words.
WORD = 64


def words_of(channels: int) -> int:
    """Words of a pixel."""
    return -(-channels // WORD)


class SignBits:
    """Negative signs of one operand as bits: (PIXELS, G, C/G) -> words (PIXELS, G, WORDS). Bits beyond C/G are 0."""

    def __init__(self, pixels: int, groups: int, channels: int, context: Context) -> None:
        self._negative = context.empty((pixels, groups, channels), np.uint8).view(np.bool_)
        self._bytes = context.empty((pixels, groups, 8 * words_of(channels)), np.uint8)
        self._bytes.fill(0)
        self._used = -(-channels // 8)
        self.words = self._bytes.view(np.uint64)  # (PIXELS, G, WORDS)

    @staticmethod
    def workspace(pixels: int, groups: int, channels: int) -> int:
        """Bytes, with what packbits gives."""
        return pixels * groups * (channels + 8 * words_of(channels) + -(-channels // 8))

    def pack(self, values: np.ndarray) -> None:
        """values (PIXELS, G, C/G): what is not >= 0 is negative, NaN too, but -0.0 is not."""
        np.greater_equal(values, 0, out=self._negative)
        np.logical_not(self._negative, out=self._negative)
        self._bytes[..., : self._used] = np.packbits(self._negative, axis=-1)


class PackedSums:
    """y (N, P, Q, G, K/G) = sums of products of signs, tap by tap and filter by filter.

    Of n products, n - 2 d is the sum, where d is how many differ in sign. A tap is applied to those outputs alone that
    read the image through it, so padding adds nothing.
    """

    def __init__(self, problem: Problem, context: Context) -> None:
        s = self._shape = problem.shape
        self._x = SignBits(s.n * s.h * s.w, s.groups, s.cg, context)
        self._w = SignBits(s.k * s.r * s.s, 1, s.cg, context)
        words = words_of(s.cg)
        self._differ = context.empty(s.n * s.p * s.q * s.groups * words, np.uint64)
        self._counts = context.empty(s.n * s.p * s.q * s.groups * words, np.uint8)
        self._sums = context.empty((s.kg, s.n, s.p, s.q, s.groups), np.int32)

    @staticmethod
    def workspace(problem: Problem) -> int:
        """Bytes of all buffers and of the sums of counts."""
        s = problem.shape
        pixels = s.n * s.p * s.q * s.groups
        operands = SignBits.workspace(s.n * s.h * s.w, s.groups, s.cg) + SignBits.workspace(s.k * s.r * s.s, 1, s.cg)
        return operands + pixels * (9 * words_of(s.cg) + 4 * s.kg + 8)

    def pack_filter(self, w: np.ndarray) -> None:
        """w (K, R, S, C/G)."""
        self._w.pack(w.reshape(-1, 1, self._shape.cg))

    def pack_input(self, x: np.ndarray) -> None:
        """x (N, H, W, C)."""
        self._x.pack(x.reshape(-1, self._shape.groups, self._shape.cg))

    def run(self) -> np.ndarray:
        """The packed input with the packed filter: sums (K/G, N, P, Q, G)."""
        s = self._shape
        x_words = self._x.words.reshape(s.n, s.h, s.w, s.groups, -1)
        w_words = self._w.words.reshape(s.groups, s.kg, s.r, s.s, -1)
        self._sums.fill(0)
        for tap in taps(s):
            source = x_words[:, *tap.source]  # (N, rows, columns, G, WORDS)
            differ = self._differ[: source.size].reshape(source.shape)
            counts = self._counts[: source.size].reshape(source.shape)
            for k in range(s.kg):
                np.bitwise_xor(source, w_words[:, k, tap.r, tap.s], out=differ)
                np.bitwise_count(differ, out=counts)
                sums = self._sums[k][:, *tap.out]
                sums += s.cg - 2 * counts.sum(axis=-1, dtype=np.int32)
        return self._sums


class PackedNumpy(Implementation):
    """What both rows share."""

    passes: ClassVar[tuple[Pass, ...]] = (Pass.FORWARD,)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    arithmetic: ClassVar[str] = "binary"

    def unavailable(self) -> str | None:
        """A sentence where NumPy is too old to count bits."""
        return None if hasattr(np, "bitwise_count") else f"{self.name} needs NumPy 2.0, which has bitwise_count"

    def limits(self, problem: Problem) -> str | None:
        """Only binary sums that float32 may not hold."""
        sentence = too_many_signs(problem)
        return f"{self.name}: {sentence}" if sentence else None

    def workspace_estimate(self, problem: Problem) -> int:
        """Bits, counts, sums; of XNOR means and averages too."""
        s, scaled = problem.shape, problem.semantics is Semantics.XNOR
        means = 4 * (s.n * s.c * s.h * s.w + s.groups * s.n * (s.h * s.w + 3 * s.p * s.q)) if scaled else 0
        return PackedSums.workspace(problem) + means

    def packed_estimate(self, problem: Problem) -> int:
        """The same: the filter is packed in both cases."""
        return self.workspace_estimate(problem)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Buffers; packs the filter if it is given."""
        s, nchw = problem.shape, problem.layout == "nchw"
        scaled = problem.semantics is Semantics.XNOR
        sums = PackedSums(problem, context)
        alpha = context.empty(s.k if scaled else 0, np.float32)

        def pack_filter(w: np.ndarray) -> None:
            sums.pack_filter(w.transpose(0, 2, 3, 1) if nchw else w)
            if scaled:
                np.abs(w).reshape(s.k, -1).mean(axis=1, out=alpha)

        def pack_input(a: np.ndarray) -> None:
            x = a.transpose(0, 2, 3, 1) if nchw else a  # (N, H, W, C)
            sums.pack_input(x)
            if scaled:
                window_means(problem, x)

        def pack(a: np.ndarray, b: np.ndarray) -> None:
            pack_filter(b)
            pack_input(a)

        def run_packed(a: np.ndarray, out: np.ndarray) -> None:
            x = a.transpose(0, 2, 3, 1) if nchw else a  # (N, H, W, C)
            sums.pack_input(x)
            if nchw:
                y = out.reshape(s.n, s.groups, s.kg, s.p, s.q).transpose(0, 3, 4, 1, 2)
            else:
                y = out.reshape(s.n, s.p, s.q, s.groups, s.kg)
            y[...] = sums.run().transpose(1, 2, 3, 4, 0)  # (N, P, Q, G, K/G)
            if scaled:
                y *= alpha.reshape(s.groups, s.kg)
                y *= window_means(problem, x)[..., None]

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            pack_filter(b)
            run_packed(a, out)

        if weights is None:
            return with_packing(run, pack)
        pack_filter(weights)
        return with_packing(run_packed, pack_input)


def window_means(problem: Problem, x: np.ndarray) -> np.ndarray:
    """beta (N, P, Q, G): mean of |x| over the channels of a group and the places of a window; padding counts as 0."""
    s = problem.shape
    means = np.abs(x).reshape(s.n, s.h, s.w, s.groups, s.cg).mean(axis=-1)  # (N, H, W, G)
    beta = np.zeros((s.n, s.p, s.q, s.groups), np.float32)
    for tap in taps(s):
        beta[:, *tap.out] += means[:, *tap.source]
    beta /= s.r * s.s
    return beta


@register
class BinaryPackedNumpy(PackedNumpy):
    """Sums of signs: exact integers."""

    name: ClassVar[str] = "binary_packed_numpy"
    semantics: ClassVar[Semantics] = Semantics.BINARY
    reference = "Courbariaux et al. 2016 (arXiv 1602.02830)"


@register
class XnorPackedNumpy(PackedNumpy):
    """Sums of signs, times the mean |w| of each filter and the mean |x| under each window."""

    name: ClassVar[str] = "xnor_packed_numpy"
    semantics: ClassVar[Semantics] = Semantics.XNOR
    reference = "Rastegari et al. 2016 (arXiv 1603.05279), section 3.2"
