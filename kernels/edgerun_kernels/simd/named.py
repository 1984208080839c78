"""The names of the operations that an ISA defines: what kernels call and ISA modules supply. Needs llvmlite only."""

from llvmlite import ir

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER = I8.as_pointer()
PREFIX = "edgerun."


def vec(element: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(element, lanes)


def _of(lanes: int) -> dict[str, tuple[ir.Type, list[ir.Type]]]:
    """Operations on vectors of ``lanes`` 32-bit numbers."""
    i32, i8, f32 = vec(I32, lanes), vec(I8, 4 * lanes), vec(F32, lanes)
    return {
        "dot_u4_begin": (i32, [i32]),
        "dot_u4": (i32, [i32, i8, i8]),
        "dot_u4_end": (i32, [i32, i32]),
        "dot_i8": (i32, [i32, i8, i8]),
        "high_u4": (i8, [i8]),
        "high_u2": (i8, [i8]),
        "fma": (f32, [f32, f32, f32]),
        "f16_to_f32": (f32, [vec(I16, lanes)]),
    }


NAMED: dict[str, tuple[ir.Type, list[ir.Type]]] = {
    **_of(16),
    # An ISA whose registers are short keeps tiles of half vectors in them.
    **{f"{name}_8": signature for name, signature in _of(8).items()},
    # Two rows of activations at once; what runs, an ISA arranges as it likes.
    "pairs_begin_8": (vec(I32, 16), [vec(I32, 8)] * 2),
    "pairs_dot_u4_8": (vec(I32, 16), [vec(I32, 16), vec(I8, 32), vec(I8, 32), POINTER, POINTER]),
    "pairs_end_8": (vec(I32, 16), [vec(I32, 16), vec(I32, 8), vec(I32, 8)]),
    # 16 of the float32 at an address, by their index; behind the first line: below 32, 64, 128.
    **{name: (vec(F32, 16), [I64, vec(I32, 16)]) for name in ("gather", "window_32", "window_64", "window_128")},
    "int4_to_float": (vec(F32, 16), [vec(I32, 16)]),
    "f32_to_f16": (vec(I16, 16), [vec(F32, 16)]),
    "lookup_i16": (vec(I16, 32), [vec(I16, 32), vec(I16, 32)]),
    "has_lookup_i16": (I64, []),
    "high_product_u16": (vec(I16, 32), [vec(I16, 32), vec(I16, 32)]),
    "digits_i16": (vec(I16, 32), [vec(I16, 32)]),
    "dot_i8_bias": (I64, []),
    "dot_u4_takes_u8": (I64, []),
    "is_wide": (I64, []),
    "ticks": (I64, []),
    "pause": (ir.VoidType(), []),
    "wait_on": (ir.VoidType(), [I64, I64]),
    "wake_all": (ir.VoidType(), [I64]),
}
"""Name -> (result, arguments)."""
