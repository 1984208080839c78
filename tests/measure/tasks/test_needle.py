"""Needles: where they lie, and what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import OptionError
from edgerun.measure.tasks import needle
from edgerun.text.tokenizer import Tokenizer

from .made import Known

TEXT = "The ferry left at six. " * 40


@pytest.fixture(scope="module")
def tokenizer(package: Path) -> Tokenizer:
    return Tokenizer(package)


def test_where_they_lie(tokenizer: Tokenizer) -> None:
    depths = needle.even_depths(4)
    assert depths == [0.125, 0.375, 0.625, 0.875]
    hidden = needle.needles(tokenizer, TEXT, [100, 400], depths, 3, 1000)
    assert len(hidden) == 2 * 4 * 3 and len({each.number for each in hidden}) > 20
    for each in hidden:
        before, after = each.prompt.context.split(needle.NEEDLE.format(each.number))
        here, whole = len(tokenizer.encode(before)), len(tokenizer.encode(each.prompt.context))
        assert abs(here - each.depth * each.length) <= 25  # about a sentence
        assert before.endswith(".") or "." not in before  # where no sentence has ended yet
        assert whole + len(tokenizer.encode(needle.QUESTION)) + needle.ANSWER <= 1000
        assert needle.NEEDLE.strip()[:10] not in after
    # The deepest comes first, so that the text before the others has been read.
    assert [each.depth for each in hidden[:4]] == depths[::-1]
    assert needle.needles(tokenizer, TEXT, [100, 400], depths, 3, 1000) == hidden


def test_a_text_without_words(tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match="has no words"):
        needle.needles(tokenizer, " \n", [100], [0.5], 1, 512)


def test_a_context_that_is_too_short(tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match="but the context has 512; hide them in shorter texts"):
        needle.needles(tokenizer, TEXT, [100, 500], [0.5], 1, 512)


def test_a_text_without_sentences(tokenizer: Tokenizer) -> None:
    (hidden,) = needle.needles(tokenizer, "word " * 300, [200], [0.5], 1, 512)
    assert hidden.prompt.context.count(hidden.number) == 1


def test_what_is_counted(tokenizer: Tokenizer) -> None:
    hidden = needle.needles(tokenizer, TEXT, [100, 200], [0.25, 0.75], 2, 1000)
    short = [each.number for each in hidden if each.length == 100]
    reader = Known(lambda text, answer: -len(answer), lambda text: next((f" {n}." for n in short if n in text), "none"))
    metrics = needle.measure(reader, hidden)
    assert metrics["found"].tolist() == [1] * 4 + [0] * 4
    assert metrics["logprob"].tolist() == [-6] * 8
    cells = needle.cells(hidden, metrics["found"], np.ones(8))
    assert [(cell.length, cell.depth, cell.needles, cell.found, cell.against) for cell in cells] == [
        (100, 0.25, 2, 1, 1),
        (100, 0.75, 2, 1, 1),
        (200, 0.25, 2, 0, 1),
        (200, 0.75, 2, 0, 1),
    ]
