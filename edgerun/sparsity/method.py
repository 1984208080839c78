"""What a sparsity policy is to a projection: which of its inputs count, where one row runs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Method(Protocol):
    """One way for one projection; they are in ``zero``, ``threshold``, ``delta_activations``."""

    def fill(self, record: NDArray[np.int64]) -> None:
        """Fills in its fields of the projection's policy (``record.Skip``): KEEP, and what that takes. The others, of
        columns and of room, are there already."""
