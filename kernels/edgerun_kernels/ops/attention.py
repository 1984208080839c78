"""Attention of rows of several sequences over a paged cache, norms of queries and keys and RoPE included.

What a row reads is a list of blocks: every position's, or what a policy left (``attention_entries.py``).
Query rows that share a key/value head (query heads of a token, or tokens) go through the keys together, in tiles whose
sums stay in registers (``attention_tile.py``), part by part; the parts are joined. Where parts and steps begin depends
on the row's own position alone, so its result is the same bits at every number of threads, alone, beside other
sequences' rows, and as one of many rows of its own.

Few rows of a sequence (decode, drafts): threads share out the parts, and ``gather_attention`` joins them. Many
(prefill): threads share out tiles of rows, and join a tile's parts themselves. The cache's formats:
``attention_cache.py``.
"""

from ..kernel import inner, op_kernel
from ..layouts import Attention, Head
from ..record import (
    BLOCK,
    CHUNK,
    DRAFT_ROWS,
    MAX_CHUNKS,
    PART_ROWS,
    PREFILL_TILE,
    QUERY_TILE,
    TILE_ROWS,
    LayerState,
    Run,
    Sequence,
)
from ..runtime.loop.barrier import meet
from ..simd.ops import field, store_f32
from .attention_cache import Cache, float_cache, q8_cache
from .attention_entries import (
    block_address,
    entries_of,
    exports,
    layer_state,
    n_parts,
    part_length,
    rows_alike,
)
from .attention_tile import (
    copy_padded,
    join_parts,
    part_tile,
    partial_bytes,
    rotate_head,
    row_partials,
)
from .math import ONE, ZERO, share
from .norm import tile_share
from .sequences import position_of, sequence_at, vector_of


@inner
def shares_parts(sequence):
    """Whether threads share out the parts of a sequence's rows, rather than tiles of rows. The results are the same."""
    rows = field(sequence, Sequence.N_ROWS)
    return rows <= DRAFT_ROWS and field(sequence, Sequence.FIRST_ROW) + rows <= PART_ROWS


@inner
def n_steps(op, sequence, kv_head, position):
    return (entries_of(op, sequence, kv_head, position) + CHUNK - 1) // CHUNK


@inner
def n_tiles(n_queries, rows):
    """Tiles of queries of one key/value head: of one row's in fours, of several rows' in PREFILL_TILEs."""
    tile = QUERY_TILE if rows == 1 else PREFILL_TILE
    return (n_queries + tile - 1) // tile


@inner
def join_head(op, sequence, head, position, parts, sums, y):
    """Joins the parts of one head of the row at a position to its place in the row's output at y, and leaves what
    DELTA's choice is made of; sums: room for the output."""
    kv_head = head // (field(op, Attention.N_HEADS) // field(op, Attention.N_KV_HEADS))
    count, dim = n_parts(op, sequence, kv_head, position), field(op, Attention.HEAD_DIM)
    largest, inverse = join_parts(parts, partial_bytes(op), count, dim, sums, y + 4 * head * dim)
    if exports(op, sequence):  # where one row runs by every thread, the same
        norms = field(layer_state(op, sequence), LayerState.NORMS) + 8 * head
        store_f32(norms, largest)
        store_f32(norms + 4, inverse)


def _attention(name: str, cache: Cache):
    """The kernel for one cache format."""
    padded_dim, write_key, write_value = cache.padded, cache.write_key, cache.write_value
    one, two, three, four, many = (part_tile(cache, rows) for rows in (1, 2, 3, QUERY_TILE, PREFILL_TILE))

    @inner
    def write_cache(op, run, sequence, row, kv_head, work):
        """Writes key, as it is compared, and value of ``row`` and one head into the cache."""
        position = position_of(sequence, row)
        dim, padded = field(op, Attention.HEAD_DIM), padded_dim(op)
        offset = field(run, Run.ARENA) + row * field(op, Attention.KV_STRIDE) + 4 * kv_head * dim
        key, value, rest = work, work + 4 * padded, work + 8 * padded
        norm = vector_of(sequence, field(op, Attention.K_NORM), field(op, Attention.K_SITE))
        rotate_head(op, run, offset + field(op, Attention.KEY), norm, position, ONE, key)
        for i in range(dim, padded):
            store_f32(key + 4 * i, ZERO)
        copy_padded(offset + field(op, Attention.VALUE), dim, padded, value)
        block = block_address(op, sequence, kv_head, position // BLOCK)
        write_key(op, block, position % BLOCK, key, rest)
        write_value(op, block, position % BLOCK, value, rest)

    @inner
    def write_rows(op, run, tid, n_threads, scratch):
        """Keys and values of this thread's share of several rows."""
        rows = field(run, Run.N_ROWS)
        begin, end = share(rows, tid, n_threads), share(rows, tid + 1, n_threads)
        for index in range(field(run, Run.N_SEQUENCES)):
            sequence = sequence_at(run, index)
            first = field(sequence, Sequence.FIRST_ROW)
            for row in range(max(begin, first), min(end, first + field(sequence, Sequence.N_ROWS))):
                for kv_head in range(field(op, Attention.N_KV_HEADS)):
                    write_cache(op, run, sequence, row, kv_head, scratch)

    @inner
    def some_parts(op, run, sequence, kv_head, row, rows, first, last, scratch):
        """The parts ``first`` to ``last - 1`` of all queries of rows that have parts of one length."""
        group = field(op, Attention.N_HEADS) // field(op, Attention.N_KV_HEADS)
        query, end = 0, group * rows
        while query < end:
            left = end - query
            if rows > 1:
                until = position_of(sequence, row + (min(query + PREFILL_TILE, end) - 1) // group)
                seen = n_parts(op, sequence, kv_head, until)
                many(op, run, sequence, kv_head, row, query, end - 1, first, min(last, seen), scratch, 0)
                query += PREFILL_TILE
                continue
            if left >= QUERY_TILE:
                four(op, run, sequence, kv_head, row, query, end - 1, first, last, scratch, 0)
            elif left == 3:
                three(op, run, sequence, kv_head, row, query, end - 1, first, last, scratch, 0)
            elif left == 2:
                two(op, run, sequence, kv_head, row, query, end - 1, first, last, scratch, 0)
            else:
                one(op, run, sequence, kv_head, row, query, end - 1, first, last, scratch, 0)
            query += QUERY_TILE

    @inner
    def in_parts(op, run, tid, n_threads, scratch, writes):
        """The parts of all sequences with few rows, shared out by the steps that they take. writes: the thread that
        has the newest position writes it first (one row); else they have been written."""
        n_kv_heads = field(op, Attention.N_KV_HEADS)
        group = field(op, Attention.N_HEADS) // n_kv_heads
        total, before, begin, end = 0, 0, 0, 0
        for counting in (1, 0):
            if counting == 0:
                begin, end = share(total, tid, n_threads), share(total, tid + 1, n_threads)
            for index in range(field(run, Run.N_SEQUENCES)):
                sequence = sequence_at(run, index)
                if not shares_parts(sequence):
                    continue
                row, left = field(sequence, Sequence.FIRST_ROW), field(sequence, Sequence.N_ROWS)
                while left > 0:
                    rows = rows_alike(position_of(sequence, row), left)
                    until = position_of(sequence, row + rows - 1)
                    length = part_length(until)
                    for kv_head in range(n_kv_heads):
                        steps = n_steps(op, sequence, kv_head, until)
                        cost = n_tiles(group * rows, rows)
                        if counting == 1:
                            total += cost * steps
                            continue
                        first = part_from(begin - before, cost * (length // CHUNK))
                        last = part_from(min(end - before, cost * steps), cost * (length // CHUNK))
                        before += cost * steps
                        if first < last:
                            if writes and last * length >= steps * CHUNK:
                                write_cache(op, run, sequence, row, kv_head, scratch)
                            some_parts(op, run, sequence, kv_head, row, rows, first, last, scratch)
                    row += rows
                    left -= rows

    @inner
    def in_tiles(op, run, tid, n_threads, scratch):
        """Tiles of (row, head) queries of one key/value head, of sequences with many rows."""
        n_kv_heads, n_heads = field(op, Attention.N_KV_HEADS), field(op, Attention.N_HEADS)
        group = n_heads // n_kv_heads
        stride = partial_bytes(op)
        room, dealt = PREFILL_TILE * MAX_CHUNKS * stride, 0
        for index in range(field(run, Run.N_SEQUENCES)):
            sequence = sequence_at(run, index)
            if shares_parts(sequence):
                continue
            row, left = field(sequence, Sequence.FIRST_ROW), field(sequence, Sequence.N_ROWS)
            while left > 0:
                rows = rows_alike(position_of(sequence, row), left)
                tiles = n_tiles(group * rows, 2)
                for item in range((tid + dealt) % n_threads, tiles * n_kv_heads, n_threads):  # late tiles see more keys
                    kv_head = item // tiles  # a head's keys stay in the cache meanwhile
                    query = item % tiles * PREFILL_TILE
                    last = min(query + PREFILL_TILE, group * rows) - 1
                    until = position_of(sequence, row + last // group)
                    seen = n_parts(op, sequence, kv_head, until)
                    many(op, run, sequence, kv_head, row, query, last, 0, seen, scratch + room, scratch)
                    for q in range(last + 1 - query):
                        at, parts = query + q, scratch + q * MAX_CHUNKS * stride
                        head, place = kv_head * group + at % group, row + at // group
                        y = field(run, Run.ARENA) + field(op, Head.Y) + place * field(op, Head.Y_STRIDE)
                        join_head(op, sequence, head, position_of(sequence, place), parts, scratch + room, y)
                dealt += tiles * n_kv_heads
                row += rows
                left -= rows

    def kernel(op, run, tid, n_threads):
        scratch = field(run, Run.ARENA) + field(op, Attention.SCRATCH)
        scratch += tid * field(op, Attention.SCRATCH_PRIVATE)
        several = field(run, Run.N_ROWS) > 1
        if several:
            write_rows(op, run, tid, n_threads, scratch)
            meet(op, run, tid, n_threads)
            in_tiles(op, run, tid, n_threads, scratch)
        in_parts(op, run, tid, n_threads, scratch, not several)

    kernel.__name__ = name
    return op_kernel(kernel)


@inner
def part_from(steps, steps_a_part):
    """The first part that begins at so many steps or later."""
    return (max(steps, 0) + steps_a_part - 1) // steps_a_part


attention_f16 = _attention("attention_f16", float_cache("f16"))
attention_f32 = _attention("attention_f32", float_cache("f32"))
attention_q8 = _attention("attention_q8", q8_cache())


@inner
def gather_row(op, run, sequence, row, scratch, y):
    """Joins the parts of all heads of a row to the output at y."""
    position = position_of(sequence, row)
    for head in range(field(op, Attention.N_HEADS)):
        join_head(op, sequence, head, position, row_partials(op, run, row, head), scratch, y)


@op_kernel
def gather_attention(op, run, tid, n_threads):
    """Joins the parts of the rows whose parts were shared out: of one row into this thread's own copy of the output, of
    several those that it will quantise."""
    y = field(run, Run.ARENA) + field(op, Head.Y)
    scratch = field(run, Run.ARENA) + field(op, Attention.SCRATCH) + tid * field(op, Attention.SCRATCH_PRIVATE)
    rows = field(run, Run.N_ROWS)
    if rows == 1:
        gather_row(op, run, sequence_at(run, 0), 0, scratch, y + tid * field(op, Head.Y_PRIVATE))
        return
    begin, end = tile_share(rows, tid, n_threads)
    for index in range(field(run, Run.N_SEQUENCES)):
        sequence = sequence_at(run, index)
        if shares_parts(sequence):
            first = field(sequence, Sequence.FIRST_ROW)
            last = min(first + field(sequence, Sequence.N_ROWS), end * TILE_ROWS)
            for row in range(max(first, begin * TILE_ROWS), last):
                gather_row(op, run, sequence, row, scratch, y + row * field(op, Head.Y_STRIDE))
