"""What the emitted code holds: the instructions that each ISA is there for, and no call out of it but one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgerun_kernels import load, objects
from edgerun_kernels.load import SIGNATURES
from edgerun_kernels.targets import TARGETS

from .elf import built, symbols
from .harness import ISAS

# The third byte of both encodings: W = 0, any second register, L and the prefix 66.
MIDDLE = rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d\x45\x4d\x55\x5d\x65\x6d\x75\x7d]"
INSTRUCTIONS = {
    "avx512_vnni": rb"\x62[\x00-\xff]" + MIDDLE + rb"[\x40-\x5f]\x50",  # EVEX.512.66.0F38.W0 50: vpdpbusd on zmm
    "avx2": rb"\xc4[\x02\x22\x42\x62\x82\xa2\xc2\xe2]" + MIDDLE + rb"\x04",  # VEX.256.66.0F38 04: vpmaddubsw on ymm
}


@pytest.mark.parametrize("isa", [target.name for target in TARGETS])
def test_only_sched_yield_is_undefined(isa: str) -> None:
    """No call to the C library's mathematics, to memcpy or to Python; and all that Python calls is there."""
    found = list(symbols(built(isa)))
    assert {s.name for s in found if s.section == 0} == {"sched_yield"}
    assert {s.name for s in found if s.is_public and s.code} >= {objects.symbol(name) for name in SIGNATURES}


@pytest.mark.parametrize("isa", INSTRUCTIONS)
@pytest.mark.parametrize("kernel", ["linear_q4", "linear_q8"])
def test_the_dot_instruction_is_in_the_linear_kernels(isa: str, kernel: str) -> None:
    if isa not in ISAS:
        pytest.skip(f"{isa} cannot run here")
    functions = [s.code for s in symbols(built(isa)) if f"{len(kernel)}{kernel}B" in s.name and s.code]
    assert sum(len(re.findall(INSTRUCTIONS[isa], code, re.DOTALL)) for code in functions) >= 16


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
