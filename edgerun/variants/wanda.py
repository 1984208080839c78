"""Keep the elements of a delta that change the outputs most: Wanda's importance (Sun et al., arXiv 2306.11695) on
deltas, as DAREx compares it (arXiv 2410.09344)."""

from __future__ import annotations

from edgerun.variants.dare import Float
from edgerun.variants.magnitude import largest
from edgerun.variants.store import SparseDelta


def wanda(delta: Float, norms: Float, p: float) -> SparseDelta:
    """delta: float32 [N, K]. norms: float32 [K], ||x_k|| of every input over a text. Keeps the (1 - p) K elements of
    each row with the largest |delta| * ||x||, not rescaled; a row is Wanda's comparison group."""
    return largest(delta, abs(delta) * norms, p)
