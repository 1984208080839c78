"""RMS normalisation and the quantisation of activations to int8: in groups of 32 with a second term for outliers, or
with one scale a row, as BitNet models are trained."""

from functools import cache

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Head, Input, Norm, Quantize
from ..record import (
    GROUP,
    ROW_SCALES,
    SECOND_TERM,
    TILE_HEADER,
    TILE_ROWS,
    Flag,
    Run,
    Sequence,
    first_stride,
    second_stride,
)
from ..simd.ops import (
    field,
    field_f64,
    fma,
    load_f32,
    load_f32x16,
    max_f32,
    round_to_int,
    splat,
    sqrt,
    store_f32,
    store_f32x16,
    store_i32,
    store_i64,
    store_low_bytes,
    sum_f32,
    sum_i32,
    to_float,
    vabs,
    vmax,
    zero_i32,
)
from .linear import input_address, n_rows
from .math import ZERO, share
from .sequences import rows_of, sequence_at, site_of

LARGEST = np.float32(127)
ONE = np.float32(1)
SECOND = np.float32(SECOND_TERM)
MINUS_EIGHT = np.int32(-8)
TINY = np.float32(1e-30)
LEAST = np.float32(1e-5)
"""A row whose largest magnitude is below this is quantised as if it were this."""


@inner
def tile_share(rows, tid, n_threads):
    """The tiles of TILE_ROWS rows that are this thread's."""
    n_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
    return share(n_tiles, tid, n_threads), share(n_tiles, tid + 1, n_threads)


@inner
def row_share(run, rows, tid, n_threads):
    """The rows of this thread: all of them when one row runs (cheaper than a barrier), else whole tiles, so that what
    is normalised here is quantised by the same thread."""
    if field(run, Run.N_ROWS) == 1:
        return 0, rows
    first, last = tile_share(rows, tid, n_threads)
    return first * TILE_ROWS, min(last * TILE_ROWS, rows)


@inner
def private_output(op, run, tid):
    y = field(run, Run.ARENA) + field(op, Head.Y)
    if field(run, Run.N_ROWS) == 1:
        y += tid * field(op, Head.Y_PRIVATE)
    return y


@inner
def norm_row(x, y, w, k, epsilon):
    """y = x / sqrt(mean(x**2) + epsilon) * w, float32 [k] and zeros up to a whole group."""
    padded = (k + GROUP - 1) // GROUP * GROUP
    even, odd = splat(ZERO), splat(ZERO)
    for i in range(0, padded, GROUP):
        u, v = load_f32x16(x + 4 * i), load_f32x16(x + 4 * i + 64)
        even, odd = fma(u, u, even), fma(v, v, odd)
    scale = splat(ONE / sqrt(np.float32(np.float64(sum_f32(even + odd)) / k + epsilon)))
    for i in range(0, padded, 16):
        store_f32x16(y + 4 * i, load_f32x16(x + 4 * i) * scale * load_f32x16(w + 4 * i))


@op_kernel
def rms_norm(op, run, tid, n_threads):
    """y = x / sqrt(mean(x**2) + epsilon) * w; x, y and w padded with zeros to whole groups; w may be a variant's."""
    x0, y0 = input_address(op, run, tid), private_output(op, run, tid)
    x_stride, y_stride = field(op, Head.X_STRIDE), field(op, Head.Y_STRIDE)
    k, epsilon = field(op, Input.K), field_f64(op, Norm.EPSILON)
    last_rows = field(op, Head.FLAGS) & Flag.LAST_ROWS
    begin, end = row_share(run, n_rows(op, run), tid, n_threads)
    for index in range(field(run, Run.N_SEQUENCES)):
        sequence = sequence_at(run, index)
        first, last = rows_of(op, sequence)
        above = 0  # from a row of the output to that of the input
        if last_rows:
            above = field(sequence, Sequence.FIRST_ROW) + field(sequence, Sequence.N_ROWS) - last
        w = site_of(op, sequence)
        if w == 0:
            w = field(op, Norm.W)
        for row in range(max(first, begin), min(last, end)):
            norm_row(x0 + (row + above) * x_stride, y0 + row * y_stride, w, k, epsilon)


@inner
def quantize_group(x, y, inverse):
    """32 values times ``inverse``, rounded, to bytes at ``y``; both halves' sums, and what rounding left of them."""
    u, v = load_f32x16(x) * splat(inverse), load_f32x16(x + 64) * splat(inverse)
    p, q = round_to_int(u), round_to_int(v)
    store_low_bytes(y, p)
    store_low_bytes(y + 16, q)
    return sum_i32(p), sum_i32(q), u - to_float(p), v - to_float(q)


@inner
def store_offsets(address, rows, low, high):
    """-8 times the sum of a group's integers, and of its first half's."""
    store_i32(address, (low + high) * MINUS_EIGHT)
    store_i32(address + 4 * rows, low * MINUS_EIGHT)


@cache
def quantize_tile(rows):
    """A function ``(x, stride, count, y, n_groups, threshold)`` for ``count`` rows of a tile of ``rows``."""
    stride_1, stride_2 = first_stride(rows), second_stride(rows)
    limits = 8  # the rows' limits lie in the header, behind the number of second terms: up to 14 rows

    @inner
    def limit(x, n_groups, threshold):
        acc = splat(ZERO)
        for i in range(0, GROUP * n_groups, 16):
            v = load_f32x16(x + 4 * i)
            acc = acc + v * v
        return threshold * sqrt(sum_f32(acc) / np.float32(GROUP * n_groups))

    @inner
    def quantize(x, stride, count, y, n_groups, threshold):
        for r in range(count):
            store_f32(y + limits + 4 * r, limit(x + r * stride, n_groups, threshold))
        n_second = 0
        second_0 = y + TILE_HEADER + stride_1 * n_groups
        for g in range(n_groups):
            first, second = y + TILE_HEADER + stride_1 * g, second_0 + stride_2 * n_second
            scales_1, offsets_1 = first + GROUP * rows, first + (GROUP + 4) * rows
            scales_2, offsets_2 = second + 8 + GROUP * rows, second + 8 + (GROUP + 4) * rows
            sums_1 = first + (GROUP + 12) * rows
            has_second = False
            for r in range(rows):
                terms_1, terms_2 = first + GROUP * r, second + 8 + GROUP * r
                scale, value = ZERO, ZERO
                low, high, low_2, high_2 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
                if r < count:
                    group = x + r * stride + 4 * GROUP * g
                    largest = max_f32(vmax(vabs(load_f32x16(group)), vabs(load_f32x16(group + 64))))
                    scale = largest / LARGEST
                    inverse = LARGEST / largest if largest > TINY else ZERO
                    low, high, u, v = quantize_group(group, terms_1, inverse)
                    value = np.float32(low + high)
                    if largest > load_f32(y + limits + 4 * r):
                        has_second = True
                        p, q = round_to_int(u * splat(SECOND)), round_to_int(v * splat(SECOND))
                        store_low_bytes(terms_2, p)
                        store_low_bytes(terms_2 + 16, q)
                        low_2, high_2 = sum_i32(p), sum_i32(q)
                        value += np.float32(low_2 + high_2) / SECOND
                    else:
                        zero_bytes(terms_2)
                else:
                    zero_bytes(terms_1)
                    zero_bytes(terms_2)
                store_f32(scales_1 + 4 * r, scale)
                store_offsets(offsets_1 + 4 * r, rows, low, high)
                store_f32(sums_1 + 4 * r, scale * value)
                store_f32(scales_2 + 4 * r, scale / SECOND)
                store_offsets(offsets_2 + 4 * r, rows, low_2, high_2)
            if has_second:
                store_i64(second, g)
                n_second += 1
        store_i64(y, n_second)

    return quantize


quantize_one, quantize_several = quantize_tile(1), quantize_tile(TILE_ROWS)


@inner
def zero_bytes(address):
    for i in range(0, GROUP, 8):
        store_i64(address + i, 0)


@op_kernel
def quantize(op, run, tid, n_threads):
    """float32 rows -> tiles of int8 terms, scales, offsets and sums (see ``record``): of one row, or of TILE_ROWS.

    First term: q = round(x / s), s = max|x| / 127 of a group of 32. In groups with max|x| > THRESHOLD * rms(row) the
    rest x / s - q, at most 1/2, is a second term in SECOND_TERM parts.
    """
    rows = n_rows(op, run)
    x, y = input_address(op, run, tid), private_output(op, run, tid)
    x_stride, y_stride = field(op, Head.X_STRIDE), field(op, Head.Y_STRIDE)
    n_groups = (field(op, Input.K) + GROUP - 1) // GROUP
    threshold = np.float32(field_f64(op, Quantize.THRESHOLD))
    first, last = tile_share(rows, tid, n_threads)
    if rows == 1:
        if field(run, Run.N_ROWS) == 1 or first < last:
            quantize_one(x, x_stride, 1, y, n_groups, threshold)
        return
    for tile in range(first, last):
        row = tile * TILE_ROWS
        count = min(TILE_ROWS, rows - row)
        quantize_several(x + row * x_stride, x_stride, count, y + tile * y_stride, n_groups, threshold)


@inner
def quantize_row(x, n_groups, y, step, header):
    """One row to bytes at ``y``, groups ``step`` bytes apart; its offset and its scale to the header."""
    largest = splat(LEAST)
    for i in range(0, GROUP * n_groups, 16):
        largest = vmax(vabs(load_f32x16(x + 4 * i)), largest)
    scale = max_f32(largest)
    inverse = splat(LARGEST / scale)
    total = zero_i32()
    for g in range(n_groups):
        group, terms = x + 4 * GROUP * g, y + step * g
        p, q = round_to_int(load_f32x16(group) * inverse), round_to_int(load_f32x16(group + 64) * inverse)
        store_low_bytes(terms, p)
        store_low_bytes(terms + 16, q)
        total = total + (p + q)
    store_i32(header, -sum_i32(total))
    store_f32(header + ROW_SCALES, scale / LARGEST)


@op_kernel
def quantize_rows(op, run, tid, n_threads):
    """float32 rows -> tiles of int8 with one scale a row (see ``record``): q = round(x * (127 / max|x|)), ties to even,
    as BitNet's activations are in training (arXiv 2402.17764); max|x| counts as 1e-5 at least."""
    rows = n_rows(op, run)
    x0, y0 = input_address(op, run, tid), private_output(op, run, tid)
    x_stride, y_stride = field(op, Head.X_STRIDE), field(op, Head.Y_STRIDE)
    n_groups = (field(op, Input.K) + GROUP - 1) // GROUP
    first, last = tile_share(rows, tid, n_threads)
    if rows == 1:
        if field(run, Run.N_ROWS) == 1 or first < last:
            quantize_row(x0, n_groups, y0 + TILE_HEADER, GROUP, y0)
        return
    for tile in range(first, last):
        y = y0 + tile * y_stride
        for r in range(TILE_ROWS):
            row, terms = tile * TILE_ROWS + r, y + TILE_HEADER + GROUP * r
            if row < rows:
                quantize_row(x0 + row * x_stride, n_groups, terms, GROUP * TILE_ROWS, y + 4 * r)
            else:
                store_i32(y + 4 * r, np.int32(0))
                store_f32(y + ROW_SCALES + 4 * r, ZERO)
                for g in range(n_groups):
                    zero_bytes(terms + GROUP * TILE_ROWS * g)
