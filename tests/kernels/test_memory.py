"""Memory for kernels."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest

from edgerun_kernels.memory import HUGE, aligned


@pytest.mark.parametrize("n_bytes", [1, 4095, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + HUGE // 2, 5 * HUGE - 1])
def test_is_aligned_zeroed_and_ones_own(n_bytes: int) -> None:
    first, second = aligned(n_bytes), aligned(n_bytes)
    for array in (first, second):
        assert (array.dtype, array.shape) == (np.uint8, (n_bytes,))
        large = n_bytes >= HUGE and hasattr(mmap, "MAP_PRIVATE")
        assert array.ctypes.data % (HUGE if large else 64) == 0
        assert not array.any()
    first[:] = 255
    assert not second.any()
    rest = first[n_bytes // 2 :]
    del first
    gc.collect()
    assert (rest == 255).all()


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError):
        aligned(1 << 60)
