"""Linear layers over quantised activations against their twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.record import SECOND_TERM, Flag

from .harness import (
    EPS,
    ISAS,
    THREADS,
    Memory,
    activations,
    address,
    call,
    every_isa,
    examples,
    floats,
    linear_op,
    same_bits,
    within,
)  # fmt: skip
from .weights import ACTIVATIONS, QUANTISED, SHAPES, WEIGHTS, matrix, quantised_linear, run_quantised, second_terms


@every_isa
@examples(200)
@given(
    fmt=st.sampled_from(QUANTISED),
    second=st.sampled_from(["none", "some", "all", "as measured"]),
    kind=st.sampled_from(WEIGHTS),
    pattern=st.sampled_from(ACTIVATIONS),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_quantised(
    isa: str, fmt: str, second: str, kind: str, pattern: str, shape: tuple[int, int, int], seed: int
) -> None:
    """Within (4 roundings a group and term + 8) of the sum of absolute values; the same bits at every thread count and
    whatever rows are beside: alone, among others, in another place of a tile."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights = matrix(fmt, kind, n, k, rng)
    x = reference.quantize(floats(pattern, (rows, k), rng), 1.5)
    if second != "as measured":
        x = second_terms(x, second, rng)
    got = run_quantised(isa, x, weights, n)
    wanted, size = quantised_linear(x, weights)
    within(got, wanted, (8 * -(-k // layout.GROUP) + 8) * EPS * size)
    assert not got[:, n:].any(), "padding must stay zero"
    for n_threads in THREADS[1:]:
        same_bits(run_quantised(isa, x, weights, n, n_threads), got)
    for row in range(rows):
        same_bits(run_quantised(isa, x.rows(slice(row, row + 1)), weights, n, 2), got[row : row + 1])
    if rows > 1:
        same_bits(run_quantised(isa, x.rows(slice(1, None)), weights, n), got[1:])


@every_isa
@pytest.mark.parametrize("fmt", QUANTISED)
@examples(60)
@given(
    n=st.integers(1, 70),
    rows=st.integers(1, 9),
    groups=st.integers(1, 9),
    second=st.sampled_from(["none", "some", "all"]),
    seed=st.integers(0, 2**31),
)
def test_integers_are_exact(isa: str, fmt: str, n: int, rows: int, groups: int, second: str, seed: int) -> None:
    """Scales of one, SECOND_TERM for the first terms, and totals below 2**24: float32 holds every sum, so nothing may
    be rounded."""
    rng = np.random.default_rng(seed)
    k = groups * layout.GROUP
    weights = matrix(fmt, str(rng.choice(["random", "largest", "smallest"])), n, k, rng)
    weights["d"][:] = 1
    if "m" in weights:
        weights["m"][:] = rng.integers(-1, 2, weights["m"].shape)
    if "s" in weights:  # else the totals are too large
        weights["s"][:] = rng.integers(-2, 3, weights["s"].shape)
    largest = (7 if groups == 1 else 1) if fmt in ("q8", "q6k") else (127 if groups == 1 else 8)
    ints = rng.choice([-largest, largest], (rows, k)) if seed % 2 else rng.integers(-largest, largest + 1, (rows, k))
    first, scales = ints.astype(np.int8), np.full((rows, groups), SECOND_TERM, np.float32)
    x = reference.Quantised(first, np.zeros_like(first), np.zeros(scales.shape, bool), scales, scales)
    x = second_terms(x, second, rng)
    # The twin's sums divide by SECOND_TERM and multiply again; here they are whole numbers.
    x = x._replace(sums=np.rint(x.sums))
    same_bits(run_quantised(isa, x, weights, n), quantised_linear(x, weights)[0] + np.float32(0))


@every_isa
@examples(60)
@given(
    kind=st.sampled_from(["random", "largest", "smallest"]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 32)),
    seed=st.integers(0, 2**31),
)
def test_factors_of_any_size_are_exact(isa: str, kind: str, shape: tuple[int, int, int], seed: int) -> None:
    """q6k's largest integers, 32 * 127 * 32 * 128, lie below 2**24: scales of one leave nothing to round."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights = matrix("q6k", kind, n, k, rng)
    weights["d"][:] = 1
    x = reference.quantize(floats("extremes" if seed % 2 else "normal", (rows, k), rng))
    x = x._replace(scales=np.ones_like(x.scales))
    same_bits(run_quantised(isa, x, weights, n), quantised_linear(x, weights)[0] + np.float32(0))


@every_isa
@pytest.mark.parametrize("fmt", QUANTISED)
def test_huge(isa: str, fmt: str) -> None:
    """Activations of 1e30, and second terms in spite of it, with weights of ordinary size."""
    rng = np.random.default_rng(3)
    weights = matrix(fmt, "random", 33, 70, rng)
    for second in ("none", "some", "all"):
        x = second_terms(reference.quantize(floats("huge", (5, 70), rng)), second, rng)
        wanted, size = quantised_linear(x, weights)
        within(run_quantised(isa, x, weights, 33), wanted, 40 * EPS * size)


@every_isa
@pytest.mark.parametrize("rows", [64, 65, 131])
def test_many_rows(isa: str, rows: int) -> None:
    """More rows than go through a block of weights at a time (CACHED_TILES)."""
    rng = np.random.default_rng(rows)
    for fmt in ("q4", "q8", "q6k"):
        for second in ("none", "some"):
            weights = matrix(fmt, "random", 56, 64, rng)
            x = second_terms(reference.quantize(floats("normal", (rows, 64), rng)), second, rng)
            wanted, size = quantised_linear(x, weights)
            got = run_quantised(isa, x, weights, 56, 3)
            within(got, wanted, 24 * EPS * size)
            same_bits(run_quantised(isa, x.rows(slice(58, 67)), weights, 56), got[58:67])


@every_isa
@examples(30)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_bias_and_residual(isa: str, shape: tuple[int, int, int], seed: int) -> None:
    """(result + bias) + residual, one rounding each; the padding stays zero."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    for fmt in ("q4m", "q8", "q6k"):
        weights = matrix(fmt, "random", n, k, rng)
        x = reference.quantize(floats("outliers", (rows, k), rng), 2.0)
        bias, residual = floats("normal", (n,), rng), floats("normal", (rows, n), rng)
        plain = run_quantised(isa, x, weights, n)[:, :n]
        got = run_quantised(isa, x, weights, n, 2, bias=bias, residual=residual)
        same_bits(got[:, :n], (plain + bias) + residual)
        assert not got[:, n:].any()


@every_isa
@pytest.mark.parametrize("n_out", [1, 2, 5])
def test_only_rows_whose_logits_are_wanted(isa: str, n_out: int) -> None:
    """OUT_ROWS computes the first N_OUT rows (one: a tile of its own) and leaves the others; LOGITS writes to the run's
    buffer."""
    rng = np.random.default_rng(7)
    weights = matrix("q8", "random", 50, 40, rng)
    x = reference.quantize(floats("normal", (6, 40), rng), 2.0)
    all_rows, wanted = run_quantised(isa, x, weights, 50), x.rows(slice(n_out))
    some = run_quantised(isa, wanted, weights, 50, 2, flags=Flag.OUT_ROWS, rows=6)
    same_bits(some[:n_out], all_rows[:n_out])
    assert np.isnan(some[n_out:]).all()
    with Memory() as memory:
        packed = activations(memory, wanted)
        y, logits = memory.room((6, 64), np.float32), memory.room((n_out, 64), np.float32)
        op = linear_op(memory, "linear_q8", packed, y, weights, 50, 40, FLAGS=Flag.LOGITS | Flag.OUT_ROWS)
        call(isa, "linear_q8", op, memory.run(N_ROWS=6, N_OUT=n_out, LOGITS=address(logits)))
        same_bits(logits, all_rows[:n_out])
        assert np.isnan(y).all()


def test_instruction_sets_agree() -> None:
    """All on the same quantised input, within twice the bound that each is held to."""
    rng = np.random.default_rng(11)
    for fmt in QUANTISED:
        weights = matrix(fmt, "random", 70, 256, rng)
        x = reference.quantize(floats("normal", (5, 256), rng), 2.5)
        size = quantised_linear(x, weights)[1]
        results = [run_quantised(isa, x, weights, 70) for isa in ISAS]
        for result in results[1:]:
            within(result, results[0], 2 * (8 * 8 + 8) * EPS * size)
