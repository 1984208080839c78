"""Hugging Face folders: config.json and one or many safetensors files.

Format: huggingface.co/docs/safetensors (8 bytes length, a JSON directory, the data). Read here rather than with the
package, because numpy has no bfloat16 and because a file is then checked whole before its first tensor is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint, Rows, TensorInfo, Trits, digest, read_at

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_OTHER_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
                "I32": 4, "U32": 4, "I64": 8, "U64": 8}  # fmt: skip
_MAX_HEADER = 100 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError if it is missing or no object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file: the folder is not a whole Hugging Face checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; download it again")
    return value


class SafetensorsFiles:
    """Open safetensors files, their headers checked: tensors by name, read some rows at a time."""

    def __init__(self, *paths: Path) -> None:
        self._files: dict[Path, int] = {}
        self._places: dict[str, tuple[Path, int, int]] = {}  # name -> file, offset, bytes per row
        self.tensors: dict[str, TensorInfo] = {}
        weakref.finalize(self, _close, self._files)
        for path in paths:
            self._add_file(path)

    def _add_file(self, path: Path) -> None:
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror}); download it again") from None
        self._files[path] = file
        size = os.fstat(file).st_size
        head = int.from_bytes(os.pread(file, 8, 0), "little") if size >= 8 else size + 1
        if 8 + head > size or head > _MAX_HEADER:
            raise CheckpointError(f"{path}: truncated or not a safetensors file; download it again")
        try:
            directory = json.loads(os.pread(file, head, 8))
            entries = [_entry(name, entry) for name, entry in directory.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError):
            raise CheckpointError(f"{path}: its header is damaged; download it again") from None
        for name, dtype, shape, begin, end in entries:
            width = _BYTES.get(dtype) or _OTHER_BYTES.get(dtype)
            if width is None:
                raise CheckpointError(f"{path}: tensor {name} has the unknown dtype {dtype}; use f32, f16 or bf16")
            if not 0 <= begin <= end or end - begin != math.prod(shape) * width:
                raise CheckpointError(f"{path}: tensor {name}: its size and its shape disagree; download it again")
            if 8 + head + end > size:
                raise CheckpointError(
                    f"{path}: truncated: tensor {name} ends at byte {8 + head + end}, the file at {size}; "
                    "download it again"
                )
            row_bytes = width * (shape[-1] if shape else 1)
            self._places[name] = path, 8 + head + begin, row_bytes
            self.tensors[name] = TensorInfo(name, shape, dtype, 8 * width)

    def floats(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows start..stop of a matrix as float32."""
        info = self.tensors[name]
        if info.format not in _BYTES:
            path = self._places[name][0]
            raise CheckpointError(f"{path}: tensor {name} has dtype {info.format}; only f32, f16 and bf16 are read")
        raw = self.raw(name, start, stop)
        if info.format == "BF16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return raw.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[info.format]).astype(np.float32, copy=False)

    def raw(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of rows start..stop: [rows, bytes of a row]."""
        path, offset, row_bytes = self._places[name]
        raw = read_at(self._files[path], path, name, offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.reshape(stop - start, row_bytes)

    def sha256(self) -> str:
        state = hashlib.sha256()
        for path in sorted(self._files):
            with path.open("rb") as file:
                digest(state, file.fileno())
        return state.hexdigest()


class SafetensorsCheckpoint(Checkpoint):
    """An open Hugging Face folder (or one .safetensors file beside its config.json)."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = path if path.is_dir() else path.parent
        self.folder = folder
        self.metadata = read_json(folder / "config.json")
        self.architecture = str(self.metadata.get("model_type", "(none)"))
        quantised = self.metadata.get("quantization_config")
        if quantised and not (isinstance(quantised, dict) and quantised.get("quant_method") == "bitnet"):
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
            raise CheckpointError(
                f"{folder / 'config.json'}: quantization_config: {method}-quantised safetensors are not supported; "
                "use the original checkpoint or a GGUF file"
            )
        wanted: Mapping[Path, list[str] | None] = self._weight_map() if path.is_dir() else {path: None}
        self._files = SafetensorsFiles(*wanted)
        self.tensors = self._files.tensors
        for file, names in wanted.items():
            for name in names or ():
                if name not in self.tensors:
                    raise CheckpointError(f"{file}: tensor {name} is missing, but the index names it here")

    def _weight_map(self) -> Mapping[Path, list[str] | None]:
        """The files to read, each with the tensors that the index promises in it (None: no index)."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index}: weight_map is missing; download it again")
            promised: dict[Path, list[str]] = {}
            for name, file in sorted(weight_map.items(), key=lambda item: (str(item[1]), item[0])):
                if not isinstance(file, str) or Path(file).name != file:
                    raise CheckpointError(f"{index}: tensor {name} lies in {file!r}, which is not a file of the folder")
                promised.setdefault(self.folder / file, []).append(name)
            return dict(promised)
        found = sorted(self.folder.glob("*.safetensors"))
        single = self.folder / "model.safetensors"
        if single in found:
            return {single: None}
        if len(found) == 1:
            return {found[0]: None}
        if found:
            raise CheckpointError(f"{index}: no such file, but there are {len(found)} safetensors files; download it")
        others = sorted(p.name for p in self.folder.glob("*.bin")) + sorted(p.name for p in self.folder.glob("*.gguf"))
        hint = f" (it has {others[0]})" if others else ""
        raise CheckpointError(f"{self.folder}: no safetensors file in the folder{hint}; give a safetensors or GGUF one")

    def rows(self, name: str, start: int, stop: int) -> Rows:
        return self._files.floats(name, start, stop)

    def packed_trits(self, name: str, start: int, stop: int) -> Trits:
        return self._files.raw(name, start, stop)

    def sha256(self) -> str:
        return self._files.sha256()


def _entry(name: str, entry: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    """name, dtype, shape, first byte and end of one tensor, as the directory has them."""
    begin, end = entry["data_offsets"]
    return name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), int(begin), int(end)


def _close(files: dict[Path, int]) -> None:
    for file in files.values():
        os.close(file)
