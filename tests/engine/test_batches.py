"""Rows of several sequences in one run: every sequence's logits are the bits that it has alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun import Model, Session
from tests.variants.made import write

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 90, 700)]
POLICIES = ("full", "deltallm:theta=1.3", "delta:budget=64,recent=32,select=0")


@pytest.fixture(scope="module", params=[("f16", 1), ("q8", 2), ("f32", 3)], ids=lambda p: f"{p[0]}-{p[1]}")
def model(two_layers: Path, request: pytest.FixtureRequest):
    cache, threads = request.param
    with Model(two_layers, threads=threads, cache=cache) as model:
        yield model


@pytest.fixture(scope="module")
def variants(two_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("variants")
    return [
        str(write(two_layers, folder / f"{i}.safetensors", kind, i)) for i, kind in ((1, "dare 0.9"), (2, "magnitude"))
    ]


def together(model: Model, sessions: list[Session], parts: list[list[int]]) -> list[np.ndarray]:
    """One run of a part of each session; the logits after each part's last token."""
    logits = np.empty((len(parts), model.tape.logits_stride), np.float32)
    batch = [s.sequence.begin(part, 1, len(part) == 1) for s, part in zip(sessions, parts, strict=True)]
    model.runner.run(batch, logits)
    for session, part in zip(sessions, parts, strict=True):
        session.sequence.done(part)
    return [row[: model.vocab_size].copy() for row in logits]


def alone(session: Session, part: list[int]) -> np.ndarray:
    return session.prefill(part).copy()


@settings(max_examples=25, deadline=None)
@given(
    starts=st.lists(st.sampled_from([0, 1, 15, 100, 127, 128, 250, 256, 300, 500]), min_size=1, max_size=5),
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 4, 16, 17]), min_size=5, max_size=5),
    kinds=st.lists(st.tuples(st.sampled_from(POLICIES), st.integers(0, 2)), min_size=5, max_size=5),
)
def test_a_sequence_is_the_same_bits_in_any_company(
    model: Model, variants: list[str], starts: list[int], sizes: list[int], kinds: list[tuple[str, int]]
) -> None:
    """Decoded rows, drafts and pieces of prompts, with and without policies and variants, in one run."""
    n = len(starts)
    specs = [(["none", *variants][which], policy) for policy, which in kinds[:n]]
    sizes = [min(size, 128 - start % 128) for start, size in zip(starts, sizes, strict=False)]  # a run is one step
    parts = [TOKENS[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    wanted = []
    for (variant, policy), start, part in zip(specs, starts, parts, strict=True):
        session = model.session(variant, policy)
        if start:
            session.prefill(TOKENS[:start])
        wanted.append(alone(session, part))
    sessions = [model.session(variant, policy) for variant, policy in specs]
    for session, start in zip(sessions, starts, strict=True):
        if start:
            session.prefill(TOKENS[:start])
    for got, expected in zip(together(model, sessions, parts), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_prompt_may_be_cut_anywhere(model: Model) -> None:
    """Prefill in any pieces, and token by token, gives the same bits: of the logits and of what follows."""
    whole = model.session()
    wanted = whole.prefill(TOKENS[:400]).copy(), whole.decode(5).copy()
    for cuts in ([1, 2, 30, 131, 399], [256], list(range(390, 400))):
        session = model.session()
        for start, end in zip([0, *cuts], [*cuts, 400], strict=True):
            last = session.prefill(TOKENS[start:end])
        np.testing.assert_array_equal(last, wanted[0])
        np.testing.assert_array_equal(session.decode(5), wanted[1])
    rows = np.concatenate([part.copy() for part in model.session().score(TOKENS[:400], chunk=50)])
    np.testing.assert_array_equal(rows[-1], wanted[0])


def test_many_rows_of_many_sequences(model: Model) -> None:
    """More than there is room for parts of: forty sequences decode together."""
    sessions = [model.session() for _ in range(40)]
    for i, session in enumerate(sessions):
        session.prefill(TOKENS[i : 2 * i + 20])
    others = [session.fork() for session in sessions]
    got = together(model, sessions, [[i] for i in range(40)])
    for i, other in enumerate(others):
        np.testing.assert_array_equal(got[i], alone(other, [i]))
