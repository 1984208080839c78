"""The compiled half of a thread team (the Python half: ``team.py``).

Workers spin for a job, then yield, then park: they mark themselves parked and return to Python, which blocks on a
semaphore. The caller publishes a job and exchanges every worker's parked flag for 0; where it finds 1, Python must
release that worker's semaphore. A worker that sees a job while parking takes its flag back, or, if the caller was
faster, finds its semaphore released. All of this is sequentially consistent.
"""

from numba.core import types

from .kernel import INT, exported, inner
from .record import Control
from .simd.ops import (
    atomic_add,
    atomic_compare_exchange,
    atomic_exchange,
    atomic_load,
    atomic_store,
    load_i64,
    pause,
    store_i64,
    yield_processor,
)
from .tape import run_tape

SPINS = 4000
YIELDS = 200


@exported(INT, INT, INT, INT)
def team_worker(team, tid, n_threads):
    """Runs jobs until told to stop (gives 0) or until none has come for a while (gives 1: parked)."""
    worker = team + Control.WORKERS + Control.WORKER_STRIDE * tid
    while True:
        seen = load_i64(worker + 8)
        waited = 0
        while atomic_load(team + Control.GENERATION) == seen:
            waited += 1
            if waited < SPINS:
                pause()
            elif waited < SPINS + YIELDS:
                yield_processor()
            else:
                atomic_store(worker, 1)
                if atomic_load(team + Control.GENERATION) == seen or atomic_compare_exchange(worker, 1, 0) != 1:
                    return 1
        store_i64(worker + 8, atomic_load(team + Control.GENERATION))
        if atomic_load(team + Control.STOP) != 0:
            return 0
        run_tape(
            load_i64(team + Control.TAPE), load_i64(team + Control.N_OPS), load_i64(team + Control.RUN), tid, n_threads
        )


@exported(types.void, INT, INT)
def team_finish(team, n_threads):
    """The caller's own part of the published job."""
    run_tape(load_i64(team + Control.TAPE), load_i64(team + Control.N_OPS), load_i64(team + Control.RUN), 0, n_threads)
    store_i64(team + Control.UNFINISHED, 0)


@exported(INT, INT, INT, INT, INT, INT)
def team_start(team, tape, n_ops, run, n_threads):
    """Publishes a job. If every worker is awake, does the caller's part too and gives 0; else gives the set of parked
    workers (bit ``tid``): the caller wakes them and calls ``team_finish``."""
    store_i64(team + Control.TAPE, tape)
    store_i64(team + Control.N_OPS, n_ops)
    store_i64(team + Control.RUN, run)
    parked = publish(team, n_threads)
    if parked == 0:
        team_finish(team, n_threads)
    return parked


@inner
def publish(team, n_threads):
    store_i64(team + Control.UNFINISHED, 1)
    atomic_add(team + Control.GENERATION, 1)
    parked = 0
    for tid in range(1, n_threads):
        if atomic_exchange(team + Control.WORKERS + Control.WORKER_STRIDE * tid, 0) == 1:
            parked |= 1 << tid
    store_i64(team + Control.PARKED, parked)
    return parked


@exported(INT, INT, INT)
def team_stop(team, n_threads):
    """Tells all workers to return for good; gives the set of parked ones, to be woken."""
    atomic_store(team + Control.STOP, 1)
    return publish(team, n_threads)
