"""Linear layers with ternary weights: sums of integers and two roundings, so bit for bit what their twin gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.record import TILE_ROWS, Flag, row_activation_bytes

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
from .weights import SHAPES, padded, run_quantised, trits

KINDS = ("random", "largest", "smallest")
SCALES = (0.37, 1.0, 1e-41, 1e30)
"""Positive and finite, as a package's are: also a subnormal."""


def twin(x: reference.QuantisedRows, weights: dict[str, Array]) -> Array:
    """Added to 0, as the kernel adds it: no -0, where the scale of the row is so small that it times d is 0."""
    return reference.linear_ternary(x, weights["q"], weights["d"]) + np.float32(0)


@every_isa
@examples(200)
@given(
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from(SCALES),
    pattern=st.sampled_from([p for p in PATTERNS if p != "huge"]),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_ternary(isa: str, kind: str, scale: float, pattern: str, shape: tuple[int, int, int], seed: int) -> None:
    """At every thread count, and whatever rows are beside: alone, among others, in another place of a tile."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights, x = trits(kind, n, k, scale, rng), reference.quantize_rows(floats(pattern, (rows, k), rng))
    wanted = twin(x, weights)
    assert not wanted[:, n:].any(), "padding is worth nothing"
    for n_threads in THREADS:
        same_bits(run_quantised(isa, x, weights, n, n_threads), wanted)
    for row in range(rows):
        same_bits(run_quantised(isa, x.rows(slice(row, row + 1)), weights, n, 2), wanted[row : row + 1])
    if rows > 1:
        same_bits(run_quantised(isa, x.rows(slice(1, None)), weights, n), wanted[1:])


@every_isa
@pytest.mark.parametrize("rows", [1, 4, 6])
@pytest.mark.parametrize("k", [6912, 6913, 16384, 140_000])
def test_the_largest_sums(isa: str, rows: int, k: int) -> None:
    """Every weight 1 or -1 and every activation 127 or -127, with equal signs: sums of 127 k,
    beyond 2**24 rounded to float32. Also where the signs turn in the middle of the row, or from column to column."""
    n = 33
    rng = np.random.default_rng(k)
    x = np.full((rows, k), 127, np.float32)
    x[1::3] = -127
    x[2::3, k // 2 :] = -127
    ints = reference.quantize_rows(x)
    for kind in ("largest", "smallest"):
        weights = trits(kind, n, k, 0.5, rng)
        same_bits(run_quantised(isa, ints, weights, n, 2), twin(ints, weights))
    codes = rng.choice(np.array([0, 2], np.uint8), (n, k))
    weights = layout.pack("ternary", codes, np.array([0.5], np.float32))
    aligned = reference.quantize_rows(np.where(codes[:rows] == 2, x[:1], -x[:1]))
    same_bits(run_quantised(isa, aligned, weights, n, 2), twin(aligned, weights))


@every_isa
@pytest.mark.parametrize("rows", [64, 65, 131])
def test_many_rows(isa: str, rows: int) -> None:
    """More rows than go through a block of weights at a time (CACHED_TILES)."""
    rng = np.random.default_rng(rows)
    weights, x = trits("random", 56, 70, 0.37, rng), reference.quantize_rows(floats("normal", (rows, 70), rng))
    same_bits(run_quantised(isa, x, weights, 56, 3), twin(x, weights))


@every_isa
@examples(40)
@given(shape=SHAPES, seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_bias_and_residual(isa: str, shape: tuple[int, int, int], seed: int, n_threads: int) -> None:
    """(result + bias) + residual, one rounding each; the padding stays zero."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights, x = trits("random", n, k, 0.37, rng), reference.quantize_rows(floats("outliers", (rows, k), rng))
    bias, residual = floats("normal", (n,), rng), floats("normal", (rows, n), rng)
    plain = twin(x, weights)[:, :n]
    for options, wanted in (
        ({"bias": bias}, plain + bias),
        ({"residual": residual}, plain + residual),
        ({"bias": bias, "residual": residual}, (plain + bias) + residual),
    ):
        got = run_quantised(isa, x, weights, n, n_threads, **options)
        same_bits(got[:, :n], wanted)
        assert not got[:, n:].any()


@every_isa
@pytest.mark.parametrize("n_out", [1, 2, 5])
def test_only_rows_whose_logits_are_wanted(isa: str, n_out: int) -> None:
    """OUT_ROWS computes the first N_OUT rows (one: a tile of its own) and leaves the others; LOGITS writes to the run's
    buffer."""
    rng = np.random.default_rng(7)
    weights, x = trits("random", 50, 40, 0.37, rng), reference.quantize_rows(floats("normal", (n_out, 40), rng))
    some = run_quantised(isa, x, weights, 50, 2, flags=Flag.OUT_ROWS, rows=6)
    same_bits(some[:n_out], twin(x, weights))
    assert np.isnan(some[n_out:]).all()
    with Memory() as memory:
        y, logits = memory.room((6, 64), np.float32), memory.room((n_out, 64), np.float32)
        tiles, flags = activations(memory, x), Flag.LOGITS | Flag.OUT_ROWS
        op = linear_op(memory, "linear_ternary", tiles, y, weights, 50, 40, FLAGS=flags)
        call(isa, "linear_ternary", op, memory.run(N_ROWS=6, N_OUT=n_out, LOGITS=address(logits)))
        same_bits(logits, twin(x, weights))
        assert np.isnan(y).all()


@every_isa
@examples(60)
@given(shape=SHAPES, pattern=st.sampled_from(["normal", "outliers", "tiny", "one"]), seed=st.integers(0, 2**31))
def test_what_the_quantiser_writes_is_what_the_layer_reads(
    isa: str, shape: tuple[int, int, int], pattern: str, seed: int
) -> None:
    """One kernel after the other, through the same memory: a row, and tiles of which the last is partly filled."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights, x = trits("random", n, k, 0.37, rng), floats(pattern, (rows, k), rng)
    tile = 1 if rows == 1 else TILE_ROWS
    with Memory() as memory:
        held, y = memory.rows(x), memory.room((rows, padded(n)), np.float32, gap=64)
        tiles = memory.room((-(-rows // tile), row_activation_bytes(k, tile)), np.uint8, gap=64)
        run = memory.run(N_ROWS=rows)
        op = memory.op("quantize_rows", X=held, X_STRIDE=stride(held), Y=tiles, Y_STRIDE=stride(tiles), K=k)
        call(isa, "quantize_rows", op, run)
        call(isa, "linear_ternary", linear_op(memory, "linear_ternary", tiles, y, weights, n, k), run)
        same_bits(y, twin(reference.quantize_rows(x), weights))
