"""TIES-Merging (Yadav et al., "Resolving Interference When Merging Models", arXiv 2306.01708), after DARE.

With task vectors tau_i of one base: *trim* keeps the k % of each tau_i that are largest by magnitude; *elect* takes,
element by element, the sign gamma of the sum of all trimmed values; *merge* averages those that agree with it,
tau_m = mean of {tau_i : sign(tau_i) = gamma}. What is added to the base is lambda * tau_m.

Here every tau_i comes with a weight lambda_i, with which it is multiplied before elect; the mean is weighted alike, and
lambda is the sum of all weights, so that one variant alone with k = 100 is itself times its weight. DARE has trimmed by
chance already, so k = 100 is the default.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.variants.coding import SparseDelta
from edgerun.variants.elements import from_keys, scaled, summed, together


def ties(deltas: Sequence[SparseDelta], weights: Sequence[float], k: float = 100.0) -> SparseDelta:
    """The merged delta of one matrix. k: per cent of each that trimming keeps."""
    trimmed = [trim(delta, k) for delta in deltas]
    keys, owner, values = together([scaled(delta, weight) for delta, weight in zip(trimmed, weights, strict=True)])
    gamma_keys, sums = summed(keys, values)
    if not len(keys):
        return from_keys(deltas[0].shape, keys, values)
    place = np.searchsorted(gamma_keys, keys)
    agrees = np.sign(values) == np.sign(sums)[place]
    size = np.abs(np.asarray(weights, np.float64))
    share = np.bincount(place[agrees], size[owner[agrees]], minlength=len(gamma_keys))
    total = np.bincount(place[agrees], values[agrees].astype(np.float64), minlength=len(gamma_keys))
    kept = share > 0
    # total / share is the weighted mean of the tau_i that agree; lambda is the weights' sum.
    tau = np.where(kept, total / np.where(kept, share, 1), 0) * size.sum()
    return from_keys(deltas[0].shape, gamma_keys[kept], tau[kept].astype(np.float32))


def trim(delta: SparseDelta, k: float) -> SparseDelta:
    """The k per cent of the elements of the whole matrix that are largest by magnitude, of those that are there."""
    most = round(delta.shape[0] * delta.shape[1] * k / 100)
    if most >= len(delta.values):
        return delta
    order = np.argsort(-np.abs(delta.values), kind="stable")[:most]
    kept = np.sort(order)
    rows = delta.rows()[kept]
    counts = np.bincount(rows, minlength=delta.shape[0]).astype(np.int32)
    return SparseDelta(delta.shape, counts, delta.columns[kept], delta.values[kept])
