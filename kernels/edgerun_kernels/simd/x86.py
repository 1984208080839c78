"""Definitions for x86-64: AVX2, and the dot products of AVX-VNNI and AVX-512 VNNI."""

from llvmlite import ir

from .definitions import (
    Body,
    both_sizes,
    by_parts,
    call,
    const,
    high_bits,
    native_f16_to_f32,
    native_f32_to_f16,
    native_fma,
    number,
    same,
)
from .futex import futex
from .named import F32, I8, I16, I32, I64, vec
from .portable import PORTABLE, PORTABLE_WORDS, SPARSE


def cycle_counter(b: ir.IRBuilder) -> ir.Value:
    return call(b, "llvm.readcyclecounter", I64)


def x86_pause(b: ir.IRBuilder) -> None:
    call(b, "llvm.x86.sse2.pause", ir.VoidType())


def _maddubs(b: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", vec(I16, 16), unsigned, signed)


def _pairs(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.wd", vec(I32, 8), words, const(I16, 16, 1))


def avx2_begin(b: ir.IRBuilder, start: ir.Value) -> ir.Value:
    return const(I32, start.type.count, 0)


def avx2_dot_u4(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """Sums pairs in 16 bits: 8 calls hold 8 * 2 * 15 * 127 < 2**15, so a group of 32 columns never overflows."""
    return b.bitcast(b.add(b.bitcast(acc, vec(I16, 16)), _maddubs(b, w, x)), vec(I32, 8))


def avx2_end(b: ir.IRBuilder, acc: ir.Value, start: ir.Value) -> ir.Value:
    return b.add(_pairs(b, b.bitcast(acc, vec(I16, 16))), start)


def avx2_dot_i8(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """|w| times x with w's sign: |w| <= 128 and |x| <= 127, so a pair fits 16 bits."""
    size = call(b, "llvm.abs.v32i8", vec(I8, 32), w, ir.Constant(ir.IntType(1), 0))
    signed = call(b, "llvm.x86.avx2.psign.b", vec(I8, 32), x, w)
    return b.add(acc, _pairs(b, _maddubs(b, size, signed)))


def avx512_window(b: ir.IRBuilder, address: ir.Value, index: ir.Value, n_vectors: int) -> ir.Value:
    """A permutation of every two registers of the window, and of those what the index's higher bits choose."""
    kind = vec(F32, 16)
    table = b.inttoptr(address, kind.as_pointer())
    found = []
    for i in range(0, n_vectors, 2):
        pair = [b.load(b.gep(table, [ir.Constant(I64, i + j)])) for j in (0, 1)]
        for part in pair:
            part.align = 4
        found.append(call(b, "llvm.x86.avx512.vpermi2var.ps.512", kind, pair[0], index, pair[1]))
    bit = 32
    while len(found) > 1:
        high = b.icmp_unsigned("!=", b.and_(index, const(I32, 16, bit)), const(I32, 16, 0))
        found = [b.select(high, found[i + 1], found[i]) for i in range(0, len(found), 2)]
        bit *= 2
    return found[0]


def avx512_int4_to_float(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Looked up: the permutation takes the low 4 bits for itself."""
    table = ir.Constant(vec(F32, 16), [float(i - 16 * (i > 7)) for i in range(16)])
    return call(b, "llvm.x86.avx512.permvar.sf.512", vec(F32, 16), table, value)


AVX2: dict[str, Body] = {
    **both_sizes(
        {
            "dot_u4_begin": avx2_begin,
            "dot_u4": by_parts(8, avx2_dot_u4),
            "dot_u4_end": by_parts(8, avx2_end),
            "dot_i8": by_parts(8, avx2_dot_i8),
            "high_u4": high_bits(4),
            "high_u2": high_bits(2),
            "fma": native_fma,
            "f16_to_f32": native_f16_to_f32,
        }
    ),
    **SPARSE,
    "f32_to_f16": native_f32_to_f16,
    **PORTABLE_WORDS,
    "dot_i8_bias": number(0),
    "dot_u4_takes_u8": number(0),
    "is_wide": number(0),
    "ticks": cycle_counter,
    "pause": x86_pause,
    **futex(202),
}


def vnni_256(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx512.vpdpbusd.256", vec(I32, 8), acc, w, x)


def vnni_512(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx512.vpdpbusd.512", vec(I32, 16), acc, w, x)


def signed_weights(dot: Body) -> Body:
    """The instruction wants unsigned weights: w + 128, which ``dot_i8_bias`` tells the kernel to take off again."""
    return lambda b, acc, w, x: dot(b, acc, b.xor(w, const(I8, w.type.count, -128)), x)


def vnni(dot_16: Body, dot_8: Body) -> dict[str, Body]:
    """AVX2 with a dot product of bytes in 32 bits."""
    return {
        **AVX2,
        **both_sizes({"dot_u4_begin": same, "dot_u4_end": same}),
        "dot_u4": dot_16,
        "dot_u4_8": dot_8,
        "dot_i8": signed_weights(dot_16),
        "dot_i8_8": signed_weights(dot_8),
        "dot_i8_bias": number(128),
        "dot_u4_takes_u8": number(1),
    }


def avx512_lookup(b: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx512.permvar.hi.512", vec(I16, 32), table, index)


def avx512_high_product(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx512.pmulhu.w.512", vec(I16, 32), x, y)


def avx512_digits(b: ir.IRBuilder, codes: ir.Value) -> ir.Value:
    table = [code % 9 % 3 | code // 9 << 4 | code % 9 // 3 << 8 for code in range(32)]
    return avx512_lookup(b, ir.Constant(vec(I16, 32), table), codes)


X86_64 = {**PORTABLE, "ticks": cycle_counter, "pause": x86_pause, **futex(202)}
AVX_VNNI = vnni(by_parts(8, vnni_256), vnni_256)
AVX512_VNNI: dict[str, Body] = {
    **vnni(vnni_512, vnni_256),
    "lookup_i16": avx512_lookup,
    "has_lookup_i16": number(1),
    "high_product_u16": avx512_high_product,
    "digits_i16": avx512_digits,
    "is_wide": number(1),
    "int4_to_float": avx512_int4_to_float,
    "window_32": lambda b, address, index: avx512_window(b, address, index, 2),
    "window_64": lambda b, address, index: avx512_window(b, address, index, 4),
    "window_128": lambda b, address, index: avx512_window(b, address, index, 8),
}
