"""Register tiles: the operations of a matrix product that keeps ``rows`` x ``blocks`` vectors of sums in registers.

A tile is a tuple of vectors, block after block; its operations are written out here once per vector, so that a kernel
says ``dot(sums, weights, x)`` for all of them. Weights come as one vector a block, activations as one broadcast a row.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .named import I8, I32, I64
from .ops import byte_bits, call_named, load_at, splat_value
from .running import RunningSums
from .types import f32x8, f32x16


def field_bits(b: ir.IRBuilder, value: ir.Value, first: int, count: int) -> ir.Value:
    """Bits ``first`` to ``first + count - 1`` of every byte, as numbers."""
    if first + count == 8 and first > 0:
        return call_named(b, f"high_u{count}", value.type.count // 4, value)
    return byte_bits(b, value, first, count)


def interleaved(b: ir.IRBuilder, x: ir.Value, y: ir.Value, unit: int, high: int) -> ir.Value:
    """x0 y0 x1 y1 ... of the low or the high halves of every 16 bytes, in units of so many bytes: one instruction."""
    n_bytes, per = x.type.count, 16 // unit
    kind = ir.VectorType(ir.IntType(8 * unit), n_bytes // unit)
    starts = [lane * per + high * per // 2 for lane in range(n_bytes // 16)]
    index = [start + i + side * kind.count for start in starts for i in range(per // 2) for side in (0, 1)]
    mask = ir.Constant(ir.VectorType(I32, kind.count), index)
    return b.bitcast(b.shuffle_vector(b.bitcast(x, kind), b.bitcast(y, kind), mask), x.type)


class Tile(RunningSums):
    """The operations of tiles of one size. ``lanes``: weight rows in a vector, 16 or 8."""

    def __init__(self, rows: int, blocks: int, lanes: int = 16) -> None:
        super().__init__(rows, blocks, lanes)
        self.f32 = {16: f32x16, 8: f32x8}[lanes]
        self.floats = types.UniTuple(self.f32, rows * blocks)
        self.scales = types.UniTuple(self.f32, blocks)

    def _each(self, b: ir.IRBuilder, one: Callable[[int, int, int], ir.Value]) -> ir.Value:
        """A tile of ``one(index, block, row)``."""
        places = [(block, row) for block in range(self.blocks) for row in range(self.rows)]
        return cgutils.pack_array(b, [one(i, *place) for i, place in enumerate(places)])

    def zero(self) -> Any:
        """All sums 0.0."""
        floats = self.floats

        @intrinsic
        def zero(typingctx):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return self._each(b, lambda i, block, row: ir.Constant(self.f32.llvm, [0.0] * self.lanes))

            return floats(), codegen

        return zero

    def starts(self, shift: int | None) -> Any:
        """Sums that start with the rows' int32 at an address, times 2**shift; with 0 if shift is None."""
        ints = self.ints

        @intrinsic
        def starts(typingctx, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                if shift is None:
                    rows = [ir.Constant(self.i32.llvm, [0] * self.lanes)] * self.rows
                else:
                    by = ir.Constant(self.i32.llvm, [shift] * self.lanes)
                    rows = [b.shl(start, by) for start in self._rows(b, args[0], 4, I32)]
                return self._each(b, lambda i, block, row: rows[row])

            return ints(types.int64), codegen

        return starts

    def _combine(self, combine: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
        ints = self.ints

        @intrinsic
        def combined(typingctx, x, y):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return self._each(
                    b, lambda i, block, row: combine(b, b.extract_value(args[0], i), b.extract_value(args[1], i))
                )

            return ints(ints, ints), codegen

        return combined

    def add(self) -> Any:
        """The sum of two tiles of integers."""
        return self._combine(lambda b, x, y: b.add(x, y))

    def subtract(self) -> Any:
        """The difference of two tiles of integers."""
        return self._combine(lambda b, x, y: b.sub(x, y))

    def times_bytes(self) -> Any:
        """Integer sums times the int8 of their weight rows at an address, blocks ``stride`` bytes apart."""
        ints = self.ints

        @intrinsic
        def times_bytes(typingctx, sums, address, stride):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                stored = self._blocks(b, args[1], args[2], ir.VectorType(I8, self.lanes))
                factors = [b.sext(byte, self.i32.llvm) for byte in stored]
                return self._each(b, lambda i, block, row: b.mul(b.extract_value(args[0], i), factors[block]))

            return ints(ints, types.int64, types.int64), codegen

        return times_bytes

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

    def columns(self, first: int) -> Any:
        """Weights of four columns, each a vector of bytes at an address, side by side as ``dot`` wants them.

        Byte 16 a + 4 u + r of a column goes to lane 4 a + r of block u; with fewer than four blocks, the first is
        ``first``, 0 or 2.
        """
        weights = self.weights

        @intrinsic
        def columns(typingctx, a0, a1, a2, a3):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                one, two, three, four = (load_at(b, address, 0, self.i8.llvm, 1) for address in args)
                values = []
                for high in range(first // 2, (first + self.blocks) // 2):
                    pair, other = interleaved(b, one, two, 1, high), interleaved(b, three, four, 1, high)
                    values += [interleaved(b, pair, other, 2, half) for half in (0, 1)]
                return cgutils.pack_array(b, values)

            return weights(*[types.int64] * 4), codegen

        return columns

    def _blocks(self, b: ir.IRBuilder, address: ir.Value, stride: ir.Value, kind: ir.Type) -> list[ir.Value]:
        values = []
        for block in range(self.blocks):
            values.append(load_at(b, address, 0, kind, 1))
            if block + 1 < self.blocks:
                address = b.add(address, stride)
        return values

    def bits(self, first: int, count: int) -> Any:
        """Bits ``first`` to ``first + count - 1`` of every byte, as numbers."""
        weights = self.weights

        @intrinsic
        def part(typingctx, value):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                blocks = [b.extract_value(args[0], i) for i in range(self.blocks)]
                return cgutils.pack_array(b, [field_bits(b, block, first, count) for block in blocks])

            return weights(weights), codegen

        return part

    def two_bits(self) -> Any:
        """Bits 2i and 2i + 1 of every byte, as numbers, for an i that is known at run time."""
        weights = self.weights

        @intrinsic
        def two_bits(typingctx, value, index):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                words, three = self.i32.llvm, ir.Constant(self.i8.llvm, [3] * self.i8.llvm.count)
                by = splat_value(b, b.shl(b.trunc(args[1], I32), ir.Constant(I32, 1)), words.count)
                moved = (b.lshr(b.bitcast(b.extract_value(args[0], i), words), by) for i in range(self.blocks))
                return cgutils.pack_array(b, [b.and_(b.bitcast(block, self.i8.llvm), three) for block in moved])

            return weights(weights, types.int64), codegen

        return two_bits

    def masked(self, mask: int) -> Any:
        """Every byte's bits under ``mask``, where they stand."""
        weights = self.weights

        @intrinsic
        def masked(typingctx, value):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                both = ir.Constant(self.i8.llvm, [mask] * self.i8.llvm.count)
                return cgutils.pack_array(b, [b.and_(b.extract_value(args[0], i), both) for i in range(self.blocks)])

            return weights(weights), codegen

        return masked

    def shift_right(self, count: int) -> Any:
        """Integer sums divided by 2**count, which divides them."""
        ints = self.ints

        @intrinsic
        def shift_right(typingctx, sums):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                by = ir.Constant(self.i32.llvm, [count] * self.lanes)
                return self._each(b, lambda i, block, row: b.ashr(b.extract_value(args[0], i), by))

            return ints(ints), codegen

        return shift_right

    def six_bits(self, quad: int, less: int) -> Any:
        """The q6k codes of four columns, 0 .. 63, less a number: nibbles from the line of ``quad`` (0 to 3), high bits
        from another."""
        weights = self.weights

        @intrinsic
        def six_bits(typingctx, nibbles, pairs):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                def one(i: int) -> ir.Value:
                    low = field_bits(b, b.extract_value(args[0], i), 4 * (quad % 2), 4)
                    high = byte_bits(b, b.extract_value(args[1], i), 2 * quad, 2, at=4)
                    return b.sub(b.or_(low, high), ir.Constant(low.type, [less] * low.type.count))

                return cgutils.pack_array(b, [one(i) for i in range(self.blocks)])

            return weights(weights, weights), codegen

        return six_bits

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

    def splat(self) -> Any:
        """One float32 as every block's scales."""
        scales = self.scales

        @intrinsic
        def splat(typingctx, value):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return cgutils.pack_array(b, [splat_value(b, args[0], self.lanes)] * self.blocks)

            return scales(types.float32), codegen

        return splat

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

    def add_exact(self) -> Any:
        """Adds block's scale * row's scale * integer sum to float64 at an address, blocks 128 bytes apart; exact where
        the products are, since they have few bits. The row's float32 scale lies at ``scale_address``."""

        @intrinsic
        def add_exact(typingctx, address, sums, scale, scale_address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                factors = self._rows(b, args[3], 4, ir.FloatType())

                def one(block: int, f64: ir.Type) -> ir.Value:
                    both = b.fmul(b.fpext(b.extract_value(args[2], block), f64), b.fpext(factors[0], f64))
                    return b.fmul(b.sitofp(b.extract_value(args[1], block), f64), both)

                return self._into_f64(ctx, b, args[0], one)

            return types.void(types.int64, self.ints, self.scales, types.int64), codegen

        return add_exact

    def add_outer_exact(self) -> Any:
        """Adds block's vector * row's float32 to float64 likewise."""

        @intrinsic
        def add_outer_exact(typingctx, address, vector, factor_address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                factors = self._rows(b, args[2], 4, ir.FloatType())

                def one(block: int, f64: ir.Type) -> ir.Value:
                    return b.fmul(b.fpext(b.extract_value(args[1], block), f64), b.fpext(factors[0], f64))

                return self._into_f64(ctx, b, args[0], one)

            return types.void(types.int64, self.scales, types.int64), codegen

        return add_outer_exact

    def _into_f64(
        self, ctx: Any, b: ir.IRBuilder, address: ir.Value, one: Callable[[int, ir.Type], ir.Value]
    ) -> ir.Value:
        """Of tiles with one row."""
        f64 = ir.VectorType(ir.DoubleType(), self.lanes)
        for block in range(self.blocks):
            pointer = b.gep(b.inttoptr(address, I8.as_pointer()), [ir.Constant(I64, 128 * block)])
            pointer = b.bitcast(pointer, f64.as_pointer())
            before = b.load(pointer)
            before.align = 8
            b.store(b.fadd(before, one(block, f64)), pointer).align = 8
        return ctx.get_dummy_value()

    def _store(self, kind: Any, tile: Any) -> Any:
        @intrinsic
        def store(typingctx, address, values):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                for i in range(self.rows * self.blocks):
                    pointer = b.gep(b.inttoptr(args[0], I8.as_pointer()), [ir.Constant(I64, 64 * i)])
                    b.store(b.extract_value(args[1], i), b.bitcast(pointer, kind.llvm.as_pointer())).align = 4
                return ctx.get_dummy_value()

            return types.void(types.int64, tile), codegen

        return store

    def _restore(self, kind: Any, tile: Any) -> Any:
        @intrinsic
        def restore(typingctx, address):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                return self._each(b, lambda i, block, row: load_at(b, args[0], 64 * i, kind.llvm, 4))

            return tile(types.int64), codegen

        return restore

    def store(self) -> Any:
        """Stores every vector, 64 bytes apart."""
        return self._store(self.f32, self.floats)

    def restore(self) -> Any:
        """What ``store`` stored."""
        return self._restore(self.f32, self.floats)

    def store_sums(self) -> Any:
        """As ``store``, for integer sums."""
        return self._store(self.i32, self.ints)

    def restore_sums(self) -> Any:
        """What ``store_sums`` stored."""
        return self._restore(self.i32, self.ints)


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
