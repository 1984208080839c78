"""Numba's half of the build: every kernel as one LLVM module that knows no instruction set, kept as bitcode."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from . import objects

os.environ["NUMBA_OPT"] = "0"  # nothing of the host may leak into the modules: each ISA's own optimiser sees them raw
os.environ.setdefault("NUMBA_CPU_NAME", "generic")

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

if TYPE_CHECKING:
    from ..kernel import Export


def build(path: Path) -> None:
    """Compiles all kernels and writes the bitcode, with the sources' hash. Needs numba; takes about a minute."""
    objects.write(path, objects.compress(_whole().as_bitcode()))


def _whole() -> llvm.ModuleRef:
    """Every exported function with all that it calls, and a C wrapper for each."""
    libraries: dict[int, Any] = {}
    wrappers = []
    with _separate_libraries():
        from ..kernel import EXPORTS
        from ..ops import sampling  # noqa: F401  (importing registers the exports)
        from ..runtime.loop import team_loop  # noqa: F401

        for export in EXPORTS.values():
            export.function.compile(export.args)
            result = export.function.overloads[export.args]
            wrappers.append(str(_wrapper(export, result.fndesc.mangled_name)))
            waiting = [result.library]
            while waiting:
                library = waiting.pop()
                if id(library) not in libraries:
                    libraries[id(library)] = library
                    waiting.extend(library._linking_libraries)
    whole = llvm.parse_assembly("")
    defined: set[str] = set()
    for text in (*(str(library._final_module) for library in libraries.values()), *wrappers):
        module = llvm.parse_assembly(re.sub(r'target (triple|datalayout) = ".*"', "", text))
        for fn in module.functions:
            if not fn.is_declaration and fn.name in defined:
                fn.linkage = "linkonce_odr"  # the same helper came with another kernel already
        defined |= {fn.name for fn in module.functions if not fn.is_declaration}
        whole.link_in(module)
    whole.verify()
    return whole


@contextmanager
def _separate_libraries() -> Iterator[None]:
    """While it lasts, each of Numba's libraries keeps its own functions alone. Else Numba links everything that a
    function calls into every caller's library, and has the host's JIT make machine code of each: of kernels that call
    each other, gigabytes of modules that nobody runs."""

    def finalize(library: Any) -> None:
        library._raise_if_finalized()
        library._finalized = True

    with ExitStack() as stack:
        for owner, name, stub in (
            (JITCodeLibrary, "finalize", finalize),
            (JITCodeLibrary, "get_pointer_to_function", lambda library, name: 1),
            (JITCPUCodegen, "set_env", lambda codegen, name, env: None),
        ):
            stack.enter_context(patch.object(owner, name, stub))
        yield


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
