"""Object files: damaged or stale ones are not loaded, three functions of the C library are needed, no Numba."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from edgerun_kernels import load, objects
from edgerun_kernels.targets import TARGETS, usable

from .elf import built, symbols
from .harness import ISAS, every_isa


def test_a_damaged_or_stale_object_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.o"
    objects.write(path, b"code" * 100)
    assert objects.read(path) == b"code" * 100
    assert objects.is_current(path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:50], b"", whole[:-9] + b"X" + whole[-8:], b"x" + whole):
        path.write_bytes(broken)
        assert objects.read(path) is None
    path.write_bytes(whole)
    monkeypatch.setattr(objects, "source_hash", lambda: "0" * 32)
    assert objects.read(path) is None
    assert objects.read(tmp_path / "none.o") is None
    assert not list(tmp_path.glob("*.partial*"))


@every_isa
def test_objects_need_little_of_the_c_library(isa: str) -> None:
    """The names in the string table: our own functions, sections, and three functions of the C library."""
    names = {symbol.name for symbol in symbols(built(isa)) if symbol.is_public}
    outside = {s for s in names if not s.startswith(("edgerun_", "_ZN", ".", "$"))} - {""}
    assert outside <= {"sched_yield", "syscall", "memset", "<string>", "_GLOBAL_OFFSET_TABLE_"}, outside


@pytest.mark.skipif("avx512_vnni" not in ISAS, reason="an AVX-512 VNNI object is loaded only where it can run")
def test_the_dot_instruction_is_there() -> None:
    """vpdpbusd on 512-bit registers: EVEX.512.66.0F38.W0 50."""
    code = built("avx512_vnni")
    found = sum(
        code[i + 4] == 0x50 and code[i + 1] & 7 == 2 and code[i + 2] & 3 == 1 and code[i + 3] >> 5 & 3 == 2
        for i in range(len(code) - 5)
        if code[i] == 0x62
    )
    assert found > 50


def test_loading_imports_no_numba() -> None:
    program = (
        "import sys; from edgerun_kernels.load import kernels; kernels(); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('numba', 'onnx', 'onnxruntime')))"
    )
    path = str(objects.HERE.parent)
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": path}, check=True
    )
    assert out.stdout.strip() == "[]"


def test_what_cannot_run_here_is_refused() -> None:
    with pytest.raises(load.KernelError, match="instruction set 'nonsense' cannot run on this CPU; it can run"):
        load.kernels("nonsense")


def test_without_objects_and_numba_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects, "INSTALLED", tmp_path)
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "_have_numba", lambda: False)
    load.kernels.cache_clear()
    try:
        with pytest.raises(load.KernelError, match="numba is not installed to compile one; reinstall edgerun"):
            load.kernels()
    finally:
        load.kernels.cache_clear()


def test_a_missing_object_is_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isa = ISAS[0]
    code = built(isa)
    monkeypatch.setattr(objects, "INSTALLED", tmp_path / "nothing")
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    objects.write(tmp_path / "kernels" / objects.source_hash() / objects.file_name(isa), code)
    load.kernels.cache_clear()
    try:
        assert load.kernels(isa).isa == isa
    finally:
        load.kernels.cache_clear()


def test_features_decide_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx2": True, "fma": True, "f16c": True, "bmi2": True})
    assert [t.name for t in usable()] == ["avx2", "portable_x86_64"]
    monkeypatch.setattr(llvm, "get_host_cpu_features", dict)
    assert [t.name for t in usable()] == ["portable_x86_64"]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert usable() == []
    assert {t.architecture for t in TARGETS} == {"x86_64", "aarch64"}
