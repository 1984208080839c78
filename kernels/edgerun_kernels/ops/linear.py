"""Linear layers over quantised activations: y[rows, N] = x[rows, K] W[N, K]^T, 16 weight rows interleaved.

The arithmetic of each weight format is in ``linear_products``. Activations: int8 in groups of 32 with a scale each, and
a second int8 term for the groups that hold outliers (see ``quantize``); for ternary weights int8 with one scale a row
(see ``quantize_rows``). Threads split the blocks of 16 weight rows. Several rows go in tiles of TILE_ROWS rows by two
blocks, so that a weight is unpacked once for four rows and an activation loaded once for two blocks; where registers
are short, by half a block. Sums are taken in one order, so a row's result is the same bits at every number of threads
and whatever runs beside it.
"""

from ..kernel import inner, op_kernel
from ..layouts import Head, Input, Linear, Matrix
from ..record import GROUP, ROWS, TILE_ROWS, Flag, Run
from ..simd.ops import field, is_wide, load_f32x16, store_f32x16
from ..simd.tiles import Tile, stack_memory
from .linear_products import ONE_BLOCK, Q4, Q4M, Q6K, Q8, TERNARY, TWO_BLOCKS
from .math import share

CACHED_TILES = 16
"""Tiles whose activations stay in the cache while the weights stream past."""


@inner
def n_rows(op, run):
    if field(op, Head.FLAGS) & Flag.OUT_ROWS:
        return field(run, Run.N_OUT)
    return field(run, Run.N_ROWS)


@inner
def input_address(op, run, tid):
    """Where row 0 of the input lies; with one row running, each thread may have its own copy."""
    x = field(run, Run.ARENA) + field(op, Head.X)
    if field(run, Run.N_ROWS) == 1:
        x += tid * field(op, Head.X_PRIVATE)
    return x


@inner
def output_address(op, run):
    if field(op, Head.FLAGS) & Flag.LOGITS:
        return field(run, Run.LOGITS)
    return field(run, Run.ARENA) + field(op, Head.Y)


@inner
def finish(op, y, block, acc):
    """Adds bias and residual to 16 outputs and stores them."""
    bias = field(op, Linear.BIAS)
    if bias != 0:
        acc = acc + load_f32x16(bias + block * 4 * ROWS)
    address = y + block * 4 * ROWS
    if field(op, Head.FLAGS) & Flag.ACCUMULATE:
        acc = acc + load_f32x16(address)
    store_f32x16(address, acc)


def _kernel(fmt):
    """The kernel of one weight format, and what it does with some blocks of 16 weight rows, whose weights lie from
    ``w`` on as if all blocks did."""
    group_bytes, d_groups, half_d, half_m = fmt.group_bytes, fmt.d_groups, fmt.half_d, fmt.half_m
    streams = fmt.streams
    one = several = fmt.products(Tile(1, 1), fmt.fetch)
    if streams > 1:
        several = fmt.products(Tile(1, streams), fmt.fetch)
    wide = fmt.products(Tile(TILE_ROWS, 2), TWO_BLOCKS)
    single, half = (fmt.products(Tile(TILE_ROWS, 1, lanes), ONE_BLOCK) for lanes in (16, 8))
    tile_memory = stack_memory(64 * TILE_ROWS * 2)

    @inner
    def scale_bytes(n_groups):
        """Of one block's scales."""
        return 0 if d_groups == 0 else (n_groups + d_groups - 1) // d_groups * 32

    @inner
    def several_rows(op, rows, x, y, first, last, n_groups, w0, d0, m0):
        x_stride, y_stride = field(op, Head.X_STRIDE), field(op, Head.Y_STRIDE)
        stride, d_stride, m_stride = n_groups * group_bytes, scale_bytes(n_groups), n_groups * 32
        out = tile_memory()
        n_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
        for part in range(0, n_tiles, CACHED_TILES):
            block = first
            while block < last:
                w, d, m = w0 + block * stride, d0 + block * d_stride, m0 + block * m_stride
                n_blocks = 2 if is_wide() != 0 and block + 2 <= last else 1
                for tile in range(part, min(part + CACHED_TILES, n_tiles)):
                    xt = x + tile * x_stride
                    if is_wide() == 0:
                        half(w, d, m, stride, d_stride, m_stride, xt, n_groups, out)
                        half(w + 32, d + half_d, m + half_m, stride, d_stride, m_stride, xt, n_groups, out + 32)
                    elif n_blocks == 2:
                        wide(w, d, m, stride, d_stride, m_stride, xt, n_groups, out)
                    else:
                        single(w, d, m, stride, d_stride, m_stride, xt, n_groups, out)
                    for row in range(min(TILE_ROWS, rows - tile * TILE_ROWS)):
                        yr = y + (tile * TILE_ROWS + row) * y_stride
                        for i in range(n_blocks):
                            finish(op, yr, block + i, load_f32x16(out + 64 * (i * TILE_ROWS + row)))
                block += n_blocks

    @inner
    def one_row(op, x, y, first, last, n_groups, w0, d0, m0):
        """Where there are registers, in ``streams`` parts side by side."""
        stride, d_stride, m_stride = n_groups * group_bytes, scale_bytes(n_groups), n_groups * 32
        out = tile_memory()
        part = (last - first) // streams if streams > 1 and is_wide() != 0 else 0
        for block in range(first, first + part):
            w, d, m = w0 + block * stride, d0 + block * d_stride, m0 + block * m_stride
            several(w, d, m, part * stride, part * d_stride, part * m_stride, x, n_groups, out)
            for i in range(streams):
                finish(op, y, block + i * part, load_f32x16(out + 64 * i))
        for block in range(first + streams * part, last):
            w, d, m = w0 + block * stride, d0 + block * d_stride, m0 + block * m_stride
            one(w, d, m, stride, d_stride, m_stride, x, n_groups, out)
            finish(op, y, block, load_f32x16(out))

    @inner
    def some_blocks(op, run, tid, rows, first, last, w):
        x, y = input_address(op, run, tid), output_address(op, run)
        n_groups = (field(op, Input.K) + GROUP - 1) // GROUP
        d, m = field(op, Matrix.D), field(op, Matrix.M)
        if rows == 1:
            one_row(op, x, y, first, last, n_groups, w, d, m)
        else:
            several_rows(op, rows, x, y, first, last, n_groups, w, d, m)

    @inner
    def kernel(op, run, tid, n_threads):
        n_blocks = (field(op, Matrix.N) + ROWS - 1) // ROWS
        first, last = share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)
        some_blocks(op, run, tid, n_rows(op, run), first, last, field(op, Matrix.W))

    return kernel, some_blocks


(q4, _), (q4m, _), (q8, _), (q6k, _) = (_kernel(fmt) for fmt in (Q4, Q4M, Q8, Q6K))
ternary, ternary_blocks = _kernel(TERNARY)


@inner
def dense_q4(op, run, tid, n_threads):
    """4-bit weights, symmetric or with minima. Of this and the others the ops are in ``projection``."""
    if field(op, Matrix.M) == 0:
        q4(op, run, tid, n_threads)
    else:
        q4m(op, run, tid, n_threads)


@inner
def dense_q8(op, run, tid, n_threads):
    """8-bit weights."""
    q8(op, run, tid, n_threads)


@op_kernel
def linear_q6k(op, run, tid, n_threads):
    """6-bit weights with two levels of scales."""
    q6k(op, run, tid, n_threads)


@inner
def dense_ternary(op, run, tid, n_threads):
    """Weights of -1, 0 and 1 over rows with one scale each."""
    ternary(op, run, tid, n_threads)
