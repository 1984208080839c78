"""DAREx-q: divide what DARE keeps by q > 1 - p instead of 1 - p (Deng et al., arXiv 2410.09344).

At high drop rates the factor 1 / (1 - p) makes the variance large; a larger q trades some of it for a bias. q is found
for the whole model, by a score on labelled examples or by the least change of outputs on an unlabelled batch (both
sweep over `candidates`), or for each layer by the analytic rule, `layer_q`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgerun.variants.dare import Float

SHRINKS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.15)
"""(1 - p) / q: what a kept element is of DARE's."""
ETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
GAMMA = 0.95


def candidates(p: float) -> list[float]:
    """Values of q to try for a whole model, from 1 - p (DARE) on; none above 1, which nobody would divide by."""
    return [q for shrink in SHRINKS if (q := (1 - p) / shrink) <= 1]


def layer_q(c: NDArray[np.float64], p: float, eta: float, gamma: float = GAMMA) -> float:
    """The q of one layer by the analytic rule: the least, over a fine grid, of the mean over rows of

        |eta (1 - (1 - p) / q) sum c + eta^2 Phi(p) sum c^2 / (4 q^2) + ln(2 / (1 - gamma))|

    with c = delta_row * x_mean and Phi(p) = (1 - 2p) / ln((1 - p) / p). c: [N, 2], every row's sums of c and of c^2
    (`row_sums`). eta: tuned once for the whole model.
    """
    q = np.geomspace(1 - p, min(1.0, 10 * (1 - p)), 100)[:, None]
    bound = eta * (1 - (1 - p) / q) * c[:, 0] + eta**2 * phi(p) * c[:, 1] / (4 * q**2) + math.log(2 / (1 - gamma))
    return float(q[np.argmin(np.abs(bound).mean(axis=1)), 0])


def row_sums(delta: Float, x_mean: Float) -> NDArray[np.float64]:
    """Sum and sum of squares of every row of c = delta * x_mean, [N, 2]. delta [N, K], x_mean [K]."""
    return np.stack([delta @ x_mean, (delta * delta) @ (x_mean * x_mean)], axis=1).astype(np.float64)


def phi(p: float) -> float:
    """(1 - 2p) / ln((1 - p) / p), which is 1/2 at p = 1/2."""
    return 0.5 if abs(p - 0.5) < 1e-6 else (1 - 2 * p) / math.log((1 - p) / p)


def output_change(logits: Float, wanted: Float) -> float:
    """How far a model's outputs are from the fine-tuned model's: mean KL(wanted || logits) in nats. Both [T, vocab]."""
    ours, theirs = log_softmax(logits), log_softmax(wanted)
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=-1, dtype=np.float64).mean())


def log_softmax(logits: Float) -> Float:
    """Over the last axis, in float32; sums in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    normalised: Float = shifted - np.log(total).astype(np.float32)
    return normalised


def first_best(costs: Iterable[float]) -> int:
    """The index of the least cost; of equal ones the first, which is the nearest to DARE."""
    listed = list(costs)
    return min(range(len(listed)), key=listed.__getitem__)
