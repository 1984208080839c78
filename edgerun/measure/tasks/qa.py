"""Questions about a passage, answered in words: F1 and exact match as SQuAD's official script counts them.

The model continues "Question: …, Answer:" behind the passage, greedily, to the end of the line. Beside that, how likely
it finds the first given answer, per token: that moves before any word does.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgerun.errors import OptionError
from edgerun.measure.tasks import questions
from edgerun.measure.tasks.reader import Prompt, Reader
from edgerun.measure.tasks.score import F64
from edgerun.progress import Progress, silent

FORMS = """a file of JSON lines:
{"passage": TEXT, "question": TEXT, "answers": [TEXT, …]}, or SQuAD's lines of the Hugging Face Hub
{"context": TEXT, "question": TEXT, "answers": {"text": [TEXT, …], …}}; questions without an answer are left out"""
MOST_TOKENS = 32
"""Tokens of an answer, at most."""


@dataclass(frozen=True)
class Question:
    """prompt: the passage, and the question behind it.  answers: those that are right."""

    prompt: Prompt
    answers: tuple[str, ...]

    @property
    def example(self) -> str:
        """The question with its first answer, as an example for others."""
        return f"{self.prompt.context}{self.prompt.question} {self.answers[0]}\n\n"


def load(path: Path) -> list[Question]:
    """The questions of a file that have an answer; its forms are FORMS. Raises OptionError that names the line."""
    read = (_read(where, question) for where, question in questions.read(path))
    found = [question for question in read if question.answers]
    if not found:
        raise OptionError(f"{path}: no question has an answer; give some that have")
    return found


def asked(every: Sequence[Question], limit: int, shots: int) -> list[Question]:
    """At most `limit` questions, evenly from all but the last `shots`, which are examples before each of them."""
    chosen, examples = questions.spread(every, limit, shots)
    before = "".join(example.example for example in examples)
    return [replace(q, prompt=Prompt(before + q.prompt.context, q.prompt.question)) for q in chosen]


def measure(reader: Reader, asked: Sequence[Question], progress: Progress = silent) -> dict[str, F64]:
    """f1, exact_match: of the greedy answer, the best over the given ones, 0 to 1.  logprob: mean log p of a token of
    the first given answer, in nats."""
    metrics = {name: np.zeros(len(asked)) for name in ("f1", "exact_match", "logprob")}
    for i, question in enumerate(asked):
        progress(i, len(asked), "questions")
        said = reader.answer(question.prompt, MOST_TOKENS)
        (likelihood,) = reader.likelihoods(question.prompt, [f" {question.answers[0]}"])
        metrics["f1"][i] = max(f1(said, answer) for answer in question.answers)
        metrics["exact_match"][i] = max(normalised(said) == normalised(answer) for answer in question.answers)
        metrics["logprob"][i] = likelihood.logprob / max(1, likelihood.tokens)
    progress(len(asked), len(asked), "questions")
    return metrics


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and more than one space, as SQuAD's script compares answers."""
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def f1(said: str, answer: str) -> float:
    """The words that two answers share, as SQuAD's script counts: the harmonic mean of precision and recall."""
    ours, theirs = normalised(said).split(), normalised(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def _read(where: str, question: questions.Question) -> Question:
    passage = questions.text(where, question, "passage" if "passage" in question else "context")
    asked = questions.text(where, question, "question")
    answers = question.get("answers")
    if isinstance(answers, dict):
        answers = answers.get("text")
    given = questions.texts(where, {"answers": answers}, "answers", 0)
    prompt = Prompt(f"{passage}\n", f"Question: {asked}\nAnswer:")
    return Question(prompt, tuple(answer.strip() for answer in given))
