"""The compiled half of a thread team (the Python half: ``team.py``).

Workers spin until they are called, then yield, then park: they say so and return to Python, which blocks on a
semaphore. The caller publishes a job and calls the workers that are to take part; where one was parked, Python must
release its semaphore. Others notice nothing, and park. All of this is sequentially consistent.
"""

from numba.core import types

from ...kernel import INT, exported, inner
from ...record import Control
from ...simd.ops import (
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

AWAKE, PARKED, CALLED = 0, 1, 2
SPINS = 4000
YIELDS = 200


@inner
def run_job(team, tid):
    tape, n_ops = load_i64(team + Control.TAPE), load_i64(team + Control.N_OPS)
    run_tape(tape, n_ops, load_i64(team + Control.RUN), tid, load_i64(team + Control.N_THREADS))


@exported(INT, INT, INT)
def team_worker(team, tid):
    """Runs jobs until told to stop (gives 0) or until none has come for a while (gives 1: parked)."""
    worker = team + Control.WORKERS + Control.WORKER_STRIDE * tid
    while True:
        waited = 0
        while atomic_load(worker) != CALLED:
            waited += 1
            if waited < SPINS:
                pause()
            elif waited < SPINS + YIELDS:
                yield_processor()
            elif atomic_compare_exchange(worker, AWAKE, PARKED) != CALLED:
                return 1
        atomic_store(worker, AWAKE)
        if atomic_load(team + Control.STOP) != 0:
            return 0
        run_job(team, tid)


@exported(types.void, INT)
def team_finish(team):
    """The caller's own part of the published job."""
    run_job(team, 0)
    store_i64(team + Control.UNFINISHED, 0)


@exported(INT, INT, INT, INT, INT, INT)
def team_start(team, tape, n_ops, run, n_threads):
    """Publishes a job for the first ``n_threads`` threads. If their workers are awake, does the caller's part too and
    gives 0; else gives the set of parked ones (bit ``tid``): the caller wakes them and calls ``team_finish``."""
    store_i64(team + Control.TAPE, tape)
    store_i64(team + Control.N_OPS, n_ops)
    store_i64(team + Control.RUN, run)
    parked = publish(team, n_threads)
    if parked == 0:
        team_finish(team)
    return parked


@inner
def publish(team, n_threads):
    store_i64(team + Control.N_THREADS, n_threads)
    store_i64(team + Control.UNFINISHED, 1)
    parked = 0
    for tid in range(1, n_threads):
        if atomic_exchange(team + Control.WORKERS + Control.WORKER_STRIDE * tid, CALLED) == PARKED:
            parked |= 1 << tid
    store_i64(team + Control.PARKED, parked)
    return parked


@exported(INT, INT, INT)
def team_stop(team, n_threads):
    """Tells all workers to return for good; gives the set of parked ones, to be woken."""
    atomic_store(team + Control.STOP, 1)
    return publish(team, n_threads)
