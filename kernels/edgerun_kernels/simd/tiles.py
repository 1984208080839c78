"""Register tiles: the operations of a matrix product that keeps ``rows`` x ``blocks`` vectors of sums in registers.

A tile is a tuple of vectors, block after block; its operations are written out here once per vector, so that a kernel
says ``dot(sums, weights, x)`` for all of them. Weights come as one vector a block, activations as one broadcast a row.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .named import I8, I32, I64, NAMED, PREFIX
from .ops import declare, nibbles, splat_value
from .types import f32x8, f32x16, i8x32, i8x64, i32x8, i32x16

VECTORS = {16: (f32x16, i32x16, i8x64), 8: (f32x8, i32x8, i8x32)}


def call_named(b: ir.IRBuilder, name: str, lanes: int, *args: ir.Value) -> ir.Value:
    """The ISA's operation on vectors of 16 lanes, or of 8."""
    name = name if lanes == 16 else f"{name}_8"
    return b.call(declare(b, PREFIX + name, *NAMED[name]), args)


def load_at(b: ir.IRBuilder, address: ir.Value, offset: int, kind: ir.Type, align: int) -> ir.Value:
    """Loads from a constant distance behind an address: a displacement of the instruction, not an addition."""
    pointer = b.gep(b.inttoptr(address, I8.as_pointer()), [ir.Constant(I64, offset)])
    value = b.load(b.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


class Tile:
    """The operations of tiles of one size. ``lanes``: weight rows in a vector, 16 or 8."""

    def __init__(self, rows: int, blocks: int, lanes: int = 16) -> None:
        self.rows, self.blocks, self.lanes = rows, blocks, lanes
        self.f32, self.i32, self.i8 = VECTORS[lanes]
        self.floats = types.UniTuple(self.f32, rows * blocks)
        self.ints = types.UniTuple(self.i32, rows * blocks)
        self.weights = types.UniTuple(self.i8, blocks)
        self.scales = types.UniTuple(self.f32, blocks)

    def _each(self, b: ir.IRBuilder, one: Callable[[int, int, int], ir.Value]) -> ir.Value:
        """A tile of ``one(index, block, row)``."""
        places = [(block, row) for block in range(self.blocks) for row in range(self.rows)]
        return cgutils.pack_array(b, [one(i, *place) for i, place in enumerate(places)])

    def _rows(self, b: ir.IRBuilder, address: ir.Value, stride: int, kind: ir.Type) -> list[ir.Value]:
        """One scalar a row, each in all lanes."""
        align = 1 if stride % 4 else 4
        return [splat_value(b, load_at(b, address, stride * r, kind, align), self.lanes) for r in range(self.rows)]

    def zero(self) -> Any:
        """All sums 0.0."""
        floats = self.floats

        @intrinsic
        def zero(typingctx):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return self._each(b, lambda i, block, row: ir.Constant(self.f32.llvm, [0.0] * self.lanes))

            return floats(), codegen

        return zero

    def begin(self, shift: int | None) -> Any:
        """Integer sums that begin with the rows' int32 at an address, times 2**shift; with 0 if shift is None."""
        ints = self.ints

        @intrinsic
        def begin(typingctx, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                starts = self._starts(b, args[0], shift)
                return self._each(b, lambda i, block, row: call_named(b, "dot_u4_begin", self.lanes, starts[row]))

            return ints(types.int64), codegen

        return begin

    def end(self, shift: int | None) -> Any:
        """The sums of what ``begin`` began, in 32 bits."""
        ints = self.ints

        @intrinsic
        def end(typingctx, sums, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                starts = self._starts(b, args[1], shift)

                def one(i: int, block: int, row: int) -> ir.Value:
                    return call_named(b, "dot_u4_end", self.lanes, b.extract_value(args[0], i), starts[row])

                return self._each(b, one)

            return ints(ints, types.int64), codegen

        return end

    def plain(self, shift: int | None) -> Any:
        """As ``begin``, for sums by ``dot_i8``, which has nothing to end."""
        ints = self.ints

        @intrinsic
        def plain(typingctx, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                starts = self._starts(b, args[0], shift)
                return self._each(b, lambda i, block, row: starts[row])

            return ints(types.int64), codegen

        return plain

    def _starts(self, b: ir.IRBuilder, address: ir.Value, shift: int | None) -> list[ir.Value]:
        if shift is None:
            return [ir.Constant(self.i32.llvm, [0] * self.lanes)] * self.rows
        by = ir.Constant(self.i32.llvm, [shift] * self.lanes)
        return [b.shl(start, by) if shift else start for start in self._rows(b, address, 4, I32)]

    def load(self) -> Any:
        """One vector of weights a block, blocks ``stride`` bytes apart."""
        weights = self.weights

        @intrinsic
        def load(typingctx, address, stride):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return cgutils.pack_array(b, self._blocks(b, args[0], args[1], self.i8.llvm))

            return weights(types.int64, types.int64), codegen

        return load

    def load_floats(self, stored: str) -> Any:
        """One vector of numbers a block as float32, ``stride`` bytes apart; stored as "f16", "f32" or "i8"."""
        scales = self.scales
        kind = {"f16": ir.VectorType(ir.IntType(16), self.lanes), "i8": ir.VectorType(I8, self.lanes)}

        @intrinsic
        def load_floats(typingctx, address, stride):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                values = self._blocks(b, args[0], args[1], kind.get(stored, self.f32.llvm))
                if stored == "f16":
                    values = [call_named(b, "f16_to_f32", self.lanes, half) for half in values]
                elif stored == "i8":
                    values = [b.sitofp(b.sext(byte, self.i32.llvm), self.f32.llvm) for byte in values]
                return cgutils.pack_array(b, values)

            return scales(types.int64, types.int64), codegen

        return load_floats

    def _blocks(self, b: ir.IRBuilder, address: ir.Value, stride: ir.Value, kind: ir.Type) -> list[ir.Value]:
        values = []
        for block in range(self.blocks):
            values.append(load_at(b, address, 0, kind, 1))
            if block + 1 < self.blocks:
                address = b.add(address, stride)
        return values

    def nibbles(self, shift: int) -> Any:
        """The low (shift 0) or high (4) nibbles of every byte."""
        weights = self.weights

        @intrinsic
        def halves(typingctx, value):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                blocks = [b.extract_value(args[0], i) for i in range(self.blocks)]
                return cgutils.pack_array(b, [nibbles(b, block, shift) for block in blocks])

            return weights(weights), codegen

        return halves

    def dot(self, name: str) -> Any:
        """Adds the products of four columns: ``name`` is dot_u4 or dot_i8; rows of activations are 32 bytes apart."""
        ints, weights = self.ints, self.weights

        @intrinsic
        def dot(typingctx, sums, w, x):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                columns = [b.bitcast(row, self.i8.llvm) for row in self._rows(b, args[2], 32, I32)]

                def one(i: int, block: int, row: int) -> ir.Value:
                    w = b.extract_value(args[1], block)
                    return call_named(b, name, self.lanes, b.extract_value(args[0], i), w, columns[row])

                return self._each(b, one)

            return ints(ints, weights, types.int64), codegen

        return dot

    def add_scaled(self) -> Any:
        """acc + (block's scale * row's scale) * integer sum; the rows' float32 scales lie at ``address``."""
        floats, ints, scales = self.floats, self.ints, self.scales

        @intrinsic
        def add_scaled(typingctx, acc, sums, scale, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                row_scales = self._rows(b, args[3], 4, ir.FloatType())

                def one(i: int, block: int, row: int) -> ir.Value:
                    both = b.fmul(b.extract_value(args[2], block), row_scales[row])
                    number = b.sitofp(b.extract_value(args[1], i), self.f32.llvm)
                    return call_named(b, "fma", self.lanes, both, number, b.extract_value(args[0], i))

                return self._each(b, one)

            return floats(floats, ints, scales, types.int64), codegen

        return add_scaled

    def add_outer(self, stride: int = 4) -> Any:
        """acc + block's vector * row's float32; those lie ``stride`` bytes apart from ``address``."""
        floats, scales = self.floats, self.scales

        @intrinsic
        def add_outer(typingctx, acc, vector, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                factors = self._rows(b, args[2], stride, ir.FloatType())

                def one(i: int, block: int, row: int) -> ir.Value:
                    vector = b.extract_value(args[1], block)
                    return call_named(b, "fma", self.lanes, vector, factors[row], b.extract_value(args[0], i))

                return self._each(b, one)

            return floats(floats, scales, types.int64), codegen

        return add_outer

    def store(self) -> Any:
        """Stores every vector, 64 bytes apart."""
        floats = self.floats

        @intrinsic
        def store(typingctx, address, acc):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                for i in range(self.rows * self.blocks):
                    pointer = b.gep(b.inttoptr(args[0], I8.as_pointer()), [ir.Constant(I64, 64 * i)])
                    b.store(b.extract_value(args[1], i), b.bitcast(pointer, self.f32.llvm.as_pointer())).align = 4
                return ctx.get_dummy_value()

            return types.void(types.int64, floats), codegen

        return store

    def restore(self) -> Any:
        """What ``store`` stored."""
        floats = self.floats

        @intrinsic
        def restore(typingctx, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return self._each(b, lambda i, block, row: load_at(b, args[0], 64 * i, self.f32.llvm, 4))

            return floats(types.int64), codegen

        return restore


def stack_memory(n_bytes: int) -> Any:
    """An intrinsic that gives the address of ``n_bytes`` on the function's stack, on a cache line."""

    @intrinsic
    def memory(typingctx):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            with b.goto_entry_block():
                place = b.alloca(ir.ArrayType(I8, n_bytes))
                place.align = 64
            return b.ptrtoint(place, I64)

        return types.int64(), codegen

    return memory
