"""Ternary weights (BitNet b1.58, arXiv 2402.17764), in every form in which they are published.

A matrix is one positive scale and trits 0, 1, 2 for -1, 0, 1. Published are: trits packed four to a byte beside a
scale (Hugging Face), float or block-quantised values that are all -scale, 0 or scale (Hugging Face, GGUF), and master
weights, of which every user makes the trits on load: round(w / mean|w|), clipped to -1..1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from .checkpoint import Checkpoint, TensorInfo, Trits

_CHUNK = 1 << 20
_LEAST_MEAN = 1e-5
"""What mean|w| counts as at least, in transformers' and the authors' code."""
TRITS_PER_BYTE = 4

Reader = Callable[[int, int], Trits]


@dataclass(frozen=True)
class Ternary(ABC):
    """Where the trits and the scale of one matrix come from."""

    source: TensorInfo

    @abstractmethod
    def open(self, checkpoint: Checkpoint) -> tuple[np.float32, Reader]:
        """The scale, and a function that gives rows start..stop.

        CheckpointError if the scale is not positive and finite or, by the function, if a value is not ternary.
        """


@dataclass(frozen=True)
class PackedTrits(Ternary):
    """uint8 [rows / 4, columns] beside a scale: byte r holds rows r, r + rows / 4, ..., from its lowest bits on."""

    scale_name: str
    inverse: bool
    """Whether the stored number is what outputs are divided by (transformers' BitLinear) or multiplied by."""

    def open(self, checkpoint: Checkpoint) -> tuple[np.float32, Reader]:
        scale = _one_number(checkpoint, self.scale_name)
        quarter, columns = self.source.shape

        def read(start: int, stop: int) -> Trits:
            found = np.empty((stop - start, columns), np.uint8)
            for part in range(TRITS_PER_BYTE):
                first, last = max(start, part * quarter), min(stop, (part + 1) * quarter)
                if first < last:
                    packed = checkpoint.packed_trits(self.source.name, first - part * quarter, last - part * quarter)
                    found[first - start : last - start] = packed >> 2 * part & 3
            _refuse(checkpoint, self.source.name, found > 2, start, "3, where a packed weight is 0, 1 or 2")
            return found

        if self.inverse:
            scale = _check_scale(checkpoint, self.scale_name, np.float32(1) / scale)
        return scale, read


@dataclass(frozen=True)
class TernaryValues(Ternary):
    """Numbers of which each is -s, 0 or s."""

    scale_name: str | None = None
    """A tensor with one number by which outputs are multiplied, too."""

    def open(self, checkpoint: Checkpoint) -> tuple[np.float32, Reader]:
        name = self.source.name
        size = np.float32(0)
        for rows in _chunks(checkpoint, self.source):
            nonzero = rows[(rows != 0) & ~np.isnan(rows)]
            if len(nonzero):
                size = np.abs(nonzero[0])
                break
        _check_scale(checkpoint, name, size)

        def read(start: int, stop: int) -> Trits:
            rows = checkpoint.floats(name, start, stop)
            positive, negative = rows == size, rows == -size
            strange = ~(positive | negative | (rows == 0))
            if strange.any():
                value = rows[strange][0]
                _refuse(checkpoint, name, strange, start, f"{value:g}, where a ternary weight is 0 or +-{size:g}")
            trits: Trits = positive.view(np.uint8) - negative.view(np.uint8) + np.uint8(1)
            return trits

        factor = np.float32(1) if self.scale_name is None else _one_number(checkpoint, self.scale_name)
        return _check_scale(checkpoint, name, np.float32(size * factor)), read

    def is_ternary(self, checkpoint: Checkpoint) -> bool:
        """Whether it is one: reads the whole tensor."""
        try:
            _, read = self.open(checkpoint)
            rows, step = self.source.shape[0], _step(self.source)
            for start in range(0, rows, step):
                read(start, min(rows, start + step))
        except CheckpointError:
            return False
        return True


@dataclass(frozen=True)
class MasterWeights(Ternary):
    """Weights in full precision, quantised as transformers does it on load: in float32, the scale then rounded to the
    type of the weights."""

    def open(self, checkpoint: Checkpoint) -> tuple[np.float32, Reader]:
        name = self.source.name
        total = sum(float(np.abs(rows).sum(dtype=np.float64)) for rows in _chunks(checkpoint, self.source))
        mean = np.float32(max(total / math.prod(self.source.shape), _LEAST_MEAN))
        inverse = _check_scale(checkpoint, name, np.float32(1) / mean)

        def read(start: int, stop: int) -> Trits:
            rows = checkpoint.floats(name, start, stop)
            strange = ~np.isfinite(rows)
            _refuse(checkpoint, name, strange, start, "no number")
            trits: Trits = (np.clip(np.rint(rows * inverse), -1, 1) + 1).astype(np.uint8)
            return trits

        scale = np.float32(1) / inverse
        if self.source.format == "BF16":
            scale = _bfloat16(scale)
        elif self.source.format == "F16":
            scale = np.float32(np.float16(scale))
        return scale, read


def _bfloat16(value: np.float32) -> np.float32:
    """The nearest bfloat16, ties to even."""
    bits = int(value.view(np.uint32))
    return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _step(source: TensorInfo) -> int:
    return max(1, _CHUNK // source.shape[1])


def _chunks(checkpoint: Checkpoint, source: TensorInfo) -> Iterator[npt.NDArray[np.float32]]:
    rows, step = source.shape[0], _step(source)
    for start in range(0, rows, step):
        yield checkpoint.floats(source.name, start, min(rows, start + step))


def _one_number(checkpoint: Checkpoint, name: str) -> np.float32:
    info = checkpoint.tensors.get(name)
    if info is None or math.prod(info.shape) != 1:
        found = "is missing" if info is None else f"has shape {list(info.shape)}"
        raise CheckpointError(f"{checkpoint.path}: tensor {name} {found}, expected one scale; download it again")
    return _check_scale(checkpoint, name, np.float32(checkpoint.floats(name, 0, 1).reshape(-1)[0]))


def _check_scale(checkpoint: Checkpoint, name: str, scale: np.float32) -> np.float32:
    if not 0 < scale < math.inf:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name}: the scale of its ternary weights is {scale:g}, "
            "not a positive number; download it again"
        )
    return scale


def _refuse(checkpoint: Checkpoint, name: str, strange: npt.NDArray[np.bool_], start: int, what: str) -> None:
    if strange.any():
        row, column = np.argwhere(strange)[0]
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is not ternary: at row {start + row}, column {column} it holds {what}; "
            "download it again, or use another form of the model"
        )
