"""Generation: an iterator of text pieces, with the reason why it ended and how long everything took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from edgerun.sampler import Sampler
from edgerun.text.stream import TextStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgerun.session import Session
    from edgerun.text.options import SamplingOptions

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
    """The text that a session generates; iterate it, or take ``text`` for all at once. See ``Session.generate``.

    text, token_ids: what has come so far (``read`` finishes first). finish_reason: "stop" (end-of-text token or stop
    string), "length" (max_tokens or the context is full), "cancelled" (``stop`` was called), None while it goes on.
    continuation: the text goes on from the prompt's, so a leading space counts.
    """

    def __init__(
        self, session: Session, prompt: Sequence[int], options: SamplingOptions, *, continuation: bool
    ) -> None:
        self.session = session
        self.options = options
        self.prompt = tuple(prompt)
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.timings = Timings(prompt_tokens=len(prompt))
        self._stopped = False
        self._stream = TextStream(session.model.tokenizer, options.stop, continuation=continuation)
        self._pieces = self._run()

    def __next__(self) -> Piece:
        return next(self._pieces)

    def read(self) -> str:
        """Runs to the end; gives the whole text."""
        for _ in self:
            pass
        return self.text

    def stop(self) -> None:
        """Ends the generation before its next token (during prefill: its next chunk). From any thread."""
        self._stopped = True

    def _run(self) -> Iterator[Piece]:
        model, options, timings = self.session.model, self.options, self.timings
        start = resumed = perf_counter()
        timings.cached_tokens = self.session.reuse(self.prompt)
        logits = self._prefill()
        timings.prefill_s = perf_counter() - start
        limit = min(
            options.max_tokens if options.max_tokens is not None else model.context,
            model.context - len(self.prompt) + 1,
        )
        if logits is None or limit <= 0:
            self.finish_reason = "cancelled" if logits is None else "length"
            return
        ends = frozenset() if options.ignore_eos else model.tokenizer.eos_ids
        stream = self._stream
        sampler = Sampler(model.kernels, options, model.vocab_size, self.prompt)
        waiting: list[int] = []
        while True:
            token_id = sampler.choose(logits)
            now = perf_counter()
            if self.token_ids:
                timings.decode_tokens += 1
                timings.decode_s += now - resumed
            else:
                timings.first_token_s = now - start
            if token_id in ends:
                self.finish_reason = "stop"
                break
            self.token_ids.append(token_id)
            waiting.append(token_id)
            sampler.accept(token_id)
            text = stream.push(token_id)
            chosen = None
            if options.logprobs is not None:
                chosen = sampler.logprobs(logits, token_id, options.logprobs)
            if text or chosen is not None:
                self.text += text
                yield Piece(text, waiting, *(chosen or (None, None)))
                waiting = []
            if stream.stopped:
                self.finish_reason = "stop"
                return
            if len(self.token_ids) >= limit:
                self.finish_reason = "length"
                break
            if self._stopped:
                self.finish_reason = "cancelled"
                break
            resumed = perf_counter()  # what the caller does with a piece is not decoding
            logits = self.session.advance((token_id,))
        rest = stream.flush()
        if rest or waiting:
            self.text += rest
            yield Piece(rest, waiting)

    def _prefill(self) -> NDArray[np.float32] | None:
        """Runs what the cache lacks of the prompt, chunk by chunk, until stopped; the logits after its last token."""
        logits = None
        wanted = self.prompt[self.session.position :]
        for part in self.session.parts(len(wanted)):
            if self._stopped:
                return None
            logits = self.session.advance(wanted[part], more=part.stop < len(wanted))
        return logits
