"""Functions that make some rows of a delta sparse, one for each method. Every matrix has random numbers of its own, so
that the same seed gives the same variant whatever else is in the model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgerun.variants.dare import dare
from edgerun.variants.magnitude import magnitude
from edgerun.variants.store import SparseDelta
from edgerun.variants.structural import columns_kept, structural
from edgerun.variants.wanda import wanda

from ..families import Matrix

Float = npt.NDArray[np.float32]
Sparsify: TypeAlias = Callable[[Matrix, int, Float], SparseDelta]
"""(matrix, first row, delta [n, K]) -> the sparse form of these rows."""


def by_chance(p: float, seed: int, q: float | Mapping[str, float]) -> Sparsify:
    """DARE and DAREx-q; q for all matrices, or by name."""

    def sparsify(matrix: Matrix, start: int, delta: Float) -> SparseDelta:
        return dare(delta, p, _random(seed, matrix, start), q if isinstance(q, float) else q[matrix.name])

    return sparsify


def by_columns(p: float, seed: int, q: float) -> Sparsify:
    """Structural."""

    def sparsify(matrix: Matrix, start: int, delta: Float) -> SparseDelta:
        return structural(delta, columns_kept(matrix.columns, p, _random(seed, matrix)), q)

    return sparsify


def by_magnitude(p: float) -> Sparsify:
    return lambda matrix, start, delta: magnitude(delta, p)


def by_wanda(p: float, norms: Mapping[str, Float]) -> Sparsify:
    """norms: of every matrix's inputs, float32 [K]."""
    return lambda matrix, start, delta: wanda(delta, norms[matrix.name], p)


def joined(parts: list[SparseDelta]) -> SparseDelta:
    """Rows under one another."""
    if len(parts) == 1:
        return parts[0]
    shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
    counts, columns, values = (
        np.concatenate([getattr(part, field) for part in parts]) for field in ("counts", "columns", "values")
    )
    return SparseDelta(shape, counts, columns, values)


def _random(seed: int, matrix: Matrix, start: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(matrix.name.encode()), start])
