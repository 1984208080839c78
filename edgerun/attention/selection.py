"""What DELTA's selecting layers chose, and how long it stands.

Beyond the paper: a token's pages are nearly those of the token before, so a selecting layer chooses anew only every
``refresh`` tokens, the layers in turn; in between it attends to what it chose, as the sparse layers above it do, and to
what has come since. Attention that copies moves on by a position a token, so that the page behind a position that is
attended to may be wanted before the next choice: see ``Delta.ahead``, without which numbers that lie on two pages were
not found. The token that follows a prefill chooses everything. Past choices are kept, so that a session that
is rewound finds the one that stood there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.delta import Delta
from edgerun_kernels.record import BLOCK

POSITION, LAYER, PAGES = 0, 1, 2
"""Columns of a past choice; its pages are padded with -1."""


class Selection:
    """lists: int64 [n_select, 1 + pages], each the number of pages and the pages, ascending, that stand for the layers
    that ``delta.select`` names."""

    def __init__(self, delta: Delta, context: int) -> None:
        self.delta = delta
        n = len(delta.select)
        most = -(-context // BLOCK)
        self.lists = np.zeros((n, 1 + most), np.int64)
        self.held = np.zeros(n, bool)
        """Of the run that goes on: which layers choose nothing."""
        self._past = np.full((0, PAGES + min(delta.budget, most)), -1, np.int32)
        self._n_past = 0
        self._begun: list[tuple[int, bool]] = []  # where tokens began to be decoded (True), or several at once to run

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        return self.lists.nbytes + self._past.nbytes

    def before(self, position: int, n_rows: int) -> None:
        """Before a run of ``n_rows`` tokens that begins at ``position``."""
        self.held[:] = False
        if n_rows == 1 and self._begun and self._begun[-1][1]:
            turn = np.arange(len(self.held)) * self.delta.refresh // len(self.held)
            self.held[:] = (position - self._begun[-1][0] + turn) % self.delta.refresh != 0
        for layer in np.flatnonzero(self.held):
            self._reach(int(layer), position)

    def after(self, position: int, n_rows: int) -> None:
        """After that run."""
        if self.delta.refresh == 1:
            return
        if not self._begun or self._begun[-1][1] != (n_rows == 1):
            self._begun.append((position, n_rows == 1))
        if n_rows == 1:
            for layer in np.flatnonzero(~self.held):
                self._keep(position, int(layer))

    def rewind(self, n_tokens: int) -> None:
        """Goes back to what stood when there were ``n_tokens``."""
        while self._begun and self._begun[-1][0] >= n_tokens:
            self._begun.pop()
        while self._n_past and self._past[self._n_past - 1, POSITION] >= n_tokens:
            self._n_past -= 1
        if self._begun and self._begun[-1][1]:
            for layer in range(len(self.held)):
                past = self._past[: self._n_past]
                last = past[np.flatnonzero(past[:, LAYER] == layer)[-1], PAGES:]
                pages = last[last >= 0]
                self.lists[layer, 0] = len(pages)
                self.lists[layer, 1 : 1 + len(pages)] = pages
                self._reach(layer, n_tokens - 1)

    def arrays(self) -> dict[str, NDArray[np.int32]]:
        """A copy of all that it was told, for ``load``."""
        begun = np.array(self._begun, np.int32).reshape(-1, 2)
        return {"past": self._past[: self._n_past].copy(), "begun": begun}

    def load(self, arrays: dict[str, NDArray[np.int32]], position: int) -> None:
        """Takes what ``arrays`` gave, of a session of ``position`` tokens. Raises ValueError for anything else."""
        past, begun = arrays["past"], arrays["begun"]
        width = self._past.shape[1]
        right = past.dtype == begun.dtype == np.int32 and past.shape[1:] == (width,) and begun.shape[1:] == (2,)
        if not right or not self._possible(past, begun, position):
            raise ValueError("the pages that were chosen are not what they must be")
        self._past, self._n_past = past.copy(), len(past)
        self._begun = [(int(first), bool(decoding)) for first, decoding in begun]
        self.rewind(position)

    def _possible(self, past: NDArray[np.int32], begun: NDArray[np.int32], position: int) -> bool:
        """Whether every list that may come of it is one: ascending pages, the last of them that of its token."""
        at, layers, pages = past[:, POSITION], past[:, LAYER], past[:, PAGES:]
        for places in (at, begun[:, 0]):
            if len(places) and not (places[0] >= 0 and (np.diff(places) >= 0).all() and places[-1] < position):
                return False
        counts = (pages >= 0).sum(axis=1)
        inside = np.arange(pages.shape[1]) < counts[:, None]
        rising = (np.diff(pages, axis=1) > 0) | ~inside[:, 1:]
        if not ((pages >= 0) == inside).all() or not rising.all() or not (counts > 0).all():
            return False
        if not (pages[np.arange(len(pages)), counts - 1] == at // BLOCK).all():
            return False
        started = [int(first) for first, decoding in begun if decoding]
        return all(  # wherever decoding began, every layer chose
            set(range(len(self.held))) <= {int(layer) for layer in layers[at == first]} for first in started
        )

    def _reach(self, layer: int, position: int) -> None:
        """Adds the pages that have been begun since a layer chose."""
        chosen = self.lists[layer]
        for page in range(int(chosen[chosen[0]]) + 1, position // BLOCK + 1):
            chosen[0] += 1
            chosen[chosen[0]] = page

    def _keep(self, position: int, layer: int) -> None:
        if self._n_past == len(self._past):
            more = np.full((max(16, len(self._past) // 2), self._past.shape[1]), -1, np.int32)
            self._past = np.concatenate([self._past, more])
        row = self._past[self._n_past]
        row[:] = -1
        row[POSITION], row[LAYER] = position, layer
        count = int(self.lists[layer, 0])
        row[PAGES : PAGES + count] = self.lists[layer, 1 : 1 + count]
        self._n_past += 1
