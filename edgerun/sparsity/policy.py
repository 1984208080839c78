"""What sessions that leave columns unread run with, beside the tape that all sessions of a model run: a table of
policies, one record a projection (see ``edgerun_kernels.record.Skip``). Where one row runs, the op behind the
quantisation of a projection's input looks there; several rows take all columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.program.tape import Tape
from edgerun.sparsity.columns import Columns
from edgerun.sparsity.delta_activations import DeltaActivations
from edgerun.sparsity.method import Method
from edgerun.sparsity.projections import TERNARY, Projection
from edgerun.sparsity.threshold import Threshold
from edgerun.sparsity.zero import Zero
from edgerun_kernels.layouts import Head, Projected
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import (
    Lines,
    Skip,
    activation_bytes,
    list_scratch_bytes,
    row_activation_bytes,
    state_sums,
    ternary_scratch_bytes,
)
from edgerun_kernels.registry import Op

PARTS = ((2048, 4), (4096, 2))
"""Up to so many bytes of a column, groups are summed up in so many parts, which threads then share; in one where
columns are long enough to be shared themselves."""
WORTH_WHILE = ((320, 0.48), (768, 0.62), (1280, 0.78), (2048, 0.8), (4096, 0.84), (1 << 62, 0.88))
"""Up to so many bytes of a column, the share of columns below which reading them one by one was measured to be faster
than reading all: memory gives long runs faster than short ones."""
PART_WITH_MINIMA, PART_WITH_RUNNING_SUMS = 0.6, {"q4": 0.35, "q8": 0.35, "q4m": 0.04}
"""The part of that share that is left where minima are multiplied, which is done for whole groups as for scales; and
with sums in float64, which double that work, or do it many times over with minima, and changes of two terms each."""
TERNARY_WORTH_WHILE = ((2048, 0.76), (1 << 62, 0.83))
"""Likewise, of ternary layers; their columns are summed up in integers."""
ANY = 1 << 40


LINES = {
    "q4": Lines.Q4,
    "q4m": Lines.Q4,
    "q8": Lines.Q8,
    "ternary": Lines.TERNARY,
    "ternary_triples": Lines.TERNARY,
    "ternary_columns": Lines.OWN,
}


class Chosen(NamedTuple):
    """A projection whose columns are skipped, and how."""

    projection: Projection
    columns: Columns
    method: Method


@dataclass(frozen=True, eq=False)
class Policy:
    """What sessions with one setting of activation sparsity share; immutable.

    table: int64 [1 + projections of the tape, Skip.COUNT], for Run.SPARSITY; its record 0 is of no projection.
    chosen: those that skip columns, by their record in the table.  arena_bytes: what a run's arena must have, the
    tape's own included.  state_bytes: what a session keeps for Run.RUNNING, zeros at first; 0: nothing.
    """

    table: NDArray[np.int64]
    chosen: Mapping[int, Chosen]
    arena_bytes: int
    state_bytes: int
    arrays: list[NDArray[Any]] = field(repr=False)
    """Everything that the table points to, kept alive."""

    def most(self, index: int) -> int:
        """The columns of the projection of this record that are read one by one at most."""
        return min(int(self.table[index, Skip.MOST]), self.chosen[index].projection.k)


def make_policy(tape: Tape, chosen: Sequence[Chosen], n_threads: int) -> Policy:
    """The policy that skips columns of these projections of the tape, for teams of ``n_threads``."""
    count = max((int(op[Projected.PROJECTION]) for op in tape.ops if op[Head.CODE] == Op.SKIP_COLUMNS), default=0)
    table = aligned(8 * Skip.COUNT * (1 + count)).view(np.int64).reshape(1 + count, Skip.COUNT)
    rooms, arena_bytes, state_bytes = _rooms(tape, chosen, n_threads)
    arrays: list[NDArray[Any]] = []
    by_index = {}
    for one, room in zip(chosen, rooms, strict=True):
        projection, columns, method = one
        arrays += [*columns.arrays.values(), columns.worth]
        index = int(tape.ops[projection.records[0], Projected.PROJECTION])
        by_index[index], record = one, table[index]
        record[Skip.LINES] = LINES[projection.fmt]
        for key, name in ((Skip.W, "q"), (Skip.D, "d"), (Skip.M, "m")):
            record[key] = columns.arrays[name].ctypes.data if name in columns.arrays else 0
        record[Skip.WORTH] = columns.worth.ctypes.data
        record[Skip.MOST] = ANY if projection.fmt == "ternary_columns" else most_columns(projection, type(method))
        record[Skip.PARTS], record[Skip.STACK] = n_parts(projection), projection.stack
        for key, value in room.items():
            record[key] = value
        method.fill(record)
    return Policy(table, by_index, arena_bytes, state_bytes, arrays)


def most_columns(projection: Projection, method: type[Method] = Threshold) -> int:
    """How many of its columns are read one by one with a method, at most."""
    if projection.fmt == "ternary_columns":
        return projection.k
    table = TERNARY_WORTH_WHILE if projection.fmt in TERNARY else WORTH_WHILE
    share = next(share for limit, share in table if projection.run_bytes <= limit)
    if method is DeltaActivations:
        share *= PART_WITH_RUNNING_SUMS[projection.fmt]
    elif projection.fmt == "q4m":
        share *= PART_WITH_MINIMA
    return int(projection.k * share)


def may_pay(projection: Projection, method: Method) -> bool:
    """Whether it is worth trying: not where a fixed share of the inputs is too many anyway, nor where zeros are skipped
    without being asked; and not delta activations for ternary layers, see there."""
    if projection.fmt in TERNARY and isinstance(method, DeltaActivations):
        return False
    if projection.fmt == "ternary_columns" and isinstance(method, Zero):
        return False
    return not isinstance(method, Threshold) or method.keep * projection.k <= most_columns(projection)


def n_parts(projection: Projection) -> int:
    return next((count for limit, count in PARTS if projection.run_bytes <= limit), 1)


def _rooms(tape: Tape, chosen: Sequence[Chosen], n_threads: int) -> tuple[list[dict[Skip, int]], int, int]:
    """Room for each projection's lists and sums, behind the tape's own arena, and the sizes of arena and state.
    Projections of different inputs share theirs: an input is only there when all threads are done with the one before.
    """
    rooms: list[dict[Skip, int]] = []
    start = -(-tape.arena_bytes // 64) * 64
    end = largest = start
    state = 0
    for i, (projection, _, method) in enumerate(chosen):
        same_input = i > 0 and chosen[i - 1].projection.quantize == projection.quantize
        lists = end if same_input else start
        ternary = projection.fmt in TERNARY
        k, stack = projection.k, projection.stack
        private = -(-(ternary_scratch_bytes(stack, k) if ternary else list_scratch_bytes(k)) // 64) * 64
        row, row_bytes = lists + private * n_threads, (row_activation_bytes if ternary else activation_bytes)(k, 1)
        sums = row + row_bytes * n_threads
        end = sums if ternary else sums + 4 * n_parts(projection) * stack
        largest = max(largest, end)
        rooms.append(
            {
                Skip.LISTS: lists,
                Skip.LISTS_PRIVATE: private,
                Skip.ROW: row,
                Skip.ROW_PRIVATE: row_bytes,
                Skip.SUMS: sums,
                Skip.RUNNING: state,
            }
        )
        if isinstance(method, DeltaActivations):
            state += -(-(state_sums(projection.k) + 8 * n_parts(projection) * projection.stack) // 64) * 64
    return rooms, largest, state
