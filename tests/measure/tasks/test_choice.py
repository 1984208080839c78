"""Multiple choice: forms of files, prompts, and what is counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import OptionError
from edgerun.measure.tasks import choice
from edgerun.measure.tasks.reader import Prompt
from edgerun.measure.tasks.score import scores

from .made import Known, lines

CITIES = {"question": "Where is the tower?", "choices": ["in Rome", "in the city of Paris"], "answer": 1}
BOOLQ = {"passage": "Grass is green.", "question": "is grass green", "answer": True}
WINOGRANDE = {"sentence": "The cup broke as _ was thin.", "option1": "the table", "option2": "the cup", "answer": "2"}


def test_forms(tmp_path: Path) -> None:
    cities, boolq, winogrande = choice.load(lines(tmp_path / "a.jsonl", [CITIES, BOOLQ, WINOGRANDE]))
    asked = Prompt("", "Question: Where is the tower?\nAnswer:")
    assert cities == choice.Choice((asked, asked), (" in Rome", " in the city of Paris"), 1)
    asked = Prompt("Grass is green.\n", "Question: is grass green?\nAnswer:")
    assert boolq == choice.Choice((asked, asked), (" no", " yes"), 1)
    prompts = Prompt("", "The cup broke as the table"), Prompt("", "The cup broke as the cup")
    assert winogrande == choice.Choice(prompts, (" was thin.", " was thin."), 1)


def test_examples_stand_before_every_question(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [CITIES, BOOLQ | {"question": "is it"}, BOOLQ, WINOGRANDE])
    every = choice.load(path)
    before = "Grass is green.\nQuestion: is grass green?\nAnswer: yes\n\nThe cup broke as the cup was thin.\n\n"
    asked = choice.asked(every, 10, 2)
    assert len(asked) == 2
    assert asked[0].prompts[0] == Prompt(before, "Question: Where is the tower?\nAnswer:")
    assert asked[1].prompts[0].context == before + "Grass is green.\n"
    with pytest.raises(OptionError, match="4 questions, of which 4 would be examples"):
        choice.asked(every, 10, 4)


def test_questions_are_taken_evenly(tmp_path: Path) -> None:
    every = choice.load(lines(tmp_path / "a.jsonl", [CITIES | {"question": str(i)} for i in range(10)]))
    chosen = [re.findall(r"\d+", question.prompts[0].question)[0] for question in choice.asked(every, 4, 1)]
    assert chosen == ["0", "2", "4", "6"]


def test_what_is_counted(tmp_path: Path) -> None:
    asked = choice.load(lines(tmp_path / "a.jsonl", [CITIES, BOOLQ, WINOGRANDE]))
    known = {" in Rome": -10.0, " in the city of Paris": -11.0, " no": -1.0, " yes": -2.0}
    reader = Known(lambda text, answer: -1.0 if text.endswith("the cup") else known.get(answer, -3.0))
    metrics = choice.measure(reader, asked)
    assert metrics["accuracy"].tolist() == [0, 0, 1]
    assert metrics["accuracy_norm"].tolist() == [
        1,
        0,
        1,
    ]  # -11 / 20 bytes is more than -10 / 7; -1 / 2 less than -2 / 3
    assert metrics["logprob"].tolist() == [-11, -2, -1]
    assert len(reader.asked) == 4  # choices behind one prompt are one question


def test_scores_in_pairs() -> None:
    ours, theirs = np.array([1.0, 0, 1, 1]), np.array([1.0, 1, 1, 0])
    score = scores({"accuracy": ours}, {"accuracy": theirs})["accuracy"]
    assert score.mean == 0.75 and score.against == 0.75 and score.difference == 0
    assert score.stderr == pytest.approx(0.25)  # standard deviation 0.5, of four
    assert score.difference_stderr == pytest.approx(np.std([0, -1, 0, 1], ddof=1) / 2)
    assert scores({"accuracy": ours})["accuracy"].difference is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "question must be a text"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "question must be a text"),
        (CITIES | {"choices": ["a"]}, "choices must be a list of 2 or more"),
        (CITIES | {"choices": ["a", 3]}, "choices must be a list of 2 or more"),
        (CITIES | {"answer": 2}, "answer must be the index of a choice, 0 to 1"),
        (CITIES | {"answer": "in Rome"}, "answer must be the index"),
        (CITIES | {"answer": True}, "answer must be the index"),
        (CITIES | {"passage": ""}, "passage must be a text"),
        (WINOGRANDE | {"sentence": "no gap."}, "sentence must have a gap"),
        (WINOGRANDE | {"sentence": "at the end _"}, "sentence must have a gap"),
        (WINOGRANDE | {"answer": 3}, "answer must be 1 or 2"),
        ([1], "holds a JSON list"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, line: Any, message: str) -> None:
    path = lines(tmp_path / "a.jsonl", [CITIES, line])
    with pytest.raises(OptionError, match=re.escape(f"{path}, line 2: ") + message):
        choice.load(path)


def test_files_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{")
    with pytest.raises(OptionError, match="line 1: no JSON"):
        choice.load(tmp_path / "a")
    (tmp_path / "a").write_text("\n")
    with pytest.raises(OptionError, match="has no questions"):
        choice.load(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(OptionError, match="not UTF-8"):
        choice.load(tmp_path / "a")
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(OptionError, match="line 1: no JSON"):
        choice.load(tmp_path / "a")
    with pytest.raises(OptionError, match="cannot be read"):
        choice.load(tmp_path / "missing")
