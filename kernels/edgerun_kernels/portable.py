"""Numba's half of the build: every kernel as one LLVM module that knows no instruction set, kept as bitcode."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from . import objects

os.environ["NUMBA_OPT"] = "0"  # nothing of the host may leak into the modules: each ISA's own optimiser sees them raw
os.environ.setdefault("NUMBA_CPU_NAME", "generic")

import llvmlite.binding as llvm
from llvmlite import ir

if TYPE_CHECKING:
    from .kernel import Export


def build(path: Path) -> None:
    """Compiles all kernels and writes the bitcode, with the sources' hash. Needs numba; takes about a minute."""
    objects.write(path, objects.compress(_whole().as_bitcode()))


def _whole() -> llvm.ModuleRef:
    """Every exported function with all that it calls, and a C wrapper for each."""
    from . import sampling, tape, team_loop  # noqa: F401  (importing registers the exports)
    from .kernel import EXPORTS
    from .simd.named import NAMED, PREFIX

    for name in NAMED:
        llvm.add_symbol(PREFIX + name, 1)  # Numba's own JIT wants the names resolved; nothing is ever called there
    whole = llvm.parse_assembly("")
    defined: set[str] = set()
    for export in reversed(EXPORTS.values()):  # callers come after what they call, whose code their module holds
        export.function.compile(export.args)
        result = export.function.overloads[export.args]
        mangled = result.fndesc.mangled_name
        texts = [str(_wrapper(export, mangled))]
        if mangled not in defined:
            texts.append(str(result.library._final_module))
        for text in texts:
            module = llvm.parse_assembly(re.sub(r'target (triple|datalayout) = ".*"', "", text))
            for fn in module.functions:
                if not fn.is_declaration and fn.name in defined:
                    fn.linkage = "linkonce_odr"  # the same helper came with another kernel already
            defined |= {fn.name for fn in module.functions if not fn.is_declaration}
            whole.link_in(module)
    whole.verify()
    return whole


def _wrapper(export: Export, mangled: str) -> ir.Module:
    """A C function around Numba's calling convention: result and exception come back through pointers there."""
    from numba.core import types

    kinds = {types.int64: ir.IntType(64), types.float64: ir.DoubleType(), types.float32: ir.FloatType()}
    byte_pointer = ir.IntType(8).as_pointer()
    args = [kinds[a] for a in export.args]
    void = export.result == types.void
    value = byte_pointer if void else kinds[export.result]
    module = ir.Module()
    numba_type = ir.FunctionType(ir.IntType(32), [value.as_pointer(), byte_pointer.as_pointer(), *args])
    inner = ir.Function(module, numba_type, mangled)
    c_result = ir.VoidType() if void else value
    outer = ir.Function(module, ir.FunctionType(c_result, args), objects.symbol(export.name))
    b = ir.IRBuilder(outer.append_basic_block())
    result, exception = b.alloca(value), b.alloca(byte_pointer)
    b.call(inner, [result, exception, *outer.args])
    b.ret_void() if void else b.ret(b.load(result))
    return module
