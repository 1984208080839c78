"""Zeros: inputs that are 0 in their quantised form anyway, as most behind a squared ReLU are ("ReLU Strikes Back",
arXiv 2310.04564; BitNet b1.58 2B4T, arXiv 2504.12285). Nothing is left out that would have counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import Keep, Skip


@dataclass(frozen=True)
class Zero:
    """It has no parameters."""

    def fill(self, record: NDArray[np.int64]) -> None:
        """The quantised input is taken as it is."""
        record[Skip.KEEP] = Keep.NONZERO
