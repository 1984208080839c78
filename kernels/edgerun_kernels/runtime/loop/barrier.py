"""A barrier for the threads of a team: atomics and a short spin, then sleep in the system (futex).

A thread that sleeps leaves its processor to a thread of the team that waits for one; one that yields in a loop looks
busy, and the system leaves the other where it is.
"""

from ...kernel import inner
from ...record import DRAFT_ROWS, Control, Run
from ...simd.ops import atomic_add, atomic_load, atomic_store, field, pause, wait_on, wake_all

PATIENT, IMPATIENT = 20000, 150
"""Pauses before a waiting thread sleeps. Half a millisecond: longer than threads of equal work on processors of
their own keep it waiting, and than waking one takes, or a short interruption; only then does one late thread not make
all that wait for each other after it sleep in turn. Where waits outlast it again and again, another program or a thread
of the team itself wants the processor: from DISTRUSTFUL more of them on than of those that did not, waits spin for a
few microseconds only. Counted anew in every job."""
DISTRUSTFUL, MOST_DISTRUST = 4, 8
GENERATION, SLEEPERS = 64, 72
STALLED, DISTRUST = Control.STALLED - Control.BARRIER, Control.DISTRUST - Control.BARRIER
"""Byte offsets behind the number of arrivals."""


@inner
def wait_for_all(barrier, n_threads, patient):
    """Returns when all threads have called. Five int64: at ``barrier`` and at the offsets. patient: between long pieces
    of work (many rows), after which threads wait for each other longer than waking takes."""
    if n_threads == 1:
        return
    generation = atomic_load(barrier + GENERATION)
    if atomic_add(barrier, 1) == n_threads - 1:
        atomic_store(barrier, 0)
        atomic_store(barrier + GENERATION, generation + 1)
        if atomic_load(barrier + SLEEPERS) != 0:
            wake_all(barrier + GENERATION)
        return
    distrust = 0 if patient else atomic_load(barrier + DISTRUST)
    for _ in range(PATIENT if distrust < DISTRUSTFUL else IMPATIENT):
        if atomic_load(barrier + GENERATION) != generation:
            if distrust != 0:
                atomic_store(barrier + DISTRUST, distrust - 1)
            return
        pause()
    atomic_store(barrier + STALLED, 1)
    if not patient and distrust < MOST_DISTRUST:
        atomic_store(barrier + DISTRUST, distrust + 1)
    atomic_add(barrier + SLEEPERS, 1)
    while atomic_load(barrier + GENERATION) == generation:
        wait_on(barrier + GENERATION, generation)
    atomic_add(barrier + SLEEPERS, -1)


@inner
def meet(op, run, tid, n_threads):
    """All threads of a run wait for each other, within an op."""
    wait_for_all(field(run, Run.BARRIER), n_threads, field(run, Run.N_ROWS) > DRAFT_ROWS)
