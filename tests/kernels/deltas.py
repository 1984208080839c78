"""Sparse deltas to try: drawn window by window, by rows of equal counts, or by any mask."""

from __future__ import annotations

import numpy as np

from edgerun.variants.coding import SparseDelta


def windows(n: int, k: int, window: int, rng: np.random.Generator) -> SparseDelta:
    """One element kept in each window of a row, none where the last, shorter window was missed."""
    steps = -(-k // window)
    columns = rng.integers(0, window, (n, steps)) + np.arange(steps) * window
    kept = columns < k
    return _delta(n, k, kept.sum(1), columns[kept], rng)


def masked(n: int, k: int, share: float, rng: np.random.Generator) -> SparseDelta:
    """Each element kept by chance."""
    rows, columns = np.nonzero(rng.random((n, k)) < share)
    return _delta(n, k, np.bincount(rows, minlength=n), columns, rng)


def top(n: int, k: int, count: int, rng: np.random.Generator) -> SparseDelta:
    """So many elements of each row, wherever they are."""
    columns = np.sort(rng.random((n, k)).argsort(axis=1)[:, :count], axis=1)
    return _delta(n, k, np.full(n, columns.shape[1]), columns.ravel(), rng)


def _delta(
    n: int, k: int, counts: np.ndarray, columns: np.ndarray, rng: np.random.Generator, scale: float = 0.01
) -> SparseDelta:
    values = (scale * rng.standard_normal(len(columns))).astype(np.float32)
    return SparseDelta((n, k), counts.astype(np.int32), columns.astype(np.int32), values)
