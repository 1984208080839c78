"""Texts that end with passages of their own."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.calibration.repeats import LENGTH, PASSAGES, repeated


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 5000))
def test_the_end_repeats_what_stood_everywhere_before(n: int) -> None:
    tokens = list(range(n))
    found, n_repeated = repeated(tokens)
    assert len(found) == n and n_repeated == LENGTH * min(PASSAGES, n // (8 * LENGTH))
    body, end = found[: n - n_repeated], found[n - n_repeated :]
    assert body == tokens[: len(body)]
    passages = [end[at : at + LENGTH] for at in range(0, n_repeated, LENGTH)]
    starts = sorted(passage[0] for passage in passages)
    assert all(passage == list(range(passage[0], passage[0] + LENGTH)) for passage in passages)
    assert all(b - a >= LENGTH for a, b in itertools.pairwise(starts))  # of different places
    assert not starts or starts[-1] + LENGTH <= len(body)
    assert repeated(tokens) == (found, n_repeated)
