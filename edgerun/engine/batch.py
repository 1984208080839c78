"""What one run is given: rows of several sequences, and the records through which kernels find them."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.memory import aligned
from edgerun_kernels.record import Run, Sequence


class Rows(NamedTuple):
    """Tokens of one sequence that follow each other, in a run.

    tokens: each below the vocabulary's size. position: of the first. n_out: how many of the last tokens' logits are
    wanted. decodes: whether it is one token that policies of decoding (DELTA) apply to. The others are addresses, which
    must stay good until the run is over: pages: of int64, the addresses of the sequence's cache pages, enough for all
    positions; attention: of int64 [n_layers, LayerState.COUNT], of its policies, or 0; variant: of int64 [sites], see
    ``VariantTable``, or 0.
    """

    tokens: Several[int]
    position: int
    n_out: int
    decodes: bool
    pages: int
    attention: int = 0
    variant: int = 0


class RunRecord:
    """The record of one run after the other. address: of int64 [Run.COUNT]."""

    def __init__(self, max_rows: int) -> None:
        raw = aligned(8 * (Run.COUNT + Sequence.COUNT * max_rows + max_rows)).view(np.int64)
        self.fields: NDArray[np.int64] = raw[: Run.COUNT]
        self._tokens = raw[Run.COUNT : Run.COUNT + max_rows]
        self._sequences = raw[Run.COUNT + max_rows :].reshape(max_rows, Sequence.COUNT)
        self.address = int(raw.ctypes.data)
        self.fields[Run.TOKENS] = self._tokens.ctypes.data
        self.fields[Run.SEQUENCES] = self._sequences.ctypes.data

    def fill(self, batch: Several[Rows]) -> None:
        """Writes what a batch says; what belongs to the model stays as it is."""
        first = first_out = policies = variants = 0
        table = []
        for rows in batch:
            n = len(rows.tokens)
            self._tokens[first : first + n] = rows.tokens
            table.append(
                (first, n, rows.position, rows.pages, rows.attention, rows.variant, rows.decodes, first_out, rows.n_out)
            )
            first, first_out = first + n, first_out + rows.n_out
            policies |= rows.attention
            variants |= rows.variant
        self._sequences[: len(table), : len(table[0])] = table
        fields = self.fields
        fields[Run.N_ROWS], fields[Run.N_OUT], fields[Run.N_SEQUENCES] = first, first_out, len(table)
        fields[Run.POSITION] = batch[0].position
        fields[Run.POLICIES], fields[Run.VARIANTS] = policies != 0, variants != 0
