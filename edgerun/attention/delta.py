"""DELTA: dynamic layer-aware token attention (arXiv 2510.09883; the authors' code: hoenza/DELTA), for decode.

Layers are of three kinds. The first few have *full* attention; a few Δ-layers (*selecting*) have it too and choose
pages of 16 tokens from their own probabilities p; all others are *sparse*: they attend to the pages that the last
Δ-layer below them chose for this same token. A page's score is the sum over its tokens of max over heads of p. The last
``recent`` pages are always chosen; of equal pages the older is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import BLOCK

SPAN = BLOCK
"""Tokens in a page: a block of the cache."""


@dataclass(frozen=True)
class Delta:
    """full, select: layers, ascending; the others are sparse.  budget: pages that a sparse layer attends to.  recent:
    the last pages, always among them.  refresh: tokens after which a selecting layer chooses anew (``selection.py``);
    the paper's is 1."""

    full: tuple[int, ...]
    select: tuple[int, ...]
    budget: int
    recent: int = 8
    refresh: int = 1

    @property
    def ahead(self) -> int:
        """How many of a page's last positions count for the page behind it too: what attends to one of them may attend
        to the positions behind it before it is chosen anew."""
        return min(self.refresh - 1, SPAN)

    def unfed(self, n_layers: int) -> int | None:
        """The lowest sparse layer below which none selects; None where every sparse layer has one."""
        dense = {*self.full, *self.select}
        first = next((layer for layer in range(n_layers) if layer not in dense), n_layers)
        return first if first < min(self.select, default=n_layers) else None

    def share_read(self, n_layers: int, n_tokens: int, exact: float = 1.0) -> float:
        """Keys that a token behind ``n_tokens`` reads, over all; ``exact``: the share that full and selecting layers
        read of theirs."""
        dense = (len(self.full) + len(self.select) / self.refresh) / n_layers
        return dense * exact + (1 - dense) * min(1.0, self.budget * SPAN / n_tokens)


def page_scores(p: NDArray[np.float32], ahead: int = 0) -> NDArray[np.float32]:
    """float32 [ceil(T / SPAN)] of the probabilities p [n_heads, T] of one query. ahead: as ``Delta.ahead``."""
    largest = p.max(axis=0)
    pages = np.pad(largest, (0, -len(largest) % SPAN)).reshape(-1, SPAN)
    scores: NDArray[np.float32] = pages.sum(axis=1)
    scores[1:] += pages[:-1, SPAN - ahead :].sum(axis=1)
    return scores


def choose_pages(scores: NDArray[np.float32], budget: int, recent: int) -> NDArray[np.int64]:
    """The chosen pages, ascending: the last ``recent``, then the best, until there are ``budget``."""
    n = len(scores)
    wanted = np.array(scores, np.float64)
    wanted[max(0, n - recent) :] = np.inf
    best = np.argsort(-wanted, kind="stable")[: min(budget, n)]
    return np.sort(best)
