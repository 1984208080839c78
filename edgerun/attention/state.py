"""What a session keeps beside its cache for the attention policies, and the records through which kernels find it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.deltallm import STEP
from edgerun.attention.runs import Heads, Runs
from edgerun.attention.spec import Attention
from edgerun_kernels.record import BLOCK, CHUNK, LayerState
from edgerun_kernels.team import aligned


class Attended(NamedTuple):
    """Keys of one layer's key/value head that tokens were compared with: those that were read, and all before them."""

    read: int
    exact: int

    @property
    def sparsity(self) -> float:
        """The share that was not read, 0 to 1."""
        return 1 - self.read / self.exact if self.exact else 0.0


class RunCount(NamedTuple):
    """Of the positions that left the exact window, over all layers and key/value heads: how many keys are kept (of the
    form "element": elements), and of how many."""

    kept: int
    all: int

    @property
    def sparsity(self) -> float:
        """The share that is not kept, 0 to 1."""
        return 1 - self.kept / self.all if self.all else 0.0


class AttentionState:
    """For one session; its methods are called around every run, in order."""

    def __init__(self, heads: Heads, attention: Attention) -> None:
        self.heads, self.attention = heads, attention
        n = heads.n_layers
        delta = attention.delta
        chooses = np.zeros(n, bool)
        self._sparse = np.zeros(n, bool)
        if delta is not None:
            self._sparse = ~np.isin(np.arange(n), (*delta.full, *delta.select))
            chooses[list(delta.select)] = True
        raw = aligned(8 * n * LayerState.COUNT).view(np.int64)
        self.records = raw.reshape(n, LayerState.COUNT)
        """int64 [n_layers, LayerState.COUNT], for Run.ATTENTION."""
        self.runs: Runs | None = None
        self._keep: list[NDArray[Any]] = []
        self._read = self._exact = 0
        if attention.deltallm is not None:
            self.runs = Runs(heads, attention.deltallm, ~self._sparse)
            self.runs.fill(self.records)
        if delta is not None:
            self._fill(delta.budget, delta.recent)

    def _fill(self, budget: int, recent: int) -> None:
        stride = -(-self.heads.context // CHUNK) * CHUNK + CHUNK
        r, h = self.records, self.heads
        for key, shape in (
            (LayerState.WEIGHTS, (h.n_heads, stride)),
            (LayerState.LARGEST, (h.n_heads, stride // CHUNK)),
            (LayerState.NORMS, (h.n_heads, 2)),
            (LayerState.TOKENS, (h.n_kv_heads if self.runs else 0, stride)),
            (LayerState.SCORES, (stride // BLOCK,)),
        ):
            array = np.zeros(shape, np.float32)
            self._keep.append(array)
            r[:, key] = array.ctypes.data
        chosen = np.zeros(stride // BLOCK + 1, np.int64)
        self._keep.append(chosen)
        r[:, LayerState.CHOSEN] = chosen.ctypes.data
        r[:, LayerState.WEIGHTS_STRIDE] = stride
        r[:, LayerState.BUDGET], r[:, LayerState.RECENT] = budget, recent

    @property
    def bytes(self) -> int:
        """What the policies hold in memory beside the cache's pages."""
        return sum(a.nbytes for a in (self.records, *self._keep)) + (self.runs.bytes if self.runs else 0)

    @property
    def attended(self) -> Attended:
        """Since the last reset."""
        return Attended(self._read, self._exact)

    @property
    def run_count(self) -> RunCount:
        """Of what the session holds."""
        if self.runs is None:
            return RunCount(0, 0)
        layers = int(self.runs.layers.sum())
        tokens = self.runs.exact * layers * self.heads.n_kv_heads
        if self.runs.limits is None:
            return RunCount(int(self.runs.counts.sum()), tokens)
        return RunCount(int(self.runs.elements.sum()), tokens * self.heads.head_dim)

    def most_rows(self, position: int) -> int:
        """How many tokens the run that begins at ``position`` may have: what they see begins at the same place."""
        return STEP - position % STEP if self.runs is not None else 1 << 30

    @property
    def first_needed(self) -> int:
        """The cache's positions below it are read by nobody any more."""
        return self.runs.oldest if self.runs is not None and not self._sparse.any() else 0

    def before(self, position: int) -> None:
        """Before a run. Raises MemoryError."""
        if self.runs is not None:
            self.runs.before(position, self.records)

    def after(self, position: int, n_rows: int) -> None:
        """After that run of ``n_rows`` tokens."""
        h = self.heads
        before = n_rows * position + n_rows * (n_rows + 1) // 2  # keys that each of the rows sees, itself included
        n_sparse = int(self._sparse.sum())
        self._exact += before * h.n_layers * h.n_kv_heads
        dense = h.n_layers - n_sparse
        if self.runs is None:
            self._read += before * dense * h.n_kv_heads
        else:
            self.runs.after(self.records)
            self._read += n_rows * int(self.runs.counts.sum())
            self._read += (before - n_rows * self.runs.exact) * dense * h.n_kv_heads
        if n_sparse:
            seen = before
            if n_rows == 1 and self.attention.delta is not None:
                pages = min(position // BLOCK + 1, self.attention.delta.budget)
                seen = (pages - 1) * BLOCK + position % BLOCK + 1
            self._read += seen * n_sparse * h.n_kv_heads

    def cancel(self) -> None:
        """Instead of ``after``, where the run was interrupted."""
        if self.runs is not None:
            self.runs.cancel()

    def rewind(self, n_tokens: int) -> bool:
        """Goes back to ``n_tokens`` positions; False if that cannot be done without computing them again."""
        return self.runs is None or self.runs.rewind(n_tokens)

    def fork(self, position: int) -> AttentionState:
        """A copy for a session with a copy of the cache."""
        other = AttentionState(self.heads, self.attention)
        other._read, other._exact = self._read, self._exact
        if self.runs is not None and other.runs is not None:
            other.runs.load(self.runs.arrays(), position)
        return other
