"""Linear layers with 4- or 8-bit weights that read and multiply only the columns whose input is not zero, for one row.

Layers of the same input lie stacked, column by column (see ``edgerun.sparsity.columns``), since memory gives long runs
faster than short ones; scales lie group by group, rows in order. A group's columns are summed up in integers, then
scaled as ``linear`` scales them. Groups are summed up in PARTS parts whatever the number of threads, which share out
parts and rows evenly; ``join_sums`` adds them, so a result's bits do not depend on threads. Where more than MOST
columns are wanted nothing is summed up: the layers then multiply by all columns (see ``projection``).
"""

from ..kernel import inner
from ..layouts import Input, Matrix, Stacked
from ..ops.linear import finish, output_address
from ..ops.linear_products import MINUS_128
from ..ops.math import ZERO, share
from ..record import GROUP, ROWS, SEGMENT_BYTES, Keep, Run, Skip
from ..simd.ops import (
    dot_i8_bias,
    field,
    is_wide,
    load_f32x16,
    load_i64,
    prefetch_far,
    splat,
    store_f32,
    store_f32x16,
    store_i64,
    sum_of_f64,
)
from ..simd.tiles import Tile
from .changes import AFRESH, rest_after, state_address, state_sums, take_changes
from .fetch import distances, fetch_columns, fetch_first, four_from
from .lists import (
    ALL,
    CHOSEN,
    FIRST,
    MINIMA,
    N_SEGMENTS,
    QUADS,
    SCALES,
    SUM,
    SUMS,
    TERMS,
    VALUES,
    ZERO_SUM,
    list_parts,
    mark,
    places,
)
from .skip import lists_address, multiplied_address

NONZERO = int(Keep.NONZERO)
OFFSET = GROUP + 4
"""From a group's terms to what a weight's offset adds up to; the scale lies at GROUP."""


@inner
def scale_place(row, half):
    """Bytes to the float16 of a row, or of the eighth from it on where half is 32."""
    return 2 * row + half // 2


def _fold(tile, has_minimum, exact):
    """``fold(segment, acc, row, half)``: a segment's integer sums, scaled, to the sums of a vector's rows: float32, or
    float64 that are exact."""
    load_scales, restore, store = tile.load_floats("f16"), tile.restore(), tile.store()
    add_scaled, add_outer = tile.add_scaled(), tile.add_outer()
    add_exact, add_outer_exact = tile.add_exact(), tile.add_outer_exact()

    @inner
    def fold(segment, acc, row, half):
        scales = load_scales(load_i64(segment + SCALES) + scale_place(row, half), 32)
        scale, total = load_i64(segment + TERMS) + GROUP, load_i64(segment + SUM)
        minima = load_i64(segment + MINIMA) + scale_place(row, half)
        if exact:
            sums = load_i64(segment + SUMS) + 8 * row + 2 * half
            add_exact(sums, acc, scales, scale)
            if has_minimum:
                add_outer_exact(sums, load_scales(minima, 32), total)
        else:
            sums = load_i64(segment + SUMS) + 4 * row + half
            y = add_scaled(restore(sums), acc, scales, scale)
            if has_minimum:
                y = add_outer(y, load_scales(minima, 32), total)
            store(sums, y)

    return fold


def _nibbles(tile, first, has_minimum, exact):
    """``add(segment, addresses, at, row, half, ahead)``: a segment's columns to the sums of a line's rows."""
    columns, dot, begin, end = tile.columns(first), tile.dot("dot_u4"), tile.begin(), tile.end()
    starts, low, high = tile.starts(None if has_minimum else 0), tile.bits(0, 4), tile.bits(4, 4)
    fold = _fold(tile, has_minimum, exact)
    fetches = tile.lanes == 16 or first == 0

    @inner
    def add(segment, addresses, at, row, half, ahead):
        terms, n_quads = load_i64(segment + TERMS), load_i64(segment + QUADS)
        start = load_i64(segment + FIRST)
        a0 = starts(terms + OFFSET)
        a, b = begin(a0), begin(a0)
        for i in range(n_quads):
            four, x = addresses + 8 * start + 32 * i, load_i64(segment + VALUES) + start + 4 * i
            if fetches:
                fetch_columns(four, at, ahead)
            w = columns(*four_from(four, at))
            a, b = dot(a, low(w), x), dot(b, high(w), x)
        fold(segment, end(a, a0), row, half)
        fold(segment, end(b, a0), row + 64, half)

    return add


def _bytes(tile, first, has_minimum, exact):
    columns, dot = tile.columns(first), tile.dot("dot_i8")
    from_zero, from_bias = tile.starts(None), tile.starts(MINUS_128)
    fold = _fold(tile, has_minimum, exact)
    fetches = tile.lanes == 16 or first == 0

    @inner
    def add(segment, addresses, at, row, half, ahead):
        terms, n_quads = load_i64(segment + TERMS), load_i64(segment + QUADS)
        start = load_i64(segment + FIRST)
        a = from_bias(terms + OFFSET) if dot_i8_bias() != 0 else from_zero(terms)
        for i in range(n_quads):
            four, x = addresses + 8 * start + 32 * i, load_i64(segment + VALUES) + start + 4 * i
            if fetches:
                fetch_columns(four, at, ahead)
            w = columns(*four_from(four, at))
            a = dot(a, w, x)
        fold(segment, a, row, half)

    return add


@inner
def column_stride(n_slabs):
    """Bytes from column to column: an odd number of lines, else all columns would want the same places of a cache:
    measured, half the speed at 8 KiB."""
    return 64 * (n_slabs | 1)


def _one_row(adding, line_rows, has_minimum, exact):
    """line_rows: weight rows in a line of a column. exact: whether sums are those of the session's state, to which
    changes are added."""
    wide = adding(Tile(1, 4), 0, has_minimum, exact)
    low, high = (adding(Tile(1, 2, lanes=8), first, has_minimum, exact) for first in (0, 2))
    scale_lines, element = 2 * line_rows, 8 if exact else 4

    @inner
    def fetch_scales(segment, at, n_bytes):
        scales, minima = load_i64(segment + SCALES), load_i64(segment + MINIMA)
        for line in range(at, at + n_bytes, 64):
            prefetch_far(scales + line)
            if has_minimum:
                prefetch_far(minima + line)

    @inner
    def some_slabs(first, last, addresses, first_slab, last_slab, ahead):
        """The segments from ``first`` to before ``last``, to the rows of some lines."""
        for segment in range(first, last, SEGMENT_BYTES):
            next_but_one = min(segment + 2 * SEGMENT_BYTES, last - SEGMENT_BYTES)
            behind_it = min(segment + 3 * SEGMENT_BYTES, last - SEGMENT_BYTES)
            for at in range(first_slab, last_slab):
                fetch_scales(behind_it, scale_lines * at, scale_lines)
                fetch_scales(next_but_one, scale_lines * at, scale_lines)
                if is_wide() != 0:
                    wide(segment, addresses, 64 * at, line_rows * at, 0, ahead)
                else:
                    for half in range(0, 64, 32):
                        low(segment, addresses, 64 * at + half, line_rows * at, half, ahead)
                        high(segment, addresses, 64 * at + half, line_rows * at + 32, half, ahead)

    @inner
    def kernel(op, skip, run, tid, n_threads):
        scratch = lists_address(skip, run, tid)
        n_groups = (field(op, Input.K) + GROUP - 1) // GROUP
        segments, addresses, _, _, masks = places(scratch, n_groups)
        x = multiplied_address(op, skip, run, tid)
        looked = field(skip, Skip.KEEP) == NONZERO or load_i64(scratch + ALL) == 0
        total, cost = mark(x, n_groups, masks) if looked else (0, 0)
        afresh = not exact or (looked and load_i64(scratch + AFRESH) != 0)
        chosen = looked and (total <= field(skip, Skip.MOST) or (exact and afresh))
        store_i64(scratch + CHOSEN, 1 if chosen else 0)
        if exact and tid == 0:
            rest_after(skip, run, looked, chosen)
        counter = field(run, Run.COLUMNS_READ)
        if tid == 0 and counter != 0:
            store_i64(counter, load_i64(counter) + (total if chosen else GROUP * n_groups))
        if not chosen:
            return
        stack, n_parts = field(skip, Skip.STACK), field(skip, Skip.PARTS)
        sums = field(run, Run.ARENA) + field(skip, Skip.SUMS)
        if exact:
            sums = state_address(skip, run) + state_sums(field(op, Input.K))
        n_slabs = stack // line_rows
        begin, end = share(n_parts * n_slabs, tid, n_threads), share(n_parts * n_slabs, tid + 1, n_threads)
        if afresh:
            for i in range(element * line_rows * begin, element * line_rows * end, 64):
                store_f32x16(sums + i, splat(ZERO))
        if begin == end or total == 0:
            return
        store_f32(scratch + ZERO_SUM, ZERO)
        first, last = begin // n_slabs, (end - 1) // n_slabs + 1
        w, stride, m = field(skip, Skip.W), column_stride(n_slabs), field(skip, Skip.M)
        d = field(skip, Skip.D)
        part_bytes = element * stack
        list_parts(scratch, x, n_groups, cost, n_parts, first, last, w, stride, d, m, 2 * stack, sums, part_bytes)
        whole = last - first > 1
        ahead = distances(64 * n_slabs)
        first_line, last_line = (0, n_slabs) if whole else (begin % n_slabs, end - first * n_slabs)
        fetch_first(addresses, total, ahead, 64 * first_line, 64 * last_line)
        at = segments
        finish_at = segments + SEGMENT_BYTES * load_i64(scratch + N_SEGMENTS)
        for part in range(first, last):
            after = at
            while after < finish_at and load_i64(after + SUMS) == sums + part_bytes * part:
                after += SEGMENT_BYTES
            some_slabs(at, after, addresses, max(begin - part * n_slabs, 0), min(end - part * n_slabs, n_slabs), ahead)
            at = after

    return kernel


q4, q4_exact = (_one_row(_nibbles, 128, False, exact) for exact in (False, True))
q4m, q4m_exact = (_one_row(_nibbles, 128, True, exact) for exact in (False, True))
q8, q8_exact = (_one_row(_bytes, 64, False, exact) for exact in (False, True))


@inner
def columns_q4(op, skip, run, tid, n_threads):
    """4-bit weights, symmetric or with minima: the parts' sums of a stack."""
    if field(skip, Skip.M) == 0:
        q4(op, skip, run, tid, n_threads)
    else:
        q4m(op, skip, run, tid, n_threads)


@inner
def changed_columns_q4(op, skip, run, tid, n_threads):
    """The same of what has changed of the input, to the session's running sums."""
    if field(skip, Skip.M) == 0:
        q4_exact(op, skip, run, tid, n_threads)
    else:
        q4m_exact(op, skip, run, tid, n_threads)


@inner
def join_sums(op, skip, run, tid, n_threads):
    """A layer's outputs: the sums of the parts of its rows in the stack."""
    sums = field(run, Run.ARENA) + field(skip, Skip.SUMS) + 4 * field(op, Stacked.START)
    stride, n_parts, y = 4 * field(skip, Skip.STACK), field(skip, Skip.PARTS), output_address(op, run)
    n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
    for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
        acc = load_f32x16(sums + 64 * block)
        for part in range(1, n_parts):
            acc = acc + load_f32x16(sums + part * stride + 64 * block)
        finish(op, y, block, acc)


@inner
def join_running_sums(op, skip, run, tid, n_threads):
    """The same of the session's sums; the first layer of a stack also makes the changes part of its references."""
    start, stack, n_parts = field(op, Stacked.START), field(skip, Skip.STACK), field(skip, Skip.PARTS)
    k = field(op, Input.K)
    if start == 0:
        take_changes(skip, run, k, tid, n_threads)
    sums, y = state_address(skip, run) + state_sums(k) + 8 * start, output_address(op, run)
    n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
    for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
        finish(op, y, block, sum_of_f64(sums + 128 * block, 8 * stack, n_parts))
