"""A session: one sequence of tokens that an application goes on with, rewinds, forks and saves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.spec import Attention
from edgerun.attention.state import Attended, AttentionState, RunCount
from edgerun.engine.sequence import Sequence as EngineSequence
from edgerun.errors import ContextError, EdgerunError, OptionError
from edgerun.generation.generation import Generation
from edgerun.generation.options import SamplingOptions
from edgerun.saved import save
from edgerun.sparsity.policy import Policy

if TYPE_CHECKING:
    from edgerun.model import Model


P = ParamSpec("P")
R = TypeVar("R")


def _alone(method: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """What changes a session: raises EdgerunError while another thread does."""

    @wraps(method)
    def guarded(self: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._turn.acquire(blocking=False):
            raise EdgerunError("another thread uses this session; let them take turns, or give each its own (fork)")
        try:
            return method(self, *args, **kwargs)
        finally:
            self._turn.release()

    return guarded


class Session:
    """One text of one model. Sessions of a model may be used from several threads, and their tokens are decoded
    together; one session, from one thread at a time. Whatever changes a session ends its generation, as cancelled."""

    def __init__(self, model: Model, sequence: EngineSequence, variant: str) -> None:
        self.model = model
        self.sequence = sequence
        self.variant = variant
        self._turn = threading.RLock()
        self._generation: Generation | None = None
        self._logits: NDArray[np.float32] = self.model.runner.logits_buffer(1)

    def __repr__(self) -> str:
        return f"<Session of {self.model.package.config.name}: {self.position} of {self.model.context} tokens>"

    @property
    def attention(self) -> Attention:
        """What its attention leaves out."""
        return self.sequence.attention

    @property
    def sparsity(self) -> str:
        """Which weights decoding leaves unread, as ``Model.session`` takes it."""
        return self.sequence.sparsity

    @property
    def state(self) -> AttentionState | None:
        """What its attention policies keep; None without any."""
        return self.sequence.state

    @property
    def policy(self) -> Policy | None:
        """Which columns it leaves unread where one token is decoded; None: it reads all."""
        return self.sequence.policy

    @property
    def tokens(self) -> list[int]:
        """The token ids that the cache holds, in order."""
        return list(self.sequence.tokens)

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return self.sequence.position

    def reset(self) -> None:
        """Forgets everything and gives the cache's memory back."""
        self.rewind(0)

    @_alone
    def rewind(self, n_tokens: int) -> int:
        """Keeps the first ``n_tokens`` tokens (at most ``position``) and forgets the rest; gives how many of them did
        not have to be computed again: all, but where DeltaLLM has already made runs of what comes back into view.
        """
        self._end_generation()
        if not 0 <= n_tokens <= self.position:
            raise OptionError(f"cannot rewind to {n_tokens} tokens: the session holds {self.position}")
        kept = self.tokens[:n_tokens]
        held = self.sequence.rewind(n_tokens)
        if held < n_tokens:
            self.prefill(kept)
        return held

    @_alone
    def fork(self) -> Session:
        """A session that holds the same, and goes its own way from here; nothing is copied before one of both writes
        there."""
        self._end_generation()
        return Session(self.model, self.sequence.fork(), self.variant)

    @_alone
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it all into a file, for ``Model.restore``. Raises EdgerunError."""
        self._end_generation()
        save(self.sequence, self.variant, self.model.package.config, path)

    @property
    def acts_in_decoding(self) -> bool:
        """Whether one of its policies leaves prefill as it is, so that its cost shows in decoding alone."""
        return self.sequence.acts_in_decoding

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
        """What the pages of the cache take in memory, shared ones included, and what policies hold beside them."""
        pages = sum(page.memory.nbytes for page in self.sequence.pages if page is not None)
        return pages, 0 if self.state is None else self.state.bytes

    @_alone
    def use(self, variant: str | os.PathLike[str], *, keep: bool = False) -> None:
        """Goes on with another variant (see ``Model.session``). Raises VariantError; the session stays as it was then.

        keep: whether the cache is kept, whose keys and values the variant before has made: nothing is computed again,
        but the new one would have made others. Else the session is empty afterwards.
        """
        wanted = os.fspath(variant)
        table = self.model.variants.table(wanted)
        self._end_generation()
        self.variant = wanted
        self.sequence.use(table, keep=keep)

    @_alone
    def prefill(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens, in chunks; gives the logits [vocab_size] that follow the last one.

        The array is valid until the next call. Raises ContextError, before anything is computed, if they do not fit,
        OptionError for no tokens or a token that is not in the vocabulary.
        """
        ids = self._checked(token_ids)
        self._end_generation()
        for part in self._parts(len(ids), self.model.tape.max_rows):
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
        self._end_generation()
        rows = max(1, min(chunk, self.model.tape.max_rows, len(ids)))
        logits = self.model.runner.logits_buffer(rows)
        for part in self._parts(len(ids), rows):
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
        ids = self.model.encode_prompt(prompt)
        return self._begin(ids, SamplingOptions.merged(options, changes), continuation=True)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Answers a conversation: mappings with ``role`` and ``content``, written by the model's own chat template."""
        ids = self.model.encode_messages(messages)
        return self._begin(ids, SamplingOptions.merged(options, changes), continuation=False)

    # --- the inside ---------------------------------------------------------------------------------------------------

    @_alone
    def _begin(self, ids: list[int], options: SamplingOptions, continuation: bool) -> Generation:
        options.check_vocabulary(self.model.vocab_size)
        self.model.check_tokens(ids, 0)
        self._end_generation()
        model = self.model
        self._generation = Generation(
            model.engine, model.tokenizer, self.sequence, ids, options, continuation=continuation
        )
        return self._generation

    def _end_generation(self) -> None:
        if self._generation is not None:
            self._generation.withdraw()
            self._generation = None

    def _parts(self, n: int, limit: int) -> Iterator[slice]:
        """How the next ``n`` tokens are cut into runs of at most ``limit``."""
        position, start = self.position, 0
        while start < n:
            end = min(n, start + min(limit, self.sequence.most_rows(position + start)))
            yield slice(start, end)
            start = end

    def _checked(self, token_ids: Sequence[int]) -> NDArray[np.int64]:
        return self.model.check_tokens(token_ids, self.position)

    @_alone
    def _run(self, ids: NDArray[np.int64], logits: NDArray[np.float32], n_out: int) -> None:
        sequence = self.sequence
        tokens = ids.tolist()
        rows = sequence.begin(tokens, n_out, decodes=len(tokens) == 1)
        try:
            self.model.runner.run([rows], logits, sequence.policy, sequence.running)
        except BaseException:  # ctrl-C: what the policies have begun is taken back
            sequence.undone()
            raise
        sequence.done(tokens)


def check_tokens(
    token_ids: Sequence[int], held: int, vocab_size: int, context: int, largest_context: int
) -> NDArray[np.int64]:
    """The tokens as int64, which follow ``held`` others. Raises OptionError for none, or one that is not in the
    vocabulary, ContextError where they do not fit."""
    ids = np.asarray(token_ids, np.int64)
    if ids.ndim != 1 or len(ids) == 0:
        raise OptionError("there are no tokens to run; give at least one")
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        raise OptionError(f"token {bad} is not in the vocabulary: this model's tokens are 0 to {vocab_size - 1}")
    if held + len(ids) > context:
        fits = context < largest_context
        more = f"load it with a larger context (up to {largest_context})" if fits else "shorten the text"
        after = f" after the {held} in the session" if held else ""
        raise ContextError(f"{len(ids)} tokens{after} do not fit the context of {context} tokens; {more}")
    return ids
