"""Answers in words: SQuAD's counting, and forms of files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edgerun.errors import OptionError
from edgerun.measure.tasks import qa
from edgerun.measure.tasks.reader import Prompt

from .made import Known, lines

OURS = {"passage": "Ann went to Rome.", "question": "Who went?", "answers": ["Ann"]}
SQUAD = {
    "context": "Bob stayed.",
    "question": "Who stayed?",
    "answers": {"text": ["Bob", "Bob did"], "answer_start": [0]},
}
UNANSWERABLE = {"context": "Bob stayed.", "question": "Who left?", "answers": {"text": [], "answer_start": []}}


# Values of SQuAD's evaluate-v2.0.py (compute_f1, compute_exact) for these pairs.
@pytest.mark.parametrize(
    ("said", "answer", "f1", "exact"),
    [
        ("the Norman conquest", "Norman Conquest!", 1, True),
        ("in the 10th century", "10th century", 0.8, False),
        ("Rome", "Paris", 0, False),
        ("a a b b", "b b c", 0.8, False),
        ("the", "an", 1, True),
        ("", "Rome", 0, False),
        ("  New   York ", "new york", 1, True),
        ("40,000", "40000", 1, True),
        ("theatre", "the atre", 0, False),
    ],
)
def test_as_squad_counts(said: str, answer: str, f1: float, exact: bool) -> None:
    assert qa.f1(said, answer) == pytest.approx(f1)
    assert (qa.normalised(said) == qa.normalised(answer)) is exact


def test_forms(tmp_path: Path) -> None:
    ours, squad = qa.load(lines(tmp_path / "a.jsonl", [OURS, UNANSWERABLE, SQUAD]))
    assert ours == qa.Question(Prompt("Ann went to Rome.\n", "Question: Who went?\nAnswer:"), ("Ann",))
    assert squad == qa.Question(Prompt("Bob stayed.\n", "Question: Who stayed?\nAnswer:"), ("Bob", "Bob did"))
    asked = qa.asked([ours, squad], 5, 1)
    assert asked[0].prompt.context == "Bob stayed.\nQuestion: Who stayed?\nAnswer: Bob\n\nAnn went to Rome.\n"


def test_what_is_counted(tmp_path: Path) -> None:
    asked = qa.load(lines(tmp_path / "a.jsonl", [OURS, SQUAD]))
    metrics = qa.measure(
        Known(lambda text, answer: -3.0, lambda text: "Bob did it" if "Bob" in text else "ann."), asked
    )
    assert metrics["f1"].tolist() == [1, pytest.approx(0.8)]
    assert metrics["exact_match"].tolist() == [1, 0]
    assert metrics["logprob"].tolist() == [-3, -3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "Who?", "answers": ["a"]}, "context must be a text"),
        (OURS | {"question": 1}, "question must be a text"),
        (OURS | {"answers": "Ann"}, "answers must be a list"),
        (OURS | {"answers": {"text": "Ann"}}, "answers must be a list"),
        (OURS | {"answers": [" "]}, "answers must be a list"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, line: Any, message: str) -> None:
    path = lines(tmp_path / "a.jsonl", [OURS, line])
    with pytest.raises(OptionError, match=re.escape(f"{path}, line 2: ") + message):
        qa.load(path)


def test_no_question_has_an_answer(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no question has an answer"):
        qa.load(lines(tmp_path / "a.jsonl", [UNANSWERABLE]))
