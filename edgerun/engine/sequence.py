"""A sequence: its tokens, its pages of the cache, and what it runs with: variant, attention policies, sparsity."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence as Several
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.runs import Heads
from edgerun.attention.settings import parameters
from edgerun.attention.spec import Attention
from edgerun.attention.state import AttentionState
from edgerun.engine.batch import Rows
from edgerun.engine.pages import Page, PagePool
from edgerun.engine.prefixes import Prefixes, shared_length
from edgerun.errors import CacheFullError, EdgerunError
from edgerun.sparsity.policy import Policy
from edgerun.variants.table import VariantTable
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import BLOCK, PAGE

WORTH_A_COPY = 8
"""Tokens of a page that begins like a prompt from which copying them is faster than computing them."""


class Cache:
    """What all sequences of a model share: the shape of its attention, the pool of pages, the index of prefixes."""

    def __init__(self, heads: Heads, page_bytes: int, limit: int | None, retained: int) -> None:
        self.heads = heads
        self.pool = PagePool(page_bytes, limit)
        self.prefixes = Prefixes(self.pool, retained)
        self.page_shape = heads.n_layers * heads.n_kv_heads, PAGE // BLOCK, -1


class Sequence:
    """Tokens of one text and what a model keeps of them. Whoever uses one sees to it that nobody else does meanwhile.

    table: of its variant, None without one. attention: its policies. policy: of activation sparsity,
    None without. sparse: whether that makes its decoded tokens runs of their own. key: which other sequences make the
    same keys and values of a text; None: nobody's are shared. mixed: whether several variants have made what it holds.
    """

    def __init__(
        self, cache: Cache, attention: Attention, table: VariantTable | None, policy: Policy | None, sparsity: str
    ) -> None:
        self.cache, self.attention, self.table, self.policy, self.sparsity = cache, attention, table, policy, sparsity
        self.state = self._fresh_state()
        self.tokens: list[int] = []
        self.pages: list[Page | None] = []
        self._page_table = np.zeros(-(-cache.heads.context // PAGE), np.int64)
        self._table_address = int(self._page_table.ctypes.data)
        self.running: NDArray[np.uint8] | None = None
        self._prefilled = 0  # of its first tokens, those that were run as a prompt
        self._decodes = False
        self.mixed = False

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return len(self.tokens)

    @property
    def acts_in_decoding(self) -> bool:
        """Whether a token has other keys and values where it is decoded than where it is a prompt's."""
        return self.policy is not None or self.attention.delta is not None

    @property
    def sparse(self) -> bool:
        return self.policy is not None

    @property
    def key(self) -> tuple[Any, ...] | None:
        if self.attention.deltallm is not None or self.mixed:  # runs are no pages
            return None
        variant = None if self.table is None else self.table.key
        return variant, json.dumps(parameters(None, self.attention.delta)), self.sparsity

    def most_rows(self, position: int) -> int:
        """How many tokens the run that begins at a position may have."""
        return 1 << 30 if self.state is None else self.state.most_rows(position)

    # --- runs -----------------------------------------------------------------------------------------------------

    def begin(self, tokens: Several[int], n_out: int, decodes: bool) -> Rows:
        """Makes room for tokens, and gives them as rows of a run, after which ``done`` or ``undone`` is to be called.
        Raises CacheFullError, EdgerunError where there is no memory; nothing has changed then."""
        start, end = len(self.tokens), len(self.tokens) + len(tokens)
        pool = self.cache.pool
        try:
            if start % PAGE:
                self._own(start // PAGE, start % PAGE)
            while len(self.pages) * PAGE < end:
                self._put(pool.new())
            if self.state is not None:
                self.state.before(start, len(tokens))
            if len(tokens) > 1 or not decodes:
                self.running = None  # several tokens change more than is worth sending
            elif self.running is None and self.policy is not None and self.policy.state_bytes:
                self.running = aligned(self.policy.state_bytes)
        except MemoryError as error:
            raise EdgerunError(f"no memory for the cache at {end} tokens; use a smaller context") from error
        self._decodes = decodes
        records = 0 if self.state is None else self.state.address
        variant = 0 if self.table is None else self.table.address
        return Rows(tokens, start, n_out, decodes, self._table_address, records, variant)

    def done(self, tokens: list[int]) -> None:
        """The run has been: the cache holds the tokens."""
        if self.state is not None:
            self.state.after(len(self.tokens), len(tokens))
            for i in range(self.state.first_needed // PAGE):
                self._drop(i)
        if self._prefilled == len(self.tokens) and not self._decodes:
            self._prefilled += len(tokens)
        self.tokens.extend(tokens)

    def undone(self) -> None:
        """The run was interrupted (ctrl-C): what the policies have begun is taken back."""
        self.running = None
        if self.state is not None:
            self.state.cancel(len(self.tokens))

    def _own(self, index: int, start: int) -> None:
        """Sees to it that a page may be written from position ``start`` of it on."""
        page = self.pages[index]
        assert page is not None
        if not self.cache.pool.may_write(page, start):
            self.pages[index] = self._copy(page, start)
            self._page_table[index] = self.pages[index].address  # type: ignore[union-attr]
            self.cache.pool.release(page)

    def _copy(self, page: Page, positions: int) -> Page:
        return self.cache.pool.copy(page, slice(-(-positions // BLOCK)), self.cache.page_shape)

    def _put(self, page: Page) -> None:
        self._page_table[len(self.pages)] = page.address
        self.pages.append(page)

    def _drop(self, index: int) -> None:
        page = self.pages[index]
        if page is not None:
            self.pages[index] = None
            self.cache.pool.release(page)

    # --- other lengths --------------------------------------------------------------------------------------------

    def rewind(self, n_tokens: int) -> int:
        """Keeps the first ``n_tokens`` tokens and forgets the rest; gives how many of them are still held: all, but
        none where DeltaLLM has made runs of what comes back into view."""
        self.running = None
        if n_tokens and (self.state is None or self.state.rewind(n_tokens)):
            del self.tokens[n_tokens:]
            self._prefilled = min(self._prefilled, n_tokens)
            self._shorten(-(-n_tokens // PAGE))
            return n_tokens
        self.tokens, self.mixed, self._prefilled = [], False, 0
        self._shorten(0)
        self.state = self._fresh_state()
        return 0

    def _shorten(self, n_pages: int) -> None:
        while len(self.pages) > n_pages:
            page = self.pages.pop()
            if page is not None:
                self.cache.pool.release(page)

    def reuse(self, ids: Several[int]) -> int:
        """Holds as much as is known of ``ids``, short of the last token: of what it holds already, or of what others
        have computed; gives its length."""
        shared = shared_length(self.tokens, ids[: len(ids) - 1])
        key = self.key
        if key is None:
            return self.rewind(shared)
        pool = self.cache.pool
        with pool.lock:  # nobody else may take the page that is copied
            pages, begun, n = self.cache.prefixes.find(key, ids[: len(ids) - 1])
            if PAGE * len(pages) + n <= shared + WORTH_A_COPY:
                for page in pages:
                    pool.release(page)
                return self.rewind(shared)
            self.rewind(0)
            for page in pages:
                self._put(page)
            self.tokens = list(ids[: PAGE * len(pages)])
            if begun is not None and n >= WORTH_A_COPY:
                with contextlib.suppress(CacheFullError, MemoryError):  # it is computed then
                    self._put(self._copy(begun, n))
                    self.tokens.extend(ids[len(self.tokens) : len(self.tokens) + n])
            self._prefilled = len(self.tokens)
        return len(self.tokens)

    def keep(self) -> None:
        """Lets others use what it holds."""
        self.keep_first(len(self.tokens))

    def keep_first(self, n_tokens: int) -> None:
        """Lets others use its first tokens; not those that a policy of decoding has seen."""
        key = self.key
        if self.acts_in_decoding:
            n_tokens = min(n_tokens, self._prefilled)
        if key is not None and n_tokens:
            self.cache.prefixes.keep(key, self.tokens[:n_tokens], self.pages)

    def use(self, table: VariantTable | None, *, keep: bool) -> None:
        """Goes on with another variant; ``keep``: with the keys and values that the one before has made."""
        self.table, self.mixed = table, keep and bool(self.tokens)
        self.running = None
        if not keep:
            self.rewind(0)

    def fork(self) -> Sequence:
        """A sequence that holds the same, and goes its own way from here; no page is copied before it is written."""
        other = Sequence(self.cache, self.attention, self.table, self.policy, self.sparsity)
        other.mixed, other._prefilled = self.mixed, self._prefilled
        other.share(self)
        if self.state is not None:
            other.state = self.state.fork(self.position)
        return other

    def share(self, other: Sequence) -> None:
        """Holds the tokens and the pages of another sequence of the same cache. For an empty one."""
        self.take(list(other.tokens), [None if page is None else self.cache.pool.hold(page) for page in other.pages])

    def take(self, tokens: list[int], pages: list[Page | None]) -> None:
        """Holds these tokens, whose pages these are. For an empty sequence; nothing is checked."""
        self.tokens, self.pages = tokens, pages
        for i, page in enumerate(pages):
            self._page_table[i] = 0 if page is None else page.address

    def release(self) -> None:
        """Gives its pages back. Idempotent."""
        self.tokens, self._prefilled = [], 0  # first: ctrl-C may come between
        self._shorten(0)

    def __del__(self) -> None:
        if hasattr(self, "pages"):
            self._shorten(0)

    def _fresh_state(self) -> AttentionState | None:
        if self.attention.deltallm is None and self.attention.delta is None:
            return None
        return AttentionState(self.cache.heads, self.attention)
