"""Object files: damaged or stale ones are not loaded, three functions of the C library are needed, no Numba."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import pytest

from edgerun_kernels import features
from edgerun_kernels.build import load, objects
from edgerun_kernels.machine import architecture
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
        assert objects.is_damaged(path)
    path.write_bytes(whole)
    assert not objects.is_damaged(path)
    (tmp_path / "y.o").write_bytes(whole)  # under the name of another instruction set
    assert objects.read(tmp_path / "y.o") is None
    assert objects.is_damaged(tmp_path / "y.o")
    monkeypatch.setattr(objects, "source_hash", lambda: "0" * 32)
    assert objects.read(path) is None
    assert not objects.is_damaged(path), "of other sources"
    assert objects.read(tmp_path / "none.o") is None
    assert not objects.is_damaged(tmp_path / "none.o")
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
        "import sys; from edgerun_kernels.build.load import kernels; kernels(); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('numba', 'onnx', 'onnxruntime')))"
    )
    env = {"PYTHONPATH": str(objects.HERE.parent), "EDGERUN_CACHE": str(objects.cache_root())}
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
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


class Bare(NamedTuple):
    """An installation without kernels: where its cache keeps them, and what could be in there."""

    folder: Path
    codes: dict[str, bytes]

    def path(self, isa: str) -> Path:
        return self.folder / objects.file_name(isa)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bare]:
    codes = {isa: built(isa) for isa in (ISAS[0], ISAS[-1])}
    monkeypatch.setattr(objects, "INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))
    load.kernels.cache_clear()
    yield Bare(tmp_path / "cache" / "kernels" / objects.source_hash(), codes)
    load.kernels.cache_clear()


def compiler(code: bytes, asked: list[str]) -> Callable[[Path, str], str]:
    """In place of the compiler, which takes long."""

    def build_into(folder: Path, isa: str) -> str:
        asked.append(isa)
        objects.write(folder / objects.file_name(isa), code)
        return ""

    return build_into


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of another instruction set", "no object"])
def test_a_damaged_object_in_the_cache_is_made_anew(
    damage: str, bare: Bare, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    isa, asked = ISAS[0], list[str]()
    path = bare.path(isa)
    objects.write(path, bare.codes[isa])
    whole = path.read_bytes()
    objects.write(bare.folder / "other.o", bare.codes[isa])
    other = (bare.folder / "other.o").read_bytes()
    broken = {"cut": whole[:-100], "changed": whole[:-9] + b"X" + whole[-8:], "empty": b"", "no object": b"x" * 500}
    path.write_bytes(broken.get(damage, other))
    monkeypatch.setattr(load, "_build_into", compiler(bare.codes[isa], asked))
    assert load.kernels(isa).isa == isa
    assert asked == [isa]
    assert capfd.readouterr().err == f"edgerun: {path} is damaged and is not used\n"


def for_another_architecture(code: bytes) -> bytes:
    """The object with another processor in its ELF header."""
    return code[:18] + (183 if architecture() == "x86_64" else 62).to_bytes(2, "little") + code[20:]


def test_an_object_for_another_architecture_is_made_anew(
    bare: Bare, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Intact, under our name, yet for other processors: LLVM would end the process."""
    isa, asked = ISAS[0], list[str]()
    foreign = for_another_architecture(bare.codes[isa])
    with pytest.raises(load.KernelError, match=f"the kernel object for {isa} is made for (x86_64|aarch64)"):
        load.Kernels(isa, foreign)
    with pytest.raises(load.KernelError, match="is made for another architecture"):
        load.Kernels(isa, b"garbage" * 100)
    objects.write(bare.path(isa), foreign)
    monkeypatch.setattr(load, "_build_into", compiler(bare.codes[isa], asked))
    assert load.kernels(isa).isa == isa
    assert asked == [isa]
    assert capfd.readouterr().err.startswith(
        f"edgerun: {bare.path(isa)} is not used: the kernel object for {isa} is made"
    )


@pytest.mark.skipif(len(ISAS) < 2, reason="this processor has one instruction set only")
def test_the_next_best_kernels_serve_where_the_best_cannot_be_made(
    bare: Bare, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    objects.write(bare.path(ISAS[-1]), bare.codes[ISAS[-1]])
    monkeypatch.setattr(load, "_build_into", lambda folder, isa: "the disk is full")
    assert load.kernels().isa == ISAS[-1]
    said = f"edgerun: no kernels for {ISAS[0]}: the disk is full; those for {ISAS[-1]} are taken\n"
    assert capfd.readouterr().err == said


def test_features_decide_what_runs_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for reported, wanted in (
        ({"neon", "dotprod", "i8mm"}, ["neon_i8mm", "neon_dotprod", "neon"]),
        ({"neon", "dotprod"}, ["neon_dotprod", "neon"]),
        ({"neon", "i8mm"}, ["neon"]),
        (set(), ["neon"]),
    ):
        bits = {
            word: sum(bit for name, (w, bit) in features.HWCAPS.items() if w == word and name in reported)
            for word in (features.AT_HWCAP, features.AT_HWCAP2)
        }
        getauxval = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_ulong)(lambda word, bits=bits: bits[word])
        library = SimpleNamespace(getauxval=getauxval)
        with monkeypatch.context() as patch:
            patch.setattr(features.ctypes, "CDLL", lambda name, library=library: library)
            assert features.cpu_features() == reported
            assert [t.name for t in usable()] == wanted


def test_macos_is_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("sys.platform", "darwin")

    def sysctl(name: bytes, value: Any, size: Any, new: Any, new_size: Any) -> int:
        if name == b"hw.optional.arm.FEAT_I8MM":
            return -1  # unknown to an older system
        value.raw = (1).to_bytes(4, "little") + bytes(4)
        return 0

    monkeypatch.setattr(features.ctypes, "CDLL", lambda name: SimpleNamespace(sysctlbyname=sysctl))
    assert features.cpu_features() == {"neon", "dotprod"}


def test_a_system_that_says_nothing_gets_what_all_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(features.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert [t.name for t in usable()] == ["neon"]


def test_features_decide_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx2": True, "fma": True, "f16c": True, "bmi2": True})
    assert [t.name for t in usable()] == ["avx2", "portable_x86_64"]
    monkeypatch.setattr(llvm, "get_host_cpu_features", dict)
    assert [t.name for t in usable()] == ["portable_x86_64"]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert usable() == []
    assert {t.architecture for t in TARGETS} == {"x86_64", "aarch64"}
