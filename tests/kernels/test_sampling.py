"""Choosing a token: the compiled sampler against the plain statement of temperature, min-p, top-k and top-p."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgerun_kernels import reference

from .harness import Array, Memory, every_isa, examples, loaded, same_bits


def padded(memory: Memory, logits: Array) -> Array:
    """Logits in memory whose padding to 16 holds NaN."""
    room = memory.room((-(-len(logits) // 16) * 16,), np.float32)
    room[: len(logits)] = logits
    return room


def draw(pattern: str, n: int, rng: np.random.Generator) -> Array:
    logits = rng.standard_normal(n) * 4
    if pattern == "equal":
        logits[:] = 1.5
    elif pattern == "ties":
        logits = np.round(logits)
    elif pattern == "peak":
        logits[rng.integers(n)] = 80
    elif pattern == "wide":
        logits *= 1e4
    elif pattern == "forbidden":
        logits[rng.random(n) < 0.5] = -np.inf
        logits[rng.integers(n)] = 0
    return logits.astype(np.float32)


PATTERNS = st.sampled_from(["normal", "equal", "ties", "peak", "wide", "forbidden"])
SIZES = st.integers(1, 700)


@every_isa
@examples(60)
@given(pattern=PATTERNS, n=SIZES, seed=st.integers(0, 2**31))
def test_argmax_and_exp_sum(isa: str, pattern: str, n: int, seed: int) -> None:
    logits = draw(pattern, n, np.random.default_rng(seed))
    with Memory() as memory:
        room = padded(memory, logits)
        address = int(room.ctypes.data)
        assert loaded(isa).argmax(address, n) == reference.argmax(logits)
        if pattern != "forbidden":
            wanted = reference.exp_sum(logits)
            assert abs(loaded(isa).exp_sum(address, n) - wanted) <= 1e-6 * wanted


@every_isa
@examples(40)
@given(n=SIZES, seed=st.integers(0, 2**31))
def test_penalize(isa: str, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = draw("normal", n, rng)
    ids = np.flatnonzero(rng.random(n) < 0.3).astype(np.int64)
    counts = rng.integers(0, 4, len(ids)).astype(np.int64)
    with Memory() as memory:
        room = padded(memory, logits)
        held = memory.hold(ids), memory.hold(counts)
        loaded(isa).penalize(room.ctypes.data, held[0].ctypes.data, held[1].ctypes.data, len(ids), 1.3, 0.4, 0.2)
        same_bits(room[:n], reference.penalize(logits, ids, counts, 1.3, 0.4, 0.2))


@every_isa
@examples(150)
@given(
    pattern=PATTERNS,
    n=SIZES,
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 10**6]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_sample(
    isa: str, pattern: str, n: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = draw(pattern, n, rng)
    choices = reference.sampling_choices(logits, temperature, top_k, top_p, min_p)
    bounds = np.concatenate([[0], np.cumsum(choices.probabilities)])
    for uniform in (*rng.random(4).tolist(), 0.0, 1 - 2.0**-53):
        with Memory() as memory:
            room, heap = padded(memory, logits), memory.room((n,), np.int32)
            got = loaded(isa).sample(
                room.ctypes.data, n, heap.ctypes.data, temperature, min(top_k, n), top_p, min_p, uniform
            )
        if np.abs(bounds - uniform).min() > 1e-5:
            assert got == choices.choose(uniform)
        else:  # on the border between two tokens float32 weights may fall either way
            assert 0 <= got < n
