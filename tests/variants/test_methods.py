"""Each method against its dense form in plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgerun.variants.dare import dare, window
from edgerun.variants.darex_q import GAMMA, candidates, first_best, layer_q, log_softmax, output_change, phi, row_sums
from edgerun.variants.magnitude import magnitude
from edgerun.variants.store import SparseDelta
from edgerun.variants.structural import columns_kept, structural
from edgerun.variants.wanda import wanda

FINITE = st.floats(-1e6, 1e6, width=32)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 150))
DELTAS = arrays.arrays(np.float32, SHAPES, elements=FINITE)
DROPS = st.one_of(st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.95, 0.99]), st.floats(0, 0.999))


def places(sparse: SparseDelta) -> np.ndarray:
    """bool [N, K]: where something is kept."""
    kept = np.zeros(sparse.shape, bool)
    kept[sparse.rows(), sparse.columns] = True
    assert kept.sum() == len(sparse.values) == sparse.counts.sum()  # nothing twice
    return kept


def check_order(sparse: SparseDelta) -> None:
    assert (np.diff(sparse.rows() * sparse.shape[1] + sparse.columns) > 0).all()
    assert sparse.values.dtype == np.float32 and sparse.columns.dtype == sparse.counts.dtype == np.int32


@given(DELTAS, DROPS, st.integers(0, 9))
def test_dare(delta: np.ndarray, p: float, seed: int) -> None:
    sparse = dare(delta, p, np.random.default_rng(seed))
    check_order(sparse)
    kept = places(sparse)
    assert np.array_equal(sparse.dense(), np.where(kept, delta * (1 / np.float32(1 - p)), 0))
    if w := window(p):
        for start in range(0, delta.shape[1], w):
            whole = start + w <= delta.shape[1]
            counts = kept[:, start : start + w].sum(axis=1)
            assert (counts == 1).all() if whole else (counts <= 1).all()
    again = dare(delta, p, np.random.default_rng(seed))
    assert np.array_equal(again.columns, sparse.columns)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.93, 0.99])
def test_dare_is_unbiased(p: float) -> None:
    """Every element is kept in a share 1 - p of masks, also in a shorter last window."""
    delta = np.ones((20_000, 130), np.float32)
    shares = places(dare(delta, p, np.random.default_rng(1))).mean(axis=0)
    deviation = math.sqrt(p * (1 - p) / len(delta))
    assert np.abs(shares - (1 - p)).max() < 5 * deviation
    assert dare(delta, p, np.random.default_rng(1), q=2 * (1 - p)).dense().mean() == pytest.approx(0.5, rel=0.02)


def test_no_drop_is_the_delta() -> None:
    delta = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    assert np.array_equal(dare(delta, 0.0, np.random.default_rng(0)).dense(), delta)


@given(DELTAS, DROPS)
def test_magnitude(delta: np.ndarray, p: float) -> None:
    sparse = magnitude(delta, p)
    check_order(sparse)
    kept = places(sparse)
    count = max(1, round((1 - p) * delta.shape[1]))
    assert (sparse.counts == count).all()
    assert np.array_equal(sparse.dense(), np.where(kept, delta, 0))
    assert np.array_equal(np.sort(abs(delta), axis=1)[:, -count:], np.sort(abs(delta[kept]).reshape(-1, count), axis=1))


@given(DELTAS, DROPS, st.integers(0, 9))
def test_wanda(delta: np.ndarray, p: float, seed: int) -> None:
    norms = np.random.default_rng(seed).random(delta.shape[1], np.float32)
    sparse = wanda(delta, norms, p)
    check_order(sparse)
    kept, importance = places(sparse), abs(delta) * norms
    assert np.array_equal(sparse.dense(), np.where(kept, delta, 0))
    least = np.where(kept, importance, np.inf).min(axis=1)
    most = np.where(kept, -np.inf, importance).max(axis=1)
    assert (least >= most).all()


@given(DELTAS, DROPS, st.integers(0, 9))
def test_structural(delta: np.ndarray, p: float, seed: int) -> None:
    columns = columns_kept(delta.shape[1], p, np.random.default_rng(seed))
    sparse = structural(delta, columns, 1 - p)
    check_order(sparse)
    mask = np.isin(np.arange(delta.shape[1]), columns)
    assert np.array_equal(sparse.dense(), np.where(mask, delta * (1 / np.float32(1 - p)), 0))


@given(st.floats(0, 0.999))
def test_candidates_begin_with_dare(p: float) -> None:
    qs = candidates(p)
    assert qs[0] == 1 - p and qs == sorted(qs) and qs[-1] <= 1


@given(DELTAS.filter(lambda d: d.size > 0), st.sampled_from([0.9, 0.95, 0.99]), st.sampled_from([0.1, 1.0, 10.0]))
def test_layer_q_is_the_least_of_the_rule(delta: np.ndarray, p: float, eta: float) -> None:
    x = np.linspace(-1, 1, delta.shape[1], dtype=np.float32)
    c = delta.astype(np.float64) / 1e6 * x
    sums = row_sums((delta / np.float32(1e6)).astype(np.float32), x)
    assert np.allclose(sums, np.stack([c.sum(axis=1), (c * c).sum(axis=1)], axis=1), atol=1e-4)

    def bound(q: float) -> float:
        first, second = eta * (1 - (1 - p) / q) * sums[:, 0], eta**2 * phi(p) * sums[:, 1] / (4 * q * q)
        return float(np.abs(first + second + math.log(2 / (1 - GAMMA))).mean())

    q = layer_q(sums, p, eta)
    assert 1 - p - 1e-12 <= q <= 1
    tried = np.geomspace(1 - p, min(1.0, 10 * (1 - p)), 100)
    assert bound(q) <= min(map(bound, tried)) * (1 + 1e-9)


def test_phi_is_smooth_at_a_half() -> None:
    assert phi(0.5) == 0.5 == pytest.approx(phi(0.5001), rel=1e-4)


def test_output_change_is_the_divergence() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = (generator.normal(size=(4, 9)).astype(np.float32) * 5 for _ in range(2))
    p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (theirs[0], ours[0]))
    assert output_change(ours[:1], theirs[:1]) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
    assert output_change(ours, ours) == 0
    assert np.allclose(np.exp(log_softmax(ours)).sum(axis=1), 1, atol=1e-5)
    assert first_best([3.0, 1.0, 1.0]) == 1
