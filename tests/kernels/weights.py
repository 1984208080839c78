"""Stored matrices and quantised activations to try, and the linear layers on them: compiled, and the twin's."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.build.load import Kernels
from edgerun_kernels.record import SECOND_TERM, Flag, columns_scratch_bytes, triples_scratch_bytes

from .harness import Memory, activations, call, floats, linear_op, stride

Array = NDArray[Any]
WEIGHTS = ("random", "largest", "smallest", "subnormal scales", "largest scales", "zero scales")
QUANTISED = ("q4", "q4m", "q8", "q6k")
ACTIVATIONS = ("normal", "outliers", "zeros", "negative zero", "equal", "extremes", "subnormal", "mixed", "one")
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 100), st.integers(1, 140) | st.integers(250, 330))
"""Rows, weight rows, columns: also more than the 256 that share a scale in q6k."""


def matrix(fmt: str, kind: str, n: int, k: int, rng: np.random.Generator) -> dict[str, Array]:
    """A stored matrix of a kind (of WEIGHTS)."""
    if fmt == "f32":
        return layout.pack(fmt, floats("normal", (n, k), rng))
    low, high, dtype = {"q8": (-128, 127, np.int8), "q6k": (0, 63, np.uint8)}.get(fmt, (0, 15, np.uint8))
    values = rng.integers(low, high + 1, (n, k)).astype(dtype)
    groups = -(-k // layout.GROUP)
    s = rng.integers(-128, 128, (n, 2 * groups)).astype(np.int8)
    if kind == "largest":
        values[:] = high
    if kind == "smallest":
        values[:] = low
    if kind in ("largest", "smallest"):
        s[:] = -128
    d, m = rng.standard_normal((2, n, -(-groups // layout.SUPER_GROUPS) if fmt == "q6k" else groups)).astype(np.float16)
    factor = {"subnormal scales": 1e-7, "zero scales": 0.0}.get(kind, 1.0)
    d, m = (d * factor).astype(np.float16), (m * factor).astype(np.float16)
    if kind == "largest scales":
        d[:], m[:] = 65504, -65504
    return layout.pack(fmt, values, d, m if fmt == "q4m" else None, s if fmt == "q6k" else None)


def trits(kind: str, n: int, k: int, scale: float, rng: np.random.Generator) -> dict[str, Array]:
    """A stored ternary matrix: "random", or all of it "largest" or "smallest"."""
    codes = {"largest": np.full((n, k), 2), "smallest": np.zeros((n, k))}.get(kind, rng.integers(0, 3, (n, k)))
    return layout.pack("ternary", codes.astype(np.uint8), np.array([scale], np.float32))


def two_bits(x: reference.QuantisedRows, codes: Array, d: Array) -> Array:
    """The twin's outputs of ternary codes stored in 2 bits, to compare other layouts with: float32 [rows, padded n]."""
    return reference.linear_ternary(x, layout.pack("ternary", codes, d)["q"], d) + np.float32(0)


def padded(n: int) -> int:
    return -(-n // layout.ROWS) * layout.ROWS


def second_terms(x: reference.Quantised, which: str, rng: np.random.Generator) -> reference.Quantised:
    """x with second terms in no, some or all of its groups, whatever they hold."""
    chance = {"none": 0.0, "some": 0.4, "all": 1.0}[which]
    has = rng.random(x.scales.shape) < chance
    second = rng.integers(-127, 128, x.first.shape).astype(np.int8) * np.repeat(has, layout.GROUP, 1)
    return x._replace(second=second, has_second=has, sums=sums(x.first, second, x.scales))


def sums(first: Array, second: Array, scales: Array) -> Array:
    one, two = (part.reshape(*scales.shape, -1).sum(2).astype(np.float32) for part in (first, second))
    return scales * (one + two / np.float32(SECOND_TERM))


def quantised_linear(x: reference.Quantised, weights: dict[str, Array]) -> tuple[Array, Array]:
    """The twin's result, and the size of what the kernel adds up: the sum of all terms' absolute values."""
    a = np.abs(x.first, dtype=np.float64) + np.abs(x.second, dtype=np.float64) / SECOND_TERM
    a = a.reshape(*x.scales.shape, -1) * x.scales[:, :, None]
    d = np.abs(reference.row_scales(weights["d"])).astype(np.float64)
    if "s" in weights:
        q, s = weights["q"], weights["s"]
        w = np.abs(reference.dequantise_q6k(q, s, weights["d"]), dtype=np.float64).reshape(len(d), -1, layout.GROUP)
        return reference.linear_q6k(x, q, s, weights["d"]), np.einsum("rgc,ngc->rn", a, w)
    if weights["q"].dtype == np.int8:
        w = (np.abs(reference.int8_rows(weights["q"])) + 256.0).reshape(*d.shape, -1) * d[:, :, None]
        return reference.linear_q8(x, weights["q"], weights["d"]), np.einsum("rgc,ngc->rn", a, w)
    m = weights.get("m")
    low = 8 * d if m is None else np.abs(reference.row_scales(m))
    w = reference.nibbles(weights["q"]).reshape(*d.shape, -1) * d[:, :, None] + low[:, :, None]
    return reference.linear_q4(x, weights["q"], weights["d"], m), np.einsum("rgc,ngc->rn", a, w)


def kernel_of(weights: dict[str, Array]) -> str:
    """The kernel that multiplies by a stored matrix."""
    if "s" in weights:
        return "linear_q6k"
    if weights["d"].ndim == 1:
        if weights["q"].ndim == 6:
            return "linear_ternary_triples"
        return "linear_ternary_columns" if weights["q"].shape[2] == 4 else "linear_ternary"
    return "linear_q8" if weights["q"].dtype == np.int8 else "linear_q4"


def run_quantised(
    kernels: str | Kernels,
    x: reference.Quantised | reference.QuantisedRows,
    weights: dict[str, Array],
    n: int,
    n_threads: int = 1,
    **options: Any,
) -> Array:
    """The layer's outputs: float32 [rows, padded n]. Options: bias [n], residual [rows, n], flags, rows of the run, k
    where it is not that of whole groups."""
    rows, k = len(x[0]), options.get("k", x[0].shape[1])
    with Memory() as memory:
        packed = activations(memory, x, n_threads)
        fields: dict[str, Any] = {"FLAGS": options.get("flags", 0)}
        y = memory.room((options.get("rows", rows), padded(n)), np.float32, gap=64)
        if "bias" in options:
            fields["BIAS"] = memory.rows(options["bias"][None], layout.ROWS)
        if "residual" in options:
            y[:] = 0
            y[:, :n] = options["residual"]
            fields["FLAGS"] |= Flag.ACCUMULATE
        if len(y) == 1:  # every thread reads its own copy
            fields["X_PRIVATE"] = stride(packed)
        name = kernel_of(weights)
        if name in ("linear_ternary_columns", "linear_ternary_triples"):
            by_columns = name == "linear_ternary_columns"
            needed = columns_scratch_bytes(n, k, len(y)) if by_columns else triples_scratch_bytes(n, k)
            private = -(-needed // 64) * 64
            fields |= {"SCRATCH": memory.room((n_threads, private), np.uint8), "SCRATCH_PRIVATE": private}
        op = linear_op(memory, name, packed, y, weights, n, k, **fields)
        run = memory.run(N_ROWS=len(y), N_OUT=rows)
        call(kernels, name, op, run, n_threads)
        if name == "linear_ternary_columns":
            call(kernels, "gather_columns", op, run, n_threads)
        return y.copy()
