"""A barrier for the threads of a team: atomics and a short spin, then sleep in the system (futex).

A thread that sleeps leaves its processor to a thread of the team that waits for one; one that yields in a loop looks
busy, and the system leaves the other where it is.
"""

from .kernel import inner
from .simd.ops import atomic_add, atomic_load, atomic_store, pause, wait_on, wake_all

SPINS = 2000
"""Pauses before a waiting thread sleeps, where waits have been short: some tens of microseconds."""
GENERATION, SLEEPERS, IMPATIENCE = 64, 72, 80
"""Byte offsets behind the number of arrivals."""
STEP, MOST = 8, 56
"""Each sleep makes the team more impatient by STEP, each wait that spinning ended by one less; a STEP halves SPINS."""


@inner
def wait_for_all(barrier, n_threads):
    """Returns when all threads have called. Four int64 at ``barrier`` and 64 bytes on."""
    if n_threads == 1:
        return
    generation = atomic_load(barrier + GENERATION)
    if atomic_add(barrier, 1) == n_threads - 1:
        atomic_store(barrier, 0)
        atomic_store(barrier + GENERATION, generation + 1)
        if atomic_load(barrier + SLEEPERS) != 0:
            wake_all(barrier + GENERATION)
        return
    impatience = atomic_load(barrier + IMPATIENCE)
    spins = SPINS >> (impatience // STEP)
    while spins > 0 and atomic_load(barrier + GENERATION) == generation:
        spins -= 1
        pause()
    if spins > 0:
        if impatience > 0:
            atomic_store(barrier + IMPATIENCE, impatience - 1)
        return
    atomic_store(barrier + IMPATIENCE, min(impatience + STEP, MOST))
    atomic_add(barrier + SLEEPERS, 1)
    while atomic_load(barrier + GENERATION) == generation:
        wait_on(barrier + GENERATION, generation)
    atomic_add(barrier + SLEEPERS, -1)
