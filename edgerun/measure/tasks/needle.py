"""Needles in a haystack: a number somewhere in a long text, and a question for it at its end (G. Kamradt's test).

The haystack is ordinary text, from a random place of it on; at a depth between 0 and 1 of its length, between two
sentences where it has any, stands "The special magic number is: N.", N of five digits. It is found if greedy decoding
says N (as RULER asks, arXiv 2404.06654, in fewer words: small models lose themselves in long instructions).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import OptionError
from edgerun.measure.tasks.reader import Prompt, Reader
from edgerun.measure.tasks.score import F64
from edgerun.progress import Progress, silent
from edgerun.text.tokenizer import Tokenizer

NEEDLE = "\nThe special magic number is: {}.\n"
QUESTION = "\n\nWhat is the special magic number mentioned in the text? The special magic number is:"
DIGITS = 5
ANSWER = 2 * DIGITS + 2
"""Tokens that an answer may take."""


@dataclass(frozen=True)
class Needle:
    """length: tokens of the haystack.  depth: where in it, 0 to 1.  number: what is hidden."""

    length: int
    depth: float
    number: str
    prompt: Prompt


def needles(
    tokenizer: Tokenizer, text: str, lengths: Sequence[int], depths: Sequence[float], repeat: int, context: int
) -> list[Needle]:
    """`repeat` needles of each length and depth, in haystacks from `text`, which is repeated if it is too short.

    The same haystack serves all depths, the deepest first: what lies before a needle is read once. Raises OptionError
    for a text without words, and if they would not fit a context of so many tokens.
    """
    ids = tokenizer.encode(" ".join(text.split()), add_bos=False, parse_special=False)
    if not ids:
        raise OptionError("the haystack's text has no words; give a longer one")
    room = max(lengths) + len(tokenizer.encode(NEEDLE.format("9" * DIGITS) + QUESTION)) + ANSWER
    if room > context:
        raise OptionError(
            f"a needle in {max(lengths)} tokens takes {room} with question and answer, but the context has {context}; "
            "hide them in shorter texts"
        )
    ids *= 1 + max(lengths) // len(ids)
    found = []
    for length in lengths:
        for turn in range(repeat):
            rng = random.Random(f"{length} {turn}")
            start = rng.randrange(len(ids) - length + 1)
            hay = ids[start : start + length]
            for depth in sorted(depths, reverse=True):
                number = str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))
                before, after = _parted(tokenizer, hay, round(depth * length))
                prompt = Prompt(before + NEEDLE.format(number) + after, QUESTION)
                found.append(Needle(length, depth, number, prompt))
    return found


def even_depths(count: int) -> list[float]:
    """`count` depths, each in the middle of its part of the text."""
    return [(i + 0.5) / count for i in range(count)]


def measure(reader: Reader, hidden: Sequence[Needle], progress: Progress = silent) -> dict[str, F64]:
    """found: 1 if the answer has the number, else 0.  logprob: log p of the number, in nats."""
    metrics = {name: np.zeros(len(hidden)) for name in ("found", "logprob")}
    for i, needle in enumerate(hidden):
        progress(i, len(hidden), "needles")
        said = reader.answer(needle.prompt, ANSWER)
        (likelihood,) = reader.likelihoods(needle.prompt, [f" {needle.number}"])
        metrics["found"][i] = needle.number in said
        metrics["logprob"][i] = likelihood.logprob
    progress(len(hidden), len(hidden), "needles")
    return metrics


@dataclass(frozen=True)
class Cell:
    """The needles of one length and depth: how many, the share found, and that which the reference found."""

    length: int
    depth: float
    needles: int
    found: float
    against: float | None


def cells(hidden: Sequence[Needle], found: F64, reference: F64 | None) -> list[Cell]:
    """The scores of each length and depth; by length, then depth, both ascending."""
    places = [(needle.length, needle.depth) for needle in hidden]
    table = []
    for place in sorted(set(places)):
        here = [i for i, other in enumerate(places) if other == place]
        against = None if reference is None else float(reference[here].mean())
        table.append(Cell(*place, len(here), float(found[here].mean()), against))
    return table


def _parted(tokenizer: Tokenizer, hay: Sequence[int], at: int) -> tuple[str, str]:
    """The haystack's text before and after a token, or after the last sentence that ends before that and not long."""
    before, after = tokenizer.decode(hay[:at]), tokenizer.decode(hay[at:])
    end = max(before.rfind(mark) for mark in (". ", "! ", "? "))
    if end >= 0 and len(before) - end < 600:
        before, after = before[: end + 1], before[end + 2 :] + after
    return before, after
