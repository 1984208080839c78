"""What a user writes for activation sparsity: "threshold:keep=0.6,down=0.4", "zero", "none"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgerun.errors import OptionError
from edgerun.sparsity.method import Method
from edgerun.sparsity.projections import KINDS
from edgerun.sparsity.threshold import Threshold
from edgerun.sparsity.zero import Zero

NONE = "none"


@dataclass(frozen=True)
class Setting:
    """methods: for kinds of projections; others take all columns."""

    methods: dict[str, Method]


def parse(spec: str) -> Setting | None:
    """None for "none". Raises OptionError."""
    name, _, rest = spec.strip().partition(":")
    if name == NONE and not rest:
        return None
    if name not in _READERS:
        raise OptionError(f"sparsity {spec!r}: there is no policy {name!r}; choose from {', '.join((*_READERS, NONE))}")
    numbers: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, text = part.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number) or key in numbers:
            raise OptionError(f"sparsity {spec!r}: {part!r} is no NAME=NUMBER, or there twice; {_EXAMPLES[name]}")
        numbers[key] = number
    setting = _READERS[name](spec, numbers)
    if numbers:
        known = ", ".join(_PARAMETERS[name]) or "no parameters"
        raise OptionError(f"sparsity {spec!r}: {name} has no {next(iter(numbers))}; it has {known}")
    return setting


def _zero(spec: str, numbers: dict[str, float]) -> Setting:
    return Setting(dict.fromkeys(KINDS, Zero()))


def _threshold(spec: str, numbers: dict[str, float]) -> Setting:
    if ("keep" in numbers) == ("at" in numbers):
        raise OptionError(f"sparsity {spec!r}: say either keep or at; {_EXAMPLES['threshold']}")
    measure = "keep" if "keep" in numbers else "at"
    of_all = numbers.pop(measure)
    methods: dict[str, Method] = {}
    for kind in KINDS:
        value = numbers.pop(kind, of_all)
        if measure == "keep":
            if not 0 < value <= 1:
                raise OptionError(f"sparsity {spec!r}: {value:g} is no share above 0 and up to 1; write keep=0.6")
            if value < 1:
                methods[kind] = Threshold(keep=value)
        else:
            if value < 0:
                raise OptionError(f"sparsity {spec!r}: {value:g} is negative; write at=0.5")
            methods[kind] = Threshold(at=value)
    return Setting(methods)


_READERS: dict[str, Callable[[str, dict[str, float]], Setting]] = {"zero": _zero, "threshold": _threshold}
_PARAMETERS: dict[str, tuple[str, ...]] = {"zero": (), "threshold": ("keep", "at", *KINDS)}
_EXAMPLES = {"zero": "write zero", "threshold": "write threshold:keep=0.6"}
