"""The compiled loop: runs a tape's op records in order, all threads side by side, with barriers where they say so."""

from numba.core import types

from ...columns.skip import chosen_policy
from ...kernel import INT, exported
from ...layouts import RECORD_FIELDS, Head
from ...record import DRAFT_ROWS, Flag, Run
from ...simd.ops import field, load_i64, prefetch, store_i64, ticks
from .barrier import wait_for_all
from .dispatch import add_variants, run_op

RECORD_BYTES = 8 * RECORD_FIELDS


@exported(types.void, INT, INT, INT, INT, INT)
def run_tape(tape, n_ops, run, tid, n_threads):
    """Thread ``tid``'s part of ``n_ops`` records; returns when every thread has finished every op."""
    rows = field(run, Run.N_ROWS)
    several, patient = rows > 1, rows > DRAFT_ROWS
    variants = field(run, Run.VARIANTS) != 0
    barrier = field(run, Run.BARRIER)
    profile = field(run, Run.PROFILE) if tid == 0 else 0
    for i in range(n_ops):
        start = 0
        if profile != 0:
            store_i64(run + 8 * Run.COLUMNS_READ, profile + 8 * (n_ops + i))
            start = ticks()
        op = tape + RECORD_BYTES * i
        # Weights have driven the next record out of all caches, and where that does nothing the one behind it is next.
        for line in range(RECORD_BYTES, 3 * RECORD_BYTES, 64):
            prefetch(op + line)
        code = field(op, Head.CODE)
        run_op(code, op, run, tid, n_threads)
        if variants and field(op, Head.FLAGS) & Flag.SITE:
            add_variants(code, op, run, tid, n_threads)
        when = field(op, Head.BARRIER)
        if when == 1 or (when == 2 and several) or (when == 3 and chosen_policy(op, run, tid) != 0):
            wait_for_all(barrier, n_threads, patient)
        if profile != 0:
            store_i64(profile + 8 * i, load_i64(profile + 8 * i) + ticks() - start)
    wait_for_all(barrier, n_threads, patient)
