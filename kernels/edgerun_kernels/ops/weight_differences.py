"""Sparse deltas of variants: y += (S x) * scale, behind the base's linear layers and embedding, for the rows of the
sequences that have one.

Codes lie as ``edgerun.variants.coding`` says: 16 weight rows interleaved, a step holding one element of each. With
windows, a step's inputs lie in a few registers, of which a permutation takes one for each row: on AVX-512 a quarter
of a cycle an element, where gathering them from memory takes more than one. With gaps there is nothing else.

Threads share blocks of 16 rows as linear layers do, so that each adds to what it has just written itself and nobody
waits. Several rows go four by four; one row takes four blocks side by side where windows are many registers, so that
these are loaded once for four; where they are two, codes are read in the order in which they lie, which memory gives
faster. Each output is summed up in the same order, so its bits depend neither on threads nor on the rows beside it.
"""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Head, Input, Linear, Matrix
from ..record import ROWS, Run, Sequence, Site, Term
from ..simd.ops import (
    extract,
    field,
    field_f64,
    fma,
    gather,
    int4_to_float,
    load_bf16x16,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i32,
    load_i64,
    load_u8,
    load_u8x16,
    prefetch,
    shift_right,
    splat,
    store_f32,
    store_f32x16,
    to_float,
    window_32,
    window_64,
    window_128,
    zero_i32,
)
from .embed import signed
from .linear import output_address
from .math import ZERO, share
from .sequences import rows_of, sequence_at, site_of

AHEAD = 4096
"""Bytes by which prefetching runs before the loads of codes and of scales, which follow them in a file: together they
sweep all of it."""
TERMS_AT, TERM_BYTES = 8 * int(Site.TERMS), 8 * int(Term.COUNT)
UNIT_8, UNIT_4 = 32, 48
"""Bytes of a unit: one step of 8-bit values, two steps of 4-bit ones."""


@inner
def values_8(w):
    return to_float(load_i8x16(w + 16))


@inner
def values_4(w):
    """Those of both steps."""
    packed = load_u8x16(w + 32)
    return int4_to_float(packed), int4_to_float(shift_right(packed, 4))


@inner
def unit_bytes(bits):
    return UNIT_4 if bits == 4 else UNIT_8


@inner
def add_to(term, y, block, acc):
    """Adds the sums of a block's rows, scaled, to the outputs."""
    scales = field(term, Term.D) + 32 * block
    prefetch(scales + AHEAD)
    scale = load_bf16x16(scales) * splat(np.float32(field_f64(term, Term.SCALE)))
    address = y + 64 * block
    store_f32x16(address, fma(acc, scale, load_f32x16(address)))


# --- windows ----------------------------------------------------------------------------------------------------------


def _windows(look, bits):
    """``(block, blocks, rows)``: one block by one row, four blocks by one row, and one block by four rows."""

    @inner
    def block_8(w, x, step_bytes, n_steps):
        acc = splat(ZERO)
        for _ in range(n_steps):
            prefetch(w + AHEAD)
            acc = fma(look(x, load_u8x16(w)), values_8(w), acc)
            w += UNIT_8
            x += step_bytes
        return acc

    @inner
    def blocks_8(w, others, x, step_bytes, n_steps):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for _ in range(n_steps):
            prefetch(w + AHEAD)
            prefetch(w + others[1] + AHEAD)
            a = fma(look(x, load_u8x16(w)), values_8(w), a)
            b = fma(look(x, load_u8x16(w + others[0])), values_8(w + others[0]), b)
            c = fma(look(x, load_u8x16(w + others[1])), values_8(w + others[1]), c)
            d = fma(look(x, load_u8x16(w + others[2])), values_8(w + others[2]), d)
            w += UNIT_8
            x += step_bytes
        return a, b, c, d

    @inner
    def rows_8(w, x, others, step_bytes, n_steps):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for _ in range(n_steps):
            at, v = load_u8x16(w), values_8(w)
            a = fma(look(x, at), v, a)
            b = fma(look(x + others[0], at), v, b)
            c = fma(look(x + others[1], at), v, c)
            d = fma(look(x + others[2], at), v, d)
            w += UNIT_8
            x += step_bytes
        return a, b, c, d

    @inner
    def pair(w, x, step_bytes, acc):
        prefetch(w + AHEAD)
        u, v = values_4(w)
        return fma(look(x + step_bytes, load_u8x16(w + 16)), v, fma(look(x, load_u8x16(w)), u, acc))

    @inner
    def single(w, x, acc):
        u, _ = values_4(w)
        return fma(look(x, load_u8x16(w)), u, acc)

    @inner
    def block_4(w, x, step_bytes, n_steps):
        acc = splat(ZERO)
        for _ in range(n_steps // 2):
            acc = pair(w, x, step_bytes, acc)
            w += UNIT_4
            x += 2 * step_bytes
        return single(w, x, acc) if n_steps % 2 == 1 else acc

    @inner
    def blocks_4(w, others, x, step_bytes, n_steps):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for _ in range(n_steps // 2):
            a = pair(w, x, step_bytes, a)
            b = pair(w + others[0], x, step_bytes, b)
            c = pair(w + others[1], x, step_bytes, c)
            d = pair(w + others[2], x, step_bytes, d)
            w += UNIT_4
            x += 2 * step_bytes
        if n_steps % 2 == 1:
            a = single(w, x, a)
            b = single(w + others[0], x, b)
            c = single(w + others[1], x, c)
            d = single(w + others[2], x, d)
        return a, b, c, d

    @inner
    def rows_4(w, x, others, step_bytes, n_steps):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(n_steps):
            u, v = values_4(w)
            at = load_u8x16(w + 16 * (i % 2))
            if i % 2 == 1:
                u = v
                w += UNIT_4
            a = fma(look(x, at), u, a)
            b = fma(look(x + others[0], at), u, b)
            c = fma(look(x + others[1], at), u, c)
            d = fma(look(x + others[2], at), u, d)
            x += step_bytes
        return a, b, c, d

    return (block_4, blocks_4, rows_4) if bits == 4 else (block_8, blocks_8, rows_8)


def _in_windows(look, bits):
    """The kernel for one size of windows and of values."""
    one_block, four_blocks, four_rows = _windows(look, bits)
    in_order = look is window_32
    per_unit, unit = (2, UNIT_4) if bits == 4 else (1, UNIT_8)

    @inner
    def kernel(term, op, rows, x0, y0, first, last):
        window = field(term, Term.WINDOW)
        n_steps = (field(op, Input.K) + window - 1) // window
        stride = (n_steps + per_unit - 1) // per_unit * unit
        w0 = field(term, Term.W)
        if rows == 1 and in_order:
            for block in range(first, last):
                add_to(term, y0, block, one_block(w0 + block * stride, x0, 4 * window, n_steps))
            return
        if rows == 1:
            for block in range(first, last, 4):
                # Blocks past the end repeat the last one and are not stored.
                left = last - block - 1
                others = (min(1, left) * stride, min(2, left) * stride, min(3, left) * stride)
                a, b, c, d = four_blocks(w0 + block * stride, others, x0, 4 * window, n_steps)
                add_to(term, y0, block, a)
                if left > 0:
                    add_to(term, y0, block + 1, b)
                if left > 1:
                    add_to(term, y0, block + 2, c)
                if left > 2:
                    add_to(term, y0, block + 3, d)
            return
        x_stride, y_stride = field(op, Linear.INPUT_STRIDE), field(op, Head.Y_STRIDE)
        for block in range(first, last):
            for row in range(0, rows, 4):
                left = rows - row - 1
                others = (min(1, left) * x_stride, min(2, left) * x_stride, min(3, left) * x_stride)
                a, b, c, d = four_rows(w0 + block * stride, x0 + row * x_stride, others, 4 * window, n_steps)
                y = y0 + row * y_stride
                add_to(term, y, block, a)
                if left > 0:
                    add_to(term, y + y_stride, block, b)
                if left > 1:
                    add_to(term, y + 2 * y_stride, block, c)
                if left > 2:
                    add_to(term, y + 3 * y_stride, block, d)

    return kernel


small_4, medium_4, large_4 = (_in_windows(look, 4) for look in (window_32, window_64, window_128))
small_8, medium_8, large_8 = (_in_windows(look, 8) for look in (window_32, window_64, window_128))


# --- gaps -------------------------------------------------------------------------------------------------------------


@inner
def one_in_gaps(w, n_units, bits, x):
    """A block by one row."""
    at, acc = zero_i32(), splat(ZERO)
    for _ in range(n_units):
        at = at + load_u8x16(w)
        if bits == 8:
            acc = fma(gather(x, at), values_8(w), acc)
            w += UNIT_8
        else:
            u, v = values_4(w)
            acc = fma(gather(x, at), u, acc)
            at = at + load_u8x16(w + 16)
            acc = fma(gather(x, at), v, acc)
            w += UNIT_4
    return acc


@inner
def in_gaps(term, op, rows, x0, y0, first, last):
    bits, starts = field(term, Term.BITS), field(term, Term.M)
    x_stride, y_stride = field(op, Linear.INPUT_STRIDE), field(op, Head.Y_STRIDE)
    for block in range(first, last):
        start = np.int64(load_i32(starts + 4 * block))
        n_units = np.int64(load_i32(starts + 4 * block + 4)) - start
        w = field(term, Term.W) + start * unit_bytes(bits)
        for row in range(rows):
            add_to(term, y0 + row * y_stride, block, one_in_gaps(w, n_units, bits, x0 + row * x_stride))


# --- behind an op -----------------------------------------------------------------------------------------------------


@inner
def product(term, op, rows, x, y, first, last):
    """y += (S x) * SCALE, blocks ``first`` to ``last - 1``; x float32, of which WINDOW_BYTES may be read behind the
    last row."""
    window, bits = field(term, Term.WINDOW), field(term, Term.BITS)
    if window == 0:
        in_gaps(term, op, rows, x, y, first, last)
    elif bits == 4:
        if window <= 32:
            small_4(term, op, rows, x, y, first, last)
        elif window <= 64:
            medium_4(term, op, rows, x, y, first, last)
        else:
            large_4(term, op, rows, x, y, first, last)
    elif window <= 32:
        small_8(term, op, rows, x, y, first, last)
    elif window <= 64:
        medium_8(term, op, rows, x, y, first, last)
    else:
        large_8(term, op, rows, x, y, first, last)


@inner
def add_row(term, k, token, y):
    """One row of the matrix, scaled, to float32 [k] at y."""
    window, bits = field(term, Term.WINDOW), field(term, Term.BITS)
    block, lane = token // ROWS, token % ROWS
    scale = extract(load_bf16x16(field(term, Term.D) + 32 * block), lane) * np.float32(field_f64(term, Term.SCALE))
    per_unit = 2 if bits == 4 else 1
    if window == 0:
        starts = field(term, Term.M) + 4 * block
        start, end = np.int64(load_i32(starts)), np.int64(load_i32(starts + 4))
        n_steps = (end - start) * per_unit
    else:
        n_steps = (k + window - 1) // window
        start = block * ((n_steps + per_unit - 1) // per_unit)
    w = field(term, Term.W) + start * unit_bytes(bits) + lane
    column = 0
    for i in range(n_steps):
        column += np.int64(load_u8(w + 16 * (i % per_unit)))
        if bits == 4:
            packed = np.int64(load_u8(w + 32)) << 4 >> 4 * (i % 2) & 0xF0
            value = signed(packed) >> 4
        else:
            value = signed(np.int64(load_u8(w + 16)))
        at = y + 4 * column
        store_f32(at, load_f32(at) + np.float32(value) * scale)
        if window != 0:
            column = (i + 1) * window
        if i % per_unit == per_unit - 1:
            w += unit_bytes(bits)


@inner
def add_bias(op, site, rows, y, first, last):
    """What a variant adds to the outputs, whatever the input."""
    bias, stride = field(site, Site.BIAS), field(op, Head.Y_STRIDE)
    if bias != 0:
        for row in range(rows):
            for block in range(first, last):
                at = y + row * stride + 64 * block
                store_f32x16(at, load_f32x16(at) + load_f32x16(bias + 64 * block))


@op_kernel
def variant_linear(op, run, tid, n_threads):
    """Behind a linear layer: what the variants of the sequences do to its outputs, whose blocks of 16 features threads
    have shared out as here. Neighbours with one variant go through its weights together."""
    n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
    begin, end = share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)
    x0, y0 = field(run, Run.ARENA) + field(op, Linear.INPUT), output_address(op, run)
    if field(run, Run.N_ROWS) == 1:
        x0 += tid * field(op, Linear.INPUT_PRIVATE)
    index, count = 0, field(run, Run.N_SEQUENCES)
    while index < count:
        sequence = sequence_at(run, index)
        first, last = rows_of(op, sequence)
        index += 1
        while index < count and field(sequence_at(run, index), Sequence.VARIANT) == field(sequence, Sequence.VARIANT):
            _, last = rows_of(op, sequence_at(run, index))
            index += 1
        site = site_of(op, sequence)
        if site != 0 and first < last:
            x, y = x0 + first * field(op, Linear.INPUT_STRIDE), y0 + first * field(op, Head.Y_STRIDE)
            add_bias(op, site, last - first, y, begin, end)
            for i in range(field(site, Site.N_TERMS)):
                product(site + TERMS_AT + TERM_BYTES * i, op, last - first, x, y, begin, end)


@op_kernel
def variant_embed(op, run, tid, n_threads):
    """Behind an embedding: the tokens' rows of the sparse deltas; token ids have been checked."""
    y, stride = field(run, Run.ARENA) + field(op, Head.Y), field(op, Head.Y_STRIDE)
    rows, k = field(run, Run.N_ROWS), field(op, Input.K)
    begin, end = share(rows, tid, n_threads), share(rows, tid + 1, n_threads)
    for index in range(field(run, Run.N_SEQUENCES)):
        sequence = sequence_at(run, index)
        first, last = rows_of(op, sequence)
        site = site_of(op, sequence)
        if site != 0:
            for row in range(max(first, begin), min(last, end)):
                token = load_i64(field(run, Run.TOKENS) + 8 * row)
                for i in range(field(site, Site.N_TERMS)):
                    add_row(site + TERMS_AT + TERM_BYTES * i, k, token, y + row * stride)
