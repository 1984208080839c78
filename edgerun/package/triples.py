"""How ternary weights lie in codes of three columns (``ternary_triples``): packing in numpy, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import UNIT_COLUMNS, UNIT_ROWS, units_a_part

Array = NDArray[Any]
_PLACES = np.array([1, 3, 9])[:, None]
_LINES, _CODES = 5, 16


def shape(n: int, k: int) -> tuple[int, ...]:
    """The shape of the codes of an n x k matrix: parts of columns, blocks of 32 rows, units of 48 columns, lines, rows,
    bytes."""
    units = units_a_part(k)
    return -(-k // (units * UNIT_COLUMNS)), -(-n // UNIT_ROWS), units, _LINES, UNIT_ROWS // 2, 4


def packed(trits: Array) -> Array:
    """uint8 `shape(N, K)` of trits 0, 1, 2 [N, K]; padding is 1."""
    n, k = trits.shape
    n_parts, n_blocks, units = shape(n, k)[:3]
    padded = np.ones((n_blocks * UNIT_ROWS, n_parts * units * UNIT_COLUMNS), np.uint16)
    padded[:n, :k] = trits
    # block, half, row, part, unit, third, code -> part, block, unit, code, row, half
    thirds = padded.reshape(n_blocks, 2, UNIT_ROWS // 2, n_parts, units, 3, _CODES)
    codes = (thirds * _PLACES.astype(np.uint16)).sum(5, dtype=np.uint16).transpose(3, 0, 4, 5, 2, 1)
    words = np.empty((n_parts, n_blocks, units, _LINES, UNIT_ROWS // 2, 2), "<u2")
    for line in range(_LINES):
        first, second, third = (codes[:, :, :, 3 * line + i] for i in range(3))
        bit = codes[:, :, :, -1] >> line & 1
        words[:, :, :, line] = first | second << 5 | third << 10 | bit << 15
    return words.view(np.uint8)


def unpacked(q: Array) -> Array:
    """uint8 trits [32 blocks, 48 units] of what `packed` gives."""
    words = np.ascontiguousarray(q).view("<u2")
    codes = np.empty((*words.shape[:3], _CODES, *words.shape[4:]), np.uint8)
    for line in range(_LINES):
        for i in range(3):
            codes[:, :, :, 3 * line + i] = words[:, :, :, line] >> 5 * i & 31
    bits = words >> 15 << np.arange(_LINES, dtype=np.uint16)[:, None, None]
    codes[:, :, :, -1] = bits.sum(3)
    thirds = np.stack((codes % 9 % 3, codes % 9 // 3, codes // 9), axis=3)
    rows: Array = thirds.transpose(1, 6, 5, 0, 2, 3, 4)
    return rows.reshape(rows.shape[0] * UNIT_ROWS, -1)
