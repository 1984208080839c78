"""How a thread sleeps and is woken on Linux; other systems answer the same calls as they can (see ``load``)."""

from llvmlite import ir

from .definitions import Body
from .named import I64


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
