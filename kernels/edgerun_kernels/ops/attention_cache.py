"""The formats of the KV cache: how keys and values are written, and how a tile of queries meets them.

A page holds PAGE positions; in it lie, per layer and key/value head, blocks of 16 positions: their keys, then their
values (padded: head_dim in whole vectors). Keys lie so that a vector is one feature of 16 positions (q8: four
features), a score needs no sum across lanes, and memory is read line after line; values lie position by position. A
block is found by its address alone, so that any of them can be attended to, in any order.

======  ============================================  ===================================================
format  keys of a block                               values of a block
======  ============================================  ===================================================
f16     float16 [padded, 16]                          float16 [16, padded]
f32     float32 [padded, 16]                          float32 [16, padded]
q8      int8 [padded/32, 8, 16, 4] as q8 weights,     int8 [16, padded], then float32 [16], a scale each
        then float16 [padded/32, 16], their scales
======  ============================================  ===================================================

With q8, queries become 16-bit integers in groups of 32 and a score is the same product as a q8 linear layer's.
A format is the functions that ``Cache`` names; ``rows`` is the number of queries in a tile.
"""

from typing import Any, NamedTuple

import numpy as np

from ..kernel import inner
from ..layouts import Attention
from ..record import BLOCK, CHUNK, GROUP
from ..simd.ops import (
    extract,
    f16_to_f32,
    f32_to_f16,
    field,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i16,
    load_i16x16,
    load_i64,
    load_u8,
    max_f32,
    prefetch_far,
    round_to_int,
    splat,
    store_f32,
    store_f32x16,
    store_i16,
    store_i16x16,
    store_low_bytes,
    store_u8,
    to_float,
    vabs,
    vmax,
)
from ..simd.tiles import Tile
from .linear_products import q8_products
from .math import ZERO
from .norm import LARGEST, quantize_tile

KEY_VECTORS = 2
"""Blocks whose keys a tile of scores takes at once."""
NEXT = 8 * CHUNK // BLOCK
"""Bytes from the addresses of a step's blocks to those of the step that follows."""


class Cache(NamedTuple):
    """A format.

    padded(op): features of a head, with padding.  block_bytes(op): of a block.
    write_key(op, block, lane, key, work), write_value: store a rotated key, a value (float32 [padded], zeros behind
    head_dim) of one position of a block; work: as many bytes as a key, for their own use.
    read_key(op, block, lane, key), read_value: what is stored, as float32 [padded].
    copy(op, source, lane, target, place): a position's key and value, to the bit.
    queries(rows): ``(op, raw, out)`` makes of float32 [rows, padded] what ``scores`` wants.
    scores(rows): ``(op, blocks, count, queries, p, work)`` fills p [rows, CHUNK].
    accumulate(rows): ``(op, blocks, count, p, out)``, out += p times values, [padded/16, rows, 16]; may change p.
    blocks: int64 [CHUNK / 16] addresses of a step's blocks (as many as ``count`` positions fill, a whole pair of them
    valid), and behind them those of the step that follows, to be fetched meanwhile.
    """

    padded: Any
    block_bytes: Any
    write_key: Any
    write_value: Any
    read_key: Any
    read_value: Any
    copy: Any
    queries: Any
    scores: Any
    accumulate: Any


@inner
def padded_16(op):
    return (field(op, Attention.HEAD_DIM) + 15) // 16 * 16


@inner
def padded_32(op):
    return (field(op, Attention.HEAD_DIM) + GROUP - 1) // GROUP * GROUP


@inner
def copy_bytes(source, target, n):
    for i in range(n):
        store_u8(target + i, load_u8(source + i))


def _weighted_sum(rows, stored):
    """``sum_values(blocks, offset, count, padded, p, out)``: out[q] += sum over t of p[q, t] values[t], which lie
    ``offset`` bytes behind the start of every block."""
    size = {"f16": 2, "f32": 4, "i8": 1}[stored]
    wide = 4 if rows <= 4 else 2

    def strip(vectors):
        tile = Tile(rows, vectors)
        load, add, store, restore = tile.load_floats(stored), tile.add_outer(4 * CHUNK), tile.store(), tile.restore()

        @inner
        def run(blocks, offset, count, padded, p, out):
            acc = restore(out)
            for start in range(0, count, BLOCK):
                v, ahead = load_i64(blocks) + offset, load_i64(blocks + NEXT) + offset
                blocks += 8
                for t in range(start, min(start + BLOCK, count)):
                    for line in range(0, 16 * vectors * size, 64):
                        prefetch_far(ahead + line)
                    acc = add(acc, load(v, 16 * size), p + 4 * t)
                    v += padded * size
                    ahead += padded * size
            store(out, acc)

        return run

    several, single = strip(wide), strip(1)

    @inner
    def sum_values(blocks, offset, count, padded, p, out):
        i = 0
        while i + 16 * wide <= padded:
            several(blocks, offset + i * size, count, padded, p, out + 4 * rows * i)
            i += 16 * wide
        while i < padded:
            single(blocks, offset + i * size, count, padded, p, out + 4 * rows * i)
            i += 16

    return sum_values


def float_cache(stored: str) -> Cache:
    """float16 or float32."""
    size = 2 if stored == "f16" else 4

    @inner
    def narrow(target, source, n):
        for i in range(0, n, 16):
            lanes = load_f32x16(source + 4 * i)
            if size == 2:
                store_i16x16(target + 2 * i, f32_to_f16(lanes))
            else:
                store_f32x16(target + 4 * i, lanes)

    @inner
    def widen(target, source, n):
        for i in range(0, n, 16):
            if size == 2:
                store_f32x16(target + 4 * i, f16_lanes(source + 2 * i))
            else:
                store_f32x16(target + 4 * i, load_f32x16(source + 4 * i))

    @inner
    def copy_column(source, step, target, stride, n):
        """n numbers that lie step bytes apart, to places that lie stride bytes apart."""
        for i in range(n):
            if size == 2:
                store_i16(target + stride * i, load_i16(source + step * i))
            else:
                store_f32(target + stride * i, load_f32(source + step * i))

    @inner
    def block_bytes(op):
        return 2 * BLOCK * size * padded_16(op)

    @inner
    def value_of(op, block, lane):
        return block + (BLOCK + lane) * padded_16(op) * size

    @inner
    def write_key(op, block, lane, key, work):
        narrow(work, key, padded_16(op))
        copy_column(work, size, block + lane * size, BLOCK * size, field(op, Attention.HEAD_DIM))

    @inner
    def write_value(op, block, lane, value, work):
        narrow(value_of(op, block, lane), value, padded_16(op))

    @inner
    def read_key(op, block, lane, key):
        dim, padded = field(op, Attention.HEAD_DIM), padded_16(op)
        packed = key + (4 - size) * padded  # at the end of the room, where the wide ones come last
        copy_column(block + lane * size, BLOCK * size, packed, size, dim)
        widen(key, packed, padded)
        for i in range(dim, padded):
            store_f32(key + 4 * i, ZERO)

    @inner
    def read_value(op, block, lane, value):
        widen(value, value_of(op, block, lane), padded_16(op))

    @inner
    def copy(op, source, lane, target, place):
        step = BLOCK * size
        copy_column(source + lane * size, step, target + place * size, step, field(op, Attention.HEAD_DIM))
        copy_column(value_of(op, source, lane), size, value_of(op, target, place), size, padded_16(op))

    def queries(rows):
        @inner
        def transpose(op, raw, out):
            padded = padded_16(op)
            for q in range(rows):
                for i in range(field(op, Attention.HEAD_DIM)):
                    store_f32(out + 4 * (rows * i + q), load_f32(raw + 4 * (q * padded + i)))

        return transpose

    def scores(rows):
        tile = Tile(rows, KEY_VECTORS)
        zero, load, add, store = tile.zero(), tile.load_floats(stored), tile.add_outer(), tile.store()

        @inner
        def run(op, blocks, count, queries, p, work):
            dim = field(op, Attention.HEAD_DIM)
            for t in range(0, count, BLOCK * KEY_VECTORS):
                pair = blocks + 8 * (t // BLOCK)
                k, other = load_i64(pair), load_i64(pair + 8) - load_i64(pair)
                ahead, beside = load_i64(pair + NEXT), load_i64(pair + NEXT + 8)
                acc = zero()
                for i in range(0, 4 * rows * dim, 8 * rows):  # two features: a line of float16
                    for line in range(0, 2 * BLOCK * size, 64):
                        prefetch_far(ahead + line)
                        prefetch_far(beside + line)
                    acc = add(acc, load(k, other), queries + i)
                    acc = add(acc, load(k + BLOCK * size, other), queries + i + 4 * rows)
                    k += 2 * BLOCK * size
                    ahead += 2 * BLOCK * size
                    beside += 2 * BLOCK * size
                store(work, acc)
                spread(work, p + 4 * t)

        spread = _spread(rows)
        return run

    def accumulate(rows):
        sum_values = _weighted_sum(rows, stored)

        @inner
        def run(op, blocks, count, p, out):
            padded = padded_16(op)
            sum_values(blocks, BLOCK * padded * size, count, padded, p, out)

        return run

    return Cache(
        padded_16, block_bytes, write_key, write_value, read_key, read_value, copy, queries, scores, accumulate
    )


def _spread(rows):
    """Stored sums [KEY_VECTORS, rows, 16] to rows of p."""

    @inner
    def spread(sums, p):
        for q in range(rows):
            for v in range(KEY_VECTORS):
                store_f32x16(p + 4 * (CHUNK * q + 16 * v), load_f32x16(sums + 64 * (rows * v + q)))

    return spread


def q8_cache() -> Cache:
    """int8 with a scale a position: keys in groups of 32 features, values as a whole."""

    @inner
    def block_bytes(op):
        return 33 * padded_32(op) + 4 * BLOCK

    @inner
    def key_scales(op, block):
        return block + BLOCK * padded_32(op)

    @inner
    def value_of(op, block, lane):
        return block + (BLOCK + 1 + lane) * padded_32(op)

    @inner
    def value_scales(op, block):
        return block + 33 * padded_32(op)

    @inner
    def largest_of(x, n):
        largest = splat(ZERO)
        for i in range(0, n, 16):
            largest = vmax(vabs(load_f32x16(x + 4 * i)), largest)
        return max_f32(largest)

    @inner
    def round_all(x, n, scale, out):
        inverse = splat(np.float32(1) / scale if scale > ZERO else ZERO)
        for i in range(0, n, 16):
            store_low_bytes(out + i, round_to_int(load_f32x16(x + 4 * i) * inverse))

    @inner
    def widen(x, n, scale):
        """float32 in place of int8 that lie at its end."""
        for i in range(0, n, 16):
            store_f32x16(x + 4 * i, to_float(load_i8x16(x + 3 * n + i)) * splat(scale))

    @inner
    def write_key(op, block, lane, key, work):
        for g in range(padded_32(op) // GROUP):
            x = key + 4 * GROUP * g
            # The scale that is stored is the one that is used: a float16 that is never below largest / 127, normal (the
            # factor) or subnormal (half of the smallest), so that 127 is never exceeded.
            scale = largest_of(x, GROUP) / LARGEST * np.float32(1.0005) + np.float32(2.0**-25)
            store_i16x16(work, f32_to_f16(splat(scale)))
            store_i16(key_scales(op, block) + 32 * g + 2 * lane, load_i16(work))
            round_all(x, GROUP, extract(f16_lanes(work), 0), work)
            for c in range(8):
                copy_bytes(work + 4 * c, block + 512 * g + 64 * c + 4 * lane, 4)

    @inner
    def write_value(op, block, lane, value, work):
        padded = padded_32(op)
        scale = largest_of(value, padded) / LARGEST
        store_f32(value_scales(op, block) + 4 * lane, scale)
        round_all(value, padded, scale, value_of(op, block, lane))

    @inner
    def read_key(op, block, lane, key):
        for g in range(padded_32(op) // GROUP):
            x = key + 4 * GROUP * g
            for c in range(8):
                copy_bytes(block + 512 * g + 64 * c + 4 * lane, x + 3 * GROUP + 4 * c, 4)
            store_i16(x, load_i16(key_scales(op, block) + 32 * g + 2 * lane))
            widen(x, GROUP, extract(f16_lanes(x), 0))

    @inner
    def read_value(op, block, lane, value):
        padded = padded_32(op)
        copy_bytes(value_of(op, block, lane), value + 3 * padded, padded)
        widen(value, padded, load_f32(value_scales(op, block) + 4 * lane))

    @inner
    def copy(op, source, lane, target, place):
        padded = padded_32(op)
        for c in range(padded // 4):
            copy_bytes(source + 64 * c + 4 * lane, target + 64 * c + 4 * place, 4)
        for g in range(padded // GROUP):
            scale = load_i16(key_scales(op, source) + 32 * g + 2 * lane)
            store_i16(key_scales(op, target) + 32 * g + 2 * place, scale)
        copy_bytes(value_of(op, source, lane), value_of(op, target, place), padded)
        copy_bytes(value_scales(op, source) + 4 * lane, value_scales(op, target) + 4 * place, 4)

    def queries(rows):
        quantise = quantize_tile(rows)

        @inner
        def run(op, raw, out):
            padded = padded_32(op)
            quantise(raw, 4 * padded, rows, out, padded // GROUP, ZERO)

        return run

    def scores(rows):
        products, spread = q8_products(rows, KEY_VECTORS), _spread(rows)

        @inner
        def run(op, blocks, count, queries, p, work):
            padded = padded_32(op)
            for t in range(0, count, BLOCK * KEY_VECTORS):
                pair = blocks + 8 * (t // BLOCK)
                k, other = load_i64(pair), load_i64(pair + 8) - load_i64(pair)
                ahead, beside = load_i64(pair + NEXT), load_i64(pair + NEXT + 8)
                for line in range(0, BLOCK * padded, 64):
                    prefetch_far(ahead + line)
                    prefetch_far(beside + line)
                products(k, key_scales(op, k), 0, other, other, 0, queries, padded // GROUP, work)
                spread(work, p + 4 * t)

        return run

    def accumulate(rows):
        sum_values = _weighted_sum(rows, "i8")

        @inner
        def run(op, blocks, count, p, out):
            padded = padded_32(op)
            for t in range(0, count, BLOCK):
                scales = load_f32x16(value_scales(op, load_i64(blocks + 8 * (t // BLOCK))))
                for q in range(rows):
                    address = p + 4 * (CHUNK * q + t)
                    store_f32x16(address, load_f32x16(address) * scales)
            sum_values(blocks, (BLOCK + 1) * padded, count, padded, p, out)

        return run

    return Cache(
        padded_32, block_bytes, write_key, write_value, read_key, read_value, copy, queries, scores, accumulate
    )


@inner
def f16_lanes(address):
    return f16_to_f32(load_i16x16(address))
