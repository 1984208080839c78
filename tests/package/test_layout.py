"""The stored layout against the contract's own index formulae, and round trips for any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.package import layout

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 140))


def random_matrix(fmt: str, n: int, k: int, seed: int) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    rng = np.random.default_rng(seed)
    if fmt == "f32":
        return rng.standard_normal((n, k)).astype(np.float32), None, None
    low, high, dtype = (-128, 128, np.int8) if fmt == "q8" else (0, 16, np.uint8)
    d, m = rng.standard_normal((2, n, -(-k // layout.GROUP))).astype(np.float16)
    return rng.integers(low, high, (n, k)).astype(dtype), d, m if fmt == "q4m" else None


def stated_value(fmt: str, tensors: dict[str, NDArray[Any]], row: int, column: int) -> np.float32:
    """One element, by the formulae of the format and nothing else."""
    block, r = divmod(row, 16)
    if fmt == "f32":
        return np.float32(tensors["w"][block, column, r])
    g, within = divmod(column, 32)
    d = np.float32(tensors["d"][block, g, r])
    if fmt == "q8":
        return np.float32(tensors["q"][block, g, within // 4, r, within % 4]) * d
    byte = int(tensors["q"][block, g, within // 8, r, within % 4])
    nibble = np.float32(byte >> 4 if within % 8 >= 4 else byte & 15)
    if fmt == "q4":
        return (nibble - np.float32(8)) * d
    return nibble * d + np.float32(tensors["m"][block, g, r])


@pytest.mark.parametrize("fmt", layout.FORMATS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_round_trip(fmt: str, shape: tuple[int, int], seed: int) -> None:
    n, k = shape
    values, d, m = random_matrix(fmt, n, k, seed)
    tensors = layout.pack(fmt, values, d, m)
    assert {s: (t.dtype, t.shape) for s, t in tensors.items()} == layout.parts(fmt, n, k)
    back = layout.unpack(fmt, tensors, n, k)
    for was, now in zip((values, d, m), back, strict=True):
        assert (was is None) == (now is None)
        if was is not None and now is not None:
            assert was.dtype == now.dtype
            np.testing.assert_array_equal(was, now)
    dense = layout.dequantise(fmt, tensors, n, k)
    assert dense.dtype == np.float32
    rng = np.random.default_rng(seed)
    for row, column in zip(rng.integers(0, n, 20), rng.integers(0, k, 20), strict=True):
        assert dense[row, column] == stated_value(fmt, tensors, int(row), int(column))


@pytest.mark.parametrize("fmt", layout.FORMATS)
def test_padding_is_worth_nothing(fmt: str) -> None:
    n, k = 17, 33
    values, d, m = random_matrix(fmt, n, k, 1)
    whole = layout.dequantise(fmt, layout.pack(fmt, values, d, m), 32, k)
    assert not whole[n:].any()
    if fmt != "q4m":
        # a padding column of q4m inside a real group is worth the group's minimum: kernels see zero activations there
        wide = 64 if fmt != "f32" else k
        assert not layout.dequantise(fmt, layout.pack(fmt, values, d, m), n, wide)[:, k:].any()


@pytest.mark.parametrize("fmt", layout.FORMATS)
def test_many_row_chunks_equal_one(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, d, m = random_matrix(fmt, 83, 70, 3)
    whole = layout.pack(fmt, values, d, m)
    dense = layout.dequantise(fmt, whole, 83, 70)
    monkeypatch.setattr(layout, "_CHUNK_ELEMENTS", 1)
    chunked = layout.pack(fmt, values, d, m)
    for suffix, tensor in whole.items():
        np.testing.assert_array_equal(tensor, chunked[suffix])
    np.testing.assert_array_equal(dense, layout.dequantise(fmt, whole, 83, 70))
    np.testing.assert_array_equal(values, layout.unpack(fmt, whole, 83, 70).values)


def test_bad_arguments() -> None:
    nibbles, d = np.zeros((4, 32), np.uint8), np.zeros((4, 1), np.float16)
    with pytest.raises(ValueError, match="unknown weight format 'q3'"):
        layout.pack("q3", nibbles, d)
    with pytest.raises(ValueError, match="q4m needs m"):
        layout.pack("q4m", nibbles, d)
    with pytest.raises(ValueError, match="q4 has no m"):
        layout.pack("q4", nibbles, d, d)
    with pytest.raises(ValueError, match="d has shape"):
        layout.pack("q4", nibbles, d.T)
    with pytest.raises(ValueError, match="needs int8 values"):
        layout.pack("q8", nibbles, d)
    with pytest.raises(ValueError, match=r"nibbles 0\.\.15, got 16"):
        layout.pack("q4", nibbles + np.uint8(16), d)
    with pytest.raises(ValueError, match="expected"):
        layout.unpack("q4", layout.pack("q4", nibbles, d), 17, 32)
