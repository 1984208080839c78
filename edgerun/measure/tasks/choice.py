"""Multiple choice by log-likelihood, as lm-evaluation-harness scores it: nothing is generated.

Each answer's tokens are scored behind its prompt; the likeliest answer is what the model chose (*accuracy*), or that
with the most log p a byte of its text (*accuracy_norm*). In WinoGrande's form ("partial evaluation") the answers fill
a gap, and what is scored is the rest of the sentence, the same for each.

Examples ("shots") before a question are texts with their right answers, parted by empty lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgerun.errors import OptionError
from edgerun.measure.tasks import questions
from edgerun.measure.tasks.reader import Likelihood, Prompt, Reader
from edgerun.measure.tasks.score import F64
from edgerun.progress import Progress, silent

FORMS = """a file of JSON lines:
{"passage" (may be missing): TEXT, "question": TEXT, "choices": [TEXT, …], "answer": index of the right one}, or BoolQ's
{"passage": TEXT, "question": TEXT, "answer": true or false}, or WinoGrande's
{"sentence": "… _ …", "option1": TEXT, "option2": TEXT, "answer": 1 or 2}"""


@dataclass(frozen=True)
class Choice:
    """prompts: one for each choice.  answers: what is scored behind it.  right: the index of the right one."""

    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    right: int

    @property
    def example(self) -> str:
        """The question with its right answer, as an example for others."""
        prompt = self.prompts[self.right]
        return f"{prompt.context}{prompt.question}{self.answers[self.right]}\n\n"


def load(path: Path) -> list[Choice]:
    """The questions of a file, whose forms are FORMS. Raises OptionError that names the line."""
    return [_read(where, question) for where, question in questions.read(path)]


def asked(every: Sequence[Choice], limit: int, shots: int) -> list[Choice]:
    """At most `limit` questions, evenly from all but the last `shots`, which are examples before each of them."""
    chosen, examples = questions.spread(every, limit, shots)
    before = "".join(example.example for example in examples)
    return [replace(c, prompts=tuple(Prompt(before + p.context, p.question) for p in c.prompts)) for c in chosen]


def measure(reader: Reader, choices: Sequence[Choice], progress: Progress = silent) -> dict[str, F64]:
    """accuracy, accuracy_norm: 1 for a right choice, else 0.  logprob: log p of the right answer, in nats."""
    metrics = {name: np.zeros(len(choices)) for name in ("accuracy", "accuracy_norm", "logprob")}
    for i, choice in enumerate(choices):
        progress(i, len(choices), "questions")
        logprobs = np.array([likelihood.logprob for likelihood in _likelihoods(reader, choice)])
        sizes = np.array([len(answer.strip().encode()) for answer in choice.answers])
        metrics["accuracy"][i] = logprobs.argmax() == choice.right
        metrics["accuracy_norm"][i] = (logprobs / sizes).argmax() == choice.right
        metrics["logprob"][i] = logprobs[choice.right]
    progress(len(choices), len(choices), "questions")
    return metrics


def _likelihoods(reader: Reader, choice: Choice) -> list[Likelihood]:
    if len(set(choice.prompts)) == 1:
        return reader.likelihoods(choice.prompts[0], choice.answers)
    pairs = zip(choice.prompts, choice.answers, strict=True)
    return [likelihood for prompt, answer in pairs for likelihood in reader.likelihoods(prompt, [answer])]


def _read(where: str, question: questions.Question) -> Choice:
    if "sentence" in question:
        return _winogrande(where, question)
    asked = questions.text(where, question, "question")
    passage = questions.text(where, question, "passage") if "passage" in question else ""
    answer = question.get("answer")
    if "choices" not in question and isinstance(answer, bool):  # BoolQ's own form
        prompt = Prompt(f"{passage}\n" if passage else "", f"Question: {asked.removesuffix('?')}?\nAnswer:")
        return Choice((prompt, prompt), (" no", " yes"), int(answer))
    choices = questions.texts(where, question, "choices", 2)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise OptionError(f"{where}: answer must be the index of a choice, 0 to {len(choices) - 1}")
    prompt = Prompt(f"{passage}\n" if passage else "", f"Question: {asked}\nAnswer:")
    return Choice((prompt,) * len(choices), tuple(f" {choice.strip()}" for choice in choices), answer)


def _winogrande(where: str, question: questions.Question) -> Choice:
    before, gap, after = questions.text(where, question, "sentence").partition("_")
    options = [questions.text(where, question, name) for name in ("option1", "option2")]
    if not gap or not after.strip():
        raise OptionError(f"{where}: sentence must have a gap, written as _, and words behind it")
    if question.get("answer") not in (1, 2, "1", "2"):
        raise OptionError(f"{where}: answer must be 1 or 2")
    prompts = tuple(Prompt("", before + option) for option in options)
    return Choice(prompts, (f" {after.strip()}",) * 2, int(question["answer"]) - 1)
