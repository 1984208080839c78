"""The stored layout against the contract's own index formulae, and round trips for any shape."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.package import layout

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 140) | st.integers(250, 530))


def random_matrix(fmt: str, n: int, k: int, seed: int) -> layout.Unpacked:
    """What `pack` takes."""
    rng = np.random.default_rng(seed)
    if fmt == "f32":
        return layout.Unpacked(rng.standard_normal((n, k)).astype(np.float32))
    low, high, dtype = {
        "q8": (-128, 128, np.int8),
        "q6k": (0, 64, np.uint8),
        "ternary": (0, 3, np.uint8),
        "ternary_columns": (0, 3, np.uint8),
        "ternary_triples": (0, 3, np.uint8),
    }.get(fmt, (0, 16, np.uint8))
    values = rng.integers(low, high, (n, k)).astype(dtype)
    if fmt.startswith("ternary"):
        return layout.Unpacked(values, rng.standard_normal(1).astype(np.float32))
    groups = -(-k // layout.GROUP)
    d, m = rng.standard_normal((2, n, -(-groups // 8) if fmt == "q6k" else groups)).astype(np.float16)
    s = rng.integers(-128, 128, (n, 2 * groups)).astype(np.int8)
    return layout.Unpacked(values, d, m if fmt == "q4m" else None, s if fmt == "q6k" else None)


def stated_value(fmt: str, tensors: dict[str, NDArray[Any]], row: int, column: int) -> np.float32:
    """One element, by the formulae of the format and nothing else."""
    block, r = divmod(row, 16)
    if fmt == "f32":
        return np.float32(tensors["w"][block, column, r])
    g, within = divmod(column, 32)
    if fmt == "ternary_columns":
        slab, row = divmod(row, 256)
        byte = int(tensors["q"][column, slab, row % 16 // 4, row % 64 // 16, row % 4])
        return (np.float32(byte >> 2 * (row // 64) & 3) - np.float32(1)) * tensors["d"][0]
    if fmt == "ternary_triples":
        q = tensors["q"]
        (part, unit), place = divmod(column // 48, q.shape[2]), column % 48
        where = (part, row // 32, unit)
        words = [int(w) for w in q[where].view("<u2")[:, row % 16, row % 32 // 16]]
        third, code = divmod(place, 16)
        number = words[code // 3] >> 5 * (code % 3) if code < 15 else sum((w >> 15) << i for i, w in enumerate(words))
        return (np.float32(number % 32 // 3**third % 3) - np.float32(1)) * tensors["d"][0]
    if fmt == "ternary":
        byte = int(tensors["q"][block, g, within // 16, r, within % 4])
        return (np.float32(byte >> 2 * (within % 16 // 4) & 3) - np.float32(1)) * tensors["d"][0]
    if fmt == "q6k":
        line = (1, 2, 4, 5)[within // 8]
        low = int(tensors["q"][block, g, line, r, within % 4]) >> 4 * (within % 8 // 4) & 15
        high = int(tensors["q"][block, g, 3 * (within // 16), r, within % 4]) >> 2 * (within % 16 // 4) & 3
        number = (low + 16 * high - 32) * int(tensors["s"][block, g, within // 16, r])
        return np.float32(number) * np.float32(tensors["d"][block, column // 256, r])
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
    matrix = random_matrix(fmt, n, k, seed)
    tensors = layout.pack(fmt, *matrix)
    assert {s: (t.dtype, t.shape) for s, t in tensors.items()} == layout.parts(fmt, n, k)
    back = layout.unpack(fmt, tensors, n, k)
    for was, now in zip(matrix, back, strict=True):
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
    tensors = layout.pack(fmt, *random_matrix(fmt, n, k, 1))
    whole = layout.dequantise(fmt, tensors, 32, k)
    assert not whole[n:].any()
    if fmt != "q4m":
        # a padding column of q4m inside a real group is worth the group's minimum: kernels see zero activations there
        wide = {"f32": k, "ternary_triples": 48}.get(fmt, 64)
        assert not layout.dequantise(fmt, tensors, n, wide)[:, k:].any()


@pytest.mark.parametrize("fmt", layout.FORMATS)
def test_many_row_chunks_equal_one(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix(fmt, 83, 300, 3)
    whole = layout.pack(fmt, *matrix)
    dense = layout.dequantise(fmt, whole, 83, 300)
    monkeypatch.setattr(layout, "_CHUNK_ELEMENTS", 1)
    chunked = layout.pack(fmt, *matrix)
    for suffix, tensor in whole.items():
        np.testing.assert_array_equal(tensor, chunked[suffix])
    np.testing.assert_array_equal(dense, layout.dequantise(fmt, whole, 83, 300))
    for was, now in zip(matrix, layout.unpack(fmt, whole, 83, 300), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_block_of_six_bits_is_ggufs() -> None:
    """Any bytes of 256 weights as GGUF stores them, 128 low halves, 64 high ones, 16 factors and a scale, are worth
    what GGUF's own table says, taken apart by its formulae."""
    rng = np.random.default_rng(5)
    low, high = rng.integers(0, 256, (2, 64), np.uint8), rng.integers(0, 256, (2, 32), np.uint8)
    s, d = rng.integers(-128, 128, (1, 16)).astype(np.int8), np.array([[0.37]], np.float16)
    codes = np.empty((1, 256), np.uint8)
    for half in range(2):
        for i in range(128):
            nibble = low[half, i % 64] >> (4 if i >= 64 else 0) & 15
            codes[0, 128 * half + i] = nibble | (high[half, i % 32] >> 2 * (i // 32) & 3) << 4
    raw = low.tobytes() + high.tobytes() + s.tobytes() + d.tobytes()
    wanted = gguf.dequantize(np.frombuffer(raw, np.uint8)[None], gguf.GGMLQuantizationType.Q6_K)
    tensors = layout.pack("q6k", codes, d, s=s)
    np.testing.assert_allclose(layout.dequantise("q6k", tensors, 1, 256), wanted, rtol=2e-7)


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
    with pytest.raises(ValueError, match=r"q4 needs codes 0\.\.15, got 16"):
        layout.pack("q4", nibbles + np.uint8(16), d)
    with pytest.raises(ValueError, match="expected"):
        layout.unpack("q4", layout.pack("q4", nibbles, d), 17, 32)
    s, scale = np.zeros((4, 2), np.int8), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="q6k needs s"):
        layout.pack("q6k", nibbles, d)
    with pytest.raises(ValueError, match="q4 has no s"):
        layout.pack("q4", nibbles, d, s=s)
    with pytest.raises(ValueError, match=r"s has shape \(4, 1\), expected \(4, 2\)"):
        layout.pack("q6k", nibbles, d, s=s[:, :1])
    with pytest.raises(ValueError, match=r"q6k needs codes 0\.\.63, got 64"):
        layout.pack("q6k", nibbles + np.uint8(64), d, s=s)
    with pytest.raises(ValueError, match="ternary has no m"):
        layout.pack("ternary", nibbles, scale, d)
    with pytest.raises(ValueError, match=r"d has shape \(4, 1\), expected \(1,\)"):
        layout.pack("ternary", nibbles, d)
    with pytest.raises(ValueError, match=r"ternary needs codes 0\.\.2, got 3"):
        layout.pack("ternary", nibbles + np.uint8(3), scale)
