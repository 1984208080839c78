"""Small inputs count as 0 (TEAL, arXiv 2408.14690; CATS, arXiv 2404.08763), small being measured as WANDA measures
weights (arXiv 2306.11695): |input| times the norm of its column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.sparsity.columns import Columns
from edgerun.sparsity.method import Room
from edgerun.sparsity.projections import TERNARY, Projection
from edgerun_kernels.record import Field, Op


@dataclass(frozen=True)
class Threshold:
    """keep: the share of the inputs that is kept, of every token, 0 to 1; 0: those that are at least ``at`` times as
    large as the root mean square of all."""

    keep: float = 0.0
    at: float = 0.0

    def records(
        self, quantize: NDArray[np.int64], projection: Projection, columns: Columns, room: Room
    ) -> list[NDArray[np.int64]]:
        record = np.zeros(Field.COUNT, np.int64)
        record[Field.CODE] = Op.KEEP_LARGE_ROW if projection.fmt in TERNARY else Op.KEEP_LARGE
        record[Field.X], record[Field.X_PRIVATE] = quantize[Field.Y], quantize[Field.Y_PRIVATE]
        record[Field.K] = projection.k
        record[Field.W] = columns.worth.ctypes.data
        record[Field.Y], record[Field.Y_PRIVATE] = room.row, room.row_bytes
        record[Field.SCRATCH], record[Field.SCRATCH_PRIVATE] = room.scratch, room.private
        record[Field.SHARE] = np.float64(self.keep).view(np.int64)
        record[Field.THRESHOLD] = np.float64(self.at).view(np.int64)
        return [record]
