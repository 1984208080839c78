"""Delta activations: what has changed of a quantised row since the values that were sent last.

A projection's state lies in the session: a header (STATE_HEADER), its inputs' references, int32 in units of a step that
is a power of two, and float64 sums of weights times references. Products of float16 scales, steps and integers are
multiples of 2**-24 steps, so sums below 2**29 steps are exact: nothing drifts, and no order of adding matters.

The state changes when a layer's outputs are joined; until then every thread finds the same in it.
"""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Input
from ..ops.linear import input_address
from ..ops.math import ZERO, share
from ..record import GROUP, STATE_HEADER, TILE_HEADER, Run, Skip
from ..simd.ops import (
    field,
    field_f64,
    fma,
    kept,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i32x16,
    load_i64,
    round_to_int,
    shift_right,
    splat,
    splat_i32,
    sqrt,
    store_f32,
    store_f32x16,
    store_i32x16,
    store_i64,
    sum_f32,
    sum_i32,
    to_float,
    vabs,
    vmax,
    vmin,
    zero_i32,
)
from .lists import ALL
from .mask import STRIDE_1, STRIDE_2, SUM, group_values, store_terms
from .skip import kept_address, lists_address, policy

HOLDS, REFRESHED, STEP, REST = 0, 8, 16, 32
"""In the state's header. At REST, for even and for odd positions: before which position nothing is looked for, and how
many positions that rest had. What is found at a position is written for the next, so no thread reads what another is
writing."""
AFRESH, NEW_STEP = 24, 32
"""In the header of a thread's scratch: whether everything is computed afresh, and the float32 step."""
LONGEST_REST = 15
"""Positions that multiply by all columns unseen, after too much has moved several times in a row (1, 3, 7, 15): looking
costs as much as a twentieth of a small layer."""
STEPS_A_ROOT = np.float32(32)
"""Steps that the root mean square of a row has when it is computed afresh; up to twice as many."""
FARTHEST, MOST = np.float32(1 << 21), np.float32(127 * 128)
"""Steps of a value, and of a change, at most: what is left of it is sent later."""
ONE, TWO = np.float32(1), np.float32(2)
SMALLEST, LARGEST = np.float32(1e-25), np.float32(1e25)
HIGH = 128
"""What a second term counts here."""


@inner
def state_address(skip, run):
    return field(run, Run.RUNNING) + field(skip, Skip.RUNNING)


@inner
def rests(skip, run):
    """Whether all columns are multiplied without a look at what has moved."""
    state, position = state_address(skip, run), field(run, Run.POSITION)
    return load_i64(state + HOLDS) != 0 and position < load_i64(state + REST + 16 * (position & 1))


@inner
def rest_after(skip, run, looked, chosen):
    """Writes, for the next position, how long to rest: as before where nothing was looked for, longer each time that
    too much had moved."""
    state, position = state_address(skip, run), field(run, Run.POSITION)
    now, later = state + REST + 16 * (position & 1), state + REST + 16 * ((position + 1) & 1)
    end, count = load_i64(now), load_i64(now + 8)
    if looked:
        count = 0 if chosen else min(2 * count + 1, LONGEST_REST)
        end = position + 1 + count
    store_i64(later, end)
    store_i64(later + 8, count)


@inner
def state_sums(k):
    return STATE_HEADER + 4 * ((k + GROUP - 1) // GROUP * GROUP)


@inner
def values(x, n_groups, worth, to):
    """Writes the row's values, float32; gives their root mean square, and that of what they are worth."""
    left, second = load_i64(x), x + TILE_HEADER + STRIDE_1 * n_groups
    total, worthy = splat(ZERO), splat(ZERO)
    for g in range(n_groups):
        has_second = left > 0 and load_i64(second) == g
        u, v = group_values(x + TILE_HEADER + STRIDE_1 * g, second if has_second else 0)
        if has_second:
            second += STRIDE_2
            left -= 1
        store_f32x16(to + 4 * GROUP * g, u)
        store_f32x16(to + 4 * GROUP * g + 64, v)
        total = fma(v, v, fma(u, u, total))
        u, v = u * load_f32x16(worth + 4 * GROUP * g), v * load_f32x16(worth + 4 * GROUP * g + 64)
        worthy = fma(v, v, fma(u, u, worthy))
    n = np.float32(GROUP * n_groups)
    return sqrt(sum_f32(total) / n), sqrt(sum_f32(worthy) / n)


@inner
def step_for(root):
    """The largest power of two of which the root mean square has STEPS_A_ROOT; 1 for rows of zeros and the like."""
    wanted = root / STEPS_A_ROOT
    step = ONE
    if wanted > SMALLEST and wanted < LARGEST:
        while step > wanted:
            step = step / TWO
        while step * TWO <= wanted:
            step = step * TWO
    return step


@inner
def change(value, inverse, reference, size, limit):
    """Steps from the references to the values, of lanes whose size is at least the limit; 0 elsewhere."""
    place = round_to_int(vmin(vmax(value * inverse, splat(-FARTHEST)), splat(FARTHEST)))
    steps = vmin(vmax(to_float(place - reference), splat(-MOST)), splat(MOST))
    return kept(round_to_int(steps), vabs(steps) * size, limit)


@inner
def high_part(steps):
    """Nearest 128ths of integers of up to MOST; what is left is in -64 .. 63."""
    up = splat_i32(np.int32(1 << 20))
    return shift_right(steps + splat_i32(np.int32(64)) + up, 7) - splat_i32(np.int32((1 << 20) // HIGH))


@op_kernel
def keep_changes(op, run, tid, n_threads):
    """To a quantised row at ROW, the changes of the one at X, of a projection with a policy, that are at least
    THRESHOLD times the root mean square of all that inputs are worth. A change is step * (first + 128 * second). Afresh
    where the state does not hold, or has for REFRESH positions. Nothing is written while it rests. LISTS: room for the
    values."""
    skip = policy(op, run)
    if skip == 0:
        return
    x, y, scratch = input_address(op, run, tid), kept_address(skip, run, tid), lists_address(skip, run, tid)
    resting = rests(skip, run)
    store_i64(scratch + ALL, 1 if resting else 0)
    if resting:
        return
    state, worth, value = state_address(skip, run), field(skip, Skip.WORTH), scratch + STATE_HEADER
    n_groups = (field(op, Input.K) + GROUP - 1) // GROUP
    since, longest = field(run, Run.POSITION) - load_i64(state + REFRESHED), field(skip, Skip.REFRESH)
    afresh = load_i64(state + HOLDS) == 0 or (longest > 0 and since >= longest)
    root, worthy = values(x, n_groups, worth, value)
    if afresh:
        step, level = step_for(root), ZERO
    else:
        step, level = load_f32(state + STEP), np.float32(field_f64(skip, Skip.THRESHOLD)) * worthy
    store_i64(scratch + AFRESH, 1 if afresh else 0)
    store_f32(scratch + NEW_STEP, step)
    limit, by_step, inverse = splat(level), splat(step), splat(ONE / step)
    hundred = splat_i32(np.int32(HIGH))
    second, n_second = y + TILE_HEADER + STRIDE_1 * n_groups, 0
    for g in range(n_groups):
        at, terms = 4 * GROUP * g, y + TILE_HEADER + STRIDE_1 * g
        r, s = zero_i32(), zero_i32()
        if not afresh:
            r, s = load_i32x16(state + STATE_HEADER + at), load_i32x16(state + STATE_HEADER + at + 64)
        p = change(load_f32x16(value + at), inverse, r, by_step * load_f32x16(worth + at), limit)
        q = change(load_f32x16(value + at + 64), inverse, s, by_step * load_f32x16(worth + at + 64), limit)
        p_high, q_high = high_part(p), high_part(q)
        total = store_terms(terms, p - p_high * hundred, q - q_high * hundred, step)
        if sum_i32(p_high * p_high + q_high * q_high) != 0:
            store_i64(second, g)
            total += store_terms(second + 8, p_high, q_high, step * np.float32(HIGH)) * np.int32(HIGH)
            second += STRIDE_2
            n_second += 1
        store_f32(terms + SUM, step * np.float32(total))
    store_i64(y, n_second)


@inner
def take_changes(skip, run, k, tid, n_threads):
    """Adds a row of changes to the references of ``k`` inputs, or makes it them; a thread takes its share of the
    groups."""
    changes, scratch, state = kept_address(skip, run, tid), lists_address(skip, run, tid), state_address(skip, run)
    n_groups = (k + GROUP - 1) // GROUP
    afresh = load_i64(scratch + AFRESH) != 0
    begin, end = share(n_groups, tid, n_threads), share(n_groups, tid + 1, n_threads)
    for g in range(begin, end):
        terms, to = changes + TILE_HEADER + STRIDE_1 * g, state + STATE_HEADER + 4 * GROUP * g
        p, q = load_i8x16(terms), load_i8x16(terms + 16)
        if not afresh:
            p, q = p + load_i32x16(to), q + load_i32x16(to + 64)
        store_i32x16(to, p)
        store_i32x16(to + 64, q)
    hundred, second = splat_i32(np.int32(HIGH)), changes + TILE_HEADER + STRIDE_1 * n_groups
    for _ in range(load_i64(changes)):
        g = load_i64(second)
        if g >= begin and g < end:
            to = state + STATE_HEADER + 4 * GROUP * g
            store_i32x16(to, load_i32x16(to) + load_i8x16(second + 8) * hundred)
            store_i32x16(to + 64, load_i32x16(to + 64) + load_i8x16(second + 24) * hundred)
        second += STRIDE_2
    if tid == 0 and afresh:
        store_i64(state + HOLDS, 1)
        store_i64(state + REFRESHED, field(run, Run.POSITION))
        store_f32(state + STEP, load_f32(scratch + NEW_STEP))
