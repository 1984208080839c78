"""What a policy costs in the end: its predictions of a text against those of exact attention, by the runtime itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.spec import Attention
from edgerun.measure.evaluate import CHUNK, kl, log_softmax
from edgerun.session import Session

if TYPE_CHECKING:
    from edgerun.model import Model

_MOST_BYTES = 1 << 28
"""Exact logits that are kept, at most: where a text has more, every second, third … position is compared."""


@dataclass(frozen=True)
class Cost:
    """kl: mean divergence from exact attention, nats a token. perplexity: of the same tokens. sparsity, read_share: as
    in ``Setting``."""

    kl: float
    perplexity: float
    sparsity: float
    read_share: float


class Reference:
    """Exact predictions of the tokens after ``first``. one_by_one: whether they are decoded, not prefilled."""

    def __init__(self, model: Model, tokens: Sequence[int], first: int, *, one_by_one: bool) -> None:
        self._model, self._tokens, self._first = model, list(tokens), first
        self._prefix = self._begun(model.open_session())
        self._chunk = 1 if one_by_one else CHUNK
        self._step = max(1, math.ceil((len(tokens) - 1 - first) * model.vocab_size * 4 / _MOST_BYTES))
        self._logits = np.concatenate([rows.copy() for rows in self._rows(self._after_prefix(Attention()))])
        """float32 [compared positions, vocab_size]"""
        self.perplexity = self._compare(iter(np.split(self._logits, range(CHUNK, len(self._logits), CHUNK))))[1]

    def cost(self, attention: Attention) -> Cost:
        """What a policy costs, with a cache that is its own from the first token on."""
        if attention.deltallm is None:  # DELTA, which does nothing before the first token is decoded
            session = self._after_prefix(attention)
        else:
            session = self._begun(self._model.open_session(attention=attention))
        before = session.attended
        kl, perplexity = self._compare(self._rows(session))
        kept, left = session.runs
        read, exact = (end - start for end, start in zip(session.attended, before, strict=True))
        return Cost(kl, perplexity, 1 - kept / left if left else 0.0, read / exact)

    def _after_prefix(self, attention: Attention) -> Session:
        """A policy from ``first`` on; what is before is exact, and shared by all of these."""
        session = self._model.open_session(attention=attention)
        session.sequence.share(self._prefix.sequence)
        return session

    def _begun(self, session: Session) -> Session:
        """The session, which now holds the tokens before those that are compared."""
        session.prefill(self._tokens[: self._first])
        return session

    def _rows(self, session: Session) -> Iterator[NDArray[np.float32]]:
        """Logits of the compared positions, in parts."""
        at = self._first
        for logits in session.score(self._tokens[self._first : -1], chunk=self._chunk):
            offset = -(at - self._first) % self._step
            at += len(logits)
            if offset < len(logits):
                yield logits[offset :: self._step]

    def _compare(self, parts: Iterator[NDArray[np.float32]]) -> tuple[float, float]:
        targets = np.asarray(self._tokens[self._first + 1 :: self._step])
        divergence = loss = 0.0
        start = 0
        for logits in parts:
            end = start + len(logits)
            log_p = log_softmax(logits)
            divergence += float(kl(log_softmax(self._logits[start:end]), log_p).sum())
            loss -= float(log_p[np.arange(len(logits)), targets[start:end]].sum())
            start = end
        return max(0.0, divergence / start), math.exp(loss / start)
