"""Numba types for vectors of 512 and of 256 bits, with the arithmetic operators that every target has for them."""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import register_model

ELEMENTS: dict[str, ir.Type] = {
    "i8": ir.IntType(8),
    "i16": ir.IntType(16),
    "i32": ir.IntType(32),
    "f32": ir.FloatType(),
}


class Vec(types.Type):
    """A vector of ``lanes`` elements of kind ``element`` (a key of ELEMENTS)."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"{element}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ELEMENTS[self.element], self.lanes)

    @property
    def is_float(self) -> bool:
        return self.element == "f32"


@register_model(Vec)
class VecModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vec.llvm)


i8x64, i8x32 = Vec("i8", 64), Vec("i8", 32)
i16x32, i16x16, i16x8 = Vec("i16", 32), Vec("i16", 16), Vec("i16", 8)
i32x16, i32x8 = Vec("i32", 16), Vec("i32", 8)
f32x16, f32x8 = Vec("f32", 16), Vec("f32", 8)


def _operator(symbol: Callable[..., Any], on_float: str | None, on_int: str | None) -> None:
    @infer_global(symbol)
    class VecOperator(AbstractTemplate):
        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            if kws or len(args) != 2 or not isinstance(args[0], Vec) or args[0] != args[1]:
                return None
            known = on_float if args[0].is_float else on_int
            return signature(args[0], *args) if known else None

    @lower_builtin(symbol, Vec, Vec)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple[ir.Value, ...]) -> ir.Value:
        name = on_float if sig.return_type.is_float else on_int
        return getattr(builder, str(name))(*args)


_operator(operator.add, "fadd", "add")
_operator(operator.sub, "fsub", "sub")
_operator(operator.mul, "fmul", "mul")
_operator(operator.truediv, "fdiv", None)
_operator(operator.and_, None, "and_")
_operator(operator.or_, None, "or_")
_operator(operator.xor, None, "xor")
