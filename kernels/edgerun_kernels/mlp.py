"""The gated MLP's activation: silu(gate) * up."""

from .kernel import op_kernel
from .math import share, silu
from .record import ROWS, Field, Run
from .simd.ops import load_f32x16, load_i64, store_f32x16


@op_kernel
def swiglu(op, run, tid, n_threads):
    """x = silu(x) * up, in place; a thread takes the columns that it has just computed, so no barrier is needed."""
    arena = load_i64(run + 8 * Run.ARENA)
    x0, up0 = arena + load_i64(op + 8 * Field.X), arena + load_i64(op + 8 * Field.UP)
    stride = load_i64(op + 8 * Field.X_STRIDE)
    n_blocks = (load_i64(op + 8 * Field.N) + ROWS - 1) // ROWS
    for row in range(load_i64(run + 8 * Run.N_ROWS)):
        x, up = x0 + row * stride, up0 + row * stride
        for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
            gate = load_f32x16(x + 64 * block)
            store_f32x16(x + 64 * block, silu(gate) * load_f32x16(up + 64 * block))
