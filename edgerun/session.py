"""A session: one sequence of tokens and its keys and values, in pages that are made as positions are reached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.spec import Attention
from edgerun.attention.state import Attended, AttentionState, RunCount
from edgerun.engine.batch import Rows
from edgerun.errors import ContextError, EdgerunError, OptionError
from edgerun.generate import Generation
from edgerun.sparsity.spec import NONE
from edgerun.text.options import SamplingOptions
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import PAGE

if TYPE_CHECKING:
    from edgerun.model import Model


class Session:
    """One cache of one model. Sessions of a model may be used from several threads; one session, from one at a time."""

    def __init__(
        self,
        model: Model,
        variant: str | os.PathLike[str] = "none",
        attention: Attention | None = None,
        sparsity: str = "none",
    ) -> None:
        self.model = model
        self.variant = os.fspath(variant)
        """What it runs, as ``Model.session`` takes it; "none" is the model as it is. To be changed by ``use``."""
        self.attention = attention or Attention()
        """What its attention leaves out."""
        self.sparsity = sparsity
        """Which weights decoding leaves unread, as ``Model.session`` takes it."""
        self.table = model.variants.table(self.variant)
        """What its variant does to the weights; None without one."""
        self.tape = model.tape
        self.policy = model.sparsities.policy(sparsity)
        """What says so to the kernels; None where all weights are read."""
        self.state = self._fresh_state()
        """What its policies keep; None without any."""
        self._tokens: list[int] = []
        self.pages: list[NDArray[np.uint8] | None] = []
        """The cache, PAGE positions a page; None where no policy needs one any more."""
        self._spare: NDArray[np.uint8] | None = None
        """One that a rewind has left: to the system, memory that is new can be several tokens' work."""
        self._page_table = np.zeros(-(-model.context // PAGE), np.int64)
        self._logits = self._buffer(1)
        self._running: NDArray[np.uint8] | None = None
        """What running sums of activation sparsity hold; None: to be computed afresh."""
        self._generation: Generation | None = None

    @property
    def tokens(self) -> list[int]:
        """The token ids that the cache holds, in order."""
        return list(self._tokens)

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return len(self._tokens)

    def reset(self) -> None:
        """Forgets everything and gives the cache's memory back."""
        self.rewind(0)

    def rewind(self, n_tokens: int) -> int:
        """Keeps the first ``n_tokens`` tokens (at most ``position``) and forgets the rest; gives how many of them did
        not have to be computed again: all, but where DeltaLLM has already made runs of what comes back into view.
        """
        if not 0 <= n_tokens <= len(self._tokens):
            raise OptionError(f"cannot rewind to {n_tokens} tokens: the session holds {len(self._tokens)}")
        kept = self._tokens[:n_tokens]
        self._running = None
        if n_tokens and (self.state is None or self.state.rewind(n_tokens)):
            self._tokens, n_pages = kept, -(-n_tokens // PAGE)
            self._spare = next((page for page in self.pages[n_pages:] if page is not None), self._spare)
            del self.pages[n_pages:]
            return n_tokens
        self._tokens, self.pages, self._spare = [], [], None
        self.state = self._fresh_state()
        if kept:
            self.prefill(kept)
        return 0

    def fork(self) -> Session:
        """A session that holds the same, and goes its own way from here."""
        other = Session(self.model, self.variant, self.attention, self.sparsity)
        other.take(self.tokens, [None if page is None else _copy(page) for page in self.pages])
        if self.state is not None:
            other.state = self.state.fork(self.position)
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it all into a file, for ``Model.restore``. Raises EdgerunError."""
        from edgerun.saved import save

        save(self, path)

    def take(self, tokens: list[int], pages: list[NDArray[np.uint8] | None]) -> None:
        """Holds these tokens, whose cache pages these are. For ``fork`` and ``Model.restore``; nothing is checked."""
        self._tokens, self.pages = tokens, pages
        for i, page in enumerate(pages):
            self._page_table[i] = 0 if page is None else page.ctypes.data

    @property
    def acts_in_decoding(self) -> bool:
        """Whether one of its policies leaves prefill as it is, so that its cost shows in decoding alone."""
        return self.attention.delta is not None or self.sparsity != NONE

    @property
    def attended(self) -> Attended:
        """How much of what exact attention would have read was read; of a session without policies nothing is said."""
        return Attended(0, 0) if self.state is None else self.state.attended

    @property
    def runs(self) -> RunCount:
        """How many keys DeltaLLM keeps of those that have left its window."""
        return RunCount(0, 0) if self.state is None else self.state.run_count

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """What the pages of the cache take in memory, and what policies hold beside them."""
        pages = sum(page.nbytes for page in (*self.pages, self._spare) if page is not None)
        return pages, 0 if self.state is None else self.state.bytes

    def use(self, variant: str | os.PathLike[str], *, keep: bool = False) -> None:
        """Goes on with another variant (see ``Model.session``). Raises VariantError; the session stays as it was then.

        keep: whether the cache is kept, whose keys and values the variant before has made: nothing is computed again,
        but the new one would have made others. Else the session is empty afterwards.
        """
        wanted = os.fspath(variant)
        self.table = self.model.variants.table(wanted)
        self.variant = wanted
        self._running = None
        if not keep:
            self.reset()

    def prefill(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens, in chunks; gives the logits [vocab_size] that follow the last one.

        The array is valid until the next call. Raises ContextError, before anything is computed, if they do not fit,
        OptionError for no tokens or a token that is not in the vocabulary.
        """
        ids = self._checked(token_ids)
        for part in self.parts(len(ids)):
            self._run(ids[part], self._logits, int(part.stop == len(ids)))
        row: NDArray[np.float32] = self._logits[0, : self.model.vocab_size]
        return row

    def decode(self, token_id: int) -> NDArray[np.float32]:
        """Appends one token; as ``prefill``."""
        return self.prefill((token_id,))

    def score(self, token_ids: Sequence[int], chunk: int = 64) -> Iterator[NDArray[np.float32]]:
        """Appends tokens, ``chunk`` at a time; gives the logits after each of them, float32 [m, vocab_size].

        Arrays are valid until the next one is asked for.
        """
        ids = self._checked(token_ids)
        rows = max(1, min(chunk, self.model.tape.max_rows, len(ids)))
        logits = self._buffer(rows)
        for part in self.parts(len(ids), rows):
            n = part.stop - part.start
            self._run(ids[part], logits, n)
            yield logits[:n, : self.model.vocab_size]

    def generate(
        self, prompt: str | Sequence[int], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Continues ``prompt``, the whole text so far: what the cache holds of it already is not computed again.

        A string is tokenised with the tokenizer's own BOS rule, special tokens read as such. ``changes`` are fields of
        SamplingOptions. Tokens are computed as the Generation is iterated. Raises ContextError, OptionError at once.
        """
        ids = self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        return self._begin(ids, SamplingOptions.merged(options, changes), continuation=True)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Answers a conversation: mappings with ``role`` and ``content``, written by the model's own chat template."""
        text = self.model.tokenizer.apply_chat_template(messages)
        ids = self.model.tokenizer.encode(text, add_bos=False)
        return self._begin(ids, SamplingOptions.merged(options, changes), continuation=False)

    # --- the inside ---------------------------------------------------------------------------------------------------

    def _begin(self, ids: list[int], options: SamplingOptions, continuation: bool) -> Generation:
        options.check_vocabulary(self.model.vocab_size)
        if not ids:
            raise OptionError("the prompt is empty and this model has no token that begins a text; write something")
        self._checked(ids, held=0)
        if self._generation is not None:
            self._generation.stop()
        self._generation = Generation(self, ids, options, continuation=continuation)
        return self._generation

    def reuse(self, ids: Sequence[int]) -> int:
        """Rewinds to the longest prefix that the cache shares with ``ids``, short of its last token; its length."""
        shared = 0
        for mine, wanted in zip(self._tokens, ids[: len(ids) - 1], strict=False):
            if mine != wanted:
                break
            shared += 1
        return self.rewind(shared)

    def parts(self, n: int, most: int | None = None) -> Iterator[slice]:
        """How the next ``n`` tokens are cut into runs, of at most ``most`` tokens. For Generation."""
        limit = min(self.model.tape.max_rows, most or n)
        position, start = len(self._tokens), 0
        while start < n:
            room = limit if self.state is None else min(limit, self.state.most_rows(position + start))
            yield slice(start, min(n, start + room))
            start += room

    def advance(self, ids: Sequence[int], *, more: bool = False) -> NDArray[np.float32]:
        """Appends tokens that have been checked, one run; logits as ``prefill``, but where ``more`` follow, none that
        mean anything. For Generation."""
        self._run(np.array(ids, np.int64), self._logits, 0 if more else 1)
        row: NDArray[np.float32] = self._logits[0]
        return row

    def _checked(self, token_ids: Sequence[int], held: int | None = None) -> NDArray[np.int64]:
        ids = np.asarray(token_ids, np.int64)
        vocab_size, context = self.model.vocab_size, self.model.context
        if ids.ndim != 1 or len(ids) == 0:
            raise OptionError("there are no tokens to run; give at least one")
        if ids.min() < 0 or ids.max() >= vocab_size:
            bad = int(ids[(ids < 0) | (ids >= vocab_size)][0])
            raise OptionError(f"token {bad} is not in the vocabulary: this model's tokens are 0 to {vocab_size - 1}")
        held = len(self._tokens) if held is None else held
        if held + len(ids) > context:
            limit = self.model.package.config.context_length
            more = f"load it with a larger context (up to {limit})" if context < limit else "shorten the text"
            after = f" after the {held} in the session" if held else ""
            raise ContextError(f"{len(ids)} tokens{after} do not fit the context of {context} tokens; {more}")
        return ids

    def _run(self, ids: NDArray[np.int64], logits: NDArray[np.float32], n_out: int) -> None:
        end = len(self._tokens) + len(ids)
        try:
            while len(self.pages) * PAGE < end:
                page = aligned(self.model.tape.page_bytes) if self._spare is None else self._spare
                self._spare = None
                self._page_table[len(self.pages)] = page.ctypes.data
                self.pages.append(page)
            if self.state is not None:
                self.state.before(len(self._tokens), len(ids))
            if len(ids) > 1:
                self._running = None  # several tokens change more than is worth sending
            elif self._running is None and self.policy is not None and self.policy.state_bytes:
                self._running = aligned(self.policy.state_bytes)
        except MemoryError as error:
            raise EdgerunError(f"no memory for the cache at {end} tokens; use a smaller context") from error
        records = None if self.state is None else self.state.records
        try:
            position = len(self._tokens)
            variant = None if self.table is None else self.table.sites
            rows = Rows(ids, position, self._page_table, n_out, records, variant, decodes=len(ids) == 1)
            self.model.run([rows], logits, self.policy, self._running)
        except BaseException:  # ctrl-C: what the policies have begun is taken back
            self._running = None
            if self.state is not None:
                self.state.cancel(len(self._tokens))
            raise
        if self.state is not None:
            self.state.after(len(self._tokens), len(ids))
            for i in range(self.state.first_needed // PAGE):
                self.pages[i] = None
        self._tokens.extend(ids.tolist())

    def _fresh_state(self) -> AttentionState | None:
        if self.attention.deltallm is None and self.attention.delta is None:
            return None
        return AttentionState(self.model.heads, self.attention)

    def _buffer(self, rows: int) -> NDArray[np.float32]:
        stride = self.model.tape.logits_stride
        return aligned(4 * rows * stride).view(np.float32).reshape(rows, stride)


def _copy(page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    copy = aligned(page.nbytes)
    copy[:] = page
    return copy
