"""The architecture of this machine, as this Python sees it."""

import platform
import struct


def architecture() -> str:
    """In LLVM's words; a 32-bit Python on a 64-bit processor cannot run 64-bit code."""
    machine = platform.machine().lower()
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return name if struct.calcsize("P") == 8 else f"32-bit {name}"
