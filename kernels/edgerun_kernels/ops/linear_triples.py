"""Ternary layers in 1.67 bits a weight: codes of three columns, 32 rows interleaved (see ``edgerun.package.layout``).

One row, where the ISA looks up words: what each code adds is worked out once for every three inputs, and looked up for
all rows: memory's speed with a sixth less to read than in 2 bits. Tables must stay in the first cache, so the columns
are taken in parts, one after the other for all rows, as they lie. Everywhere else, blocks of 32 rows are written out in
2 bits and multiplied by ``linear``. Sums are exact integers either way: the same bits as of 2-bit weights.
"""

from ..columns.linear_columns import scratch_address
from ..kernel import inner
from ..layouts import Input, Matrix
from ..record import (
    GROUP,
    MOST_UNITS_A_PART,
    ROW_SCALES,
    ROWS,
    TILE_HEADER,
    UNIT_BYTES,
    UNIT_COLUMNS,
    UNIT_ROWS,
    units_a_part,
)
from ..simd.ops import (
    field,
    fma,
    has_lookup_i16,
    load_f32,
    load_i8,
    load_i32x16,
    prefetch_far,
    splat,
    store_i32x16,
    to_float,
    zero_i32,
)
from ..simd.tiles import stack_memory
from ..simd.triples import add_unit, even_words, expand_unit, odd_words, store_words, table_of_sums, zero_words
from .linear import finish, input_address, n_rows, output_address, ternary_blocks
from .math import ZERO, share

AHEAD = 12288
"""Bytes by which prefetching into the second cache runs ahead: nearer, or into the first cache, it costs a third of the
speed, since the tables want the first cache for themselves."""
MOST_UNITS = 5
"""Units whose sums fit in 16 bits: 16 codes each, of three inputs up to 127."""
HALF = UNIT_COLUMNS // 3
tables_memory = stack_memory(1024 * MOST_UNITS_A_PART)
units_a_part = inner(units_a_part)


@inner
def make_tables(x, k, first, last, tables):
    """Of units ``first`` to ``last - 1``; beyond column k weights are 0, whatever the input."""
    for unit in range(first, last):
        for i in range(HALF):
            at = unit * UNIT_COLUMNS + i
            a, b, c = min(at, k - 1), min(at + HALF, k - 1), min(at + 2 * HALF, k - 1)
            store_words(tables, table_of_sums(load_i8(x + a), load_i8(x + b), load_i8(x + c)))
            tables += 64


@inner
def add_part(w, tables, n_units, first, n_blocks, sums):
    """Adds a part's columns to the sums of ``n_blocks`` blocks of rows; the ``first`` part starts them."""
    for block in range(n_blocks):
        at = w + block * n_units * UNIT_BYTES
        even, odd = zero_i32(), zero_i32()
        if not first:
            even, odd = load_i32x16(sums + 128 * block), load_i32x16(sums + 128 * block + 64)
        for some in range(0, n_units, MOST_UNITS):
            words = zero_words()
            for unit in range(some, min(some + MOST_UNITS, n_units)):
                for line in range(0, UNIT_BYTES, 64):
                    prefetch_far(at + unit * UNIT_BYTES + line + AHEAD)
                words = add_unit(words, at + unit * UNIT_BYTES, tables + 1024 * unit)
            even, odd = even + even_words(words), odd + odd_words(words)
        store_i32x16(sums + 128 * block, even)
        store_i32x16(sums + 128 * block + 64, odd)


@inner
def one_row(op, run, tid, first, last):
    x, y, k = input_address(op, run, tid), output_address(op, run), field(op, Input.K)
    n_blocks = (field(op, Matrix.N) + UNIT_ROWS - 1) // UNIT_ROWS
    n_units = units_a_part(k)
    sums, tables = scratch_address(op, run, tid), tables_memory()
    part = 0
    while part * n_units * UNIT_COLUMNS < k:
        make_tables(x + TILE_HEADER, k, part * n_units, (part + 1) * n_units, tables)
        w = field(op, Matrix.W) + (part * n_blocks + first) * n_units * UNIT_BYTES
        add_part(w, tables, n_units, part == 0, last - first, sums)
        part += 1
    scale = splat(load_f32(field(op, Matrix.D)) * load_f32(x + ROW_SCALES))
    n_outputs = (field(op, Matrix.N) + ROWS - 1) // ROWS
    for block in range(2 * first, min(2 * last, n_outputs)):
        total = load_i32x16(sums + 64 * (block - 2 * first))
        finish(op, y, block, fma(scale, to_float(total), splat(ZERO)))


@inner
def expand(op, block, to):
    """The 2-bit form of a block, as ``ternary`` weights lie. Backwards: what the last unit of rows 0..15 writes beyond
    its group is then where the first of rows 16..31 is written."""
    k = field(op, Input.K)
    n_blocks, n_units = (field(op, Matrix.N) + UNIT_ROWS - 1) // UNIT_ROWS, units_a_part(k)
    stride = (k + GROUP - 1) // GROUP * 128
    unit = (k + UNIT_COLUMNS - 1) // UNIT_COLUMNS - 1
    while unit >= 0:
        place = (unit // n_units * n_blocks + block) * n_units + unit % n_units
        target = to + 192 * unit
        expand_unit(field(op, Matrix.W) + place * UNIT_BYTES, target, target + stride)
        unit -= 1
    return stride


@inner
def dense_ternary_triples(op, run, tid, n_threads):
    """Ternary weights in codes of three."""
    rows = n_rows(op, run)
    n_blocks = (field(op, Matrix.N) + UNIT_ROWS - 1) // UNIT_ROWS
    first, last = share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)
    if rows == 1 and has_lookup_i16() != 0:
        one_row(op, run, tid, first, last)
        return
    n_outputs = (field(op, Matrix.N) + ROWS - 1) // ROWS
    buffer = scratch_address(op, run, tid)
    for block in range(first, last):
        stride = expand(op, block, buffer)
        w = buffer - 2 * block * stride
        ternary_blocks(op, run, tid, rows, 2 * block, min(2 * block + 2, n_outputs), w)
