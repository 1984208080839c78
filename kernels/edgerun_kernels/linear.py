"""Linear layers over quantised activations: y[rows, N] = x[rows, K] W[N, K]^T, 16 weight rows interleaved.

Weights: q4 bytes [N/16, K/32, 4, 16, 4], q8 [N/16, K/32, 8, 16, 4]; scales and minima float16 [N/16, K/32, 16] (see
``edgerun.package.layout``). Activations: groups of 32 with a scale each, in one int8 term or two (see ``quantize``);
two terms are 16 bits for the price of one more dot product on weights that are unpacked already. Threads split the
blocks of 16 weight rows; four int8 vectors (four rows, or two of two terms) share each load of weights. Sums are taken
in one order, so a row's result is the same bits at every number of threads and whatever runs beside it.
"""

import numpy as np

from .kernel import inner, op_kernel
from .math import ZERO, share
from .record import GROUP, ROWS, SECOND_TERM, Field, Flag, Run
from .simd.ops import (
    dot_i8,
    dot_i8_bias,
    dot_u4,
    dot_u4_sum,
    f16_to_f32,
    field,
    fma,
    high_nibbles,
    load_4_bytes,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i16x16,
    low_nibbles,
    prefetch,
    splat,
    store_f32x16,
    to_float,
    zero_i32,
)

EIGHT = np.float32(-8)
SECOND = np.float32(SECOND_TERM)
AHEAD, SCALES_AHEAD = 4096, 512
"""Bytes by which prefetching runs before the loads, for weights and for their scales."""
CACHED_ROWS = 64
"""Rows whose activations stay in the cache while the weights stream past."""


@inner
def n_rows(op, run):
    if field(op, Field.FLAGS) & Flag.OUT_ROWS:
        return field(run, Run.N_OUT)
    return field(run, Run.N_ROWS)


@inner
def input_address(op, run, tid):
    """Where row 0 of the input lies; with one row running, each thread may have its own copy."""
    x = field(run, Run.ARENA) + field(op, Field.X)
    if field(run, Run.N_ROWS) == 1:
        x += tid * field(op, Field.X_PRIVATE)
    return x


@inner
def output_address(op, run):
    if field(op, Field.FLAGS) & Flag.LOGITS:
        return field(run, Run.LOGITS)
    return field(run, Run.ARENA) + field(op, Field.Y)


@inner
def finish(op, y, block, acc):
    """Adds bias and residual to 16 outputs and stores them."""
    bias = field(op, Field.BIAS)
    if bias != 0:
        acc = acc + load_f32x16(bias + block * 4 * ROWS)
    address = y + block * 4 * ROWS
    if field(op, Field.FLAGS) & Flag.ACCUMULATE:
        acc = acc + load_f32x16(address)
    store_f32x16(address, acc)


@inner
def minimum(m, d):
    """What a nibble of zero stands for: the stored minimum, or -8 scales in the symmetric format."""
    if m != 0:
        return f16_to_f32(load_i16x16(m))
    return d * splat(EIGHT)


@inner
def always():
    return True


@inner
def q4_one(w, x):
    """16 rows times 32 columns of one int8 vector, as float32."""
    acc = zero_i32()
    for c in range(4):
        bytes_ = load_i8x64(w + 64 * c)
        acc = dot_u4(acc, low_nibbles(bytes_), load_4_bytes(x + 8 * c))
        acc = dot_u4(acc, high_nibbles(bytes_), load_4_bytes(x + 8 * c + 4))
    return to_float(dot_u4_sum(acc))


@inner
def q4_two(w, xa, xb):
    a, b = zero_i32(), zero_i32()
    for c in range(4):
        bytes_ = load_i8x64(w + 64 * c)
        low, high = low_nibbles(bytes_), high_nibbles(bytes_)
        a = dot_u4(dot_u4(a, low, load_4_bytes(xa + 8 * c)), high, load_4_bytes(xa + 8 * c + 4))
        b = dot_u4(dot_u4(b, low, load_4_bytes(xb + 8 * c)), high, load_4_bytes(xb + 8 * c + 4))
    return to_float(dot_u4_sum(a)), to_float(dot_u4_sum(b))


@inner
def q4_four(w, xa, xb, xc, xd):
    a, b, c, d = zero_i32(), zero_i32(), zero_i32(), zero_i32()
    for i in range(4):
        bytes_ = load_i8x64(w + 64 * i)
        low, high = low_nibbles(bytes_), high_nibbles(bytes_)
        a = dot_u4(dot_u4(a, low, load_4_bytes(xa + 8 * i)), high, load_4_bytes(xa + 8 * i + 4))
        b = dot_u4(dot_u4(b, low, load_4_bytes(xb + 8 * i)), high, load_4_bytes(xb + 8 * i + 4))
        c = dot_u4(dot_u4(c, low, load_4_bytes(xc + 8 * i)), high, load_4_bytes(xc + 8 * i + 4))
        d = dot_u4(dot_u4(d, low, load_4_bytes(xd + 8 * i)), high, load_4_bytes(xd + 8 * i + 4))
    return to_float(dot_u4_sum(a)), to_float(dot_u4_sum(b)), to_float(dot_u4_sum(c)), to_float(dot_u4_sum(d))


@inner
def q8_has_offset():
    return dot_i8_bias() != 0


@inner
def q8_offset(m, d):
    return d * splat(np.float32(-dot_i8_bias()))


@inner
def q8_one(w, x):
    acc = zero_i32()
    for c in range(8):
        acc = dot_i8(acc, load_i8x64(w + 64 * c), load_4_bytes(x + 4 * c))
    return to_float(acc)


@inner
def q8_two(w, xa, xb):
    a, b = zero_i32(), zero_i32()
    for c in range(8):
        bytes_ = load_i8x64(w + 64 * c)
        a = dot_i8(a, bytes_, load_4_bytes(xa + 4 * c))
        b = dot_i8(b, bytes_, load_4_bytes(xb + 4 * c))
    return to_float(a), to_float(b)


@inner
def q8_four(w, xa, xb, xc, xd):
    a, b, c, d = zero_i32(), zero_i32(), zero_i32(), zero_i32()
    for i in range(8):
        bytes_ = load_i8x64(w + 64 * i)
        a = dot_i8(a, bytes_, load_4_bytes(xa + 4 * i))
        b = dot_i8(b, bytes_, load_4_bytes(xb + 4 * i))
        c = dot_i8(c, bytes_, load_4_bytes(xc + 4 * i))
        d = dot_i8(d, bytes_, load_4_bytes(xd + 4 * i))
    return to_float(a), to_float(b), to_float(c), to_float(d)


def _format(one, two, four, has_offset, offset, group_bytes):
    """The two kernels of a weight format, for activations of one and of two terms.

    one, two, four: the products of a group of weights (``group_bytes`` for 16 rows) with so many int8 vectors.
    offset(m, d): what each activation counts besides, if ``has_offset()``.
    """

    @inner
    def add(acc, scale, extra, product, x_scale, x_sum):
        acc = fma(scale * splat(load_f32(x_scale)), product, acc)
        if has_offset():
            acc = fma(extra, splat(load_f32(x_sum)), acc)
        return acc

    @inner
    def fetch_ahead(w, d, m):
        """One row reads weights from memory only once, faster than the hardware's own prefetch goes ahead."""
        for line in range(0, group_bytes, 64):
            prefetch(w + AHEAD + line)
        prefetch(d + SCALES_AHEAD)
        prefetch(m + SCALES_AHEAD)

    @inner
    def both(first, second):
        return fma(first, splat(SECOND), second)

    @inner
    def row_1(w, d, m, x, n_groups):
        acc = splat(ZERO)
        scales, sums = x + GROUP * n_groups, x + (GROUP + 4) * n_groups
        for g in range(n_groups):
            fetch_ahead(w + group_bytes * g, d + 32 * g, m + 32 * g)
            scale = f16_to_f32(load_i16x16(d + 32 * g))
            extra = offset(m + 32 * g if m != 0 else 0, scale)
            acc = add(acc, scale, extra, one(w + group_bytes * g, x + GROUP * g), scales + 4 * g, sums + 4 * g)
        return acc

    @inner
    def row_2(w, d, m, x, n_groups):
        acc = splat(ZERO)
        second = x + GROUP * n_groups
        scales, sums = second + GROUP * n_groups, second + (GROUP + 4) * n_groups
        for g in range(n_groups):
            fetch_ahead(w + group_bytes * g, d + 32 * g, m + 32 * g)
            scale = f16_to_f32(load_i16x16(d + 32 * g))
            extra = offset(m + 32 * g if m != 0 else 0, scale)
            a, b = two(w + group_bytes * g, x + GROUP * g, second + GROUP * g)
            acc = add(acc, scale, extra, both(a, b), scales + 4 * g, sums + 4 * g)
        return acc

    @inner
    def kernel_1(op, run, tid, n_threads):
        rows = n_rows(op, run)
        x0, y0 = input_address(op, run, tid), output_address(op, run)
        x_stride, y_stride = field(op, Field.X_STRIDE), field(op, Field.Y_STRIDE)
        n_blocks = (field(op, Field.N) + ROWS - 1) // ROWS
        n_groups = (field(op, Field.K) + GROUP - 1) // GROUP
        w0, d0, m0 = field(op, Field.W), field(op, Field.D), field(op, Field.M)
        scales, sums = GROUP * n_groups, (GROUP + 4) * n_groups
        for part in range(0, rows, CACHED_ROWS):
            end = min(part + CACHED_ROWS, rows)
            for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
                w, d = w0 + block * n_groups * group_bytes, d0 + block * n_groups * 32
                m = m0 + block * n_groups * 32 if m0 != 0 else 0
                row = part
                while row + 4 <= end:
                    xa = x0 + row * x_stride
                    xb, xc, xd = xa + x_stride, xa + 2 * x_stride, xa + 3 * x_stride
                    a, b, c, e = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
                    for g in range(n_groups):
                        o, s, t = GROUP * g, scales + 4 * g, sums + 4 * g
                        pa, pb, pc, pd = four(w + group_bytes * g, xa + o, xb + o, xc + o, xd + o)
                        scale = f16_to_f32(load_i16x16(d + 32 * g))
                        extra = offset(m + 32 * g if m != 0 else 0, scale)
                        a = add(a, scale, extra, pa, xa + s, xa + t)
                        b = add(b, scale, extra, pb, xb + s, xb + t)
                        c = add(c, scale, extra, pc, xc + s, xc + t)
                        e = add(e, scale, extra, pd, xd + s, xd + t)
                    y = y0 + row * y_stride
                    finish(op, y, block, a)
                    finish(op, y + y_stride, block, b)
                    finish(op, y + 2 * y_stride, block, c)
                    finish(op, y + 3 * y_stride, block, e)
                    row += 4
                while row < end:
                    finish(op, y0 + row * y_stride, block, row_1(w, d, m, x0 + row * x_stride, n_groups))
                    row += 1

    @inner
    def kernel_2(op, run, tid, n_threads):
        rows = n_rows(op, run)
        x0, y0 = input_address(op, run, tid), output_address(op, run)
        x_stride, y_stride = field(op, Field.X_STRIDE), field(op, Field.Y_STRIDE)
        n_blocks = (field(op, Field.N) + ROWS - 1) // ROWS
        n_groups = (field(op, Field.K) + GROUP - 1) // GROUP
        w0, d0, m0 = field(op, Field.W), field(op, Field.D), field(op, Field.M)
        second, scales, sums = GROUP * n_groups, 2 * GROUP * n_groups, (2 * GROUP + 4) * n_groups
        for part in range(0, rows, CACHED_ROWS):
            end = min(part + CACHED_ROWS, rows)
            for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
                w, d = w0 + block * n_groups * group_bytes, d0 + block * n_groups * 32
                m = m0 + block * n_groups * 32 if m0 != 0 else 0
                row = part
                while row + 2 <= end:
                    xa = x0 + row * x_stride
                    xb = xa + x_stride
                    a, b = splat(ZERO), splat(ZERO)
                    for g in range(n_groups):
                        o, s, t = GROUP * g, scales + 4 * g, sums + 4 * g
                        ah, al, bh, bl = four(w + group_bytes * g, xa + o, xa + second + o, xb + o, xb + second + o)
                        scale = f16_to_f32(load_i16x16(d + 32 * g))
                        extra = offset(m + 32 * g if m != 0 else 0, scale)
                        a = add(a, scale, extra, both(ah, al), xa + s, xa + t)
                        b = add(b, scale, extra, both(bh, bl), xb + s, xb + t)
                    finish(op, y0 + row * y_stride, block, a)
                    finish(op, y0 + (row + 1) * y_stride, block, b)
                    row += 2
                while row < end:
                    finish(op, y0 + row * y_stride, block, row_2(w, d, m, x0 + row * x_stride, n_groups))
                    row += 1

    return kernel_1, kernel_2


q4_1, q4_2 = _format(q4_one, q4_two, q4_four, always, minimum, 256)
q8_1, q8_2 = _format(q8_one, q8_two, q8_four, q8_has_offset, q8_offset, 512)


@op_kernel
def linear_q4(op, run, tid, n_threads):
    """4-bit weights; Field.TERMS int8 terms an activation."""
    if field(op, Field.TERMS) == 1:
        q4_1(op, run, tid, n_threads)
    else:
        q4_2(op, run, tid, n_threads)


@op_kernel
def linear_q8(op, run, tid, n_threads):
    """8-bit weights; Field.TERMS int8 terms an activation."""
    if field(op, Field.TERMS) == 1:
        q8_1(op, run, tid, n_threads)
    else:
        q8_2(op, run, tid, n_threads)
