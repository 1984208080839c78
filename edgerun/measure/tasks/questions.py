"""Questions in files: JSON lines, one object each, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgerun.errors import OptionError

Question = Mapping[str, Any]
T = TypeVar("T")
MOST_BYTES = 1 << 28
"""A larger file is not what a task is asked of."""


def read(path: Path) -> list[tuple[str, Question]]:
    """The objects of a file, each with where it stands ("FILE, line 3"). Raises OptionError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise OptionError(f"{path} has more than {MOST_BYTES >> 20} MiB; give a part of it")
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror}); give a file of JSON lines") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 text (byte {error.start}); give a file of JSON lines") from None
    found: list[tuple[str, Question]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where}: no JSON ({error}); give one object a line") from None
        if not isinstance(value, dict):
            raise OptionError(f"{where}: holds a JSON {type(value).__name__}; give one object a line")
        found.append((where, value))
    if not found:
        raise OptionError(f"{path} has no questions; give one JSON object a line")
    return found


def text(where: str, question: Question, field: str) -> str:
    """A field that must be a text, and not an empty one."""
    value = question.get(field)
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"{where}: {field} must be a text that is not empty")
    return value


def texts(where: str, question: Question, field: str, least: int) -> list[str]:
    """A field that must be a list of texts, none of them empty."""
    value = question.get(field)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(x, str) and x.strip() for x in value):
        raise OptionError(f"{where}: {field} must be a list of {least} or more texts, none of them empty")
    return value


def spread(questions: Sequence[T], limit: int, shots: int) -> tuple[list[T], list[T]]:
    """The questions to ask, at most `limit`, evenly from all but the last `shots`; and these, the examples before each
    of them. Raises OptionError if there are too few."""
    n = len(questions) - shots
    if n < 1:
        raise OptionError(
            f"there are {len(questions)} questions, of which {shots} would be examples; give more of them"
        )
    count = min(limit, n)
    return [questions[i * n // count] for i in range(count)], list(questions[n:])
