"""The arithmetic of linear layers, one weight format after another: a tile of rows by blocks of 16 weight rows.

How weights lie is said in ``edgerun.package.layout``, how activations lie in ``record``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..kernel import inner
from ..record import GROUP, ROW_SCALES, SUPER_GROUPS, first_stride, second_stride
from ..record import TILE_HEADER as HEADER
from ..simd.ops import dot_i8_bias, dot_u4_takes_u8, load_f32, load_i64, prefetch, prefetch_far, prefetch_once
from ..simd.tiles import Tile

MOST_GROUPS = 16384
"""Of ternary weights whose sums times 64 fit in 32 bits: 32 columns of products up to 2 * 127, a quarter of them."""
MINUS_EIGHT, MINUS_32, MINUS_128 = 0, 2, 4
"""Shifts that make of -8 * sum what a weight's offset adds up to."""


class Fetch(NamedTuple):
    """How weights are prefetched. line: the instruction. ahead, scales: bytes by which it runs before the loads, for
    weights and for their scales; 0: it goes through the blocks that follow the tile's, in the order in which they
    lie."""

    line: Any
    ahead: int
    scales: int


ONCE, ONE_BLOCK, TWO_BLOCKS = Fetch(prefetch_once, 4096, 512), Fetch(prefetch, 4096, 512), Fetch(prefetch_far, 0, 0)
"""For one row, and for tiles of rows. Two blocks side by side are two places in memory: where each is fetched shortly
before its loads, what is fetched for one is the other, or comes too late."""


class Format(NamedTuple):
    """What differs between weight formats.

    products: ``(tile, fetch) -> kernel`` of a tile of outputs (see ``_grouped``); fetch: a Fetch, or None. group_bytes:
    of weights, 16 rows by 32 columns. d_groups: groups that share a scale, 0: all. half_d, half_m: bytes from the
    scales, minima or factors of rows 0..7 to those of rows 8..15. fetch: how weights are prefetched for one
    row; None: by the hardware alone. streams: places of the weights, far from each other, that one row reads in turns.
    Both as measured at the memory's speed: from lines that lie in the order of their use, in streams enough for the
    arithmetic between them, the hardware fetches a seventh (q8, ternary, q4) to two fifths (q6k) faster than any
    instruction; with scales and minima beside short rows it does not keep up (q4m).
    """

    products: Callable[[Tile, Any], Any]
    group_bytes: int
    d_groups: int = 1
    half_d: int = 16
    half_m: int = 16
    fetch: Fetch | None = None
    streams: int = 1


# --- how a group of 32 columns is multiplied --------------------------------------------------------------------------
#
# one: (w, stride, m, m_stride, x, offsets) -> integer sums; two: the same for two inputs, unpacking the weights once.


def _twice(multiply):
    """``(one, two)`` for weights that need no unpacking."""

    @inner
    def two(w, stride, m, m_stride, x, offsets, x_2, offsets_2):
        return multiply(w, stride, m, m_stride, x, offsets), multiply(w, stride, m, m_stride, x_2, offsets_2)

    return multiply, two


def _q4(tile, offset):
    """offset: the shift for weights that count from -8, None from 0."""
    load, low, high, dot_twice = tile.load(), tile.bits(0, 4), tile.bits(4, 4), tile.dot_twice()
    starts, begin, end = tile.starts(offset), tile.begin(), tile.end()

    @inner
    def multiply(w, stride, m, m_stride, x, offsets):
        start = starts(offsets)
        sums = begin(start)
        for c in range(4):
            bytes_ = load(w + 64 * c, stride)
            sums = dot_twice(sums, low(bytes_), high(bytes_), x + 8 * c)
        return end(sums, start)

    return _twice(multiply)


def _q8(tile):
    """Some ISAs count int8 weights from -128."""
    load, dot = tile.load(), tile.dot("dot_i8")
    from_zero, from_bias = tile.starts(None), tile.starts(MINUS_128)

    @inner
    def multiply(w, stride, m, m_stride, x, offsets):
        sums = from_bias(offsets) if dot_i8_bias() != 0 else from_zero(offsets)
        for c in range(8):
            sums = dot(sums, load(w + 64 * c, stride), x + 4 * c)
        return sums

    return _twice(multiply)


def _q6k(tile):
    """Each half of the group has an int8 factor, in 16 bytes at ``m`` and the next 16. Codes of 6 bits are unsigned
    where the dot product takes them, else counted from -32."""
    load, starts = tile.load(), tile.starts(MINUS_32)
    add, subtract, times, from_zero = tile.add(), tile.subtract(), tile.times_bytes(), tile.starts(None)
    unsigned, signed = (
        (tile.dot(name), *(tile.six_bits(quad, less) for quad in range(4)))
        for name, less in (("dot_u4", 0), ("dot_i8", 32))
    )
    half_offsets = 4 * tile.rows  # the offsets of the first 16 columns follow those of all 32

    def sixteen(how, inputs):
        """Adds the products of 16 columns with one or two inputs to their sums."""
        dot, first, second, third, fourth = how

        @inner
        def one(sums, w, stride, x):
            high, nibbles = load(w, stride), load(w + 64, stride)
            sums = dot(sums, first(nibbles, high), x)
            sums = dot(sums, second(nibbles, high), x + 4)
            nibbles = load(w + 128, stride)
            sums = dot(sums, third(nibbles, high), x + 8)
            return dot(sums, fourth(nibbles, high), x + 12)

        @inner
        def two(sums, sums_2, w, stride, x, x_2):
            high, nibbles = load(w, stride), load(w + 64, stride)
            a, b = first(nibbles, high), second(nibbles, high)
            nibbles = load(w + 128, stride)
            c, d = third(nibbles, high), fourth(nibbles, high)
            sums = dot(dot(dot(dot(sums, a, x), b, x + 4), c, x + 8), d, x + 12)
            sums_2 = dot(dot(dot(dot(sums_2, a, x_2), b, x_2 + 4), c, x_2 + 8), d, x_2 + 12)
            return sums, sums_2

        return one if inputs == 1 else two

    one_unsigned, one_signed = sixteen(unsigned, 1), sixteen(signed, 1)
    two_unsigned, two_signed = sixteen(unsigned, 2), sixteen(signed, 2)

    @inner
    def half_starts(offsets):
        """Where the sums of both halves start."""
        if dot_u4_takes_u8() != 0:
            low = starts(offsets + half_offsets)
            return low, subtract(starts(offsets), low)
        return from_zero(offsets), from_zero(offsets)

    @inner
    def scaled(low, high, m, m_stride):
        return add(times(low, m, m_stride), times(high, m + 16, m_stride))

    @inner
    def one(w, stride, m, m_stride, x, offsets):
        low, high = half_starts(offsets)
        if dot_u4_takes_u8() != 0:
            low = one_unsigned(low, w, stride, x)
            high = one_unsigned(high, w + 192, stride, x + 16)
        else:
            low = one_signed(low, w, stride, x)
            high = one_signed(high, w + 192, stride, x + 16)
        return scaled(low, high, m, m_stride)

    @inner
    def two(w, stride, m, m_stride, x, offsets, x_2, offsets_2):
        low, high = half_starts(offsets)
        low_2, high_2 = half_starts(offsets_2)
        if dot_u4_takes_u8() != 0:
            low, low_2 = two_unsigned(low, low_2, w, stride, x, x_2)
            high, high_2 = two_unsigned(high, high_2, w + 192, stride, x + 16, x_2 + 16)
        else:
            low, low_2 = two_signed(low, low_2, w, stride, x, x_2)
            high, high_2 = two_signed(high, high_2, w + 192, stride, x + 16, x_2 + 16)
        return scaled(low, high, m, m_stride), scaled(low_2, high_2, m, m_stride)

    return one, two


# --- tiles of outputs -------------------------------------------------------------------------------------------------


def _grouped(tile, fetch, how, group_bytes, d_groups, has_m, has_minimum):
    """``products(w, d, m, stride, d_stride, m_stride, x, n_groups, out)``: a tile of outputs, stored 64 bytes apart.

    Strides are bytes from block to block. A group's second terms are multiplied right after its first: the weights are
    still in the cache.
    """
    one, two = how
    zero, load_scales = tile.zero(), tile.load_floats("f16")
    add_scaled, add_outer, store = tile.add_scaled(), tile.add_outer(), tile.store()
    rows, blocks = tile.rows, tile.blocks
    fetches, (fetch_line, ahead, scales_ahead) = fetch is not None, fetch or ONCE
    stride_1, stride_2 = first_stride(rows), second_stride(rows)
    scales, offsets, sums_1 = GROUP * rows, (GROUP + 4) * rows, (GROUP + 12) * rows

    @inner
    def fetch_near(w, d, m, stride, d_stride, m_stride, g):
        for block in range(blocks):
            for line in range(0, group_bytes, 64):
                fetch_line(w + block * stride + group_bytes * g + ahead + line)
            if d_groups == 1:
                fetch_line(d + block * d_stride + 32 * g + scales_ahead)
            if has_m:
                fetch_line(m + block * m_stride + 32 * g + scales_ahead)

    @inner
    def fetch_next(w, d, m, stride, d_stride, m_stride, g):
        for line in range(0, blocks * group_bytes, 64):
            fetch_line(w + blocks * (stride + group_bytes * g) + line)
        if d_groups == 1:
            fetch_line(d + blocks * (d_stride + 32 * g))
        if has_m:
            fetch_line(m + blocks * (m_stride + 32 * g))

    fetch_group = fetch_near if ahead else fetch_next

    @inner
    def next_second(second, left):
        return load_i64(second) if left > 0 else -1

    @inner
    def products(w, d, m, stride, d_stride, m_stride, x, n_groups, out):
        acc = zero()
        left, second = load_i64(x), x + HEADER + stride_1 * n_groups
        following = next_second(second, left)
        for g in range(n_groups):
            wg, dg, mg = w + group_bytes * g, d + 32 * (g // d_groups), m + 32 * g
            if fetches:
                fetch_group(w, d, m, stride, d_stride, m_stride, g)
            first, scale = x + HEADER + stride_1 * g, load_scales(dg, d_stride)
            if g == following:
                terms = second + 8
                sums, sums_2 = two(wg, stride, mg, m_stride, first, first + offsets, terms, terms + offsets)
                acc = add_scaled(add_scaled(acc, sums, scale, first + scales), sums_2, scale, terms + scales)
                left -= 1
                second += stride_2
                following = next_second(second, left)
            else:
                sums = one(wg, stride, mg, m_stride, first, first + offsets)
                acc = add_scaled(acc, sums, scale, first + scales)
            if has_minimum:
                acc = add_outer(acc, load_scales(mg, m_stride), first + sums_1)
        store(out, acc)

    return products


def _ternary(tile, fetch):
    """As ``_grouped``, for weights 0, 1, 2 that stand for -1, 0, 1 and one scale in all: integer sums over all columns,
    exact."""
    load, dot, starts, begin, end = tile.load(), tile.dot("dot_u4"), tile.starts(0), tile.begin(), tile.end()
    dot_twice = tile.dot_twice()
    none, add, splat = tile.starts(None), tile.add(), tile.splat()
    zero, add_scaled, store = tile.zero(), tile.add_scaled(), tile.store()
    first, second, third, fourth = (tile.bits(2 * i, 2) for i in range(4))
    times_4, times_16, times_64 = (tile.masked(3 << 2 * i) for i in (1, 2, 3))
    by_4, by_16, by_64 = (tile.shift_right(2 * i) for i in (1, 2, 3))
    rows, blocks = tile.rows, tile.blocks
    fetches, (fetch_line, ahead, _) = fetch is not None, fetch or ONCE

    @inner
    def fetch_group(w, stride, g):
        for i in range(blocks):
            at = w + i * stride + 128 * g + ahead if ahead else w + blocks * (stride + 128 * g) + 128 * i
            fetch_line(at)
            fetch_line(at + 64)

    @inner
    def one_sum(w, stride, x, n_groups):
        acc = starts(x)
        for g in range(n_groups):
            wg, xg = w + 128 * g, x + HEADER + GROUP * rows * g
            if fetches:
                fetch_group(w, stride, g)
            sums = begin(acc)
            for half in range(2):
                trits, xh = load(wg + 64 * half, stride), xg + 16 * half
                sums = dot_twice(sums, first(trits), second(trits), xh)
                sums = dot_twice(sums, third(trits), fourth(trits), xh + 8)
            acc = end(sums, acc)
        return acc

    @inner
    def four_sums(w, stride, x, n_groups):
        """A sum for every two bits of a byte, so that none waits for another; the bits are not moved down, the sums are
        divided in the end."""
        a, b, c, d = starts(x), none(x), none(x), none(x)
        for g in range(n_groups):
            wg, xg = w + 128 * g, x + HEADER + GROUP * rows * g
            if fetches:
                fetch_group(w, stride, g)
            for half in range(2):
                trits, xh = load(wg + 64 * half, stride), xg + 16 * half
                a = dot(a, first(trits), xh)
                b = dot(b, times_4(trits), xh + 4)
                c = dot(c, times_16(trits), xh + 8)
                d = dot(d, times_64(trits), xh + 12)
        return add(add(a, by_4(b)), add(by_16(c), by_64(d)))

    @inner
    def products(w, d, m, stride, d_stride, m_stride, x, n_groups, out):
        if rows == 1 and n_groups <= MOST_GROUPS and dot_u4_takes_u8() != 0:
            total = four_sums(w, stride, x, n_groups)
        else:
            total = one_sum(w, stride, x, n_groups)
        store(out, add_scaled(zero(), total, splat(load_f32(d)), x + ROW_SCALES))

    return products


def _format(multiply, group_bytes, d_groups=1, has_m=False, has_minimum=False, **others):
    def products(tile, fetch):
        return _grouped(tile, fetch, multiply(tile), group_bytes, d_groups, has_m, has_minimum)

    return Format(products, group_bytes, d_groups, **others)


Q4 = _format(lambda tile: _q4(tile, MINUS_EIGHT), 256, streams=3)
Q4M = _format(lambda tile: _q4(tile, None), 256, has_m=True, has_minimum=True, fetch=ONCE)
Q8 = _format(_q8, 512)
Q6K = _format(_q6k, 384, d_groups=SUPER_GROUPS, has_m=True, half_m=8, streams=2)
TERNARY = Format(_ternary, 128, d_groups=0, half_d=0)


def q8_products(rows, blocks):
    """Products with q8 weights for another kernel (see ``_grouped``); registers must hold rows x blocks vectors."""
    return Q8.products(Tile(rows, blocks), None)
