"""Θ for every head of DeltaLLM: local curves, a sensitivity for every layer, and one Lagrangian over all heads.

For each head and each point of its curve there is a share of keys saved and a local error (see ``curves``). A layer's
sensitivity is the divergence of the model's predictions when it alone is sparse, over its local error. For a price λ
every head takes the point with the least sensitivity * error - λ * saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.deltallm import DeltaLLM, Form, delta_keys
from edgerun.calibration.curves import F32, F64, Layer

WINDOW, SINKS = 128, 4
THETAS = np.array(
    [0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1, 1.1, 1.2, 1.5, 2], np.float32
)
"""How far a whole key may be from its reference, relative to the reference's length."""
STEPS = np.array([0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6], np.float32)
"""How far an element may be, relative to the feature's standard deviation."""
PRICES = np.geomspace(1e-4, 1, 13)
"""Prices of an element, in shares of the head's score variance: every one gives a head's features their limits."""


@dataclass(frozen=True)
class Curves:
    """What every head can have: saved, error float64 [n_layers, n_kv_heads, n_points].

    limits: float32 [n_layers, n_kv_heads, n_points, head_dim], what the points of the form "element" are; None: they
    are THETAS.
    """

    saved: F64
    error: F64
    limits: F32 | None = None

    def points(self, sensitivity: F64, price: float, layers: tuple[int, ...] | None = None) -> NDArray[np.int64]:
        """int64 [n_layers, n_kv_heads]: every head's best point, -1 where exact attention is better; of ``layers``
        alone, if given. price: λ, for all heads together."""
        n_layers, n_kv, _ = self.saved.shape
        value = sensitivity[:, None, None] * self.error - price * self.saved / (n_layers * n_kv)
        used = value.min(axis=-1) < 0
        if layers is not None:
            used &= np.isin(np.arange(n_layers), layers)[:, None]
        return np.where(used, value.argmin(axis=-1), -1)

    def policy(self, points: NDArray[np.int64]) -> DeltaLLM:
        """What points stand for."""
        if self.limits is None:
            return DeltaLLM(np.append(THETAS, np.float32(0))[points], WINDOW, SINKS)
        spread = np.take_along_axis(self.limits, np.maximum(points, 0)[..., None, None], axis=2)[:, :, 0]
        theta = (points >= 0).astype(np.float32)
        return DeltaLLM(theta, WINDOW, SINKS, "element", spread * theta[..., None])

    def errors(self, points: NDArray[np.int64]) -> F64:
        """float64 [n_layers]: the local error of every layer, its heads' together."""
        taken = np.take_along_axis(self.error, np.maximum(points, 0)[..., None], axis=2)[..., 0]
        summed: F64 = np.where(points >= 0, taken, 0).sum(axis=1)
        return summed


def layer_curves(layer: Layer, form: Form) -> dict[str, Any]:
    """A layer's curves as JSON: "saved", "error" and, of the form "element", "limits"."""
    if form == "key":
        saved, error = layer.whole_keys(THETAS)
        return {"saved": saved.tolist(), "error": error.tolist()}
    limits = np.stack([feature_limits(layer, head) for head in range(len(layer.keys))])
    points = [layer.elements(head, limits[head]) for head in range(len(limits))]
    return {
        "saved": [saved.tolist() for saved, _ in points],
        "error": [error.tolist() for _, error in points],
        "limits": limits.tolist(),
    }


def joined(layers: list[dict[str, Any]]) -> Curves:
    """The curves of all layers."""
    limits = np.array([one["limits"] for one in layers], np.float32) if "limits" in layers[0] else None
    return Curves(np.array([one["saved"] for one in layers]), np.array([one["error"] for one in layers]), limits)


def feature_limits(layer: Layer, head: int) -> F32:
    """float32 [len(PRICES), D]: for every price, how far each feature of a head may be from what was transmitted.

    A feature's cost is the mean square of the queries' feature times that of its error, relative to the variance of the
    head's scores that all features make alone; it takes the step with the least cost - price * share saved.
    """
    keys = layer.keys[head]
    spread = keys.std(axis=0)
    many = np.broadcast_to(keys, (len(STEPS), *keys.shape))
    scored, sent = delta_keys(many, STEPS, np.broadcast_to(spread, (len(STEPS), len(spread))), layer.sinks)
    saved = np.vstack([np.zeros(len(spread)), 1 - sent.mean(axis=1, dtype=np.float64)])
    lost = np.square(scored - keys, dtype=np.float64).mean(axis=1) * layer.query_power(head)
    variance = float((layer.query_power(head) * np.square(spread)).sum())
    cost = np.vstack([np.zeros(len(spread)), lost / max(variance, 1e-30)])
    best = (cost[None] - PRICES[:, None, None] * saved[None] / len(spread)).argmin(axis=1)
    limits: NDArray[np.float64] = np.concatenate([[0], STEPS])[best] * spread
    return np.array([[float(f"{x:.4g}") for x in row] for row in limits], np.float32)
