"""DELTA's choice of pages (arXiv 2510.09883) after a selecting layer's attention, from the weights that it left. What
it is for, and the choice in numpy: ``edgerun/attention/delta.py``.

No key is read again: attention exports its weights relative to the largest score of their step; here they become
probabilities, 16 positions (a page, a block of the cache) a vector.
"""

import numpy as np

from .attention_entries import layer_state, runs_end, runs_padded
from .barrier import wait_for_all
from .kernel import inner, op_kernel
from .math import ZERO, exp, share
from .record import BLOCK, CHUNK, Field, LayerState, Mode, Run
from .simd.ops import (
    field,
    load_f32,
    load_f32x16,
    load_i32,
    splat,
    store_f32,
    store_f32x16,
    store_i32,
    store_i64,
    sum_f32,
    vmax,
)

RUNS = int(Mode.RUNS)
FORCED = 0x7F000000
"""Bits of a float32 above every score."""


@inner
def factor(op, layer, head, step):
    """What makes probabilities of a head's weights in a step."""
    norms = field(layer, LayerState.NORMS) + 8 * head
    steps = field(layer, LayerState.WEIGHTS_STRIDE) // CHUNK
    largest = load_f32(field(layer, LayerState.LARGEST) + 4 * (head * steps + step))
    return exp(splat(largest - load_f32(norms))) * splat(load_f32(norms + 4))


@inner
def largest_probability(op, layer, first, n_heads, entry):
    """Of 16 entries, over heads [first, first + n_heads)."""
    stride = field(layer, LayerState.WEIGHTS_STRIDE)
    best = splat(ZERO)
    for head in range(first, first + n_heads):
        weights = load_f32x16(field(layer, LayerState.WEIGHTS) + 4 * (head * stride + entry))
        best = vmax(weights * factor(op, layer, head, entry // CHUNK), best)
    return best


@inner
def spread_runs(op, run, layer, kv_head, room):
    """Every position's own share of its run's probability, the largest of the heads that share the runs; positions
    that are no runs keep theirs. room: 64 bytes."""
    group = field(op, Field.N_HEADS) // field(op, Field.N_KV_HEADS)
    target = field(layer, LayerState.TOKENS) + 4 * kv_head * field(layer, LayerState.WEIGHTS_STRIDE)
    n_runs, padded = runs_end(op, run, kv_head), runs_padded(op, run, kv_head)
    most = BLOCK * field(layer, LayerState.MOST_BLOCKS)
    starts = field(layer, LayerState.STARTS) + 4 * most * kv_head
    exact = field(layer, LayerState.EXACT_TO)
    for entry in range(0, n_runs, BLOCK):
        store_f32x16(room, largest_probability(op, layer, kv_head * group, group, entry))
        for i in range(min(BLOCK, n_runs - entry)):
            begin = load_i32(starts + 4 * (entry + i))
            end = np.int64(load_i32(starts + 4 * (entry + i + 1))) if entry + i + 1 < n_runs else exact
            value = load_f32(room + 4 * i) / np.float32(end - begin)
            for position in range(begin, end):
                store_f32(target + 4 * position, value)
    for position in range(exact, field(run, Run.POSITION) + 1, BLOCK):
        lanes = largest_probability(op, layer, kv_head * group, group, padded + position - exact)
        store_f32x16(target + 4 * position, lanes)


@inner
def score(op, layer, page):
    """Sum over a page's positions of the largest probability over all heads."""
    if field(op, Field.MODE) != RUNS:
        return sum_f32(largest_probability(op, layer, 0, field(op, Field.N_HEADS), page * BLOCK))
    tokens, stride = field(layer, LayerState.TOKENS), field(layer, LayerState.WEIGHTS_STRIDE)
    best = splat(ZERO)
    for kv_head in range(field(op, Field.N_KV_HEADS)):
        best = vmax(load_f32x16(tokens + 4 * (kv_head * stride + page * BLOCK)), best)
    return sum_f32(best)


@inner
def at_least(scores, n, limit):
    """How many scores have bits of at least ``limit``: of numbers that are not negative, the order is the same."""
    count = 0
    for i in range(n):
        if load_i32(scores + 4 * i) >= limit:
            count += 1
    return count


@inner
def choose(scores, n, budget, recent, chosen):
    """The last ``recent`` pages and the best of the others, ascending, the older of equals: int64 number, pages."""
    for i in range(max(0, n - recent), n):
        store_i32(scores + 4 * i, FORCED)
    low, high = 0, FORCED + 1  # at least budget scores reach low, fewer high
    if n > budget:
        while high - low > 1:
            middle = (low + high) // 2
            if at_least(scores, n, middle) >= budget:
                low = middle
            else:
                high = middle
    equals = budget - at_least(scores, n, low + 1)
    count = 0
    for page in range(n):
        bits = load_i32(scores + 4 * page)
        if bits > low or (bits == low and equals > 0) or n <= budget:
            if bits == low:
                equals -= 1
            count += 1
            store_i64(chosen + 8 * count, page)
    store_i64(chosen, count)


@op_kernel
def select_pages(op, run, tid, n_threads):
    """Where one row runs: the pages that sparse layers attend to until the next such op."""
    if field(run, Run.N_ROWS) != 1:
        return
    layer = layer_state(op, run)
    barrier = field(run, Run.BARRIER)
    if field(op, Field.MODE) == RUNS:
        room = field(run, Run.ARENA) + field(op, Field.SCRATCH) + tid * field(op, Field.SCRATCH_PRIVATE)
        n_kv_heads = field(op, Field.N_KV_HEADS)
        for kv_head in range(share(n_kv_heads, tid, n_threads), share(n_kv_heads, tid + 1, n_threads)):
            spread_runs(op, run, layer, kv_head, room)
        wait_for_all(barrier, n_threads, False)
    n_pages = field(run, Run.POSITION) // BLOCK + 1
    scores = field(layer, LayerState.SCORES)
    for page in range(share(n_pages, tid, n_threads), share(n_pages, tid + 1, n_threads)):
        store_f32(scores + 4 * page, score(op, layer, page))
    wait_for_all(barrier, n_threads, False)
    if tid == 0:
        budget, recent = field(layer, LayerState.BUDGET), field(layer, LayerState.RECENT)
        choose(scores, n_pages, budget, recent, field(layer, LayerState.CHOSEN))
