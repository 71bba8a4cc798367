"""One level of the Strassen-Winograd product C (+)= A B: seven products of quadrants, chained in registers.

    S1 = A21 + A22   S2 = S1 - A11   S3 = A11 - A21   S4 = A12 - S2
    T1 = B12 - B11   T2 = B22 - T1   T3 = B22 - B12   T4 = T2 - B21
    P1 = A11 B11     C11 = P1 + A12 B21     U2 = P1 + S2 T2     U3 = U2 + S3 T3     C21 = U3 - A22 T4
    P5 = S1 T1       C22 = U3 + P5          C12 = U2 + P5 + S4 B22

S. Winograd's form of V. Strassen's algorithm, 15 additions (Higham, Accuracy and Stability of Numerical Algorithms,
section 23.1); results go from registers into the quadrants, as J. Huang et al. 2016, "Strassen's Algorithm Reloaded".
A block of rows goes through all seven products with its accumulators in registers: only P1, U2 and U3 are put down,
in a scratch that stays in the first-level cache. `left_sums` forms S, `right_sums` T, `tiles` the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter, Value
from convbench.simd.kernels.gemm import Shape, _write_block
from convbench.simd.kernels.gemm_pixels import LINE, _blocks, prefetch
from convbench.simd.target import Target

#: A row of the table: addresses of a row of A's upper and lower half, of the sums, of C's upper and lower half.
TOP, BOTTOM, SUMS, C_TOP, C_BOTTOM = range(5)
ENTRY = 5
#: Order of B's seven matrices, (half, width) each, in a panel: B11, B21, T2, T3, -T4, T1 (first B12), B22.
PRODUCTS, RIGHT = 7, 5

#: rows: of the table. columns, right_columns: of the left and of the right quadrants (at most a panel). first: from a
#: row's address to A11 (A12 is `half` elements further), half: depth of the products. b: address of a panel. c: bytes
#: from a row of C to its left quadrant, right: elements from there to the right one. accumulate: 0 writes, 1 adds to
#: what C holds. scratch: address of 2 blocks. ahead, ahead_bytes: what to fetch into the second-level cache.
TILES = (
    "rows", "columns", "right_columns", "table", "first", "half", "b", "c", "right", "accumulate", "scratch", "ahead",
    "ahead_bytes",
)  # fmt: skip


@kernel
def tiles(target: Target, shape: Shape, fetches: int = 1) -> Emitter:
    """The kernel for panels of shape.columns(target) columns and blocks of at most shape.rows rows.

    fetches: cache lines that are fetched ahead in each turn of the k loop.
    """
    e = Emitter(target, f"strassen_{target.name}_{shape.rows}x{shape.vectors}_{shape.unroll}_{fetches}", TILES)
    rows, columns, right_columns, table, _, half, b, *_, ahead, ahead_bytes = e.args
    left, right = (
        [e.mask(e.sub(count, v * e.lanes)) for v in range(shape.vectors)] for count in (columns, right_columns)
    )
    turn_bytes = e.mul(e.b.sdiv(half, e.i(shape.unroll)), PRODUCTS * fetches * LINE)

    def block(index: Value, first: Value, count: int) -> None:
        start = e.mul(turn_bytes, index)
        wanted = e.less(start, ahead_bytes)
        fetch = e.b.select(wanted, e.add(ahead, start), b)
        step = e.b.select(wanted, e.i(fetches * LINE), e.i(0))
        entries = e.at(e.pointer(table, I64), e.mul(first, ENTRY))
        _Tile(e, shape, count, entries, (left, right), e.pointer(b), fetch, step, fetches).write()

    _blocks(e, rows, shape.rows, block)
    return e


@dataclass
class _Tile:
    """One block of rows. b: the next row of the panel, fetch: the next of the lines to be fetched, by `step`
    bytes a turn."""

    e: Emitter
    shape: Shape
    rows: int
    entries: Value
    masks: tuple[list[Value], list[Value]]
    b: Value
    fetch: Value
    step: Value
    fetches: int

    def write(self) -> None:
        """The whole block, in the order of the formulas above."""
        e = self.e
        _, _, _, _, first, half, *_ = e.args
        zero = [e.splat_constant(0.0)] * (self.rows * self.shape.vectors)
        p1 = self._product(zero, self._rows(TOP, first))
        self._keep(0, p1)
        self._result(self._product(p1, self._rows(TOP, first, half)), C_TOP, 0)
        u2 = self._product(self._kept(0), self._rows(SUMS, half))
        self._keep(0, u2)
        u3 = self._product(u2, self._rows(SUMS, half, half))
        self._keep(1, u3)
        self._result(self._product(u3, self._rows(BOTTOM, first, half)), C_BOTTOM, 0)
        p5 = self._product(zero, self._rows(SUMS))
        self._result([e.fadd(x, y) for x, y in zip(p5, self._kept(1), strict=True)], C_BOTTOM, 1)
        u4 = [e.fadd(x, y) for x, y in zip(p5, self._kept(0), strict=True)]
        self._result(self._product(u4, self._rows(SUMS, half, half, half)), C_TOP, 1)

    def _rows(self, which: int, *offsets: Value) -> list[Value]:
        """Pointers to a quadrant's rows."""
        e = self.e
        addresses = (e.load_int(e.at(self.entries, ENTRY * m + which)) for m in range(self.rows))
        return [e.at(e.pointer(address), *offsets) for address in addresses]

    def _places(self, slot: int) -> list[Value]:
        e, count = self.e, self.rows * self.shape.vectors
        return [e.at(e.pointer(e.args[10]), (slot * count + i) * e.lanes) for i in range(count)]

    def _keep(self, slot: int, values: list[Value]) -> None:
        for value, place in zip(values, self._places(slot), strict=True):
            self.e.store(value, place)

    def _kept(self, slot: int) -> list[Value]:
        return [self.e.load(place) for place in self._places(slot)]

    def _product(self, sums: list[Value], a_rows: list[Value]) -> list[Value]:
        """sums + A-quadrant x the next matrix of the panel."""
        e, unroll, half = self.e, self.shape.unroll, self.e.args[5]
        width = self.shape.columns(e.target)
        done = e.mul(e.b.sdiv(half, e.i(unroll)), unroll)
        with e.loop(done, [*sums, self.b, self.fetch], step=unroll, name="k") as k:
            *now, b, fetch = k.carried
            for line in range(self.fetches):
                prefetch(e, e.pointer(e.add(fetch, LINE * line)), write=False, level=2)
            for further in range(unroll):
                now = self._step(now, a_rows, e.at(b, further * width), k.index, further)
            k.result = [*now, e.at(b, unroll * width), e.add(fetch, self.step)]
        *sums, b, self.fetch = k.result
        with e.loop(e.sub(half, done), [*sums, b], name="rest") as k:
            *now, b = k.carried
            k.result = [*self._step(now, a_rows, b, e.add(done, k.index), 0), e.at(b, width)]
        *sums, self.b = k.result
        return sums

    def _step(self, sums: list[Value], a_rows: list[Value], b: Value, k: Value, further: int) -> list[Value]:
        e, vectors = self.e, self.shape.vectors
        columns = [e.load(e.at(b, v * e.lanes)) for v in range(vectors)]
        now = []
        for m, row in enumerate(a_rows):
            value = e.broadcast(e.at(row, k, further))
            now += [e.fma(value, columns[v], sums[m * vectors + v]) for v in range(vectors)]
        return now

    def _result(self, values: list[Value], which: int, side: int) -> None:
        """Into the left (0) or right (1) quadrant of the upper or lower half."""
        e, vectors, masks = self.e, self.shape.vectors, self.masks[side]
        c, right, accumulate = e.args[7:10]
        byte = e.b.sdiv(c, e.i(4))
        rows = self._rows(which, byte, right) if side else self._rows(which, byte)

        def added() -> list[Value]:
            places = [(e.at(row, v * e.lanes), masks[v]) for row in rows for v in range(vectors)]
            return [e.fadd(value, e.load(*place)) for value, place in zip(values, places, strict=True)]

        values = e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), added, lambda: list(values))
        _write_block(e, values, rows, masks, e.args[2] if side else e.args[1])


@kernel
def left_sums(target: Target) -> Emitter:
    """S1 .. S4 of each row of the table, `half` elements each, one behind the other."""
    e = Emitter(target, f"strassen_left_{target.name}", ("rows", "table", "first", "half"))
    rows, table, first, half = e.args
    with e.loop(rows, name="row") as row:
        entry = e.at(e.pointer(table, I64), e.mul(row.index, ENTRY))
        top, bottom, to = (e.pointer(e.load_int(e.at(entry, which))) for which in (TOP, BOTTOM, SUMS))
        places = [e.at(top, first), e.at(top, first, half), e.at(bottom, first), e.at(bottom, first, half)]

        def sums(at: Value, mask: Value | None, places: list[Value] = places, to: Value = to) -> None:
            a11, a12, a21, a22 = (e.load(e.at(place, at), mask) for place in places)
            s1 = e.fadd(a21, a22)
            s2 = e.fsub(s1, a11)
            for i, value in enumerate((s1, s2, e.fsub(a11, a21), e.fsub(a12, s2))):
                e.store(value, e.at(to, e.mul(half, i), at), mask)

        whole = e.mul(e.b.sdiv(half, e.i(e.lanes)), e.lanes)
        with e.loop(whole, step=e.lanes, name="c") as c:
            sums(c.index, None)
        with e.loop(e.sub(half, whole), step=e.lanes, name="rest") as c:
            sums(e.add(whole, c.index), e.mask(e.sub(half, whole)))
    return e


@kernel
def right_sums(target: Target) -> Emitter:
    """T1 .. T4 of a panel that holds B11, B21, B12 and B22 (see PRODUCTS). size: of one matrix, whole registers."""
    e = Emitter(target, f"strassen_right_{target.name}", ("panel", "size"))
    panel, size = e.args
    with e.loop(size, step=e.lanes, name="i") as i:
        at = [e.at(e.pointer(panel), e.mul(size, slot), i.index) for slot in range(PRODUCTS)]
        b11, b21, b12, b22 = (e.load(at[slot]) for slot in (0, 1, RIGHT, RIGHT + 1))
        t1 = e.fsub(b12, b11)
        t2 = e.fsub(b22, t1)
        for slot, value in ((2, t2), (3, e.fsub(b22, b12)), (4, e.fsub(b21, t2)), (RIGHT, t1)):
            e.store(value, at[slot])
    return e
