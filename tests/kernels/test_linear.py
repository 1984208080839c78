"""Linear layers and embeddings of every weight format against their twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.record import Flag

from .harness import (
    EPS,
    ISAS,
    THREADS,
    Memory,
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

Array = NDArray[Any]
WEIGHTS = ("random", "largest nibbles", "smallest", "subnormal scales", "largest scales", "zero scales")
ACTIVATIONS = ("normal", "zeros", "negative zero", "equal", "extremes", "subnormal", "mixed", "one")
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 140))


def matrix(fmt: str, kind: str, n: int, k: int, rng: np.random.Generator) -> dict[str, Array]:
    """A stored matrix of a kind (of WEIGHTS)."""
    if fmt == "f32":
        return layout.pack(fmt, floats("normal", (n, k), rng))
    low, high, dtype = (-128, 127, np.int8) if fmt == "q8" else (0, 15, np.uint8)
    values = rng.integers(low, high + 1, (n, k)).astype(dtype)
    if kind == "largest nibbles":
        values[:] = high
    if kind == "smallest":
        values[:] = low
    d, m = rng.standard_normal((2, n, -(-k // layout.GROUP))).astype(np.float16)
    factor = {"subnormal scales": 1e-7, "zero scales": 0.0}.get(kind, 1.0)
    d, m = (d * factor).astype(np.float16), (m * factor).astype(np.float16)
    if kind == "largest scales":
        d[:], m[:] = 65504, -65504
    return layout.pack(fmt, values, d, m if fmt == "q4m" else None)


def padded(n: int) -> int:
    return -(-n // layout.ROWS) * layout.ROWS


def quantised_linear(x: reference.Quantised, weights: dict[str, Array]) -> tuple[Array, Array]:
    """The twin's result, and the size of what the kernel adds up: the sum of all terms' absolute values."""
    a = np.abs(x.integers()).reshape(len(x.terms), -1, layout.GROUP).astype(np.float64) * x.scales[:, :, None]
    d = np.abs(reference.row_scales(weights["d"])).astype(np.float64)
    if weights["q"].dtype == np.int8:
        w = (np.abs(reference.int8_rows(weights["q"])) + 256.0).reshape(*d.shape, -1) * d[:, :, None]
        return reference.linear_q8(x, weights["q"], weights["d"]), np.einsum("rgc,ngc->rn", a, w)
    m = weights.get("m")
    low = 8 * d if m is None else np.abs(reference.row_scales(m))
    w = reference.nibbles(weights["q"]).reshape(*d.shape, -1) * d[:, :, None] + low[:, :, None]
    return reference.linear_q4(x, weights["q"], weights["d"], m), np.einsum("rgc,ngc->rn", a, w)


def run_quantised(
    isa: str, x: reference.Quantised, weights: dict[str, Array], n: int, n_threads: int = 1, **options: Any
) -> Array:
    """linear_q4 or linear_q8: float32 [rows, padded n]. Options: bias [n], residual [rows, n], flags, n_out."""
    name = "linear_q8" if weights["q"].dtype == np.int8 else "linear_q4"
    rows = len(x.terms)
    with Memory() as memory:
        packed = memory.hold(reference.activation_rows(x), gap=64)
        fields: dict[str, Any] = {"TERMS": x.terms.shape[1], "FLAGS": options.get("flags", 0)}
        y = memory.room((rows, padded(n)), np.float32, gap=64)
        if "bias" in options:
            fields["BIAS"] = memory.rows(options["bias"][None], layout.ROWS)
        if "residual" in options:
            y[:] = 0
            y[:, :n] = options["residual"]
            fields["FLAGS"] |= Flag.ACCUMULATE
        if rows == 1:  # every thread reads its own copy
            packed = memory.hold(np.repeat(packed, n_threads, 0), gap=64)
            fields["X_PRIVATE"] = stride(packed)
        op = linear_op(memory, packed, y, weights, n, x.terms.shape[2], **fields)
        call(isa, name, op, memory.run(N_ROWS=rows, N_OUT=options.get("n_out", 0)), n_threads)
        return y.copy()


@every_isa
@examples(40)
@given(
    fmt=st.sampled_from(["q4", "q4m", "q8"]),
    terms=st.sampled_from([1, 2]),
    kind=st.sampled_from(WEIGHTS),
    pattern=st.sampled_from(ACTIVATIONS),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_quantised(
    isa: str, fmt: str, terms: int, kind: str, pattern: str, shape: tuple[int, int, int], seed: int
) -> None:
    """Within (4 roundings a group + 8) of the sum of absolute values; the same bits at every thread count."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights = matrix(fmt, kind, n, k, rng)
    x = reference.quantize(floats(pattern, (rows, k), rng), terms)
    got = run_quantised(isa, x, weights, n)
    wanted, size = quantised_linear(x, weights)
    within(got, wanted, (4 * -(-k // layout.GROUP) + 8) * EPS * size)
    assert not got[:, n:].any(), "padding must stay zero"
    for n_threads in THREADS[1:]:
        same_bits(run_quantised(isa, x, weights, n, n_threads), got)
    for row in range(rows):
        alone = reference.Quantised(*(part[row : row + 1] for part in x))
        same_bits(run_quantised(isa, alone, weights, n, 2), got[row : row + 1])


@every_isa
@pytest.mark.parametrize("fmt", ["q4", "q4m", "q8"])
@pytest.mark.parametrize("terms", [1, 2])
@examples(15)
@given(n=st.integers(1, 40), rows=st.integers(1, 6), groups=st.integers(1, 14), seed=st.integers(0, 2**31))
def test_integers_are_exact(isa: str, fmt: str, terms: int, n: int, rows: int, groups: int, seed: int) -> None:
    """Scales of one and totals below 2**24: float32 holds every sum, so nothing may be rounded."""
    rng = np.random.default_rng(seed)
    groups = groups if terms == 1 else 1
    k = groups * layout.GROUP
    weights = matrix(fmt, str(rng.choice(["random", "largest nibbles", "smallest"])), n, k, rng)
    weights["d"][:] = 1
    if "m" in weights:
        weights["m"][:] = rng.integers(-4, 5, weights["m"].shape)
    ints = rng.choice([-127, 127], (rows, terms, k)) if seed % 2 else rng.integers(-127, 128, (rows, terms, k))
    if fmt == "q8" and terms == 2:
        ints[:, 0] = np.clip(ints[:, 0], -7, 7)
    x = reference.Quantised(ints.astype(np.int8), np.ones((rows, groups), np.float32), np.empty(0, np.float32))
    x = x._replace(sums=x.integers().reshape(rows, groups, -1).sum(2).astype(np.float32))
    same_bits(run_quantised(isa, x, weights, n), quantised_linear(x, weights)[0] + np.float32(0))


@every_isa
def test_huge(isa: str) -> None:
    """Activations of 1e30 with weights of ordinary size, and the reverse."""
    rng = np.random.default_rng(3)
    for fmt in ("q4", "q4m", "q8"):
        for terms in (1, 2):
            weights = matrix(fmt, "random", 33, 70, rng)
            x = reference.quantize(floats("huge", (5, 70), rng), terms)
            wanted, size = quantised_linear(x, weights)
            within(run_quantised(isa, x, weights, 33), wanted, 30 * EPS * size)


@every_isa
@pytest.mark.parametrize("rows", [65, 131])
def test_many_rows(isa: str, rows: int) -> None:
    """More rows than go through a block of weights at a time."""
    rng = np.random.default_rng(rows)
    for fmt in ("q4", "q8"):
        for terms in (1, 2):
            weights = matrix(fmt, "random", 40, 64, rng)
            x = reference.quantize(floats("normal", (rows, 64), rng), terms)
            wanted, size = quantised_linear(x, weights)
            got = run_quantised(isa, x, weights, 40, 3)
            within(got, wanted, 20 * EPS * size)
            part = reference.Quantised(*(part[60:67] for part in x))
            same_bits(run_quantised(isa, part, weights, 40), got[60:67])


@every_isa
@examples(10)
@given(shape=SHAPES, seed=st.integers(0, 2**31), terms=st.sampled_from([1, 2]))
def test_bias_and_residual(isa: str, shape: tuple[int, int, int], seed: int, terms: int) -> None:
    """(result + bias) + residual, one rounding each; the padding stays zero."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    for fmt in ("q4m", "q8"):
        weights = matrix(fmt, "random", n, k, rng)
        x = reference.quantize(floats("normal", (rows, k), rng), terms)
        bias, residual = floats("normal", (n,), rng), floats("normal", (rows, n), rng)
        plain = run_quantised(isa, x, weights, n)[:, :n]
        got = run_quantised(isa, x, weights, n, 2, bias=bias, residual=residual)
        same_bits(got[:, :n], (plain + bias) + residual)
        assert not got[:, n:].any()


@every_isa
def test_only_rows_whose_logits_are_wanted(isa: str) -> None:
    """OUT_ROWS computes the first N_OUT rows of its input and leaves the others; LOGITS writes to the run's buffer."""
    rng = np.random.default_rng(7)
    weights = matrix("q8", "random", 50, 40, rng)
    x = reference.quantize(floats("normal", (6, 40), rng))
    all_rows = run_quantised(isa, x, weights, 50)
    some = run_quantised(isa, x, weights, 50, 2, flags=Flag.OUT_ROWS, n_out=2)
    same_bits(some[:2], all_rows[:2])
    assert np.isnan(some[2:]).all()
    with Memory() as memory:
        packed = memory.hold(reference.activation_rows(x))
        y, logits = memory.room((6, 64), np.float32), memory.room((6, 64), np.float32)
        op = linear_op(memory, packed, y, weights, 50, 40, TERMS=1, FLAGS=Flag.LOGITS | Flag.OUT_ROWS)
        call(isa, "linear_q8", op, memory.run(N_ROWS=6, N_OUT=6, LOGITS=address(logits)))
        same_bits(logits, all_rows)
        assert np.isnan(y).all()


def run_float(isa: str, fmt: str, x: Array, weights: dict[str, Array], n: int, n_threads: int = 1) -> Array:
    with Memory() as memory:
        y = memory.room((len(x), padded(n)), np.float32, gap=64)
        op = linear_op(memory, memory.rows(x), y, weights, n, x.shape[1])
        name = {"q4": "linear_q4_float", "q4m": "linear_q4_float", "q8": "linear_q8_float", "f32": "linear_f32"}[fmt]
        call(isa, name, op, memory.run(N_ROWS=len(x)), n_threads)
        return y.copy()


def dense(fmt: str, weights: dict[str, Array]) -> Array:
    """The twin's float32 rows, padding rows included."""
    if fmt == "f32":
        return reference.float_rows(weights["w"])
    if fmt == "q8":
        return reference.dequantise_q8(weights["q"], weights["d"])
    return reference.dequantise_q4(weights["q"], weights["d"], weights.get("m"))


@every_isa
@examples(40)
@given(
    fmt=st.sampled_from(layout.FORMATS),
    kind=st.sampled_from(WEIGHTS),
    pattern=st.sampled_from(ACTIVATIONS),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_float(isa: str, fmt: str, kind: str, pattern: str, shape: tuple[int, int, int], seed: int) -> None:
    """Within (2 k + 4) roundings of the sum of absolute values."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights, x = matrix(fmt, kind, n, k, rng), floats(pattern, (rows, k), rng)
    got = run_float(isa, fmt, x, weights, n)
    w = dense(fmt, weights)
    within(
        got,
        reference.linear(x, w),
        (2 * k + 4) * EPS * (np.abs(x, dtype=np.float64) @ np.abs(w[:, :k], dtype=np.float64).T),
    )
    assert not got[:, n:].any()
    for n_threads in THREADS[1:]:
        same_bits(run_float(isa, fmt, x, weights, n, n_threads), got)
    for row in range(rows):
        same_bits(run_float(isa, fmt, x[row : row + 1], weights, n), got[row : row + 1])


@every_isa
@examples(30)
@given(
    fmt=st.sampled_from(layout.FORMATS),
    kind=st.sampled_from(WEIGHTS),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
    n_threads=st.sampled_from(THREADS),
)
def test_embed(isa: str, fmt: str, kind: str, shape: tuple[int, int, int], seed: int, n_threads: int) -> None:
    """Bit for bit what the package's own reader dequantises; padding columns are not touched."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights = matrix(fmt, kind, n, k, rng)
    tokens = rng.integers(0, n, rows)
    tokens[-1] = n - 1
    name = {"q4m": "embed_q4"}.get(fmt, f"embed_{fmt}")
    with Memory() as memory:
        y = memory.room((rows, k), np.float32, gap=64)
        op = linear_op(memory, y, y, weights, n, k)
        call(isa, name, op, memory.run(N_ROWS=rows, TOKENS=memory.hold(tokens)), n_threads)
        wanted = {
            "f32": lambda: reference.embed_f32(tokens, weights["w"]),
            "q8": lambda: reference.embed_q8(tokens, weights["q"], weights["d"], k),
        }.get(fmt, lambda: reference.embed_q4(tokens, weights["q"], weights["d"], weights.get("m"), k))()
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(wanted, layout.dequantise(fmt, weights, n, k)[tokens])


def test_instruction_sets_agree() -> None:
    """All on the same quantised input, within twice the bound that each is held to."""
    rng = np.random.default_rng(11)
    for fmt in ("q4", "q4m", "q8"):
        weights = matrix(fmt, "random", 70, 256, rng)
        x = reference.quantize(floats("normal", (5, 256), rng))
        size = quantised_linear(x, weights)[1]
        results = [run_quantised(isa, x, weights, 70) for isa in ISAS]
        for result in results[1:]:
            within(result, results[0], 2 * (4 * 8 + 8) * EPS * size)
