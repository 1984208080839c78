"""How: the LLVM modules that define the named operations, one function per operation and instruction set.

A definition may use any LLVM operation and the target's intrinsics; it is inlined into every kernel.
"""

from llvmlite import ir

from .aarch64 import DOTPROD, I8MM, NEON
from .definitions import Body, one_by_one
from .named import NAMED, PREFIX
from .x86 import AVX2, AVX512_VNNI, AVX_VNNI, X86_64

DEFINITIONS: dict[str, dict[str, Body]] = {
    "avx512_vnni": one_by_one(AVX512_VNNI),
    "avx_vnni": one_by_one(AVX_VNNI),
    "avx2": one_by_one(AVX2),
    "portable_x86_64": one_by_one(X86_64),
    "neon_i8mm": I8MM,
    "neon_dotprod": one_by_one(DOTPROD),
    "neon": one_by_one(NEON),
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
