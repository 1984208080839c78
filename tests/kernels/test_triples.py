"""Ternary layers in codes of three columns: bit for bit what the same weights in 2 bits give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.record import MOST_UNITS_A_PART, UNIT_COLUMNS, Flag

from .harness import PATTERNS, THREADS, Array, every_isa, examples, floats, same_bits
from .weights import padded, run_quantised, two_bits

PART = MOST_UNITS_A_PART * UNIT_COLUMNS
SHAPES = st.tuples(
    st.integers(1, 9), st.integers(1, 140), st.integers(1, 140) | st.integers(PART - 60, PART + 60) | st.just(3 * PART)
)


def codes_of(kind: str, n: int, k: int, rng: np.random.Generator) -> Array:
    made = {"largest": np.full((n, k), 2), "smallest": np.zeros((n, k))}.get(kind, rng.integers(0, 3, (n, k)))
    return made.astype(np.uint8)


def run_triples(
    isa: str, x: reference.QuantisedRows, codes: Array, d: Array, n_threads: int = 1, **options: Any
) -> Array:
    n, k = codes.shape
    return run_quantised(isa, x, layout.pack("ternary_triples", codes, d), n, n_threads, k=k, **options)


@every_isa
@examples(120)
@given(
    kind=st.sampled_from(["random", "largest", "smallest"]),
    pattern=st.sampled_from([p for p in PATTERNS if p != "huge"]),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_triples(isa: str, kind: str, pattern: str, shape: tuple[int, int, int], seed: int) -> None:
    """At every thread count, one row and several."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    codes, d = codes_of(kind, n, k, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats(pattern, (rows, k), rng))
    wanted = two_bits(x, codes, d)
    stored = layout.pack("ternary_triples", codes, d)["q"]
    same_bits(reference.linear_ternary(x, stored, d)[:, :n] + np.float32(0), wanted[:, :n])
    for n_threads in THREADS:
        same_bits(run_triples(isa, x, codes, d, n_threads), wanted)
    same_bits(run_triples(isa, x.rows(slice(0, 1)), codes, d, 2), wanted[:1])


@every_isa
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("k", [6912, 6913, 40_000])
def test_the_largest_sums(isa: str, rows: int, k: int) -> None:
    """Every product 127 or -127: beyond 16 bits within a part, and beyond 2**24 in all."""
    n = 33
    rng = np.random.default_rng(k)
    x = np.full((rows, k), 127, np.float32)
    x[:, k // 2 :] = -127
    ints, d = reference.quantize_rows(x), np.array([0.5], np.float32)
    for codes in (codes_of("largest", n, k, rng), np.where(x[:1] > 0, 2, 0).astype(np.uint8).repeat(n, 0)):
        same_bits(run_triples(isa, ints, codes, d, 2), two_bits(ints, codes, d))


@every_isa
@pytest.mark.parametrize("rows", [64, 131])
def test_many_rows(isa: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    codes, d = codes_of("random", 70, 100, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats("normal", (rows, 100), rng))
    same_bits(run_triples(isa, x, codes, d, 3), two_bits(x, codes, d))


@every_isa
@examples(30)
@given(shape=SHAPES, seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_bias_and_residual(isa: str, shape: tuple[int, int, int], seed: int, n_threads: int) -> None:
    """(result + bias) + residual, one rounding each; the padding stays zero."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    codes, d = codes_of("random", n, k, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats("outliers", (rows, k), rng))
    bias, residual = floats("normal", (n,), rng), floats("normal", (rows, n), rng)
    got = run_triples(isa, x, codes, d, n_threads, bias=bias, residual=residual)
    same_bits(got[:, :n], (two_bits(x, codes, d)[:, :n] + bias) + residual)
    assert got.shape[1] == padded(n) and not got[:, n:].any()


@every_isa
def test_only_rows_whose_logits_are_wanted(isa: str) -> None:
    rng = np.random.default_rng(7)
    codes, d = codes_of("random", 50, 40, rng), np.array([0.37], np.float32)
    x = reference.quantize_rows(floats("normal", (1, 40), rng))
    some = run_triples(isa, x, codes, d, 2, flags=Flag.OUT_ROWS, rows=6)
    same_bits(some[:1], two_bits(x, codes, d))
    assert np.isnan(some[1:]).all()
