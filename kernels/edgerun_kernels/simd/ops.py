"""What a kernel can say: memory, lanes, conversions, atomics, and the named operations that each ISA defines.

Addresses are int64. Memory is never checked here: whoever fills an op record has validated every size.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .named import F32, I8, I32, I64, NAMED, PREFIX
from .types import Vec, f32x16, i16x16, i32x16


def declare(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Type]) -> ir.Function:
    module = builder.module
    found = module.globals.get(name)
    return found if found is not None else ir.Function(module, ir.FunctionType(result, args), name)


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


def _named(name: str, result: Any, *args: Any) -> Any:
    """An intrinsic that calls the ISA's definition of ``name``."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, values: Any) -> Any:
        out = b.call(declare(b, PREFIX + name, *NAMED[name]), values)
        return ctx.get_dummy_value() if result == types.void else out

    sig = result(*args)
    template: dict[int, Callable[..., Any]] = {
        0: lambda typingctx: (sig, codegen),
        1: lambda typingctx, a: (sig, codegen),
        2: lambda typingctx, a, b: (sig, codegen),
        3: lambda typingctx, a, b, c: (sig, codegen),
    }
    return intrinsic(template[len(args)])


dot_i8_bias = _named("dot_i8_bias", types.int64)
dot_u4_takes_u8 = _named("dot_u4_takes_u8", types.int64)
"""Whether ``dot_u4`` multiplies any unsigned bytes, and sums in 32 bits as it goes."""
fma = _named("fma", f32x16, f32x16, f32x16, f32x16)
f16_to_f32 = _named("f16_to_f32", f32x16, i16x16)
f32_to_f16 = _named("f32_to_f16", i16x16, f32x16)
gather = _named("gather", f32x16, types.int64, i32x16)
"""16 of the float32 at an address, by their index (0 to 2**31 - 1)."""
int4_to_float = _named("int4_to_float", f32x16, i32x16)
"""The low 4 bits of every lane as a signed number; whatever lies above."""
window_32, window_64, window_128 = (_named(f"window_{n}", f32x16, types.int64, i32x16) for n in (32, 64, 128))
"""The same for indexes below n, of which an ISA may hold the whole window in registers: it is read whole."""
is_wide = _named("is_wide", types.int64)
has_lookup_i16 = _named("has_lookup_i16", types.int64)
"""Whether ``lookup_i16``, 32 words by their indexes in a table of 32, is an instruction."""
ticks = _named("ticks", types.int64)
pause = _named("pause", types.void)
wait_on = _named("wait_on", types.void, types.int64, types.int64)
"""Sleeps while the int64 at an address has a value (its low half decides), until woken; may return early."""
wake_all = _named("wake_all", types.void, types.int64)
"""Wakes every thread that sleeps on an address."""


def _load(kind: Any, llvm: ir.Type, align: int) -> Any:
    @intrinsic
    def load(typingctx, address):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            value = b.load(b.inttoptr(args[0], llvm.as_pointer()))
            value.align = align
            return value

        return kind(types.int64), codegen

    return load


def _store(kind: Any, llvm: ir.Type, align: int) -> Any:
    @intrinsic
    def store(typingctx, address, value):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            b.store(args[1], b.inttoptr(args[0], llvm.as_pointer())).align = align
            return ctx.get_dummy_value()

        return types.void(types.int64, kind), codegen

    return store


load_i64, store_i64 = _load(types.int64, I64, 8), _store(types.int64, I64, 8)
load_i32, store_i32 = _load(types.int32, I32, 4), _store(types.int32, I32, 4)
load_i16, store_i16 = _load(types.int16, ir.IntType(16), 2), _store(types.int16, ir.IntType(16), 2)
load_i8 = _load(types.int8, I8, 1)
load_u8, store_u8 = _load(types.uint8, I8, 1), _store(types.uint8, I8, 1)
load_f32, store_f32 = _load(types.float32, F32, 4), _store(types.float32, F32, 4)

load_i16x16, store_i16x16 = _load(i16x16, i16x16.llvm, 2), _store(i16x16, i16x16.llvm, 2)
load_i32x16, store_i32x16 = _load(i32x16, i32x16.llvm, 4), _store(i32x16, i32x16.llvm, 4)
load_f32x16, store_f32x16 = _load(f32x16, f32x16.llvm, 4), _store(f32x16, f32x16.llvm, 4)


def _load_bytes(widen: str) -> Any:
    @intrinsic
    def load(typingctx, address):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            stored = b.load(b.inttoptr(args[0], ir.VectorType(I8, 16).as_pointer()))
            stored.align = 1
            return getattr(b, widen)(stored, i32x16.llvm)

        return i32x16(types.int64), codegen

    return load


load_i8x16, load_u8x16 = _load_bytes("sext"), _load_bytes("zext")
"""16 signed or unsigned bytes as i32x16."""


@intrinsic
def load_bf16x16(typingctx, address):
    """16 bfloat16 as f32x16."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        stored = b.load(b.inttoptr(args[0], ir.VectorType(ir.IntType(16), 16).as_pointer()))
        stored.align = 2
        bits = b.shl(b.zext(stored, i32x16.llvm), ir.Constant(i32x16.llvm, [16] * 16))
        return b.bitcast(bits, f32x16.llvm)

    return f32x16(types.int64), codegen


@intrinsic
def sum_of_f64(typingctx, address, stride, count):
    """16 float64 at an address, and ``count - 1`` more of them ``stride`` bytes apart, added up and rounded once."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.DoubleType(), 16)
        total = cgutils.alloca_once_value(b, ir.Constant(kind, [0.0] * 16))
        with cgutils.for_range(b, args[2]) as loop:
            place = b.add(args[0], b.mul(loop.index, args[1]))
            value = b.load(b.inttoptr(place, kind.as_pointer()))
            value.align = 8
            b.store(b.fadd(b.load(total), value), total)
        return b.fptrunc(b.load(total), f32x16.llvm)

    return f32x16(types.int64, types.int64, types.int64), codegen


def _field(kind: Any, llvm: ir.Type) -> Any:
    """A field of an op or run record: element ``index`` of 8 bytes. One operation, because Numba types every ``+``."""

    @intrinsic
    def field(typingctx, record, index):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            value = b.load(b.gep(b.inttoptr(args[0], llvm.as_pointer()), [args[1]]))
            value.align = 8
            return value

        return kind(types.int64, types.int64), codegen

    return field


field, field_f64 = _field(types.int64, I64), _field(types.float64, ir.DoubleType())


def splat_value(b: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    vector = ir.VectorType(scalar.type, lanes)
    undef = ir.Constant(vector, ir.Undefined)
    one = b.insert_element(undef, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


@intrinsic
def splat(typingctx, value):
    """float32 -> f32x16, all lanes alike."""
    return f32x16(types.float32), lambda ctx, b, sig, args: splat_value(b, args[0], 16)


@intrinsic
def splat_i32(typingctx, value):
    """int32 -> i32x16, all lanes alike."""
    return i32x16(types.int32), lambda ctx, b, sig, args: splat_value(b, args[0], 16)


@intrinsic
def zero_i32(typingctx):
    return i32x16(), lambda ctx, b, sig, args: ir.Constant(i32x16.llvm, [0] * 16)


def byte_bits(b: ir.IRBuilder, value: ir.Value, first: int, count: int, at: int = 0) -> ir.Value:
    """Bits ``first`` to ``first + count - 1`` of every byte, moved to bit ``at``."""
    bytes_ = value.type
    words = ir.VectorType(I32, bytes_.count // 4)  # 16-bit or wider shifts exist everywhere, byte shifts do not
    if first != at:
        move, by = (b.lshr, first - at) if first > at else (b.shl, at - first)
        value = b.bitcast(move(b.bitcast(value, words), ir.Constant(words, [by] * words.count)), bytes_)
    return b.and_(value, ir.Constant(bytes_, [((1 << count) - 1) << at] * bytes_.count))


@intrinsic
def shift_right(typingctx, value, count):
    """Logical shift of every 32-bit lane by the same count (0 to 31)."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.lshr(args[0], splat_value(b, b.trunc(args[1], I32), 16))

    return i32x16(i32x16, types.int64), codegen


@intrinsic
def sign_extend_byte(typingctx, value, index):
    """Byte ``index`` (0 to 3) of every 32-bit lane, sign-extended."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        bits = b.mul(b.trunc(args[1], I32), ir.Constant(I32, 8))
        up = b.shl(args[0], splat_value(b, b.sub(ir.Constant(I32, 24), bits), 16))
        return b.ashr(up, ir.Constant(i32x16.llvm, [24] * 16))

    return i32x16(i32x16, types.int64), codegen


@intrinsic
def to_float(typingctx, value):
    return f32x16(i32x16), lambda ctx, b, sig, args: b.sitofp(args[0], f32x16.llvm)


@intrinsic
def round_to_int(typingctx, value):
    """Nearest integer, ties to even, of |x| < 2**22; other values give an arbitrary integer, never a trap."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        magic = 12582912.0  # 1.5 * 2**23: the sum's low mantissa bits are the rounded integer
        shifted = b.bitcast(b.fadd(args[0], ir.Constant(f32x16.llvm, [magic] * 16)), i32x16.llvm)
        return b.sub(shifted, ir.Constant(i32x16.llvm, [0x4B400000] * 16))

    return i32x16(f32x16), codegen


@intrinsic
def store_low_bytes(typingctx, address, value):
    """The low byte of each 32-bit lane, as 16 bytes."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        narrow = b.trunc(args[1], ir.VectorType(I8, 16))
        b.store(narrow, b.inttoptr(args[0], narrow.type.as_pointer())).align = 1
        return ctx.get_dummy_value()

    return types.void(types.int64, i32x16), codegen


@intrinsic
def power_of_two(typingctx, value):
    """2**n of integer lanes in [-126, 127]."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        biased = b.add(args[0], ir.Constant(i32x16.llvm, [127] * 16))
        return b.bitcast(b.shl(biased, ir.Constant(i32x16.llvm, [23] * 16)), f32x16.llvm)

    return f32x16(i32x16), codegen


def _choose(comparison: str) -> Any:
    @intrinsic
    def choose(typingctx, a, b):
        def codegen(ctx: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[0], args[1])

        return f32x16(f32x16, f32x16), codegen

    return choose


vmax, vmin = _choose(">"), _choose("<")


@intrinsic
def vabs(typingctx, value):
    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        bits = b.bitcast(args[0], i32x16.llvm)
        return b.bitcast(b.and_(bits, ir.Constant(i32x16.llvm, [0x7FFFFFFF] * 16)), f32x16.llvm)

    return f32x16(f32x16), codegen


@intrinsic
def first_lanes(typingctx, value, count, other):
    """Lanes below ``count`` from ``value``, the rest from ``other``."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        limit = splat_value(b, b.trunc(args[1], I32), 16)
        keep = b.icmp_signed("<", ir.Constant(i32x16.llvm, list(range(16))), limit)
        return b.select(keep, args[0], args[2])

    return f32x16(f32x16, types.int64, f32x16), codegen


@intrinsic
def kept(typingctx, value, size, limit):
    """Lanes of ``value`` where ``size`` is at least ``limit``; 0 elsewhere."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        keep = b.fcmp_ordered(">=", args[1], args[2])
        return b.select(keep, args[0], ir.Constant(i32x16.llvm, [0] * 16))

    return i32x16(i32x16, f32x16, f32x16), codegen


@intrinsic
def extract(typingctx, value, index):
    """One lane of f32x16."""
    return types.float32(f32x16, types.int64), lambda ctx, b, sig, args: b.extract_element(args[0], args[1])


def _reduce(vec: Vec, scalar: Any, combine: Callable[[ir.IRBuilder, Any, Any], Any]) -> Any:
    """A tree over the lanes: the same order on every target, so results do not depend on the ISA's own reduction."""

    @intrinsic
    def reduce(typingctx, value):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            value, lanes = args[0], vec.lanes
            while lanes > 1:
                lanes //= 2
                undef = ir.Constant(value.type, ir.Undefined)
                index = ir.VectorType(I32, lanes)
                low = b.shuffle_vector(value, undef, ir.Constant(index, list(range(lanes))))
                high = b.shuffle_vector(value, undef, ir.Constant(index, list(range(lanes, 2 * lanes))))
                value = combine(b, low, high)
            return b.extract_element(value, ir.Constant(I32, 0))

        return scalar(vec), codegen

    return reduce


sum_f32 = _reduce(f32x16, types.float32, lambda b, x, y: b.fadd(x, y))
sum_i32 = _reduce(i32x16, types.int32, lambda b, x, y: b.add(x, y))
max_f32 = _reduce(f32x16, types.float32, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@intrinsic
def nonzero_bytes(typingctx, address):
    """Bit i of the result: whether byte i of the 64 at an address is not 0."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(I8, 64)
        stored = b.load(b.inttoptr(args[0], kind.as_pointer()))
        stored.align = 1
        return b.bitcast(b.icmp_unsigned("!=", stored, ir.Constant(kind, [0] * 64)), I64)

    return types.int64(types.int64), codegen


def _bits(name: str, *more: ir.Constant) -> Any:
    @intrinsic
    def operation(typingctx, value):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            fn = declare(b, name, I64, [I64, *(constant.type for constant in more)])
            return b.call(fn, [args[0], *more])

        return types.int64(types.int64), codegen

    return operation


count_ones, first_one = _bits("llvm.ctpop.i64"), _bits("llvm.cttz.i64", ir.Constant(ir.IntType(1), 1))
"""Of an int64: how many bits are set; which is the lowest that is (any number if none is)."""


@intrinsic
def sqrt(typingctx, value):
    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.call(declare(b, "llvm.sqrt.f32", F32, [F32]), args)

    return types.float32(types.float32), codegen


def _prefetch(locality: int) -> Any:
    @intrinsic
    def prefetch(typingctx, address):
        def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            pointer = I8.as_pointer()
            fn = declare(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32, I32, I32])
            place = b.inttoptr(args[0], pointer)
            b.call(fn, [place, ir.Constant(I32, 0), ir.Constant(I32, locality), ir.Constant(I32, 1)])
            return ctx.get_dummy_value()

        return types.void(types.int64), codegen

    return prefetch


prefetch, prefetch_far, prefetch_once = _prefetch(3), _prefetch(2), _prefetch(0)
"""Fetches a line: into the first cache, into the second, or to be read once and not kept."""


@intrinsic
def atomic_add(typingctx, address, value):
    """Adds, sequentially consistent; gives the old value."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", b.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_exchange(typingctx, address, value):
    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("xchg", b.inttoptr(args[0], I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_compare_exchange(typingctx, address, expected, value):
    """Stores ``value`` where ``expected`` stood; gives what stood there."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], I64.as_pointer())
        return b.extract_value(b.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst"), 0)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, address):
    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.load_atomic(b.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        b.store_atomic(args[1], b.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def yield_processor(typingctx):
    """Gives the rest of the time slice to another thread (sched_yield of the C library)."""

    def codegen(ctx: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        b.call(declare(b, "sched_yield", I32, []), [])
        return ctx.get_dummy_value()

    return types.void(), codegen
