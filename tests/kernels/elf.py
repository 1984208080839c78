"""Reads the kernel objects: their symbols, the code of their functions; and the assembly of their loops."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest

from edgerun_kernels.build import emit, load, objects
from edgerun_kernels.targets import TARGETS, Target

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


@cache
def emitted(target: Target) -> tuple[bytes, str]:
    """Code and assembly for any target, compiled from the bitcode once a session."""
    assert load.kernels(ISAS[0]).isa == ISAS[0]  # makes the bitcode, where a developer's sources have changed
    for folder in (objects.INSTALLED, objects.cache_root() / "kernels" / objects.source_hash()):
        packed = objects.read(folder / objects.PORTABLE)
        if packed is not None:
            return emit.emit(target, objects.decompress(packed), True)
    pytest.fail("no current bitcode: numba is missing, or compiling failed")


def target(isa: str) -> Target:
    return next(t for t in TARGETS if t.name == isa)


def built(isa: str) -> bytes:
    """The current object, of this machine or of another."""
    if isa in ISAS:
        assert load.kernels(isa).isa == isa  # compiles it, where it is missing
    for folder in (objects.INSTALLED, objects.cache_root() / "kernels" / objects.source_hash()):
        code = objects.read(folder / objects.file_name(isa))
        if code is not None:
            return code
    return emitted(target(isa))[0]


class Block(NamedTuple):
    """Assembly from a label to the next one, or to a jump back to its own."""

    function: str
    instructions: list[str]
    is_loop: bool

    def count(self, mnemonic: str) -> int:
        return sum(line.startswith(mnemonic) for line in self.instructions)

    def spills(self) -> list[str]:
        """Vector registers that are stored to the stack or come from it."""
        x86 = [line for line in self.instructions if "(%rsp" in line and re.search(r"%[yz]mm", line)]
        return x86 or [line for line in self.instructions if "[sp" in line and re.search(r"\bq\d+", line)]


def blocks(assembly: str) -> Iterator[Block]:
    function, label, block = "", "", list[str]()
    for line in assembly.splitlines():
        if found := re.match(r"([.\w$]+):", line):
            yield Block(function, block, False)
            label, block = found[1], []
            function = function if label.startswith(".L") else label
        elif re.match(r"\s+[a-z]", line):
            block.append(line.strip())
            if re.fullmatch(rf"(j\w+|b\.\w+)\s+{re.escape(label)}", block[-1].split("#")[0].strip()):
                yield Block(function, block, True)
                block = []
    yield Block(function, block, False)
