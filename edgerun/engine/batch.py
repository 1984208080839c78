"""What one run is given: rows of several sequences, and the records through which kernels find them."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import Run, Sequence


class Rows(NamedTuple):
    """Tokens of one sequence that follow each other, in a run.

    tokens: int64 [n], each below the vocabulary's size. position: of the first. pages: int64, the addresses of the
    sequence's cache pages, enough for all positions. n_out: how many of the last tokens' logits are wanted. attention:
    int64 [n_layers, LayerState.COUNT] of its policies, or None. variant: int64 [sites], see ``VariantTable``, or None.
    decodes: whether it is one token that policies of decoding (DELTA) apply to.
    """

    tokens: NDArray[np.int64]
    position: int
    pages: NDArray[np.int64]
    n_out: int
    attention: NDArray[np.int64] | None = None
    variant: NDArray[np.int64] | None = None
    decodes: bool = False


def run_record(batch: Several[Rows]) -> tuple[NDArray[np.int64], list[Any]]:
    """The run record of a batch, int64 [Run.COUNT], without what belongs to the model; and what must stay alive while
    it is used."""
    record = np.zeros(Run.COUNT, np.int64)
    sequences = np.zeros((len(batch), Sequence.COUNT), np.int64)
    first = first_out = 0
    for rows, sequence in zip(batch, sequences, strict=True):
        sequence[Sequence.FIRST_ROW], sequence[Sequence.N_ROWS] = first, len(rows.tokens)
        sequence[Sequence.POSITION] = rows.position
        sequence[Sequence.PAGES] = rows.pages.ctypes.data
        if rows.attention is not None:
            sequence[Sequence.ATTENTION] = rows.attention.ctypes.data
        if rows.variant is not None:
            sequence[Sequence.VARIANT] = rows.variant.ctypes.data
        sequence[Sequence.DECODES] = rows.decodes
        sequence[Sequence.FIRST_OUT], sequence[Sequence.N_OUT] = first_out, rows.n_out
        first, first_out = first + len(rows.tokens), first_out + rows.n_out
    tokens = batch[0].tokens if len(batch) == 1 else np.concatenate([rows.tokens for rows in batch])
    record[Run.N_ROWS], record[Run.N_OUT] = first, first_out
    record[Run.POSITION] = batch[0].position
    record[Run.TOKENS] = tokens.ctypes.data
    record[Run.SEQUENCES], record[Run.N_SEQUENCES] = sequences.ctypes.data, len(batch)
    record[Run.POLICIES] = any(rows.attention is not None for rows in batch)
    record[Run.VARIANTS] = any(rows.variant is not None for rows in batch)
    return record, [tokens, sequences]
