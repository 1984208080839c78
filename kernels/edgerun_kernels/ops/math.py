"""Transcendental functions over vectors, and splitting work between threads."""

import numpy as np

from ..kernel import inner
from ..simd.ops import fma, power_of_two, round_to_int, splat, to_float, vmax, vmin

LOG2E = np.float32(1.44269504088896341)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
LOWEST = np.float32(-87.0)
HIGHEST = np.float32(88.0)
ONE = np.float32(1)
ZERO = np.float32(0)


@inner
def exp(x):
    """e**x per lane, relative error below 2e-7; x is clamped to [-87, 88]. Polynomial of Cephes' expf."""
    x = vmin(vmax(x, splat(LOWEST)), splat(HIGHEST))
    n = round_to_int(x * splat(LOG2E))
    whole = to_float(n)
    r = fma(whole, splat(-LN2_HIGH), x)
    r = fma(whole, splat(-LN2_LOW), r)
    p = splat(np.float32(1.9875691500e-4))
    p = fma(p, r, splat(np.float32(1.3981999507e-3)))
    p = fma(p, r, splat(np.float32(8.3334519073e-3)))
    p = fma(p, r, splat(np.float32(4.1665795894e-2)))
    p = fma(p, r, splat(np.float32(1.6666665459e-1)))
    p = fma(p, r, splat(np.float32(5.0000001201e-1)))
    p = fma(p, r * r, r + splat(ONE))
    return p * power_of_two(n)


@inner
def silu(x):
    return x / (splat(ONE) + exp(splat(ZERO) - x))


@inner
def share(n, tid, n_threads):
    """The first of the items that thread ``tid`` takes of ``n``; thread ``tid + 1``'s first is the end."""
    return n * tid // n_threads
