"""`Emitter`: LLVM IR for kernels over float32 (and int32) vectors, in a handful of words.

A kernel is a function of 64-bit integers alone: addresses (in bytes), strides and counts (in elements). That gives
every kernel the same plain calling convention, from Numba and from ctypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from convbench.simd.target import Target

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()
Value = Any


@dataclass
class Loop:
    """A loop being written: its index, and the values it carries from one turn to the next."""

    index: Value
    carried: list[Value]
    result: list[Value]


class Emitter:
    """Writes one function `name(i64, ...)`; the methods append instructions and give back their values."""

    def __init__(self, target: Target, name: str, arguments: Sequence[str]) -> None:
        self.target = target
        self.lanes = target.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.module = ir.Module(name)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [I64] * len(arguments)), name)
        for argument, text in zip(self.function.args, arguments, strict=True):
            argument.name = text
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    @property
    def args(self) -> tuple[Value, ...]:
        """The function's arguments."""
        return tuple(self.function.args)

    # ---- integers and addresses

    @staticmethod
    def i(value: int) -> Value:
        """A 64-bit constant."""
        return ir.Constant(I64, value)

    def add(self, *values: Value) -> Value:
        """Sum of 64-bit integers; Python ints are taken as constants."""
        total, *rest = [self._int(v) for v in values]
        for value in rest:
            total = self.b.add(total, value)
        return total

    def mul(self, x: Value, y: Value) -> Value:
        """Product of 64-bit integers."""
        return self.b.mul(self._int(x), self._int(y))

    def sub(self, x: Value, y: Value) -> Value:
        """Difference of 64-bit integers."""
        return self.b.sub(self._int(x), self._int(y))

    def minimum(self, x: Value, y: Value) -> Value:
        """The smaller of two signed 64-bit integers."""
        x, y = self._int(x), self._int(y)
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def less(self, x: Value, y: Value) -> Value:
        """x < y, signed."""
        return self.b.icmp_signed("<", self._int(x), self._int(y))

    def pointer(self, address: Value, element: ir.Type = F32) -> Value:
        """A typed pointer out of an address in bytes."""
        return self.b.inttoptr(address, element.as_pointer())

    def at(self, pointer: Value, *offsets: Value) -> Value:
        """The pointer moved by a sum of offsets, in elements."""
        for offset in offsets:
            pointer = self.b.gep(pointer, [self._int(offset)])
        return pointer

    def load_int(self, pointer: Value) -> Value:
        """One 64-bit integer."""
        return self.b.load(pointer, align=8)

    # ---- vectors

    def splat_constant(self, value: float) -> Value:
        """The same float32 in every lane."""
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def splat(self, scalar: Value) -> Value:
        """A scalar in every lane of a vector of its type."""
        vector = ir.VectorType(scalar.type, self.lanes)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    def broadcast(self, pointer: Value) -> Value:
        """The scalar at `pointer` in every lane."""
        return self.splat(self.b.load(pointer, align=4))

    def mask(self, count: Value) -> Value:
        """Lanes 0 .. count - 1 on; a count beyond the lanes turns all on, one below 1 none (at least -2^31)."""
        count = self.b.select(self.less(count, self.lanes), self._int(count), self.i(self.lanes))
        count = self.b.trunc(count, I32)
        lanes = ir.Constant(ir.VectorType(I32, self.lanes), list(range(self.lanes)))
        return self.b.icmp_signed("<", lanes, self.splat(count))

    def load(self, pointer: Value, mask: Value | None = None) -> Value:
        """A vector from anywhere (4-byte aligned); lanes that the mask turns off are 0 and not read."""
        place = self.b.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            return self.b.load(place, align=4)
        kind = ir.FunctionType(self.vector, [self.vector.as_pointer(), I32, mask.type, self.vector])
        name = f"llvm.masked.load.v{self.lanes}f32.p0"
        return self.b.call(self.declare(name, kind), [place, ir.Constant(I32, 4), mask, self.splat_constant(0.0)])

    def store(self, value: Value, pointer: Value, mask: Value | None = None) -> None:
        """A vector to anywhere (4-byte aligned); lanes that the mask turns off are not touched."""
        place = self.b.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            self.b.store(value, place, align=4)
            return
        kind = ir.FunctionType(ir.VoidType(), [self.vector, self.vector.as_pointer(), I32, mask.type])
        name = f"llvm.masked.store.v{self.lanes}f32.p0"
        self.b.call(self.declare(name, kind), [value, place, ir.Constant(I32, 4), mask])

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x y + z, rounded once where the unit can."""
        if self.target.name == "generic":
            return self.b.fadd(self.b.fmul(x, y), z)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.b.call(self.declare(f"llvm.fma.v{self.lanes}f32", kind), [x, y, z])

    def fadd(self, x: Value, y: Value) -> Value:
        """x + y, lane by lane."""
        return self.b.fadd(x, y)

    def fsub(self, x: Value, y: Value) -> Value:
        """x - y, lane by lane."""
        return self.b.fsub(x, y)

    def fmul(self, x: Value, y: Value) -> Value:
        """x y, lane by lane."""
        return self.b.fmul(x, y)

    def fneg(self, x: Value) -> Value:
        """-x, lane by lane."""
        return self.b.fneg(x)

    # ---- control flow

    @contextmanager
    def loop(self, count: Value, carried: Sequence[Value] = (), step: int = 1, name: str = "loop") -> Iterator[Loop]:
        """for index in range(0, count, step), at least no turn. Values in `carried` pass from turn to turn:

        with e.loop(n, [a, b]) as turn: turn.result = [new a, new b]; afterwards turn.result are the last ones.
        LLVM is told to leave the loop as it is: unrolled by its own judgement, accumulators spill.
        """
        before = self.b.basic_block
        body, after = self.b.append_basic_block(f"{name}.body"), self.b.append_basic_block(f"{name}.after")
        count = self._int(count)
        self.b.cbranch(self.less(0, count), body, after)
        self.b.position_at_end(body)
        index = self.b.phi(I64)
        index.add_incoming(self.i(0), before)
        phis = []
        for value in carried:
            phi = self.b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        turn = Loop(index, list(phis), list(phis))
        yield turn
        following = self.b.add(index, self.i(step))
        end = self.b.basic_block
        index.add_incoming(following, end)
        for phi, value in zip(phis, turn.result, strict=True):
            phi.add_incoming(value, end)
        branch = self.b.cbranch(self.less(following, count), body, after)
        branch.set_metadata("llvm.loop", self._keep_rolled())
        self.b.position_at_end(after)
        results = []
        for initial, value in zip(carried, turn.result, strict=True):
            phi = self.b.phi(initial.type)
            phi.add_incoming(initial, before)
            phi.add_incoming(value, end)
            results.append(phi)
        turn.result = results

    @contextmanager
    def cases(self, value: Value, keys: Sequence[int]) -> Iterator[Iterator[int]]:
        """One block for each key: with e.cases(v, [1, 2]) as each: for key in each: (instructions)."""
        after = self.b.append_basic_block("cases.after")
        switch = self.b.switch(value, after)

        def each() -> Iterator[int]:
            for key in keys:
                block = self.b.append_basic_block(f"case{key}")
                switch.add_case(self.i(key), block)
                self.b.position_at_end(block)
                yield key
                self.b.branch(after)

        yield each()
        self.b.position_at_end(after)

    def choose(self, condition: Value, when_true: Any, when_false: Any) -> list[Value]:
        """if/else as values: both are functions that append instructions and give back a list of vectors."""
        yes, no = self.b.append_basic_block("then"), self.b.append_basic_block("else")
        after = self.b.append_basic_block("endif")
        self.b.cbranch(condition, yes, no)
        ends = []
        for block, write in ((yes, when_true), (no, when_false)):
            self.b.position_at_end(block)
            values = write()
            ends.append((values, self.b.basic_block))
            self.b.branch(after)
        self.b.position_at_end(after)
        results = []
        for i, first in enumerate(ends[0][0]):
            phi = self.b.phi(first.type)
            for values, block in ends:
                phi.add_incoming(values[i], block)
            results.append(phi)
        return results

    def finish(self) -> str:
        """Ends the function; the module's text."""
        self.b.ret_void()
        return str(self.module)

    # ---- helpers

    def declare(self, name: str, kind: ir.FunctionType) -> Value:
        """An LLVM intrinsic or an external function, declared once."""
        known = self.module.globals.get(name)
        return known if known is not None else ir.Function(self.module, kind, name)

    def _int(self, value: Value) -> Value:
        return self.i(value) if isinstance(value, int) else value

    def _keep_rolled(self) -> Any:
        off = self.module.add_metadata([ir.MetaDataString(self.module, "llvm.loop.unroll.disable")])
        loop = self.module.add_metadata([off, off])
        loop.operands = (loop, off)
        return loop
