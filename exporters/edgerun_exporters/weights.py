"""The external data of a package: every tensor gets its place first, then the file is filled some rows at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from edgerun.errors import CheckpointError
from edgerun.package import layout
from edgerun.package.tensors import LINE

from .checkpoint import Checkpoint, QuantisedBlocks
from .families import Matrix
from .quantize import quantise

DATA_FILE = "model.onnx.data"
_CHUNK = 1 << 20
"""Weights that are in memory as float32 at one time."""
_VECTORS = 9
"""Their rank: they lie behind all that matrices have."""

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the data file; sizes in bytes."""

    name: str
    part: layout.Part
    offset: int
    size: int

    def proto(self) -> TensorProto:
        """The initializer that refers to it."""
        tensor = TensorProto(name=self.name, data_type=helper.np_dtype_to_tensor_dtype(self.part.dtype))
        tensor.dims.extend(self.part.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA_FILE), ("offset", self.offset), ("length", self.size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


@dataclass
class Weights:
    """The tensors of a package: all are added, then `arrange` gives them their places."""

    places: dict[str, Place] = field(default_factory=dict)
    size: int = 0
    _parts: list[tuple[int, str, layout.Part]] = field(default_factory=list)
    _vectors: list[tuple[str, Vector]] = field(default_factory=list)
    _matrices: list[tuple[Matrix, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes of all tensors, without the gaps between them."""
        return sum(place.size for place in self.places.values())

    def add_vector(self, name: str, values: Vector) -> str:
        self._vectors.append((name, values))
        self._parts.append((_VECTORS, name, layout.Part(np.dtype("<f4"), values.shape)))
        return name

    def add_matrix(self, matrix: Matrix, kind: str) -> list[str]:
        """Returns the names of its tensors, in the order of the operator's inputs."""
        self._matrices.append((matrix, kind))
        parts = layout.parts(kind, matrix.rows, matrix.columns)
        added = [(rank, f"{matrix.name}.{suffix}", part) for rank, (suffix, part) in enumerate(parts.items())]
        self._parts += added
        return [name for _, name, _ in added]

    def arrange(self) -> None:
        """The codes of all matrices one after another, in the order in which they were added, then their scales, then
        what else they have: decoding reads so many streams, and what is fetched ahead of one matrix is the next one."""
        for _, name, part in sorted(self._parts, key=lambda item: item[0]):
            size = part.dtype.itemsize * int(np.prod(part.shape))
            offset = -(-self.size // LINE) * LINE
            self.places[name] = Place(name, part, offset, size)
            self.size = offset + size

    def write(self, checkpoint: Checkpoint, path: Path, progress: Callable[[int, str], None]) -> None:
        """Fills `path`. `progress(bytes written since the last call, tensor)`. OSError if the disk is full."""
        with path.open("wb") as file:
            number = file.fileno()
            _reserve(number, self.size)
            for name, values in self._vectors:
                if not np.isfinite(values).all():
                    raise CheckpointError(f"{checkpoint.path}: tensor {name} has values that are no numbers")
                _write_at(number, self.places[name].offset, np.ascontiguousarray(values, "<f4"))
                progress(self.places[name].size, name)
            for matrix, kind in self._matrices:
                for start, packed in _packed(checkpoint, matrix, kind):
                    written = 0
                    for suffix, array in packed.items():
                        place = self.places[f"{matrix.name}.{suffix}"]
                        row_block = 0 if place.part.shape == (1,) else place.size // place.part.shape[0]
                        _write_at(number, place.offset + start // layout.ROWS * row_block, array)
                        written += array.nbytes
                    progress(written, matrix.name)


def _reserve(file: int, size: int) -> None:
    """Takes the room at once, so that a full disk shows at the start and not after minutes."""
    try:
        os.posix_fallocate(file, 0, max(1, size))
    except (AttributeError, OSError) as error:  # not on macOS, and not on every file system
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(file, size)


def _packed(checkpoint: Checkpoint, matrix: Matrix, kind: str) -> Iterator[tuple[int, dict[str, layout.Array]]]:
    """(first row, tensors) for one run of rows after another."""
    step = max(1, _CHUNK // (matrix.columns * layout.ROWS)) * layout.ROWS
    if kind.startswith("ternary"):
        scale, trits = matrix.open_ternary(checkpoint)
        d = np.full(1, scale, np.float32)
        if kind != "ternary":  # every column, or part of columns, holds all rows
            step = matrix.rows
        for start in range(0, matrix.rows, step):
            yield start, layout.pack(kind, trits(start, min(matrix.rows, start + step)), d)
        return
    for start in range(0, matrix.rows, step):
        rows = matrix.read(checkpoint, start, min(matrix.rows, start + step))
        if not isinstance(rows, QuantisedBlocks) or rows.kind != kind:
            dense = rows.dequantise() if isinstance(rows, QuantisedBlocks) else rows
            if not np.isfinite(dense).all():
                raise CheckpointError(
                    f"{checkpoint.path}: tensor {matrix.source.name} has values that are no numbers; download it again"
                )
            if kind == "f32":
                yield start, layout.pack("f32", np.ascontiguousarray(dense, np.float32))
                continue
            rows = quantise(kind, dense)
        yield start, layout.pack(kind, rows.codes, rows.d, rows.m, rows.s)


def _write_at(file: int, offset: int, array: layout.Array) -> None:
    view = np.ascontiguousarray(array).data.cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
