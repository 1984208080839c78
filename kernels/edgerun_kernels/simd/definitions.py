"""What the definitions of an ISA are made of: vectors and their parts, and the bodies that several ISAs share."""

from collections.abc import Callable

from llvmlite import ir

from .named import F32, I8, I16, I32, I64, NAMED, vec

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


def load(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = b.load(b.bitcast(address, kind.as_pointer()))
    value.align = 1
    return value


def join(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    count = low.type.count * 2
    return b.shuffle_vector(low, high, ir.Constant(vec(I32, count), list(range(count))))


def same(b: ir.IRBuilder, value: ir.Value, *others: ir.Value) -> ir.Value:
    return value


def number(value: int) -> Body:
    """The definition of a constant."""
    return lambda b: ir.Constant(I64, value)


def by_parts(count: int, one: Body) -> Body:
    """A definition for ``count`` sums that serves twice and four times as many, too."""

    def body(b: ir.IRBuilder, *args: ir.Value) -> ir.Value:
        if args[0].type.count == count:
            return one(b, *args)
        results = [body(b, *(lanes(b, a, h * a.type.count // 2, a.type.count // 2) for a in args)) for h in (0, 1)]
        return join(b, *results)

    return body


def both_sizes(bodies: dict[str, Body]) -> dict[str, Body]:
    """Definitions that serve vectors of 16 lanes and of 8 under both names."""
    return bodies | {f"{name}_8": body for name, body in bodies.items() if f"{name}_8" in NAMED}


def high_bits(count: int) -> Body:
    """The upper bits of every byte, by a shift of words and a mask: byte shifts do not exist everywhere."""

    def body(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
        n = value.type.count
        words = b.lshr(b.bitcast(value, vec(I32, n // 4)), const(I32, n // 4, 8 - count))
        return b.and_(b.bitcast(words, value.type), const(I8, n, (1 << count) - 1))

    return body


def one_by_one(bodies: dict[str, Body]) -> dict[str, Body]:
    """Definitions of pairs for an ISA that multiplies one row of activations at a time, by its own for each."""
    begin, dot, end = (bodies[f"{name}_8"] for name in ("dot_u4_begin", "dot_u4", "dot_u4_end"))

    def pairs_begin(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
        return join(b, begin(b, first), begin(b, second))

    def pairs_dot(b: ir.IRBuilder, acc: ir.Value, w: ir.Value, w_2: ir.Value, x: ir.Value, x_2: ir.Value) -> ir.Value:
        sums = [lanes(b, acc, 8 * row, 8) for row in (0, 1)]
        for place, codes in enumerate((w, w_2)):
            for row, address in enumerate((x, x_2)):
                four = load(b, b.gep(address, [ir.Constant(I64, 4 * place)]), I32)
                one = b.insert_element(ir.Constant(vec(I32, 8), ir.Undefined), four, ir.Constant(I32, 0))
                columns = b.bitcast(b.shuffle_vector(one, one, const(I32, 8, 0)), vec(I8, 32))
                sums[row] = dot(b, sums[row], codes, columns)
        return join(b, *sums)

    def pairs_end(b: ir.IRBuilder, acc: ir.Value, first: ir.Value, second: ir.Value) -> ir.Value:
        return join(b, *(end(b, lanes(b, acc, 8 * row, 8), start) for row, start in enumerate((first, second))))

    return {**bodies, "pairs_begin_8": pairs_begin, "pairs_dot_u4_8": pairs_dot, "pairs_end_8": pairs_end}


def native_fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return call(b, f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)


def native_f16_to_f32(b: ir.IRBuilder, half: ir.Value) -> ir.Value:
    n = half.type.count
    return b.fpext(b.bitcast(half, vec(ir.HalfType(), n)), vec(F32, n))


def native_f32_to_f16(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return b.bitcast(b.fptrunc(value, vec(ir.HalfType(), 16)), vec(I16, 16))
