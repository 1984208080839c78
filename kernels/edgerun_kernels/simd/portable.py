"""Definitions in generic LLVM only, so that they compile for every target that LLVM knows."""

from llvmlite import ir

from .definitions import Body, both_sizes, const, high_bits, lanes, number, same
from .named import F32, I16, I32, I64, vec


def portable_dot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc[r] += sum of w[4r+j] * x[4r+j], signed bytes."""
    count = acc.type.count
    wide = vec(I32, 4 * count)
    products = b.mul(b.sext(w, wide), b.sext(x, wide))
    quarters = [lanes(b, products, i, count, 4) for i in range(4)]
    return b.add(acc, b.add(b.add(quarters[0], quarters[1]), b.add(quarters[2], quarters[3])))


def portable_fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Two roundings: without the instruction, a fused product would be a call to the C library per lane."""
    return b.fadd(b.fmul(x, y), z)


def portable_f16_to_f32(b: ir.IRBuilder, half: ir.Value) -> ir.Value:
    """By integer arithmetic, subnormals, infinities and NaN included."""
    n = half.type.count
    bits = b.zext(half, vec(I32, n))
    sign = b.shl(b.and_(bits, const(I32, n, 0x8000)), const(I32, n, 16))
    magnitude = b.shl(b.and_(bits, const(I32, n, 0x7FFF)), const(I32, n, 13))
    scaled = b.fmul(b.bitcast(magnitude, vec(F32, n)), const(F32, n, 2.0**112))
    special = b.icmp_unsigned(">=", magnitude, const(I32, n, 0x7C00 << 13))
    value = b.select(special, b.or_(magnitude, const(I32, n, 0x7F800000)), b.bitcast(scaled, vec(I32, n)))
    return b.bitcast(b.or_(value, sign), vec(F32, n))


def portable_f32_to_f16(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Nearest, ties to even; too large becomes infinity, NaN stays NaN."""
    bits = b.bitcast(value, vec(I32, 16))
    sign = b.and_(b.lshr(bits, const(I32, 16, 16)), const(I32, 16, 0x8000))
    magnitude = b.and_(bits, const(I32, 16, 0x7FFFFFFF))
    # Normal halves: rebias the exponent and round the 13 lost bits with the carry that ties need.
    odd = b.and_(b.lshr(magnitude, const(I32, 16, 13)), const(I32, 16, 1))
    rounded = b.add(b.add(magnitude, const(I32, 16, 0xFFF - (112 << 23))), odd)
    normal = b.lshr(rounded, const(I32, 16, 13))
    # Subnormal halves: adding 0.5 puts the rounded value into the low mantissa bits.
    shifted = b.fadd(b.bitcast(magnitude, vec(F32, 16)), const(F32, 16, 0.5))
    subnormal = b.sub(b.bitcast(shifted, vec(I32, 16)), const(I32, 16, 0x3F000000))
    small = b.icmp_unsigned("<", magnitude, const(I32, 16, 113 << 23))
    result = b.select(small, subnormal, normal)
    large = b.icmp_unsigned(">=", magnitude, const(I32, 16, 0x477FF000))  # 65520 and above round to infinity
    result = b.select(large, const(I32, 16, 0x7C00), result)
    nan = b.icmp_unsigned(">", magnitude, const(I32, 16, 0x7F800000))
    result = b.select(nan, const(I32, 16, 0x7E00), result)
    return b.trunc(b.or_(result, sign), vec(I16, 16))


def portable_lookup(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """One entry after another."""
    index, result = b.and_(index, const(I16, 32, 31)), const(I16, 32, 0)
    for lane in range(32):
        place = ir.Constant(I32, lane)
        result = b.insert_element(result, b.extract_element(table, b.extract_element(index, place)), place)
    return result


def portable_high_product(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    wide = b.mul(b.zext(x, vec(I32, 32)), b.zext(y, vec(I32, 32)))
    return b.trunc(b.lshr(wide, const(I32, 32, 16)), x.type)


def portable_digits(b: ir.IRBuilder, codes: ir.Value) -> ir.Value:
    """Of the low five bits, t0 + 3 t1 + 9 t2: t0 | t2 << 4 | t1 << 8. Division by 9 and by 3, exact in this range."""
    code = b.and_(codes, const(I16, 32, 31))
    third = b.lshr(b.mul(code, const(I16, 32, 57)), const(I16, 32, 9))
    rest = b.sub(code, b.mul(third, const(I16, 32, 9)))
    second = b.lshr(b.mul(rest, const(I16, 32, 11)), const(I16, 32, 5))
    first = b.sub(rest, b.mul(second, const(I16, 32, 3)))
    return b.or_(first, b.or_(b.shl(third, const(I16, 32, 4)), b.shl(second, const(I16, 32, 8))))


PORTABLE_WORDS: dict[str, Body] = {
    "lookup_i16": portable_lookup,
    "has_lookup_i16": number(0),
    "high_product_u16": portable_high_product,
    "digits_i16": portable_digits,
}
"""Of 32 words of 16 bits: for every ISA that does not look them up."""


def portable_gather(b: ir.IRBuilder, address: ir.Value, index: ir.Value) -> ir.Value:
    """A load a lane."""
    table = b.inttoptr(address, F32.as_pointer())
    value = ir.Constant(vec(F32, 16), ir.Undefined)
    for lane in range(16):
        at = ir.Constant(I32, lane)
        one = b.load(b.gep(table, [b.zext(b.extract_element(index, at), I64)]))
        one.align = 4
        value = b.insert_element(value, one, at)
    return value


def portable_int4_to_float(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    up = b.shl(value, const(I32, 16, 28))
    return b.sitofp(b.ashr(up, const(I32, 16, 28)), vec(F32, 16))


SPARSE: dict[str, Body] = {
    **dict.fromkeys(("gather", "window_32", "window_64", "window_128"), portable_gather),
    "int4_to_float": portable_int4_to_float,
}
"""What sparse deltas need."""

PORTABLE: dict[str, Body] = {
    **both_sizes(
        {
            "dot_u4_begin": same,
            "dot_u4": portable_dot,
            "dot_u4_end": same,
            "dot_i8": portable_dot,
            "high_u4": high_bits(4),
            "high_u2": high_bits(2),
            "fma": portable_fma,
            "f16_to_f32": portable_f16_to_f32,
        }
    ),
    **SPARSE,
    "f32_to_f16": portable_f32_to_f16,
    **PORTABLE_WORDS,
    "dot_i8_bias": number(0),
    "dot_u4_takes_u8": number(0),
    "is_wide": number(0),
}
"""All but what waits: how a processor counts time and how a system sleeps has no general form."""
