"""What must hold of a coded delta before a kernel, which indexes unchecked, may see it."""

from __future__ import annotations

import numpy as np

from edgerun.variants.coding import MAX_WINDOW, Coded, widened
from edgerun_kernels.record import ROWS

_LARGEST = 1 << 24


def check_coded(coded: Coded) -> str:
    """What is wrong with a coded delta; empty if nothing is."""
    n, k = coded.shape
    if not (1 <= n <= _LARGEST and 1 <= k <= _LARGEST and 0 <= coded.window <= min(MAX_WINDOW, k)):
        return f"no matrix has the shape {n} x {k} with windows of {coded.window} columns"
    if coded.bits not in (4, 8):
        return f"values of {coded.bits} bits"
    return _shapes(coded) or (_in_windows(coded) if coded.window else _in_gaps(coded))


def _shapes(coded: Coded) -> str:
    codes, scales, starts = coded.codes, coded.scales, coded.starts
    lines = 3 if coded.bits == 4 else 2
    if codes.dtype != np.uint8 or codes.ndim != 3 or codes.shape[1:] != (lines, ROWS):
        return f"codes are {codes.dtype} {list(codes.shape)}, expected uint8 [units, {lines}, {ROWS}]"
    if scales.dtype != np.uint16 or scales.shape != (coded.blocks * ROWS,):
        return f"scales are {scales.dtype} {list(scales.shape)}, expected bfloat16 [{coded.blocks * ROWS}]"
    if not np.isfinite(widened(scales)).all():
        return "scales are no finite numbers"
    if coded.window:
        units = coded.blocks * -(-coded.steps // (lines - 1))
        return "" if len(codes) == units else f"there are {len(codes)} units of codes, expected {units}"
    if starts is None or starts.dtype != np.int32 or starts.shape != (coded.blocks + 1,):
        return f"starts are no int32 [{coded.blocks + 1}]"
    if starts[0] != 0 or starts[-1] != len(codes) or (np.diff(starts.astype(np.int64)) < 0).any():
        return "starts do not ascend from 0 to the number of units"
    return ""


def _in_windows(coded: Coded) -> str:
    """Positions lie within their window, and within the row in its last one."""
    per_unit = coded.codes.shape[1] - 1
    blocks = coded.codes.reshape(coded.blocks, -1, *coded.codes.shape[1:])
    # The second step of the last unit is unused where the steps are odd; the last step's window may be shorter.
    last_unit, last_step = divmod(coded.steps - 1, per_unit)
    largest = 0
    if last_unit:
        largest = int(blocks[:, :last_unit, :per_unit].max(initial=0))
    if last_step:
        largest = max(largest, int(blocks[:, last_unit, 0].max(initial=0)))
    if largest >= coded.window:
        return f"a position is {largest}, out of its window of {coded.window} columns"
    left = coded.shape[1] - (coded.steps - 1) * coded.window
    largest = int(blocks[:, last_unit, last_step].max(initial=0))
    return f"a position is {largest}, beyond the last column, {left - 1}" if largest >= left else ""


def _in_gaps(coded: Coded) -> str:
    """Every row ends before column K, and only fillers stand where the element before them does."""
    assert coded.starts is not None
    per_unit = coded.codes.shape[1] - 1
    gaps, packed = coded.codes[:, :per_unit], coded.codes[:, per_unit]
    sums = np.cumsum(gaps.sum(axis=1, dtype=np.int64), axis=0)
    sums = np.concatenate([np.zeros((1, ROWS), np.int64), sums])
    ends = np.diff(sums[coded.starts.astype(np.int64)], axis=0)
    if int(ends.max(initial=0)) >= coded.shape[1]:
        return f"a row's positions end at column {int(ends.max())}, expected less than {coded.shape[1]}"
    again = gaps == 0
    first = coded.starts[:-1][np.diff(coded.starts) > 0]
    again[first, 0] = False  # a row's first element may stand in column 0
    values = np.stack([packed & 15, packed >> 4], axis=1) if coded.bits == 4 else packed[:, None]
    return "positions are out of order: two of a row are the same" if (again & (values != 0)).any() else ""
