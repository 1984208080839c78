"""Calibrated sparsity: what each projection does at a quality, as a calibration found it; in a package's edgerun.json.

``calibration.activations`` there: {"points": [{"kl": mean nats a token, "weight_bytes_skipped": 0 to 1,
"weight_time_saved": 0 to 1, "methods": {projection: ["threshold" or "delta", at]}}]}; see ``calibrate``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from edgerun.errors import OptionError, PackageError
from edgerun.sparsity.delta_activations import DeltaActivations
from edgerun.sparsity.method import Method
from edgerun.sparsity.threshold import Threshold

NAME = "activations"


class Point(NamedTuple):
    """What was found for a budget. kl: nats a token. time_saved: of the time in which all weights are read, the share
    that is not needed. methods: by projection."""

    kl: float
    time_saved: float
    methods: dict[str, Method]


def read_points(calibration: dict[str, Any], where: str) -> list[Point]:
    """The points of a package's calibration, which has some. where: the package, for messages. Raises PackageError for
    a calibration that makes no sense."""
    try:
        return [
            Point(_number(p["kl"]), _number(p["weight_time_saved"]), _methods(p["methods"]))
            for p in calibration[NAME]["points"]
        ]
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise PackageError(f"{where}: its calibration of activations is damaged; calibrate again") from error


def methods_within(calibration: dict[str, Any], kl: float, where: str) -> dict[str, Method]:
    """The methods, by projection, of the point that saves most within a budget. where: the package, for messages.

    Raises PackageError for a calibration that makes no sense, OptionError where there is none, or none so near.
    """
    if calibration.get(NAME) is None:
        raise OptionError(
            f"{where}: the package has no calibration of activations; make one with `edgerun "
            "calibrate --policy activations`, or choose threshold:keep=0.6"
        )
    points = read_points(calibration, where)
    within = [point for point in points if point.kl <= kl]
    if not within:
        nearest = min((point.kl for point in points), default=math.nan)
        raise OptionError(f"{where}: nothing was calibrated for a KL of {kl:g}; the least is {nearest:g}")
    return max(within, key=lambda point: point.time_saved).methods


def _methods(found: Any) -> dict[str, Method]:
    kinds: dict[str, Any] = {"threshold": lambda at: Threshold(at=at), "delta": DeltaActivations}
    return {str(name): kinds[method](_number(at)) for name, (method, at) in found.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ValueError(f"{value!r} is no number from 0 on")
    return float(value)
