"""Layers of 4 and 8 bits column by column: what the dense layers give, whichever inputs are zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package.layout import ROWS, unpack
from edgerun.sparsity import layout
from edgerun_kernels import reference
from edgerun_kernels.record import GROUP, Flag, Keep, Lines, list_scratch_bytes

from .harness import (
    EPS,
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
    within,
)
from .weights import matrix, padded, quantised_linear, run_quantised, second_terms

FORMATS = st.sampled_from(["q4", "q4m", "q8"])
ROWS_OF_LAYERS = st.lists(st.integers(1, 150) | st.integers(500, 600), min_size=1, max_size=3)
COLUMNS = st.integers(1, 140) | st.integers(1000, 1100)
NAMES = (("W", "q"), ("D", "d"), ("M", "m"))
SHARES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
"""Of the inputs that are not zero."""


class Stack(NamedTuple):
    """Layers with one input: as stored [..., Nb, G, ...], and column by column."""

    fmt: str
    rows: list[int]
    k: int
    stored: list[dict[str, Array]]
    columns: dict[str, Array]


def stack(fmt: str, rows: list[int], k: int, rng: np.random.Generator, kind: str = "normal") -> Stack:
    stored = [matrix(fmt, kind, n, k, rng) for n in rows]
    wanted = layout.parts(fmt, rows, k)
    columns = {name: np.full(part.shape, 0xFF, part.dtype) for name, part in wanted.items()}
    layout.pack(fmt, [unpack(fmt, one, n, k) for one, n in zip(stored, rows, strict=True)], columns)
    return Stack(fmt, rows, k, stored, columns)


def sparse(x: reference.Quantised, share: float, rng: np.random.Generator) -> reference.Quantised:
    return reference.keep_large(x, rng.random(x.first.shape) < share)


def run_stack(
    isa: str,
    x: reference.Quantised,
    layers: Stack,
    n_threads: int = 1,
    most: int = 1 << 40,
    n_parts: int = 4,
    **options: Any,
) -> tuple[list[Array], int]:
    """The layers' outputs [rows, padded n], and how many columns were counted as read. Options: bias [n], residual
    [rows, n] of all layers, rows of the run."""
    rows = options.get("rows", len(x.first))
    with Memory() as memory:
        packed, counter = activations(memory, x, n_threads), memory.hold(np.zeros(1, np.int64))
        private = -(-list_scratch_bytes(layers.k) // 64) * 64
        n_stack = layers.columns["d"].shape[1]
        shared: dict[str, Any] = {
            "PROJECTION": 1,
            "FLAGS": options.get("flags", 0),
            "X_PRIVATE": stride(packed) if rows == 1 else 0,
        }
        policies = memory.policies(
            KEEP=Keep.NONZERO,
            LINES=Lines.Q8 if layers.fmt == "q8" else Lines.Q4,
            **{key: memory.hold(layers.columns[name]) for key, name in NAMES if name in layers.columns},
            LISTS=memory.room((n_threads, private), np.uint8),
            LISTS_PRIVATE=private,
            SUMS=memory.room((n_parts, n_stack), np.float32),
            PARTS=n_parts,
            STACK=n_stack,
            MOST=most,
        )
        run = memory.run(N_ROWS=rows, N_OUT=len(x.first), COLUMNS_READ=address(counter), SPARSITY=policies)
        call(isa, "skip_columns", memory.op("skip_columns", X=packed, K=layers.k, **shared), run, n_threads)
        kernel = "linear_q8" if layers.fmt == "q8" else "linear_q4"
        outputs, start = [], 0
        for n, weights in zip(layers.rows, layers.stored, strict=True):
            fields = shared | {"START": start}
            y = memory.room((rows, padded(n)), np.float32, gap=64)
            if "bias" in options:
                fields["BIAS"] = memory.rows(options["bias"][None, :n], ROWS)
            if "residual" in options:
                y[:] = 0
                y[:, :n] = options["residual"][:, :n]
                fields["FLAGS"] |= Flag.ACCUMULATE
            call(isa, kernel, linear_op(memory, kernel, packed, y, weights, n, layers.k, **fields), run, n_threads)
            outputs.append(y.copy())
            start += padded(n)
        return outputs, int(counter[0])


@examples(60)
@given(fmt=FORMATS, rows=ROWS_OF_LAYERS, k=COLUMNS, seed=st.integers(0, 2**31))
def test_the_layout_is_what_it_says(fmt: str, rows: list[int], k: int, seed: int) -> None:
    """By the kernels' own twin; scales beside."""
    layers = stack(fmt, rows, k, np.random.default_rng(seed))
    total = layout.stack_rows(fmt, rows)
    codes = reference.stacked_columns(layers.columns["q"], total, 8 if fmt == "q8" else 4)
    covered, start = np.zeros(codes.shape, bool), 0
    for n, stored in zip(rows, layers.stored, strict=True):
        plain = unpack(fmt, stored, n, k)
        np.testing.assert_array_equal(codes[start : start + n, :k], plain.values)
        covered[start : start + n, :k] = True
        for name, scales in (("d", plain.d), ("m", plain.m)):
            if scales is not None:
                same_bits(layers.columns[name][:, start : start + n], scales.T)
                assert not layers.columns[name][:, start + n : start + padded(n)].any()
        start += padded(n)
    assert (codes[~covered] == (8 if fmt == "q4" else 0)).all()


@every_isa
@examples(120)
@given(
    fmt=FORMATS,
    kind=st.sampled_from(["normal", "largest", "smallest", "zero scales"]),
    pattern=st.sampled_from([p for p in PATTERNS if p != "huge"]),
    terms=st.sampled_from(["none", "some", "all"]),
    share=st.sampled_from(SHARES),
    rows=ROWS_OF_LAYERS,
    k=COLUMNS,
    n_parts=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
def test_near_the_twin_and_the_same_at_every_number_of_threads(
    isa: str,
    fmt: str,
    kind: str,
    pattern: str,
    terms: str,
    share: float,
    rows: list[int],
    k: int,
    n_parts: int,
    seed: int,
) -> None:
    """Also with fewer columns than threads, and second terms whose first is zero."""
    rng = np.random.default_rng(seed)
    layers = stack(fmt, rows, k, rng, kind)
    x = sparse(second_terms(reference.quantize(floats(pattern, (1, k), rng)), terms, rng), share, rng)
    got, count = run_stack(isa, x, layers, n_parts=n_parts)
    assert count == ((x.first != 0) | (x.second != 0)).sum()
    for y, n, weights in zip(got, rows, layers.stored, strict=True):
        wanted, size = quantised_linear(x, weights)
        within(y[:, :n], wanted[:, :n], 2 * (k // GROUP + 8) * EPS * size[:, :n])
        assert not y[:, n:].any()
    for n_threads in THREADS[1:]:
        for y, again in zip(got, run_stack(isa, x, layers, n_threads, n_parts=n_parts)[0], strict=True):
            same_bits(y, again)


@every_isa
@pytest.mark.parametrize("fmt", ["q4", "q4m", "q8"])
@pytest.mark.parametrize("n_rows", [1, 6])
def test_the_dense_layer_runs_where_too_many_columns_or_several_rows_do(isa: str, fmt: str, n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    layers = stack(fmt, [70, 33], 100, rng)
    x = reference.quantize(floats("outliers", (n_rows, 100), rng), 3.0)
    most = int((x.first[0] != 0).sum()) - 1
    for n_threads in THREADS:
        got, count = run_stack(isa, x, layers, n_threads, most)
        assert count == (128 if n_rows == 1 else 0)
        for y, n, weights in zip(got, layers.rows, layers.stored, strict=True):
            same_bits(y, run_quantised(isa, x, weights, n, n_threads))


@every_isa
@examples(30)
@given(fmt=FORMATS, n=st.integers(1, 300), k=COLUMNS, seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_bias_and_residual(isa: str, fmt: str, n: int, k: int, seed: int, n_threads: int) -> None:
    """(result + bias) + residual, one rounding each; the padding stays zero."""
    rng = np.random.default_rng(seed)
    layers = stack(fmt, [n], k, rng)
    x = sparse(reference.quantize(floats("outliers", (1, k), rng), 3.0), 0.5, rng)
    bias, residual = floats("normal", (n,), rng), floats("normal", (1, n), rng)
    (plain,), _ = run_stack(isa, x, layers, n_threads)
    (got,), _ = run_stack(isa, x, layers, n_threads, bias=bias, residual=residual)
    same_bits(got[:, :n], (plain[:, :n] + bias) + residual)
    assert not got[:, n:].any()


@every_isa
@pytest.mark.parametrize("fmt", ["q4", "q8"])
@pytest.mark.parametrize("column", [0, 31, 32, 63, 64, 95])
def test_one_column(isa: str, fmt: str, column: int) -> None:
    rng = np.random.default_rng(column)
    layers = stack(fmt, [260], 96, rng)
    x = np.zeros((1, 96), np.float32)
    x[0, column] = -3
    quantised = reference.quantize(x)
    (y,), count = run_stack(isa, quantised, layers, 3)
    wanted, size = quantised_linear(quantised, layers.stored[0])
    assert count == 1
    within(y[:, :260], wanted[:, :260], 4 * EPS * size[:, :260])
