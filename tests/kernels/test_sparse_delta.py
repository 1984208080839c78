"""Sparse deltas: products and embeddings of every coding against their twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.variants.check import check_coded
from edgerun.variants.coding import Coded, SparseDelta, decode, encode
from edgerun_kernels import reference
from edgerun_kernels.record import WINDOW_BYTES, Flag, Site, Term

from .deltas import masked, top, windows
from .harness import (
    EPS,
    PATTERNS,
    THREADS,
    Array,
    Memory,
    address,
    call,
    every_isa,
    examples,
    floats,
    same_bits,
    stride,
    within,
)

KINDS = (1, 2, 7, 16, 20, 32, 33, 64, 65, 100, 128, "top", "few", "half", "none", "all")
"""Windows of so many columns, or masks without windows."""
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 100), st.integers(1, 140) | st.integers(250, 700))


def delta(kind: int | str, n: int, k: int, rng: np.random.Generator) -> SparseDelta:
    if isinstance(kind, int):
        return windows(n, k, min(kind, k), rng)
    if kind == "top":
        return top(n, k, max(1, k // 20), rng)
    return masked(n, k, {"few": 0.003, "half": 0.5, "none": 0.0, "all": 1.0}[kind], rng)


def site(memory: Memory, coded: Coded, weight: float) -> Array:
    """The table of a variant that changes one weight."""
    starts = 0 if coded.starts is None else address(memory.hold(coded.starts))
    codes = address(memory.hold(coded.codes)) if len(coded.codes) else 0
    entry = memory.hold(np.zeros(Site.TERMS + Term.COUNT, np.int64))
    entry[Site.N_TERMS] = 1
    for key, value in (
        (Term.W, codes), (Term.D, address(memory.hold(coded.scales))), (Term.M, starts), (Term.WINDOW, coded.window),
        (Term.BITS, coded.bits), (Term.SCALE, int(np.float64(weight).view(np.int64))),
    ):  # fmt: skip
        entry[Site.TERMS + key] = value
    return memory.hold(np.array([address(entry)]))


def product(isa: str, coded: Coded, x: Array, y0: Array, weight: float, n_threads: int = 1) -> Array:
    n, k = coded.shape
    with Memory() as memory:
        # What lies behind a row may be read, and is NaN: it must never be chosen.
        inputs = memory.room((len(x), k + WINDOW_BYTES // 4), np.float32)
        inputs[:, :k] = x
        y = memory.room((len(x), coded.blocks * 16), np.float32, gap=64)
        y[...] = 0
        y[:, :n] = y0
        places = {"INPUT": inputs, "INPUT_STRIDE": stride(inputs), "Y": y, "Y_STRIDE": stride(y)}
        op = memory.op("linear_f32", **places, N=n, K=k, FLAGS=Flag.SITE)
        run = memory.run(N_ROWS=len(x), VARIANT=site(memory, coded, weight))
        call(isa, "variant_linear", op, run, n_threads)
        return y.copy()


@every_isa
@examples(120)
@given(
    kind=st.sampled_from(KINDS),
    bits=st.sampled_from([4, 8]),
    pattern=st.sampled_from([pattern for pattern in PATTERNS if pattern != "huge"]),
    shape=SHAPES,
    weight=st.sampled_from([1.0, 0.5, -0.3]),
    seed=st.integers(0, 2**31),
)
def test_product(
    isa: str, kind: int | str, bits: int, pattern: str, shape: tuple[int, int, int], weight: float, seed: int
) -> None:
    """Within (2 k + 4) roundings of the sum of absolute values; the same bits for every number of threads and rows."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    coded = encode(delta(kind, n, k, rng), bits)
    assert not check_coded(coded)
    x, y0 = floats(pattern, (rows, k), rng), floats("normal", (rows, n), rng)
    got = product(isa, coded, x, y0, weight)
    dense = decode(coded).dense()
    wanted = reference.sparse_delta(x, dense, y0, weight)
    bound = np.abs(y0) + np.abs(x, dtype=np.float64) @ np.abs(dense, dtype=np.float64).T
    within(got[:, :n], wanted, (2 * k + 4) * EPS * bound)
    assert not got[:, n:].any()
    for n_threads in THREADS[1:]:
        same_bits(product(isa, coded, x, y0, weight, n_threads), got)
    for row in range(rows):
        same_bits(product(isa, coded, x[row : row + 1], y0[row : row + 1], weight), got[row : row + 1])


@every_isa
@examples(60)
@given(
    kind=st.sampled_from(KINDS),
    bits=st.sampled_from([4, 8]),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
    n_threads=st.sampled_from(THREADS),
)
def test_embedding(
    isa: str, kind: int | str, bits: int, shape: tuple[int, int, int], seed: int, n_threads: int
) -> None:
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    coded = encode(delta(kind, n, k, rng), bits)
    tokens = rng.integers(0, n, rows)
    tokens[-1] = n - 1
    y0 = floats("normal", (rows, k), rng)
    with Memory() as memory:
        y = memory.hold(y0, gap=64)
        op = memory.op("embed_f32", Y=y, Y_STRIDE=stride(y), N=n, K=k, FLAGS=Flag.SITE)
        run = memory.run(N_ROWS=rows, TOKENS=memory.hold(tokens), VARIANT=site(memory, coded, 0.5))
        call(isa, "variant_embed", op, run, n_threads)
        wanted = reference.embed_delta(tokens, decode(coded).dense(), y0, 0.5)
        within(y, wanted, 4 * EPS * (np.abs(y0) + np.abs(wanted)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_coding_keeps_the_mask_and_rounds_the_values(kind: int | str, bits: int) -> None:
    rng = np.random.default_rng(5)
    made = delta(kind, 50, 300, rng)
    coded = encode(made, bits)
    assert coded.window == (kind if isinstance(kind, int) else {"all": 1}.get(kind, 0))
    back = decode(coded)
    dense, got = made.dense(), back.dense()
    assert not (got[dense == 0]).any()
    largest = np.abs(dense).max(axis=1, keepdims=True)
    if bits == 8:
        assert (np.abs(got - dense) <= largest / 127).all()
    error = np.sqrt(((got - dense) ** 2).sum() / max((dense**2).sum(), 1e-30))
    assert error <= (0.2 if bits == 4 else 0.01)
