"""What DeltaLLM keeps of a session: every head's runs, in blocks like the cache's, and how to take back the last."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.deltallm import STEP, DeltaLLM
from edgerun.program.ops import Program
from edgerun_kernels.memory import HUGE, aligned
from edgerun_kernels.record import BLOCK, LayerState, block_bytes, padded_head, undo_bytes

POOL_BLOCKS = 64
"""Blocks that are allocated together, at least; more once there are many, up to a large page."""
MOST_UNDO = 2
"""Steps that can be taken back: a session can be rewound by so many and the window without computing anything again."""


class Heads(NamedTuple):
    """The shape of a model's attention. cache: the format of keys and values. context: the most positions."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    cache: str
    context: int

    @classmethod
    def of(cls, program: Program, cache: str, context: int) -> Heads:
        """The heads of a program, for a cache type and a context."""
        return cls(program.n_layers, program.n_heads, program.n_kv_heads, program.head_dim, cache, context)


@dataclass
class Undo:
    """exact: from where positions were exact. elements: as Runs'. kept: uint8 [layers that have runs, n_kv_heads,
    undo_bytes], as the kernel wrote it."""

    exact: int
    elements: NDArray[np.int64]
    kept: NDArray[np.uint8]


class Runs:
    """counts: int64 [n_layers, n_kv_heads].  starts: int32 [n_layers, n_kv_heads, 16 most].  blocks: int64 [n_layers,
    n_kv_heads, most], addresses, 0 where there is none yet.  open: float32 [n_layers, n_kv_heads, padded], of the last
    runs.  elements: int64 [n_layers, n_kv_heads], that were transmitted.  exact: from where positions are exact.
    layers: bool [n_layers], which layers have runs."""

    def __init__(self, heads: Heads, policy: DeltaLLM, layers: NDArray[np.bool_]) -> None:
        self.heads, self.policy, self.layers = heads, policy, layers
        self.padded = padded_head(heads.cache, heads.head_dim)
        self.entry_bytes = -(-(block_bytes(heads.cache, heads.head_dim) + 4 * BLOCK) // 64) * 64
        self.undo_bytes = undo_bytes(heads.cache, heads.head_dim)
        self.most = -(-heads.context // STEP) * (STEP // BLOCK)
        every = (heads.n_layers, heads.n_kv_heads)
        self.counts = np.zeros(every, np.int64)
        self.elements = np.zeros(every, np.int64)
        self.starts = np.zeros((*every, BLOCK * self.most), np.int32)
        self.blocks = np.zeros((*every, self.most), np.int64)
        self.open = np.zeros((*every, self.padded), np.float32)
        self.theta = np.ascontiguousarray(policy.theta, np.float32)
        self.limits: NDArray[np.float32] | None = None
        if policy.form == "element":
            assert policy.spread is not None
            self.limits = np.zeros((*every, self.padded), np.float32)
            self.limits[..., : heads.head_dim] = policy.theta[..., None] * policy.spread
        self.logarithms = np.log(np.maximum(np.arange(heads.context + 1), 1)).astype(np.float32)
        self.exact = 0
        self._have = np.zeros(every, np.int64)
        self._pools: list[NDArray[np.uint8]] = []
        self._free: list[int] = []
        self._undo: list[Undo] = []
        self._next: Undo | None = None

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        lists = 4 * int(self.counts.sum()) + 8 * int(self._have.sum())  # of zeros behind, the system gives none
        arrays: list[NDArray[Any]] = [self.open, self.logarithms, *self._pools]
        return lists + sum(a.nbytes for a in (*arrays, *(undo.kept for undo in self._undo)))

    @property
    def oldest(self) -> int:
        """The first position that must stay in the cache: it may have to become exact again."""
        return self._undo[0].exact if self._undo else self.exact

    def fill(self, records: NDArray[np.int64]) -> None:
        """Writes the fields of every LayerState that stay the same."""
        for layer, record in enumerate(records):
            for key, array in (
                (LayerState.COUNTS, self.counts),
                (LayerState.BLOCKS, self.blocks),
                (LayerState.STARTS, self.starts),
                (LayerState.OPEN, self.open),
                (LayerState.THETA, self.theta),
                (LayerState.ELEMENTS, self.elements),
            ):
                record[key] = array[layer].ctypes.data
            record[LayerState.LIMITS] = 0 if self.limits is None else self.limits[layer].ctypes.data
            record[LayerState.MOST_BLOCKS] = self.most
            record[LayerState.SINKS] = self.policy.sinks
            record[LayerState.LOGARITHMS] = self.logarithms.ctypes.data
            record[LayerState.UNDO_BYTES] = self.undo_bytes

    def before(self, position: int, records: NDArray[np.int64]) -> None:
        """Before a run that begins at ``position``: makes room for the runs of what leaves the window. Raises
        MemoryError; nothing has changed then."""
        target = max(self.exact, self.policy.exact_from(position))
        self._next = None
        if target > self.exact:
            self._reserve(target - self.exact)
            shape = (int(self.layers.sum()), self.heads.n_kv_heads, self.undo_bytes)
            kept = aligned(math.prod(shape)).reshape(shape)
            kept[..., :8] = 255  # a number of runs of -1, until the kernel has been there
            self._next = Undo(self.exact, self.elements.copy(), kept)
            records[self.layers, LayerState.UNDO] = [layer.ctypes.data for layer in kept]
        records[:, LayerState.EXACT_FROM] = self.exact
        records[:, LayerState.EXACT_TO] = target

    def after(self, records: NDArray[np.int64]) -> None:
        """After that run."""
        self.exact = int(records[0, LayerState.EXACT_TO])
        if self._next is not None:
            self._undo = [*self._undo, self._next][-MOST_UNDO:]

    def rewind(self, n_tokens: int) -> bool:
        """Goes back to what was there when the cache held ``n_tokens``; False if that is too long ago."""
        wanted = self.policy.exact_from(n_tokens)
        if wanted < self.oldest:
            return False
        while self.exact > wanted:
            self._take_back(self._undo.pop())
        return True

    def cancel(self) -> None:
        """Instead of ``after``, where the run was interrupted."""
        if self._next is not None:
            self._take_back(self._next)
            self._next = None

    def _take_back(self, undo: Undo) -> None:
        for layer, kept in zip(np.flatnonzero(self.layers), undo.kept, strict=True):
            for head in range(self.heads.n_kv_heads):
                self._restore(int(layer), head, kept[head])
        self.exact, self.elements[:] = undo.exact, undo.elements

    def _restore(self, layer: int, head: int, kept: NDArray[np.uint8]) -> None:
        count = int(kept[:8].view(np.int64)[0])
        if count < 0:
            return
        self.counts[layer, head] = count
        sums = kept[8 : 8 + 4 * self.padded]
        self.open[layer, head] = sums.view(np.float32)
        if count:
            block = int(self.blocks[layer, head, (count - 1) // BLOCK])
            size = block_bytes(self.heads.cache, self.heads.head_dim) + 4 * BLOCK
            ctypes.memmove(block, kept[8 + 4 * self.padded :].ctypes.data, size)

    def _reserve(self, n: int) -> None:
        """Blocks for ``n`` more runs of every head."""
        wanted = -(-(self.counts + n) // BLOCK)
        for layer, head in np.argwhere((wanted > self._have) & self.layers[:, None]):
            while self._have[layer, head] < wanted[layer, head]:
                if not self._free:
                    n_new = max(POOL_BLOCKS, min(HUGE // self.entry_bytes, int(self._have.sum()) // 8))
                    pool = aligned(n_new * self.entry_bytes)
                    self._pools.append(pool)
                    self._free = [int(pool.ctypes.data) + i * self.entry_bytes for i in reversed(range(n_new))]
                self.blocks[layer, head, self._have[layer, head]] = self._free.pop()
                self._have[layer, head] += 1

    # --- to and from plain arrays -------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """A copy of it all, but for what can be taken back: starts and blocks of one head behind those of another."""
        used = -(-self.counts // BLOCK)
        blocks = [
            np.ctypeslib.as_array((ctypes.c_uint8 * self.entry_bytes).from_address(int(address)))
            for layer, head in np.ndindex(self.counts.shape)
            for address in self.blocks[layer, head, : used[layer, head]]
        ]
        starts = [self.starts[at][: self.counts[at]] for at in np.ndindex(self.counts.shape)]
        return {
            "exact": np.array([self.exact], np.int64),
            "counts": self.counts.copy(),
            "elements": self.elements.copy(),
            "open": self.open.copy(),
            "starts": np.concatenate([*starts, np.zeros(0, np.int32)]),
            "blocks": np.stack(blocks) if blocks else np.zeros((0, self.entry_bytes), np.uint8),
        }

    def load(self, arrays: dict[str, NDArray[Any]], position: int) -> None:
        """Takes what ``arrays`` gave, for a cache of ``position`` positions. Raises ValueError for anything else."""
        exact, counts = int(arrays["exact"][0]), arrays["counts"]
        _must(0 <= exact <= max(0, position) and exact % STEP == 0, "exact")
        _must(counts.shape == self.counts.shape and counts.dtype == np.int64, "counts")
        _must(bool(((counts >= 0) & (counts <= exact)).all()), "counts")
        _must(not counts[~self.layers].any() and bool((counts[self.layers] > 0).all() or exact == 0), "counts")
        starts, blocks = arrays["starts"], arrays["blocks"]
        _must(starts.shape == (int(counts.sum()),) and starts.dtype == np.int32, "starts")
        _must(blocks.shape == (int((-(-counts // BLOCK)).sum()), self.entry_bytes), "blocks")
        _must(blocks.dtype == np.uint8, "blocks")
        for key in ("elements", "open"):
            mine = getattr(self, key)
            _must(arrays[key].shape == mine.shape and arrays[key].dtype == mine.dtype, key)
        first = 0
        for at in np.ndindex(*counts.shape):
            part = starts[first : first + counts[at]]
            if len(part):
                _must(part[0] == 0 and part[-1] < exact and bool((np.diff(part) > 0).all()), "starts")
            first += int(counts[at])
        self._undo, self._next = [], None
        self.counts[:] = 0
        self._reserve_for(counts)
        self.exact = exact
        self.counts[:], self.elements[:], self.open[:] = counts, arrays["elements"], arrays["open"]
        first = n = 0
        for at in np.ndindex(counts.shape):
            self.starts[at][: counts[at]] = starts[first : first + counts[at]]
            first += int(counts[at])
            for address in self.blocks[at][: -(-counts[at] // BLOCK)]:
                ctypes.memmove(int(address), blocks[n].ctypes.data, self.entry_bytes)
                n += 1

    def _reserve_for(self, counts: NDArray[np.int64]) -> None:
        held = self.counts.copy()
        self.counts[:] = counts
        try:
            self._reserve(0)
        finally:
            self.counts[:] = held


def _must(right: bool, name: str) -> None:
    if not right:
        raise ValueError(f"the runs' {name} are not what they must be")
