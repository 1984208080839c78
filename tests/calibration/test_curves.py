"""Local curves against attention written out, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.attention.deltallm import DeltaLLM, delta_keys, references
from edgerun.calibration.curves import Layer
from edgerun.calibration.thetas import THETAS, Curves, feature_limits, joined, layer_curves

WINDOW, SINKS = 5, 2


class Weights:
    """An output projection that is a plain matrix, [hidden, n_heads * D]."""

    def __init__(self, matrix: np.ndarray, normed: bool = False) -> None:
        self.matrix, self.normed = matrix, normed

    def norm_scale(self, outputs: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(outputs).mean(axis=1)) if self.normed else np.ones(len(outputs), np.float32)

    def energy(self, part: np.ndarray, first: int) -> np.ndarray:
        return np.square(part @ self.matrix[:, first : first + part.shape[1]].T).sum(axis=1)


class Made:
    """A layer of random queries, keys that drift, and values."""

    def __init__(self, seed: int, n_kv: int, group: int, n_tokens: int, dim: int, normed: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.positions = np.unique(rng.integers(0, n_tokens, 6))
        self.queries = rng.normal(0, 1, (len(self.positions), n_kv * group, dim)).astype(np.float32)
        steps = rng.normal(0, 0.3, (n_kv, n_tokens, dim))
        self.keys = (np.cumsum(steps, axis=1) * 0.3 + rng.normal(0, 1, (n_kv, 1, dim))).astype(np.float32)
        self.values = rng.normal(0, 1, (n_kv, n_tokens, dim)).astype(np.float32)
        self.group = group
        self.weights = Weights(rng.normal(0, 1, (7, n_kv * group * dim)).astype(np.float32), normed)
        self.layer = Layer(self.positions, self.queries, self.keys, self.values, self.weights, WINDOW, SINKS)  # type: ignore[arg-type]

    def outputs(self, scored: np.ndarray) -> np.ndarray:
        """float64 [n, n_heads, D]: keys ``scored`` stand for those outside the window."""
        policy = DeltaLLM(np.zeros((1, 1), np.float32), WINDOW, SINKS)
        found = np.zeros(self.queries.shape)
        for row, position in enumerate(self.positions):
            for head in range(self.queries.shape[1]):
                kv = head // self.group
                outside = np.arange(position + 1) < policy.exact_from(int(position))
                keys = np.where(outside[:, None], scored[kv, : position + 1], self.keys[kv, : position + 1])
                weights = np.exp(keys.astype(np.float64) @ self.queries[row, head])
                found[row, head] = weights @ self.values[kv, : position + 1] / weights.sum()
        return found

    def error(self, scored: np.ndarray, kv: int) -> float:
        exact = self.outputs(self.keys)
        flat = exact.reshape(len(exact), -1)
        scale = self.weights.norm_scale(flat)[:, None]
        changed = exact.copy()
        heads = slice(kv * self.group, (kv + 1) * self.group)
        changed[:, heads] = self.outputs(scored)[:, heads]
        lost = (changed.reshape(len(exact), -1) - flat) / scale @ self.weights.matrix.T
        return float(np.square(lost).sum(1).mean() / np.square(flat / scale @ self.weights.matrix.T).sum(1).mean())


SHAPES = {
    "seed": st.integers(0, 10_000),
    "n_kv": st.integers(1, 3),
    "group": st.integers(1, 3),
    "n_tokens": st.sampled_from([1, 7, 129, 300]),
    "dim": st.sampled_from([2, 6]),
    "normed": st.booleans(),
}


@given(**SHAPES)
@settings(max_examples=15, deadline=None)
def test_whole_keys(seed: int, n_kv: int, group: int, n_tokens: int, dim: int, normed: bool) -> None:
    made = Made(seed, n_kv, group, n_tokens, dim, normed)
    thetas = np.array([0, 0.3, 3], np.float32)
    saved, error = made.layer.whole_keys(thetas)
    left = DeltaLLM(np.zeros((1, 1), np.float32), WINDOW, SINKS).exact_from(int(made.positions[-1]))
    for kv in range(n_kv):
        for n, theta in enumerate(thetas):
            sent = references(made.keys[kv], np.float32(theta), SINKS)
            scored = made.keys.copy()
            scored[kv] = made.keys[kv][np.maximum.accumulate(np.where(sent, np.arange(n_tokens), 0))]
            assert error[kv, n] == pytest.approx(made.error(scored, kv), rel=2e-3, abs=1e-9)
            assert saved[kv, n] == pytest.approx(1 - sent[:left].mean() if left else 0)
    np.testing.assert_allclose(error[:, 0], 0, atol=1e-10)
    np.testing.assert_array_equal(saved[:, 0], 0)


@given(**SHAPES)
@settings(max_examples=15, deadline=None)
def test_elements(seed: int, n_kv: int, group: int, n_tokens: int, dim: int, normed: bool) -> None:
    made = Made(seed, n_kv, group, n_tokens, dim, normed)
    limits = np.random.default_rng(seed).uniform(0, 0.6, (3, dim)).astype(np.float32)
    limits[0] = 0
    for kv in range(n_kv):
        saved, error = made.layer.elements(kv, limits)
        for n, limit in enumerate(limits):
            scored = made.keys.copy()
            scored[kv], _ = delta_keys(made.keys[kv], np.float32(1), limit, SINKS)
            assert error[n] == pytest.approx(made.error(scored, kv), rel=2e-3, abs=1e-9)
        assert saved[0] == 0 and (saved <= 1).all()


def test_a_higher_price_saves_more() -> None:
    made = Made(3, 2, 2, 400, 6)
    for form in ("key", "element"):
        curves = joined([layer_curves(made.layer, form)])  # type: ignore[arg-type]
        saved, costs = [], []
        for price in (1e-9, 1e-3, 1e-2, 1e-1, 10):
            points = curves.points(np.ones(1), price)
            taken = np.take_along_axis(curves.saved[0], np.maximum(points[0], 0)[:, None], 1)[:, 0]
            saved.append(float(np.where(points[0] >= 0, taken, 0).sum()))
            costs.append(float(curves.errors(points)[0]))
        assert saved == sorted(saved) and saved[-1] > saved[0]
        assert costs == sorted(costs)


def test_what_points_stand_for() -> None:
    keys = Curves(np.zeros((2, 2, len(THETAS))), np.zeros((2, 2, len(THETAS))))
    policy = keys.policy(np.array([[0, -1], [2, -1]]))
    np.testing.assert_array_equal(policy.theta, np.array([[THETAS[0], 0], [THETAS[2], 0]], np.float32))
    limits = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    policy = Curves(np.zeros((2, 2, 3)), np.zeros((2, 2, 3)), limits).policy(np.array([[0, -1], [2, 1]]))
    assert policy.form == "element" and policy.spread is not None
    np.testing.assert_array_equal(policy.theta, [[1, 0], [1, 1]])
    np.testing.assert_array_equal(policy.spread[1], limits[1, [0, 1], [2, 1]])
    assert not policy.spread[0, 1].any()


def test_layers_that_are_left_alone() -> None:
    curves = Curves(np.ones((3, 2, len(THETAS))), np.full((3, 2, len(THETAS)), 1e-9))
    points = curves.points(np.ones(3), 1.0, (1,))
    assert (points[[0, 2]] == -1).all() and (points[1] >= 0).all()


def test_features_that_queries_ignore_go_first() -> None:
    made = Made(5, 1, 1, 300, 6)
    queries = made.queries.copy()
    queries[:, :, 3] = 0
    layer = Layer(made.positions, queries, made.keys, made.values, made.weights, WINDOW, SINKS)  # type: ignore[arg-type]
    limits = feature_limits(layer, 0)
    assert (limits[0, 3] >= limits[0]).all() and limits[0, 3] > 0
    assert (np.diff(limits.sum(axis=1)) >= 0).all()
