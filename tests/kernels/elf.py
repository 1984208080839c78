"""Reads the kernel objects: their symbols, and the code of their functions."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from edgerun_kernels import load, objects

from .harness import ISAS


class Symbol(NamedTuple):
    name: str
    section: int  # 0: undefined
    is_public: bool
    code: bytes


def symbols(elf: bytes) -> Iterator[Symbol]:
    """The symbols of a little-endian 64-bit object file, functions with their code."""
    (start,), (count,) = struct.unpack_from("<Q", elf, 40), struct.unpack_from("<H", elf, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + 64 * i) for i in range(count)]
    for table in (section for section in sections if section[1] == 2):
        names = sections[table[6]][4]
        for at in range(table[4] + 24, table[4] + table[5], 24):
            name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", elf, at)
            text = elf[names + name : elf.index(b"\0", names + name)].decode()
            begin = sections[section][4] + value if 0 < section < count and info & 15 == 2 else 0
            yield Symbol(text, section, info >> 4 != 0, elf[begin : begin + size] if begin else b"")


def built(isa: str) -> bytes:
    """The current object, of this machine or of another; skips what has not been built."""
    if isa in ISAS:
        assert load.kernels(isa).isa == isa  # compiles it, where it is missing
    for folder in (objects.INSTALLED, objects.cache_root() / "kernels" / objects.source_hash()):
        code = objects.read(folder / objects.file_name(isa))
        if code is not None:
            return code
    pytest.skip(f"no current object for {isa}")
