"""What projections are given: their inputs at decode, token by token, as they are quantised."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.sparsity.projections import TERNARY, projections
from edgerun_kernels.layouts import Head
from edgerun_kernels.record import (
    GROUP,
    ROW_SCALES,
    SECOND_TERM,
    TILE_HEADER,
    Run,
    activation_bytes,
    first_stride,
    row_activation_bytes,
    second_start,
    second_stride,
)

if TYPE_CHECKING:
    from edgerun.model import Model


def capture(model: Model, tokens: Sequence[int], first: int) -> list[NDArray[np.float32]]:
    """The inputs of each projection of the model's tape, [tokens from ``first`` on, k], and ``first`` is prefilled.

    Nobody else may run the model meanwhile.
    """
    found = projections(model.tape)
    inputs = [np.empty((len(tokens) - first, projection.k), np.float32) for projection in found]
    session = model.session("none", sparsity="none")
    session.prefill(tokens[:first])

    def keep(quantize: int, run: NDArray[np.int64]) -> None:
        """Behind that op: its row lies in the arena, of every projection that it is the input of."""
        address = int(run[Run.ARENA] + model.tape.ops[quantize, Head.Y])
        for projection, into in zip(found, inputs, strict=True):
            if projection.quantize == quantize:
                ternary = projection.fmt in TERNARY
                read, n_bytes = (row_values, row_activation_bytes) if ternary else (values, activation_bytes)
                row = (ctypes.c_uint8 * n_bytes(projection.k, 1)).from_address(address)
                into[run[Run.POSITION] - first] = read(np.ctypeslib.as_array(row), projection.k)

    model.stops = {quantize + 1: partial(keep, quantize) for quantize in {one.quantize for one in found}}
    try:
        for token in tokens[first:]:
            session.decode(token)
    finally:
        model.stops = {}
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


def row_values(tile: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """The same of a quantised row with one scale."""
    scale = tile[ROW_SCALES : ROW_SCALES + 4].view(np.float32)[0]
    row: NDArray[np.float32] = tile[TILE_HEADER : TILE_HEADER + k].view(np.int8) * scale
    return row
