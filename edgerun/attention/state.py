"""What a session keeps beside its cache for the attention policies, and the records through which kernels find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.delta import Delta
from edgerun.attention.deltallm import STEP
from edgerun.attention.runs import Heads, Runs
from edgerun.attention.selection import Selection
from edgerun.attention.spec import Attention
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import BLOCK, CHUNK, LayerState, Mode


class Attended(NamedTuple):
    """Keys of one layer's key/value head that tokens were compared with: those that were read, and all before them."""

    read: int
    exact: int

    @property
    def sparsity(self) -> float:
        """The share that was not read, 0 to 1."""
        return 1 - self.read / self.exact if self.exact else 0.0


class RunCount(NamedTuple):
    """How many keys are kept of the positions that left the exact window, and of how many, over all layers and
    key/value heads; of the form "element", how many elements."""

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
        self._sparse = np.zeros(n, bool)
        if delta is not None:
            self._sparse = ~np.isin(np.arange(n), (*delta.full, *delta.select))
        has_runs = ~self._sparse & (attention.deltallm is not None)
        raw = aligned(8 * n * LayerState.COUNT).view(np.int64)
        self.records = raw.reshape(n, LayerState.COUNT)
        """int64 [n_layers, LayerState.COUNT], for a sequence's record."""
        self.address = int(raw.ctypes.data)
        self.records[:, LayerState.MODE] = np.where(self._sparse, Mode.PAGES, np.where(has_runs, Mode.RUNS, Mode.ALL))
        if delta is not None:
            self.records[list(delta.select), LayerState.EXPORT] = 1
        self.runs: Runs | None = None
        self.selection: Selection | None = None
        self._keep: list[NDArray[Any]] = []
        self._read = self._exact = 0
        if attention.deltallm is not None:
            self.runs = Runs(heads, attention.deltallm, has_runs)
            self.runs.fill(self.records)
        if delta is not None:
            self._fill(delta)

    def _fill(self, delta: Delta) -> None:
        stride = -(-self.heads.context // CHUNK) * CHUNK + CHUNK
        r, h = self.records, self.heads
        for key, shape in (
            (LayerState.WEIGHTS, (h.n_heads, stride)),
            (LayerState.LARGEST, (h.n_heads, stride // CHUNK)),
            (LayerState.NORMS, (h.n_heads, 2)),
            (LayerState.TOKENS, (h.n_kv_heads if self.runs else 0, stride)),
            (LayerState.SCORES, (stride // BLOCK,)),
            (LayerState.SPILLED, (stride // BLOCK + 1,)),
        ):
            array = np.zeros(shape, np.float32)
            self._keep.append(array)
            r[:, key] = array.ctypes.data
        self.selection = Selection(delta, h.context)
        self._select = np.array(delta.select, np.int64)
        self._feeds = np.searchsorted(self._select, np.arange(h.n_layers), side="right") - 1
        """Whose pages each layer attends to, of those that select; -1 below all of them."""
        for layer in np.flatnonzero(self._feeds >= 0):
            r[layer, LayerState.CHOSEN] = self.selection.lists[self._feeds[layer]].ctypes.data
        r[:, LayerState.WEIGHTS_STRIDE] = stride
        r[:, LayerState.BUDGET], r[:, LayerState.RECENT] = delta.budget, delta.recent
        r[:, LayerState.AHEAD] = delta.ahead

    @property
    def bytes(self) -> int:
        """What the policies hold in memory beside the cache's pages."""
        parts = [part.bytes for part in (self.runs, self.selection) if part is not None]
        return sum(a.nbytes for a in (self.records, *self._keep)) + sum(parts)

    @property
    def attended(self) -> Attended:
        """How much was read since the last reset, and how much exact attention would have read."""
        return Attended(self._read, self._exact)

    @property
    def run_count(self) -> RunCount:
        """How many keys are kept of what the session holds."""
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

    def before(self, position: int, n_rows: int) -> None:
        """Before a run of ``n_rows`` tokens. Raises MemoryError."""
        if self.selection is not None:
            self.selection.before(position, n_rows)
            self.records[self._select, LayerState.HELD] = self.selection.held
        if self.runs is not None:
            self.runs.before(position, self.records)

    def after(self, position: int, n_rows: int) -> None:
        """After that run of ``n_rows`` tokens."""
        h = self.heads
        before = n_rows * position + n_rows * (n_rows + 1) // 2  # keys that each of the rows sees, itself included
        seen = np.full(h.n_layers, before, np.int64)  # by each layer's heads
        if self.runs is not None:
            self.runs.after(self.records)
            seen -= n_rows * self.runs.exact * self.runs.layers
        compact = 0 if self.runs is None else n_rows * self.runs.counts.sum(axis=1)
        if self.selection is not None:
            self.selection.after(position, n_rows)
            if n_rows == 1:
                paged = self._sparse.copy()
                paged[self._select] = self.selection.held
                pages = self.selection.lists[self._feeds, 0]
                seen = np.where(paged, (pages - 1) * BLOCK + position % BLOCK + 1, seen)
                compact = np.where(paged, 0, compact)
        self._exact += before * h.n_layers * h.n_kv_heads
        self._read += int((seen * h.n_kv_heads + compact).sum())

    def cancel(self, position: int) -> None:
        """Instead of ``after``, where the run that began at ``position`` was interrupted."""
        if self.runs is not None:
            self.runs.cancel()
        if self.selection is not None:
            self.selection.rewind(position)

    def rewind(self, n_tokens: int) -> bool:
        """Goes back to ``n_tokens`` positions; False if that cannot be done without computing them again."""
        if self.runs is not None and not self.runs.rewind(n_tokens):
            return False
        if self.selection is not None:
            self.selection.rewind(n_tokens)
        return True

    def fork(self, position: int) -> AttentionState:
        """A copy for a session with a copy of the cache."""
        other = AttentionState(self.heads, self.attention)
        other._read, other._exact = self._read, self._exact
        other.load(self.arrays(), position)
        return other

    def arrays(self) -> dict[str, NDArray[Any]]:
        """A copy of it all, for ``load``: arrays by name."""
        found: dict[str, NDArray[Any]] = {}
        for name, part in (("runs", self.runs), ("selection", self.selection)):
            if part is not None:
                found |= {f"{name}.{key}": array for key, array in part.arrays().items()}
        return found

    def load(self, arrays: Mapping[str, NDArray[Any]], position: int) -> None:
        """Takes what ``arrays`` gave, for a cache of ``position`` positions. Raises ValueError, KeyError for anything
        else."""
        for name, part in (("runs", self.runs), ("selection", self.selection)):
            if part is not None:
                prefix = f"{name}."
                part.load({key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}, position)
