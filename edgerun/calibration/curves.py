"""Local curves: what a Θ saves in one head, and what it costs there, from recorded queries, keys and values.

The cost is the mean squared error of the head's contribution behind the output projection, relative to the mean square
of the layer's whole attention output.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.deltallm import DeltaLLM, delta_keys, references
from edgerun.calibration.output import OutputProjection

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Layer:
    """What was recorded of one layer; positions int64 [n], queries float32 [n, n_heads, D] (rotated, scaled), keys and
    values float32 [n_kv_heads, T, D]."""

    def __init__(
        self,
        positions: NDArray[np.int64],
        queries: F32,
        keys: F32,
        values: F32,
        projection: OutputProjection,
        window: int = 128,
        sinks: int = 4,
    ) -> None:
        self.keys, self.values, self.sinks = keys, values, sinks
        self._positions, self._projection = positions, projection
        policy = DeltaLLM(np.zeros((1, 1), np.float32), window, sinks)
        self._exact_from = np.array([policy.exact_from(int(position)) for position in positions])
        n_kv, _, dim = keys.shape
        self.group = queries.shape[1] // n_kv
        self._queries = np.ascontiguousarray(
            queries.reshape(len(positions), n_kv, self.group, dim).transpose(1, 0, 2, 3)
        )
        outputs: F32 = np.concatenate([self._exact(head) for head in range(n_kv)], axis=1)
        self._scale = projection.norm_scale(outputs)
        self._exact_output = outputs.reshape(len(positions), n_kv, -1)
        self._whole = float(projection.energy(outputs / self._scale[:, None], 0).mean())

    def whole_keys(self, thetas: F32) -> tuple[F64, F64]:
        """(share of keys saved, error) of every head and Θ, float64 [n_kv_heads, n_thetas] each; form "key"."""
        n_kv, _, dim = self.keys.shape
        many = np.broadcast_to(self.keys, (len(thetas), *self.keys.shape))
        sent = references(many, np.broadcast_to(thetas[:, None], (len(thetas), n_kv)), self.sinks)
        saved = self._saved(sent[..., None])
        error = np.zeros((n_kv, len(thetas)))
        for head in range(n_kv):
            outputs = np.zeros((len(thetas), len(self._positions), self.group, dim), np.float32)
            for rows, start, weights in self._weights(head):
                inside = weights[:, start:] @ self.values[head, start : weights.shape[1]]
                whole = weights[:, start:].sum(axis=1)
                for n in range(len(thetas)):
                    kept = np.flatnonzero(sent[n, head, :start])
                    summed, total = inside, whole
                    if start:
                        runs = np.add.reduceat(self.values[head, :start], kept)
                        part = weights[:, kept]
                        summed, total = (
                            inside + part @ runs,
                            whole + part @ np.diff(kept, append=start).astype(np.float32),
                        )
                    outputs[n, rows] = (summed / total[:, None]).reshape(-1, self.group, dim)
            error[head] = [self._error(head, output) for output in outputs]
        return saved.T, error

    def elements(self, head: int, limits: F32) -> tuple[F64, F64]:
        """(share of elements saved, error) of one head for every row of limits [n, D], |Δ_i| below which an element
        counts as unchanged: float64 [n] each; form "element"."""
        many = np.broadcast_to(self.keys[head], (len(limits), *self.keys.shape[1:]))
        scored, sent = delta_keys(many, np.ones(len(limits), np.float32), limits, self.sinks)
        outputs = (self._output(head, keys) for keys in scored)
        return self._saved(sent), np.array([self._error(head, output) for output in outputs])

    def query_power(self, head: int) -> F64:
        """float64 [D]: mean square of the queries' features."""
        power: F64 = np.square(self._queries[head], dtype=np.float64).mean(axis=(0, 1))
        return power

    def _saved(self, sent: NDArray[np.bool_]) -> F64:
        """float64 [...]: the share of sent [..., T, D] that is False, of the tokens that have left the window."""
        left = sent[..., : self._exact_from.max(initial=0), :]
        saved: F64 = (~left).sum(axis=(-2, -1)) / max(1, left.shape[-2] * left.shape[-1])
        return saved

    def _error(self, head: int, output: F32) -> float:
        difference = output.reshape(len(output), -1) - self._exact_output[:, head]
        first = head * difference.shape[1]
        return float(self._projection.energy(difference / self._scale[:, None], first).mean()) / self._whole

    def _exact(self, head: int) -> F32:
        return self._output(head, self.keys[head]).reshape(len(self._positions), -1)

    def _output(self, head: int, outside: F32) -> F32:
        """float32 [n, group, D]: what a head gives when tokens outside the window are scored with the keys ``outside``
        [T, D]."""
        outputs = np.empty(self._queries.shape[1:], np.float32)
        for rows, _, weights in self._weights(head, outside):
            mixed = weights @ self.values[head, : weights.shape[1]] / weights.sum(axis=1, keepdims=True)
            outputs[rows] = mixed.reshape(-1, *outputs.shape[1:])
        return outputs

    def _weights(self, head: int, outside: F32 | None = None) -> Iterator[tuple[slice, int, F32]]:
        """Queries that share a start of the exact part: their rows, that start, and exp(score - largest) float32
        [rows * group, tokens], 0 for what is after them."""
        edges = [0, *(np.flatnonzero(np.diff(self._exact_from)) + 1).tolist(), len(self._positions)]
        for low, high in pairwise(edges):
            start, end = int(self._exact_from[low]), int(self._positions[high - 1]) + 1
            q = self._queries[head, low:high].reshape(-1, self.keys.shape[2])
            keys = self.keys[head, :end]
            if outside is not None:
                keys = np.concatenate([outside[:start], keys[start:]])
            scores = (q @ keys.T).reshape(high - low, self.group, end)
            scores[np.broadcast_to((np.arange(end) > self._positions[low:high, None])[:, None], scores.shape)] = -np.inf
            scores -= scores.max(axis=2, keepdims=True)
            yield slice(low, high), start, np.exp(scores, out=scores).reshape(-1, end)


def choose(saved: F64, cost: F64, weight: float) -> NDArray[np.int64]:
    """int64 [...]: for every head the place in its curve [..., n] with the least cost - weight * saved; -1: none is
    below 0, which exact attention has."""
    value = cost - weight * saved
    best = value.argmin(axis=-1)
    return np.where(np.take_along_axis(value, best[..., None], -1)[..., 0] < 0, best, -1)
