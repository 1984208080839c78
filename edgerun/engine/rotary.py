"""The cosines and sines of rotary position embedding, computed as far as positions have been reached."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RotaryTable:
    """cos and sin of position * inv_freq, float32 [positions, head_dim / 2]; the angle too is a float32, as in
    transformers and in the package's own operator."""

    def __init__(self, inv_freq: NDArray[np.float32]) -> None:
        self._inv_freq = inv_freq
        self.cos = self.sin = np.empty((0, len(inv_freq)), np.float32)

    def reach(self, n_positions: int) -> None:
        """Makes sure that positions below ``n_positions`` are there; doubles, so that growing costs little."""
        have = len(self.cos)
        if n_positions <= have:
            return
        more = np.arange(have, max(n_positions, 2 * have, 256), dtype=np.float32)
        angles = more[:, None] * self._inv_freq
        self.cos = np.concatenate([self.cos, np.cos(angles)])
        self.sin = np.concatenate([self.sin, np.sin(angles)])
