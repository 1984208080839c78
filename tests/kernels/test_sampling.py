"""Choosing tokens: argmax, normaliser, penalties, and the filters in their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgerun_kernels import reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from .harness import Memory, address, every_isa, examples, floats, loaded, within

Array = NDArray[Any]
SIZES = st.one_of(st.integers(1, 40), st.integers(250, 270), st.integers(1000, 1100))


def padded_logits(memory: Memory, logits: Array) -> Array:
    """Logits of one row in memory padded to 16 floats of anything: here NaN."""
    held = memory.room((-(-len(logits) // 16) * 16,), np.float32)
    held[: len(logits)] = logits
    return held


def some_logits(kind: str, n: int, rng: np.random.Generator) -> Array:
    if kind == "ties":
        return rng.integers(-3, 3, n).astype(np.float32)
    if kind == "masked":
        logits = floats("normal", (n,), rng) * np.float32(5)
        logits[rng.random(n) < 0.5] = -np.inf
        logits[rng.integers(0, n)] = 1
        return logits
    return floats(kind, (n,), rng) * np.float32(5)


KINDS = st.sampled_from(["normal", "ties", "equal", "zeros", "masked"])


@every_isa
@examples(40)
@given(
    kind=st.sampled_from(["normal", "ties", "equal", "masked", "huge", "subnormal"]), n=SIZES, seed=st.integers(0, 99)
)
def test_argmax_and_exp_sum(isa: str, kind: str, n: int, seed: int) -> None:
    """The first of the largest; the sum within 3e-7."""
    logits = some_logits(kind, n, np.random.default_rng(seed))
    with Memory() as memory:
        held = padded_logits(memory, logits)
        assert loaded(isa).argmax(address(held), n) == reference.argmax(logits)
        wanted = reference.exp_sum(logits)
        assert loaded(isa).exp_sum(address(held), n) == pytest.approx(wanted, rel=3e-7)


@every_isa
def test_argmax_at_every_place(isa: str) -> None:
    for n in (1, 15, 16, 17, 255, 256, 257, 513):
        with Memory() as memory:
            held = padded_logits(memory, np.full(n, -3.4028e38, np.float32))
            for i in {0, n // 2, n - 1}:
                held[i] = -3.4020e38
                assert loaded(isa).argmax(address(held), n) == i
                held[i] = -3.4028e38


@every_isa
@examples(30)
@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    repetition=st.sampled_from([1.0, 1.1, 2.0, 0.5]),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
)
def test_penalize(isa: str, n: int, seed: int, repetition: float, presence: float, frequency: float) -> None:
    """Bit for bit; logits of other ids stay."""
    rng = np.random.default_rng(seed)
    logits = floats("normal", (n,), rng)
    logits[rng.integers(0, n)] = 0
    ids = rng.permutation(n)[: rng.integers(0, n + 1)].astype(np.int64)
    counts = rng.integers(0, 4, len(ids))
    with Memory() as memory:
        held, at, times = memory.hold(logits), memory.hold(ids), memory.hold(counts)
        loaded(isa).penalize(address(held), address(at), address(times), len(ids), repetition, presence, frequency)
        np.testing.assert_array_equal(held, reference.penalize(logits, ids, counts, repetition, presence, frequency))


def sample(isa: str, logits: Array, uniform: float, *chances: Any) -> tuple[int, Array]:
    """The chosen id and the weights that the logits were overwritten by."""
    with Memory() as memory:
        held, heap = padded_logits(memory, logits), memory.room((len(logits),), np.int32)
        temperature, top_k, top_p, min_p = chances
        args = (address(held), len(logits), address(heap), temperature, top_k, top_p, min_p, uniform)
        return loaded(isa).sample(*args), held[: len(logits)].copy()


@every_isa
@examples(120)
@given(
    kind=KINDS,
    n=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([1e-4, 0.3, 0.8, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01, 1e-9]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_sample(
    isa: str, kind: str, n: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> None:
    """The twin's id, for the number itself or one 1e-5 away, with filters 1e-5 weaker or stronger: kernel and twin
    round the weights differently, and a threshold may fall between two such roundings."""
    logits = some_logits(kind, n, np.random.default_rng(seed))
    got, weights = sample(isa, logits, uniform, temperature, top_k, top_p, min_p)
    exact = reference.exp((logits - logits.max()).astype(np.float64) / temperature)
    within(weights, exact, 2e-6 * (1 + np.abs(np.log(exact))) * exact)
    possible = set()
    for p in (top_p, top_p * (1 - 1e-5), min(1.0, top_p * (1 + 1e-5))):
        for least in (min_p, min_p * (1 - 1e-5), min(1.0, min_p * (1 + 1e-5))):
            choices = reference.sampling_choices(logits, temperature, top_k, p, least)
            possible |= {choices.choose(u) for u in (uniform, max(0.0, uniform - 1e-5), min(1.0, uniform + 1e-5))}
    assert got in possible


@every_isa
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.8, 0.0), (4, 0.7, 0.1)])
def test_sample_follows_the_distribution(isa: str, top_k: int, top_p: float, min_p: float) -> None:
    """Evenly spaced numbers give every id its share."""
    logits = np.array([0.1, 2.0, -1.0, 1.5, 0.7, 1.5, -4.0], np.float32)
    choices = reference.sampling_choices(logits, 0.9, top_k, top_p, min_p)
    steps = 1000
    chosen = [sample(isa, logits, (i + 0.5) / steps, 0.9, top_k, top_p, min_p)[0] for i in range(steps)]
    shares = np.bincount(chosen, minlength=len(logits)) / steps
    wanted = np.zeros(len(logits))
    wanted[choices.ids] = choices.probabilities
    within(shares, wanted, 2 / steps)


@every_isa
def test_sample_from_a_large_vocabulary(isa: str) -> None:
    rng = np.random.default_rng(2)
    logits = floats("normal", (50_001,), rng) * np.float32(3)
    for chances in ((0.8, 40, 0.95, 0.05), (1.0, 0, 0.9, 0.0), (1.0, 0, 1.0, 0.0)):
        choices = reference.sampling_choices(logits, *chances)
        for uniform in (0.0, 0.1, 0.5, 0.9, 1 - 2**-53):
            low, high = (choices.choose(min(1.0, max(0.0, uniform + step))) for step in (-1e-5, 1e-5))
            order = choices.ids.tolist()
            got = sample(isa, logits, uniform, *chances)[0]
            assert order.index(low) <= order.index(got) <= order.index(high)
