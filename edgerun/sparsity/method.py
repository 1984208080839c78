"""What a sparsity policy is to a tape: how it makes inputs of a projection zero, where one row runs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.sparsity.columns import Columns
from edgerun.sparsity.projections import Projection


class Room(NamedTuple):
    """Arena offsets for a projection. scratch: of the threads' lists, ``private`` bytes each; row: of their own
    quantised rows, ``row_bytes`` each. state: in the session's state, where that of running sums begins."""

    scratch: int
    private: int
    row: int
    row_bytes: int
    state: int


class Method(Protocol):
    """One way for one projection; the policies are in ``zero``, ``threshold``, ``delta``."""

    def records(
        self, quantize: NDArray[np.int64], projection: Projection, columns: Columns, room: Room
    ) -> list[NDArray[np.int64]]:
        """The ops between the one that quantises the input (its record) and the multiplication, the last of which
        writes what is multiplied; where there is none, that is the quantised input. The input itself must stay as it
        is: all columns may be wanted after all."""
