"""Attention over a paged cache, RoPE included: decode is split over the sequence, prefill over the queries.

What it reads is a list of blocks: every position's, or what a policy left (``attention_entries.py``).
Query rows that share a key/value head (query heads of a token, or tokens) go through the keys together, in tiles whose
sums stay in registers. Softmax is online (Milakov & Gimelshein, arXiv 1805.02867), in steps whose bounds depend on
places in the list only, so that results do not depend on the number of threads. The cache's formats:
``attention_cache.py``.
"""

import numpy as np

from .attention_cache import NEXT, Cache, float_cache, q8_cache
from .attention_entries import (
    block_address,
    entries_of,
    exports,
    first_exact,
    layer_state,
    locate,
    runs_end,
    runs_padded,
)
from .barrier import wait_for_all
from .kernel import inner, op_kernel
from .math import ONE, ZERO, exp, share
from .norm import normalise_head
from .record import BLOCK, CHUNK, MAX_CHUNKS, PREFILL_TILE, QUERY_TILE, Field, LayerState, Run
from .simd.ops import (
    extract,
    field,
    field_f64,
    first_lanes,
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32,
    splat,
    store_f32,
    store_f32x16,
    store_i64,
    sum_f32,
    vmax,
)

MASKED = np.float32(-1e30)
STATE = 256
"""Bytes of a tile's softmax state."""


@inner
def rotate(x, run, position, half, scale, out):
    """RoPE in the rotate-half layout, times ``scale``: out[i], out[i+half] from x[i], x[i+half]."""
    cos = field(run, Run.COS) + position * half * 4
    sin = field(run, Run.SIN) + position * half * 4
    i = 0
    while i + 16 <= half:
        a, b = load_f32x16(x + 4 * i), load_f32x16(x + 4 * (i + half))
        c, s = load_f32x16(cos + 4 * i), load_f32x16(sin + 4 * i)
        store_f32x16(out + 4 * i, (a * c - b * s) * splat(scale))
        store_f32x16(out + 4 * (i + half), (b * c + a * s) * splat(scale))
        i += 16
    while i < half:
        a, b = load_f32(x + 4 * i), load_f32(x + 4 * (i + half))
        c, s = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store_f32(out + 4 * i, (a * c - b * s) * scale)
        store_f32(out + 4 * (i + half), (b * c + a * s) * scale)
        i += 1


@inner
def copy_padded(x, dim, padded, out):
    """A row of ``dim`` float32 with zeros behind it, up to ``padded``."""
    i = 0
    while i + 16 <= dim:
        store_f32x16(out + 4 * i, load_f32x16(x + 4 * i))
        i += 16
    while i < padded:
        store_f32(out + 4 * i, load_f32(x + 4 * i) if i < dim else ZERO)
        i += 1


@inner
def store_scaled(x, stride, factor, dim, out):
    """``dim`` float32 times ``factor``; x lies in vectors that are ``stride`` bytes apart."""
    i = 0
    while i + 16 <= dim:
        store_f32x16(out + 4 * i, load_f32x16(x) * splat(factor))
        x += stride
        i += 16
    for j in range(dim - i):
        store_f32(out + 4 * (i + j), load_f32(x + 4 * j) * factor)


def _tile(cache: Cache, rows: int):
    """``(load, prepare, attend)``: how a tile of ``rows`` queries is loaded, and taken through the cache."""
    padded_dim, block_bytes = cache.padded, cache.block_bytes
    prepare, scores, accumulate = cache.queries(rows), cache.scores(rows), cache.accumulate(rows)

    @inner
    def load(op, run, q, row, head, raw):
        """Rotates and scales the query of (row, head) into place ``q``."""
        dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
        x = field(run, Run.ARENA) + field(op, Field.Q) + row * field(op, Field.Q_STRIDE) + 4 * head * dim
        out = raw + 4 * padded * q
        if field(op, Field.Q_NORM) != 0:
            normalise_head(x, field(op, Field.Q_NORM), dim, field_f64(op, Field.EPSILON), out)
            x = out
        rotate(x, run, field(run, Run.POSITION) + row, dim // 2, np.float32(field_f64(op, Field.SCALE)), out)
        for i in range(dim, padded):
            store_f32(out + 4 * i, ZERO)

    @inner
    def softmax_step(p, whole, start, end, ends, padded, state, out):
        """Turns the scores of a step into weights relative to the largest so far, and fades what came before."""
        sums, fades, totals = state + 64, state + 128, state + 192
        for q in range(rows):
            row, visible = p + 4 * CHUNK * q, min(load_i64(ends + 8 * q), end) - start
            largest = splat(MASKED)
            if visible < whole:
                for t in range(0, whole, 16):
                    store_f32x16(row + 4 * t, first_lanes(load_f32x16(row + 4 * t), visible - t, splat(MASKED)))
            for t in range(0, whole, 16):
                largest = vmax(load_f32x16(row + 4 * t), largest)
            store_f32(totals + 4 * q, max_f32(largest))
        old = load_f32x16(state)
        new = vmax(load_f32x16(totals), old)
        fade = exp(old - new)
        store_f32x16(state, new)
        store_f32x16(fades, fade)
        for q in range(rows):
            row, visible = p + 4 * CHUNK * q, min(load_i64(ends + 8 * q), end) - start
            largest, total = splat(load_f32(state + 4 * q)), splat(ZERO)
            for t in range(0, whole, 16):
                lanes = exp(load_f32x16(row + 4 * t) - largest)
                store_f32x16(row + 4 * t, lanes)
                total = total + lanes
            if visible < whole:
                total = splat(ZERO)
                for t in range(0, whole, 16):
                    lanes = first_lanes(load_f32x16(row + 4 * t), visible - t, splat(ZERO))
                    store_f32x16(row + 4 * t, lanes)
                    total = total + lanes
            store_f32(totals + 4 * q, sum_f32(total))
        store_f32x16(sums, load_f32x16(sums) * fade + load_f32x16(totals))
        for q in range(rows):
            factor = load_f32(fades + 4 * q)
            if factor != ONE:
                for i in range(0, padded, 16):
                    o = out + 4 * (rows * i + 16 * q)
                    store_f32x16(o, load_f32x16(o) * splat(factor))

    @inner
    def add_logarithms(op, blocks, count, p):
        """A run's score counts as often as it has positions."""
        for t in range(0, count, BLOCK):
            lanes = load_f32x16(load_i64(blocks + 8 * (t // BLOCK)) + block_bytes(op))
            for q in range(rows):
                address = p + 4 * (CHUNK * q + t)
                store_f32x16(address, load_f32x16(address) + lanes)

    @inner
    def export(op, run, head, start, whole, p, state):
        """Leaves a step's weights, and what they are relative to, to those who choose by them."""
        layer = layer_state(op, run)
        stride = field(layer, LayerState.WEIGHTS_STRIDE)
        for q in range(rows):
            target = field(layer, LayerState.WEIGHTS) + 4 * ((head + q) * stride + start)
            for t in range(0, whole, 16):
                store_f32x16(target + 4 * t, load_f32x16(p + 4 * (CHUNK * q + t)))
            largest = field(layer, LayerState.LARGEST) + 4 * ((head + q) * (stride // CHUNK) + start // CHUNK)
            store_f32(largest, load_f32(state + 4 * q))

    @inner
    def attend(op, run, kv_head, head, begin, end, n_entries, queries, ends, blocks, state, p):
        """Prepared queries over a head's entries [begin, end); ``ends`` int64[rows]: each query's own last + 1.

        head: the first query head, of decoding; -1: several rows. n_entries: what all queries see of it, so that what
        comes next is fetched meanwhile (at decode also what the next head begins with). blocks: room for the addresses
        of two steps. state: the queries' maxima [16], sums [16], room for two more such, then outputs
        [padded/16, rows, 16], all float32, unnormalised.
        """
        padded, out = padded_dim(op), state + STATE
        work = p + 4 * CHUNK * rows
        n_runs, runs_to = runs_end(op, run, kv_head), runs_padded(op, run, kv_head)
        store_f32x16(state, splat(MASKED))
        store_f32x16(state + 64, splat(ZERO))
        store_f32x16(state + 192, splat(ZERO))
        for i in range(0, rows * padded, 16):
            store_f32x16(out + 4 * i, splat(ZERO))
        locate(op, run, kv_head, begin, blocks + NEXT)
        for start in range(begin, end, CHUNK):
            for i in range(0, NEXT, 8):
                store_i64(blocks + i, load_i64(blocks + NEXT + i))
            if start + CHUNK < n_entries:
                locate(op, run, kv_head, start + CHUNK, blocks + NEXT)
            elif head >= 0 and kv_head + 1 < field(op, Field.N_KV_HEADS):
                locate(op, run, kv_head + 1, 0, blocks + NEXT)
            limit = n_runs if start < runs_to else end
            count = min(CHUNK, min(end, limit) - start)
            whole = (count + 15) // 16 * 16
            scores(op, blocks, count, queries, p, work)
            if start < runs_to:
                add_logarithms(op, blocks, count, p)
            softmax_step(p, whole, start, limit, ends, padded, state, out)
            if head >= 0 and exports(op, run):
                export(op, run, head, start, whole, p, state)
            accumulate(op, blocks, count, p, out)

    return load, prepare, attend


@inner
def save_partial(target, state, rows, q, padded):
    """(maximum, sum, 14 unused, output) of one query, as ``gather_attention`` reads it."""
    store_f32(target, load_f32(state + 4 * q))
    store_f32(target + 4, load_f32(state + 64 + 4 * q))
    for i in range(0, padded, 16):
        store_f32x16(target + 64 + 4 * i, load_f32x16(state + STATE + 4 * (rows * i + 16 * q)))


@inner
def partial_bytes(op):
    return 4 * ((field(op, Field.HEAD_DIM) + 31) // 32 * 32 + 16)


def _decode_tile(cache: Cache, rows: int):
    """``rows`` query heads of one token over consecutive parts of the cache."""
    load, prepare, attend = _tile(cache, rows)
    padded_dim = cache.padded

    @inner
    def run_tile(op, run, kv_head, head, first, last, n_entries, scratch):
        padded, part = padded_dim(op), field(run, Run.CHUNK)
        ends, blocks, state, p, queries = scratch_parts(scratch, rows, padded)
        raw = state + STATE
        for q in range(rows):
            load(op, run, q, 0, head + q, raw)
            store_i64(ends + 8 * q, n_entries)
        prepare(op, raw, queries)
        partials = field(run, Run.ARENA) + field(op, Field.PARTIALS)
        for index in range(first, last):
            end = min((index + 1) * part, n_entries)
            attend(op, run, kv_head, head, index * part, end, n_entries, queries, ends, blocks, state, p)
            for q in range(rows):
                save_partial(partials + ((head + q) * MAX_CHUNKS + index) * partial_bytes(op), state, rows, q, padded)

    return run_tile


@inner
def scratch_parts(scratch, rows, padded):
    """Addresses of ends, blocks, state (with outputs; before, the raw queries), weights (with sums) and prepared
    queries."""
    blocks = scratch + 64
    state = blocks + 2 * NEXT
    p = state + STATE + 4 * rows * padded
    return scratch, blocks, state, p, p + 4 * CHUNK * rows + 64 * 2 * rows


@inner
def n_parts(op, run, kv_head):
    """Into how many parts a head's entries are split at decode."""
    part = field(run, Run.CHUNK)
    return (entries_of(op, run, kv_head) + part - 1) // part


def _attention(name: str, cache: Cache):
    """The kernel for one cache format."""
    padded_dim, write_key, write_value = cache.padded, cache.write_key, cache.write_value
    load, prepare, attend = _tile(cache, PREFILL_TILE)
    one, two, three, four = (_decode_tile(cache, rows) for rows in range(1, QUERY_TILE + 1))

    @inner
    def write_cache(op, run, row, kv_head, work):
        """Rotates the key of ``row`` and writes key and value of one head into the cache."""
        position = field(run, Run.POSITION) + row
        dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
        offset = field(run, Run.ARENA) + row * field(op, Field.KV_STRIDE) + 4 * kv_head * dim
        key, value, rest = work, work + 4 * padded, work + 8 * padded
        x = offset + field(op, Field.KEY)
        if field(op, Field.K_NORM) != 0:
            normalise_head(x, field(op, Field.K_NORM), dim, field_f64(op, Field.EPSILON), key)
            x = key
        rotate(x, run, position, dim // 2, ONE, key)
        for i in range(dim, padded):
            store_f32(key + 4 * i, ZERO)
        copy_padded(offset + field(op, Field.VALUE), dim, padded, value)
        block = block_address(op, run, kv_head, position // BLOCK)
        write_key(op, block, position % BLOCK, key, rest)
        write_value(op, block, position % BLOCK, value, rest)

    @inner
    def decode(op, run, tid, n_threads, scratch):
        """One row: (key/value head, part of its entries) items; the item with the newest position writes it first."""
        n_kv_heads = field(op, Field.N_KV_HEADS)
        group = field(op, Field.N_HEADS) // n_kv_heads
        total = 0
        for kv_head in range(n_kv_heads):
            total += n_parts(op, run, kv_head)
        item, end, before = share(total, tid, n_threads), share(total, tid + 1, n_threads), 0
        for kv_head in range(n_kv_heads):
            parts = n_parts(op, run, kv_head)
            first, last = max(item - before, 0), min(end - before, parts)
            before += parts
            if first < last:
                if last == parts:
                    write_cache(op, run, 0, kv_head, scratch)
                n_entries = entries_of(op, run, kv_head)
                head, left = kv_head * group, group
                while left > 0:
                    if left >= 4:
                        four(op, run, kv_head, head, first, last, n_entries, scratch)
                    elif left == 3:
                        three(op, run, kv_head, head, first, last, n_entries, scratch)
                    elif left == 2:
                        two(op, run, kv_head, head, first, last, n_entries, scratch)
                    else:
                        one(op, run, kv_head, head, first, last, n_entries, scratch)
                    head += QUERY_TILE
                    left -= QUERY_TILE

    @inner
    def prefill(op, run, tid, n_threads, scratch):
        """Several rows: keys and values first, then tiles of (token, head) rows of one key/value head."""
        rows, position = field(run, Run.N_ROWS), field(run, Run.POSITION)
        n_kv_heads, n_heads = field(op, Field.N_KV_HEADS), field(op, Field.N_HEADS)
        group = n_heads // n_kv_heads
        dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
        ends, blocks, state, p, queries = scratch_parts(scratch, PREFILL_TILE, padded)
        y_stride = field(op, Field.Y_STRIDE)
        for row in range(share(rows, tid, n_threads), share(rows, tid + 1, n_threads)):
            for kv_head in range(n_kv_heads):
                write_cache(op, run, row, kv_head, scratch)
        wait_for_all(field(run, Run.BARRIER), n_threads, True)
        n_tiles = (group * rows + PREFILL_TILE - 1) // PREFILL_TILE
        for item in range(tid, n_tiles * n_kv_heads, n_threads):  # dealt in turn: late tiles see more keys
            tile, kv_head = item % n_tiles * PREFILL_TILE, item // n_tiles  # a head's keys stay in the cache meanwhile
            last = min(tile + PREFILL_TILE, group * rows) - 1
            hidden = runs_padded(op, run, kv_head) + position - first_exact(op, run)
            for q in range(PREFILL_TILE):
                row, head = min(tile + q, last) // group, kv_head * group + min(tile + q, last) % group
                load(op, run, q, row, head, state + STATE)
                store_i64(ends + 8 * q, hidden + row + 1)
            prepare(op, state + STATE, queries)
            end = hidden + last // group + 1
            attend(op, run, kv_head, -1, 0, end, end, queries, ends, blocks, state, p)
            for q in range(last - tile + 1):
                row, head = (tile + q) // group, kv_head * group + (tile + q) % group
                y = field(run, Run.ARENA) + field(op, Field.Y) + row * y_stride + 4 * head * dim
                sums = state + STATE + 64 * q
                store_scaled(sums, 64 * PREFILL_TILE, ONE / load_f32(state + 64 + 4 * q), dim, y)

    def kernel(op, run, tid, n_threads):
        scratch = field(run, Run.ARENA) + field(op, Field.SCRATCH)
        scratch += tid * field(op, Field.SCRATCH_PRIVATE)
        if field(run, Run.N_ROWS) == 1:
            decode(op, run, tid, n_threads, scratch)
        else:
            prefill(op, run, tid, n_threads, scratch)

    kernel.__name__ = name
    return op_kernel(kernel)


attention_f16 = _attention("attention_f16", float_cache("f16"))
attention_f32 = _attention("attention_f32", float_cache("f32"))
attention_q8 = _attention("attention_q8", q8_cache())


@op_kernel
def gather_attention(op, run, tid, n_threads):
    """At decode, joins the parts of every head into this thread's own copy of the output; prefill has written it."""
    if field(run, Run.N_ROWS) != 1:
        return
    arena = field(run, Run.ARENA)
    dim, stride = field(op, Field.HEAD_DIM), partial_bytes(op)
    n_heads, n_kv_heads = field(op, Field.N_HEADS), field(op, Field.N_KV_HEADS)
    y = arena + field(op, Field.Y) + tid * field(op, Field.Y_PRIVATE)
    scratch = arena + field(op, Field.SCRATCH) + tid * field(op, Field.SCRATCH_PRIVATE)
    for head in range(n_heads):
        parts = arena + field(op, Field.PARTIALS) + head * MAX_CHUNKS * stride
        count = n_parts(op, run, head // (n_heads // n_kv_heads))
        largest = MASKED
        for part in range(count):
            largest = max(largest, load_f32(parts + part * stride))
        total = ZERO
        for i in range(0, dim, 16):
            store_f32x16(scratch + 4 * i, splat(ZERO))
        for part in range(count):
            partial = parts + part * stride
            weight = exp(splat(load_f32(partial) - largest))
            total += load_f32(partial + 4) * extract(weight, 0)
            for i in range(0, dim, 16):
                lanes = fma(load_f32x16(partial + 64 + 4 * i), weight, load_f32x16(scratch + 4 * i))
                store_f32x16(scratch + 4 * i, lanes)
        store_scaled(scratch, 64, ONE / total, dim, y + 4 * head * dim)
        if exports(op, run):  # by every thread, the same
            norms = field(layer_state(op, run), LayerState.NORMS) + 8 * head
            store_f32(norms, largest)
            store_f32(norms + 4, ONE / total)
