"""A base and a fine-tuned model: the delta of every tensor, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError
from edgerun.progress import Progress

from ..checkpoint import Checkpoint
from ..families import Description, Matrix
from ..original import describe_original, open_original
from .lora import LoraAdapter, is_adapter

Float = npt.NDArray[np.float32]
ROWS_AT_ONCE = 1 << 22
"""Elements of a matrix that are in memory at one time."""


class Deltas(Protocol):
    """Where deltas to a base come from."""

    def delta(self, matrix: Matrix, start: int, stop: int) -> Float | None:
        """float32 [stop - start, K]: what to add to these rows of a matrix of the base; None: nothing."""

    def vectors(self) -> dict[str, Float]:
        """What to add to the base's norms and biases, by the package's names; those that differ."""


@dataclass(frozen=True)
class Pair:
    """An open base, what it is, and the deltas of a fine-tuned model. kind: "full" or "lora"."""

    base: Checkpoint
    description: Description
    deltas: Deltas
    kind: str

    def blocks(self, matrix: Matrix) -> Iterator[tuple[int, int]]:
        """First row and end of one run of rows after another."""
        step = max(1, ROWS_AT_ONCE // matrix.columns)
        for start in range(0, matrix.rows, step):
            yield start, min(matrix.rows, start + step)

    def delta(self, matrix: Matrix, start: int, stop: int) -> Float | None:
        """As `Deltas.delta`; None also where the fine-tuned rows are those of the base."""
        delta = self.deltas.delta(matrix, start, stop)
        if delta is None or not delta.any():
            return None
        if not np.isfinite(delta).all():
            raise CheckpointError(f"tensor {matrix.name} of base or fine-tuned model has values that are no numbers")
        return delta


def open_pair(
    base: str | os.PathLike[str], finetuned: str | os.PathLike[str], progress: Progress | None = None
) -> Pair:
    """Opens both sides. finetuned: as `base`, or the folder of a PEFT LoRA adapter. CheckpointError if they do not
    belong together."""
    checkpoint = open_original(base, progress)
    description = describe_original(checkpoint)
    if is_adapter(Path(finetuned)):
        return Pair(checkpoint, description, LoraAdapter(Path(finetuned), description), "lora")
    other = open_original(finetuned, progress)
    return Pair(checkpoint, description, _Whole(checkpoint, description, other, describe_original(other)), "full")


class _Whole:
    """The difference to another whole checkpoint of the same shape."""

    def __init__(self, base: Checkpoint, description: Description, other: Checkpoint, theirs: Description) -> None:
        self.base, self.description, self.other, self.theirs = base, description, other, theirs
        for field in ("family", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size"):
            self._same(field, getattr(description, field), getattr(theirs, field))
        self._same("number of layers", len(description.layers), len(theirs.layers))
        self._same("tied output head", description.output is None, theirs.output is None)
        self._same("activation", description.activation, theirs.activation)
        self._same("RMS norm epsilon", np.float32(description.rms_norm_eps), np.float32(theirs.rms_norm_eps))
        if not np.allclose(description.inv_freq, theirs.inv_freq, rtol=1e-5):
            raise CheckpointError(f"{other.path}: its RoPE frequencies are not those of {base.path}: not its fine-tune")
        self._by_name = {matrix.name: matrix for matrix in theirs.matrices()}
        ours, of_theirs = dict(description.vectors()), dict(theirs.vectors())
        self._same("norms and biases", sorted(ours), sorted(of_theirs))
        self._differences = {name: of_theirs[name] - values for name, values in ours.items()}

    def _same(self, what: str, ours: object, theirs: object) -> None:
        if ours != theirs:
            raise CheckpointError(
                f"{self.other.path}: its {what} is {str(theirs)[:200]}, that of the base {self.base.path} is "
                f"{str(ours)[:200]}: not a fine-tuned model of this base; give the base that it was trained from"
            )

    def delta(self, matrix: Matrix, start: int, stop: int) -> Float | None:
        wanted = self._by_name[matrix.name].floats(self.other, start, stop)
        difference: Float = wanted - matrix.floats(self.base, start, stop)
        return difference

    def vectors(self) -> dict[str, Float]:
        return {name: delta for name, delta in self._differences.items() if delta.any()}
