"""What identifies a checkpoint's original weights, however they are stored: a variant belongs to one of them."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from .checkpoint import Checkpoint, QuantisedBlocks
from .families import Description, describe
from .readers.open import open_checkpoint

_CHUNK = 1 << 20


def fingerprint(checkpoint: Checkpoint | str | os.PathLike[str], description: Description | None = None) -> str:
    """sha256, as hex, of all weights as float32 (of ternary layers: trits and scale) in a model package's names and
    order. The same weights give the same, in any file format and split that holds them exactly; those of a quantised
    checkpoint are its dequantised values. Reads every weight, some rows at a time. Raises CheckpointError.

    description: of this checkpoint, if it is known already.
    """
    source = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    description = description or describe(source)
    state = hashlib.sha256()

    def part(name: str, shape: tuple[int, ...]) -> None:
        state.update(f"{name} {shape}\0".encode())

    for matrix in description.matrices():
        part(matrix.name, (matrix.rows, matrix.columns))
        step = max(1, _CHUNK // matrix.columns)
        read_trits = None
        if matrix.ternary is not None:
            scale, read_trits = matrix.open_ternary(source)
            state.update(np.float32(scale).tobytes())
        for start in range(0, matrix.rows, step):
            stop = min(matrix.rows, start + step)
            rows = read_trits(start, stop) if read_trits is not None else matrix.read(source, start, stop)
            if isinstance(rows, QuantisedBlocks):
                with np.errstate(all="ignore"):  # a damaged file's scales may be anything
                    rows = rows.dequantise()
            state.update(np.ascontiguousarray(rows).data)
    for name, vector in description.vectors():
        part(name, vector.shape)
        state.update(np.ascontiguousarray(vector, "<f4").data)
    return state.hexdigest()
