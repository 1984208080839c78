"""Tiles of queries that go through a head's entries together: RoPE and norms, scores, the online softmax (Milakov &
Gimelshein, arXiv 1805.02867), the weighted sum of values, and how the parts of the entries are joined.

Every query of a tile comes to the same bits whatever the others are.
"""

import numpy as np

from ..kernel import inner
from ..layouts import Attention
from ..record import BLOCK, CHUNK, MAX_CHUNKS, LayerState, Run
from ..simd.ops import (
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
    sqrt,
    store_f32,
    store_f32x16,
    store_i64,
    sum_f32,
    vmax,
)
from .attention_cache import NEXT, Cache
from .attention_entries import (
    entries_of,
    exports,
    layer_state,
    locate,
    part_length,
    runs_end,
    runs_padded,
)
from .math import ONE, ZERO, exp
from .sequences import position_of, vector_of

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
def normalised(x, w, epsilon, dim, out):
    """A head of a query or key: x / sqrt(mean(x**2) + epsilon) * w, float32 [dim] at ``out``, which may be x."""
    total, rest = splat(ZERO), ZERO
    i = 0
    while i + 16 <= dim:
        lanes = load_f32x16(x + 4 * i)
        total = fma(lanes, lanes, total)
        i += 16
    for j in range(i, dim):
        rest += load_f32(x + 4 * j) * load_f32(x + 4 * j)
    scale = ONE / sqrt(np.float32(np.float64(sum_f32(total) + rest) / dim + epsilon))
    i = 0
    while i + 16 <= dim:
        store_f32x16(out + 4 * i, load_f32x16(x + 4 * i) * splat(scale) * load_f32x16(w + 4 * i))
        i += 16
    while i < dim:
        store_f32(out + 4 * i, load_f32(x + 4 * i) * scale * load_f32(w + 4 * i))
        i += 1


@inner
def rotate_head(op, run, x, norm, position, scale, out):
    """A head of a query or key as it is compared, float32 [head_dim]: with its norm, if it has one (``norm``: the
    address of its weights), then with RoPE, times ``scale``."""
    dim = field(op, Attention.HEAD_DIM)
    if norm != 0:
        normalised(x, norm, field_f64(op, Attention.EPSILON), dim, out)
        x = out
    rotate(x, run, position, dim // 2, scale, out)


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


def tile_of(cache: Cache, rows: int):
    """``(load, prepare, attend)``: how a tile of ``rows`` queries is loaded, and taken through the cache."""
    padded_dim, block_bytes = cache.padded, cache.block_bytes
    prepare, scores, accumulate = cache.queries(rows), cache.scores(rows), cache.accumulate(rows)

    @inner
    def load(op, run, sequence, q, row, position, head, raw):
        """Writes the query of (row, head) as it is compared to place ``q``."""
        dim, padded = field(op, Attention.HEAD_DIM), padded_dim(op)
        x = field(run, Run.ARENA) + field(op, Attention.Q) + row * field(op, Attention.Q_STRIDE) + 4 * head * dim
        out = raw + 4 * padded * q
        norm = vector_of(sequence, field(op, Attention.Q_NORM), field(op, Attention.Q_SITE))
        rotate_head(op, run, x, norm, position, np.float32(field_f64(op, Attention.SCALE)), out)
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
    def export(op, sequence, head, start, whole, p, state):
        """Leaves a step's weights, and what they are relative to, to those who choose by them."""
        layer = layer_state(op, sequence)
        stride = field(layer, LayerState.WEIGHTS_STRIDE)
        for q in range(rows):
            target = field(layer, LayerState.WEIGHTS) + 4 * ((head + q) * stride + start)
            for t in range(0, whole, 16):
                store_f32x16(target + 4 * t, load_f32x16(p + 4 * (CHUNK * q + t)))
            largest = field(layer, LayerState.LARGEST) + 4 * ((head + q) * (stride // CHUNK) + start // CHUNK)
            store_f32(largest, load_f32(state + 4 * q))

    @inner
    def attend(op, sequence, kv_head, head, begin, end, n_entries, queries, ends, blocks, state, p):
        """Prepared queries over a head's entries [begin, end); ``ends`` int64[rows]: each query's own last + 1.

        head: the first query head, of one row; -1: several rows. n_entries: what all queries see of it, so that what
        comes next is fetched meanwhile (of one row also what the next head begins with). blocks: room for the addresses
        of two steps. state: the queries' maxima [16], sums [16], room for two more such, then outputs
        [padded/16, rows, 16], all float32, unnormalised.
        """
        padded, out = padded_dim(op), state + STATE
        work = p + 4 * CHUNK * rows
        n_runs, runs_to = runs_end(op, sequence, kv_head), runs_padded(op, sequence, kv_head)
        store_f32x16(state, splat(MASKED))
        store_f32x16(state + 64, splat(ZERO))
        store_f32x16(state + 192, splat(ZERO))
        for i in range(0, rows * padded, 16):
            store_f32x16(out + 4 * i, splat(ZERO))
        locate(op, sequence, kv_head, begin, blocks + NEXT)
        for start in range(begin, end, CHUNK):
            for i in range(0, NEXT, 8):
                store_i64(blocks + i, load_i64(blocks + NEXT + i))
            if start + CHUNK < n_entries:
                locate(op, sequence, kv_head, start + CHUNK, blocks + NEXT)
            elif head >= 0 and kv_head + 1 < field(op, Attention.N_KV_HEADS):
                locate(op, sequence, kv_head + 1, 0, blocks + NEXT)
            limit = n_runs if start < runs_to else end
            count = min(CHUNK, min(end, limit) - start)
            whole = (count + 15) // 16 * 16
            scores(op, blocks, count, queries, p, work)
            if start < runs_to:
                add_logarithms(op, blocks, count, p)
            softmax_step(p, whole, start, limit, ends, padded, state, out)
            if head >= 0 and exports(op, sequence):
                export(op, sequence, head, start, whole, p, state)
            accumulate(op, blocks, count, p, out)

    return load, prepare, attend


@inner
def partial_bytes(op):
    return 4 * ((field(op, Attention.HEAD_DIM) + 31) // 32 * 32 + 16)


@inner
def row_partials(op, run, row, head):
    """Where the parts of (row, head) lie."""
    place = row * field(op, Attention.N_HEADS) + head
    return field(run, Run.ARENA) + field(op, Attention.PARTIALS) + place * MAX_CHUNKS * partial_bytes(op)


@inner
def save_partial(target, state, rows, q, padded):
    """(maximum, sum, 14 unused, output) of one query, as ``join_parts`` reads it."""
    store_f32(target, load_f32(state + 4 * q))
    store_f32(target + 4, load_f32(state + 64 + 4 * q))
    for i in range(0, padded, 16):
        store_f32x16(target + 64 + 4 * i, load_f32x16(state + STATE + 4 * (rows * i + 16 * q)))


@inner
def join_parts(parts, stride, count, dim, sums, y):
    """The output of a query, float32 [dim] at y, of its ``count`` parts; sums: room for it, in whole vectors. Gives the
    largest score, and one over the sum of all exp(score - it)."""
    largest, total = MASKED, ZERO
    for part in range(count):
        largest = max(largest, load_f32(parts + part * stride))
    for i in range(0, dim, 16):
        store_f32x16(sums + 4 * i, splat(ZERO))
    for part in range(count):
        partial = parts + part * stride
        weight = exp(splat(load_f32(partial) - largest))
        total += load_f32(partial + 4) * extract(weight, 0)
        for i in range(0, dim, 16):
            lanes = fma(load_f32x16(partial + 64 + 4 * i), weight, load_f32x16(sums + 4 * i))
            store_f32x16(sums + 4 * i, lanes)
    store_scaled(sums, 64, ONE / total, dim, y)
    return largest, ONE / total


def part_tile(cache: Cache, rows: int):
    """``rows`` queries of one key/value head over consecutive parts of the cache."""
    load, prepare, attend = tile_of(cache, rows)
    padded_dim = cache.padded

    @inner
    def run_tile(op, run, sequence, kv_head, row, query, last_query, first, last, scratch, target):
        """The queries from number ``query`` on of those from row ``row`` on, up to ``last_query``, which is repeated:
        their parts ``first`` to ``last - 1``. A row's queries come one behind the other. target: where the queries'
        parts go, one query's behind another's; 0: to where those of each row and head lie."""
        group = field(op, Attention.N_HEADS) // field(op, Attention.N_KV_HEADS)
        padded = padded_dim(op)
        ends, blocks, state, p, queries = scratch_parts(scratch, rows, padded)
        for q in range(rows):
            at = min(query + q, last_query)
            position = position_of(sequence, row + at // group)
            load(op, run, sequence, q, row + at // group, position, kv_head * group + at % group, state + STATE)
            store_i64(ends + 8 * q, entries_of(op, sequence, kv_head, position))
        prepare(op, state + STATE, queries)
        until = position_of(sequence, row + min(query + rows - 1, last_query) // group)
        n_entries, length = entries_of(op, sequence, kv_head, until), part_length(until)
        head = kv_head * group + query if last_query < group else -1
        for index in range(first, last):
            end = min((index + 1) * length, n_entries)
            attend(op, sequence, kv_head, head, index * length, end, n_entries, queries, ends, blocks, state, p)
            for q in range(min(rows, last_query + 1 - query)):
                at = query + q
                parts = target + q * MAX_CHUNKS * partial_bytes(op)
                if target == 0:
                    parts = row_partials(op, run, row + at // group, kv_head * group + at % group)
                save_partial(parts + index * partial_bytes(op), state, rows, q, padded)

    return run_tile


@inner
def scratch_parts(scratch, rows, padded):
    """Addresses of ends, blocks, state (with outputs; before, the raw queries), weights (with sums) and prepared
    queries."""
    blocks = scratch + 64
    state = blocks + 2 * NEXT
    p = state + STATE + 4 * rows * padded
    return scratch, blocks, state, p, p + 4 * CHUNK * rows + 64 * 2 * rows
