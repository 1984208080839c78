"""What tasks ask of a model: how likely an answer is, or which one it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.state import Attended
from edgerun.measure.evaluate import CHUNK, F64, log_softmax

if TYPE_CHECKING:
    from edgerun.model import Model


@dataclass(frozen=True)
class Prompt:
    """A text in two parts: a context, and the question behind it. A policy that acts in decoding alone gets the
    question's tokens one by one, and the answer's."""

    context: str
    question: str


@dataclass(frozen=True)
class Likelihood:
    """logprob: log p of the answer's tokens, in nats.  tokens: how many.  greedy: whether each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


class Reader(Protocol):
    """A model that reads prompts. What they have in common with the prompt before is not computed again."""

    def likelihoods(self, prompt: Prompt, answers: Sequence[str]) -> list[Likelihood]:
        """How likely each answer follows. An answer begins with its space, if it has one."""

    def answer(self, prompt: Prompt, max_tokens: int) -> str:
        """What greedy decoding says, up to the end of the line, a token that ends texts, or max_tokens."""


class SessionReader:
    """Reads with a session.

    attention, sparsity: the policies, as `Model.session` takes them; default: the model's own defaults. stepwise:
    whether questions and answers are decoded token by token, as `ModelScorer` has it.
    """

    def __init__(
        self,
        model: Model,
        attention: str | None = None,
        sparsity: str | None = None,
        *,
        stepwise: bool | None = None,
    ) -> None:
        self._tokenizer = model.tokenizer
        self._session = model.session(attention=attention, sparsity=sparsity)
        self.stepwise = self._session.acts_in_decoding if stepwise is None else stepwise
        self._prefilled = 0
        self._read = self._exact = 0

    @property
    def attention_sparsity(self) -> float:
        """The share of keys, over layers and heads, that were left unread for questions and answers so far."""
        return Attended(self._read, self._exact).sparsity

    def likelihoods(self, prompt: Prompt, answers: Sequence[str]) -> list[Likelihood]:
        text = prompt.context + prompt.question
        n = len(self._tokenizer.encode(text))
        first = log_softmax(self._ask(prompt)[None])
        end = self._session.position
        found = []
        for answer in answers:
            # Where the prompt's last token and the answer merge, it is cut as lm-evaluation-harness cuts it.
            ids = self._tokenizer.encode(text + answer)[n:]
            if self._session.rewind(end) < end and self.stepwise:
                self._ask(prompt)  # what was decoded is not to be prefilled
            log_p = np.concatenate([first, *self._after(ids[:-1])])[: len(ids)]
            chosen = log_p[np.arange(len(ids)), ids]
            greedy = bool((log_p.max(axis=1) == chosen).all())
            found.append(Likelihood(float(chosen.sum()), len(ids), greedy))
        return found

    def answer(self, prompt: Prompt, max_tokens: int) -> str:
        logits = self._ask(prompt)
        ids: list[int] = []
        text = ""
        while len(ids) < max_tokens and "\n" not in text:
            best = int(logits.argmax())
            if best in self._tokenizer.eos_ids:
                break
            ids.append(best)
            text = self._tokenizer.decode(ids).lstrip()
            logits = self._last([best])
        return text.partition("\n")[0].strip()

    def _ask(self, prompt: Prompt) -> NDArray[np.float32]:
        """Reads the prompt; the logits [vocab] behind it."""
        session = self._session
        ids = self._tokenizer.encode(prompt.context + prompt.question)
        cut = _shared(self._tokenizer.encode(prompt.context), ids[:-1])
        # What was decoded has keys of the policy's making: only what was prefilled is read once for several prompts.
        session.rewind(min(self._prefilled, session.position, _shared(session.tokens, ids[:cut])))
        if rest := ids[session.position : cut]:
            session.prefill(rest)
        self._prefilled = session.position
        return self._last(ids[cut:])

    def _last(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens of a question or an answer; the logits [vocab] behind the last."""
        with self._counted():
            if not self.stepwise:
                return self._session.prefill(ids)
            for token_id in ids:
                logits = self._session.decode(token_id)
            return logits

    def _after(self, ids: Sequence[int]) -> list[F64]:
        """Appends tokens of an answer; log-probabilities behind each, in arrays [m, vocab]."""
        with self._counted():
            parts = self._session.score(ids, chunk=1 if self.stepwise else CHUNK) if ids else ()
            return [log_softmax(part) for part in parts]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        before = self._session.attended
        yield
        self._read += self._session.attended.read - before.read
        self._exact += self._session.attended.exact - before.exact


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
