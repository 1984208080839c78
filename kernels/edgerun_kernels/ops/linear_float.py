"""Linear layers over float32 activations: exact up to float rounding, the arithmetic that onnxruntime is compared with.

One column of 16 interleaved rows is one vector, so nothing is summed across lanes. Input rows go four at a time, so
that a weight is unpacked once for four products.
"""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Head, Input, Matrix
from ..record import GROUP, ROWS, SUPER_GROUPS
from ..simd.ops import (
    f16_to_f32,
    field,
    fma,
    load_f32,
    load_f32x16,
    load_i8x16,
    load_i16x16,
    load_i32x16,
    shift_right,
    sign_extend_byte,
    splat,
    splat_i32,
    to_float,
)
from .linear import finish, input_address, n_rows, output_address
from .math import ZERO, share

EIGHT, SIXTEEN, MINUS_32 = np.float32(-8), np.float32(16), np.float32(-32)


@inner
def minimum(m, d):
    """What a nibble of zero stands for: the stored minimum, or -8 scales in the symmetric format."""
    if m != 0:
        return f16_to_f32(load_i16x16(m))
    return d * splat(EIGHT)


@inner
def add_column(w, x, x_stride, column, a, b, c, e):
    """One weight column times one element of each of four rows (``x_stride`` apart)."""
    address = x + 4 * column
    a = fma(w, splat(load_f32(address)), a)
    b = fma(w, splat(load_f32(address + x_stride[0])), b)
    c = fma(w, splat(load_f32(address + x_stride[1])), c)
    e = fma(w, splat(load_f32(address + x_stride[2])), e)
    return a, b, c, e


@inner
def tile_q4(w, d, m, k, x, others, a, b, c, e):
    for g in range((k + GROUP - 1) // GROUP):
        scale = f16_to_f32(load_i16x16(d + 32 * g))
        least = minimum(m + 32 * g if m != 0 else 0, scale)
        for i in range(4):
            words = load_i32x16(w + 256 * g + 64 * i)
            for j in range(8):
                # Columns 0..3 are the low nibbles of bytes 0..3 of a lane, columns 4..7 the high ones.
                nibble = shift_right(words, 8 * (j % 4) + 4 * (j // 4)) & splat_i32(15)
                value = fma(to_float(nibble), scale, least)
                a, b, c, e = add_column(value, x, others, GROUP * g + 8 * i + j, a, b, c, e)
    return a, b, c, e


@inner
def tile_q8(w, d, m, k, x, others, a, b, c, e):
    for g in range((k + GROUP - 1) // GROUP):
        scale = f16_to_f32(load_i16x16(d + 32 * g))
        for i in range(8):
            words = load_i32x16(w + 512 * g + 64 * i)
            for j in range(4):
                value = to_float(sign_extend_byte(words, j)) * scale
                a, b, c, e = add_column(value, x, others, GROUP * g + 4 * i + j, a, b, c, e)
    return a, b, c, e


@inner
def tile_q6k(w, d, m, k, x, others, a, b, c, e):
    for g in range((k + GROUP - 1) // GROUP):
        scale = f16_to_f32(load_i16x16(d + 32 * (g // SUPER_GROUPS)))
        for i in range(8):
            half = w + 384 * g + 192 * (i // 4)
            pairs, nibbles = load_i32x16(half), load_i32x16(half + 64 + 64 * (i % 4 // 2))
            factor = to_float(load_i8x16(m + 32 * g + 16 * (i // 4))) * scale
            for j in range(4):
                low = shift_right(nibbles, 8 * j + 4 * (i % 2)) & splat_i32(15)
                high = shift_right(pairs, 8 * j + 2 * (i % 4)) & splat_i32(3)
                value = fma(to_float(high), splat(SIXTEEN), to_float(low) + splat(MINUS_32)) * factor
                a, b, c, e = add_column(value, x, others, GROUP * g + 4 * i + j, a, b, c, e)
    return a, b, c, e


@inner
def tile_f32(w, d, m, k, x, others, a, b, c, e):
    for column in range(k):
        a, b, c, e = add_column(load_f32x16(w + 64 * column), x, others, column, a, b, c, e)
    return a, b, c, e


def _linear(name, tile, group_bytes, column_bytes, d_groups=1):
    """The kernel of one weight format: a block of 16 rows takes so many bytes a group, or a column."""

    def kernel(op, run, tid, n_threads):
        rows = n_rows(op, run)
        x0, y0 = input_address(op, run, tid), output_address(op, run)
        x_stride, y_stride = field(op, Head.X_STRIDE), field(op, Head.Y_STRIDE)
        n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
        k = field(op, Input.K)
        n_groups = (k + GROUP - 1) // GROUP
        w0, d0, m0 = field(op, Matrix.W), field(op, Matrix.D), field(op, Matrix.M)
        for part in range(0, rows, 32):
            end = min(part + 32, rows)
            for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
                w = w0 + block * (n_groups * group_bytes + k * column_bytes)
                d = d0 + block * ((n_groups + d_groups - 1) // d_groups) * 32
                m = m0 + block * n_groups * 32 if m0 != 0 else 0
                for row in range(part, end, 4):
                    # Rows past the end repeat the last one and are not stored.
                    left = end - row - 1
                    others = (min(1, left) * x_stride, min(2, left) * x_stride, min(3, left) * x_stride)
                    zero = splat(ZERO)
                    a, b, c, e = tile(w, d, m, k, x0 + row * x_stride, others, zero, zero, zero, zero)
                    y = y0 + row * y_stride
                    finish(op, y, block, a)
                    if left > 0:
                        finish(op, y + y_stride, block, b)
                    if left > 1:
                        finish(op, y + 2 * y_stride, block, c)
                    if left > 2:
                        finish(op, y + 3 * y_stride, block, e)

    kernel.__name__ = name
    return op_kernel(kernel)


linear_q4_float = _linear("linear_q4_float", tile_q4, 256, 0)
linear_q8_float = _linear("linear_q8_float", tile_q8, 512, 0)
linear_q6k_float = _linear("linear_q6k_float", tile_q6k, 384, 0, SUPER_GROUPS)
linear_f32 = _linear("linear_f32", tile_f32, 0, 64)
