"""Small inputs count as 0 (TEAL, arXiv 2408.14690; CATS, arXiv 2404.08763), small being measured as WANDA measures
weights (arXiv 2306.11695): |input| times the norm of its column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import Keep, Skip


@dataclass(frozen=True)
class Threshold:
    """keep: the share of the inputs that is kept, of every token, 0 to 1; 0: those that are at least ``at`` times as
    large as the root mean square of all."""

    keep: float = 0.0
    at: float = 0.0

    def fill(self, record: NDArray[np.int64]) -> None:
        record[Skip.KEEP] = Keep.LARGE
        record[Skip.SHARE] = np.float64(self.keep).view(np.int64)
        record[Skip.THRESHOLD] = np.float64(self.at).view(np.int64)
