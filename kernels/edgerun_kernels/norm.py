"""RMS normalisation and the quantisation of activations to int8 in groups of 32."""

import numpy as np

from .kernel import inner, op_kernel
from .linear import input_address, n_rows
from .math import ZERO, share
from .record import GROUP, SECOND_TERM, Field, Flag, Run
from .simd.ops import (
    field,
    field_f64,
    fma,
    load_f32x16,
    max_f32,
    round_to_int,
    splat,
    sqrt,
    store_f32,
    store_f32x16,
    store_low_bytes,
    sum_f32,
    sum_i32,
    to_float,
    vabs,
    vmax,
)

LARGEST = np.float32(127)
ONE = np.float32(1)
SECOND = np.float32(SECOND_TERM)
TINY = np.float32(1e-30)


@inner
def row_share(run, rows, tid, n_threads):
    """The rows of this thread: all of them when one row runs (cheaper than a barrier), else its part."""
    if field(run, Run.N_ROWS) == 1:
        return 0, rows
    return share(rows, tid, n_threads), share(rows, tid + 1, n_threads)


@inner
def private_output(op, run, tid):
    y = field(run, Run.ARENA) + field(op, Field.Y)
    if field(run, Run.N_ROWS) == 1:
        y += tid * field(op, Field.Y_PRIVATE)
    return y


@op_kernel
def rms_norm(op, run, tid, n_threads):
    """y = x / sqrt(mean(x**2) + epsilon) * w; x, y and w padded with zeros to whole groups."""
    x0 = input_address(op, run, tid)
    rows = n_rows(op, run)
    x_stride, y_stride = field(op, Field.X_STRIDE), field(op, Field.Y_STRIDE)
    if field(op, Field.FLAGS) & Flag.LAST_ROWS:
        x0 += (field(run, Run.N_ROWS) - rows) * x_stride
    y0 = private_output(op, run, tid)
    w = field(op, Field.W)
    k = field(op, Field.K)
    padded = (k + GROUP - 1) // GROUP * GROUP
    epsilon = field_f64(op, Field.EPSILON)
    first, last = row_share(run, rows, tid, n_threads)
    for row in range(first, last):
        x, y = x0 + row * x_stride, y0 + row * y_stride
        even, odd = splat(ZERO), splat(ZERO)
        for i in range(0, padded, GROUP):
            u, v = load_f32x16(x + 4 * i), load_f32x16(x + 4 * i + 64)
            even, odd = fma(u, u, even), fma(v, v, odd)
        scale = splat(ONE / sqrt(np.float32(np.float64(sum_f32(even + odd)) / k + epsilon)))
        for i in range(0, padded, 16):
            store_f32x16(y + 4 * i, load_f32x16(x + 4 * i) * scale * load_f32x16(w + 4 * i))


@inner
def quantize_row(x, y, n_groups, terms):
    """All first terms, all second terms (if two), all scales, all scaled sums of the groups of 32 of one row.

    One term: q = round(x / s), s = max|x| / 127. Two: the rest x / s - q, at most 1/2, in SECOND_TERM parts.
    """
    second = y + GROUP * n_groups
    scales = y + terms * GROUP * n_groups
    sums = scales + 4 * n_groups
    for g in range(n_groups):
        u, v = load_f32x16(x + 4 * GROUP * g), load_f32x16(x + 4 * GROUP * g + 64)
        largest = max_f32(vmax(vabs(u), vabs(v)))
        scale = largest / LARGEST
        inverse = splat(LARGEST / largest if largest > TINY else ZERO)
        u, v = u * inverse, v * inverse
        p, q = round_to_int(u), round_to_int(v)
        store_low_bytes(y + GROUP * g, p)
        store_low_bytes(y + GROUP * g + 16, q)
        total = np.float32(sum_i32(p + q))
        if terms == 2:
            r = round_to_int((u - to_float(p)) * splat(SECOND))
            t = round_to_int((v - to_float(q)) * splat(SECOND))
            store_low_bytes(second + GROUP * g, r)
            store_low_bytes(second + GROUP * g + 16, t)
            total = total * SECOND + np.float32(sum_i32(r + t))
            scale = scale / SECOND
        store_f32(scales + 4 * g, scale)
        store_f32(sums + 4 * g, scale * total)


@op_kernel
def quantize(op, run, tid, n_threads):
    """float32 rows -> int8 rows with scales and scaled sums (``record.activation_bytes`` each)."""
    rows = n_rows(op, run)
    x0, y0 = input_address(op, run, tid), private_output(op, run, tid)
    x_stride, y_stride = field(op, Field.X_STRIDE), field(op, Field.Y_STRIDE)
    n_groups = (field(op, Field.K) + GROUP - 1) // GROUP
    terms = field(op, Field.TERMS)
    first, last = row_share(run, rows, tid, n_threads)
    for row in range(first, last):
        quantize_row(x0 + row * x_stride, y0 + row * y_stride, n_groups, terms)
