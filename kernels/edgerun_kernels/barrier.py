"""A barrier for the threads of a team: atomics, a short spin, then yielding, so that oversubscribed machines go on."""

from .kernel import inner
from .simd.ops import atomic_add, atomic_load, atomic_store, pause, yield_processor

SPINS = 2000
"""Pauses before a waiting thread offers its processor to others: some tens of microseconds."""


@inner
def wait_for_all(barrier, n_threads):
    """Returns when all threads have called. Two int64 at ``barrier``: arrivals, and 64 bytes on, the generation."""
    if n_threads == 1:
        return
    generation = atomic_load(barrier + 64)
    if atomic_add(barrier, 1) == n_threads - 1:
        atomic_store(barrier, 0)
        atomic_store(barrier + 64, generation + 1)
        return
    spins = 0
    while atomic_load(barrier + 64) == generation:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            yield_processor()
