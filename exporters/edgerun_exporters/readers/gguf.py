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
from .gguf_header import read_header

_SHARDED = "split.count"


class GgufCheckpoint(Checkpoint):
    """An open GGUF file. Q4_0, Q4_1 and Q8_0 come as stored; all other formats come as float32."""

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
            end = stored.offset + row_bytes * math.prod(stored.shape[:-1])
            if end > size:
                raise CheckpointError(
                    f"{path}: truncated: tensor {stored.name} ends at byte {end}, the file at {size}; download it again"
                )
            self._types[stored.name], self._row_bytes[stored.name] = kind, row_bytes
            tensors[stored.name] = TensorInfo(stored.name, stored.shape, kind.name, 8 * block_bytes / block)
        self.tensors = tensors
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def rows(self, name: str, start: int, stop: int) -> Rows:
        stored, kind, row_bytes = self._stored[name], self._types[name], self._row_bytes[name]
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
        if kind == GGMLQuantizationType.F64:
            return raw.view(np.float64).astype(np.float32)
        try:
            return np.asarray(dequantize(raw, kind), np.float32)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: tensor {name} has format {kind.name}, which the gguf package cannot dequantise; "
                "use a file of another quantisation"
            ) from None

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
