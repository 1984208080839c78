"""The gated MLP's activation: silu(gate) * up."""

from .kernel import op_kernel
from .math import share, silu
from .record import ROWS, Field, Run
from .simd.ops import field, load_f32x16, store_f32x16


@op_kernel
def swiglu(op, run, tid, n_threads):
    """x = silu(x) * up, in place; a thread takes the columns that it has just computed, so no barrier is needed."""
    arena = field(run, Run.ARENA)
    x0, up0 = arena + field(op, Field.X), arena + field(op, Field.UP)
    stride = field(op, Field.X_STRIDE)
    n_blocks = (field(op, Field.N) + ROWS - 1) // ROWS
    for row in range(field(run, Run.N_ROWS)):
        x, up = x0 + row * stride, up0 + row * stride
        for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
            gate = load_f32x16(x + 64 * block)
            store_f32x16(x + 64 * block, silu(gate) * load_f32x16(up + 64 * block))
