"""How long DELTA's choices stand: whatever a session has been through, as if only what it holds had been run."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from edgerun.attention.delta import Delta
from edgerun.attention.selection import Selection

CONTEXT = 400


def plays(selection: Selection, position: int, n_rows: int) -> list[list[int]]:
    """A run; of one token, pages that follow from its position alone are chosen. The lists that it attends to."""
    selection.before(position, n_rows)
    if n_rows == 1:
        for layer in np.flatnonzero(~selection.held):
            seed = np.random.default_rng((position, int(layer)))
            n = position // 16 + 1
            old = seed.permutation(n - 1)[: selection.delta.budget - 1]
            pages = np.sort([*old, n - 1])
            selection.lists[layer, 0] = len(pages)
            selection.lists[layer, 1 : 1 + len(pages)] = pages
    found = [chosen[1 : 1 + chosen[0]].tolist() for chosen in selection.lists]
    selection.after(position, n_rows)
    return found


@given(
    refresh=st.integers(1, 40),
    n_select=st.integers(1, 4),
    budget=st.integers(1, 6),
    steps=st.lists(st.tuples(st.sampled_from(["decode", "prefill", "rewind", "copy"]), st.integers(1, 60)), max_size=9),
)
def test_a_session_is_what_it_holds(refresh: int, n_select: int, budget: int, steps: list[tuple[str, int]]) -> None:
    delta = Delta((), tuple(range(n_select)), budget, 1, refresh)
    selection = Selection(delta, CONTEXT)
    held: list[int] = []  # rows of the runs that made every token that is held
    for kind, n in steps:
        n = min(n, CONTEXT - len(held))
        if kind == "decode":
            for _ in range(n):
                plays(selection, len(held), 1)
                held.append(1)
        elif kind == "prefill" and n > 1:
            plays(selection, len(held), n)
            held += [n] * n
        elif kind == "rewind" and held:
            del held[len(held) - min(n, len(held)) :]
            selection.rewind(len(held))
        elif kind == "copy":
            other = Selection(delta, CONTEXT)
            other.load(selection.arrays(), len(held))
            selection = other
    fresh = Selection(delta, CONTEXT)
    at = 0
    while at < len(held):
        n = 1 if held[at] == 1 else next((i for i, rows in enumerate(held[at:]) if rows == 1), len(held) - at)
        plays(fresh, at, n)
        at += n
    for position in range(len(held), min(len(held) + 10, CONTEXT)):
        got, wanted = plays(selection, position, 1), plays(fresh, position, 1)
        assert got == wanted
        assert all(pages[-1] == position // 16 and pages == sorted(set(pages)) for pages in got)


def test_layers_choose_in_turn() -> None:
    selection = Selection(Delta((), (0, 3, 7), 4, 1, 6), CONTEXT)
    chose = []
    for position in range(100, 113):
        plays(selection, position, 1)
        chose.append(np.flatnonzero(~selection.held).tolist())
    assert chose[0] == [0, 1, 2]
    assert chose[1:] == [[], [2], [], [1], [], [0]] * 2


@pytest.mark.parametrize(
    ("key", "at", "value"),
    [
        ("past", (0, 0), 7),  # before decoding began
        ("past", (1, 1), 0),  # the second layer chose nothing then
        ("past", (2, 2), -1),  # no pages
        ("past", (2, 2), 6),  # not ascending
        ("past", (2, 3), 9),  # not its own page
        ("past", (0, 0), -1),
        ("begun", (0, 0), 400),
    ],
)
def test_what_cannot_have_been_is_refused(key: str, at: tuple[int, int], value: int) -> None:
    delta = Delta((), (0, 1), 2, 1, 4)
    selection = Selection(delta, CONTEXT)
    for position in range(100, 110):
        plays(selection, position, 1)
    arrays = selection.arrays()
    Selection(delta, CONTEXT).load(arrays, 110)
    arrays[key][at] = value
    with pytest.raises(ValueError, match="not what they must be"):
        Selection(delta, CONTEXT).load(arrays, 110)
