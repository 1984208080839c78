"""What a user writes for a variant: "a", "a:0.5+b:0.5", "none"."""

from __future__ import annotations

import math
from pathlib import Path

from edgerun.errors import OptionError

NONE = "none"


def parse(spec: str) -> list[tuple[str, float]]:
    """Names or paths of variant files with their weights; empty for "none" and where all weights are 0.

    A text that is the path of a file stands for that file, whatever it contains. Raises OptionError.
    """
    if spec == NONE:
        return []
    if _is_file(spec):
        return [(spec, 1.0)]
    terms: list[tuple[str, float]] = []
    for part in spec.split("+"):
        name, colon, number = part.strip().rpartition(":")
        if not colon or _is_file(part.strip()):
            name, number = part.strip(), "1"
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or not name:
            raise OptionError(f"variant {spec!r}: {part.strip()!r} is no NAME or NAME:WEIGHT; write a:0.5+b:0.5")
        if name != NONE and weight != 0:
            terms.append((name, weight))
    return terms


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError):
        return False
