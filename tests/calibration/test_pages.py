"""Pages that layers select and the plans made of them, against their definitions written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.attention.delta import SPAN, Delta, choose_pages, page_scores
from edgerun.calibration.pages import page_errors, plans
from edgerun.calibration.plans import RECENT, budgets, candidates
from tests.calibration.test_curves import Weights

N_LAYERS, N_KV, GROUP, DIM = 3, 2, 2, 4


class Recorded:
    """What a Capture gives, at random."""

    def __init__(self, seed: int, n_tokens: int) -> None:
        rng = np.random.default_rng(seed)
        self.n_layers, self.n_tokens = N_LAYERS, n_tokens
        self.positions = np.unique(rng.integers(n_tokens // 2, n_tokens, 5))
        shape = (N_LAYERS, len(self.positions), N_KV * GROUP, DIM)
        self._queries = rng.normal(0, 2, shape).astype(np.float32)
        self._both = rng.normal(0, 1, (2, N_LAYERS, N_KV, n_tokens, DIM)).astype(np.float32)
        self.weights = [Weights(rng.normal(0, 1, (5, N_KV * GROUP * DIM)).astype(np.float32)) for _ in range(N_LAYERS)]

    def queries(self, layer: int) -> np.ndarray:
        return self._queries[layer]

    def keys_values(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        return self._both[0, layer], self._both[1, layer]

    def probabilities(self, layer: int, row: int) -> np.ndarray:
        """[n_heads, tokens seen] of one query."""
        end = self.positions[row] + 1
        keys = np.repeat(self._both[0, layer], GROUP, axis=0)[:, :end].astype(np.float64)
        p = np.exp(np.einsum("htd,hd->ht", keys, self._queries[layer, row]))
        return p / p.sum(axis=1, keepdims=True)

    def output(self, layer: int, row: int, seen: np.ndarray) -> np.ndarray:
        p = self.probabilities(layer, row) * seen
        values = np.repeat(self._both[1, layer], GROUP, axis=0)[:, : p.shape[1]]
        return np.einsum("ht,htd->hd", p / p.sum(axis=1, keepdims=True), values).ravel()


def cost_of(errors: np.ndarray, sensitivity: np.ndarray, delta: Delta) -> float:
    """What ``plans`` adds up, of given layers."""
    total, selects = 0.0, -1
    for layer in range(len(errors)):
        if layer in delta.select:
            selects = layer
        elif layer not in delta.full:
            total += float(sensitivity[layer] * errors[selects, layer])
    return total


@given(seed=st.integers(0, 10_000), n_tokens=st.sampled_from([40, 131, 200]), recent=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_what_layers_lose(seed: int, n_tokens: int, recent: int) -> None:
    recorded = Recorded(seed, n_tokens)
    sizes = [3, 6, 100]
    found = page_errors(recorded, lambda layer: recorded.weights[layer], sizes, recent)  # type: ignore[arg-type,return-value]
    for layer in range(N_LAYERS):
        for selects in range(layer):
            for b, budget in enumerate(sizes):
                lost, whole = [], []
                for row, position in enumerate(recorded.positions):
                    pages = choose_pages(
                        page_scores(recorded.probabilities(selects, row).astype(np.float32)), budget, recent
                    )
                    seen = np.isin(np.arange(position + 1) // SPAN, pages)
                    exact = recorded.output(layer, row, np.ones(position + 1, bool))
                    matrix = recorded.weights[layer].matrix
                    lost.append(np.square(matrix @ (recorded.output(layer, row, seen) - exact)).sum())
                    whole.append(np.square(matrix @ exact).sum())
                assert found[b, selects, layer] == pytest.approx(np.mean(lost) / np.mean(whole), rel=1e-2, abs=1e-8)
    assert np.abs(found[2]).max() < 1e-8, "all pages are all tokens"


@given(seed=st.integers(0, 10_000), n_exact=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_a_plan_is_the_best_of_all(seed: int, n_exact: int) -> None:
    rng = np.random.default_rng(seed)
    n = 6
    errors, sensitivity = rng.uniform(0, 1, (n, n)), rng.uniform(0, 1, n)
    best = np.inf
    for exact in combinations(range(n), n_exact):
        for k in range(1, n_exact + 1):
            for select in combinations(exact, k):
                full = tuple(layer for layer in exact if layer not in select)
                sparse = [layer for layer in range(n) if layer not in exact]
                if not sparse or sparse[0] > select[0]:
                    best = min(best, cost_of(errors, sensitivity, Delta(full, select, 4)))
    cost, full, select = plans(errors, sensitivity, n_exact)[-1]
    assert cost == pytest.approx(best)
    assert cost == pytest.approx(cost_of(errors, sensitivity, Delta(full, select, 4)))
    assert len(full) + len(select) <= n_exact


def test_candidates_rise_in_cost_and_fall_in_error() -> None:
    rng = np.random.default_rng(0)
    sizes = budgets(2048)
    errors = np.sort(rng.uniform(0, 1, (len(sizes), 8, 8)), axis=0)[::-1]
    found = candidates(errors, np.ones(8), sizes, 2048, 4)
    shares = [delta.share_read(8, 2048) for delta in found]
    costs = [cost_of(errors[sizes.index(delta.budget)], np.ones(8), delta) for delta in found]
    assert shares == sorted(shares) and costs == sorted(costs, reverse=True) and len(found) > 3
    assert all(delta.budget > RECENT for delta in found)


def test_a_context_too_short_for_pages_has_no_budget() -> None:
    assert budgets(SPAN * RECENT) == []
    assert budgets(8192) == [10, 15, 23, 31, 38, 46, 61, 92, 128, 256]
