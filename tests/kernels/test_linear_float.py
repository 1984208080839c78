"""Linear layers over float activations and embeddings, of every weight format, against their twins."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package import layout
from edgerun_kernels import reference

from .harness import EPS, THREADS, Array, Memory, call, every_isa, examples, floats, linear_op, same_bits, within
from .weights import ACTIVATIONS, SHAPES, WEIGHTS, matrix, padded

FORMATS = [fmt for fmt in layout.FORMATS if not fmt.startswith("ternary")]
"""Ternary layers take int8 by definition, and nothing embeds with them."""


def run_float(isa: str, fmt: str, x: Array, weights: dict[str, Array], n: int, n_threads: int = 1) -> Array:
    with Memory() as memory:
        y = memory.room((len(x), padded(n)), np.float32, gap=64)
        name = {"q4m": "linear_q4_float", "f32": "linear_f32"}.get(fmt, f"linear_{fmt}_float")
        op = linear_op(memory, name, memory.rows(x), y, weights, n, x.shape[1])
        call(isa, name, op, memory.run(N_ROWS=len(x)), n_threads)
        return y.copy()


def dense(fmt: str, weights: dict[str, Array]) -> Array:
    """The twin's float32 rows, padding rows included."""
    if fmt == "f32":
        return reference.float_rows(weights["w"])
    if fmt == "q8":
        return reference.dequantise_q8(weights["q"], weights["d"])
    if fmt == "q6k":
        return reference.dequantise_q6k(weights["q"], weights["s"], weights["d"])
    return reference.dequantise_q4(weights["q"], weights["d"], weights.get("m"))


@every_isa
@examples(80)
@given(
    fmt=st.sampled_from(FORMATS),
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
@examples(60)
@given(
    fmt=st.sampled_from(FORMATS),
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
        op = linear_op(memory, name, y, y, weights, n, k)
        call(isa, name, op, memory.run(N_ROWS=rows, TOKENS=memory.hold(tokens)), n_threads)
        wanted = {
            "f32": lambda: reference.embed_f32(tokens, weights["w"]),
            "q8": lambda: reference.embed_q8(tokens, weights["q"], weights["d"], k),
            "q6k": lambda: reference.embed_q6k(tokens, weights["q"], weights["s"], weights["d"], k),
        }.get(fmt, lambda: reference.embed_q4(tokens, weights["q"], weights["d"], weights.get("m"), k))()
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(wanted, layout.dequantise(fmt, weights, n, k)[tokens])
