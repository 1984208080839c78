"""What a user writes for activation sparsity: "threshold:keep=0.6,down=0.4", "zero", "none"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgerun.errors import OptionError
from edgerun.sparsity.calibrated import methods_within
from edgerun.sparsity.delta_activations import DeltaActivations
from edgerun.sparsity.method import Method
from edgerun.sparsity.projections import KINDS
from edgerun.sparsity.threshold import Threshold
from edgerun.sparsity.zero import Zero

NONE, CALIBRATED = "none", "calibrated"


@dataclass(frozen=True)
class Setting:
    """methods: for projections by name, or by kind; others take all columns."""

    methods: dict[str, Method]


def parse(spec: str, calibration: dict[str, Any] | None = None, package: str = "") -> Setting | None:
    """None for "none". calibration: of the package, which is called so. Raises OptionError, PackageError where the
    calibration is damaged."""
    name, _, rest = spec.strip().partition(":")
    if name == NONE and not rest:
        return None
    if name not in _PARAMETERS:
        known = ", ".join((*_PARAMETERS, NONE))
        raise OptionError(f"sparsity {spec!r}: there is no policy {name!r}; choose from {known}")
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
    if name == CALIBRATED:
        if "kl" not in numbers:
            raise OptionError(f"sparsity {spec!r}: say how far from exact it may be; {_EXAMPLES[name]}")
        setting = Setting(methods_within(calibration or {}, numbers.pop("kl"), package))
    else:
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


def _delta(spec: str, numbers: dict[str, float]) -> Setting:
    if "at" not in numbers:
        raise OptionError(f"sparsity {spec!r}: say how far an input may move; {_EXAMPLES['delta']}")
    of_all, refresh = numbers.pop("at"), numbers.pop("refresh", 0.0)
    if refresh < 0 or refresh != int(refresh) or refresh >= 1 << 40:
        raise OptionError(f"sparsity {spec!r}: refresh is {refresh:g}; it must be a whole number of tokens, or 0")
    methods: dict[str, Method] = {}
    for kind in KINDS:
        at = numbers.pop(kind, of_all)
        if at < 0:
            raise OptionError(f"sparsity {spec!r}: {at:g} is negative; write at=0.5")
        methods[kind] = DeltaActivations(at, int(refresh))
    return Setting(methods)


_READERS: dict[str, Callable[[str, dict[str, float]], Setting]] = {
    "zero": _zero,
    "threshold": _threshold,
    "delta": _delta,
}
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "zero": (),
    "threshold": ("keep", "at", *KINDS),
    "delta": ("at", "refresh", *KINDS),
    CALIBRATED: ("kl",),
}
_EXAMPLES = {
    "zero": "write zero",
    "threshold": "write threshold:keep=0.6",
    "delta": "write delta:at=0.5",
    CALIBRATED: "write calibrated:kl=0.03",
}
