"""Mean scores with their noise, alone and beside a reference that was asked the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.measure.evaluate import standard_error

F64 = NDArray[np.float64]
Metrics = Mapping[str, F64]
"""What a task measured: by metric, a value for each question."""


@dataclass(frozen=True)
class Score:
    """mean: over the questions.  stderr: the standard error of that.  The others are None without a reference.
    difference: mean - against, and its standard error from the questions' own differences: most of the noise is the
    choice of questions, and that the two share."""

    mean: float
    stderr: float
    against: float | None = None
    difference: float | None = None
    difference_stderr: float | None = None


def scores(metrics: Metrics, reference: Metrics | None = None) -> dict[str, Score]:
    """A score of every metric."""
    found = {}
    for name, values in metrics.items():
        mean, stderr = float(values.mean()), standard_error(values)
        if reference is None:
            found[name] = Score(mean, stderr)
        else:
            theirs = reference[name]
            apart = values - theirs
            found[name] = Score(mean, stderr, float(theirs.mean()), float(apart.mean()), standard_error(apart))
    return found
