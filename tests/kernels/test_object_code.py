"""What the emitted code holds: the instructions that each ISA is there for, sums in registers, few calls out of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgerun_kernels.build import load, objects
from edgerun_kernels.build.load import SIGNATURES
from edgerun_kernels.targets import TARGETS

from .elf import Block, blocks, built, emitted, symbols, target
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
LINEAR = ("15edgerun_kernels3ops6linear", "15edgerun_kernels3ops15linear_products")
"""Begin the mangled names of those modules' functions."""
OUTSIDE = {"sched_yield", "syscall"}
"""What the kernels want of the C library: to wait."""


@pytest.mark.parametrize("isa", [target.name for target in TARGETS])
def test_nothing_is_undefined_but_waiting(isa: str) -> None:
    """No call to the C library's mathematics or to Python; and all that Python calls is there. memset, which every
    process has, LLVM calls to clear memory where registers are short."""
    found = list(symbols(built(isa)))
    undefined = {s.name for s in found if s.section == 0}
    assert OUTSIDE <= undefined <= OUTSIDE | ({"memset"} if isa in ("portable_x86_64", "neon") else set())
    assert {s.name for s in found if s.is_public and s.code} >= {objects.symbol(name) for name in SIGNATURES}


ARM = {"neon_i8mm": ("usdot", "sdot"), "neon_dotprod": ("sdot", "usdot"), "neon": ("smull", "sdot")}
"""What multiplies 4-bit weights there, and what must not be among it."""


@pytest.mark.parametrize("isa", ARM)
def test_arm_multiplies_with_what_it_has(isa: str) -> None:
    """Found in the assembly: instructions of four bytes each are no patterns in the code."""
    wanted, unwanted = ARM[isa]
    found = of_linear([block for block in blocks(emitted(target(isa))[1]) if block.count(wanted + "\t") >= 8])
    assert len(found) >= 10
    assert isa == "neon_i8mm" or not any(block.count(unwanted + "\t") for block in found)


@pytest.mark.parametrize("isa", ARM)
def test_arm_leaves_macos_its_register(isa: str) -> None:
    """x18, which may change at any time there."""
    assert not re.search(r"\b[xw]18\b", emitted(target(isa))[1])


@pytest.mark.parametrize("isa", ["neon_dotprod", "neon_i8mm"])
def test_arm_tiles_stay_in_registers(isa: str) -> None:
    """The loops over a group's columns, in which no vector goes to the stack or comes from there. With i8mm, several
    rows are multiplied two by two."""
    instructions = ("sdot",) if isa == "neon_dotprod" else ("usdot", "usmmla")
    for instruction in instructions:
        loops = [block for block in of_linear(dot_blocks(isa, instruction + "\t", 8)) if block.is_loop]
        assert len(loops) >= (12 if isa == "neon_dotprod" else 7), instruction
        assert not any(block.spills() for block in loops)


def test_all_objects_together_are_small() -> None:
    """The wheel has them all, and the bitcode. (5.3 MB since a run has rows of several sequences.)"""
    assert sum(len(built(target.name)) for target in TARGETS) < 5_500_000


def linear_code(isa: str) -> list[bytes]:
    return [s.code for s in symbols(built(isa)) if s.code and any(module in s.name for module in LINEAR)]


@pytest.mark.parametrize("isa", INSTRUCTIONS)
def test_the_dot_instruction_is_in_the_linear_kernels(isa: str) -> None:
    """Eight or more times for each tile, format and term; none as another instruction set writes it."""
    counts = {name: sum(len(re.findall(INSTRUCTIONS[name], code, re.DOTALL)) for code in linear_code(isa))
              for name in INSTRUCTIONS}  # fmt: skip
    assert counts[isa] >= 600
    others = ("avx512_vnni", "avx2") if isa == "avx_vnni" else ("avx_vnni",)
    assert not any(counts[name] for name in others)
    if isa == "avx_vnni":
        assert not any(re.search(EVEX + rb"[\x20-\x5f]\x50", code, re.DOTALL) for code in linear_code(isa))


def dot_blocks(isa: str, instruction: str, least: int) -> list[Block]:
    """Blocks with so many dot instructions: of one group of columns, or of one for both of its terms."""
    return [block for block in blocks(emitted(target(isa))[1]) if block.count(instruction) >= least]


def of_linear(found: list[Block]) -> list[Block]:
    return [block for block in found if any(module in block.function for module in LINEAR)]


@pytest.mark.skipif("avx512_vnni" not in ISAS, reason="this assembly is of interest where it runs")
def test_tiles_stay_in_registers() -> None:
    """4 rows x 2 blocks: where a group has one term, no vector goes to the stack and back (of q4m, one may come from
    there). A group of two terms needs 16 sums, and puts 5 results there while it takes them. q6k, known by its products
    with int8 factors, has 16 sums for each term and keeps its 8 results in memory. Attention multiplies its queries by
    q8 keys as a layer does."""
    found = dot_blocks("avx512_vnni", "vpdpbusd", 64)
    layers = [block for block in of_linear(found) if "several_rows" in block.function]
    q6k = [block for block in layers if block.count("vpmulld")]
    assert len(layers) == 3 * 3 + 1 + len(q6k)  # q4, q4m, q8 and q6k: two blocks by one term and two, one block by two
    assert len(q6k) == 3
    assert [block.count("vpdpbusd") for block in layers if block.is_loop] == [64]  # ternary
    for block in q6k:
        assert len(block.spills()) <= (52 if block.count("vpdpbusd") == 128 else 12), block.spills()
    others = [block for block in found if block not in q6k]
    assert any("attention" in block.function for block in others)
    for block in others:
        assert len(block.spills()) <= (10 if block.count("vpdpbusd") > 64 else 1), (block.function, block.spills())
    assert sum(len(block.spills()) for block in others if block.count("vpdpbusd") == 64) <= 1


@pytest.mark.skipif("avx2" not in ISAS, reason="this assembly is of interest where it runs")
def test_half_tiles_nearly_stay_in_registers() -> None:
    """4 rows x half a block: 16 registers hold the 8 vectors of sums and results, 4 activations and the weights but for
    a few, with a second term but for a few more; ternary, whose only sums are its results, needs no memory. Where
    weights give their signs to the activations, as those of q8 and q6k do, they do not suffice by far."""
    found = [b for b in of_linear(dot_blocks("avx2", "vpmaddubsw", 32)) if b.count("vpbroadcastd") >= 32]
    ternary = [block for block in found if block.is_loop]
    assert len(ternary) == 2  # both halves
    assert not any(block.spills() for block in ternary)
    unsigned = [block for block in found if not block.count("vpsignb") and block not in ternary]
    assert len(unsigned) in (4, 6)  # q4m, and q4, whose halves may share a function; one term and two
    for block in unsigned:
        assert len(block.spills()) <= (24 if block.count("vpmaddubsw") == 64 else 10), block.spills()
    signed = [block for block in found if block.count("vpsignb")]
    assert len(signed) >= 5  # q8 for both halves, and q6k, whose second term lies in a function of its own
    for block in signed:
        assert len(block.spills()) <= (90 if block.count("vpmaddubsw") == 64 else 60), block.spills()


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
