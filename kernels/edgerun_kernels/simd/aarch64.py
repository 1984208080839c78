"""Definitions for AArch64: NEON as ARMv8.0 has it, and its dot products of bytes (``dotprod``, ``i8mm``).

Every AArch64 converts float16 in hardware; its arithmetic on float16 (``fp16``) the kernels have no use for. SVE of 128
bits has the same dot products.
"""

from llvmlite import ir

from .definitions import (
    Body,
    both_sizes,
    by_parts,
    call,
    const,
    join,
    lanes,
    load,
    native_f16_to_f32,
    native_f32_to_f16,
    native_fma,
    number,
    same,
)
from .futex import futex
from .named import I8, I16, I32, I64, vec
from .portable import PORTABLE_WORDS, SPARSE

FUTEX = 98


def timer(b: ir.IRBuilder) -> ir.Value:
    """CNTVCT_EL0, some 20 ns a tick on older boards; the cycle counter is not for user programs. Read by name: LLVM's
    ``readsteadycounter`` is 0 here."""
    kind = ir.FunctionType(I64, [ir.MetaDataType()])
    name = "llvm.read_volatile_register.i64"
    return b.call(ir.Function(b.module, kind, name), [b.module.add_metadata(["cntvct_el0"])])


def neon_pause(b: ir.IRBuilder) -> None:
    """``isb`` empties the pipeline: some ten nanoseconds. ``yield``, made for this, does nothing on most processors."""
    call(b, "llvm.aarch64.isb", ir.VoidType(), ir.Constant(I32, 15))


def byte_shift(count: int) -> Body:
    return lambda b, value: b.lshr(value, const(I8, value.type.count, count))


# --- ARMv8.0: no dot product ------------------------------------------------------------------------------------------


def _pairs(b: ir.IRBuilder, w: ir.Value, x: ir.Value) -> ir.Value:
    """The sums of two products each, in 16 bits: at most 2 * 128 * 127 < 2**15."""
    low, high = (
        call(b, "llvm.aarch64.neon.smull.v8i16", vec(I16, 8), *(lanes(b, v, start, 8) for v in (w, x)))
        for start in (0, 8)
    )
    return call(b, "llvm.aarch64.neon.addp.v8i16", vec(I16, 8), low, high)


def _add_pairs(b: ir.IRBuilder, acc: ir.Value, pairs: ir.Value) -> ir.Value:
    """acc + the sums of neighbours, which is one instruction (sadalp)."""
    return b.add(acc, call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", vec(I32, 4), pairs))


def neon_begin(b: ir.IRBuilder, start: ir.Value) -> ir.Value:
    return const(I32, start.type.count, 0)


def neon_dot_u4(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """Sums pairs in 16 bits: 8 calls hold 8 * 2 * 15 * 127 < 2**15, so a group of 32 columns never overflows."""
    return b.bitcast(b.add(b.bitcast(acc, vec(I16, 8)), _pairs(b, w, x)), vec(I32, 4))


def neon_end(b: ir.IRBuilder, acc: ir.Value, start: ir.Value) -> ir.Value:
    return _add_pairs(b, start, b.bitcast(acc, vec(I16, 8)))


def neon_dot_i8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    return _add_pairs(b, acc, _pairs(b, w, x))


NEON: dict[str, Body] = {
    **both_sizes(
        {
            "dot_u4_begin": neon_begin,
            "dot_u4": by_parts(4, neon_dot_u4),
            "dot_u4_end": by_parts(4, neon_end),
            "dot_i8": by_parts(4, neon_dot_i8),
            "high_u4": byte_shift(4),
            "high_u2": byte_shift(6),
            "fma": native_fma,
            "f16_to_f32": native_f16_to_f32,
        }
    ),
    **PORTABLE_WORDS,
    **SPARSE,
    "f32_to_f16": native_f32_to_f16,
    "dot_i8_bias": number(0),
    "dot_u4_takes_u8": number(0),
    "is_wide": number(0),
    "ticks": timer,
    "pause": neon_pause,
    **futex(FUTEX),
}


# --- dot products in 32 bits ------------------------------------------------------------------------------------------


def sdot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", vec(I32, 4), acc, w, x)


def usdot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """Unsigned weights by signed activations."""
    return call(b, "llvm.aarch64.neon.usdot.v4i32.v16i8", vec(I32, 4), acc, w, x)


DOTPROD: dict[str, Body] = {
    **NEON,
    **both_sizes(
        {
            "dot_u4_begin": same,
            "dot_u4": by_parts(4, sdot),
            "dot_u4_end": same,
            "dot_i8": by_parts(4, sdot),
        }
    ),
}

# --- two rows by two rows ---------------------------------------------------------------------------------------------
#
# Sums of two rows alternate: those of a weight row with both rows of activations lie side by side.


def pairs_begin(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    return b.shuffle_vector(first, second, ir.Constant(vec(I32, 16), [i // 2 + 8 * (i % 2) for i in range(16)]))


def pairs_dot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, w_2: ir.Value, x: ir.Value, x_2: ir.Value) -> ir.Value:
    """A weight row's eight columns come together from both vectors: a zip for every four rows."""
    two = ir.Constant(vec(I64, 2), ir.Undefined)
    for row, address in enumerate((x, x_2)):
        two = b.insert_element(two, load(b, address, I64), ir.Constant(I32, row))
    columns = b.bitcast(two, vec(I8, 16))
    quads = [b.bitcast(codes, vec(I32, 8)) for codes in (w, w_2)]
    both = b.shuffle_vector(*quads, ir.Constant(vec(I32, 16), [i // 2 + 8 * (i % 2) for i in range(16)]))
    rows = b.bitcast(both, vec(I8, 64))
    name, parts = "llvm.aarch64.neon.usmmla.v4i32.v16i8", []
    for i in range(4):
        parts.append(call(b, name, vec(I32, 4), lanes(b, acc, 4 * i, 4), lanes(b, rows, 16 * i, 16), columns))
    return join(b, join(b, *parts[:2]), join(b, *parts[2:]))


def pairs_end(b: ir.IRBuilder, acc: ir.Value, first: ir.Value, second: ir.Value) -> ir.Value:
    return join(b, lanes(b, acc, 0, 8, 2), lanes(b, acc, 1, 8, 2))


I8MM: dict[str, Body] = {
    **DOTPROD,
    **both_sizes({"dot_u4": by_parts(4, usdot)}),
    "pairs_begin_8": pairs_begin,
    "pairs_dot_u4_8": pairs_dot,
    "pairs_end_8": pairs_end,
    "dot_u4_takes_u8": number(1),
}
