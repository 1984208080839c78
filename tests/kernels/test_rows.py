"""Kernels that work on rows: RMS norm, quantisation, the gated MLP's activations."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgerun_kernels import reference
from edgerun_kernels.record import GROUP, TILE_ROWS, Flag, activation_bytes, row_activation_bytes

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
            "rms_norm",
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
@examples(80)
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


def quantised(isa: str, x: Array, threshold: float | None, n_threads: int = 1, n_out: int | None = None) -> Array:
    """The kernel on x [rows, k], or its first ``n_out`` rows: tiles [tiles, bytes]; of one row, each thread's own.
    Without a threshold, quantize_rows."""
    plain = threshold is None
    name, tile_bytes = ("quantize_rows", row_activation_bytes) if plain else ("quantize", activation_bytes)
    rows, k = n_out or len(x), x.shape[1]
    tile = 1 if rows == 1 else TILE_ROWS
    alone = len(x) == 1
    with Memory() as memory:
        padded = memory.rows(np.repeat(x, n_threads, 0) if alone else x)
        y = memory.room((n_threads if alone else -(-rows // tile), tile_bytes(k, tile)), np.uint8, gap=64)
        private = {"X_PRIVATE": stride(padded), "Y_PRIVATE": stride(y)} if alone else {}
        op = memory.op(
            name, X=padded, X_STRIDE=stride(padded), Y=y, Y_STRIDE=stride(y), K=k,
            FLAGS=Flag.OUT_ROWS if n_out else 0, **private, **({} if threshold is None else {"THRESHOLD": threshold}),
        )  # fmt: skip
        call(isa, name, op, memory.run(N_ROWS=len(x), N_OUT=rows), n_threads)
        return y.copy()


def same_tiles(got: Array, expected: reference.Quantised | reference.QuantisedRows) -> None:
    """Bit for bit, but for the bytes that mean nothing; ``got`` may hold several copies of one row."""
    to_tiles = reference.activation_tiles if isinstance(expected, reference.Quantised) else reference.row_tiles
    tiles, meaningful = to_tiles(expected)
    copies = len(got) // len(tiles)
    same_bits(np.where(np.repeat(meaningful, copies, 0), got, 0), np.repeat(np.where(meaningful, tiles, 0), copies, 0))


@every_isa
@examples(250)
@given(
    shape=SHAPES,
    pattern=st.sampled_from(PATTERNS),
    threshold=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 8.0, np.inf]),
    seed=st.integers(0, 2**31),
)
def test_quantize_is_exact_to_the_bit(
    isa: str, shape: tuple[int, int], pattern: str, threshold: float, seed: int
) -> None:
    x = floats(pattern, shape, np.random.default_rng(seed))
    expected = reference.quantize(x, threshold)
    for n_threads in THREADS:
        same_tiles(quantised(isa, x, threshold, n_threads), expected)
    if shape[0] > 1:
        same_tiles(quantised(isa, x, threshold, 2, n_out=1), expected.rows(slice(1)))
        same_tiles(quantised(isa, x, threshold, 2, n_out=shape[0] - 1), expected.rows(slice(shape[0] - 1)))


@examples(150)
@given(
    shape=SHAPES,
    pattern=st.sampled_from(PATTERNS),
    threshold=st.sampled_from([0.0, 1.0, np.inf]),
    seed=st.integers(0, 2**31),
)
def test_two_terms_are_254_times_as_close(shape: tuple[int, int], pattern: str, threshold: float, seed: int) -> None:
    """The twin's values lie within half a step of either size of what was quantised."""
    x = floats(pattern, shape, np.random.default_rng(seed))
    quantised = reference.quantize(x, threshold)
    step = np.where(quantised.has_second, quantised.second_scales(), quantised.scales)
    bound = np.repeat(step, GROUP, axis=1)[:, : shape[1]] * 0.5005 + 2e-30 + 4 * EPS * np.abs(x)
    assert (np.abs(quantised.values()[:, : shape[1]] - x) <= bound).all()
    if threshold == 0 and pattern not in ("huge", "zeros", "negative zero"):
        assert (quantised.has_second == (quantised.scales > 0)).all()
    if threshold == np.inf:
        assert not quantised.has_second.any()


@every_isa
@examples(150)
@given(shape=SHAPES, pattern=st.sampled_from(["normal", "outliers", "equal"]), seed=st.integers(0, 2**31))
def test_the_border_between_one_term_and_two(isa: str, shape: tuple[int, int], pattern: str, seed: int) -> None:
    """Thresholds around what one group has, by the last bits of float32: so rms is the same to the last bit, too."""
    rng = np.random.default_rng(seed)
    x = floats(pattern, shape, rng)
    plain = reference.quantize(x)
    row, group = rng.integers(shape[0]), rng.integers(plain.scales.shape[1])
    whole = np.pad(x[row : row + 1], ((0, 0), (0, -shape[1] % GROUP)))
    border = np.abs(whole[0, GROUP * group : GROUP * (group + 1)]).max() / reference.root_mean_square(whole)[0]
    below, above = (np.nextafter(border, np.float32(to)) for to in (0, np.inf))
    for threshold in (np.nextafter(below, np.float32(0)), below, border, above):
        same_tiles(quantised(isa, x, float(threshold)), reference.quantize(x, float(threshold)))


@every_isa
@examples(200)
@given(shape=SHAPES, pattern=st.sampled_from([*PATTERNS, "least", "largest"]), seed=st.integers(0, 2**31))
def test_quantize_rows_is_exact_to_the_bit(isa: str, shape: tuple[int, int], pattern: str, seed: int) -> None:
    """Also around the least magnitude that has a scale of its own, and where float32 ends."""
    x = floats("normal" if pattern in ("least", "largest") else pattern, shape, np.random.default_rng(seed))
    if pattern == "least":
        x *= np.float32(1e-5)
    if pattern == "largest":
        x = np.copysign(np.float32(3.4028235e38), x)
    expected = reference.quantize_rows(x)
    for n_threads in THREADS:
        same_tiles(quantised(isa, x, None, n_threads), expected)
    if shape[0] > 1:
        same_tiles(quantised(isa, x, None, 2, n_out=1), expected.rows(slice(1)))
        same_tiles(quantised(isa, x, None, 2, n_out=shape[0] - 1), expected.rows(slice(shape[0] - 1)))


@examples(100)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31))
def test_rows_are_within_half_a_step(shape: tuple[int, int], pattern: str, seed: int) -> None:
    """The twin's integers times its scales, of rows that reach 127 unless they are smaller than 1e-5."""
    x = floats(pattern, shape, np.random.default_rng(seed))
    ints, scales = reference.quantize_rows(x)
    values = ints[:, : shape[1]] * scales[:, None].astype(np.float64)
    assert (np.abs(values - x) <= scales[:, None] * 0.5005 + 4 * EPS * np.abs(x)).all()
    largest = np.abs(ints.astype(np.int32)).max(1)
    assert (largest == 127)[np.abs(x).max(1) >= 1e-5].all() and (largest <= 127).all()
    assert not ints[:, shape[1] :].any()


@every_isa
@examples(60)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_squared_relu_is_exact_to_the_bit(
    isa: str, shape: tuple[int, int], pattern: str, seed: int, n_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    gate, up = floats(pattern, shape, rng), floats("normal", shape, rng)
    with Memory() as memory:
        x, u = memory.rows(gate), memory.rows(up)
        op = memory.op("squared_relu", X=x, UP=u, X_STRIDE=stride(x), N=shape[1])
        call(isa, "squared_relu", op, memory.run(N_ROWS=shape[0]), n_threads)
        with np.errstate(over="ignore", under="ignore"):
            same_bits(x[:, : shape[1]], reference.squared_relu(gate, up))
        assert not x[:, shape[1] :].any(), "padding must stay zero"
        same_bits(u[:, : shape[1]], up)


@every_isa
@examples(30)
@given(shape=SHAPES, pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_swiglu(isa: str, shape: tuple[int, int], pattern: str, seed: int, n_threads: int) -> None:
    rng = np.random.default_rng(seed)
    gate, up = floats(pattern, shape, rng), floats("normal", shape, rng)
    with Memory() as memory:
        x, u = memory.rows(gate), memory.rows(up)
        op = memory.op("swiglu", X=x, UP=u, X_STRIDE=stride(x), N=shape[1])
        call(isa, "swiglu", op, memory.run(N_ROWS=shape[0]), n_threads)
        wanted = reference.swiglu(gate, up)
        within(x[:, : shape[1]], wanted, 16 * EPS * np.abs(wanted) + np.abs(gate.astype(np.float64) * up) * 1e-37)
        assert not x[:, shape[1] :].any(), "padding must stay zero"
