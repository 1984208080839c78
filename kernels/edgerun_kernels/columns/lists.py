"""Which columns of a matrix a token needs: lists of those whose input is not zero, group by group.

Every thread makes the list of its own share for itself, in its scratch: a header line, segments, addresses, terms,
masks (``list_scratch_bytes``). A segment is what is known of some columns of a group that one term multiplies; where a
group of activations has two terms, its columns have two segments, and come from a cache the second time.
"""

from ..kernel import inner
from ..ops.math import share
from ..record import (
    COLUMN_AHEAD,
    GROUP,
    GROUP_SEGMENTS,
    MOST_QUADS,
    SEGMENT_BYTES,
    TILE_HEADER,
    first_stride,
    second_stride,
)
from ..simd.ops import count_ones, first_one, load_i64, load_u8, nonzero_bytes, store_i64, store_u8

CHOSEN, N_SEGMENTS, ZERO_SUM, ALL = 0, 8, 16, 40
"""In the header: whether columns are skipped; how many segments follow; a float32 0; whether the op before has found
that all columns are wanted, and written no row."""
QUADS, FIRST, TERMS, SUM, SCALES, MINIMA, SUMS, VALUES = range(0, SEGMENT_BYTES, 8)
"""In a segment: fours of columns, the first one's number in the list; addresses of the group's terms, of their float32
sum, of the weights' scales and minima, of the part's sums, of the terms that are listed."""
STRIDE_1, STRIDE_2 = first_stride(1), second_stride(1)
FOLD = 4
"""Columns that read as many bytes as a group's scales do: the least that a group costs."""


@inner
def places(scratch, n_groups):
    """Segments, addresses, first terms, second terms, masks; behind these, what ``without_offset`` notes, 16 bytes a
    group."""
    segments = scratch + 64
    addresses = segments + GROUP_SEGMENTS * n_groups * SEGMENT_BYTES
    values = addresses + 8 * (GROUP * n_groups + COLUMN_AHEAD)
    return segments, addresses, values, values + GROUP * n_groups, values + 2 * GROUP * n_groups


@inner
def mark(x, n_groups, masks):
    """Writes which of each group's inputs are not zero in a quantised row; gives how many there are, and their cost."""
    left, second = load_i64(x), x + TILE_HEADER + STRIDE_1 * n_groups
    total, cost = 0, 0
    for g in range(n_groups):
        bits = nonzero_bytes(x + TILE_HEADER + STRIDE_1 * g) & 0xFFFFFFFF
        if left > 0 and load_i64(second) == g:
            bits |= nonzero_bytes(second + 8) & 0xFFFFFFFF
            second += STRIDE_2
            left -= 1
        store_i64(masks + 8 * g, bits)
        if bits != 0:
            count = count_ones(bits)
            total += count
            cost += count + FOLD
    return total, cost


@inner
def segment(at, n_quads, first, terms, total, scales, minima, sums, values):
    store_i64(at + QUADS, n_quads)
    store_i64(at + FIRST, first)
    store_i64(at + TERMS, terms)
    store_i64(at + SUM, total)
    store_i64(at + SCALES, scales)
    store_i64(at + MINIMA, minima)
    store_i64(at + SUMS, sums)
    store_i64(at + VALUES, values)


@inner
def list_group(bits, terms, second, has_second, w, stride, i, addresses, values, values_2):
    """Lists a group's columns from number ``i`` on, filled up to a four with columns times 0."""
    start = i
    while bits != 0:
        at = first_one(bits)
        store_i64(addresses + 8 * i, w + at * stride)
        store_u8(values + i, load_u8(terms + at))
        if has_second:
            store_u8(values_2 + i, load_u8(second + at))
        bits &= bits - 1
        i += 1
    while (i - start) % 4 != 0:
        store_i64(addresses + 8 * i, load_i64(addresses + 8 * i - 8))
        store_u8(values + i, 0)
        store_u8(values_2 + i, 0)
        i += 1
    return i


@inner
def without_offset(terms, at):
    """Where a segment finds the scale of its terms and no offset, if another has counted that already; ``at``: 8 bytes
    for both."""
    store_i64(at, load_i64(terms + GROUP) & 0xFFFFFFFF)
    return at - GROUP


@inner
def list_parts(scratch, x, n_groups, cost, n_parts, first, last, w, stride, d, m, scale_stride, sums, part_bytes):
    """Lists the columns of the parts ``first`` to ``last - 1``: as many groups each as cost the same."""
    segments, addresses, values, values_2, masks = places(scratch, n_groups)
    rests = masks + 8 * n_groups
    left, second = load_i64(x), x + TILE_HEADER + STRIDE_1 * n_groups
    seen, i, n = 0, 0, 0
    for g in range(n_groups):
        bits = load_i64(masks + 8 * g)
        has_second = left > 0 and load_i64(second) == g
        if bits != 0:
            part = min(seen * n_parts // cost, n_parts - 1)
            if part >= first and part < last:
                terms = x + TILE_HEADER + STRIDE_1 * g
                wg, also = w + GROUP * g * stride, second + 8
                end = list_group(bits, terms, also, has_second, wg, stride, i, addresses, values, values_2)
                quads, total = (end - i) // 4, terms + GROUP + 12
                dg, to = d + g * scale_stride, sums + part * part_bytes
                mg = m + g * scale_stride if m != 0 else 0
                n_pieces = (quads + MOST_QUADS - 1) // MOST_QUADS
                for piece in range(n_pieces):
                    start, stop = share(quads, piece, n_pieces), share(quads, piece + 1, n_pieces)
                    at = segments + SEGMENT_BYTES * n
                    segment(at, stop - start, i + 4 * start, terms, total, dg, mg, to, values)
                    n += 1
                    total = scratch + ZERO_SUM
                    if has_second:
                        segment(at + SEGMENT_BYTES, stop - start, i + 4 * start, also, total, dg, mg, to, values_2)
                        n += 1
                    if piece == 0:
                        terms = without_offset(terms, rests + 16 * g)
                        also = without_offset(also, rests + 16 * g + 8) if has_second else also
                i = end
            seen += count_ones(bits) + FOLD
        if has_second:
            second += STRIDE_2
            left -= 1
    for j in range(COLUMN_AHEAD):
        store_i64(addresses + 8 * (i + j), w)
    store_i64(scratch + N_SEGMENTS, n)
