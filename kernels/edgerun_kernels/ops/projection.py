"""Layers that share a quantised input and a weight format: what a session's policy reads of them where one row runs.

``skip_columns``, behind the op that quantises the input, chooses their columns and sums these up; each layer then joins
its part of the sums. Where there is no policy or several rows run it does nothing, and where too many columns are
wanted it chooses none: the layers multiply by all columns.
"""

from ..columns.changes import keep_changes
from ..columns.grouped import changed_columns_q4, columns_q4, join_running_sums, join_sums, q8, q8_exact
from ..columns.lists import CHOSEN
from ..columns.mask import keep_large, keep_large_row
from ..columns.skip import chosen_policy, lists_address, policy
from ..columns.ternary import columns_ternary, join_ternary_sums
from ..kernel import inner, op_kernel
from ..record import Keep, Lines, Skip
from ..simd.ops import field, store_i64
from .linear import dense_q4, dense_q8, dense_ternary
from .linear_triples import dense_ternary_triples

LARGE, CHANGED = int(Keep.LARGE), int(Keep.CHANGED)
Q8, TERNARY, OWN = int(Lines.Q8), int(Lines.TERNARY), int(Lines.OWN)


@op_kernel
def keep_inputs(op, run, tid, n_threads):
    """What a policy keeps of the quantised row at X of K inputs, to the one at ROW."""
    skip = policy(op, run)
    if skip == 0:
        return
    keep = field(skip, Skip.KEEP)
    if keep == CHANGED:
        keep_changes(op, run, tid, n_threads)
    elif keep == LARGE:
        if field(skip, Skip.LINES) >= TERNARY:
            keep_large_row(op, run, tid, n_threads)
        else:
            keep_large(op, run, tid, n_threads)


@op_kernel
def sum_columns(op, run, tid, n_threads):
    """Chooses the columns of what is kept, and sums them up."""
    skip = policy(op, run)
    if skip == 0:
        return
    lines, changed = field(skip, Skip.LINES), field(skip, Skip.KEEP) == CHANGED
    if lines == OWN:
        store_i64(lists_address(skip, run, tid) + CHOSEN, 0)
    elif lines == TERNARY:
        columns_ternary(op, skip, run, tid, n_threads)
    elif lines == Q8:
        if changed:
            q8_exact(op, skip, run, tid, n_threads)
        else:
            q8(op, skip, run, tid, n_threads)
    elif changed:
        changed_columns_q4(op, skip, run, tid, n_threads)
    else:
        columns_q4(op, skip, run, tid, n_threads)


@op_kernel
def skip_columns(op, run, tid, n_threads):
    """Of a projection with a policy, where one row runs: what is kept of its input, and the sums of the columns that
    this leaves."""
    if policy(op, run) != 0:
        keep_inputs(op, run, tid, n_threads)
        sum_columns(op, run, tid, n_threads)


@inner
def joined(op, run, tid, n_threads):
    """Joins a layer's sums where its projection's columns were chosen; gives whether they were."""
    skip = chosen_policy(op, run, tid)
    if skip == 0:
        return False
    if field(skip, Skip.KEEP) == CHANGED:
        join_running_sums(op, skip, run, tid, n_threads)
    else:
        join_sums(op, skip, run, tid, n_threads)
    return True


@inner
def joined_ternary(op, run, tid, n_threads):
    skip = chosen_policy(op, run, tid)
    if skip == 0:
        return False
    join_ternary_sums(op, skip, run, tid, n_threads)
    return True


@op_kernel
def linear_q4(op, run, tid, n_threads):
    """4-bit weights, symmetric or with minima."""
    if not joined(op, run, tid, n_threads):
        dense_q4(op, run, tid, n_threads)


@op_kernel
def linear_q8(op, run, tid, n_threads):
    """8-bit weights."""
    if not joined(op, run, tid, n_threads):
        dense_q8(op, run, tid, n_threads)


@op_kernel
def linear_ternary(op, run, tid, n_threads):
    """Weights of -1, 0 and 1 over rows with one scale each."""
    if not joined_ternary(op, run, tid, n_threads):
        dense_ternary(op, run, tid, n_threads)


@op_kernel
def linear_ternary_triples(op, run, tid, n_threads):
    """Ternary weights in codes of three."""
    if not joined_ternary(op, run, tid, n_threads):
        dense_ternary_triples(op, run, tid, n_threads)
