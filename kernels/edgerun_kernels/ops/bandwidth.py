"""Reads memory as fast as the vector unit can, to say what the machine's bandwidth is."""

from ..kernel import op_kernel
from ..layouts import Head, Read
from ..record import Run
from ..simd.ops import field, load_i32x16, store_i32, sum_i32, zero_i32
from .math import share


@op_kernel
def read_memory(op, run, tid, n_threads):
    """Sums LINES of 64 bytes at W; each thread a part; the sums go to the arena so that nothing is optimised away."""
    w, n = field(op, Read.W), field(op, Read.LINES) // 4
    first, last = share(n, tid, n_threads), share(n, tid + 1, n_threads)
    a, b, c, d = zero_i32(), zero_i32(), zero_i32(), zero_i32()
    for i in range(first, last):
        address = w + 256 * i
        a = a + load_i32x16(address)
        b = b + load_i32x16(address + 64)
        c = c + load_i32x16(address + 128)
        d = d + load_i32x16(address + 192)
    store_i32(field(run, Run.ARENA) + field(op, Head.Y) + 64 * tid, sum_i32(a + b + (c + d)))
