"""Rounding: how far values may move, and what must not move at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgerun.errors import OptionError
from edgerun_exporters.checkpoint import TensorInfo
from edgerun_exporters.quantize import choose_format, quantise

FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=FLOATS))
def test_q8_is_within_half_a_step(rows: np.ndarray) -> None:
    blocks = quantise("q8", rows)
    assert blocks.codes.dtype == np.int8 and blocks.codes.shape == rows.shape and blocks.codes.min() >= -127
    step = np.repeat(blocks.d.astype(np.float32), 32, axis=1)[:, : rows.shape[1]]
    # The scale is rounded to float16: its greatest code may fall short by 127 times that, 2**-11 of the value.
    assert (np.abs(blocks.dequantise() - rows) <= 0.5001 * step + np.abs(rows) * 2**-11 + 1e-5).all()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=FLOATS))
def test_q4m_is_no_worse_than_plain_rounding(rows: np.ndarray) -> None:
    blocks = quantise("q4m", rows)
    assert blocks.codes.dtype == np.uint8 and blocks.codes.shape == rows.shape and blocks.codes.max() <= 15
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32)), mode="edge").reshape(len(rows), -1, 32)
    low, high = padded.min(axis=2), padded.max(axis=2)
    # Half a step of the group's range, and what float16 takes from scale and minimum, summed over the group.
    allowed = (high - low) / 30 + np.maximum(np.abs(low), np.abs(high)) * 2**-9 + 1e-5
    error = np.pad(blocks.dequantise() - rows, ((0, 0), (0, -rows.shape[1] % 32))).reshape(padded.shape)
    assert (np.sqrt(np.square(error).sum(axis=2)) <= allowed * np.sqrt(32)).all()


def test_search_beats_plain_rounding() -> None:
    from gguf import GGMLQuantizationType, quants

    rows = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    plain = quants.dequantize(quants.quantize(rows, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    ours = quantise("q4m", rows).dequantise()
    assert np.square(ours - rows).mean() < 0.85 * np.square(plain - rows).mean()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=300), elements=FLOATS))
def test_q6k_is_within_a_step(rows: np.ndarray) -> None:
    """Half a step of rounding; the step itself, an int8 multiple of d, may be d / 2 too small at the greatest value, 32
    steps away, or too large; and d is a float16, so that rows below 1e-4 are lost."""
    blocks = quantise("q6k", rows)
    columns = rows.shape[1]
    assert blocks.codes.dtype == np.uint8 and blocks.codes.shape == rows.shape and blocks.codes.max(initial=0) <= 63
    assert blocks.s is not None and blocks.s.shape == (len(rows), 2 * -(-columns // 32))
    d = np.repeat(blocks.d.astype(np.float32), 256, axis=1)[:, :columns]
    step = np.abs(np.repeat(blocks.s.astype(np.float32), 16, axis=1)[:, :columns]) * d
    assert (np.abs(blocks.dequantise() - rows) <= 1.01 * step + 17 * d + np.abs(rows) * 2**-9 + 3e-4).all()


def test_q6k_is_about_as_good_as_its_bits() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    error = np.square(quantise("q6k", rows).dequantise() - rows).mean()
    assert error < 0.0007  # a 5-bit grid over the same range would have 0.002


@pytest.mark.parametrize("kind", ["q8", "q6k", "q4m"])
def test_constant_rows_and_extremes(kind: str) -> None:
    rows = np.zeros((4, 40), np.float32)
    rows[1], rows[2], rows[3] = 0.25, 1e9, 1e-9
    values = quantise(kind, rows).dequantise()
    assert np.isfinite(values).all()
    assert (values[0] == 0).all() and np.allclose(values[1], 0.25, rtol=1e-3) and np.allclose(values[3], 0, atol=1e-7)


def test_values_on_the_grid_stay() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (8, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    rows = (codes * np.float32(0.125) - np.float32(0.5)).astype(np.float32)
    assert np.array_equal(quantise("q4m", rows).dequantise(), rows)


@pytest.mark.parametrize(
    ("stored", "bits", "auto", "q4"),
    [
        ("Q4_0", 4.5, "q4", "q4"),
        ("Q4_1", 5.0, "q4m", "q4m"),
        ("Q8_0", 8.5, "q8", "q4m"),
        ("Q5_1", 6.0, "q4m", "q4m"),
        ("Q6_K", 6.56, "q6k", "q4m"),
        ("BF16", 16.0, "q8", "q4m"),
    ],
)
def test_choice_of_format(stored: str, bits: float, auto: str, q4: str) -> None:
    info = TensorInfo("w", (32, 32), stored, bits)
    assert choose_format(info, linear=True, quant="auto") == auto
    assert choose_format(info, linear=True, quant="q4") == q4
    assert choose_format(info, linear=True, quant="q8") == "q8"
    assert choose_format(info, linear=False, quant="f32") == "f32"
    assert choose_format(info, linear=True, quant="q6") == "q6k"
    head = {"Q4_0": "q4", "Q4_1": "q4m", "Q6_K": "q6k"}.get(stored, "q8")
    assert choose_format(info, linear=False, quant="q4") == head
    # Beside ternary layers what has no small format of its own gets 6 bits.
    assert choose_format(info, linear=False, quant="auto", ternary=True) == ("q6k" if stored == "BF16" else auto)


def test_unknown_choice(tmp_path: Path) -> None:
    from edgerun_exporters import export

    with pytest.raises(OptionError, match=r"'q5'.*auto, q4, q6, q8, f32"):
        export(tmp_path, tmp_path / "out", quant="q5")
