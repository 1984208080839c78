"""The arena's plan: where activations lie while a tape runs, and when their room is used again."""

from __future__ import annotations

from edgerun_kernels.record import TILE_ROWS


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
