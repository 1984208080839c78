"""What an exporter sees of a checkpoint, whatever file format it lies in."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError
from edgerun.package.layout import SUPER_GROUPS

GROUP = 32
"""Columns that share one scale, in GGUF's Q4_0, Q4_1 and Q8_0 and in our packages."""


@dataclass(frozen=True)
class QuantisedBlocks:
    """Rows of a matrix quantised in groups of 32 columns.

    value[r, k] = codes[r, k] * d[r, k // 32] + (m[r, k // 32] if m is present, else 0), where for `q4` the code is
    first lowered by 8. For `q6k` it is (codes[r, k] - 32) * s[r, k // 16] * d[r, k // 256].

    codes: [rows, columns]; uint8 0..15 for `q4` and `q4m`, 0..63 for `q6k`, int8 for `q8`. d, m: float16
    [rows, ceil(columns / 32)], d of `q6k` [rows, ceil(columns / 256)]. s: int8 [rows, 2 * ceil(columns / 32)].
    """

    kind: str  # "q4" | "q4m" | "q6k" | "q8"
    codes: npt.NDArray[Any]
    d: npt.NDArray[np.float16]
    m: npt.NDArray[np.float16] | None = None
    s: npt.NDArray[np.int8] | None = None

    def dequantise(self) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]."""
        columns = self.codes.shape[1]
        values = self.codes.astype(np.float32)
        if self.s is not None:
            values -= 32
            values *= np.repeat(self.s.astype(np.float32), GROUP // 2, axis=1)[:, :columns]
            values *= np.repeat(self.d.astype(np.float32), SUPER_GROUPS * GROUP, axis=1)[:, :columns]
            return values
        if self.kind == "q4":
            values -= 8
        values *= np.repeat(self.d.astype(np.float32), GROUP, axis=1)[:, :columns]
        if self.m is not None:
            values += np.repeat(self.m.astype(np.float32), GROUP, axis=1)[:, :columns]
        return values

    def take(self, rows: npt.NDArray[np.int64]) -> QuantisedBlocks:
        """These rows, in this order: whole rows move, so every value stays what it was."""
        m, s = None if self.m is None else self.m[rows], None if self.s is None else self.s[rows]
        return QuantisedBlocks(self.kind, self.codes[rows], self.d[rows], m, s)


Rows: TypeAlias = "QuantisedBlocks | npt.NDArray[np.float32]"
Trits = npt.NDArray[np.uint8]
"""Rows of ternary weights: 0, 1, 2 for -1, 0, 1."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as it is stored: its name in the file, its shape (rows first), its format ("F16", "Q4_K", ...)."""

    name: str
    shape: tuple[int, ...]
    format: str
    bits: float
    """Bits per weight, scales included."""


class Checkpoint(ABC):
    """An open checkpoint. Tensors are read on request, some rows at a time, and nothing is kept."""

    path: Path
    format: str  # "gguf" | "safetensors"
    architecture: str
    """GGUF `general.architecture`, or the `model_type` of a config.json."""
    metadata: Mapping[str, Any]
    """GGUF key-values, or the contents of config.json."""
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def rows(self, name: str, start: int, stop: int) -> Rows:
        """Rows start..stop of a matrix: blocks as stored where the format is Q4_0, Q4_1, Q6_K or Q8_0, else float32."""

    def floats(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows start..stop of a matrix as float32, whatever they are stored as."""
        rows = self.rows(name, start, stop)
        return rows.dequantise() if isinstance(rows, QuantisedBlocks) else rows

    def packed_trits(self, name: str, start: int, stop: int) -> Trits:
        """Bytes of rows start..stop of a matrix that packs ternary weights (safetensors only)."""
        raise CheckpointError(f"{self.path}: tensor {name} holds no packed ternary weights; download it again")

    @abstractmethod
    def sha256(self) -> str:
        """Hex digest of the checkpoint's weights (a GGUF file; all safetensors files one after another, by name)."""

    def info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The stored tensor `name`, which must have this shape; CheckpointError if it is missing or has another."""
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{self.path}: tensor {name} is missing (expected shape {list(shape)}): "
                "the file is incomplete or not of this family; download it again"
            )
        if found.shape != shape:
            raise CheckpointError(
                f"{self.path}: tensor {name} has shape {list(found.shape)}, but the configuration asks for "
                f"{list(shape)}: the checkpoint contradicts itself; download it again"
            )
        return found

    def number(self, key: str, default: float) -> float:
        """A number from the metadata."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, not a number; download it again")
        return float(value)

    def vector(self, name: str, length: int) -> npt.NDArray[np.float32]:
        """A one-dimensional tensor as float32 [length]."""
        self.info(name, (length,))
        return np.ascontiguousarray(self.floats(name, 0, 1).reshape(length), np.float32)


def read_at(file: int, path: Path, name: str, offset: int, count: int) -> npt.NDArray[np.uint8]:
    """`count` bytes of an open file. Positional reads, because pages of a mapping would stay in memory and because a
    mapped file that shrinks kills the process."""
    buffer = np.empty(count, np.uint8)
    view = buffer.data
    done = 0
    while done < count:
        got = os.preadv(file, [view[done:]], offset + done)
        if got == 0:
            raise CheckpointError(f"{path}: truncated: tensor {name} ends after the file does; download it again")
        done += got
    return buffer


def digest(state: hashlib._Hash, file: int) -> hashlib._Hash:
    """Feeds a whole open file to a hash."""
    buffer = bytearray(1 << 22)
    while got := os.readv(file, [buffer]):
        state.update(memoryview(buffer)[:got])
    return state
