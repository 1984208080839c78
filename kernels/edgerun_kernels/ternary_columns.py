"""Ternary layers of one input, stacked column by column beside their own weights, where a policy makes inputs zero.

One row: ``columns_ternary`` adds up the columns whose input is left, in integers, as ``columns`` does. Where more than
MOST are left, or several rows run, ``join_ternary`` multiplies by all columns, of the input as it was.
"""

from .column_list import ALL, CHOSEN
from .columns import add_columns, count_columns, matrix, n_active, row_address, scratch_address
from .kernel import inner, op_kernel
from .linear import finish, input_address, linear_ternary, n_rows, output_address
from .math import ZERO, share
from .record import ROW_SCALES, ROWS, TILE_HEADER, Field, Op, Run
from .simd.ops import field, fma, load_f32, load_i32, load_i32x16, load_i64, splat, splat_i32, store_i64, to_float
from .triples import linear_ternary_triples

LINEAR_TERNARY_TRIPLES = int(Op.LINEAR_TERNARY_TRIPLES)
SUMS = 64
"""Where a thread's sums begin in its scratch, behind a header line."""


@op_kernel
def columns_ternary(op, run, tid, n_threads):
    """A thread's share of the columns of a stack of N rows, to the sums in its scratch; only where one row runs."""
    if n_rows(op, run) != 1:
        return
    x, scratch = input_address(op, run, tid) + TILE_HEADER, scratch_address(op, run, tid)
    k, _, _ = matrix(op)
    total = k if field(op, Field.KEEPS) != 0 and load_i64(scratch + ALL) != 0 else n_active(x, k)
    chosen = total <= field(op, Field.MOST)
    store_i64(scratch + CHOSEN, 1 if chosen else 0)
    count_columns(run, tid, total if chosen else k)
    if chosen:
        add_columns(op, x, total, tid, n_threads, scratch + SUMS)


@inner
def summed_up(op, run, tid):
    """A thread's scratch of the stack; the layer may have one of its own."""
    return field(run, Run.ARENA) + field(op, Field.SUMS) + tid * field(op, Field.STACK)


@op_kernel
def join_ternary(op, run, tid, n_threads):
    """A layer's outputs: what the threads summed up of its rows in the stack (from START on, of the row at UP; SUMS and
    STACK say where), added and scaled; or, where columns were not skipped, all of what the op DENSE does."""
    if n_rows(op, run) != 1 or load_i64(summed_up(op, run, tid) + CHOSEN) == 0:
        if field(op, Field.DENSE) == LINEAR_TERNARY_TRIPLES:
            linear_ternary_triples(op, run, tid, n_threads)
        else:
            linear_ternary(op, run, tid, n_threads)
        return
    x, y = row_address(op, run, tid), output_address(op, run)
    n_blocks, start = (field(op, Field.N) + ROWS - 1) // ROWS, SUMS + 4 * field(op, Field.START)
    offset, scale = splat_i32(load_i32(x)), splat(load_f32(field(op, Field.D)) * load_f32(x + ROW_SCALES))
    for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
        total = offset
        for thread in range(n_threads):
            total = total + load_i32x16(summed_up(op, run, thread) + start + 64 * block)
        finish(op, y, block, fma(scale, to_float(total), splat(ZERO)))
