"""The cache's pages: counted, shared, copied before they are written, within a budget of bytes.

A page holds PAGE positions of all layers. Sequences and the index of prefixes hold pages; whoever lets go of one last
gives its memory back. A page may be written where nobody else relies on what is there: beyond what the index has
promised of it, by the only sequence that holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import CacheFullError
from edgerun_kernels.memory import aligned

SPARE = 32
"""Pages without a holder whose memory is kept, at most: to the system, memory that is new can be several tokens' work,
and many short requests would take it again and again."""


class Page:
    """One page. memory: uint8 [page_bytes]. sequences: how many hold it. promised: how many of its first positions the
    index of prefixes says are there; 0 where it does not know the page."""

    __slots__ = ("memory", "promised", "sequences")

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.memory = memory
        self.sequences = 1
        self.promised = 0

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data)


class PagePool:
    """The pages of one model. Thread-safe.

    page_bytes: of one.  limit: bytes that all may take together, None for no limit. evict: gives up a page that only
    the index holds, False where there is none; asked where the limit is reached. trim: called when the index alone
    holds another page.
    """

    def __init__(self, page_bytes: int, limit: int | None) -> None:
        self.page_bytes, self.limit = page_bytes, limit
        self.evict: Callable[[], bool] = lambda: False
        self.trim: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self._spare: list[NDArray[np.uint8]] = []
        self._pages = 0

    @property
    def bytes(self) -> int:
        """What all pages with a holder take, each counted once."""
        return self._pages * self.page_bytes

    def new(self) -> Page:
        """A page for one sequence; what it holds means nothing. Raises CacheFullError where the limit leaves no room,
        MemoryError where the system has none."""
        with self.lock:
            while self.limit is not None and self.bytes + self.page_bytes > self.limit:
                if not self.evict():
                    raise CacheFullError(
                        f"the cache of {self.limit} bytes has no room for another page of {self.page_bytes}; give more "
                        "cache_bytes, or close sessions"
                    )
            memory = self._spare.pop() if self._spare else aligned(self.page_bytes)
            self._pages += 1
            return Page(memory)

    def hold(self, page: Page) -> Page:
        """The page, held by one sequence more."""
        with self.lock:
            page.sequences += 1
        return page

    def release(self, page: Page) -> None:
        """One sequence holds it no more."""
        with self.lock:
            page.sequences -= 1
            self._settle(page)
            if page.sequences == 0 and page.promised:
                self.trim()

    def promise(self, page: Page, positions: int) -> None:
        """The index says so many of its first positions; 0: it has forgotten the page."""
        with self.lock:
            page.promised = positions
            self._settle(page)

    def may_write(self, page: Page, start: int) -> bool:
        """Whether the one who holds it may write from position ``start`` of it on."""
        return page.sequences == 1 and start >= page.promised

    def copy(self, page: Page, blocks: slice, shape: tuple[int, ...]) -> Page:
        """A new page with some blocks of one; shape: [heads of all layers, blocks, bytes] of a page's memory. Raises as
        ``new``."""
        made = self.new()
        made.memory.reshape(shape)[:, blocks] = page.memory.reshape(shape)[:, blocks]
        return made

    def _settle(self, page: Page) -> None:
        if page.sequences == 0 and page.promised == 0:
            self._pages -= 1
            if len(self._spare) < SPARE:
                self._spare.append(page.memory)
