"""I2_S, the ternary format of bitnet.cpp's GGUF files (github.com/microsoft/BitNet): 2 bits a weight, a scale a tensor.

A tensor is one run of values, row after row, in blocks of 128: byte j of a block's 32 holds the values j, j + 32,
j + 64 and j + 96 from its highest two bits to its lowest, as 0, 1, 2 for -1, 0, 1. Behind the last block lie 32 bytes
of which the first four are the scale, float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .gguf_header import StoredTensor

BLOCK, _BLOCK_BYTES, _TAIL = 128, 32, 32


def stored_bytes(count: int) -> int:
    """Bytes of a tensor of ``count`` values."""
    return count // 4 + _TAIL


def rows(
    read: Callable[[int, int], npt.NDArray[np.uint8]], stored: StoredTensor, start: int, stop: int
) -> npt.NDArray[np.float32]:
    """Rows start..stop as float32. ``read(offset, count)``: bytes of the tensor. A code of 3, which no weight has,
    gives a NaN. ValueError if the scale is not positive and finite."""
    n_rows, columns = stored.shape
    first, last = start * columns // BLOCK, -(-stop * columns // BLOCK)
    packed = read(first * _BLOCK_BYTES, (last - first) * _BLOCK_BYTES).reshape(-1, 1, _BLOCK_BYTES)
    scale = read(n_rows * columns // 4, 4).view("<f4")[0]
    codes = (packed >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3).reshape(-1)
    if not 0 < scale < math.inf:
        raise ValueError(f"the scale of its ternary weights is {scale:g}, not a positive number")
    skipped = start * columns - first * BLOCK
    values = np.array([-scale, 0, scale, np.nan], np.float32)
    dense: npt.NDArray[np.float32] = values[codes[skipped : skipped + (stop - start) * columns]]
    return dense.reshape(stop - start, columns)
