"""Where one row runs: what the table of sparsity that its session brings says of a projection (``record.Skip``)."""

from ..kernel import inner
from ..layouts import Projected
from ..ops.linear import input_address
from ..record import Keep, Run, Skip
from ..simd.ops import field, load_i64
from .lists import CHOSEN

SKIP_BYTES = 8 * int(Skip.COUNT)
ALL_COLUMNS, NONZERO = int(Keep.ALL), int(Keep.NONZERO)


@inner
def policy(op, run):
    """The address of the policy of the projection that an op is of; 0 where all columns are read without a look."""
    table = field(run, Run.SPARSITY)
    if table == 0 or field(run, Run.N_ROWS) != 1:
        return 0
    skip = table + SKIP_BYTES * field(op, Projected.PROJECTION)
    return 0 if field(skip, Skip.KEEP) == ALL_COLUMNS else skip


@inner
def lists_address(skip, run, tid):
    """A thread's scratch for the projection, with the header of ``lists``."""
    return field(run, Run.ARENA) + field(skip, Skip.LISTS) + tid * field(skip, Skip.LISTS_PRIVATE)


@inner
def kept_address(skip, run, tid):
    """A thread's row of what is kept of the input."""
    return field(run, Run.ARENA) + field(skip, Skip.ROW) + tid * field(skip, Skip.ROW_PRIVATE)


@inner
def multiplied_address(op, skip, run, tid):
    """The row that is multiplied where columns are chosen: what is kept of the input, or with Keep.NONZERO all."""
    if field(skip, Skip.KEEP) == NONZERO:
        return input_address(op, run, tid)
    return kept_address(skip, run, tid)


@inner
def chosen_policy(op, run, tid):
    """``policy`` where its projection's columns were chosen in this run, else 0: every thread has found the same."""
    skip = policy(op, run)
    if skip != 0 and load_i64(lists_address(skip, run, tid) + CHOSEN) == 0:
        skip = 0
    return skip
