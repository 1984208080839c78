"""Ternary layers column by column: bit for bit what the dense layers give, whichever inputs are zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.record import Flag, columns_scratch_bytes

from .harness import (
    PATTERNS,
    THREADS,
    Array,
    Memory,
    activations,
    address,
    call,
    every_isa,
    examples,
    floats,
    linear_op,
    same_bits,
    stride,
)
from .weights import run_quantised, two_bits

SHAPES = st.tuples(
    st.integers(1, 9), st.integers(1, 100) | st.integers(250, 800), st.integers(1, 140) | st.integers(1000, 1100)
)
SHARES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
"""Of the inputs that are not zero."""


def random_codes(n: int, k: int, rng: np.random.Generator) -> Array:
    return rng.integers(0, 3, (n, k)).astype(np.uint8)


def run_columns(
    isa: str, x: reference.QuantisedRows, codes: Array, d: Array, n_threads: int = 1, **options: Any
) -> Array:
    """As ``run_quantised``, of codes and a scale."""
    return run_quantised(isa, x, layout.pack("ternary_columns", codes, d), len(codes), n_threads, **options)


@every_isa
@examples(150)
@given(
    share=st.sampled_from(SHARES),
    pattern=st.sampled_from([p for p in PATTERNS if p != "huge"]),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_same_bits_as_dense(isa: str, share: float, pattern: str, shape: tuple[int, int, int], seed: int) -> None:
    """At every thread count, also with fewer columns than threads; every row alone; the padding is worth nothing."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    codes, d = random_codes(n, k, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats(pattern, (rows, k), rng) * (rng.random((rows, k)) < share).astype(np.float32))
    wanted = two_bits(x, codes, d)
    for n_threads in THREADS:
        same_bits(run_columns(isa, x, codes, d, n_threads), wanted)
    row = int(rng.integers(rows))
    same_bits(run_columns(isa, x.rows(slice(row, row + 1)), codes, d, 2), wanted[row : row + 1])


@every_isa
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("code", [0, 2])
def test_the_largest_sums(isa: str, rows: int, code: int) -> None:
    n, k = 20, 70_000
    x = reference.quantize_rows(np.full((rows, k), 127, np.float32))
    codes, d = np.full((n, k), code, np.uint8), np.array([0.5], np.float32)
    same_bits(run_columns(isa, x, codes, d, 2), two_bits(x, codes, d))


@every_isa
@pytest.mark.parametrize("column", [0, 31, 32, 63, 64, 95])
def test_one_column(isa: str, column: int) -> None:
    """At the borders of what is looked at together; what lies behind an odd number of groups is not looked at."""
    rng = np.random.default_rng(column)
    x = np.zeros((1, 96), np.float32)
    x[0, column] = -3
    codes, d = random_codes(260, 96, rng), np.array([2.0], np.float32)
    got = run_columns(isa, reference.quantize_rows(x), codes, d, 3)
    np.testing.assert_array_equal(got[0, :260], (codes[:, column] - 1.0) * -6)


@every_isa
@examples(30)
@given(shape=SHAPES, seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_bias_and_residual(isa: str, shape: tuple[int, int, int], seed: int, n_threads: int) -> None:
    """(result + bias) + residual, one rounding each; the padding stays zero."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    codes, d = random_codes(n, k, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats("outliers", (rows, k), rng))
    bias, residual = floats("normal", (n,), rng), floats("normal", (rows, n), rng)
    got = run_columns(isa, x, codes, d, n_threads, bias=bias, residual=residual)
    same_bits(got[:, :n], (two_bits(x, codes, d)[:, :n] + bias) + residual)
    assert not got[:, n:].any()


@every_isa
@pytest.mark.parametrize("n_out", [1, 2])
def test_only_rows_whose_logits_are_wanted(isa: str, n_out: int) -> None:
    """OUT_ROWS computes the first N_OUT rows and leaves the others."""
    rng = np.random.default_rng(7)
    codes, d = random_codes(50, 40, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats("normal", (n_out, 40), rng))
    some = run_columns(isa, x, codes, d, 2, flags=Flag.OUT_ROWS, rows=6)
    same_bits(some[:n_out], two_bits(x, codes, d))
    assert np.isnan(some[n_out:]).all()


@every_isa
def test_the_columns_that_are_read_are_counted(isa: str) -> None:
    """Once, by the first thread."""
    x = np.zeros((1, 200), np.float32)
    x[0, ::7] = 1
    with Memory() as memory:
        packed = activations(memory, reference.quantize_rows(x), 2)
        y, counter = memory.room((1, 16), np.float32), memory.hold(np.array([5], np.int64))
        scratch = memory.room((2, columns_scratch_bytes(16, 200, 1) // 64 * 64 + 64), np.uint8)
        weights = layout.pack("ternary_columns", np.ones((16, 200), np.uint8), np.ones(1, np.float32))
        fields: dict[str, Any] = {"SCRATCH": scratch, "SCRATCH_PRIVATE": stride(scratch)}
        op = linear_op(
            memory, "linear_ternary_columns", packed, y, weights, 16, 200, X_PRIVATE=stride(packed), **fields
        )
        call(isa, "linear_ternary_columns", op, memory.run(N_ROWS=1, COLUMNS_READ=address(counter)), 2)
        assert counter[0] == 5 + 29
