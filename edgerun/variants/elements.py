"""Sparse deltas element by element, as sorted keys (row * K + column) and values: how several become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgerun.variants.coding import SparseDelta


def scaled(delta: SparseDelta, weight: float) -> SparseDelta:
    return replace(delta, values=delta.values * np.float32(weight))


def together(
    deltas: Sequence[SparseDelta],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Keys, number of the delta, and values of all elements, sorted by key."""
    keys = np.concatenate([delta.rows() * delta.shape[1] + delta.columns for delta in deltas])
    owner = np.repeat(np.arange(len(deltas)), [len(delta.values) for delta in deltas])
    values = np.concatenate([delta.values for delta in deltas])
    order = np.argsort(keys, kind="stable")
    return keys[order], owner[order], values[order]


def summed(keys: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each key once, with the sum of its values."""
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    if not len(first):
        return keys, values
    return keys[first], np.add.reduceat(values.astype(np.float64), first).astype(np.float32)


def from_keys(shape: tuple[int, int], keys: NDArray[np.int64], values: NDArray[np.float32]) -> SparseDelta:
    rows, columns = np.divmod(keys, shape[1])
    counts = np.bincount(rows, minlength=shape[0]).astype(np.int32)
    return SparseDelta(shape, counts, columns.astype(np.int32), values)
