"""The gated MLP's activations: silu(gate) * up, and relu(gate)**2 * up."""

from ..kernel import inner, op_kernel
from ..layouts import Gate, Head
from ..record import ROWS, Run
from ..simd.ops import field, load_f32x16, splat, store_f32x16, vmax
from .math import ZERO, share, silu


@inner
def squared(gate):
    positive = vmax(gate, splat(ZERO))
    return positive * positive


def _gated(name, activation):
    """x = activation(x) * up, in place; a thread takes the columns that it has just computed: no barrier is needed."""

    def kernel(op, run, tid, n_threads):
        arena = field(run, Run.ARENA)
        x0, up0 = arena + field(op, Head.X), arena + field(op, Gate.UP)
        stride = field(op, Head.X_STRIDE)
        n_blocks = (field(op, Gate.N) + ROWS - 1) // ROWS
        for row in range(field(run, Run.N_ROWS)):
            x, up = x0 + row * stride, up0 + row * stride
            for block in range(share(n_blocks, tid, n_threads), share(n_blocks, tid + 1, n_threads)):
                gate = load_f32x16(x + 64 * block)
                store_f32x16(x + 64 * block, activation(gate) * load_f32x16(up + 64 * block))

    kernel.__name__ = name
    return op_kernel(kernel)


swiglu = _gated("swiglu", silu)
squared_relu = _gated("squared_relu", squared)
