"""Linear layers over quantised activations: y[rows, N] = x[rows, K] W[N, K]^T, 16 weight rows interleaved.

Weights: q4 bytes [N/16, K/32, 4, 16, 4], q8 [N/16, K/32, 8, 16, 4]; scales and minima float16 [N/16, K/32, 16] (see
``edgerun.package.layout``). Activations: int8 in groups of 32 with a scale each, and a second int8 term for the groups
that hold outliers (see ``quantize``): first all groups are multiplied, then the second terms, whose weights are still
in the cache. Threads split the blocks of 16 weight rows. Several rows go in tiles of TILE_ROWS rows by two blocks, so
that a weight is unpacked once for four rows and an activation loaded once for two blocks; where registers are short,
by half a block. Sums are taken in one order, so a row's result is the same bits at every number of threads and
whatever runs beside it.
"""

from .kernel import inner, op_kernel
from .math import share
from .record import GROUP, ROWS, TILE_ROWS, Field, Flag, Run, first_stride, second_stride
from .record import TILE_HEADER as HEADER
from .simd.ops import (
    dot_i8_bias,
    field,
    is_wide,
    load_f32x16,
    load_i64,
    prefetch_far,
    store_f32x16,
)
from .simd.tiles import Tile, stack_memory

AHEAD, SCALES_AHEAD = 12288, 1536
"""Bytes by which prefetching runs before the loads, for weights and for their scales."""
CACHED_TILES = 16
"""Tiles whose activations stay in the cache while the weights stream past."""
MINUS_EIGHT, MINUS_128 = 0, 4
"""Shifts that make of -8 * sum what a weight's offset adds up to."""


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


def _q4(tile, offset):
    """How a group of q4 weights is multiplied. offset: the shift for weights that count from -8, None from 0."""
    load, low, high, dot = tile.load(), tile.nibbles(0), tile.nibbles(4), tile.dot("dot_u4")

    @inner
    def products(sums, w, stride, x):
        for c in range(4):
            bytes_ = load(w + 64 * c, stride)
            sums = dot(sums, low(bytes_), x + 8 * c)
            sums = dot(sums, high(bytes_), x + 8 * c + 4)
        return sums

    return tile.begin(offset), products, tile.end(offset)


def _q8(tile):
    """How a group of q8 weights is multiplied; some ISAs count them from -128."""
    load, dot = tile.load(), tile.dot("dot_i8")
    from_zero, from_bias = tile.plain(None), tile.plain(MINUS_128)

    @inner
    def begin(offsets):
        return from_bias(offsets) if dot_i8_bias() != 0 else from_zero(offsets)

    @inner
    def products(sums, w, stride, x):
        for c in range(8):
            sums = dot(sums, load(w + 64 * c, stride), x + 4 * c)
        return sums

    @inner
    def end(sums, offsets):
        return sums

    return begin, products, end


def _products(tile, how, group_bytes, has_minimum, fetches):
    """``products(w, d, m, stride, scales_stride, x, n_groups, out)``: a tile of outputs, stored 64 bytes apart.

    stride, scales_stride: bytes from block to block. fetches: whether weights may come from memory.
    """
    begin, multiply, end = how
    zero, load_scales = tile.zero(), tile.load_floats("f16")
    add_scaled, add_outer, store = tile.add_scaled(), tile.add_outer(), tile.store()
    rows, blocks = tile.rows, tile.blocks
    stride_1, stride_2 = first_stride(rows), second_stride(rows)
    scales_1, offsets_1, sums_1 = GROUP * rows, (GROUP + 4) * rows, (GROUP + 8) * rows
    scales_2, offsets_2 = 8 + GROUP * rows, 8 + (GROUP + 4) * rows

    @inner
    def fetch_ahead(w, d, m, stride, scales_stride):
        """Faster than the hardware's own prefetch goes ahead; where the weights are in the cache it costs little."""
        for block in range(blocks):
            for line in range(0, group_bytes, 64):
                prefetch_far(w + block * stride + AHEAD + line)
            prefetch_far(d + block * scales_stride + SCALES_AHEAD)
            if has_minimum:
                prefetch_far(m + block * scales_stride + SCALES_AHEAD)

    @inner
    def products(w, d, m, stride, scales_stride, x, n_groups, out):
        acc = zero()
        for g in range(n_groups):
            if fetches:
                fetch_ahead(w + group_bytes * g, d + 32 * g, m + 32 * g, stride, scales_stride)
            first = x + HEADER + stride_1 * g
            sums = multiply(begin(first + offsets_1), w + group_bytes * g, stride, first)
            sums = end(sums, first + offsets_1)
            acc = add_scaled(acc, sums, load_scales(d + 32 * g, scales_stride), first + scales_1)
            if has_minimum:
                acc = add_outer(acc, load_scales(m + 32 * g, scales_stride), first + sums_1)
        second = x + HEADER + stride_1 * n_groups
        for _ in range(load_i64(x)):
            g = load_i64(second)
            sums = multiply(begin(second + offsets_2), w + group_bytes * g, stride, second + 8)
            sums = end(sums, second + offsets_2)
            acc = add_scaled(acc, sums, load_scales(d + 32 * g, scales_stride), second + scales_2)
            second += stride_2
        store(out, acc)

    return products


def _kernel(how, group_bytes, has_minimum):
    """The kernel of one weight format; ``how(tile)`` gives its arithmetic."""

    def products(rows, blocks, lanes=16):
        tile = Tile(rows, blocks, lanes)
        return _products(tile, how(tile), group_bytes, has_minimum, fetches=True)

    one, wide, single = products(1, 1), products(TILE_ROWS, 2), products(TILE_ROWS, 1)
    half = products(TILE_ROWS, 1, lanes=8)
    tile_memory = stack_memory(64 * TILE_ROWS * 2)

    @inner
    def several_rows(op, rows, x, y, first, last, n_groups, w0, d0, m0):
        x_stride, y_stride = field(op, Field.X_STRIDE), field(op, Field.Y_STRIDE)
        stride, scales_stride = n_groups * group_bytes, n_groups * 32
        out = tile_memory()
        n_tiles = (rows + TILE_ROWS - 1) // TILE_ROWS
        for part in range(0, n_tiles, CACHED_TILES):
            block = first
            while block < last:
                w, d, m = w0 + block * stride, d0 + block * scales_stride, m0 + block * scales_stride
                n_blocks = 2 if is_wide() != 0 and block + 2 <= last else 1
                for tile in range(part, min(part + CACHED_TILES, n_tiles)):
                    xt = x + tile * x_stride
                    if is_wide() == 0:
                        half(w, d, m, stride, scales_stride, xt, n_groups, out)
                        half(w + 32, d + 16, m + 16, stride, scales_stride, xt, n_groups, out + 32)
                    elif n_blocks == 2:
                        wide(w, d, m, stride, scales_stride, xt, n_groups, out)
                    else:
                        single(w, d, m, stride, scales_stride, xt, n_groups, out)
                    for row in range(min(TILE_ROWS, rows - tile * TILE_ROWS)):
                        yr = y + (tile * TILE_ROWS + row) * y_stride
                        for i in range(n_blocks):
                            finish(op, yr, block + i, load_f32x16(out + 64 * (i * TILE_ROWS + row)))
                block += n_blocks

    @inner
    def kernel(op, run, tid, n_threads):
        rows = n_rows(op, run)
        x, y = input_address(op, run, tid), output_address(op, run)
        n_blocks = (field(op, Field.N) + ROWS - 1) // ROWS
        n_groups = (field(op, Field.K) + GROUP - 1) // GROUP
        w, d, m = field(op, Field.W), field(op, Field.D), field(op, Field.M)
        first, last = share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)
        if rows != 1:
            several_rows(op, rows, x, y, first, last, n_groups, w, d, m)
            return
        stride, scales_stride = n_groups * group_bytes, n_groups * 32
        out = tile_memory()
        for block in range(first, last):
            scales = block * scales_stride
            one(w + block * stride, d + scales, m + scales, stride, scales_stride, x, n_groups, out)
            finish(op, y, block, load_f32x16(out))

    return kernel


def q8_products(rows, blocks):
    """Products with q8 weights for another kernel (see ``_products``); registers must hold rows x blocks vectors."""
    tile = Tile(rows, blocks)
    return _products(tile, _q8(tile), 512, has_minimum=False, fetches=False)


q4 = _kernel(lambda tile: _q4(tile, MINUS_EIGHT), 256, has_minimum=False)
q4m = _kernel(lambda tile: _q4(tile, None), 256, has_minimum=True)
q8 = _kernel(_q8, 512, has_minimum=False)


@op_kernel
def linear_q4(op, run, tid, n_threads):
    """4-bit weights, symmetric or with minima."""
    if field(op, Field.M) == 0:
        q4(op, run, tid, n_threads)
    else:
        q4m(op, run, tid, n_threads)


@op_kernel
def linear_q8(op, run, tid, n_threads):
    """8-bit weights."""
    q8(op, run, tid, n_threads)
