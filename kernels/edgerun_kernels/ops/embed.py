"""Token embeddings: rows of an interleaved weight matrix, unpacked to float32."""

import numpy as np

from ..kernel import inner, op_kernel
from ..layouts import Head, Input, Matrix
from ..record import GROUP, ROWS, SUPER_GROUPS, Run
from ..simd.ops import extract, f16_to_f32, field, load_f32, load_i16x16, load_i64, load_u8, store_f32
from .math import share

EIGHT = np.float32(8)


@inner
def scale_of(d, r):
    return extract(f16_to_f32(load_i16x16(d)), r)


@inner
def row_q4(w, d, m, r, k, y):
    for g in range((k + GROUP - 1) // GROUP):
        scale = scale_of(d + 32 * g, r)
        least = scale_of(m + 32 * g, r) if m != 0 else -EIGHT * scale
        for i in range(4):
            for j in range(4):
                byte = np.int64(load_u8(w + 256 * g + 64 * i + 4 * r + j))
                column = GROUP * g + 8 * i + j
                if column < k:
                    store_f32(y + 4 * column, np.float32(byte & 15) * scale + least)
                if column + 4 < k:
                    store_f32(y + 4 * column + 16, np.float32(byte >> 4) * scale + least)


@inner
def signed(byte):
    """The int8 in a byte 0 .. 255."""
    return byte - ((byte & 128) << 1)


@inner
def row_q8(w, d, m, r, k, y):
    for column in range(k):
        g, i, j = column // GROUP, column % GROUP // 4, column % 4
        byte = np.int64(load_u8(w + 512 * g + 64 * i + 4 * r + j))
        store_f32(y + 4 * column, np.float32(signed(byte)) * scale_of(d + 32 * g, r))


@inner
def row_q6k(w, d, m, r, k, y):
    for column in range(k):
        g, c, j = column // GROUP, column % GROUP // 4, column % 4
        half = w + 384 * g + 192 * (c // 4) + 4 * r + j
        low = np.int64(load_u8(half + 64 + 64 * (c % 4 // 2))) >> 4 * (c % 2) & 15
        high = np.int64(load_u8(half)) >> 2 * (c % 4) & 3
        factor = signed(np.int64(load_u8(m + 32 * g + 16 * (c // 4) + r)))
        scale = scale_of(d + 32 * (g // SUPER_GROUPS), r)
        store_f32(y + 4 * column, np.float32((low + (high << 4) - 32) * factor) * scale)


@inner
def row_f32(w, d, m, r, k, y):
    for column in range(k):
        store_f32(y + 4 * column, load_f32(w + 64 * column + 4 * r))


def _embed(name, unpack, group_bytes, column_bytes, d_groups=1):
    """The kernel of one weight format; token ids have been checked against the vocabulary."""

    def kernel(op, run, tid, n_threads):
        y0, stride = field(run, Run.ARENA) + field(op, Head.Y), field(op, Head.Y_STRIDE)
        k = field(op, Input.K)
        n_groups = (k + GROUP - 1) // GROUP
        w0, d0, m0 = field(op, Matrix.W), field(op, Matrix.D), field(op, Matrix.M)
        rows = field(run, Run.N_ROWS)
        for row in range(share(rows, tid, n_threads), share(rows, tid + 1, n_threads)):
            token = load_i64(field(run, Run.TOKENS) + 8 * row)
            block, r = token // ROWS, token % ROWS
            w = w0 + block * (n_groups * group_bytes + k * column_bytes)
            m = m0 + block * n_groups * 32 if m0 != 0 else 0
            d = d0 + block * ((n_groups + d_groups - 1) // d_groups) * 32
            unpack(w, d, m, r, k, y0 + row * stride)

    kernel.__name__ = name
    return op_kernel(kernel)


embed_q4 = _embed("embed_q4", row_q4, 256, 0)
embed_q8 = _embed("embed_q8", row_q8, 512, 0)
embed_q6k = _embed("embed_q6k", row_q6k, 384, 0, SUPER_GROUPS)
embed_f32 = _embed("embed_f32", row_f32, 0, 64)
