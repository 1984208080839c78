"""What the build makes: one file of portable bitcode, and an object file per instruction set; how they are named,
stamped with the hash of the sources that they came from, and checked.

A file is one header line (``edgerun-object 1 SOURCE-HASH CODE-HASH``), then the ELF object or the compressed bitcode.
"""

import hashlib
import lzma
import os
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "objects"
PORTABLE = "kernels.bc.xz"
MAGIC = "edgerun-object 1"
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
    runtime_only = {"__init__.py", "load.py", "team.py", "width.py", "measure.py", "reference.py"}
    for path in sorted(HERE.rglob("*.py")):
        if path.name not in runtime_only or path.parent != HERE:
            digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def write(path: Path, code: bytes) -> None:
    """Writes an object with its header, beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"{MAGIC} {source_hash()} {hashlib.sha256(code).hexdigest()}\n".encode()
    beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        beside.write_bytes(header + code)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> bytes | None:
    """The object code, or None where the file is absent, damaged or made from other sources."""
    try:
        header, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    expected = f"{MAGIC} {source_hash()} {hashlib.sha256(code).hexdigest()}"
    return code if header == expected.encode() else None


def is_current(path: Path) -> bool:
    return read(path) is not None
