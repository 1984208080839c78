"""Ternary weights in codes of three columns, 5 bits each: what a unit of 32 weight rows by 48 columns can do.

A code is t0 + 3 t1 + 9 t2 of digits 0, 1, 2 that stand for -1, 0, 1; how codes lie is said in
``edgerun.package.layout``. A look-up gives what a code adds to the sums of 32 rows at once, so that nothing is
unpacked and nothing multiplied (as the look-up tables of bitnet.cpp, arXiv 2410.16144; the instruction holds 32 words).
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .named import I16
from .ops import call_named, load_at, splat_value
from .types import i16x32, i32x16

LINES, CODES = 5, 16
WORDS, PAIRS = i16x32.llvm, i32x16.llvm


def _const(kind: ir.VectorType, *values: int) -> ir.Constant:
    """A vector of these numbers, or of one number in all lanes."""
    return ir.Constant(kind, list(values) * (kind.count // len(values)))


def _shifted(b: ir.IRBuilder, words: ir.Value, by: int) -> ir.Value:
    """Words shifted right, as products: shifts would wait for the units that look up (on Zen 4 a sixth slower)."""
    return call_named(b, "high_product_u16", 16, words, _const(WORDS, 1 << 16 - by))


def _codes(b: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    """The 16 codes of every row; what is above their five bits is anything."""
    codes: list[ir.Value] = []
    last = _const(WORDS, 0)
    for line in range(LINES):
        words = load_at(b, address, 64 * line, WORDS, 1)
        codes += [words, _shifted(b, words, 5), _shifted(b, words, 10)]
        last = b.or_(last, b.and_(_shifted(b, words, 15 - line), _const(WORDS, 1 << line)))
    return [*codes, last]


@intrinsic
def table_of_sums(typingctx, x_0, x_1, x_2):
    """What each of the 32 codes adds to a sum, for three inputs (int8)."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        products = []
        for place, x in enumerate(args):
            weights = [code // 3**place % (4 if place == 2 else 3) - 1 for code in range(32)]
            products.append(b.mul(splat_value(b, b.sext(x, I16), 32), _const(WORDS, *weights)))
        return b.add(b.add(products[0], products[1]), products[2])

    return i16x32(*[types.int8] * 3), codegen


@intrinsic
def add_unit(typingctx, sums, address, tables):
    """Adds to the rows' sums what the 16 codes of a unit say by their tables, which lie 64 bytes apart."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        total = args[0]
        for i, code in enumerate(_codes(b, args[1])):
            total = b.add(total, call_named(b, "lookup_i16", 16, load_at(b, args[2], 64 * i, WORDS, 64), code))
        return total

    return i16x32(i16x32, types.int64, types.int64), codegen


def _choose(b: ir.IRBuilder, mask: int, x: ir.Value, y: ir.Value) -> ir.Value:
    """The bits of x under the mask, and those of y elsewhere."""
    full = (1 << x.type.element.width) - 1
    return b.or_(b.and_(x, _const(x.type, mask)), b.and_(y, _const(x.type, full ^ mask)))


@intrinsic
def expand_unit(typingctx, address, first, second):
    """Stores the 2-bit form of a unit, three half groups of 64 bytes, of its rows 0..15 at ``first`` and of its rows
    16..31 at ``second``."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        def left(value: ir.Value, by: int) -> ir.Value:
            return b.shl(value, _const(value.type, by))

        def right(value: ir.Value, by: int) -> ir.Value:
            return b.lshr(value, _const(value.type, by))

        digits = [
            call_named(b, "digits_i16", 16, code) for code in _codes(b, args[0])
        ]  # t0, and t2 four bits, t1 eight higher
        one, two, three = [], [], []  # of each half group, byte j of a row: columns j, j + 4, j + 8, j + 12
        for j in range(4):
            low = b.or_(digits[j], left(digits[j + 4], 2))
            high = b.or_(digits[j + 8], left(digits[j + 12], 2))
            both = _choose(b, 0x0F0F, low, left(high, 4))
            one.append(both)
            two.append(right(both, 8))
            three.append(_choose(b, 0x0F, right(low, 4), high))
        lines: list[list[ir.Value]] = [[], []]
        for b_0, b_1, b_2, b_3 in (one, two, three):
            pairs = (_choose(b, 0xFF, b_0, left(b_1, 8)), _choose(b, 0xFF, b_2, left(b_3, 8)))
            low, high = (b.bitcast(pair, PAIRS) for pair in pairs)
            lines[0].append(_choose(b, 0xFFFF, low, left(high, 16)))
            lines[1].append(_choose(b, 0xFFFF, right(low, 16), high))
        for target, halves in zip(args[1:], lines, strict=True):  # the second may begin where the first ends
            for half, line in enumerate(halves):
                place = b.add(target, ir.Constant(target.type, 64 * half))
                b.store(line, b.inttoptr(place, PAIRS.as_pointer())).align = 4
        return ctx.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def store_words(typingctx, address, value):
    """To an address on a cache line."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        b.store(args[1], b.inttoptr(args[0], WORDS.as_pointer())).align = 64
        return ctx.get_dummy_value()

    return types.void(types.int64, i16x32), codegen


@intrinsic
def zero_words(typingctx):
    return i16x32(), lambda ctx, b, sig, args: _const(WORDS, 0)


def _half(high: bool) -> Any:
    @intrinsic
    def half(typingctx, words):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            pairs, by = b.bitcast(args[0], PAIRS), _const(PAIRS, 16)
            return b.ashr(pairs if high else b.shl(pairs, by), by)

        return i32x16(i16x32), codegen

    return half


even_words, odd_words = _half(False), _half(True)
"""Words 0, 2, 4, ... and words 1, 3, 5, ... as 32-bit numbers."""
