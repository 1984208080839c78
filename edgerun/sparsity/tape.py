"""A sparse tape: where one row runs, its projections read only the columns that a policy leaves; several rows take all.

The records of a projection's layers stay, as those that join what its columns came to; where that was not worth while,
and for several rows, they multiply by all columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package.layout import ROWS
from edgerun.program.tape import Tape
from edgerun.sparsity.columns import Columns
from edgerun.sparsity.delta import Delta
from edgerun.sparsity.method import Method, Room
from edgerun.sparsity.projections import TERNARY, Projection
from edgerun.sparsity.threshold import Threshold
from edgerun.sparsity.zero import Zero
from edgerun_kernels.record import (
    Field,
    Op,
    activation_bytes,
    list_scratch_bytes,
    row_activation_bytes,
    state_sums,
    ternary_scratch_bytes,
)

WHERE_SKIPPED = 3
"""When threads wait behind the op: of Field.BARRIER."""
PARTS = ((2048, 4), (4096, 2))
"""Up to so many bytes of a column, groups are summed up in so many parts, which threads then share; in one where
columns are long enough to be shared themselves."""
WORTH_WHILE = ((320, 0.48), (768, 0.62), (1280, 0.78), (2048, 0.8), (4096, 0.84), (1 << 62, 0.88))
"""Up to so many bytes of a column, the share of columns below which reading them one by one was measured to be faster
than reading all: memory gives long runs faster than short ones."""
PART_WITH_MINIMA, PART_OF_DELTA = 0.6, {"q4": 0.35, "q8": 0.35, "q4m": 0.04}
"""Of that share, what is left where minima are multiplied, which is done for whole groups as for scales; and with sums
in float64, which double that work, or do it many times over with minima, and changes of two terms each."""
TERNARY_WORTH_WHILE = ((2048, 0.76), (1 << 62, 0.83))
"""Likewise, of ternary layers; their columns are summed up in integers."""
ANY = 1 << 40


class Chosen(NamedTuple):
    """A projection whose columns are skipped, and how."""

    projection: Projection
    columns: Columns
    method: Method


def with_columns(tape: Tape, chosen: Sequence[Chosen], n_threads: int) -> Tape:
    """The tape that skips columns of these projections, which are of its own."""
    ops = [np.array(op) for op in tape.ops]
    behind: dict[int, list[tuple[str, NDArray[np.int64]]]] = {}
    arrays: list[NDArray[Any]] = [*tape.arrays, tape.ops]
    rooms, arena_bytes, state_bytes = _rooms(tape, chosen, n_threads)
    for one, (room, sums) in zip(chosen, rooms, strict=True):
        projection, columns, method = one
        quantize = ops[projection.quantize]
        arrays += [*columns.arrays.values(), columns.worth]
        if projection.fmt == "ternary_columns":  # its own layers skip what is zero, of the row that they are given
            added = method.records(quantize, projection, columns, room)
            added[-1][Field.MOST] = ANY
            for record in projection.records:
                for op in ops[record : record + 2]:  # the sums, and what joins them
                    op[Field.UP], op[Field.MOST] = added[-1][Field.Y], projection.k
            behind.setdefault(projection.quantize, []).extend((f"{projection.name}.columns", op) for op in added)
            continue
        skipping = _skipping(one, ops, room, sums)
        kept = method.records(quantize, projection, columns, room)
        for op in kept:
            op[Field.MOST], skipping[Field.KEEPS] = skipping[Field.MOST], 1
        added = [*kept, skipping]
        runs = isinstance(method, Delta)
        if runs:
            skipping[Field.CODE] = Op.COLUMNS_DELTA_Q8 if projection.fmt == "q8" else Op.COLUMNS_DELTA_Q4
        if len(added) > 1:
            skipping[Field.X], skipping[Field.X_PRIVATE] = (added[-2][field] for field in (Field.Y, Field.Y_PRIVATE))
        behind.setdefault(projection.quantize, []).extend((f"{projection.name}.columns", record) for record in added)
        start = 0
        for record, n in zip(projection.records, projection.rows, strict=True):
            ops[record][Field.DENSE] = ops[record][Field.CODE]
            ops[record][Field.CODE] = Op.JOIN_DELTA if runs else _join(projection)
            ops[record][Field.START], ops[record][Field.UP] = start, skipping[Field.X]
            if projection.fmt in TERNARY:
                ops[record][Field.SUMS], ops[record][Field.STACK] = room.scratch, room.private
            else:
                for field in (Field.SCRATCH, Field.SCRATCH_PRIVATE, Field.SUMS, Field.PARTS, Field.STACK):
                    ops[record][field] = skipping[field]
                ops[record][Field.RUNNING] = skipping[Field.RUNNING]
            start += -(-n // ROWS) * ROWS
    records, names = [], []
    for i, op in enumerate(ops):
        records += [op, *(record for _, record in behind.get(i, []))]
        names += [tape.names[i], *(name for name, _ in behind.get(i, []))]
    whole = np.ascontiguousarray(np.stack(records))
    return replace(tape, ops=whole, names=tuple(names), arrays=arrays, arena_bytes=arena_bytes, state_bytes=state_bytes)


def most_columns(projection: Projection, method: type[Method] = Threshold) -> int:
    """Of its columns, as many as are read one by one at most with a method."""
    if projection.fmt == "ternary_columns":
        return projection.k
    table = TERNARY_WORTH_WHILE if projection.fmt in TERNARY else WORTH_WHILE
    share = next(share for limit, share in table if projection.run_bytes <= limit)
    if method is Delta:
        share *= PART_OF_DELTA[projection.fmt]
    elif projection.fmt == "q4m":
        share *= PART_WITH_MINIMA
    return int(projection.k * share)


def may_pay(projection: Projection, method: Method) -> bool:
    """Whether it is worth trying: not where a fixed share of the inputs is too many anyway, nor where zeros are skipped
    without being asked; and not delta for ternary layers, see ``delta``."""
    if projection.fmt in TERNARY and isinstance(method, Delta):
        return False
    if projection.fmt == "ternary_columns" and isinstance(method, Zero):
        return False
    return not isinstance(method, Threshold) or method.keep * projection.k <= most_columns(projection)


def n_parts(projection: Projection) -> int:
    return next((count for limit, count in PARTS if projection.run_bytes <= limit), 1)


def _rooms(tape: Tape, chosen: Sequence[Chosen], n_threads: int) -> tuple[list[tuple[Room, int]], int, int]:
    """Room for each projection's lists and sums, behind the tape's own arena, and the sizes of arena and state.
    Projections of different inputs share theirs: an input is only there when all threads are done with the one before.
    """
    rooms: list[tuple[Room, int]] = []
    start = -(-tape.arena_bytes // 64) * 64
    end = largest = start
    state = 0
    for i, (projection, _, method) in enumerate(chosen):
        same_input = i > 0 and chosen[i - 1].projection.quantize == projection.quantize
        at = end if same_input else start
        ternary = projection.fmt in TERNARY
        k, stack = projection.k, projection.stack
        private = -(-(ternary_scratch_bytes(stack, k) if ternary else list_scratch_bytes(k)) // 64) * 64
        row, row_bytes = at + private * n_threads, (row_activation_bytes if ternary else activation_bytes)(k, 1)
        sums = row + row_bytes * n_threads
        end = sums if ternary else sums + 4 * n_parts(projection) * stack
        largest = max(largest, end)
        rooms.append((Room(at, private, row, row_bytes, state), sums))
        if isinstance(method, Delta):
            state += -(-(state_sums(projection.k) + 8 * n_parts(projection) * projection.stack) // 64) * 64
    return rooms, largest, state


def _join(projection: Projection) -> Op:
    return Op.JOIN_TERNARY if projection.fmt in TERNARY else Op.JOIN_COLUMNS


def _skipping(one: Chosen, ops: Sequence[NDArray[np.int64]], room: Room, sums: int) -> NDArray[np.int64]:
    projection, columns, method = one
    first = ops[projection.records[0]]
    record = np.zeros(Field.COUNT, np.int64)
    if projection.fmt in TERNARY:
        record[Field.CODE] = Op.COLUMNS_TERNARY
    else:
        record[Field.CODE] = Op.COLUMNS_Q8 if projection.fmt == "q8" else Op.COLUMNS_Q4
    record[Field.BARRIER] = WHERE_SKIPPED
    for field in (Field.X, Field.X_STRIDE, Field.X_PRIVATE, Field.K, Field.FLAGS):
        record[field] = first[field]
    record[Field.N], record[Field.STACK] = sum(projection.rows), projection.stack
    for field, name in ((Field.W, "q"), (Field.D, "d"), (Field.M, "m")):
        record[field] = columns.arrays[name].ctypes.data if name in columns.arrays else 0
    record[Field.SCRATCH], record[Field.SCRATCH_PRIVATE] = room.scratch, room.private
    record[Field.SUMS], record[Field.PARTS] = sums, n_parts(projection)
    record[Field.MOST], record[Field.RUNNING] = most_columns(projection, type(method)), room.state
    if projection.fmt in TERNARY:
        record[Field.N] = projection.stack
    return record
