"""The formats of the KV cache: how keys and values are written, and how a tile of queries meets them.

A page holds PAGE positions; in it, per layer and key/value head, first the keys, then the values (padded: head_dim in
whole vectors). Keys lie in blocks of 32 positions (q8: 16), so that a vector is one feature of 16 positions (q8: four
features), a score needs no sum across lanes, and memory is read line after line; values lie position by position.

======  ==================================================  ====================================================
format  keys                                                values
======  ==================================================  ====================================================
f16     float16 [PAGE/32, padded, 32]                       float16 [PAGE, padded]
f32     float32 [PAGE/32, padded, 32]                       float32 [PAGE, padded]
q8      int8 [PAGE/16, padded/32, 8, 16, 4] as q8 weights,  int8 [PAGE, padded], then float32 [PAGE], a scale each
        then float16 [PAGE/16, padded/32, 16], their scales
======  ==================================================  ====================================================

With q8, queries become 16-bit integers in groups of 32 and a score is the same product as a q8 linear layer's.
A format is the functions that ``Cache`` names; ``rows`` is the number of queries in a tile.
"""

from typing import Any, NamedTuple

import numpy as np

from .kernel import inner
from .linear_products import q8_products
from .math import ZERO
from .norm import LARGEST, quantize_tile
from .record import CHUNK, GROUP, PAGE, Field
from .simd.ops import (
    extract,
    f16_to_f32,
    f32_to_f16,
    field,
    load_f32,
    load_f32x16,
    load_i16,
    load_i16x16,
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
    vabs,
    vmax,
)
from .simd.tiles import Tile

KEY_VECTORS = 2
"""Vectors of 16 positions that a tile of scores takes at once."""
BLOCK = 16 * KEY_VECTORS


class Cache(NamedTuple):
    """A format.

    size: bytes of a stored number.  padded(op): features of a head, with padding.
    write(op, keys, inside, key, value, work): stores one position's rotated key and its value (float32 [padded], zeros
    behind head_dim).
    queries(rows): ``(op, raw, out)`` makes of float32 [rows, padded] what ``scores`` wants.
    scores(rows): ``(op, keys, start, count, queries, p, work, ahead)`` fills p [rows, CHUNK].
    accumulate(rows): ``(op, keys, start, count, p, out, ahead)``, out += p times values, [padded/16, rows, 16]; may
    change p.
    ahead: how many bytes further what is wanted next lies, to be fetched meanwhile (keys and values of a position take
    the same room, so one distance serves both).
    """

    size: int
    padded: Any
    write: Any
    queries: Any
    scores: Any
    accumulate: Any


@inner
def padded_16(op):
    return (field(op, Field.HEAD_DIM) + 15) // 16 * 16


@inner
def padded_32(op):
    return (field(op, Field.HEAD_DIM) + GROUP - 1) // GROUP * GROUP


def _weighted_sum(rows, stored):
    """``sum_values(values, count, padded, stride, p, out)``: out[q] += sum over t of p[q, t] values[t]."""
    size = {"f16": 2, "f32": 4, "i8": 1}[stored]
    wide = 4 if rows <= 4 else 2

    def strip(blocks):
        tile = Tile(rows, blocks)
        load, add, store, restore = tile.load_floats(stored), tile.add_outer(4 * CHUNK), tile.store(), tile.restore()

        @inner
        def run(v, count, padded, p, out, ahead):
            acc = restore(out)
            for t in range(count):
                for line in range(0, 16 * blocks * size, 64):
                    prefetch_far(v + ahead + t * padded * size + line)
                acc = add(acc, load(v + t * padded * size, 16 * size), p + 4 * t)
            store(out, acc)

        return run

    several, single = strip(wide), strip(1)

    @inner
    def sum_values(values, count, padded, p, out, ahead):
        i = 0
        while i + 16 * wide <= padded:
            several(values + i * size, count, padded, p, out + 4 * rows * i, ahead)
            i += 16 * wide
        while i < padded:
            single(values + i * size, count, padded, p, out + 4 * rows * i, ahead)
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
    def write(op, keys, inside, key, value, work):
        padded = padded_16(op)
        narrow(work, key, padded)
        column = keys + (inside // BLOCK * padded * BLOCK + inside % BLOCK) * size
        for i in range(field(op, Field.HEAD_DIM)):
            if size == 2:
                store_i16(column + 2 * BLOCK * i, load_i16(work + 2 * i))
            else:
                store_f32(column + 4 * BLOCK * i, load_f32(work + 4 * i))
        narrow(keys + (PAGE + inside) * padded * size, value, padded)

    def queries(rows):
        @inner
        def transpose(op, raw, out):
            padded = padded_16(op)
            for q in range(rows):
                for i in range(field(op, Field.HEAD_DIM)):
                    store_f32(out + 4 * (rows * i + q), load_f32(raw + 4 * (q * padded + i)))

        return transpose

    def scores(rows):
        tile = Tile(rows, KEY_VECTORS)
        zero, load, add, store = tile.zero(), tile.load_floats(stored), tile.add_outer(), tile.store()

        @inner
        def run(op, keys, start, count, queries, p, work, ahead):
            dim, padded = field(op, Field.HEAD_DIM), padded_16(op)
            for t in range(0, count, BLOCK):
                k = keys + (start + t) * padded * size
                acc = zero()
                for i in range(dim):
                    line = k + BLOCK * size * i
                    for part in range(0, BLOCK * size, 64):
                        prefetch_far(line + ahead + part)
                    acc = add(acc, load(line, 16 * size), queries + 4 * rows * i)
                store(work, acc)
                spread(work, p + 4 * t)

        spread = _spread(rows)
        return run

    def accumulate(rows):
        sum_values = _weighted_sum(rows, stored)

        @inner
        def run(op, keys, start, count, p, out, ahead):
            padded = padded_16(op)
            sum_values(keys + (PAGE + start) * padded * size, count, padded, p, out, ahead)

        return run

    return Cache(size, padded_16, write, queries, scores, accumulate)


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
    def key_scales(keys, padded):
        return keys + PAGE * padded

    @inner
    def values_of(keys, padded):
        return key_scales(keys, padded) + PAGE * padded // GROUP * 2

    @inner
    def value_scales(keys, padded):
        return values_of(keys, padded) + PAGE * padded

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
    def write(op, keys, inside, key, value, work):
        padded = padded_32(op)
        n_groups = padded // GROUP
        block, lane = inside // 16, inside % 16
        for g in range(n_groups):
            x = key + 4 * GROUP * g
            scales = key_scales(keys, padded) + (block * n_groups + g) * 32
            # The scale that is stored is the one that is used: a float16 that is never below largest / 127, normal (the
            # factor) or subnormal (half of the smallest), so that 127 is never exceeded.
            scale = largest_of(x, GROUP) / LARGEST * np.float32(1.0005) + np.float32(2.0**-25)
            store_i16x16(work, f32_to_f16(splat(scale)))
            store_i16(scales + 2 * lane, load_i16(work))
            round_all(x, GROUP, extract(f16_lanes(work), 0), work)
            for c in range(8):
                target = keys + (block * n_groups + g) * 512 + 64 * c + 4 * lane
                for j in range(4):
                    store_u8(target + j, load_u8(work + 4 * c + j))
        value_scale = largest_of(value, padded) / LARGEST
        store_f32(value_scales(keys, padded) + 4 * inside, value_scale)
        round_all(value, padded, value_scale, values_of(keys, padded) + inside * padded)

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
        def run(op, keys, start, count, queries, p, work, ahead):
            padded = padded_32(op)
            n_groups = padded // GROUP
            for t in range(0, count, BLOCK):
                block = (start + t) // 16
                w, d = keys + block * n_groups * 512, key_scales(keys, padded) + block * n_groups * 32
                for line in range(0, BLOCK * padded, 64):
                    prefetch_far(w + ahead + line)
                products(w, d, 0, n_groups * 512, n_groups * 32, 0, queries, n_groups, work)
                spread(work, p + 4 * t)

        return run

    def accumulate(rows):
        sum_values = _weighted_sum(rows, "i8")

        @inner
        def run(op, keys, start, count, p, out, ahead):
            padded = padded_32(op)
            scales = value_scales(keys, padded) + 4 * start
            for q in range(rows):
                for t in range(0, count, 16):
                    address = p + 4 * (CHUNK * q + t)
                    store_f32x16(address, load_f32x16(address) * load_f32x16(scales + 4 * t))
            sum_values(values_of(keys, padded) + start * padded, count, padded, p, out, ahead)

        return run

    return Cache(1, padded_32, write, queries, scores, accumulate)


@inner
def f16_lanes(address):
    return f16_to_f32(load_i16x16(address))
