"""GGUF files of any quantisation that the `gguf` package can read."""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from edgerun.errors import CheckpointError

from ..checkpoint import GROUP, Checkpoint, QuantisedBlocks, Rows, TensorInfo, digest, read_at
from . import i2_s
from .gguf_header import StoredTensor, read_header

_SHARDED = "split.count"
_I2_S = 36
"""The type number of bitnet.cpp's own ternary format, which the gguf package does not know."""


class GgufCheckpoint(Checkpoint):
    """An open GGUF file. Q4_0, Q4_1, Q6_K and Q8_0 come as stored; all other formats come as float32."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.metadata = header.values
        self.architecture = str(header.values.get("general.architecture", "(none)"))[:80]
        if header.values.get(_SHARDED, 1) not in (0, 1):
            raise CheckpointError(
                f"{path}: one of {header.values[_SHARDED]} shards of a split GGUF; "
                "join them first (llama-gguf-split --merge FIRST OUT)"
            )
        size = path.stat().st_size
        self._stored = header.tensors
        self._types: dict[str, GGMLQuantizationType] = {}
        self._row_bytes: dict[str, int] = {}
        tensors: dict[str, TensorInfo] = {}
        for stored in header.tensors.values():
            if stored.type_id == _I2_S:
                tensors[stored.name] = self._i2_s(stored, size)
                continue
            try:
                kind = GGMLQuantizationType(stored.type_id)
            except ValueError:
                raise CheckpointError(
                    f"{path}: tensor {stored.name} has the unknown GGUF type {stored.type_id}; update the gguf package"
                ) from None
            block, block_bytes = GGML_QUANT_SIZES[kind]
            columns = stored.shape[-1] if stored.shape else 1
            if columns % block:
                raise CheckpointError(
                    f"{path}: tensor {stored.name}: rows of {columns} are no multiple of {kind.name}'s block of {block}"
                )
            row_bytes = columns // block * block_bytes
            self._check_end(stored, row_bytes * math.prod(stored.shape[:-1]), size)
            self._types[stored.name], self._row_bytes[stored.name] = kind, row_bytes
            tensors[stored.name] = TensorInfo(stored.name, stored.shape, kind.name, 8 * block_bytes / block)
        self.tensors = tensors
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def _check_end(self, stored: StoredTensor, count: int, size: int) -> None:
        end = stored.offset + count
        if end > size:
            raise CheckpointError(
                f"{self.path}: truncated: tensor {stored.name} ends at byte {end}, the file at {size}; "
                "download it again"
            )

    def _i2_s(self, stored: StoredTensor, size: int) -> TensorInfo:
        count = math.prod(stored.shape)
        if len(stored.shape) != 2 or count % i2_s.BLOCK:
            raise CheckpointError(
                f"{self.path}: tensor {stored.name}: {list(stored.shape)} is no matrix of whole I2_S blocks of "
                f"{i2_s.BLOCK}; use a file of another format"
            )
        self._check_end(stored, i2_s.stored_bytes(count), size)
        return TensorInfo(stored.name, stored.shape, "I2_S", 2.0)

    def rows(self, name: str, start: int, stop: int) -> Rows:
        stored = self._stored[name]
        if stored.type_id == _I2_S:
            return self._i2_s_rows(stored, start, stop)
        kind, row_bytes = self._types[name], self._row_bytes[name]
        raw = read_at(self._file, self.path, name, stored.offset + start * row_bytes, (stop - start) * row_bytes)
        raw = raw.reshape(stop - start, row_bytes)
        if kind == GGMLQuantizationType.Q8_0:
            blocks = raw.reshape(stop - start, -1, 34)
            return QuantisedBlocks("q8", _join(blocks[:, :, 2:]).view(np.int8), _halves(blocks, 0))
        if kind == GGMLQuantizationType.Q4_0:
            blocks = raw.reshape(stop - start, -1, 18)
            return QuantisedBlocks("q4", _nibbles(blocks[:, :, 2:]), _halves(blocks, 0))
        if kind == GGMLQuantizationType.Q4_1:
            blocks = raw.reshape(stop - start, -1, 20)
            return QuantisedBlocks("q4m", _nibbles(blocks[:, :, 4:]), _halves(blocks, 0), _halves(blocks, 2))
        if kind == GGMLQuantizationType.Q6_K:
            blocks = raw.reshape(stop - start, -1, 210)
            factors = _join(blocks[:, :, 192:208]).view(np.int8)
            return QuantisedBlocks("q6k", _six_bits(blocks[:, :, :192]), _halves(blocks, 208), s=factors)
        if kind == GGMLQuantizationType.F64:
            return raw.view(np.float64).astype(np.float32)
        try:
            return np.asarray(dequantize(raw, kind), np.float32)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: tensor {name} has format {kind.name}, which the gguf package cannot dequantise; "
                "use a file of another quantisation"
            ) from None

    def _i2_s_rows(self, stored: StoredTensor, start: int, stop: int) -> Rows:
        def read(at: int, count: int) -> npt.NDArray[np.uint8]:
            return read_at(self._file, self.path, stored.name, stored.offset + at, count)

        try:
            return i2_s.rows(read, stored, start, stop)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {stored.name}: {error}; download it again") from None

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return digest(hashlib.sha256(), file.fileno()).hexdigest()


def _halves(blocks: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.float16]:
    """The float16 at byte `at` of each block: [rows, groups]."""
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0]


def _join(bytes_: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(bytes_).reshape(len(bytes_), -1)


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[rows, groups, 16] -> codes [rows, 32 * groups]: low nibbles are columns 0..15 of a group, high ones 16..31."""
    codes = np.empty((*packed.shape[:2], GROUP), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, :, :16])
    np.right_shift(packed, 4, out=codes[:, :, 16:])
    return codes.reshape(len(packed), -1)


def _six_bits(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[rows, blocks, 192] -> codes 0..63 [rows, 256 * blocks]. A half of a block (128 columns) has 64 bytes of low
    nibbles, columns 0..63 in the low and 64..127 in the high half of a byte, and 32 bytes of high bits, column c in
    bits 2 * (c // 32) of byte c % 32."""
    rows, n_blocks = packed.shape[:2]
    low = packed[:, :, :128].reshape(rows, n_blocks, 2, 1, 64)
    high = packed[:, :, 128:].reshape(rows, n_blocks, 2, 1, 32)
    codes = np.empty((rows, n_blocks, 2, 4, 32), np.uint8)
    codes[...] = (low >> np.array([0, 4], np.uint8)[:, None] & 15).reshape(codes.shape)
    codes |= (high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3) << 4
    return codes.reshape(rows, -1)
