"""The head of a GGUF file: key-values and tensor directory, every length checked against the file.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). The `gguf` package's own
reader makes a numpy view of every string of the vocabulary, which takes seconds and hundreds of MB.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import CheckpointError

_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_LONGEST_NAME = 200


@dataclass(frozen=True)
class StoredTensor:
    name: str
    shape: tuple[int, ...]  # rows first (GGUF stores the fastest dimension first)
    type_id: int
    offset: int  # in the file, bytes


@dataclass(frozen=True)
class Header:
    values: dict[str, Any]  # scalars, str, list[str] or numpy arrays
    tensors: dict[str, StoredTensor]


class _Cursor:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.end = data, path, 0, len(data)

    def take(self, count: int) -> int:
        """Steps over `count` bytes and returns where they start."""
        start = self.at
        if count > self.end - start:
            raise CheckpointError(f"{self.path}: truncated in its header at byte {start}; download it again")
        self.at = start + count
        return start

    def u32(self) -> int:
        return int(struct.unpack_from("<I", self.data, self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack_from("<Q", self.data, self.take(8))[0])

    def string(self) -> str:
        length = self.u64()
        start = self.take(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def name(self) -> str:
        """A string that names something: printable and short, for it may stand in an error message."""
        start, text = self.at, self.string()
        if len(text) > _LONGEST_NAME or not text.isprintable():
            raise CheckpointError(f"{self.path}: damaged header at byte {start}; download it again")
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.u32(), self.u64()
            if inner == _STRING:
                if count > (self.end - self.at) // 8:
                    self.take(self.end)
                return [self.string() for _ in range(count)]
            item = self.scalar(inner)
            start = self.take(count * item.itemsize)
            return np.frombuffer(self.data[start : start + count * item.itemsize], item)
        item = self.scalar(kind)
        start = self.take(item.itemsize)
        return np.frombuffer(self.data[start : start + item.itemsize], item)[0].item()

    def scalar(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise CheckpointError(
                f"{self.path}: damaged header: unknown value type {kind} at byte {self.at}; download it again"
            )
        return np.dtype(_SCALARS[kind])


def read_header(path: Path) -> Header:
    """Parses the head of `path`. CheckpointError if it is truncated, damaged, big-endian or of another version."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, path)
        cursor.take(4)
        version = cursor.u32()
        if version & 0xFFFF == 0:
            raise CheckpointError(f"{path}: a big-endian GGUF file; convert it to little-endian")
        if version not in (2, 3):
            raise CheckpointError(f"{path}: GGUF version {version}, but only 2 and 3 are known; convert it again")
        n_tensors, n_values = cursor.u64(), cursor.u64()
        values: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.name()
            values[key] = cursor.value(cursor.u32())
        directory = []
        for _ in range(n_tensors):
            name, n_dimensions = cursor.name(), cursor.u32()
            if n_dimensions > _MAX_DIMENSIONS:
                raise CheckpointError(f"{path}: damaged header: tensor {name} has {n_dimensions} dimensions")
            shape = tuple(reversed([cursor.u64() for _ in range(n_dimensions)]))
            directory.append((name, shape, cursor.u32(), cursor.u64()))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise CheckpointError(f"{path}: damaged header: general.alignment is {alignment}; download it again")
    base = -(-cursor.at // alignment) * alignment
    return Header(values, {name: StoredTensor(name, shape, kind, base + at) for name, shape, kind, at in directory})
