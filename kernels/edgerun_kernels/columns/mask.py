"""A copy of a quantised row, or of one with one scale, with its large inputs and 0 for the others; where one row runs.

How large an input is: |value| times what it is worth, the norm of its column. Every thread makes its own.
"""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Input
from ..ops.linear import input_address
from ..ops.math import ZERO
from ..ops.norm import SECOND, store_offsets
from ..record import GROUP, ROW_SCALES, TILE_HEADER, Skip, first_stride, second_stride
from ..simd.ops import (
    field,
    field_f64,
    fma,
    kept,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i64,
    max_f32,
    splat,
    splat_i32,
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
from .lists import ALL
from .skip import kept_address, lists_address, policy

STRIDE_1, STRIDE_2 = first_stride(1), second_stride(1)
LOOKED_AT = 24
"""Groups, about, of which the limit for a share is found: more would make it no better."""
STEPS, NARROWEST = 10, np.float32(1e-4)
"""Halvings, on a scale of octaves, of the range from the largest size down to this part of it."""
FIRST_LOOK = 6
"""Groups, about, that are looked at first."""
HEADER = 64
"""Of a thread's scratch; see ``lists``."""
SCALE, OFFSET, SUM = GROUP, GROUP + 4, GROUP + 12
ONE = np.int32(1)


@inner
def group_values(terms, second):
    """Of a group of a quantised row, whose second terms lie at ``second`` (0: it has none): 16 values and 16."""
    u, v = to_float(load_i8x16(terms)), to_float(load_i8x16(terms + 16))
    if second != 0:
        part = splat(np.float32(1) / SECOND)
        u = fma(to_float(load_i8x16(second + 8)), part, u)
        v = fma(to_float(load_i8x16(second + 24)), part, v)
    scale = splat(load_f32(terms + SCALE))
    return u * scale, v * scale


@inner
def store_terms(y, p, q, scale):
    """A group's terms and what goes with them; their sum."""
    store_low_bytes(y, p)
    store_low_bytes(y + 16, q)
    low, high = sum_i32(p), sum_i32(q)
    store_f32(y + SCALE, scale)
    store_offsets(y + OFFSET, 1, low, high)
    return low + high


@inner
def sizes(x, n_groups, worth, to):
    """Writes the inputs' sizes, float32; gives their largest and their root mean square."""
    left, second = load_i64(x), x + TILE_HEADER + STRIDE_1 * n_groups
    largest, total = splat(ZERO), splat(ZERO)
    for g in range(n_groups):
        has_second = left > 0 and load_i64(second) == g
        u, v = group_values(x + TILE_HEADER + STRIDE_1 * g, second if has_second else 0)
        if has_second:
            second += STRIDE_2
            left -= 1
        u = vabs(u * load_f32x16(worth + 4 * GROUP * g))
        v = vabs(v * load_f32x16(worth + 4 * GROUP * g + 64))
        store_f32x16(to + 4 * GROUP * g, u)
        store_f32x16(to + 4 * GROUP * g + 64, v)
        largest = vmax(vmax(u, v), largest)
        total = fma(v, v, fma(u, u, total))
    return max_f32(largest), sqrt(sum_f32(total) / np.float32(GROUP * n_groups))


@inner
def limit_for(share, largest, n_groups, k, size):
    """What at most about a ``share`` of the sizes is above."""
    step = max(n_groups // LOOKED_AT, 1)
    looked_at = min((n_groups + step - 1) // step * GROUP, k)
    wanted = np.int64(share * looked_at + 0.5)
    low, high = largest * NARROWEST, largest
    for _ in range(STEPS):
        middle = sqrt(low) * sqrt(high)
        at, count = splat(middle), zero_i32()
        for g in range(0, n_groups, step):
            count = count + kept(splat_i32(ONE), load_f32x16(size + 4 * GROUP * g), at)
            count = count + kept(splat_i32(ONE), load_f32x16(size + 4 * GROUP * g + 64), at)
        if sum_i32(count) > wanted:
            low = middle
        else:
            high = middle
    return high


@inner
def keep_group(terms, y, size, limit):
    """The terms of a group whose size is at least the limit, else 0, and what goes with them; their sum."""
    p = kept(load_i8x16(terms), load_f32x16(size), limit)
    q = kept(load_i8x16(terms + 16), load_f32x16(size + 64), limit)
    return store_terms(y, p, q, load_f32(terms + SCALE))


@inner
def level(skip, largest, root, n_groups, k, size):
    """The least size that is kept."""
    share = field_f64(skip, Skip.SHARE)
    if share != 0:
        return limit_for(share, largest, n_groups, k, size)
    return np.float32(field_f64(skip, Skip.THRESHOLD)) * root


@inner
def too_many(skip, scratch, n_groups, limit):
    """Whether more than MOST sizes are at least the limit, so that no input is to be left out; it is written down."""
    size, count = scratch + HEADER, zero_i32()
    for i in range(0, GROUP * n_groups, 16):
        count = count + kept(splat_i32(ONE), load_f32x16(size + 4 * i), limit)
    found = sum_i32(count) > field(skip, Skip.MOST)
    store_i64(scratch + ALL, 1 if found else 0)
    return found


def _first_look(group):
    """``wants_all(skip, x, n_groups, k)``: whether a first look says that a row wants more than MOST columns, by a
    tenth of all and more. It spares what inputs are worth, which comes from memory and takes longer than the
    arithmetic: large is measured by the inputs themselves, and counted in some groups. ``group(x, g)``: the values of
    one."""

    @inner
    def wants_all(skip, x, n_groups, k):
        step = n_groups // FIRST_LOOK
        if step < 2 or field_f64(skip, Skip.SHARE) != 0:
            return False
        total = splat(ZERO)
        for g in range(n_groups):
            u, v = group(x, g)
            total = fma(v, v, fma(u, u, total))
        root = sqrt(sum_f32(total) / np.float32(GROUP * n_groups))
        limit, count, seen = splat(np.float32(field_f64(skip, Skip.THRESHOLD)) * root), zero_i32(), 0
        for g in range(0, n_groups, step):
            (u, v), worth = group(x, g), field(skip, Skip.WORTH) + 4 * GROUP * g
            count = count + kept(splat_i32(ONE), vabs(u * load_f32x16(worth)), limit)
            count = count + kept(splat_i32(ONE), vabs(v * load_f32x16(worth + 64)), limit)
            seen += GROUP
        return 10 * k * sum_i32(count) > (10 * field(skip, Skip.MOST) + k) * seen

    return wants_all


@inner
def first_terms(x, g):
    return group_values(x + TILE_HEADER + STRIDE_1 * g, 0)


@inner
def row_values(x, g):
    at = x + TILE_HEADER + GROUP * g
    return to_float(load_i8x16(at)), to_float(load_i8x16(at + 16))


wants_all, row_wants_all = _first_look(first_terms), _first_look(row_values)


@op_kernel
def keep_large(op, run, tid, n_threads):
    """Of the row at X of a projection with a policy, to the one at ROW: the inputs whose size is at least THRESHOLD
    times the sizes' root mean square, or with SHARE the largest ones, about that share of all; nothing where they are
    more than MOST. LISTS: a header, room for the sizes."""
    skip = policy(op, run)
    if skip == 0:
        return
    x, y, scratch = input_address(op, run, tid), kept_address(skip, run, tid), lists_address(skip, run, tid)
    size, k = scratch + HEADER, field(op, Input.K)
    n_groups = (k + GROUP - 1) // GROUP
    if wants_all(skip, x, n_groups, k):
        store_i64(scratch + ALL, 1)
        return
    largest, root = sizes(x, n_groups, field(skip, Skip.WORTH), size)
    limit = splat(level(skip, largest, root, n_groups, k, size))
    if too_many(skip, scratch, n_groups, limit):
        return
    store_i64(y, load_i64(x))
    moved, left, second = y - x, load_i64(x), x + TILE_HEADER + STRIDE_1 * n_groups
    for g in range(n_groups):
        terms = x + TILE_HEADER + STRIDE_1 * g
        value = np.float32(keep_group(terms, terms + moved, size + 4 * GROUP * g, limit))
        if left > 0 and load_i64(second) == g:
            store_i64(second + moved, g)
            value += np.float32(keep_group(second + 8, second + moved + 8, size + 4 * GROUP * g, limit)) / SECOND
            second += STRIDE_2
            left -= 1
        store_f32(terms + moved + SUM, load_f32(terms + SCALE) * value)


@inner
def row_sizes(x, n_groups, worth, to):
    """As ``sizes``, of a row with one scale, which does not matter: in its steps."""
    largest, total = splat(ZERO), splat(ZERO)
    for i in range(0, GROUP * n_groups, 16):
        u = vabs(to_float(load_i8x16(x + TILE_HEADER + i)) * load_f32x16(worth + 4 * i))
        store_f32x16(to + 4 * i, u)
        largest = vmax(u, largest)
        total = fma(u, u, total)
    return max_f32(largest), sqrt(sum_f32(total) / np.float32(GROUP * n_groups))


@op_kernel
def keep_large_row(op, run, tid, n_threads):
    """``keep_large`` of a row with one scale."""
    skip = policy(op, run)
    if skip == 0:
        return
    x, y, scratch = input_address(op, run, tid), kept_address(skip, run, tid), lists_address(skip, run, tid)
    size, k = scratch + HEADER, field(op, Input.K)
    n_groups = (k + GROUP - 1) // GROUP
    if row_wants_all(skip, x, n_groups, k):
        store_i64(scratch + ALL, 1)
        return
    largest, root = row_sizes(x, n_groups, field(skip, Skip.WORTH), size)
    limit, total = splat(level(skip, largest, root, n_groups, k, size)), zero_i32()
    if too_many(skip, scratch, n_groups, limit):
        return
    for i in range(0, GROUP * n_groups, 16):
        terms = kept(load_i8x16(x + TILE_HEADER + i), load_f32x16(size + 4 * i), limit)
        store_low_bytes(y + TILE_HEADER + i, terms)
        total = total + terms
    store_i32(y, -sum_i32(total))
    store_f32(y + ROW_SCALES, load_f32(x + ROW_SCALES))
