"""Ternary layers whose weights lie column by column, so that columns whose input is zero are neither read nor
multiplied: what a squared ReLU leaves of a BitNet's down projection is mostly zeros, and in integers the result is the
same.

One row: the threads share out the columns that are not zero, each whole, since memory gives long runs faster than short
ones, and add up integers of their own; ``gather_columns`` joins them. Several rows take all columns, in tiles as
``linear`` does. The layout is in ``edgerun.package.layout``.
"""

from ..kernel import inner, op_kernel
from ..layouts import Head, Input, Matrix, Scratch
from ..ops.linear import finish, input_address, n_rows, output_address
from ..ops.math import ZERO, share
from ..record import (
    COLUMN_AHEAD,
    COLUMN_ROWS,
    GROUP,
    ROW_SCALES,
    ROWS,
    TILE_HEADER,
    TILE_ROWS,
    TILE_SUMS,
    Run,
)
from ..simd.ops import (
    count_ones,
    field,
    first_one,
    fma,
    is_wide,
    load_f32,
    load_f32x16,
    load_i32,
    load_i32x16,
    load_i64,
    load_u8,
    nonzero_bytes,
    splat,
    splat_i32,
    store_i32x16,
    store_i64,
    store_u8,
    to_float,
    zero_i32,
)
from ..simd.tiles import Tile
from .fetch import AHEAD, fetch_columns, fetch_first, four_from
from .skip import multiplied_address, policy

QUADS = 4
"""Fours of columns that go through all rows together: few enough that their bytes stay in the first cache."""
PART = 32
"""Groups of columns that several rows take together: what they hold of 256 weight rows stays in the second cache."""


@inner
def matrix(op):
    """Its columns, padded to whole groups, the bytes of one, and the slabs of COLUMN_ROWS rows."""
    n_slabs = (field(op, Matrix.N) + COLUMN_ROWS - 1) // COLUMN_ROWS
    return (field(op, Input.K) + GROUP - 1) // GROUP * GROUP, n_slabs * 64, n_slabs


@inner
def scratch_address(op, run, tid):
    return field(run, Run.ARENA) + field(op, Scratch.SCRATCH) + tid * field(op, Scratch.SCRATCH_PRIVATE)


# --- one row ----------------------------------------------------------------------------------------------------------


@inner
def active(x, column, k):
    """Which of the 64 inputs from ``column`` on are not zero; k, a multiple of 32, is where they end."""
    bits = nonzero_bytes(x + column)
    return bits if k - column >= 64 else bits & 0xFFFFFFFF


@inner
def n_active(x, k):
    total = 0
    for column in range(0, k, 64):
        total += count_ones(active(x, column, k))
    return total


@inner
def list_columns(x, k, first, last, w, stride, addresses, values):
    """Addresses and inputs of the active columns number ``first`` to ``last - 1``; then what fills the last four with
    zeros, and what prefetching may still look at."""
    seen = 0
    for column in range(0, k, 64):
        bits = active(x, column, k)
        after = seen + count_ones(bits)
        if after > first and seen < last:
            i = seen - first
            while bits != 0:
                if i >= 0 and i < last - first:
                    at = column + first_one(bits)
                    store_i64(addresses + 8 * i, w + at * stride)
                    store_u8(values + i, load_u8(x + at))
                bits &= bits - 1
                i += 1
        seen = after
    for i in range(last - first, (last - first + 3) // 4 * 4 + COLUMN_AHEAD):
        store_i64(addresses + 8 * i, w)
    for i in range(last - first, (last - first + 3) // 4 * 4):
        store_u8(values + i, 0)


def _adding(tile, first):
    """``add(addresses, values, n_quads, at, sums)``: fours of columns to the sums of one slab, whose bytes lie at
    ``at`` in a column."""
    columns, dot, begin, end = tile.columns(first), tile.dot("dot_u4"), tile.begin(), tile.end()
    restore, store = tile.restore_sums(), tile.store_sums()
    bits_0, bits_1, bits_2, bits_3 = (tile.bits(2 * i, 2) for i in range(4))
    fetches = tile.lanes == 16 or first == 0

    @inner
    def add(addresses, values, n_quads, at, sums):
        a0, b0, c0, d0 = restore(sums), restore(sums + 256), restore(sums + 512), restore(sums + 768)
        a, b, c, d = begin(a0), begin(b0), begin(c0), begin(d0)
        for i in range(n_quads):
            four, x = addresses + 32 * i, values + 4 * i
            if fetches:
                fetch_columns(four, at, AHEAD)
            w = columns(*four_from(four, at))
            a, b = dot(a, bits_0(w), x), dot(b, bits_1(w), x)
            c, d = dot(c, bits_2(w), x), dot(d, bits_3(w), x)
        store(sums, end(a, a0))
        store(sums + 256, end(b, b0))
        store(sums + 512, end(c, c0))
        store(sums + 768, end(d, d0))

    return add


add_wide = _adding(Tile(1, 4), 0)
add_low, add_high = (_adding(Tile(1, 2, lanes=8), first) for first in (0, 2))


@inner
def row_address(op, run, tid):
    """The one row that is multiplied: what a policy has made of the input, or the input."""
    skip = policy(op, run)
    if skip != 0:
        return multiplied_address(op, skip, run, tid)
    return input_address(op, run, tid)


@inner
def count_columns(run, tid, n):
    counter = field(run, Run.COLUMNS_READ)
    if tid == 0 and counter != 0:
        store_i64(counter, load_i64(counter) + n)


@inner
def one_row(op, run, tid, n_threads):
    """This thread's share of the active columns, to the sums at the start of its scratch."""
    x = row_address(op, run, tid) + TILE_HEADER
    k, _, n_slabs = matrix(op)
    total = n_active(x, k)
    count_columns(run, tid, total)
    add_columns(field(op, Matrix.W), k, n_slabs, x, total, tid, n_threads, scratch_address(op, run, tid))


@inner
def add_columns(w, k, n_slabs, x, total, tid, n_threads, sums):
    """A thread's share of the ``total`` active ones of k columns, to int32 sums of all weight rows, behind which it
    makes its list."""
    stride = 64 * n_slabs
    for i in range(0, 1024 * n_slabs, 64):
        store_i32x16(sums + i, zero_i32())
    quads = (total + 3) // 4
    first, last = 4 * share(quads, tid, n_threads), min(4 * share(quads, tid + 1, n_threads), total)
    if first >= last:
        return
    addresses = sums + 1024 * n_slabs
    values = addresses + 8 * (k + COLUMN_AHEAD)
    list_columns(x, k, first, last, w, stride, addresses, values)
    fetch_first(addresses, last - first, AHEAD, 0, stride)
    mine = (last - first + 3) // 4
    for i in range(0, mine, QUADS):
        four, v, count = addresses + 32 * i, values + 4 * i, min(QUADS, mine - i)
        for slab in range(n_slabs):
            at, to = 64 * slab, sums + 1024 * slab
            if is_wide() != 0:
                add_wide(four, v, count, at, to)
            else:
                for half in range(0, 64, 32):
                    add_low(four, v, count, at + half, to + half)
                    add_high(four, v, count, at + half, to + 128 + half)


@op_kernel
def gather_columns(op, run, tid, n_threads):
    """What the threads summed up, added and scaled: a linear layer's output. Only where one row runs."""
    if n_rows(op, run) != 1:
        return
    x, y = row_address(op, run, tid), output_address(op, run)
    n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
    offset, scale = splat_i32(load_i32(x)), splat(load_f32(field(op, Matrix.D)) * load_f32(x + ROW_SCALES))
    for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
        total = offset
        for thread in range(n_threads):
            total = total + load_i32x16(scratch_address(op, run, thread) + 64 * block)
        finish(op, y, block, fma(scale, to_float(total), splat(ZERO)))


# --- several rows -----------------------------------------------------------------------------------------------------


def _products(tile, first):
    """``products(x, w, stride, plane, part, n_groups, d, kept)``: a tile of rows times PART groups of columns, or
    fewer, from group ``part`` on; sums are kept from part to part, and are outputs after the last one."""
    columns, pair, dot_twice = tile.columns(first), tile.two_bits(), tile.dot_twice()
    begin, end, starts, restore, keep = tile.begin(), tile.end(), tile.starts(0), tile.restore_sums(), tile.store_sums()
    zero, add_scaled, splat_scale, store = tile.zero(), tile.add_scaled(), tile.splat(), tile.store()

    @inner
    def four_beside(w, stride, column):
        one = w + column * stride
        return columns(one, one + stride, one + 2 * stride, one + 3 * stride)

    @inner
    def products(x, w, stride, plane, part, n_groups, d, kept):
        acc = starts(x) if part == 0 else restore(kept)
        for g in range(part, min(part + PART, n_groups)):
            sums = begin(acc)
            for c in range(0, GROUP, 8):
                at = GROUP * g + c
                first_four, others = four_beside(w, stride, at), four_beside(w, stride, at + 4)
                inputs = x + TILE_HEADER + GROUP * TILE_ROWS * g + c
                sums = dot_twice(sums, pair(first_four, plane), pair(others, plane), inputs)
            acc = end(sums, acc)
        if part + PART < n_groups:
            keep(kept, acc)
        else:
            store(kept, add_scaled(zero(), acc, splat_scale(d), x + ROW_SCALES))

    return products


wide = _products(Tile(TILE_ROWS, 4), 0)
low, high = (_products(Tile(TILE_ROWS, 2, lanes=8), first) for first in (0, 2))


@inner
def several_rows(op, run, tid, n_threads, rows):
    """Threads share the planes of the slabs: 64 weight rows each, or fewer where the matrix ends."""
    k, stride, n_slabs = matrix(op)
    x0, y0 = input_address(op, run, tid), output_address(op, run)
    x_stride, y_stride = field(op, Head.X_STRIDE), field(op, Head.Y_STRIDE)
    n_groups, n_tiles = k // GROUP, (rows + TILE_ROWS - 1) // TILE_ROWS
    d = load_f32(field(op, Matrix.D))
    n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
    sums = scratch_address(op, run, tid)
    for unit in range(share(4 * n_slabs, tid, n_threads), share(4 * n_slabs, tid + 1, n_threads)):
        w, plane, first = field(op, Matrix.W) + 64 * (unit // 4), unit % 4, 4 * unit
        for part in range(0, n_groups, PART):
            for tile in range(n_tiles):
                x, kept = x0 + tile * x_stride, sums + tile * TILE_SUMS
                if is_wide() != 0:
                    wide(x, w, stride, plane, part, n_groups, d, kept)
                else:
                    for half in range(0, 64, 32):
                        low(x, w + half, stride, plane, part, n_groups, d, kept + half)
                        high(x, w + half, stride, plane, part, n_groups, d, kept + TILE_SUMS // 2 + half)
        for row in range(rows):
            kept = sums + row // TILE_ROWS * TILE_SUMS + 64 * (row % TILE_ROWS)
            for i in range(min(4, n_blocks - first)):
                finish(op, y0 + row * y_stride, first + i, load_f32x16(kept + 64 * TILE_ROWS * i))


@op_kernel
def linear_ternary_columns(op, run, tid, n_threads):
    """Ternary weights, column by column; of one row, what ``gather_columns`` joins."""
    rows = n_rows(op, run)
    if rows == 1:
        one_row(op, run, tid, n_threads)
    else:
        several_rows(op, run, tid, n_threads, rows)
