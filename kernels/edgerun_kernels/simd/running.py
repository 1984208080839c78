"""A tile's integer sums while they run, from ``begin`` to ``end``, as the ISA keeps them: its dot products of small
codes may sum in 16 bits, or multiply two rows of weights by two of activations at once.

Tiles of half blocks with an even number of rows keep one vector for every two rows; others one for each.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .named import I8, I32, I64
from .ops import call_named, load_at, splat_value
from .types import i8x32, i8x64, i32x8, i32x16

VECTORS = {16: (i32x16, i8x64), 8: (i32x8, i8x32)}
ROW_BYTES = 32
"""From a row's activations of a group to those of the next row."""


class RunningSums:
    """The part of a tile that multiplies."""

    def __init__(self, rows: int, blocks: int, lanes: int) -> None:
        self.rows, self.blocks, self.lanes = rows, blocks, lanes
        self.i32, self.i8 = VECTORS[lanes]
        self.ints = types.UniTuple(self.i32, rows * blocks)
        self.weights = types.UniTuple(self.i8, blocks)
        self.in_pairs = lanes == 8 and rows % 2 == 0
        self.running = types.UniTuple(i32x16, rows * blocks // 2) if self.in_pairs else self.ints

    def _rows(self, b: ir.IRBuilder, address: ir.Value, stride: int, kind: ir.Type, offset: int = 0) -> list[ir.Value]:
        """One scalar a row, each in all lanes."""
        align = 1 if stride % 4 else 4
        places = (stride * row + offset for row in range(self.rows))
        return [splat_value(b, load_at(b, address, place, kind, align), self.lanes) for place in places]

    def begin(self) -> Any:
        """What ``dot_twice`` adds to, for sums that start with these."""
        ints, running = self.ints, self.running

        @intrinsic
        def begin(typingctx, starts):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                starts = [b.extract_value(args[0], i) for i in range(self.rows * self.blocks)]
                if self.in_pairs:
                    pairs = zip(starts[::2], starts[1::2], strict=True)
                    return cgutils.pack_array(b, [call_named(b, "pairs_begin", 8, *pair) for pair in pairs])
                return cgutils.pack_array(b, [call_named(b, "dot_u4_begin", self.lanes, start) for start in starts])

            return running(ints), codegen

        return begin

    def dot_twice(self) -> Any:
        """Adds the products of eight columns with codes that ``dot_u4`` takes: four of the one vector, four of the
        other."""
        running, weights = self.running, self.weights

        @intrinsic
        def dot_twice(typingctx, sums, first, second, x):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                if self.in_pairs:
                    return cgutils.pack_array(b, self._pairs(b, *args))
                sums = [b.extract_value(args[0], i) for i in range(self.rows * self.blocks)]
                for offset, w in ((0, args[1]), (4, args[2])):
                    columns = [b.bitcast(row, self.i8.llvm) for row in self._rows(b, args[3], ROW_BYTES, I32, offset)]
                    for i in range(len(sums)):
                        block, row = divmod(i, self.rows)
                        w_block = b.extract_value(w, block)
                        sums[i] = call_named(b, "dot_u4", self.lanes, sums[i], w_block, columns[row])
                return cgutils.pack_array(b, sums)

            return running(running, weights, weights, types.int64), codegen

        return dot_twice

    def _pairs(self, b: ir.IRBuilder, sums: ir.Value, first: ir.Value, second: ir.Value, x: ir.Value) -> list[ir.Value]:
        base = b.inttoptr(x, I8.as_pointer())
        results = []
        for i in range(self.rows * self.blocks // 2):
            block, pair = divmod(i, self.rows // 2)
            codes = (b.extract_value(w, block) for w in (first, second))
            places = (b.gep(base, [ir.Constant(I64, ROW_BYTES * (2 * pair + row))]) for row in (0, 1))
            results.append(call_named(b, "pairs_dot_u4", 8, b.extract_value(sums, i), *codes, *places))
        return results

    def end(self) -> Any:
        """The sums of what ``begin`` began with the same starts, in 32 bits."""
        ints, running = self.ints, self.running

        @intrinsic
        def end(typingctx, sums, starts):
            def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
                starts = [b.extract_value(args[1], i) for i in range(self.rows * self.blocks)]
                results = []
                for i in range(running.count):
                    sums = b.extract_value(args[0], i)
                    if self.in_pairs:
                        both = call_named(b, "pairs_end", 8, sums, starts[2 * i], starts[2 * i + 1])
                        results += [_half(b, both, row) for row in (0, 1)]
                    else:
                        results.append(call_named(b, "dot_u4_end", self.lanes, sums, starts[i]))
                return cgutils.pack_array(b, results)

            return ints(running, ints), codegen

        return end


def _half(b: ir.IRBuilder, both: ir.Value, row: int) -> ir.Value:
    index = ir.Constant(ir.VectorType(I32, 8), list(range(8 * row, 8 * row + 8)))
    return b.shuffle_vector(both, ir.Constant(both.type, ir.Undefined), index)
