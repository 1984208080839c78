"""Choosing the next token from logits: temperature, then min-p, top-k and top-p (the order of vLLM).

Never sorts the vocabulary: a heap gives the largest weights one by one, as far as the filters need them. Logits lie in
memory padded to a multiple of 16 floats; what the padding holds does not matter.
"""

import numpy as np
from numba.core import types

from ..kernel import INT, exported, inner
from ..simd.ops import (
    first_lanes,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    max_f32,
    splat,
    store_f32,
    store_f32x16,
    store_i32,
    sum_f32,
    vmax,
)
from .math import ZERO, exp

F64 = types.float64
LOWEST = np.float32(-3.4e38)


@inner
def before(weights, a, b):
    """Larger weight first; among equals the smaller id, so that the order is total."""
    x, y = load_f32(weights + 4 * a), load_f32(weights + 4 * b)
    return x > y or (x == y and a < b)


@inner
def sift_down(weights, heap, n, start):
    i = start
    item = load_i32(heap + 4 * i)
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and before(weights, load_i32(heap + 4 * child + 4), load_i32(heap + 4 * child)):
            child += 1
        best = load_i32(heap + 4 * child)
        if not before(weights, best, item):
            break
        store_i32(heap + 4 * i, best)
        i = child
    store_i32(heap + 4 * i, item)


BLOCK = 256


@exported(INT, INT, INT)
def argmax(logits, n):
    """The id of the largest logit, the smallest id among equals."""
    best, largest = 0, load_f32(logits)
    for start in range(0, n, BLOCK):
        lanes = splat(LOWEST)
        for i in range(start, min(start + BLOCK, n), 16):
            lanes = vmax(first_lanes(load_f32x16(logits + 4 * i), n - i, splat(LOWEST)), lanes)
        if max_f32(lanes) > largest or start == 0:
            for i in range(start, min(start + BLOCK, n)):
                x = load_f32(logits + 4 * i)
                if x > largest:
                    best, largest = i, x
    return best


@exported(types.void, INT, INT, INT, INT, F64, F64, F64)
def penalize(logits, ids, counts, n, repetition, presence, frequency):
    """Changes the logits of ``n`` distinct ids (int64): divides (multiplies, if negative) by ``repetition``; for those
    generated ``counts`` > 0 times subtracts ``presence`` once and ``frequency`` each time."""
    for i in range(n):
        address = logits + 4 * load_i64(ids + 8 * i)
        count = load_i64(counts + 8 * i)
        x = np.float64(load_f32(address))
        x = x / repetition if x > 0 else x * repetition
        if count > 0:
            x -= presence + frequency * count
        store_f32(address, np.float32(x))


@exported(F64, INT, INT)
def exp_sum(logits, n):
    """sum(exp(logits - max(logits))), summed in float64."""
    largest = splat(load_f32(logits + 4 * argmax(logits, n)))
    total = 0.0
    for i in range(0, n, 16):
        lanes = exp(load_f32x16(logits + 4 * i) - largest)
        total += np.float64(sum_f32(first_lanes(lanes, n - i, splat(ZERO))))
    return total


@exported(INT, INT, INT, INT, F64, INT, F64, F64, F64)
def sample(logits, n, heap, temperature, top_k, top_p, min_p, uniform):
    """Draws an id. ``heap``: int32[n] to work in; the logits are overwritten by weights. ``uniform`` in [0, 1).

    temperature >= 1e-4; top_k = 0, top_p = 1, min_p = 0 switch the filters off. min_p is relative to the
    most likely token; top_p counts over what the other two left.
    """
    best = argmax(logits, n)
    largest, inverse = splat(load_f32(logits + 4 * best)), splat(np.float32(1.0 / temperature))
    least = np.float32(min_p)
    mass = 0.0
    size = 0
    for start in range(0, n, 16):
        weights = exp((load_f32x16(logits + 4 * start) - largest) * inverse)
        weights = first_lanes(weights, n - start, splat(ZERO))
        store_f32x16(logits + 4 * start, weights)
        if max_f32(weights) >= least:
            for i in range(start, min(start + 16, n)):
                weight = load_f32(logits + 4 * i)
                if weight >= least:
                    store_i32(heap + 4 * size, i)
                    size += 1
                    mass += weight
    if size == 0:
        return best
    if 0 < top_k < size or top_p < 1.0:
        for i in range(size // 2 - 1, -1, -1):
            sift_down(logits, heap, size, i)
        # Pop the most likely to the end of the heap's memory, so that they lie there in ascending order.
        wanted = size if top_k <= 0 else min(top_k, size)
        left, kept = size, 0.0
        while size - left < wanted and (top_k > 0 or kept < top_p * mass):
            best = load_i32(heap)
            left -= 1
            store_i32(heap, load_i32(heap + 4 * left))
            if left > 0:
                sift_down(logits, heap, left, 0)
            store_i32(heap + 4 * left, best)
            kept += load_f32(logits + 4 * best)
        first = size - 1
        limit, cut = top_p * kept if top_k > 0 else kept, 0.0
        last = first
        while last >= left:
            cut += load_f32(logits + 4 * load_i32(heap + 4 * last))
            if cut >= limit:
                break
            last -= 1
        last = max(last, left)
        target, running = uniform * cut, 0.0
        for i in range(first, last - 1, -1):
            running += load_f32(logits + 4 * load_i32(heap + 4 * i))
            if running > target:
                return np.int64(load_i32(heap + 4 * i))
        return np.int64(load_i32(heap + 4 * last))
    target, running = uniform * mass, 0.0
    for i in range(size):
        running += load_f32(logits + 4 * load_i32(heap + 4 * i))
        if running > target:
            return np.int64(load_i32(heap + 4 * i))
    return np.int64(load_i32(heap + 4 * (size - 1)))
