"""What lowering makes: the records that the compiled loop runs, and the sizes of the memory that they want."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import TILE_ROWS


class Site(NamedTuple):
    """Where a tape uses a weight of the package, so that a variant can add to it.

    name: of the weight in the package. kind: what uses it. records: of the ops that do, the last of which writes the
    output. x: of a linear layer, its float32 input: arena offset, bytes from row to row and, when one row runs, from
    thread to thread. vector: of a norm or a bias, the float32 values, padded with zeros.
    """

    name: str
    kind: Literal["linear", "embedding", "norm", "bias", "q_norm", "k_norm"]
    records: tuple[int, ...]
    x: tuple[int, int, int] = (0, 0, 0)
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Tape:
    """A lowered model; immutable, shared by all its sessions.

    ops: int64 [n_ops, Field.COUNT].  names: what each op computes, the graph's name of it.
    arena_bytes: activations and scratch of one run.  max_rows: tokens that one run may hold.
    page_bytes: one page (record.PAGE positions) of a session's cache.
    vocab_size, logits_stride: logits of a row, and the float32 elements from row to row (padded to 16).
    inv_freq: float32 [head_dim / 2], the rotary frequencies.
    sites: where weights are used.
    state_bytes: what a session keeps for it beside the cache, zeros at first (see ``edgerun.sparsity.delta``).
    """

    ops: NDArray[np.int64]
    names: tuple[str, ...]
    arena_bytes: int
    max_rows: int
    page_bytes: int
    vocab_size: int
    logits_stride: int
    inv_freq: NDArray[np.float32]
    sites: tuple[Site, ...] = field(repr=False)
    arrays: list[NDArray[Any]] = field(repr=False)
    """Everything that the records point to, kept alive."""
    state_bytes: int = 0


class Arena:
    """Plans activation buffers: byte offsets, reused as soon as no thread can still be reading them.

    A buffer goes back to the others of its own width and kind only, because the zeros that pad a row must stay zero.
    """

    ALIGNMENT = 64

    def __init__(self, max_rows: int, n_threads: int) -> None:
        self.max_rows = max_rows
        self.n_threads = n_threads
        self.size = 0
        self._free: dict[tuple[int, int], list[int]] = {}
        self._released: list[tuple[tuple[int, int], int]] = []

    def scratch(self, n_bytes: int) -> int:
        """A block of its own, never reused."""
        offset = self.size
        self.size += -(-n_bytes // self.ALIGNMENT) * self.ALIGNMENT
        return offset

    def take(self, width: int, stride: int) -> int:
        """A buffer of max_rows rows of ``width`` features in ``stride`` bytes, or one row a thread if that is more."""
        free = self._free.get((width, 0))
        return free.pop() if free else self.scratch(stride * max(self.max_rows, self.n_threads))

    def take_tiles(self, width: int, tile: int, row: int) -> int:
        """A buffer of quantised tiles of ``tile`` bytes for max_rows rows, or of ``row`` bytes a thread."""
        free = self._free.get((width, tile))
        size = max(tile * -(-self.max_rows // TILE_ROWS), row * self.n_threads)
        return free.pop() if free else self.scratch(size)

    def give(self, offset: int, width: int, tile: int = 0) -> None:
        """Marks a buffer, of rows or of tiles of ``tile`` bytes, as read for the last time: free after the next
        barrier."""
        self._released.append(((width, tile), offset))

    def barrier(self) -> None:
        for key, offset in self._released:
            self._free.setdefault(key, []).append(offset)
        self._released.clear()
