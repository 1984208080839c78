"""Structural DARE: whole input columns of a delta are dropped by chance, the same in every row (arXiv 2410.09344)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.variants.dare import Float, kept, window
from edgerun.variants.store import SparseDelta


def columns_kept(k: int, p: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Which of K columns stay, ascending: each is dropped with probability p, stratified as DARE's mask."""
    w = window(p)
    if not w:
        return np.nonzero(random.random(k) >= p)[0]
    columns = random.integers(0, w, -(-k // w)) + np.arange(0, k, w)
    return columns[columns < k]


def structural(delta: Float, columns: NDArray[np.int64], q: float) -> SparseDelta:
    """delta: float32 [N, K]. Keeps `columns` of every row, divided by q (1 - p, or more as in DAREx-q)."""
    n = len(delta)
    rows = np.repeat(np.arange(n), len(columns))
    return kept(delta, rows, np.tile(columns, n), 1 / np.float32(q))
