"""What the emitted code holds: the instructions that each ISA is there for, sums in registers, few calls out of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgerun_kernels import load, objects
from edgerun_kernels.load import SIGNATURES
from edgerun_kernels.targets import TARGETS

from .elf import Loop, built, emitted, loops, symbols, target
from .harness import ISAS

# The third byte of both encodings: W = 0, any second register, L (EVEX: always 1) and the prefix 66.
MIDDLE = rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d]"
VEX = rb"\xc4[\x02\x22\x42\x62\x82\xa2\xc2\xe2]" + MIDDLE  # VEX.256.66.0F38
EVEX = rb"\x62[\x00-\xff]" + MIDDLE  # EVEX.66.0F38.W0
INSTRUCTIONS = {
    "avx512_vnni": EVEX + rb"[\x40-\x5f]\x50",  # vpdpbusd on zmm
    "avx_vnni": VEX + rb"\x50",  # vpdpbusd on ymm as AVX-VNNI encodes it
    "avx2": VEX + rb"\x04",  # vpmaddubsw on ymm
}
LINEAR = "15edgerun_kernels6linear"
"""Begins the mangled names of that module's functions."""
OUTSIDE = {"sched_yield", "syscall"}
"""What the kernels want of the C library: to wait."""


@pytest.mark.parametrize("isa", [target.name for target in TARGETS])
def test_nothing_is_undefined_but_waiting(isa: str) -> None:
    """No call to the C library's mathematics or to Python; and all that Python calls is there. memset, which every
    process has, LLVM calls to clear memory where registers are short."""
    found = list(symbols(built(isa)))
    undefined = {s.name for s in found if s.section == 0}
    assert OUTSIDE <= undefined <= OUTSIDE | ({"memset"} if isa == "portable_x86_64" else set())
    assert {s.name for s in found if s.is_public and s.code} >= {objects.symbol(name) for name in SIGNATURES}


def linear_code(isa: str) -> list[bytes]:
    return [s.code for s in symbols(built(isa)) if LINEAR in s.name and s.code]


@pytest.mark.parametrize("isa", INSTRUCTIONS)
def test_the_dot_instruction_is_in_the_linear_kernels(isa: str) -> None:
    """Eight or more times for each tile, format and term; none as another instruction set writes it."""
    counts = {name: sum(len(re.findall(INSTRUCTIONS[name], code, re.DOTALL)) for code in linear_code(isa))
              for name in INSTRUCTIONS}  # fmt: skip
    assert counts[isa] >= 200
    others = ("avx512_vnni", "avx2") if isa == "avx_vnni" else ("avx_vnni",)
    assert not any(counts[name] for name in others)
    if isa == "avx_vnni":
        assert not any(re.search(EVEX + rb"[\x20-\x5f]\x50", code, re.DOTALL) for code in linear_code(isa))


def dot_loops(isa: str, instruction: str, least: int) -> list[Loop]:
    return [loop for loop in loops(emitted(target(isa))[1]) if loop.count(instruction) >= least]


@pytest.mark.skipif("avx512_vnni" not in ISAS, reason="this assembly is of interest where it runs")
def test_tiles_stay_in_registers() -> None:
    """4 rows x 2 blocks of three formats, first and second terms: no vector goes to the stack and back. Prefill
    attention's 8 query rows x 2 blocks of q8 keys need 32 registers for sums alone, and a little more memory."""
    found = dot_loops("avx512_vnni", "vpdpbusd", 64)
    assert sum(LINEAR in loop.function for loop in found) == 6
    for loop in found:
        limit = 24 if loop.count("vpdpbusd") == 128 and "attention" in loop.function else 0
        assert len(loop.spills()) <= limit, (loop.function, loop.spills())


@pytest.mark.skipif("avx2" not in ISAS, reason="this assembly is of interest where it runs")
def test_half_tiles_nearly_stay_in_registers() -> None:
    """4 rows x half a block: 16 registers hold the 8 vectors of sums, 4 activations and the weights but for a few; with
    q8, where weights give their signs to the activations, they do not."""
    found = [loop for loop in dot_loops("avx2", "vpmaddubsw", 32) if LINEAR in loop.function]
    assert len(found) == 8  # q4 and q4m, and q8 for both halves; first and second terms
    for loop in found:
        limit = 52 if loop.count("vpsignb") else 10
        assert len(loop.spills()) <= limit, (loop.function, loop.spills())


def test_a_stale_object_is_compiled_anew_into_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler itself takes too long for a test; here it finds what was built before."""
    isa, asked = ISAS[0], []
    code = built(isa)
    installed = tmp_path / "installed"
    with monkeypatch.context() as patch:
        patch.setattr(objects, "source_hash", lambda: "0" * 32)
        objects.write(installed / objects.file_name(isa), code)

    def compile_into(folder: Path, name: str) -> str:
        asked.append((folder, name))
        objects.write(folder / objects.file_name(name), code)
        return ""

    monkeypatch.setattr(objects, "INSTALLED", installed)
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "_have_numba", lambda: True)
    monkeypatch.setattr(load, "_build_into", compile_into)
    load.kernels.cache_clear()
    try:
        assert load.kernels(isa).isa == isa
        load.kernels.cache_clear()
        assert load.kernels(isa).isa == isa
    finally:
        load.kernels.cache_clear()
    assert asked == [(tmp_path / "cache" / "kernels" / objects.source_hash(), isa)], (
        "compiled once, then taken from there"
    )
