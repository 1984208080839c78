"""DELTA's choice of pages (arXiv 2510.09883) after a selecting layer's attention, from the weights that it left. What
it is for, and the choice in numpy: ``edgerun/attention/delta.py``.

No key is read again: attention exports its weights relative to the largest score of their step; here they become
probabilities, 16 positions (a page, a block of the cache) a vector.
"""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Attention
from ..record import BLOCK, CHUNK, LayerState, Run, Sequence
from ..runtime.loop.barrier import wait_for_all
from ..simd.ops import (
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
from .attention_entries import RUNS, exports, layer_state, mode, runs_end, runs_padded
from .math import ZERO, exp, share
from .sequences import sequence_at

FORCED = 0x7F000000
"""Bits of a float32 above every score."""


@inner
def factor(layer, head, step):
    """What makes probabilities of a head's weights in a step."""
    norms = field(layer, LayerState.NORMS) + 8 * head
    steps = field(layer, LayerState.WEIGHTS_STRIDE) // CHUNK
    largest = load_f32(field(layer, LayerState.LARGEST) + 4 * (head * steps + step))
    return exp(splat(largest - load_f32(norms))) * splat(load_f32(norms + 4))


@inner
def step_probabilities(layer, first, n_heads, start, out):
    """Of the entries of a step, the largest over heads [first, first + n_heads): float32 [CHUNK]."""
    for i in range(0, CHUNK, 16):
        store_f32x16(out + 4 * i, splat(ZERO))
    for head in range(first, first + n_heads):
        weights = field(layer, LayerState.WEIGHTS) + 4 * (head * field(layer, LayerState.WEIGHTS_STRIDE) + start)
        scale = factor(layer, head, start // CHUNK)
        for i in range(0, CHUNK, 16):
            best = vmax(load_f32x16(weights + 4 * i) * scale, load_f32x16(out + 4 * i))
            store_f32x16(out + 4 * i, best)


@inner
def spread_runs(op, sequence, layer, kv_head, room):
    """Every position's own share of its run's probability, the largest of the heads that share the runs; positions
    that are no runs keep theirs. room: float32 [CHUNK]."""
    group = field(op, Attention.N_HEADS) // field(op, Attention.N_KV_HEADS)
    target = field(layer, LayerState.TOKENS) + 4 * kv_head * field(layer, LayerState.WEIGHTS_STRIDE)
    n_runs, padded = runs_end(op, sequence, kv_head), runs_padded(op, sequence, kv_head)
    most = BLOCK * field(layer, LayerState.MOST_BLOCKS)
    starts = field(layer, LayerState.STARTS) + 4 * most * kv_head
    exact = field(layer, LayerState.EXACT_TO)
    for start in range(0, n_runs, CHUNK):
        step_probabilities(layer, kv_head * group, group, start, room)
        for i in range(min(CHUNK, n_runs - start)):
            begin = load_i32(starts + 4 * (start + i))
            end = np.int64(load_i32(starts + 4 * (start + i + 1))) if start + i + 1 < n_runs else exact
            value = load_f32(room + 4 * i) / np.float32(end - begin)
            for position in range(begin, end):
                store_f32(target + 4 * position, value)
    for position in range(exact, field(sequence, Sequence.POSITION) + 1, CHUNK):
        step_probabilities(layer, kv_head * group, group, padded + position - exact, target + 4 * position)


@inner
def score(op, sequence, layer, first, n_pages, room):
    """Of the pages of a step, from ``first`` on: the sum over a page's positions of the largest probability over all
    heads; and the sum of its last AHEAD positions, for the page behind it."""
    start = first * BLOCK
    ahead, next_page = field(layer, LayerState.AHEAD), field(layer, LayerState.SPILLED) + 4
    if mode(op, sequence) != RUNS:
        step_probabilities(layer, 0, field(op, Attention.N_HEADS), start, room)
    for page in range(first, min(first + CHUNK // BLOCK, n_pages)):
        at = 4 * (page - first) * BLOCK
        best = load_f32x16(room + at)
        if mode(op, sequence) == RUNS:
            best = splat(ZERO)
            for kv_head in range(field(op, Attention.N_KV_HEADS)):
                tokens = field(layer, LayerState.TOKENS) + 4 * kv_head * field(layer, LayerState.WEIGHTS_STRIDE)
                best = vmax(load_f32x16(tokens + 4 * start + at), best)
        store_f32(field(layer, LayerState.SCORES) + 4 * page, sum_f32(best))
        store_f32x16(room + at, best)
        spilled = np.float32(0)
        for i in range(BLOCK - ahead, BLOCK):
            spilled += load_f32(room + at + 4 * i)
        store_f32(next_page + 4 * page, spilled)


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


@inner
def select(op, run, sequence, tid, n_threads):
    """The pages that the sparse layers of a sequence attend to until the next such op."""
    layer, barrier = layer_state(op, sequence), field(run, Run.BARRIER)
    room = field(run, Run.ARENA) + field(op, Attention.SCRATCH) + tid * field(op, Attention.SCRATCH_PRIVATE)
    if mode(op, sequence) == RUNS:
        n_kv_heads = field(op, Attention.N_KV_HEADS)
        for kv_head in range(share(n_kv_heads, tid, n_threads), share(n_kv_heads, tid + 1, n_threads)):
            spread_runs(op, sequence, layer, kv_head, room)
        wait_for_all(barrier, n_threads, False)
    n_pages = field(sequence, Sequence.POSITION) // BLOCK + 1
    per = CHUNK // BLOCK
    n_steps = (n_pages + per - 1) // per
    for step in range(share(n_steps, tid, n_threads), share(n_steps, tid + 1, n_threads)):
        score(op, sequence, layer, step * per, n_pages, room)
    wait_for_all(barrier, n_threads, False)
    if tid == 0:
        scores, spilled = field(layer, LayerState.SCORES), field(layer, LayerState.SPILLED)
        for page in range(1, n_pages):
            store_f32(scores + 4 * page, load_f32(scores + 4 * page) + load_f32(spilled + 4 * page))
        budget, recent = field(layer, LayerState.BUDGET), field(layer, LayerState.RECENT)
        choose(scores, n_pages, budget, recent, field(layer, LayerState.CHOSEN))


@op_kernel
def select_pages(op, run, tid, n_threads):
    """Behind a layer's attention: the pages of every sequence that chooses some there."""
    if field(run, Run.POLICIES) == 0:
        return
    waits = field(run, Run.N_ROWS) > 1  # else every thread has the norms that it gathered itself
    for index in range(field(run, Run.N_SEQUENCES)):
        sequence = sequence_at(run, index)
        if exports(op, sequence):
            if waits:
                wait_for_all(field(run, Run.BARRIER), n_threads, False)
                waits = False
            select(op, run, sequence, tid, n_threads)
