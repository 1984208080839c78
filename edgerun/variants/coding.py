"""How a sparse delta lies in a variant file: 16 rows interleaved, so that one load feeds 16 rows of a kernel.

A matrix of N rows and K columns has Nb = ceil(N/16) row blocks. Its kept elements are taken in *steps*: a step has one
element of each of the 16 rows, 16 bytes of positions and 16 values. Values are integers of 4 or 8 bits times a bfloat16
scale of their row. Positions come in two forms:

- *windows*: the columns are cut into C = ceil(K/w) windows of w <= 128 columns, and every row keeps at most one element
  of each (DARE's mask, drawn so, is still uniform with drop rate 1 - 1/w). Step i is window i; a position is the column
  within the window, so the kernel takes its inputs out of registers.
- *gaps*: any mask. A position is the distance from the row's element before (the first: from column 0); where it is
  over 255, fillers of value 0 come between. Blocks have as many steps as their longest row.

=====  ========================================  =====================================================================
bits   codes uint8                               a unit
=====  ========================================  =====================================================================
8      [units, 2, 16]                            one step: 16 positions, 16 int8 values
4      [units, 3, 16]                            two steps: 16 positions, 16 positions, 16 bytes whose low nibble is the
                                                 first step's value, the high one the second's (two's complement)
=====  ========================================  =====================================================================

With windows, units = Nb * C (4 bits: Nb * ceil(C/2), the last second step unused where C is odd). With gaps, block b
has the units starts[b] to starts[b+1] - 1; starts is int32 [Nb+1]. Padding rows and steps hold position 0, value 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import ROWS

MAX_WINDOW, MAX_GAP = 128, 255
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of a row's largest magnitude that are tried as the largest that 4 bits hold."""


@dataclass(frozen=True)
class SparseDelta:
    """A sparse matrix in plain row order: what is added to the base's weights.

    shape: (N, K), output and input features. counts: int32 [N], kept elements of each row. columns: int32 [nnz],
    ascending within a row. values: float32 [nnz], already rescaled.
    """

    shape: tuple[int, int]
    counts: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]

    def rows(self) -> NDArray[np.int64]:
        """The row of every element, int64 [nnz]."""
        return np.repeat(np.arange(self.shape[0]), self.counts)

    def dense(self) -> NDArray[np.float32]:
        """float32 [N, K]."""
        whole = np.zeros(self.shape, np.float32)
        whole[self.rows(), self.columns] = self.values
        return whole

    @classmethod
    def of(cls, dense: NDArray[np.float32]) -> SparseDelta:
        """The elements of a matrix [N, K] that are not zero."""
        rows, columns = np.nonzero(dense)
        counts = np.bincount(rows, minlength=len(dense)).astype(np.int32)
        shape = (int(dense.shape[0]), int(dense.shape[1]))
        return cls(shape, counts, columns.astype(np.int32), dense[rows, columns].astype(np.float32))


@dataclass(frozen=True)
class DenseDelta:
    """A delta of a vector (a norm or a bias): float32 [n]."""

    values: NDArray[np.float32]


@dataclass(frozen=True)
class Coded:
    """A sparse delta as it lies in a file. window: columns of a window, 0: gaps. codes: uint8 [units, 2 or 3, 16].
    scales: uint16 [16 Nb], bfloat16 bits. starts: int32 [Nb+1] with gaps, else None."""

    shape: tuple[int, int]
    window: int
    bits: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint16]
    starts: NDArray[np.int32] | None = None

    @property
    def blocks(self) -> int:
        return -(-self.shape[0] // ROWS)

    @property
    def steps(self) -> int:
        """Windows of a row."""
        return -(-self.shape[1] // self.window)


def problem(delta: SparseDelta) -> str:
    """What is wrong with a delta that somebody made; empty if nothing is."""
    n, k = delta.shape
    counts, columns, values = delta.counts, delta.columns, delta.values
    if counts.shape != (n,) or columns.shape != values.shape or columns.ndim != 1 or n < 1 or k < 1:
        return f"its arrays do not fit its shape {n} x {k}"
    if (counts < 0).any() or int(counts.sum(dtype=np.int64)) != len(columns):
        return f"its rows have {int(counts.sum(dtype=np.int64))} elements in all, but there are {len(columns)}"
    if len(columns) and not (int(columns.min()) >= 0 and int(columns.max()) < k):
        return f"it has columns from {columns.min()} to {columns.max()}, expected 0 to {k - 1}"
    if (np.diff(delta.rows() * k + columns) <= 0).any():
        return "its columns do not ascend within a row"
    if not np.isfinite(values).all():
        return "it has values that are no numbers"
    return ""


# --- coding -----------------------------------------------------------------------------------------------------------


def encode(delta: SparseDelta, bits: int = 4) -> Coded:
    """The coded form; values are rounded to ``bits``, 4 or 8. Beside what dropping elements does, 4 do no harm."""
    n, k = delta.shape
    codes, scales = _quantised(delta, bits)
    window = _window(delta)
    if window:
        steps, block_steps = -(-k // window), None
        step = delta.columns // window
        position = delta.columns - step * window
        row = delta.rows()
    else:
        row, step, position, codes, block_steps = _gaps(delta, codes)
        steps = int(block_steps.max(initial=0))
    blocks, per_unit = -(-n // ROWS), 2 if bits == 4 else 1
    units = -(-steps // per_unit)
    positions = np.zeros((blocks * ROWS, units * per_unit), np.uint8)
    values = np.zeros((blocks * ROWS, units * per_unit), np.int8)
    positions[row, step], values[row, step] = position, codes
    whole = _interleaved(positions, values, blocks, units, bits)
    if block_steps is None:
        return Coded(delta.shape, window, bits, whole.reshape(-1, *whole.shape[2:]), scales)
    block_units = -(-block_steps // per_unit)
    starts = np.concatenate([[0], np.cumsum(block_units)]).astype(np.int32)
    kept = np.arange(units)[None, :] < block_units[:, None]
    return Coded(delta.shape, 0, bits, np.ascontiguousarray(whole[kept]), scales, starts)


def decode(coded: Coded) -> SparseDelta:
    """The delta that a coded one stands for, without elements of value 0."""
    n, k = coded.shape
    per_unit = coded.codes.shape[1] - 1
    positions = coded.codes[:, :per_unit].astype(np.int64)
    packed = coded.codes[:, -1]
    values = packed.view(np.int8)[:, None] if coded.bits == 8 else _nibbles(packed)
    if coded.starts is None:
        units = -(-coded.steps // per_unit)
        block = np.repeat(np.arange(coded.blocks), units)
        step = np.tile(np.arange(units), coded.blocks)[:, None] * per_unit + np.arange(per_unit)
        columns = positions + (step * coded.window)[:, :, None]
    else:
        block = np.repeat(np.arange(coded.blocks), np.diff(coded.starts))
        sums = np.cumsum(positions.reshape(-1, ROWS), axis=0)
        before = np.concatenate([np.zeros((1, ROWS), np.int64), sums])[coded.starts[:-1].astype(np.int64) * per_unit]
        columns = sums.reshape(positions.shape) - before[block][:, None]
    rows = np.broadcast_to(block[:, None, None] * ROWS + np.arange(ROWS), values.shape)
    kept = (values != 0) & (rows < n)
    row, column, value = rows[kept], columns[kept], values[kept]
    order = np.argsort(row * k + column, kind="stable")
    row, column, value = row[order], column[order], value[order]
    counts = np.bincount(row, minlength=n).astype(np.int32)
    return SparseDelta(
        coded.shape, counts, column.astype(np.int32), value.astype(np.float32) * widened(coded.scales)[row]
    )


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """[units, 16] -> [units, 2, 16]"""
    low = (packed << 4).view(np.int8) >> 4
    return np.stack([low, packed.view(np.int8) >> 4], axis=1)


def _interleaved(positions: Any, values: Any, blocks: int, units: int, bits: int) -> NDArray[np.uint8]:
    """[blocks, units, 2 or 3, 16]"""
    per_unit = 2 if bits == 4 else 1
    lanes = [
        part.reshape(blocks, ROWS, units, per_unit).transpose(0, 2, 3, 1) for part in (positions, values.view(np.uint8))
    ]
    packed = lanes[1] if bits == 8 else (lanes[1][:, :, :1] & 15) | (lanes[1][:, :, 1:] << 4)
    return np.ascontiguousarray(np.concatenate([lanes[0], packed], axis=2))


def widened(scales: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as float32."""
    return (scales.astype(np.uint32) << 16).view(np.float32)


def _narrowed(scales: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bfloat16 next above finite values that are not negative, so that no value is beyond the largest integer."""
    bits = scales.view(np.uint32)
    narrow: NDArray[np.uint16] = np.minimum((bits + 0xFFFF) >> 16, 0x7F7F).astype(np.uint16)
    return narrow


def _quantised(delta: SparseDelta, bits: int) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Integers [nnz], and the rows' scales, padded to whole blocks: of some clips the one with the least error."""
    n = delta.shape[0]
    rows, values = delta.rows(), delta.values
    most = 7 if bits == 4 else 127
    size = np.zeros(n, np.float32)
    np.maximum.at(size, rows, np.abs(values))
    best = np.full(n, np.inf)
    scale = np.zeros(n, np.float32)
    for clip in _CLIPS if bits == 4 else _CLIPS[:1]:
        tried = widened(_narrowed(size * np.float32(clip / most)))
        off = _integers(values, tried[rows], most) * tried[rows] - values
        error = np.bincount(rows, off.astype(np.float64) ** 2, minlength=n)
        better = error < best
        best[better], scale[better] = error[better], tried[better]
    scales = np.zeros(-(-n // ROWS) * ROWS, np.uint16)
    scales[:n] = _narrowed(scale)
    return _integers(values, scale[rows], most).astype(np.int8), scales


def _integers(values: NDArray[np.float32], scales: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    safe = np.where(scales > 0, scales, np.float32(1))
    rounded: NDArray[np.float32] = np.clip(np.rint(values / safe), -most, most)
    return rounded


def _window(delta: SparseDelta) -> int:
    """The window of which every row keeps at most one element, if there is one that wastes next to no room; else 0."""
    n, k = delta.shape
    most = int(delta.counts.max(initial=0))
    if most == 0 or n * most > 1.2 * len(delta.columns) + 64:
        return 0
    keys, columns = delta.rows() * k, delta.columns.astype(np.int64)
    few = min(len(columns), 4096)
    for window in range(-(-k // (most + 1)), min(MAX_WINDOW, k) + 1):  # the last, shorter one may be kept by nobody
        if -(-k // window) < most:
            return 0
        for count in (few, len(columns)):
            if (np.diff(keys[:count] + columns[:count] // window) <= 0).any():
                break
        else:
            return window
    return 0


def _gaps(delta: SparseDelta, codes: NDArray[np.int8]) -> tuple[Any, Any, Any, Any, NDArray[np.int64]]:
    """Rows, steps, gaps and values of the elements and their fillers, and the steps of each block."""
    n = delta.shape[0]
    rows, columns = delta.rows(), delta.columns.astype(np.int64)
    before = np.zeros_like(columns)
    before[1:] = columns[:-1]
    first = np.ones(len(rows), bool)
    first[1:] = rows[1:] != rows[:-1]
    before[first] = 0
    gap = columns - before
    fillers = np.maximum(gap - 1, 0) // MAX_GAP
    size = fillers + 1  # steps that an element takes, its fillers before it
    ends = np.cumsum(size)
    row = np.repeat(rows, size)
    position = np.full(len(row), MAX_GAP, np.int64)
    position[ends - 1] = gap - MAX_GAP * fillers
    value = np.zeros(len(row), np.int8)
    value[ends - 1] = codes
    per_row = np.bincount(row, minlength=-(-n // ROWS) * ROWS)
    step = np.arange(len(row)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    return row, step, position, value, per_row.reshape(-1, ROWS).max(axis=1)
