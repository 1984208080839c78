"""Perplexity of a model on a text, and its distance from another model.

Counted as llama.cpp's `llama-perplexity` counts (its default, without a stride): the text's tokens are cut into
windows that don't overlap, a tail shorter than a window is left out; special tokens written in the text are ordinary
characters; if the tokenizer starts texts with BOS, the text starts with it and it takes the place of each later
window's first token; each window starts with an empty cache; of a window of n tokens, those at positions n // 2 + 1 to
n - 1 are scored. A text shorter than one window is one shorter window. Perplexity is exp(mean of -log p(token)) over
all scored tokens.

Kullback-Leibler divergence is KL(reference ‖ model), in nats, averaged over the same positions; top-1 agreement is the
share of them where both find the same token likeliest (as `llama-perplexity --kl-divergence`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edgerun.errors import EdgerunError, OptionError
from edgerun.profile import weight_bytes_skipped
from edgerun.progress import Progress, silent
from edgerun.sparsity.spec import NONE

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.text.tokenizer import Tokenizer

Logits = npt.NDArray[np.float32]
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


@dataclass(frozen=True)
class Evaluation:
    """What was measured. The last two are None if there was nothing to compare with."""

    tokens: int
    perplexity: float
    kl_mean: float | None = None
    top1_agreement: float | None = None


class ModelScorer:
    """Scores with a loaded model, which it closes at the end if used in a `with` statement."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._session = model.session()
        self._decoded = 0
        self._measured = np.zeros((2, len(self._session.tape.ops)), np.int64)

    @property
    def bos_id(self) -> int | None:
        return starting_token(self._model.tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._model.tokenizer.encode(text, parse_special=False)

    def score(self, tokens: Sequence[int], first: int) -> Iterator[Logits]:
        self._session.reset()
        if first:
            self._session.prefill(tokens[:first])
        if self._session.sparsity == NONE:
            return self._session.score(tokens[first:], chunk=CHUNK)
        return self._decode(tokens[first:])

    def _decode(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """One by one, as a sparse session skips weights."""
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            self._model.profile = self._measured
            try:
                yield np.stack([self._session.decode(token).copy() for token in part])
            finally:
                self._model.profile = None
            self._decoded += len(part)

    def weight_bytes_skipped(self) -> float | None:
        """The share of the weights' bytes that the decoded tokens left unread, 0 to 1; None without sparsity."""
        if self._session.sparsity == NONE:
            return None
        return weight_bytes_skipped(self._session.tape, self._measured, self._decoded)

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
    loss = divergence = 0.0
    count = agreed = 0
    for done, part in enumerate(windows):
        progress(done, len(windows), "windows")
        first = len(part) // 2
        targets = np.asarray(part[first + 1 :])
        part = part[:-1]  # nothing is asked about what follows the last token
        theirs = None if reference is None else reference.score(started(part, reference.bos_id), first)
        start = 0
        for logits in model.score(started(part, model.bos_id), first):
            expected = targets[start : start + len(logits)]
            log_p = log_softmax(logits)
            loss -= float(log_p[np.arange(len(expected)), expected].sum())
            if theirs is not None:
                log_q = log_softmax(_matching(theirs, log_p.shape))
                divergence += kl_sum(log_q, log_p)
                agreed += int((log_q.argmax(axis=1) == log_p.argmax(axis=1)).sum())
            start += len(logits)
        count += start
    progress(len(windows), len(windows), "windows")
    perplexity = math.exp(loss / count)
    if reference is None:
        return Evaluation(count, perplexity)
    return Evaluation(count, perplexity, divergence / count, agreed / count)


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


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probabilities of logits [n, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normaliser: npt.NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_p: npt.NDArray[np.float64] = shifted - normaliser
    return log_p


def kl_sum(log_q: npt.NDArray[np.float64], log_p: npt.NDArray[np.float64]) -> float:
    """Sum over rows of KL(q ‖ p), from log-probabilities [n, vocab]; a token that q rules out adds nothing."""
    q = np.exp(log_q)
    return float(np.sum(q * np.where(q > 0, log_q - log_p, 0)))


def _matching(theirs: Iterator[Logits], shape: tuple[int, ...]) -> Logits:
    logits = next(theirs)
    if logits.shape != shape:
        raise EdgerunError(
            f"the models have {shape[1]} and {logits.shape[1]} tokens in their vocabularies; compare models that share "
            "one"
        )
    return logits
