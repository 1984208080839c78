"""What a session answers, against the same tokens run in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun.measure.evaluate import log_softmax
from edgerun.measure.tasks.reader import Prompt, SessionReader

STORY = "The ferry to the island left at half past six, and the town behind it was grey. " * 2
PROMPTS = [
    Prompt(STORY, "Question: when?\nAnswer:"),
    Prompt(STORY, "Question: where to?\nAnswer:"),
    Prompt(STORY + STORY, "Question: when?\nAnswer:"),
    Prompt("", "When?"),
    Prompt(STORY[:40], "When?"),
]
ANSWERS = [" at half past six", " six", " to the island"]


@pytest.fixture(scope="module")
def model(package: Path) -> Iterator[edgerun.Model]:
    with edgerun.load(package, compute="float32", cache="f32") as loaded:
        yield loaded


@pytest.mark.parametrize(
    "attention",
    [
        "full",
        "delta:budget=512,select=0,full=0",
        "deltallm:theta=0,window=1",
        "deltallm:theta=0,window=1+delta:select=0,full=0",
    ],
)
def test_likelihoods_are_those_of_the_whole_text(model: edgerun.Model, attention: str) -> None:
    reader = SessionReader(model, attention)
    session = model.session()
    for prompt in PROMPTS + PROMPTS[::-1]:
        for answer, found in zip(ANSWERS, reader.likelihoods(prompt, ANSWERS), strict=True):
            before = model.tokenizer.encode(prompt.context + prompt.question)
            whole = model.tokenizer.encode(prompt.context + prompt.question + answer)
            session.reset()
            log_p = log_softmax(np.concatenate([part.copy() for part in session.score(whole[:-1])]))
            rows = log_p[len(before) - 1 :]
            assert found.tokens == len(rows)
            assert found.logprob == pytest.approx(rows[np.arange(len(rows)), whole[len(before) :]].sum(), abs=1e-3)


def test_answers_are_greedy(model: edgerun.Model) -> None:
    reader = SessionReader(model)
    for prompt in PROMPTS:
        text = prompt.context + prompt.question
        told = model.session().generate(text, temperature=0, max_tokens=8)
        said = "".join(piece.text for piece in told).lstrip().partition("\n")[0].strip()
        assert reader.answer(prompt, 8) == said


def test_what_is_greedy_is_marked(model: edgerun.Model) -> None:
    reader = SessionReader(model)
    session = model.session()
    ids = model.tokenizer.encode(STORY)
    best = int(session.prefill(ids).argmax())
    answer = model.tokenizer.decode([*ids, best])[len(STORY) :]
    if model.tokenizer.encode(STORY + answer) == [*ids, best]:  # else it is other tokens when read again
        assert reader.likelihoods(Prompt("", STORY), [answer])[0].greedy
    assert not all(found.greedy for found in reader.likelihoods(Prompt("", STORY), ANSWERS))


def test_full_attention_leaves_nothing_out(model: edgerun.Model) -> None:
    reader = SessionReader(model)
    reader.likelihoods(PROMPTS[0], ANSWERS)
    assert reader.attention_sparsity == 0


@pytest.mark.parametrize("attention", ["delta:budget=32,recent=16,select=0,full=0", "deltallm:theta=1.4,window=1"])
def test_what_was_read_before_changes_nothing(two_layers: Path, attention: str) -> None:
    with edgerun.load(two_layers, compute="float32", cache="f32", threads=1) as loaded:
        one = SessionReader(loaded, attention)
        for prompt in PROMPTS:
            told = one.answer(prompt, 4)
            found = one.likelihoods(prompt, ANSWERS)
            fresh = SessionReader(loaded, attention)
            again = fresh.likelihoods(prompt, ANSWERS)
            assert [a.logprob for a in found] == pytest.approx([a.logprob for a in again], abs=1e-3)
            assert told == fresh.answer(prompt, 4)
        assert one.attention_sparsity > 0
