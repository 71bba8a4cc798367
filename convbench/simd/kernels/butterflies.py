"""One-dimensional FFTs of 2^k, 3 2^k, 5 2^k and 7 2^k points, straight-line code on lists of vectors, and their counts.

Radix 2, decimation in time, down to an odd length, with each twiddle factor folded into fused multiply-adds (six for a
butterfly): Linzer and Feig, "Implementation of Efficient FFT Algorithms on Fused Multiply-Add Architectures", IEEE
Trans. Signal Processing 41 (1993). Odd lengths are summed as they stand, over pairs of values j and n - j. Inputs known
to be zero (None) and outputs that nobody wants cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convbench.simd.emit import Value

Complex = tuple[Any, Any]  # real and imaginary vector; None is zero


class Butterflies:
    """Writes transforms over lists of vectors with an Emitter, and counts the operations."""

    def __init__(self, e: Any) -> None:
        self.e = e

    # ---- arithmetic in which None is zero

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        return y if x is None else x if y is None else self.e.fadd(x, y)

    def sub(self, x: Value, y: Value) -> Value:
        """x - y."""
        return self.neg(y) if x is None else x if y is None else self.e.fsub(x, y)

    def neg(self, x: Value) -> Value:
        """-x."""
        return None if x is None else self.e.fneg(x)

    def times(self, factor: float, x: Value, y: Value = None) -> Value:
        """factor x + y."""
        if x is None:
            return y
        constant = self.e.splat_constant(factor)
        return self.e.fmul(constant, x) if y is None else self.e.fma(constant, x, y)

    # ---- transforms, not scaled

    def turned(self, x: Complex, k: int, n: int, sign: int) -> tuple[float, Value, Value]:
        """(factor, u, v) with factor (u + i v) = x exp(sign 2 pi i k / n); the larger of cosine and sine outside."""
        re, im = x
        k %= n
        if k == 0:
            return 1.0, re, im
        if 4 * k == n:
            return float(sign), self.neg(im), re
        c, d = math.cos(2 * math.pi * k / n), sign * math.sin(2 * math.pi * k / n)
        if abs(c) >= abs(d):
            return c, self.times(-d / c, im, re), self.times(d / c, re, im)
        return d, self.times(c / d, re, self.neg(im)), self.times(c / d, im, re)

    def pair(self, x: Complex, y: Complex, k: int, n: int, sign: int) -> tuple[Complex, Complex]:
        """x + y t and x - y t for t = exp(sign 2 pi i k / n)."""
        if 4 * (k % n) == n:  # i y without a negation
            (a, b), (c, d) = x, y
            first, second = (self.sub(a, d), self.add(b, c)), (self.add(a, d), self.sub(b, c))
            return (first, second) if sign > 0 else (second, first)
        factor, u, v = self.turned(y, k, n, sign)
        if factor == 1.0:
            return (self.add(x[0], u), self.add(x[1], v)), (self.sub(x[0], u), self.sub(x[1], v))
        plus = self.times(factor, u, x[0]), self.times(factor, v, x[1])
        return plus, (self.times(-factor, u, x[0]), self.times(-factor, v, x[1]))

    def complex(self, x: Sequence[Complex], sign: int) -> list[Complex]:
        """sum over j of x[j] exp(sign 2 pi i j k / n) for k < n."""
        n = len(x)
        if n % 2:
            return self.odd(x, sign)
        even, odd = self.complex(x[::2], sign), self.complex(x[1::2], sign)
        both = [self.pair(a, b, k, n, sign) for k, (a, b) in enumerate(zip(even, odd, strict=True))]
        return [first for first, _ in both] + [second for _, second in both]

    def odd(self, x: Sequence[Complex], sign: int) -> list[Complex]:
        """The same for an odd length, from the sums and differences of x[j] and x[n - j]."""
        re, im = ([value[part] for value in x] for part in (0, 1))
        (a, b), (c, d) = self.halves(re), self.halves(im)
        out: list[Complex] = [(a[0], c[0])] * len(x)
        for k in range(1, len(a)):
            lower, upper = (k, len(x) - k) if sign < 0 else (len(x) - k, k)
            out[lower] = self.add(a[k], d[k]), self.sub(c[k], b[k])
            out[upper] = self.sub(a[k], d[k]), self.add(c[k], b[k])
        return out

    def halves(self, x: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Sums over j of x[j] cos(2 pi j k / n) and of x[j] sin(2 pi j k / n), k <= n / 2, for an odd length n."""
        n = len(x)
        pairs = range(1, (n + 1) // 2)
        plus, minus = ([how(x[j], x[n - j]) for j in pairs] for how in (self.add, self.sub))
        total = x[0]
        for value in plus:
            total = self.add(total, value)
        cosines, sines = [total], [None]
        for k in pairs:
            even, odd = x[0], None
            for j in pairs:
                angle = 2 * math.pi * (j * k % n) / n
                even = self.times(math.cos(angle), plus[j - 1], even)
                odd = self.times(math.sin(angle), minus[j - 1], odd)
            cosines.append(even)
            sines.append(odd)
        return cosines, sines

    def real(self, x: Sequence[Value]) -> list[Complex]:
        """Frequencies 0 .. n / 2 of real data; the first and, n even, the last are real (imaginary part None)."""
        n = len(x)
        if n % 2:
            return [(c, self.neg(s)) for c, s in zip(*self.halves(x), strict=True)]
        even, odd = self.real(x[::2]), self.real(x[1::2])
        half = n // 2
        out: list[Complex] = [(None, None)] * (half + 1)
        out[0], out[half] = (self.add(even[0][0], odd[0][0]), None), (self.sub(even[0][0], odd[0][0]), None)
        for k in range(1, (half + 1) // 2):
            factor, u, v = self.turned(odd[k], k, n, -1)
            out[k] = self.times(factor, u, even[k][0]), self.times(factor, v, even[k][1])
            out[half - k] = self.times(-factor, u, even[k][0]), self.times(factor, v, self.neg(even[k][1]))
        if half % 2 == 0:
            out[half // 2] = even[half // 2][0], self.neg(odd[half // 2][0])
        return out

    def real_inverse(self, x: Sequence[Complex], n: int) -> list[Value]:
        """The n real values whose frequencies 0 .. n / 2 are given, times n."""
        if n % 2:
            return self.odd_inverse(x, n)
        half = n // 2
        even: list[Complex] = [(self.add(x[0][0], x[half][0]), None)]
        odd: list[Complex] = [(self.sub(x[0][0], x[half][0]), None)]
        for k in range(1, (half + 1) // 2):
            (a, b), (c, d) = x[k], x[half - k]
            even.append((self.add(a, c), self.sub(b, d)))
            re, im = self.sub(a, c), self.add(b, d)
            cosine, sine = math.cos(2 * math.pi * k / n), math.sin(2 * math.pi * k / n)
            odd.append((self.times(-sine, im, self.times(cosine, re)), self.times(cosine, im, self.times(sine, re))))
        if half % 2 == 0:
            re, im = x[half // 2]
            even.append((self.add(re, re), None))
            odd.append((self.times(-2.0, im), None))
        pairs = zip(self.real_inverse(even, half), self.real_inverse(odd, half), strict=True)
        return [value for both in pairs for value in both]

    def odd_inverse(self, x: Sequence[Complex], n: int) -> list[Value]:
        """The same for an odd length: x[0] + 2 sum over k of (real part cosine - imaginary part sine)."""
        pairs = range(1, (n + 1) // 2)
        total = x[0][0]
        for k in pairs:
            total = self.times(2.0, x[k][0], total)
        out = [total] * n
        for j in pairs:
            even, odd = x[0][0], None
            for k in pairs:
                angle = 2 * math.pi * (j * k % n) / n
                even = self.times(2 * math.cos(angle), x[k][0], even)
                odd = self.times(2 * math.sin(angle), x[k][1], odd)
            out[j], out[n - j] = self.sub(even, odd), self.add(even, odd)
        return out


@dataclass(frozen=True, eq=False)
class Result:
    """A value that is counted instead of computed: operations, and what it is made of."""

    flops: int = 0
    parts: tuple[Any, ...] = ()


class Counter:
    """Stands in for an Emitter: the same calls, and `total` says what the results that are wanted take."""

    def splat_constant(self, value: float) -> Result:
        """A constant costs nothing."""
        return Result()

    def fneg(self, x: Result) -> Result:
        """A sign costs nothing."""
        return Result(0, (x,))

    def fadd(self, x: Result, y: Result) -> Result:
        """One operation."""
        return Result(1, (x, y))

    fsub = fmul = fadd

    def fma(self, x: Result, y: Result, z: Result) -> Result:
        """Two operations."""
        return Result(2, (x, y, z))

    @staticmethod
    def total(wanted: Sequence[Any]) -> int:
        """Operations that the wanted results need, each value once."""
        seen: set[Result] = set()
        waiting = [value for value in wanted if value is not None]
        while waiting:
            value = waiting.pop()
            if value not in seen:
                seen.add(value)
                waiting.extend(value.parts)
        return sum(value.flops for value in seen)
