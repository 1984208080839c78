"""Files of questions, and a reader of which all is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgerun.measure.tasks.reader import Likelihood, Prompt


def lines(path: Path, questions: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(question) for question in questions), "utf-8")
    return path


class Known:
    """Answers and log-probabilities by functions of prompt and answer."""

    def __init__(
        self, logprob: Callable[[str, str], float] = lambda text, answer: 0.0, said: Callable[[str], str] = str
    ) -> None:
        self._logprob, self._said = logprob, said
        self.asked: list[str] = []

    def likelihoods(self, prompt: Prompt, answers: Sequence[str]) -> list[Likelihood]:
        text = prompt.context + prompt.question
        self.asked.append(text)
        return [Likelihood(self._logprob(text, answer), len(answer.split()), False) for answer in answers]

    def answer(self, prompt: Prompt, max_tokens: int) -> str:
        return self._said(prompt.context + prompt.question)
