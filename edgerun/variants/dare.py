"""DARE: drop most of a delta by chance, and rescale the rest (Yu et al., arXiv 2311.03099).

delta~ = m * delta / (1 - p), each element of the mask m being 0 with probability p: unbiased, whatever the delta.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.variants.store import SparseDelta

Float = NDArray[np.float32]


def dare(delta: Float, p: float, random: np.random.Generator, q: float | None = None) -> SparseDelta:
    """delta: float32 [N, K]. p: drop rate, 0 <= p < 1. q: what the kept elements are divided by; default 1 - p (DAREx-q
    gives larger ones).

    Where 1 / (1 - p) is a whole number w, the mask is drawn *stratified*: of every window of w columns of a row exactly
    one element is kept, each with the same chance (and none, with the chance that is due, in a shorter last window).
    The drop rate stays p for every element and the result unbiased; its variance is less, rows have equally many
    elements, and a position takes less than a byte. Any other p draws each element for itself, as the paper does.
    """
    n, k = delta.shape
    w = window(p)
    if w:
        columns = random.integers(0, w, (n, -(-k // w))) + np.arange(0, k, w)
        there = columns < k
        rows, columns = np.nonzero(there)[0], columns[there]
    else:
        rows, columns = np.nonzero(random.random((n, k), np.float32) >= p)
    return kept(delta, rows, columns, 1 / np.float32(1 - p if q is None else q))


def window(p: float) -> int:
    """Columns of a window of the stratified mask: 1 / (1 - p), or 0 if that is no whole number."""
    w = 1 / (1 - p)
    return round(w) if abs(w - round(w)) < 1e-6 * w else 0


def kept(delta: Float, rows: NDArray[np.int64], columns: NDArray[np.int64], scale: np.float32) -> SparseDelta:
    """The elements of delta [N, K] at (rows, columns), in that order, times `scale`."""
    n, k = delta.shape
    counts = np.bincount(rows, minlength=n).astype(np.int32)
    return SparseDelta((n, k), counts, columns.astype(np.int32), delta[rows, columns] * scale)
