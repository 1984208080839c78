"""What this processor reports that it can do, in LLVM's words; never concluded from its name."""

import ctypes
import struct
import sys

from .machine import architecture

AT_HWCAP, AT_HWCAP2 = 16, 26
HWCAPS = {"neon": (AT_HWCAP, 1 << 1), "dotprod": (AT_HWCAP, 1 << 20), "i8mm": (AT_HWCAP2, 1 << 13)}
"""Feature -> Linux' word and bit of it for AArch64."""
SYSCTLS = {"neon": "AdvSIMD", "dotprod": "arm.FEAT_DotProd", "i8mm": "arm.FEAT_I8MM"}
"""Feature -> macOS' name, below hw.optional."""


def cpu_features() -> frozenset[str]:
    """The features of this processor that targets may need; those of another one under an emulator of it."""
    if architecture() != "aarch64":
        import llvmlite.binding as llvm

        return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)
    # LLVM reads /proc/cpuinfo, which an emulator may show of the machine that it runs on.
    try:
        return _sysctls() if sys.platform == "darwin" else _hwcaps()
    except (OSError, AttributeError):
        return frozenset()  # a system that does not say: what every processor has must do


def _hwcaps() -> frozenset[str]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return frozenset(name for name, (word, bit) in HWCAPS.items() if getauxval(word) & bit)


def _sysctls() -> frozenset[str]:
    sysctl = ctypes.CDLL(None).sysctlbyname
    found = set()
    for name, key in SYSCTLS.items():
        value, size = ctypes.create_string_buffer(8), ctypes.c_size_t(8)
        status = sysctl(f"hw.optional.{key}".encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
        if status == 0 and struct.unpack("<q", value.raw)[0]:
            found.add(name)
    return frozenset(found)
