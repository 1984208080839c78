"""How: the LLVM modules that define the named operations, one function per instruction set.

A definition may use any LLVM operation and the target's intrinsics; it is inlined into every kernel.
``portable`` uses generic LLVM only, so it compiles for every target that LLVM knows.
"""

from collections.abc import Callable

from llvmlite import ir

from .named import F32, I8, I16, I32, I64, NAMED, PREFIX, vec

Body = Callable[..., "ir.Value | None"]


def const(element: ir.Type, lanes: int, value: float) -> ir.Constant:
    return ir.Constant(vec(element, lanes), [value] * lanes)


def call(b: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    module = b.module
    fn = module.globals.get(name) or ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(fn, args)


def lanes(b: ir.IRBuilder, value: ir.Value, start: int, count: int, step: int = 1) -> ir.Value:
    index = ir.Constant(vec(I32, count), [start + step * i for i in range(count)])
    return b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), index)


def join(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    count = low.type.count * 2
    return b.shuffle_vector(low, high, ir.Constant(vec(I32, count), list(range(count))))


# --- portable: generic LLVM -------------------------------------------------------------------------------------------


def portable_dot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
    """acc[r] += sum of w[4r+j] * x[4r+j], signed bytes."""
    count = acc.type.count
    wide = vec(I32, 4 * count)
    products = b.mul(b.sext(w, wide), b.sext(x, wide))
    quarters = [lanes(b, products, i, count, 4) for i in range(4)]
    return b.add(acc, b.add(b.add(quarters[0], quarters[1]), b.add(quarters[2], quarters[3])))


def same(b: ir.IRBuilder, value: ir.Value, *others: ir.Value) -> ir.Value:
    return value


def number(value: int) -> Body:
    """The definition of a constant."""
    return lambda b: ir.Constant(I64, value)


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


def nothing(b: ir.IRBuilder) -> None:
    return None


def cycle_counter(b: ir.IRBuilder) -> ir.Value:
    return call(b, "llvm.readcyclecounter", I64)


def steady_counter(b: ir.IRBuilder) -> ir.Value:
    """The cycle counter of AArch64 is not for user programs; its timer is."""
    return call(b, "llvm.readsteadycounter", I64)


def futex(number: int) -> dict[str, Body]:
    """Sleeping and waking on Linux, whose system call has another number on each architecture."""

    def system_call(b: ir.IRBuilder, address: ir.Value, operation: int, value: ir.Value) -> None:
        name, private, nothing = "syscall", 128, ir.Constant(I64, 0)
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        fn = b.module.globals.get(name) or ir.Function(b.module, kind, name)
        b.call(fn, [ir.Constant(I64, number), address, ir.Constant(I64, operation | private), value] + [nothing] * 3)

    def wait_on(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
        system_call(b, address, 0, b.and_(value, ir.Constant(I64, 0xFFFFFFFF)))

    def wake_all(b: ir.IRBuilder, address: ir.Value) -> None:
        system_call(b, address, 1, ir.Constant(I64, 0x7FFFFFFF))

    return {"wait_on": wait_on, "wake_all": wake_all}


def both_sizes(bodies: dict[str, Body]) -> dict[str, Body]:
    """Definitions that serve vectors of 16 lanes and of 8 under both names."""
    return bodies | {f"{name}_8": body for name, body in bodies.items() if f"{name}_8" in NAMED}


PORTABLE: dict[str, Body] = {
    **both_sizes(
        {
            "dot_u4_begin": same,
            "dot_u4": portable_dot,
            "dot_u4_end": same,
            "dot_i8": portable_dot,
            "fma": portable_fma,
            "f16_to_f32": portable_f16_to_f32,
        }
    ),
    "f32_to_f16": portable_f32_to_f16,
    "dot_i8_bias": number(0),
    "dot_u4_takes_u8": number(0),
    "is_wide": number(0),
    "ticks": steady_counter,
    "pause": nothing,
    **futex(98),
}


# --- x86 -------------------------------------------------------------------------------------------------------------


def x86_pause(b: ir.IRBuilder) -> None:
    call(b, "llvm.x86.sse2.pause", ir.VoidType())


def native_fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return call(b, f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)


def native_f16_to_f32(b: ir.IRBuilder, half: ir.Value) -> ir.Value:
    n = half.type.count
    return b.fpext(b.bitcast(half, vec(ir.HalfType(), n)), vec(F32, n))


def native_f32_to_f16(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return b.bitcast(b.fptrunc(value, vec(ir.HalfType(), 16)), vec(I16, 16))


def _maddubs(b: ir.IRBuilder, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", vec(I16, 16), unsigned, signed)


def _pairs(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.wd", vec(I32, 8), words, const(I16, 16, 1))


def by_halves(one: Body) -> Body:
    """A definition for 256-bit arguments that serves 512-bit ones, too."""

    def body(b: ir.IRBuilder, *args: ir.Value) -> ir.Value:
        if args[0].type.count == 8:
            return one(b, *args)
        results = [one(b, *(lanes(b, a, h * a.type.count // 2, a.type.count // 2) for a in args)) for h in (0, 1)]
        return join(b, *results)

    return body


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


AVX2: dict[str, Body] = {
    **both_sizes(
        {
            "dot_u4_begin": avx2_begin,
            "dot_u4": by_halves(avx2_dot_u4),
            "dot_u4_end": by_halves(avx2_end),
            "dot_i8": by_halves(avx2_dot_i8),
            "fma": native_fma,
            "f16_to_f32": native_f16_to_f32,
        }
    ),
    "f32_to_f16": native_f32_to_f16,
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


DEFINITIONS: dict[str, dict[str, Body]] = {
    "avx512_vnni": {**vnni(vnni_512, vnni_256), "is_wide": number(1)},
    "avx_vnni": vnni(by_halves(vnni_256), vnni_256),
    "avx2": AVX2,
    "portable_x86_64": {**PORTABLE, "ticks": cycle_counter, "pause": x86_pause, **futex(202)},
    "portable_aarch64": PORTABLE,
}
"""By the name of the target (``edgerun_kernels.targets``)."""


def module(target: str) -> ir.Module:
    """The definitions for a target as an LLVM module, each function always inlined."""
    module = ir.Module(f"edgerun.{target}")
    for name, (result, args) in NAMED.items():
        fn = ir.Function(module, ir.FunctionType(result, args), PREFIX + name)
        fn.attributes.add("alwaysinline")
        b = ir.IRBuilder(fn.append_basic_block())
        value = DEFINITIONS[target][name](b, *fn.args)
        b.ret_void() if value is None else b.ret(value)
    return module
