"""LLVM's half of the build: the portable bitcode becomes an object for one instruction set.

    python -m edgerun_kernels.build.emit --isa NAME --out DIR

Needs llvmlite only, so that an installed edgerun can do it where no object came with it; takes about ten seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llvmlite.binding as llvm

from ..simd import isa
from ..targets import TARGETS, Target
from . import objects

SYSTEM = ("syscall", "sched_yield", "memcpy", "memset", "memmove")
"""Functions of the C library that kernels may call."""
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}


def prepared(target: Target) -> tuple[llvm.TargetMachine, llvm.ModuleRef]:
    """LLVM's machine for a target, and the definitions of its operations."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = TRIPLES[target.architecture]
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.llvm_cpu, features=target.llvm_features, opt=3, reloc="pic", codemodel="default"
    )
    definitions = llvm.parse_assembly(str(isa.module(target.name)))
    definitions.triple, definitions.data_layout = triple, str(machine.target_data)
    return machine, definitions


def optimise(machine: llvm.TargetMachine, module: llvm.ModuleRef) -> None:
    """Inlines the definitions, and all else that LLVM can do for the target."""
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)


def emit(target: Target, bitcode: bytes, assembly: bool = False) -> tuple[bytes, str]:
    """The object's code, and its assembly if asked."""
    machine, definitions = prepared(target)
    whole = llvm.parse_bitcode(bitcode)
    whole.triple, whole.data_layout = definitions.triple, definitions.data_layout
    whole.link_in(definitions)
    for fn in whole.functions:
        if not fn.is_declaration and not fn.name.startswith(objects.symbol("")):
            fn.linkage = "internal"
    whole.verify()
    optimise(machine, whole)
    missing = [fn.name for fn in whole.functions if fn.is_declaration and not fn.name.startswith(("llvm.", *SYSTEM))]
    if missing:  # a call of nothing would end the process that makes it
        raise RuntimeError(f"the kernels call functions that they do not bring: {', '.join(missing)}")
    return machine.emit_object(whole), machine.emit_assembly(whole) if assembly else ""


def build(out: Path, target: Target, bitcode: bytes, assembly: bool = False) -> None:
    """Writes a target's object into ``out``, and its assembly beside it if asked."""
    code, text = emit(target, bitcode, assembly)
    path = out / objects.file_name(target.name)
    objects.write(path, code)
    if assembly:
        path.with_suffix(".s").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m edgerun_kernels.build.emit", description="Compiles the portable kernels."
    )
    parser.add_argument("--isa", required=True, choices=[target.name for target in TARGETS])
    parser.add_argument("--out", type=Path, required=True, help="folder for the object")
    args = parser.parse_args()
    packed = objects.read(objects.INSTALLED / objects.PORTABLE)
    if packed is None:
        raise SystemExit(f"no portable kernels in {objects.INSTALLED} that fit these sources")
    build(args.out, next(t for t in TARGETS if t.name == args.isa), objects.decompress(packed))


if __name__ == "__main__":
    main()
