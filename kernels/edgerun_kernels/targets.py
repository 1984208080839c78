"""The instruction sets that kernels are built for, and which of them this CPU can run."""

from dataclasses import dataclass

from .features import cpu_features
from .machine import architecture


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
# macOS keeps register x18 to itself; without it, the same objects serve both systems.
ARM = "+reserve-x18"
TARGETS = (
    Target("avx512_vnni", "x86_64", "x86-64-v4", "+avx512vnni,-prefer-256-bit", V4 | {"avx512vnni"}),
    Target("avx_vnni", "x86_64", "x86-64-v3", "+avxvnni", V3 | {"avxvnni"}),
    Target("avx2", "x86_64", "x86-64-v3", "", V3),
    Target("portable_x86_64", "x86_64", "x86-64", "", frozenset()),
    Target("neon_i8mm", "aarch64", "generic", f"{ARM},+dotprod,+i8mm", frozenset({"neon", "dotprod", "i8mm"})),
    Target("neon_dotprod", "aarch64", "generic", f"{ARM},+dotprod", frozenset({"neon", "dotprod"})),
    Target("neon", "aarch64", "generic", ARM, frozenset()),
)
"""Best first for each architecture; the last of each runs on any CPU of it: every AArch64 that runs Linux or macOS has
NEON."""


def usable() -> list[Target]:
    """The targets that this CPU can run, best first."""
    features, here = cpu_features(), architecture()
    return [t for t in TARGETS if t.architecture == here and t.needs <= features]
