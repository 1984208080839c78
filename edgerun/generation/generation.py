"""Generation: an iterator of text pieces, with the reason why it ended and how long everything took."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from edgerun.generation.sampler import Sampler
from edgerun.text.stream import TextStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgerun.engine.engine import Engine
    from edgerun.engine.sequence import Sequence
    from edgerun.generation.options import SamplingOptions
    from edgerun.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """Text that became certain, and the tokens that it came with since the piece before.

    text: whole characters. token_ids: usually one; an end-of-text token is in no piece. logprob: the last token's
    log-probability, and top_logprobs the likeliest (id, log-probability), if SamplingOptions.logprobs asked for them.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None


@dataclass
class Timings:
    """Where the time of a generation went; seconds, from its first step."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed (not found in the cache) per second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first one per second."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


class Generation(Iterator[Piece]):
    """The text that follows a prompt; iterate it (``async for`` too), or ``read`` it all. See ``Session.generate``.

    text, token_ids: what has come so far (``read`` finishes first). finish_reason: "stop" (end-of-text token or stop
    string), "length" (max_tokens or the context is full), "cancelled" (``stop`` was called, or the session went on
    otherwise), None while it goes on. continuation: the text goes on from the prompt's, so a leading space counts.
    eager: it runs on without being asked for every piece. priority: of requests that wait, higher ones come first.
    alone: nobody else uses its sequence, whose pages it gives back in the end.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sequence: Sequence,
        prompt: Several[int],
        options: SamplingOptions,
        *,
        continuation: bool,
        eager: bool = False,
        priority: int = 0,
        siblings: Several[Generation] = (),
        alone: bool = False,
    ) -> None:
        self.options = options
        self.prompt = tuple(prompt)
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.timings = Timings(prompt_tokens=len(prompt))
        self.sequence, self.eager, self.priority, self.alone = sequence, eager, priority, alone
        self.ended = False
        self._engine, self._tokenizer = engine, tokenizer
        self._pieces: deque[Piece] = deque()
        self._siblings = list(siblings)
        self._fresh_stream = partial(TextStream, tokenizer, options.stop, continuation=continuation)
        self._stream = self._fresh_stream()
        self._ends = frozenset() if options.ignore_eos else tokenizer.eos_ids
        context = sequence.cache.heads.context
        most = options.max_tokens if options.max_tokens is not None else context
        self._limit = min(most, context - len(prompt) + 1)
        self._sampler: Sampler | None = None
        self._undone: list[int] = []  # tokens that have come since the last piece
        self._before: tuple[int, str, list[int], int] | None = None  # while it chooses: what it goes back to
        self._error: Exception | None = None
        self._started = self._stopped = False
        self._start = 0.0

    # --- for whoever reads it -------------------------------------------------------------------------------------

    def __next__(self) -> Piece:
        if not self._pieces and not self.ended:
            self._engine.advance(self)
        return self._taken(StopIteration)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        """The next piece, while the event loop goes on."""
        import asyncio  # takes as long as a tenth of loading a model: for those who have an event loop already

        while not self._pieces and not self.ended:
            await self._engine.wait_for(self, asyncio.get_running_loop())
        return self._taken(StopAsyncIteration)

    def _taken(self, end: type[Exception]) -> Piece:
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise end

    def read(self) -> str:
        """Runs to the end; gives the whole text."""
        for _ in self:
            pass
        return self.text

    def stop(self) -> None:
        """Ends the generation before its next token (during prefill: its next chunk). From any thread."""
        self._stopped = True

    def withdraw(self) -> None:
        """Ends it at once, as cancelled, and gives its sequence back to its owner. From any thread."""
        self._engine.withdraw(self)

    def __repr__(self) -> str:
        state = self.finish_reason or ("failed" if self.ended else "going on" if self._started else "not begun")
        return f"<Generation: {len(self.prompt)} tokens of prompt, {len(self.token_ids)} generated, {state}>"

    # --- for the engine -------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> list[int]:
        """The tokens that its sequence does not hold yet."""
        held = self.sequence.position
        if held >= len(self.prompt):
            return self.token_ids[held - len(self.prompt) :]
        return [*self.prompt[held:], *self.token_ids]

    @property
    def decoding(self) -> bool:
        """Whether it has chosen a token, which alone is to run."""
        return bool(self.token_ids) and self.sequence.position == len(self.prompt) + len(self.token_ids) - 1

    @property
    def waiting(self) -> bool:
        """Whether the next step is to go on with it."""
        return self.eager or not self._pieces

    def cancel(self) -> None:
        """Ends it; no step runs it."""
        self._finish("cancelled")

    def start(self) -> None:
        """Before every step: ends it if it was stopped; takes what is known of its prompt, at the first."""
        if self._stopped and not self.ended:
            self._finish("cancelled")
        if self.ended or self._started:
            return
        self._started, self._start = True, perf_counter()
        self.timings.cached_tokens = self.sequence.reuse(self.prompt)

    def ran(self, logits: NDArray[np.float32] | None, seconds: float) -> None:
        """After a step of so many seconds; logits: after the last wanted token, if that has run."""
        if logits is None:
            return
        if not self.token_ids:
            self.timings.prefill_s = perf_counter() - self._start
            if not self.eager:
                self.sequence.keep()
            self._give_to_siblings(logits)
            if self._limit <= 0:
                self._finish("length")
                return
        self._before = len(self.token_ids), self.text, self._undone, len(self._pieces)
        self._choose(logits, seconds)
        self._before = None

    def interrupted(self, position: int) -> None:
        """Instead of the rest of ``ran``: takes back a choice that was being made, to be made again."""
        if self._before is not None:
            n, self.text, undone, n_pieces = self._before
            del self.token_ids[n:]
            while len(self._pieces) > n_pieces:
                self._pieces.pop()
            self._undone, self._sampler, self._stream = undone[:], None, self._fresh_stream()
            for token_id in self.token_ids:
                self._stream.push(token_id)
            self.finish_reason, self.ended, self._before = None, False, None
        if not self.ended and self.sequence.position > position and not self.wanted:
            self.sequence.rewind(position)
        else:
            self.sequence.undone()

    def _choose(self, logits: NDArray[np.float32], seconds: float) -> None:
        options, stream, timings = self.options, self._stream, self.timings
        if self._sampler is None:
            self._sampler = Sampler(self._engine.kernels, options, self._engine.vocab_size, self.prompt)
            for token_id in self.token_ids:
                self._sampler.skip(token_id)
        begun = perf_counter()
        token_id = self._sampler.choose(logits)
        if self.token_ids:
            timings.decode_tokens += 1
            timings.decode_s += seconds + perf_counter() - begun
        else:
            timings.first_token_s = perf_counter() - self._start
        if token_id in self._ends:
            self._finish("stop")
            return
        self.token_ids.append(token_id)
        self._undone = [*self._undone, token_id]
        self._sampler.accept(token_id)
        text = stream.push(token_id)
        chosen = None
        if options.logprobs is not None:
            chosen = self._sampler.logprobs(logits, token_id, options.logprobs)
        if text or chosen is not None:
            self._give(Piece(text, self._undone, *(chosen or (None, None))))
        if stream.stopped:
            self._finish("stop")
        elif len(self.token_ids) >= self._limit:
            self._finish("length")

    def _give(self, piece: Piece) -> None:
        self.text += piece.text
        self._undone = []
        self._pieces.append(piece)

    def _give_to_siblings(self, logits: NDArray[np.float32]) -> None:
        """Other answers to the same prompt begin where it has been read."""
        for sibling in self._siblings:
            if sibling._started or sibling.ended:  # it was asked first
                continue
            sibling.sequence = self.sequence.fork()
            sibling._started, sibling._start = True, self._start
            sibling.timings.cached_tokens = len(self.prompt)
            sibling.ran(logits, 0.0)
        self._siblings = []

    def _finish(self, reason: FinishReason) -> None:
        rest = "" if reason == "stop" and self._stream.stopped else self._stream.flush()
        if rest or (self._undone and not self._stream.stopped):
            self._give(Piece(rest, self._undone))
        self.finish_reason, self.ended = reason, True
        if not self.eager:
            self.sequence.keep()
        if self.alone:
            self.sequence.release()

    def fail(self, error: Exception) -> None:
        """It cannot go on: whoever asks next gets the error."""
        self._error, self.ended = error, True

    def close(self) -> None:
        """It has ended: gives its sequence's pages back, and raises what made it fail."""
        self.sequence.release()
        if self._error is not None:
            raise self._error
