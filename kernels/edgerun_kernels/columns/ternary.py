"""Ternary layers of one input, stacked column by column beside their own weights, where a policy makes inputs zero.

One row: ``columns_ternary`` adds up the columns whose input is left, in integers, as ``linear_columns`` does. Where
more than MOST are left it sums up nothing: the layers multiply by all columns, of the input as it was (see
``projection``).
"""

from ..kernel import inner
from ..layouts import Input, Matrix, Stacked
from ..ops.linear import finish, output_address
from ..ops.math import ZERO, share
from ..record import COLUMN_ROWS, GROUP, ROW_SCALES, ROWS, TILE_HEADER, Keep, Skip
from ..simd.ops import field, fma, load_f32, load_i32, load_i32x16, load_i64, splat, splat_i32, store_i64, to_float
from .linear_columns import add_columns, count_columns, n_active
from .lists import ALL, CHOSEN
from .skip import lists_address, multiplied_address

NONZERO = int(Keep.NONZERO)
SUMS = 64
"""Where a thread's sums begin in its scratch, behind a header line."""


@inner
def columns_ternary(op, skip, run, tid, n_threads):
    """A thread's share of the columns of a stack, to the sums in its scratch."""
    x, scratch = multiplied_address(op, skip, run, tid) + TILE_HEADER, lists_address(skip, run, tid)
    k, n_slabs = (field(op, Input.K) + GROUP - 1) // GROUP * GROUP, field(skip, Skip.STACK) // COLUMN_ROWS
    looked = field(skip, Skip.KEEP) == NONZERO or load_i64(scratch + ALL) == 0
    total = n_active(x, k) if looked else k
    chosen = total <= field(skip, Skip.MOST)
    store_i64(scratch + CHOSEN, 1 if chosen else 0)
    count_columns(run, tid, total if chosen else k)
    if chosen:
        add_columns(field(skip, Skip.W), k, n_slabs, x, total, tid, n_threads, scratch + SUMS)


@inner
def join_ternary_sums(op, skip, run, tid, n_threads):
    """A layer's outputs: what the threads summed up of its rows in the stack, added and scaled."""
    x, y = multiplied_address(op, skip, run, tid), output_address(op, run)
    n_blocks, start = (field(op, Matrix.N) + ROWS - 1) // ROWS, SUMS + 4 * field(op, Stacked.START)
    offset, scale = splat_i32(load_i32(x)), splat(load_f32(field(op, Matrix.D)) * load_f32(x + ROW_SCALES))
    for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
        total = offset
        for thread in range(n_threads):
            total = total + load_i32x16(lists_address(skip, run, thread) + start + 64 * block)
        finish(op, y, block, fma(scale, to_float(total), splat(ZERO)))
