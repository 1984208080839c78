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

from edgerun.sparsity.columns import Columns
from edgerun.sparsity.method import Room
from edgerun.sparsity.projections import Projection
from edgerun_kernels.record import Field, Op


@dataclass(frozen=True)
class Delta:
    """at: inputs are sent that have moved by at least so many times the root mean square of all.  refresh: positions
    after which all are sent again; 0: never."""

    at: float
    refresh: int = 0

    def records(
        self, quantize: NDArray[np.int64], projection: Projection, columns: Columns, room: Room
    ) -> list[NDArray[np.int64]]:
        record = np.zeros(Field.COUNT, np.int64)
        record[Field.CODE] = Op.KEEP_CHANGES
        record[Field.X], record[Field.X_PRIVATE] = quantize[Field.Y], quantize[Field.Y_PRIVATE]
        record[Field.Y], record[Field.Y_PRIVATE] = room.row, room.row_bytes
        record[Field.K] = projection.k
        record[Field.W] = columns.worth.ctypes.data
        record[Field.SCRATCH], record[Field.SCRATCH_PRIVATE] = room.scratch, room.private
        record[Field.RUNNING], record[Field.REFRESH] = room.state, self.refresh
        record[Field.THRESHOLD] = np.float64(self.at).view(np.int64)
        return [record]
