"""Keep the largest elements of each row of a delta, as they are: for deltas too large for DARE (arXiv 2410.09344)."""

from __future__ import annotations

import numpy as np

from edgerun.variants.dare import Float, kept
from edgerun.variants.store import SparseDelta


def magnitude(delta: Float, p: float) -> SparseDelta:
    """delta: float32 [N, K]. Keeps the (1 - p) K elements of each row with the largest |delta|, not rescaled."""
    return largest(delta, np.abs(delta), p)


def largest(delta: Float, importance: Float, p: float) -> SparseDelta:
    """The (1 - p) K elements (at least one) of each row of delta [N, K] that are the most important by `importance`
    [N, K]; of equal ones any."""
    n, k = delta.shape
    count = max(1, round((1 - p) * k))
    columns = np.sort(np.argpartition(importance, k - count, axis=1)[:, k - count :], axis=1)
    return kept(delta, np.repeat(np.arange(n), count), columns.reshape(-1), np.float32(1))
