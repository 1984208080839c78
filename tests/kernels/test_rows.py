"""Norm, quantisation and the gated activation against their twins."""

from __future__ import annotations

from typing import Any

import numpy as np
from edgerun_kernels import reference
from edgerun_kernels.record import Flag, activation_bytes
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from .harness import EPS, PATTERNS, THREADS, Memory, call, every_isa, examples, floats, same_bits, stride, within

Array = NDArray[Any]
EPSILON = 1e-5
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 150))


def run_norm(isa: str, x: Array, w: Array, n_threads: int = 1) -> Array:
    """float32 [rows, k padded to 32]; every thread's own copy is checked to be the same."""
    rows = len(x)
    with Memory() as memory:
        held = memory.rows(x)
        y = memory.room((max(rows, n_threads), held.shape[1]), np.float32, gap=64)
        fields = {"X": held, "X_STRIDE": stride(held), "Y": y, "Y_STRIDE": stride(y), "Y_PRIVATE": stride(y)}
        op = memory.op(**fields, W=memory.rows(w[None]), K=x.shape[1], EPSILON=EPSILON)
        call(isa, "rms_norm", op, memory.run(N_ROWS=rows), n_threads)
        if rows == 1:
            for copy in y[1:]:
                same_bits(copy, y[0])
        return y[:rows].copy()


@every_isa
@examples(50)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31))
def test_rms_norm(isa: str, shape: tuple[int, int], pattern: str, seed: int) -> None:
    """Within (k / 32 + 12) roundings of the result; the padding is zero; the same bits alone and by any threads."""
    rows, k = shape
    rng = np.random.default_rng(seed)
    x, w = floats(pattern, (rows, k), rng), floats("normal", (k,), rng)
    got = run_norm(isa, x, w)
    wanted = reference.rms_norm(x, w, EPSILON)
    within(got[:, :k], wanted, (2 * (k // 32) + 12) * EPS * np.abs(wanted))
    assert not got[:, k:].any()
    for n_threads in THREADS[1:]:
        same_bits(run_norm(isa, x, w, n_threads), got)
    for row in range(rows):
        same_bits(run_norm(isa, x[row : row + 1], w, 3), got[row : row + 1])


@every_isa
def test_rms_norm_of_the_last_rows(isa: str) -> None:
    """With LAST_ROWS and OUT_ROWS the first N_OUT rows of the output are the norms of the last rows of the input."""
    rng = np.random.default_rng(5)
    x, w = floats("normal", (6, 70), rng), floats("normal", (70,), rng)
    wanted = run_norm(isa, x, w)
    for rows, n_out in ((6, 1), (6, 4), (6, 6)):
        for n_threads in THREADS:
            with Memory() as memory:
                held, y = memory.rows(x), memory.room((rows, 96), np.float32, gap=64)
                fields = {"X": held, "X_STRIDE": stride(held), "Y": y, "Y_STRIDE": stride(y), "Y_PRIVATE": stride(y)}
                flags = Flag.LAST_ROWS | Flag.OUT_ROWS
                op = memory.op(**fields, W=memory.rows(w[None]), K=70, EPSILON=EPSILON, FLAGS=flags)
                call(isa, "rms_norm", op, memory.run(N_ROWS=rows, N_OUT=n_out), n_threads)
                same_bits(y[:n_out], wanted[rows - n_out :])
                assert np.isnan(y[n_out:]).all()


def run_quantize(isa: str, x: Array, terms: int, n_threads: int = 1) -> Array:
    """uint8 [rows, activation_bytes], zeros where the kernel writes nothing."""
    rows, k = x.shape
    with Memory() as memory:
        held = memory.rows(x)
        used = -(-k // 32) * (32 * terms + 8)
        y = memory.room((max(rows, n_threads), used), np.uint8, gap=activation_bytes(k, terms) - used + 64)
        fields = {"X": held, "X_STRIDE": stride(held), "Y": y, "Y_STRIDE": stride(y), "Y_PRIVATE": stride(y)}
        call(isa, "quantize", memory.op(**fields, K=k, TERMS=terms), memory.run(N_ROWS=rows), n_threads)
        if rows == 1:
            for copy in y[1:]:
                same_bits(copy, y[0])
        whole = np.zeros((rows, activation_bytes(k, terms)), np.uint8)
        whole[:, :used] = y[:rows]
        return whole


@every_isa
@examples(60)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), terms=st.sampled_from([1, 2]), seed=st.integers(0, 2**31))
def test_quantize(isa: str, shape: tuple[int, int], pattern: str, terms: int, seed: int) -> None:
    """Bit for bit, and each value within half a step of its activation."""
    x = floats(pattern, shape, np.random.default_rng(seed))
    wanted = reference.quantize(x, terms)
    for n_threads in THREADS:
        same_bits(run_quantize(isa, x, terms, n_threads), reference.activation_rows(wanted))
    scales = np.repeat(wanted.scales.astype(np.float64), 32, axis=1)[:, : shape[1]]
    largest = np.abs(x).max()
    if largest > 1e-30 and pattern != "mixed":
        size = np.abs(x, dtype=np.float64)
        within(wanted.integers()[:, : shape[1]] * scales, x, np.maximum(0.5 * scales, 1e-30) + 8 * EPS * size)


@every_isa
def test_quantize_rounds_ties_to_even(isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :9] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5]
    got = run_quantize(isa, x, 1).view(np.int8)[0, :9]
    assert got.tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -126]


def run_swiglu(isa: str, gate: Array, up: Array, n_threads: int = 1) -> Array:
    with Memory() as memory:
        x, other = memory.rows(gate, 16), memory.rows(up, 16)
        op = memory.op(X=x, UP=other, X_STRIDE=stride(x), N=gate.shape[1])
        call(isa, "swiglu", op, memory.run(N_ROWS=len(gate)), n_threads)
        return x.copy()


@every_isa
@examples(40)
@given(
    shape=SHAPES,
    pattern=st.sampled_from(["normal", "zeros", "negative zero", "extremes", "subnormal", "tiny", "mixed"]),
    seed=st.integers(0, 2**31),
)
def test_swiglu(isa: str, shape: tuple[int, int], pattern: str, seed: int) -> None:
    """Within 5e-7 of the result; the padding stays zero."""
    rng = np.random.default_rng(seed)
    gate, up = floats(pattern, shape, rng), floats("normal", shape, rng)
    got = run_swiglu(isa, gate, up)
    wanted = reference.swiglu(gate, up)
    within(got[:, : shape[1]], wanted, 5e-7 * np.abs(wanted))
    assert not got[:, shape[1] :].any()
    for n_threads in THREADS[1:]:
        same_bits(run_swiglu(isa, gate, up, n_threads), got)


@every_isa
def test_silu_over_its_whole_range(isa: str) -> None:
    """Every 1/64 from -100 to 100, against the mathematical function: what exp's clamp leaves is below 1e-35."""
    x = np.arange(-100, 100, 1 / 64, dtype=np.float32)[None]
    exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    within(run_swiglu(isa, x, np.ones_like(x)), exact, 5e-7 * np.abs(exact) + 1e-35)
    huge = np.array([[1e30, -1e30, 3e38, 0.0, -0.0]], np.float32)
    got = run_swiglu(isa, huge, np.ones_like(huge))[:, :5]
    within(got, np.array([[1e30, 0, 3e38, 0, 0]]), np.array([[1e24, 1e-7, 1e32, 0, 0]]))
