"""What projections are given: their inputs at decode, token by token, as they are quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.sparsity.columns import Columns
from edgerun.sparsity.method import Room
from edgerun.sparsity.projections import projections
from edgerun.sparsity.threshold import Threshold
from edgerun_kernels.record import (
    GROUP,
    SECOND_TERM,
    TILE_HEADER,
    activation_bytes,
    first_stride,
    list_scratch_bytes,
    second_start,
    second_stride,
)

if TYPE_CHECKING:
    from edgerun.model import Model


def capture(model: Model, columns: Sequence[Columns], tokens: Sequence[int], first: int) -> list[NDArray[np.float32]]:
    """The inputs of each projection of the model's tape, [tokens from ``first`` on, k], and ``first`` is prefilled.

    Nobody else may run the model meanwhile.
    """
    tape = model.tape
    found = projections(tape)
    behind: dict[int, NDArray[np.int64]] = {}
    places: list[tuple[int, int, int]] = []
    end = -(-tape.arena_bytes // 64) * 64
    for i, (projection, theirs) in enumerate(zip(found, columns, strict=True)):
        if projection.quantize in behind:  # the same input as the one before
            places.append(places[i - 1])
            continue
        private = -(-list_scratch_bytes(projection.k) // 64) * 64
        row_bytes = activation_bytes(projection.k, 1)
        room = Room(end, private, end + private * model.threads, row_bytes, 0)
        # All inputs are at least as large as nothing: a copy where nothing else is written.
        (copy,) = Threshold(at=0).records(tape.ops[projection.quantize], projection, theirs, room)
        behind[projection.quantize] = copy
        places.append((room.row, row_bytes, projection.k))
        end = room.row + row_bytes * model.threads
    records, names = [], []
    for i, op in enumerate(tape.ops):
        added = [behind[i]] if i in behind else []
        records += [op, *added]
        names += [tape.names[i]] * (1 + len(added))
    session = model.session("none", sparsity="none")
    session.tape = replace(tape, ops=np.ascontiguousarray(np.stack(records)), names=tuple(names), arena_bytes=end)
    session.prefill(tokens[:first])
    inputs = [np.empty((len(tokens) - first, k), np.float32) for _, _, k in places]
    for t, token in enumerate(tokens[first:]):
        session.decode(token)
        for into, (start, n_bytes, k) in zip(inputs, places, strict=True):
            into[t] = values(model.arena(start, n_bytes), k)
    return inputs


def values(tile: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """The float32 [k] that a quantised row (see ``record``) stands for."""
    groups, stride, stride_2 = -(-k // GROUP), first_stride(1), second_stride(1)
    first = tile[TILE_HEADER : TILE_HEADER + groups * stride].reshape(groups, stride)
    found = first[:, :GROUP].view(np.int8).astype(np.float32)
    start, n_second = second_start(groups, 1), int(tile[:8].view(np.int64)[0])
    second = tile[start : start + n_second * stride_2].reshape(n_second, stride_2)
    found[second[:, :8].copy().view(np.int64)[:, 0]] += second[:, 8 : 8 + GROUP].view(np.int8) / np.float32(SECOND_TERM)
    row: NDArray[np.float32] = (found * first[:, GROUP : GROUP + 4].copy().view(np.float32)).ravel()[:k]
    return row
