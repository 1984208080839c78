"""The instruction sets that kernels are built for, and which of them this CPU can run."""

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An LLVM target: which CPU model and features code is emitted for, and which features the CPU must report."""

    name: str
    architecture: str
    llvm_cpu: str
    llvm_features: str
    needs: frozenset[str]


V3 = frozenset({"avx2", "fma", "f16c", "bmi2"})
V4 = V3 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}
TARGETS = (
    Target("avx512_vnni", "x86_64", "x86-64-v4", "+avx512vnni,-prefer-256-bit", V4 | {"avx512vnni"}),
    Target("avx_vnni", "x86_64", "x86-64-v3", "+avxvnni", V3 | {"avxvnni"}),
    Target("avx2", "x86_64", "x86-64-v3", "", V3),
    Target("portable_x86_64", "x86_64", "x86-64", "", frozenset()),
    Target("portable_aarch64", "aarch64", "generic", "", frozenset()),
)
"""Best first for each architecture; the last of each runs on any CPU of it."""


def architecture() -> str:
    """This machine's architecture in LLVM's words."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def usable() -> list[Target]:
    """The targets that this CPU can run, best first. Features come from the CPU itself (cpuid, hwcaps), by LLVM."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    here = architecture()
    return [t for t in TARGETS if t.architecture == here and all(features.get(name, False) for name in t.needs)]
