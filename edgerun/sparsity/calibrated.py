"""Calibrated sparsity: what each projection does at a quality, as a calibration found it; in a package's edgerun.json.

``calibration.activations`` there: {"points": [{"kl": mean nats a token, "weight_bytes_skipped": 0 to 1,
"methods": {projection: ["threshold" or "delta", at]}}]}; see ``calibrate``.
"""

from __future__ import annotations

import math
from typing import Any

from edgerun.errors import OptionError, PackageError
from edgerun.sparsity.delta import Delta
from edgerun.sparsity.method import Method
from edgerun.sparsity.threshold import Threshold

NAME = "activations"


def methods_within(calibration: dict[str, Any], kl: float, where: str) -> dict[str, Method]:
    """The methods, by projection, of the point that skips most within a budget. where: the package, for messages.

    Raises PackageError for a calibration that makes no sense, OptionError where there is none, or none so near.
    """
    found = calibration.get(NAME)
    if found is None:
        raise OptionError(
            f"{where}: the package has no calibration of activations; make one with `edgerun "
            "calibrate --policy activations`, or choose threshold:keep=0.6"
        )
    try:
        points = [
            (_number(p["kl"]), _number(p["weight_bytes_skipped"]), _methods(p["methods"])) for p in found["points"]
        ]
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise PackageError(f"{where}: its calibration of activations is damaged; calibrate again") from error
    within = [point for point in points if point[0] <= kl]
    if not within:
        nearest = min((point[0] for point in points), default=math.nan)
        raise OptionError(f"{where}: nothing was calibrated for a KL of {kl:g}; the least is {nearest:g}")
    return max(within, key=lambda point: point[1])[2]


def _methods(found: Any) -> dict[str, Method]:
    kinds: dict[str, Any] = {"threshold": lambda at: Threshold(at=at), "delta": Delta}
    return {str(name): kinds[method](_number(at)) for name, (method, at) in found.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ValueError(f"{value!r} is no number from 0 on")
    return float(value)
