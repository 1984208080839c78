"""A text that ends with passages of its own: what a policy must find again far back.

Mean divergence on ordinary text hardly notices whether single facts can still be found. Plans that cost 0.02 nats a
token there lost a number that was hidden in the text (``edgerun.measure.tasks.needle``) in 5 of 25 cases; with
passages that come again they cost 0.3 to 0.4, and those that lost none 0.1 to 0.15.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PASSAGES, LENGTH = 16, 16
"""Passages that come again, and their tokens: of each some are predicted from the text before, and those that follow
from where they stood first."""
MOST, MOST_SHARED = 0.2, 0.15
"""Nats a token that a policy may cost on them: DELTA alone, and with DeltaLLM's keys, which at 0.17 lost 3 numbers of
27, at 0.13 none."""


def repeated(tokens: Sequence[int]) -> tuple[list[int], int]:
    """A text of as many tokens, and how many at its end are passages from everywhere before, in an order that is always
    the same; none where a text is too short."""
    count = min(PASSAGES, len(tokens) // (8 * LENGTH))
    body = list(tokens[: len(tokens) - count * LENGTH])
    found = body.copy()
    for i in np.random.default_rng(0).permutation(count):
        start = int((i + 0.5) / count * (len(body) * 7 / 8))
        found += body[start : start + LENGTH]
    return found, count * LENGTH
