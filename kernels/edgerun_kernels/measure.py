"""What the machine can do, measured with our own kernels: the speed at which a team reads memory."""

from time import perf_counter

import numpy as np

from .build.load import Kernels
from .memory import aligned
from .record import Run
from .registry import Op, record
from .runtime.team import Team

BYTES = 1 << 28
"""Larger than any cache of the machines that edgerun is for."""


def read_bandwidth(kernels: Kernels, n_threads: int, repeats: int = 5) -> float:
    """The best of ``repeats`` sequential reads of 256 MiB by ``n_threads`` threads, in GB/s (1e9 bytes)."""
    memory = np.ones(BYTES, np.uint8)
    arena = aligned(64 * n_threads)
    tape, run = record(Op.READ_MEMORY, W=memory.ctypes.data, LINES=BYTES // 64), np.zeros(Run.COUNT, np.int64)
    run[Run.ARENA], run[Run.N_ROWS] = arena.ctypes.data, 2  # several rows: all threads, whatever runs beside them
    team = Team(kernels, n_threads)
    best = 0.0
    try:
        for _ in range(repeats):
            start = perf_counter()
            team.run(int(tape.ctypes.data), 1, int(run.ctypes.data))
            best = max(best, BYTES / (perf_counter() - start) / 1e9)
    finally:
        team.close()
    return best
