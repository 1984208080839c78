"""What the build makes: one file of portable bitcode, and an object file per instruction set; how they are named,
stamped with the hash of the sources that they came from, and checked.

A file is one header line (``edgerun-object 2 FILE-NAME SOURCE-HASH CODE-HASH``), then the ELF object or the compressed
bitcode. A file that lies under another name, for another instruction set, is as bad as a damaged one.
"""

import hashlib
import lzma
import os
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
INSTALLED = HERE / "objects"
PORTABLE = "kernels.bc.xz"
MAGIC = "edgerun-object 2"
compress, decompress = lzma.compress, lzma.decompress


def cache_root() -> Path:
    """Where edgerun keeps what it can make again: $EDGERUN_CACHE, or ``edgerun`` in the user's cache folder."""
    if chosen := os.environ.get("EDGERUN_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgerun"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgerun"


def symbol(name: str) -> str:
    """The C name of an exported kernel."""
    return f"edgerun_{name}"


def file_name(isa: str) -> str:
    return f"{isa}.o"


@cache
def source_hash() -> str:
    """A hash of every source that decides what the objects contain."""
    digest = hashlib.sha256()
    runtime_only = {"__init__.py", "features.py", "machine.py", "measure.py", "reference.py"}
    runtime_only |= {"build/load.py", "runtime/team.py", "runtime/width.py"}
    for path in sorted(HERE.rglob("*.py")):
        name = path.relative_to(HERE).as_posix()
        if name not in runtime_only:
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _header(path: Path, code: bytes) -> str:
    return f"{MAGIC} {path.name} {source_hash()} {hashlib.sha256(code).hexdigest()}"


def write(path: Path, code: bytes) -> None:
    """Writes an object with its header, beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        beside.write_bytes(_header(path, code).encode() + b"\n" + code)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _parts(path: Path) -> tuple[bytes, bytes]:
    """The header line and the code; nothing where there is no file."""
    try:
        header, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return b"", b""
    return header, code


def read(path: Path) -> bytes | None:
    """The object code, or None where the file is absent, damaged or made from other sources."""
    header, code = _parts(path)
    return code if header == _header(path, code).encode() else None


def is_current(path: Path) -> bool:
    return read(path) is not None


def is_damaged(path: Path) -> bool:
    """Whether there is a file that cannot be what was once written under this name."""
    header, code = _parts(path)
    words = header.decode(errors="replace").split(" ")
    as_written = [*MAGIC.split(" "), path.name, *words[3:4], hashlib.sha256(code).hexdigest()]
    return path.exists() and words != as_written


def architecture_of(code: bytes) -> str:
    """What an ELF object is for, in LLVM's words."""
    machine = int.from_bytes(code[18:20], "little") if code[:4] == b"\x7fELF" else 0
    return {62: "x86_64", 183: "aarch64"}.get(machine, "another architecture")
