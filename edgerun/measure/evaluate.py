"""Perplexity of a model on a text, and its distance from another model.

Counted as llama.cpp's `llama-perplexity` counts (its default, without a stride): the text's tokens are cut into
windows that don't overlap, a tail shorter than a window is left out; special tokens written in the text are ordinary
characters; if the tokenizer starts texts with BOS, the text starts with it and it takes the place of each later
window's first token; each window starts with an empty cache; of a window of n tokens, those at positions n // 2 + 1 to
n - 1 are scored. A text shorter than one window is one shorter window. Perplexity is exp(mean of -log p(token)) over
all scored tokens.

Kullback-Leibler divergence is KL(reference ‖ model), in nats, averaged over the same positions; top-1 agreement is the
share of them where both find the same token likeliest (as `llama-perplexity --kl-divergence`). Standard errors take
scored tokens as independent, as that program's do.

A policy that acts in decoding alone is scored so: the first half of each window is prefilled, the second decoded token
by token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edgerun.attention.state import Attended, RunCount
from edgerun.errors import EdgerunError, OptionError
from edgerun.progress import Progress, silent
from edgerun.sparsity.spec import NONE
from edgerun.sparsity.traffic import weight_bytes_skipped

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.text.tokenizer import Tokenizer

Logits = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
CHUNK = 64  # positions whose logits are held at once: memory is 2 · CHUNK · vocab numbers, whatever the text


class Scorer(Protocol):
    """A model that gives logits."""

    @property
    def bos_id(self) -> int | None:
        """The token that this tokenizer starts a text with, if it does."""

    def encode(self, text: str) -> list[int]:
        """The text's tokens, as they are scored."""

    def score(self, tokens: Sequence[int], first: int) -> Iterator[Logits]:
        """Logits after each of tokens[first:], from an empty cache: arrays [at most CHUNK, vocab]."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, per scored token: float64 [windows, scored tokens of a window], by position.

    losses, reference_losses: -log p of the text's token, in nats. divergences: KL(reference ‖ model), in nats. agreed:
    whether both find the same token likeliest. The last three are None if there was nothing to compare with.
    first: the position of the first scored token in its window.
    """

    losses: F64
    first: int
    reference_losses: F64 | None = None
    divergences: F64 | None = None
    agreed: npt.NDArray[np.bool_] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return self.losses.size

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean())

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * standard_error(self.losses)

    @property
    def reference_perplexity(self) -> float | None:
        return None if self.reference_losses is None else math.exp(self.reference_losses.mean())

    @property
    def kl_mean(self) -> float | None:
        return None if self.divergences is None else float(self.divergences.mean())

    @property
    def kl_stderr(self) -> float | None:
        """Standard error of the mean divergence."""
        return None if self.divergences is None else standard_error(self.divergences)

    @property
    def top1_agreement(self) -> float | None:
        return None if self.agreed is None else float(self.agreed.mean())


class ModelScorer:
    """Scores with a loaded model, which it closes at the end if used in a `with` statement.

    attention, sparsity: the policies, as `Model.session` takes them; default: the model's own defaults.
    stepwise: whether what is scored is decoded token by token; default: if a policy asks for that. Decoding rounds
    otherwise than prefill: who wants to see the policy alone scores the reference the same way.
    """

    def __init__(
        self,
        model: Model,
        attention: str | None = None,
        sparsity: str | None = None,
        *,
        stepwise: bool | None = None,
    ) -> None:
        self._model = model
        self._session = model.session(attention=attention, sparsity=sparsity)
        self.stepwise = self._session.acts_in_decoding if stepwise is None else stepwise
        self._read = self._exact = self._kept = self._all = self._decoded = 0
        self._measured = np.zeros((2, len(self._session.model.tape.ops)), np.int64)

    @property
    def bos_id(self) -> int | None:
        return starting_token(self._model.tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._model.tokenizer.encode(text, parse_special=False)

    @property
    def attention_sparsity(self) -> float:
        """The share of keys, over layers and heads, that were left unread for the tokens scored so far; 0 if none."""
        return Attended(self._read, self._exact).sparsity

    @property
    def sparsity_outside_window(self) -> float | None:
        """The share of keys (of the form "element": of their elements) that DeltaLLM dropped of those behind its
        window at the end of every text scored so far; None without DeltaLLM."""
        return None if self._session.attention.deltallm is None else RunCount(self._kept, self._all).sparsity

    @property
    def weight_bytes_skipped(self) -> float | None:
        """The share of the weights' bytes that was left unread for the tokens scored so far; None without sparsity."""
        if self._session.sparsity == NONE:
            return None
        session = self._session
        return weight_bytes_skipped(session.model.tape, session.policy, self._measured[1], self._decoded)

    def _watched(self, scored: Iterator[Logits]) -> Iterator[Logits]:
        """Counts the columns that are read, of this session alone."""
        while True:
            self._model.profile = self._measured
            try:
                logits = next(scored, None)
            finally:
                self._model.profile = None
            if logits is None:
                return
            self._decoded += len(logits)
            yield logits

    def score(self, tokens: Sequence[int], first: int) -> Iterator[Logits]:
        session = self._session
        session.reset()
        if first:
            session.prefill(tokens[:first])
        before = session.attended
        scored = session.score(tokens[first:], chunk=1 if self.stepwise else CHUNK)
        yield from gathered(scored if session.sparsity == NONE else self._watched(scored))
        self._read += session.attended.read - before.read
        self._exact += session.attended.exact - before.exact
        self._kept += session.runs.kept
        self._all += session.runs.all

    def __enter__(self) -> ModelScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.close()


def starting_token(tokenizer: Tokenizer) -> int | None:
    """The BOS that a tokenizer puts before every text, if it does."""
    return tokenizer.bos_id if tokenizer.adds_bos else None


def evaluate(
    model: Scorer,
    tokens: Sequence[int],
    *,
    window: int = 512,
    reference: Scorer | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Scores the tokens of a text, as `model.encode` gave them, in windows of `window` tokens; see the module for how.

    Raises `OptionError` if there are too few tokens to score any, `EdgerunError` if the two models don't have the same
    vocabulary.
    """
    windows = [list(part) for part in split(tokens, window)]
    first = len(windows[0]) // 2
    shape = len(windows), len(windows[0]) - 1 - first
    losses, their_losses, divergences, agreed = np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape, bool)
    for done, part in enumerate(windows):
        progress(done, len(windows), "windows")
        targets = np.asarray(part[first + 1 :])
        part = part[:-1]  # nothing is asked about what follows the last token
        theirs = None if reference is None else reference.score(started(part, reference.bos_id), first)
        start = 0
        for logits in model.score(started(part, model.bos_id), first):
            rows = slice(start, start + len(logits))
            expected = np.arange(len(logits)), targets[rows]
            log_p = log_softmax(logits)
            losses[done, rows] = -log_p[expected]
            if theirs is not None:
                log_q = log_softmax(_matching(theirs, log_p.shape))
                their_losses[done, rows] = -log_q[expected]
                divergences[done, rows] = kl(log_q, log_p)
                agreed[done, rows] = log_q.argmax(axis=1) == log_p.argmax(axis=1)
            start += len(logits)
    progress(len(windows), len(windows), "windows")
    if reference is None:
        return Evaluation(losses, first + 1)
    return Evaluation(losses, first + 1, their_losses, divergences, agreed)


def split(tokens: Sequence[int], window: int) -> list[Sequence[int]]:
    """Whole windows of `window` tokens; all tokens if they are fewer. Raises `OptionError` if that scores nothing."""
    if window < 4:
        raise OptionError(f"the evaluation's context is {window}; at least 4 tokens are needed to score any")
    if len(tokens) < 4:
        raise OptionError(f"the text has {len(tokens)} tokens; at least 4 are needed to score any: give a longer text")
    window = min(window, len(tokens))
    return [tokens[start : start + window] for start in range(0, len(tokens) - window + 1, window)]


def started(part: list[int], bos_id: int | None) -> list[int]:
    """The window with BOS in the place of its first token, if there is a BOS."""
    return part if bos_id is None else [bos_id, *part[1:]]


def log_softmax(logits: Logits) -> F64:
    """Log-probabilities of logits [n, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normaliser: F64 = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_p: F64 = shifted - normaliser
    return log_p


def kl(log_q: F64, log_p: F64) -> F64:
    """KL(q ‖ p) of each row, float64 [n], from log-probabilities [n, vocab]; a token that q rules out adds nothing."""
    q = np.exp(log_q)
    divergence: F64 = np.sum(q * np.where(q > 0, log_q - log_p, 0), axis=1)
    return divergence


def standard_error(values: npt.ArrayLike) -> float:
    """The standard error of the mean of independent values: their standard deviation (of a sample) over the root of
    their number; 0 for one value, which tells nothing of its spread."""
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


def gathered(parts: Iterable[Logits]) -> Iterator[Logits]:
    """Arrays [m, vocab] that are valid one at a time, as arrays of CHUNK rows, the last of fewer."""
    rows: list[Logits] = []
    for part in parts:
        rows.extend(part.copy())
        while len(rows) >= CHUNK:
            yield np.stack(rows[:CHUNK])
            del rows[:CHUNK]
    if rows:
        yield np.stack(rows)


def _matching(theirs: Iterator[Logits], shape: tuple[int, ...]) -> Logits:
    logits = next(theirs)
    if logits.shape != shape:
        raise EdgerunError(
            f"the models have {shape[1]} and {logits.shape[1]} tokens in their vocabularies; compare models that share "
            "one"
        )
    return logits
