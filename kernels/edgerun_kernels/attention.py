"""Exact attention over a paged cache, RoPE included: decode is split over the sequence, prefill over the queries.

Cache page (``record.PAGE`` positions), per layer and key/value head: keys [PAGE/16, head_dim, 16], so that a vector is
one feature of 16 positions and a score needs no sum across lanes; then values [PAGE, head_dim]; head_dim padded to 16.
Four query rows that share a key/value head (query heads of a token, or tokens) go through the keys together.
Softmax is online (Milakov & Gimelshein, arXiv 1805.02867), in steps whose bounds depend on positions only, so that
results do not depend on the number of threads.
"""

import numpy as np

from .barrier import wait_for_all
from .kernel import inner, op_kernel
from .math import ONE, ZERO, exp, share
from .record import CHUNK, PAGE, QUERY_TILE, Field, Run
from .simd.ops import (
    extract,
    f16_to_f32,
    f32_to_f16,
    field,
    field_f64,
    first_lanes,
    fma,
    load_f32,
    load_f32x16,
    load_i16,
    load_i16x16,
    load_i64,
    max_f32,
    splat,
    store_f32,
    store_f32x16,
    store_i16,
    store_i16x16,
    store_i64,
    sum_f32,
    vmax,
)

MASKED = np.float32(-1e30)


@inner
def padded_dim(op):
    return (field(op, Field.HEAD_DIM) + 15) // 16 * 16


@inner
def rotate(x, run, position, half, scale, out):
    """RoPE in the rotate-half layout, times ``scale``: out[i], out[i+half] from x[i], x[i+half]."""
    cos = field(run, Run.COS) + position * half * 4
    sin = field(run, Run.SIN) + position * half * 4
    for i in range(half):
        a, b = load_f32(x + 4 * i), load_f32(x + 4 * (i + half))
        c, s = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store_f32(out + 4 * i, (a * c - b * s) * scale)
        store_f32(out + 4 * (i + half), (b * c + a * s) * scale)


@inner
def load_f16_lanes(address):
    return f16_to_f32(load_i16x16(address))


@inner
def store_f16_lanes(address, value):
    store_i16x16(address, f32_to_f16(value))


@inner
def head_address(op, run, position, kv_head, size):
    """Where the keys of this head begin in the page of ``position``; its values follow after PAGE * padded_dim."""
    page = load_i64(field(run, Run.PAGES) + 8 * (position // PAGE))
    return page + field(op, Field.LAYER) + kv_head * 2 * PAGE * padded_dim(op) * size


@inner
def copy_f16(target, source):
    store_i16(target, load_i16(source))


@inner
def copy_f32(target, source):
    store_f32(target, load_f32(source))


@inner
def save_partial(target, state, q, padded):
    """(maximum, sum, 14 unused, output) of one query, as ``gather_attention`` reads it."""
    store_f32(target, load_f32(state + 8 * q))
    store_f32(target + 4, load_f32(state + 8 * q + 4))
    for i in range(0, padded, 16):
        store_f32x16(target + 64 + 4 * i, load_f32x16(state + 32 + 4 * (q * padded + i)))


def _attention(name, load_lanes, store_lanes, size, copy_one):
    """The kernel for one cache format: ``size`` bytes an element."""

    @inner
    def write_cache(op, run, row, kv_head, scratch):
        """Rotates the key of ``row`` and writes key and value of one head into the cache."""
        position = field(run, Run.POSITION) + row
        dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
        stride = field(op, Field.KV_STRIDE)
        arena = field(run, Run.ARENA)
        key = arena + field(op, Field.KEY) + row * stride + 4 * kv_head * dim
        value = arena + field(op, Field.VALUE) + row * stride + 4 * kv_head * dim
        keys = head_address(op, run, position, kv_head, size)
        inside = position % PAGE
        rotate(key, run, position, dim // 2, ONE, scratch)
        narrow = scratch + 4 * padded
        for i in range(0, padded, 16):
            store_lanes(narrow + size * i, load_f32x16(scratch + 4 * i))
        column = keys + (inside // 16 * padded * 16 + inside % 16) * size
        for i in range(dim):
            copy_one(column + 16 * size * i, narrow + size * i)
        for i in range(dim):
            store_f32(scratch + 4 * i, load_f32(value + 4 * i))
        for i in range(dim, padded):
            store_f32(scratch + 4 * i, ZERO)  # the same bytes whichever thread writes them
        rows = keys + (PAGE + inside) * padded * size
        for i in range(0, padded, 16):
            store_lanes(rows + size * i, load_f32x16(scratch + 4 * i))

    @inner
    def scores(op, keys, start, count, queries, out):
        """out[q, t] = q . k for four queries and ``count`` positions of a page from ``start`` (a multiple of 16)."""
        dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
        qb, qc, qd = queries + 4 * padded, queries + 8 * padded, queries + 12 * padded
        for t in range(0, count, 16):
            k = keys + (start + t) * padded * size
            a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
            for i in range(dim):
                lanes = load_lanes(k + 16 * size * i)
                a = fma(lanes, splat(load_f32(queries + 4 * i)), a)
                b = fma(lanes, splat(load_f32(qb + 4 * i)), b)
                c = fma(lanes, splat(load_f32(qc + 4 * i)), c)
                d = fma(lanes, splat(load_f32(qd + 4 * i)), d)
            store_f32x16(out + 4 * t, a)
            store_f32x16(out + 4 * (CHUNK + t), b)
            store_f32x16(out + 4 * (2 * CHUNK + t), c)
            store_f32x16(out + 4 * (3 * CHUNK + t), d)

    @inner
    def accumulate(values, start, count, padded, p, out):
        """out[q] += sum over t of p[q, t] v[t] for four queries."""
        for i in range(0, padded, 16):
            v = values + (start * padded + i) * size
            o = out + 4 * i
            a, b = load_f32x16(o), load_f32x16(o + 4 * padded)
            c, d = load_f32x16(o + 8 * padded), load_f32x16(o + 12 * padded)
            for t in range(count):
                lanes = load_lanes(v + t * padded * size)
                a = fma(lanes, splat(load_f32(p + 4 * t)), a)
                b = fma(lanes, splat(load_f32(p + 4 * (CHUNK + t))), b)
                c = fma(lanes, splat(load_f32(p + 4 * (2 * CHUNK + t))), c)
                d = fma(lanes, splat(load_f32(p + 4 * (3 * CHUNK + t))), d)
            store_f32x16(o, a)
            store_f32x16(o + 4 * padded, b)
            store_f32x16(o + 8 * padded, c)
            store_f32x16(o + 12 * padded, d)

    @inner
    def attend(op, run, kv_head, begin, end, queries, ends, state, p):
        """Four queries (rotated, scaled) over positions [begin, end); ``ends`` int64[4]: each query's own last + 1.

        state: four times (maximum, sum), then four outputs of padded_dim, all float32, unnormalised.
        """
        padded = padded_dim(op)
        out = state + 32
        for q in range(QUERY_TILE):
            store_f32(state + 8 * q, MASKED)
            store_f32(state + 8 * q + 4, ZERO)
        for i in range(0, QUERY_TILE * padded, 16):
            store_f32x16(out + 4 * i, splat(ZERO))
        for position in range(begin, end, CHUNK):
            keys = head_address(op, run, position, kv_head, size)
            inside, count = position % PAGE, min(CHUNK, end - position)
            whole = (count + 15) // 16 * 16
            scores(op, keys, inside, whole, queries, p)
            for q in range(QUERY_TILE):
                row = p + 4 * CHUNK * q
                visible = load_i64(ends + 8 * q) - position
                largest = splat(MASKED)
                for t in range(0, whole, 16):
                    lanes = first_lanes(load_f32x16(row + 4 * t), visible - t, splat(MASKED))
                    store_f32x16(row + 4 * t, lanes)
                    largest = vmax(lanes, largest)
                old = load_f32(state + 8 * q)
                new = max(old, max_f32(largest))
                total = splat(ZERO)
                for t in range(0, whole, 16):
                    lanes = exp(load_f32x16(row + 4 * t) - splat(new))
                    lanes = first_lanes(lanes, visible - t, splat(ZERO))
                    store_f32x16(row + 4 * t, lanes)
                    total = total + lanes
                fade = extract(exp(splat(old - new)), 0) if old > MASKED else ZERO
                store_f32(state + 8 * q, new)
                store_f32(state + 8 * q + 4, load_f32(state + 8 * q + 4) * fade + sum_f32(total))
                if fade != ONE:
                    for i in range(0, padded, 16):
                        o = out + 4 * (q * padded + i)
                        store_f32x16(o, load_f32x16(o) * splat(fade))
            accumulate(keys + PAGE * padded * size, inside, count, padded, p, out)

    @inner
    def load_query(op, run, row, head, out):
        dim = field(op, Field.HEAD_DIM)
        q = field(run, Run.ARENA) + field(op, Field.Q) + row * field(op, Field.Q_STRIDE)
        position = field(run, Run.POSITION) + row
        rotate(q + 4 * head * dim, run, position, dim // 2, np.float32(field_f64(op, Field.SCALE)), out)

    @inner
    def decode(op, run, tid, n_threads, scratch):
        """One row: (key/value head, part of the cache) items; the item with the newest position writes it first."""
        position = field(run, Run.POSITION)
        part = field(run, Run.CHUNK)
        n_parts = position // part + 1
        n_kv_heads, n_heads = field(op, Field.N_KV_HEADS), field(op, Field.N_HEADS)
        group = n_heads // n_kv_heads
        padded = padded_dim(op)
        queries, ends = scratch, scratch + 16 * padded
        state = ends + 64
        p = state + 32 + 16 * padded
        partials = field(run, Run.ARENA) + field(op, Field.PARTIALS)
        for q in range(QUERY_TILE):
            store_i64(ends + 8 * q, position + 1)
        n_items = n_kv_heads * n_parts
        for item in range(share(n_items, tid, n_threads), share(n_items, tid + 1, n_threads)):
            kv_head, index = item // n_parts, item % n_parts
            if index == n_parts - 1:
                write_cache(op, run, 0, kv_head, p)
            for tile in range(0, group, QUERY_TILE):
                for q in range(QUERY_TILE):
                    load_query(op, run, 0, kv_head * group + min(tile + q, group - 1), queries + 4 * padded * q)
                attend(op, run, kv_head, index * part, min((index + 1) * part, position + 1), queries, ends, state, p)
                for q in range(min(QUERY_TILE, group - tile)):
                    head = kv_head * group + tile + q
                    save_partial(partials + (head * n_parts + index) * 4 * (padded + 16), state, q, padded)

    @inner
    def prefill(op, run, tid, n_threads, scratch):
        """Several rows: keys and values first, then tiles of four (token, head) rows of one key/value head."""
        rows, position = field(run, Run.N_ROWS), field(run, Run.POSITION)
        n_kv_heads, n_heads = field(op, Field.N_KV_HEADS), field(op, Field.N_HEADS)
        group = n_heads // n_kv_heads
        dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
        queries, ends = scratch, scratch + 16 * padded
        state = ends + 64
        p = state + 32 + 16 * padded
        y0 = field(run, Run.ARENA) + field(op, Field.Y)
        y_stride = field(op, Field.Y_STRIDE)
        for row in range(share(rows, tid, n_threads), share(rows, tid + 1, n_threads)):
            for kv_head in range(n_kv_heads):
                write_cache(op, run, row, kv_head, p)
        wait_for_all(field(run, Run.BARRIER), n_threads)
        n_tiles = (group * rows + QUERY_TILE - 1) // QUERY_TILE
        for item in range(tid, n_tiles * n_kv_heads, n_threads):  # dealt in turn: late tiles see more keys
            tile, kv_head = item // n_kv_heads * QUERY_TILE, item % n_kv_heads
            last = min(tile + QUERY_TILE, group * rows) - 1
            for q in range(QUERY_TILE):
                row, head = min(tile + q, last) // group, kv_head * group + min(tile + q, last) % group
                load_query(op, run, row, head, queries + 4 * padded * q)
                store_i64(ends + 8 * q, position + row + 1)
            attend(op, run, kv_head, 0, position + last // group + 1, queries, ends, state, p)
            for q in range(last - tile + 1):
                row, head = (tile + q) // group, kv_head * group + (tile + q) % group
                scale = ONE / load_f32(state + 8 * q + 4)
                y = y0 + row * y_stride + 4 * head * dim
                for i in range(dim):
                    store_f32(y + 4 * i, load_f32(state + 32 + 4 * (q * padded + i)) * scale)

    def kernel(op, run, tid, n_threads):
        scratch = field(run, Run.ARENA) + field(op, Field.SCRATCH)
        scratch += tid * field(op, Field.SCRATCH_PRIVATE)
        if field(run, Run.N_ROWS) == 1:
            decode(op, run, tid, n_threads, scratch)
        else:
            prefill(op, run, tid, n_threads, scratch)

    kernel.__name__ = name
    return op_kernel(kernel)


attention_f16 = _attention("attention_f16", load_f16_lanes, store_f16_lanes, 2, copy_f16)
attention_f32 = _attention("attention_f32", load_f32x16, store_f32x16, 4, copy_f32)


@op_kernel
def gather_attention(op, run, tid, n_threads):
    """At decode, joins the parts of every head into this thread's own copy of the output; prefill has written it."""
    if field(run, Run.N_ROWS) != 1:
        return
    arena = field(run, Run.ARENA)
    n_parts = field(run, Run.POSITION) // field(run, Run.CHUNK) + 1
    dim, padded = field(op, Field.HEAD_DIM), padded_dim(op)
    y = arena + field(op, Field.Y) + tid * field(op, Field.Y_PRIVATE)
    scratch = arena + field(op, Field.SCRATCH) + tid * field(op, Field.SCRATCH_PRIVATE)
    for head in range(field(op, Field.N_HEADS)):
        parts = arena + field(op, Field.PARTIALS) + head * n_parts * 4 * (padded + 16)
        largest = MASKED
        for part in range(n_parts):
            largest = max(largest, load_f32(parts + part * 4 * (padded + 16)))
        total = ZERO
        for i in range(0, padded, 16):
            store_f32x16(scratch + 4 * i, splat(ZERO))
        for part in range(n_parts):
            partial = parts + part * 4 * (padded + 16)
            weight = exp(splat(load_f32(partial) - largest))
            total += load_f32(partial + 4) * extract(weight, 0)
            for i in range(0, padded, 16):
                lanes = fma(load_f32x16(partial + 64 + 4 * i), weight, load_f32x16(scratch + 4 * i))
                store_f32x16(scratch + 4 * i, lanes)
        for i in range(dim):
            store_f32(y + 4 * (head * dim + i), load_f32(scratch + 4 * i) / total)
