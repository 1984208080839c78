"""The tokens that activations and output changes are measured on: a text, or prompts with their answers."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerun.errors import EdgerunError, OptionError
from edgerun.text.tokenizer import Tokenizer

from ..checkpoint import Checkpoint
from ..tokenizer import write_tokenizer

WINDOW, WINDOWS, PLACES = 128, 4, 64
"""A text's first tokens are taken: so many windows of so many, and outputs compared at so many places of them."""
EXAMPLES, LONGEST = 16, 512
"""At most so many labelled examples, of so many tokens, are scored."""
TEXT = (
    "The river rose after three days of rain, and by the morning the lower road was closed. Those who had to "
    "cross took the old bridge, which is narrow and has no lamps.\n\n"
    "Question: How many days had it rained? Answer: Three.\n\n"
    "To make the dough, mix 500 g of flour with a spoon of salt, add 320 ml of warm water, and knead it for "
    "ten minutes. Cover it and let it rest.\n\n"
    '{"item": "flour", "amount": 500, "unit": "g"}\n\n'
    "The meeting is on 14 May 2031 at half past nine; please write to the office if you cannot come. Dear Ms "
    "Adeyemi, thank you for your letter. We have looked into the matter and will send a new one within a "
    "week.\n\n"
    "def area(width, height):\n"
    "    return width * height\n\n"
    "In 1905 the town had 4,200 inhabitants; a century later there were nine times as many, most of whom "
    "worked in the port or on the railway."
)
"""What is used when nothing else is given; the user's own texts are better."""


@dataclass(frozen=True)
class Batch:
    """tokens: int64 [B, T], padded behind. valid: bool [B, T]. at: int64 [M], the places of the flattened tokens whose
    next token is looked at; targets: int64 [M], what it is. example: int64 [M], the text that it belongs to."""

    tokens: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    at: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    example: npt.NDArray[np.int64]


@contextlib.contextmanager
def open_tokenizer(checkpoint: Checkpoint, context_length: int) -> Iterator[Tokenizer]:
    """The tokenizer of a checkpoint, as its package would have it."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(checkpoint, Path(folder), context_length)
        yield Tokenizer(folder)


def text_batch(tokenizer: Tokenizer, text: str) -> Batch:
    """Windows of a text, all of one length. OptionError if it has less than two tokens."""
    ids = tokenizer.encode(text, parse_special=False)
    length = min(WINDOW, len(ids))
    if length < 2:
        raise OptionError("the text to measure on has less than two tokens; give a longer one")
    count = min(WINDOWS, len(ids) // length)
    tokens = np.array(ids[: count * length], np.int64).reshape(count, length)
    inner = np.arange(count * length).reshape(count, length)[:, :-1].reshape(-1)
    at = inner[np.linspace(0, len(inner) - 1, min(PLACES, len(inner))).astype(np.int64)]
    return Batch(tokens, np.ones(tokens.shape, bool), at, tokens.reshape(-1)[at + 1], at // length)


def labelled_batch(tokenizer: Tokenizer, examples: Sequence[tuple[str, str]]) -> Batch:
    """Prompts (as the chat template writes them, if there is one) with their answers, whose tokens, and the one that
    ends them, are what is looked at."""
    rows, begins = [], []
    end = answer_end(tokenizer)
    for prompt, answer in examples[:EXAMPLES]:
        if tokenizer.has_chat_template:
            before = tokenizer.encode(
                tokenizer.apply_chat_template([{"role": "user", "content": prompt}]), add_bos=False
            )
            after = tokenizer.encode(answer, add_bos=False)
        else:
            before, after = tokenizer.encode(prompt), tokenizer.encode(answer, add_bos=False)
        if before and after and len(before) + len(after) < LONGEST:
            rows.append([*before, *after, *end])
            begins.append(len(before))
    if not rows:
        raise OptionError(f"no labelled example has a prompt and an answer within {LONGEST} tokens; give others")
    length = max(map(len, rows))
    tokens = np.array([row + [0] * (length - len(row)) for row in rows], np.int64)
    valid = np.array([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    at = [i * length + j for i, row in enumerate(rows) for j in range(begins[i] - 1, len(row) - 1)]
    places = np.array(at, np.int64)
    return Batch(tokens, valid, places, tokens.reshape(-1)[places + 1], places // length)


def answer_end(tokenizer: Tokenizer) -> list[int]:
    """The token that ends an answer: what the chat template writes behind one, if that is an end token; empty if not.
    Without a template, any end token."""
    if not tokenizer.has_chat_template:
        return sorted(tokenizer.eos_ids)[:1]
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = tokenizer.apply_chat_template(said, add_generation_prompt=False)
    except EdgerunError:  # a template that refuses this conversation
        return []
    ids = tokenizer.encode(text, add_bos=False)
    return next(([i] for i in reversed(ids) if i in tokenizer.eos_ids), [])


def read_examples(path: Path) -> list[tuple[str, str]]:
    """Lines of JSON objects with `prompt` and `answer`. OptionError says which line is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read ({error}); give a file of JSON lines") from error
    examples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt, answer = entry["prompt"], entry["answer"]
        except (ValueError, LookupError, TypeError):
            prompt = answer = None
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise OptionError(f'{path}: line {number} is no JSON object {{"prompt": text, "answer": text}}; correct it')
        examples.append((prompt, answer))
    if not examples:
        raise OptionError(f"{path}: holds no examples; give JSON lines with prompt and answer")
    return examples
