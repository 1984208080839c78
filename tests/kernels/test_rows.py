"""Kernels that work on rows: RMS norm, quantisation, the gated MLP's activation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun_kernels import reference
from edgerun_kernels.record import Flag, activation_bytes

from .harness import (
    EPS,
    PATTERNS,
    THREADS,
    Array,
    Memory,
    call,
    every_isa,
    examples,
    floats,
    same_bits,
    stride,
    within,
)

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 150))


def norm(isa: str, x: Array, w: Array, epsilon: float, n_threads: int = 1, n_out: int | None = None) -> Array:
    """The kernel on x [rows, k]; with ``n_out``, only the last so many rows, moved to the front."""
    rows, k = x.shape
    with Memory() as memory:
        padded = memory.rows(x)
        y = memory.room((rows, padded.shape[1]), np.float32, gap=64)
        weights = memory.rows(w[None], gap=0)
        flags = 0 if n_out is None else Flag.LAST_ROWS | Flag.OUT_ROWS
        op = memory.op(
            X=padded,
            X_STRIDE=stride(padded),
            Y=y,
            Y_STRIDE=stride(y),
            W=weights,
            K=k,
            EPSILON=float(epsilon),
            FLAGS=flags,
        )
        run = memory.run(N_ROWS=rows, N_OUT=n_out or rows)
        call(isa, "rms_norm", op, run, n_threads)
        return y[: n_out or rows].copy()


@every_isa
@examples(40)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31))
def test_rms_norm(isa: str, shape: tuple[int, int], pattern: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = floats(pattern, shape, rng), floats("normal", shape[1:], rng)
    got = norm(isa, x, w, 1e-5)
    wanted = reference.rms_norm(x, w, 1e-5)
    if pattern != "huge":  # squares of 1e30 overflow float32
        within(got[:, : shape[1]], wanted, (shape[1] / 16 + 8) * EPS * np.abs(wanted))
    assert not got[:, shape[1] :].any(), "padding must stay zero"
    for n_threads in THREADS[1:]:
        same_bits(norm(isa, x, w, 1e-5, n_threads), got)
    same_bits(norm(isa, x, w, 1e-5, 2, n_out=1), got[-1:])


def quantised(isa: str, x: Array, terms: int, n_threads: int = 1) -> Array:
    rows, k = x.shape
    with Memory() as memory:
        padded = memory.rows(x)
        y = memory.room((rows, activation_bytes(k, terms)), np.uint8, gap=64)
        y[:] = 0
        op = memory.op(X=padded, X_STRIDE=stride(padded), Y=y, Y_STRIDE=stride(y), K=k, TERMS=terms)
        call(isa, "quantize", op, memory.run(N_ROWS=rows), n_threads)
        return y.copy()


@every_isa
@pytest.mark.parametrize("terms", [1, 2])
@examples(40)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31))
def test_quantize_is_exact_to_the_bit(isa: str, terms: int, shape: tuple[int, int], pattern: str, seed: int) -> None:
    x = floats(pattern, shape, np.random.default_rng(seed))
    expected = reference.quantize(x, terms)
    got = quantised(isa, x, terms)
    same_bits(got, reference.activation_rows(expected))
    for n_threads in THREADS[1:]:
        same_bits(quantised(isa, x, terms, n_threads), got)
    groups = expected.scales.shape[1]
    step = expected.scales if terms == 2 else expected.scales / 1
    restored = (expected.integers().reshape(shape[0], groups, -1) * step[:, :, None]).reshape(shape[0], -1)[
        :, : shape[1]
    ]
    bound = np.repeat(step, 32, axis=1)[:, : shape[1]] * 0.5005 + 2e-30
    assert (np.abs(restored - x) <= bound + 4 * EPS * np.abs(x)).all()


@every_isa
@examples(30)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_swiglu(isa: str, shape: tuple[int, int], pattern: str, seed: int, n_threads: int) -> None:
    rng = np.random.default_rng(seed)
    gate, up = floats(pattern, shape, rng), floats("normal", shape, rng)
    with Memory() as memory:
        x, u = memory.rows(gate), memory.rows(up)
        op = memory.op(X=x, UP=u, X_STRIDE=stride(x), N=shape[1])
        call(isa, "swiglu", op, memory.run(N_ROWS=shape[0]), n_threads)
        wanted = reference.swiglu(gate, up)
        within(x[:, : shape[1]], wanted, 16 * EPS * np.abs(wanted) + np.abs(gate.astype(np.float64) * up) * 1e-37)
        assert not x[:, shape[1] :].any(), "padding must stay zero"
