"""Compiles the kernels ahead of time: Numba to LLVM IR once, then one object file per instruction set.

    python -m edgerun_kernels.build [--out DIR] [--isa NAME ...]

Needs numba; no C compiler, no linker. An object that is current (same sources) is not built again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import objects
from .targets import TARGETS, Target, architecture

os.environ["NUMBA_OPT"] = "0"  # nothing of the host may leak into the modules: each ISA's own optimiser sees them raw
os.environ.setdefault("NUMBA_CPU_NAME", "generic")

import llvmlite.binding as llvm
from llvmlite import ir

if TYPE_CHECKING:
    from .kernel import Export

DESCRIPTION = "Compiles the kernels ahead of time, one object file per instruction set."
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}


def _numba_modules() -> tuple[list[str], list[tuple[str, str, str]]]:
    """The IR of every exported function with all that it calls, and C wrappers: (name, mangled name, LLVM wrapper)."""
    from . import sampling, tape, team_loop  # noqa: F401  (importing registers the exports)
    from .kernel import EXPORTS
    from .simd.ops import NAMED, PREFIX

    for name in NAMED:
        llvm.add_symbol(PREFIX + name, 1)  # Numba's own JIT wants the names resolved; nothing is ever called there
    modules: list[str] = []
    names = []
    defined: set[str] = set()
    for export in reversed(EXPORTS.values()):  # callers come after what they call, whose code their module holds
        export.function.compile(export.args)
        result = export.function.overloads[export.args]
        module = result.library._final_module
        if result.fndesc.mangled_name not in defined:
            modules.append(str(module))
            defined |= {fn.name for fn in module.functions if not fn.is_declaration}
        names.append((export.name, result.fndesc.mangled_name, str(_wrapper(export, result.fndesc.mangled_name))))
    return modules, names


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


def _emit(target: Target, modules: list[str], names: list[tuple[str, str, str]]) -> tuple[bytes, str]:
    from .simd import isa

    triple = TRIPLES[target.architecture]
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.llvm_cpu, features=target.llvm_features, opt=3, reloc="pic", codemodel="default"
    )

    def parse(text: str) -> llvm.ModuleRef:
        text = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', text)
        text = re.sub(r'target datalayout = ".*"', f'target datalayout = "{machine.target_data}"', text)
        return llvm.parse_assembly(text)

    whole = parse(modules[0])
    defined = {fn.name for fn in whole.functions if not fn.is_declaration}
    for text in [*modules[1:], str(isa.module(target.name)), *(wrapper for _, _, wrapper in names)]:
        module = parse(text)
        for fn in module.functions:
            if not fn.is_declaration and fn.name in defined:
                fn.linkage = "linkonce_odr"  # the same helper came with another kernel already
        defined |= {fn.name for fn in module.functions if not fn.is_declaration}
        whole.link_in(module)
    public = {objects.symbol(name) for name, _, _ in names}
    for fn in whole.functions:
        if not fn.is_declaration and fn.name not in public:
            fn.linkage = "internal"
    whole.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(whole, passes)
    return machine.emit_object(whole), machine.emit_assembly(whole)


def build(out: Path, isas: list[str] | None = None, assembly: bool = False) -> list[Path]:
    """Builds the objects of ``isas`` (default: all of this machine's architecture) into ``out``; gives the paths.

    Current objects stay as they are. assembly: builds all the same, and writes the assembly beside each object.
    """
    wanted = [t for t in TARGETS if (t.name in isas if isas else t.architecture == architecture())]
    paths = {target.name: out / objects.file_name(target.name) for target in wanted}
    missing = [target for target in wanted if assembly or not objects.is_current(paths[target.name])]
    if missing:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        what = ", ".join(target.name for target in missing)
        print(f"edgerun: compiling kernels for {what} (about a minute)", file=sys.stderr, flush=True)
        modules, names = _numba_modules()
        for target in missing:
            code, text = _emit(target, modules, names)
            objects.write(paths[target.name], code)
            if assembly:
                paths[target.name].with_suffix(".s").write_text(text)
    return list(paths.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edgerun_kernels.build", description=DESCRIPTION)
    parser.add_argument("--out", type=Path, default=objects.INSTALLED, help="folder for the objects")
    names = [target.name for target in TARGETS]
    parser.add_argument("--isa", action="append", choices=names, help="only this instruction set (repeatable)")
    parser.add_argument("--assembly", action="store_true", help="also write the assembly beside each object")
    args = parser.parse_args()
    build(args.out, args.isa, args.assembly)


if __name__ == "__main__":
    main()
