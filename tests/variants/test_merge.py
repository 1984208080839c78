"""Merging deltas: task arithmetic and TIES against dense numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun import OptionError
from edgerun.variants.coding import SparseDelta
from edgerun.variants.merge import task_arithmetic
from edgerun.variants.spec import parse
from edgerun.variants.ties import ties, trim
from tests.kernels.deltas import masked
from tests.kernels.harness import examples

WEIGHTS = st.lists(st.sampled_from([1.0, 0.5, 0.25, -0.5]), min_size=1, max_size=4)


def some(count: int, seed: int, density: float) -> list[SparseDelta]:
    rng = np.random.default_rng(seed)
    return [masked(7, 40, density, rng) for _ in range(count)]


@examples(50)
@given(weights=WEIGHTS, seed=st.integers(0, 2**31), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_task_arithmetic(weights: list[float], seed: int, density: float) -> None:
    deltas = some(len(weights), seed, density)
    wanted = sum(weight * delta.dense().astype(np.float64) for weight, delta in zip(weights, deltas, strict=True))
    np.testing.assert_allclose(task_arithmetic(deltas, weights).dense(), wanted, rtol=1e-5, atol=1e-7)


def dense_ties(deltas: list[SparseDelta], weights: list[float], k: float) -> np.ndarray:
    """As the paper says it, element by element; a tau that is 0 has no part in the mean."""
    most = round(deltas[0].shape[0] * deltas[0].shape[1] * k / 100)
    taus = []
    for delta in deltas:
        tau = delta.dense().astype(np.float64)
        least = np.sort(np.abs(tau), axis=None)[::-1][most - 1] if most else np.inf
        taus.append(np.where(np.abs(tau) >= least, tau, 0))
    weighted = np.array([weight * tau for weight, tau in zip(weights, taus, strict=True)])
    gamma = np.sign(weighted.sum(axis=0))
    agree = (np.sign(weighted) == gamma) & (weighted != 0)
    size = np.abs(np.array(weights))
    share = (agree * size[:, None, None]).sum(axis=0)
    return np.where(share > 0, (weighted * agree).sum(axis=0) / np.where(share > 0, share, 1), 0) * size.sum()


@examples(50)
@given(
    weights=WEIGHTS,
    seed=st.integers(0, 2**31),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    k=st.sampled_from([0.0, 5.0, 20.0, 100.0]),
)
def test_ties(weights: list[float], seed: int, density: float, k: float) -> None:
    deltas = some(len(weights), seed, density)
    got = ties(deltas, weights, k).dense()
    np.testing.assert_allclose(got, dense_ties(deltas, weights, k), rtol=1e-4, atol=1e-7)


def test_one_alone_is_itself() -> None:
    (delta,) = some(1, 5, 0.3)
    for merge in (task_arithmetic, ties):
        np.testing.assert_array_equal(merge([delta], [1.0]).dense(), delta.dense())
    np.testing.assert_allclose(ties([delta], [0.5]).dense(), 0.5 * delta.dense(), rtol=1e-6)


def test_trimming_keeps_the_largest() -> None:
    (delta,) = some(1, 6, 0.5)
    kept = trim(delta, 10)
    assert len(kept.values) == 28
    left = set(np.abs(delta.values).tolist()) - set(np.abs(kept.values).tolist())
    assert np.abs(kept.values).min() > max(left)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("none", []),
        ("a", [("a", 1.0)]),
        ("a:0.5+b:0.25", [("a", 0.5), ("b", 0.25)]),
        ("a + b:-1", [("a", 1.0), ("b", -1.0)]),
        ("a:0+b", [("b", 1.0)]),
        ("none+b", [("b", 1.0)]),
        ("dir/a.safetensors:2", [("dir/a.safetensors", 2.0)]),
    ],
)
def test_specs(spec: str, wanted: list[tuple[str, float]]) -> None:
    assert parse(spec) == wanted


@pytest.mark.parametrize("spec", ["a:x", "a:nan", "+a", ":1"])
def test_specs_that_make_no_sense(spec: str) -> None:
    with pytest.raises(OptionError, match=r"write a:0\.5"):
        parse(spec)
