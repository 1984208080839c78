"""Delta activations: an input that has moved little since it was last sent counts as where it was then (Delta
Activation Layer, arXiv 2107.07305; delta networks, arXiv 1612.05571): ``y_t = y_(t-1) + W (x_t - x̂_(t-1))``. How far
it has moved is measured like the sizes of ``threshold``. A token for which most inputs have moved multiplies all
columns by the input as it is, and leaves the state alone.

Inputs are sent in whole steps, a power of two that the session chooses when it computes afresh, and sums are float64,
in which they are exact: running sums do not drift (see ``edgerun_kernels.changes``). After too much has moved several
times in a row, a projection rests: up to 15 tokens multiply all columns without a look.

Not for ternary layers. Their inputs are integers whose scale is each token's own, and a sum of weights times the
integers of one token is no sum of the next one's; to send changes in common steps would mean to round inputs otherwise
than the model was trained with, which even Θ = 0 would show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import Keep, Skip


@dataclass(frozen=True)
class DeltaActivations:
    """at: inputs are sent that have moved by at least so many times the root mean square of all.  refresh: positions
    after which all are sent again; 0: never."""

    at: float
    refresh: int = 0

    def fill(self, record: NDArray[np.int64]) -> None:
        record[Skip.KEEP] = Keep.CHANGED
        record[Skip.THRESHOLD], record[Skip.REFRESH] = np.float64(self.at).view(np.int64), self.refresh
