"""Linear layers: y[rows, N] = x[rows, K] W[N, K]^T, weights interleaved by 16 rows, activations int8 or float32.

Layouts (see ``edgerun.package.layout``): q4 bytes [N/16, K/32, 4, 16, 4], q8 [N/16, K/32, 8, 16, 4], float32
[N/16, K, 16]; scales and minima float16 [N/16, K/32, 16]. Threads split the blocks of 16 weight rows. Several input
rows go through a block four at a time; a row's result does not depend on how many run beside it.
"""

import numpy as np

from .kernel import inner, op_kernel
from .math import ZERO, share
from .record import GROUP, ROWS, Field, Flag, Run
from .simd.ops import (
    dot_i8,
    dot_i8_bias,
    dot_u4,
    dot_u4_sum,
    f16_to_f32,
    fma,
    high_nibbles,
    load_4_bytes,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i16x16,
    load_i64,
    low_nibbles,
    splat,
    store_f32x16,
    to_float,
    zero_i32,
)

EIGHT = np.float32(-8)


@inner
def n_rows(op, run):
    if load_i64(op + 8 * Field.FLAGS) & Flag.OUT_ROWS:
        return load_i64(run + 8 * Run.N_OUT)
    return load_i64(run + 8 * Run.N_ROWS)


@inner
def input_address(op, run, tid):
    """Where row 0 of the input lies; with one row running, each thread has its own copy."""
    x = load_i64(run + 8 * Run.ARENA) + load_i64(op + 8 * Field.X)
    if load_i64(run + 8 * Run.N_ROWS) == 1:
        x += tid * load_i64(op + 8 * Field.X_PRIVATE)
    return x


@inner
def output_address(op, run):
    if load_i64(op + 8 * Field.FLAGS) & Flag.LOGITS:
        return load_i64(run + 8 * Run.LOGITS)
    return load_i64(run + 8 * Run.ARENA) + load_i64(op + 8 * Field.Y)


@inner
def finish(op, y, block, acc):
    """Adds bias and residual to 16 outputs and stores them."""
    bias = load_i64(op + 8 * Field.BIAS)
    if bias != 0:
        acc = acc + load_f32x16(bias + block * 4 * ROWS)
    address = y + block * 4 * ROWS
    if load_i64(op + 8 * Field.FLAGS) & Flag.ACCUMULATE:
        acc = acc + load_f32x16(address)
    store_f32x16(address, acc)


@inner
def minimum(m, d):
    """What a nibble of zero stands for: the stored minimum, or -8 scales in the symmetric format."""
    if m != 0:
        return f16_to_f32(load_i16x16(m))
    return d * splat(EIGHT)


@inner
def q4_group(w, x, acc):
    """16 rows times 32 columns: the integer dot products, in the ISA's own accumulator."""
    for c in range(4):
        bytes_ = load_i8x64(w + 64 * c)
        acc = dot_u4(acc, low_nibbles(bytes_), load_4_bytes(x + 8 * c))
        acc = dot_u4(acc, high_nibbles(bytes_), load_4_bytes(x + 8 * c + 4))
    return to_float(dot_u4_sum(acc))


@inner
def q4_scaled(acc, scale, low, product, scales, sums):
    acc = fma(scale * splat(load_f32(scales)), product, acc)
    return fma(low, splat(load_f32(sums)), acc)


@inner
def q4_one_row(w, d, m, x, n_groups):
    acc = splat(ZERO)
    scales = x + GROUP * n_groups
    sums = scales + 4 * n_groups
    for g in range(n_groups):
        scale = f16_to_f32(load_i16x16(d))
        acc = q4_scaled(acc, scale, minimum(m, scale), q4_group(w, x, zero_i32()), scales + 4 * g, sums + 4 * g)
        w += 256
        d += 32
        m += 32 if m != 0 else 0
        x += GROUP
    return acc


@op_kernel
def linear_q4(op, run, tid, n_threads):
    """4-bit weights, quantised activations (see ``quantize``)."""
    rows = n_rows(op, run)
    x0 = input_address(op, run, tid)
    y0 = output_address(op, run)
    x_stride, y_stride = load_i64(op + 8 * Field.X_STRIDE), load_i64(op + 8 * Field.Y_STRIDE)
    n_blocks = (load_i64(op + 8 * Field.N) + ROWS - 1) // ROWS
    n_groups = (load_i64(op + 8 * Field.K) + GROUP - 1) // GROUP
    w0, d0, m0 = load_i64(op + 8 * Field.W), load_i64(op + 8 * Field.D), load_i64(op + 8 * Field.M)
    first, last = share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)
    for part in range(0, rows, 64):  # these rows' activations stay in the cache while the weights stream past
        end = min(part + 64, rows)
        for block in range(first, last):
            wb, db = w0 + block * n_groups * 256, d0 + block * n_groups * 32
            mb = m0 + block * n_groups * 32 if m0 != 0 else 0
            row = part
            while row + 4 <= end:
                x = x0 + row * x_stride
                xa, xb, xc, xd = x, x + x_stride, x + 2 * x_stride, x + 3 * x_stride
                scales, sums = GROUP * n_groups, (GROUP + 4) * n_groups
                a, b, c, e = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
                w, d, m = wb, db, mb
                for g in range(n_groups):
                    ia, ib, ic, ie = zero_i32(), zero_i32(), zero_i32(), zero_i32()
                    for i in range(4):
                        bytes_ = load_i8x64(w + 64 * i)
                        low, high = low_nibbles(bytes_), high_nibbles(bytes_)
                        o = GROUP * g + 8 * i
                        ia = dot_u4(dot_u4(ia, low, load_4_bytes(xa + o)), high, load_4_bytes(xa + o + 4))
                        ib = dot_u4(dot_u4(ib, low, load_4_bytes(xb + o)), high, load_4_bytes(xb + o + 4))
                        ic = dot_u4(dot_u4(ic, low, load_4_bytes(xc + o)), high, load_4_bytes(xc + o + 4))
                        ie = dot_u4(dot_u4(ie, low, load_4_bytes(xd + o)), high, load_4_bytes(xd + o + 4))
                    scale = f16_to_f32(load_i16x16(d))
                    least = minimum(m, scale)
                    s, t = scales + 4 * g, sums + 4 * g
                    a = q4_scaled(a, scale, least, to_float(dot_u4_sum(ia)), xa + s, xa + t)
                    b = q4_scaled(b, scale, least, to_float(dot_u4_sum(ib)), xb + s, xb + t)
                    c = q4_scaled(c, scale, least, to_float(dot_u4_sum(ic)), xc + s, xc + t)
                    e = q4_scaled(e, scale, least, to_float(dot_u4_sum(ie)), xd + s, xd + t)
                    w += 256
                    d += 32
                    m += 32 if m != 0 else 0
                y = y0 + row * y_stride
                finish(op, y, block, a)
                finish(op, y + y_stride, block, b)
                finish(op, y + 2 * y_stride, block, c)
                finish(op, y + 3 * y_stride, block, e)
                row += 4
            while row < end:
                finish(op, y0 + row * y_stride, block, q4_one_row(wb, db, mb, x0 + row * x_stride, n_groups))
                row += 1


@inner
def q8_group(w, x):
    acc = zero_i32()
    for c in range(8):
        acc = dot_i8(acc, load_i8x64(w + 64 * c), load_4_bytes(x + 4 * c))
    return to_float(acc)


@inner
def q8_scaled(acc, scale, product, scales, sums):
    acc = fma(scale * splat(load_f32(scales)), product, acc)
    if dot_i8_bias() != 0:
        acc = fma(scale * splat(np.float32(-dot_i8_bias())), splat(load_f32(sums)), acc)
    return acc


@op_kernel
def linear_q8(op, run, tid, n_threads):
    """8-bit weights, quantised activations."""
    rows = n_rows(op, run)
    x0 = input_address(op, run, tid)
    y0 = output_address(op, run)
    x_stride, y_stride = load_i64(op + 8 * Field.X_STRIDE), load_i64(op + 8 * Field.Y_STRIDE)
    n_blocks = (load_i64(op + 8 * Field.N) + ROWS - 1) // ROWS
    n_groups = (load_i64(op + 8 * Field.K) + GROUP - 1) // GROUP
    w0, d0 = load_i64(op + 8 * Field.W), load_i64(op + 8 * Field.D)
    scales, sums = GROUP * n_groups, (GROUP + 4) * n_groups
    for part in range(0, rows, 64):
        end = min(part + 64, rows)
        for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
            wb, db = w0 + block * n_groups * 512, d0 + block * n_groups * 32
            row = part
            while row + 4 <= end:
                xa = x0 + row * x_stride
                xb, xc, xd = xa + x_stride, xa + 2 * x_stride, xa + 3 * x_stride
                a, b, c, e = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
                for g in range(n_groups):
                    ia, ib, ic, ie = zero_i32(), zero_i32(), zero_i32(), zero_i32()
                    for i in range(8):
                        bytes_ = load_i8x64(wb + 512 * g + 64 * i)
                        o = GROUP * g + 4 * i
                        ia = dot_i8(ia, bytes_, load_4_bytes(xa + o))
                        ib = dot_i8(ib, bytes_, load_4_bytes(xb + o))
                        ic = dot_i8(ic, bytes_, load_4_bytes(xc + o))
                        ie = dot_i8(ie, bytes_, load_4_bytes(xd + o))
                    scale = f16_to_f32(load_i16x16(db + 32 * g))
                    s, t = scales + 4 * g, sums + 4 * g
                    a = q8_scaled(a, scale, to_float(ia), xa + s, xa + t)
                    b = q8_scaled(b, scale, to_float(ib), xb + s, xb + t)
                    c = q8_scaled(c, scale, to_float(ic), xc + s, xc + t)
                    e = q8_scaled(e, scale, to_float(ie), xd + s, xd + t)
                y = y0 + row * y_stride
                finish(op, y, block, a)
                finish(op, y + y_stride, block, b)
                finish(op, y + 2 * y_stride, block, c)
                finish(op, y + 3 * y_stride, block, e)
                row += 4
            while row < end:
                x = x0 + row * x_stride
                acc = splat(ZERO)
                for g in range(n_groups):
                    scale = f16_to_f32(load_i16x16(db + 32 * g))
                    product = q8_group(wb + 512 * g, x + GROUP * g)
                    acc = q8_scaled(acc, scale, product, x + scales + 4 * g, x + sums + 4 * g)
                finish(op, y0 + row * y_stride, block, acc)
                row += 1
