"""Perplexity, KL divergence and agreement, against their definitions written out in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from edgerun.errors import EdgerunError, OptionError
from edgerun.measure.evaluate import CHUNK, Logits, evaluate, gathered, kl, log_softmax, split, standard_error, started

VOCAB = 50


class Bigram:
    """A model of which all is known: the logits after a token depend on that token alone."""

    def __init__(self, seed: int, bos_id: int | None = None, vocab: int = VOCAB, chunk: int = CHUNK) -> None:
        self.table = np.random.default_rng(seed).normal(0, 3, (VOCAB, vocab)).astype(np.float32)
        self.bos_id = bos_id
        self.chunk = chunk
        self.windows: list[list[int]] = []

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCAB for letter in text]

    def score(self, tokens: Sequence[int], first: int) -> Iterator[Logits]:
        self.windows.append(list(tokens))
        for start in range(first, len(tokens), self.chunk):
            yield self.table[tokens[start : start + self.chunk]]


def probabilities(row: np.ndarray) -> np.ndarray:
    e = np.exp(row.astype(np.float64) - row.max())
    return e / e.sum()


TOKENS = np.random.default_rng(0).integers(0, VOCAB, 1000).tolist()


@pytest.mark.parametrize("window", [4, 5, 64, 511, 1000])
def test_against_the_definition(window: int) -> None:
    model, reference = Bigram(1), Bigram(2)
    losses, divergences, agreed = [], [], []
    for start in range(0, len(TOKENS) - window + 1, window):
        part = TOKENS[start : start + window]
        for position in range(window // 2, window - 1):
            p = probabilities(model.table[part[position]])
            q = probabilities(reference.table[part[position]])
            losses.append(-math.log(p[part[position + 1]]))
            divergences.append(float(np.sum(q * np.log(q / p))))
            agreed.append(p.argmax() == q.argmax())
    result = evaluate(model, TOKENS, window=window, reference=reference)
    assert result.tokens == len(losses)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)))
    assert result.kl_mean == pytest.approx(np.mean(divergences))
    assert result.top1_agreement == pytest.approx(np.mean(agreed))
    if len(losses) > 1:
        spread = np.std(losses, ddof=1) / math.sqrt(len(losses))
        assert result.perplexity_stderr == pytest.approx(result.perplexity * spread)
        assert result.kl_stderr == pytest.approx(np.std(divergences, ddof=1) / math.sqrt(len(losses)))
    alone = evaluate(reference, TOKENS, window=window)
    assert result.reference_perplexity == pytest.approx(alone.perplexity)
    assert result.first == window // 2 + 1 and result.losses.shape == (1000 // window, window - 1 - window // 2)


def test_a_model_is_itself() -> None:
    result = evaluate(Bigram(1), TOKENS, reference=Bigram(1))
    assert result.kl_mean == pytest.approx(0, abs=1e-12) and result.top1_agreement == 1


def test_alone_there_is_nothing_to_compare() -> None:
    result = evaluate(Bigram(1), TOKENS)
    assert result.kl_mean is None and result.top1_agreement is None
    assert result.tokens == 255


def test_a_short_text_is_one_window() -> None:
    assert [len(part) for part in split(TOKENS[:100], 512)] == [100]
    assert evaluate(Bigram(1), TOKENS[:100]).tokens == 49


def test_a_tail_is_left_out() -> None:
    assert [len(part) for part in split(TOKENS, 300)] == [300, 300, 300]


def test_every_window_starts_with_bos_if_texts_do() -> None:
    model = Bigram(1, bos_id=7)
    evaluate(model, TOKENS, window=100)
    assert [part[0] for part in model.windows] == [7] * 10
    assert model.windows[1][1:] == TOKENS[101:199]
    assert started([1, 2, 3], None) == [1, 2, 3]


def test_progress_ends_at_the_end() -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(Bigram(1), TOKENS, window=100, progress=lambda *report: seen.append(report))
    assert seen[0][:2] == (0, 10) and seen[-1][:2] == (10, 10)


def test_too_little_text() -> None:
    with pytest.raises(OptionError, match="3 tokens"):
        evaluate(Bigram(1), TOKENS[:3])
    with pytest.raises(OptionError, match="context is 3"):
        evaluate(Bigram(1), TOKENS, window=3)


def test_vocabularies_that_differ() -> None:
    with pytest.raises(EdgerunError, match="50 and 60 tokens"):
        evaluate(Bigram(1), TOKENS, reference=Bigram(2, vocab=60))


def test_extreme_logits() -> None:
    logits = np.array([[1e4, 0, -1e4], [-1e30, 0, 0]], np.float32)
    log_p = log_softmax(logits)
    assert np.allclose(np.exp(log_p).sum(axis=1), 1)
    assert log_p[0, 1] == -1e4
    assert np.isfinite(kl(log_softmax(np.zeros((1, 3), np.float32)), log_softmax(logits[:1]))).all()
    certain = np.array([[0.0, -740.0, -np.inf]])
    assert kl(certain, np.log(np.array([[0.5, 0.25, 0.25]]))) == pytest.approx([math.log(2)])


def test_standard_error() -> None:
    assert standard_error([1, 0, 0, 1]) == pytest.approx(math.sqrt(1 / 3) / 2)
    assert standard_error([5]) == 0


def test_rows_are_gathered() -> None:
    buffer = np.zeros((1, 3), np.float32)

    def rows(count: int) -> Iterator[Logits]:
        for i in range(count):
            buffer[:] = i  # as a session: valid until the next is asked for
            yield buffer

    for count in (0, 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5):
        parts = list(gathered(rows(count)))
        assert [len(part) for part in parts[:-1]] == [CHUNK] * (len(parts) - 1)
        assert [int(row[0]) for part in parts for row in part] == list(range(count))
