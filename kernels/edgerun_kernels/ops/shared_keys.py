"""DeltaLLM's runs (arXiv 2507.19608): positions that leave the exact window become runs that share a key, or keys made
of old and new elements. The algorithm in numpy, and what it is for: ``edgerun/attention/deltallm.py``.

A run's entry holds the key of its first position, to the bit, and the mean of its values; beside its block lies the
logarithm of its length, which attention adds to its score. Exactness where nothing is shared: an entry of one position
is a copy.
"""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Attention
from ..record import BLOCK, LayerState, Run
from ..runtime.loop.barrier import wait_for_all
from ..simd.ops import (
    field,
    fma,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    splat,
    store_f32,
    store_f32x16,
    store_i32,
    store_i64,
    sum_f32,
)
from .attention_cache import Cache, copy_bytes, float_cache, q8_cache
from .attention_entries import RUNS, block_address, layer_state, mode
from .math import ZERO, share
from .sequences import sequence_at


@inner
def distance(a, b, n):
    """Sum of the squares of a - b, float32 [n]; with b = 0 of a alone."""
    total = splat(ZERO)
    for i in range(0, n, 16):
        moved = load_f32x16(a + 4 * i)
        if b != 0:
            moved = moved - load_f32x16(b + 4 * i)
        total = fma(moved, moved, total)
    return sum_f32(total)


@inner
def copy_floats(source, target, n):
    for i in range(0, n, 16):
        store_f32x16(target + 4 * i, load_f32x16(source + 4 * i))


def _compact(name: str, cache: Cache):
    """The kernel for one cache format."""
    padded_dim, block_bytes, copy = cache.padded, cache.block_bytes, cache.copy
    read_key, read_value, write_key, write_value = (
        cache.read_key,
        cache.read_value,
        cache.write_key,
        cache.write_value,
    )

    @inner
    def keep(op, layer, kv_head, count, sums, block):
        """The head's runs as they are: number, open sum, last block with its logarithms."""
        target = field(layer, LayerState.UNDO)
        if target == 0:
            return
        target += kv_head * field(layer, LayerState.UNDO_BYTES)
        padded = padded_dim(op)
        store_i64(target, count)
        copy_bytes(sums, target + 8, 4 * padded)
        if count > 0:
            copy_bytes(block, target + 8 + 4 * padded, block_bytes(op) + 4 * BLOCK)

    @inner
    def moved_elements(key, reference, limits, dim):
        """Takes the elements of the reference that did not move into the key; gives how many moved."""
        moved = 0
        for i in range(dim):
            x, old = load_f32(key + 4 * i), load_f32(reference + 4 * i)
            if abs(x - old) < load_f32(limits + 4 * i):
                store_f32(key + 4 * i, old)
            else:
                moved += 1
        return moved

    @inner
    def compact_head(op, sequence, kv_head, key):
        layer = layer_state(op, sequence)
        dim, padded = field(op, Attention.HEAD_DIM), padded_dim(op)
        reference, value, work = key + 4 * padded, key + 8 * padded, key + 12 * padded
        most = field(layer, LayerState.MOST_BLOCKS)
        counts, starts = (
            field(layer, LayerState.COUNTS) + 8 * kv_head,
            field(layer, LayerState.STARTS) + 4 * BLOCK * most * kv_head,
        )
        blocks, sums = (
            field(layer, LayerState.BLOCKS) + 8 * most * kv_head,
            field(layer, LayerState.OPEN) + 4 * padded * kv_head,
        )
        theta, sinks = load_f32(field(layer, LayerState.THETA) + 4 * kv_head), field(layer, LayerState.SINKS)
        limits = field(layer, LayerState.LIMITS)
        logarithms = field(layer, LayerState.LOGARITHMS)
        count = load_i64(counts)
        block, lane, length = np.int64(0), np.int64(0), np.float32(0)
        if count > 0:
            block, lane = load_i64(blocks + 8 * ((count - 1) // BLOCK)), (count - 1) % BLOCK
            read_key(op, block, lane, reference)
            length = distance(reference, np.int64(0), padded)
        keep(op, layer, kv_head, count, sums, block)
        for position in range(field(layer, LayerState.EXACT_FROM), field(layer, LayerState.EXACT_TO)):
            source = block_address(op, sequence, kv_head, position // BLOCK)
            read_key(op, source, position % BLOCK, key)
            shared = False
            moved = dim
            if count > 0 and position > sinks:
                if limits == 0:
                    shared = distance(key, reference, padded) < theta * theta * length
                else:
                    moved = moved_elements(key, reference, limits + 4 * padded * kv_head, dim)
            if shared:
                n = position + 1 - load_i32(starts + 4 * (count - 1))
                read_value(op, source, position % BLOCK, value)
                for i in range(0, padded, 16):
                    total = load_f32x16(sums + 4 * i) + load_f32x16(value + 4 * i)
                    store_f32x16(sums + 4 * i, total)
                    store_f32x16(value + 4 * i, total / splat(np.float32(n)))
                write_value(op, block, lane, value, work)
                store_f32(block + block_bytes(op) + 4 * lane, load_f32(logarithms + 4 * n))
                continue
            block, lane = load_i64(blocks + 8 * (count // BLOCK)), count % BLOCK
            copy(op, source, position % BLOCK, block, lane)
            store_f32(block + block_bytes(op) + 4 * lane, ZERO)
            store_i32(starts + 4 * count, position)
            if limits != 0:
                elements = field(layer, LayerState.ELEMENTS) + 8 * kv_head
                store_i64(elements, load_i64(elements) + moved)
                if moved < dim:
                    write_key(op, block, lane, key, work)
            read_value(op, source, position % BLOCK, sums)
            copy_floats(key, reference, padded)
            length = distance(reference, np.int64(0), padded)
            count += 1
        store_i64(counts, count)

    def kernel(op, run, tid, n_threads):
        """Before a run's attention: positions [EXACT_FROM, EXACT_TO) of every head of a layer that has runs become
        some."""
        if field(run, Run.POLICIES) == 0:
            return
        scratch = field(run, Run.ARENA) + field(op, Attention.SCRATCH) + tid * field(op, Attention.SCRATCH_PRIVATE)
        n_kv_heads, any_head = field(op, Attention.N_KV_HEADS), False
        for index in range(field(run, Run.N_SEQUENCES)):
            sequence = sequence_at(run, index)
            if mode(op, sequence) != RUNS:
                continue
            layer = layer_state(op, sequence)
            if field(layer, LayerState.EXACT_FROM) == field(layer, LayerState.EXACT_TO):
                continue
            any_head = True
            for kv_head in range(share(n_kv_heads, tid, n_threads), share(n_kv_heads, tid + 1, n_threads)):
                compact_head(op, sequence, kv_head, scratch)
        if any_head:
            wait_for_all(field(run, Run.BARRIER), n_threads, True)

    kernel.__name__ = name
    return op_kernel(kernel)


compact_f16 = _compact("compact_f16", float_cache("f16"))
compact_f32 = _compact("compact_f32", float_cache("f32"))
compact_q8 = _compact("compact_q8", q8_cache())
