"""Sessions: what the cache holds, chunks, rewinding, several sessions and threads, and what is refused."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun import ContextError, EdgerunError, Model, OptionError
from edgerun.model import default_threads, prefill_rows
from edgerun_kernels.runtime.width import Width

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 330)]


@pytest.fixture(scope="module")
def model(package: Path):
    with Model(package, threads=2) as model:
        yield model


def test_prefill_decode_and_score_agree(model: Model) -> None:
    scored = np.concatenate([rows.copy() for rows in model.session().score(TOKENS, chunk=50)])
    prefilled, decoded = model.session(), model.session()
    for i, token in enumerate(TOKENS[:20]):
        np.testing.assert_allclose(decoded.decode(token), scored[i], rtol=0, atol=2e-3 * np.abs(scored).max())
    last = prefilled.prefill(TOKENS)  # more than one chunk, across a page of the cache
    np.testing.assert_allclose(last, scored[-1], rtol=0, atol=2e-3 * np.abs(scored).max())
    assert prefilled.tokens == TOKENS
    assert prefilled.position == len(TOKENS)


def test_every_number_of_threads_gives_the_same_bits(package: Path) -> None:
    wanted = None
    for threads in (1, 2, 3, 8):
        with Model(package, threads=threads) as model:
            session = model.session()
            got = np.concatenate([session.prefill(TOKENS).copy(), session.decode(7).copy(), session.decode(8).copy()])
        wanted = got if wanted is None else wanted
        np.testing.assert_array_equal(got, wanted)


def test_fewer_threads_from_run_to_run_give_the_same_bits(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the team does beside busy cores: one row by so many threads of eight, the next by others."""
    monkeypatch.setattr("edgerun.model.default_threads", lambda: 8)
    got = []
    for widths in ([8], [8, 1, 5, 2, 7, 3]):
        with Model(package, threads=8) as model:
            monkeypatch.setitem(model.runner._widths, 1, Widths(widths))
            session = model.session()
            session.prefill(TOKENS)
            got.append(np.stack([session.decode(token).copy() for token in TOKENS[:20]]))
    np.testing.assert_array_equal(*got)


class Widths(Width):
    """These numbers of threads in turn."""

    def __init__(self, widths: list[int]) -> None:
        self._widths = itertools.cycle(widths)
        self.now, self.most = next(self._widths), 8

    def ran(self, seconds: float, stalled: bool) -> None:
        self.now = next(self._widths)


def test_rewinding_is_as_if_the_rest_had_never_been(model: Model) -> None:
    session, fresh = model.session(), model.session()
    session.prefill(TOKENS)
    for length in (300, 256, 255, 17, 0):
        session.rewind(length)
        fresh.reset()
        if length:
            fresh.prefill(TOKENS[:length])
        np.testing.assert_allclose(session.decode(5), fresh.decode(5), atol=1e-3)
        session.rewind(length)
        assert session.position == length
    with pytest.raises(OptionError, match="rewind to 9 tokens: the session holds 0"):
        session.rewind(9)


def test_sessions_do_not_disturb_each_other(model: Model) -> None:
    prompts = [TOKENS[i : i + 40 + i] for i in range(6)]
    wanted = [model.session().prefill(p).copy() for p in prompts]
    got: dict[int, list[np.ndarray]] = {i: [] for i in range(len(prompts))}

    def work(i: int) -> None:
        for _ in range(5):
            got[i].append(model.session().prefill(prompts[i]).copy())

    threads = [threading.Thread(target=work, args=(i,)) for i in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in got.items():
        assert len(results) == 5
        for result in results:
            np.testing.assert_array_equal(result, wanted[i])


@pytest.mark.parametrize(
    ("compute", "cache"),
    [("mixed", "f16"), ("int8", "f16"), ("int16", "f16"), ("float32", "f16"), ("int16", "f32"), ("int16", "q8")],
)
def test_every_arithmetic_is_close_to_exact(package: Path, compute: str, cache: str) -> None:
    with Model(package, threads=1, compute="float32", cache="f32") as exact:
        wanted = exact.session().prefill(TOKENS[:60]).copy()
    with Model(package, threads=2, compute=compute, cache=cache) as model:  # type: ignore[arg-type]
        got = model.session().prefill(TOKENS[:60])
    bound = 0.05 if compute in ("mixed", "int8") else 0.02 if cache == "q8" else 2e-3
    assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("cache", ["f16", "q8"])
def test_decoding_gives_what_prefill_gives(package: Path, cache: str) -> None:
    """Across the border of two pages; the parts of the cache are summed in another order."""
    ids = (TOKENS * 8)[:300]
    with Model(package, threads=2, compute="int16", cache=cache) as model:  # type: ignore[arg-type]
        whole, steps = model.session(), model.session()
        wanted = np.concatenate([part.copy() for part in whole.score(ids)])[250:]
        steps.prefill(ids[:250])
        got = np.stack([steps.decode(i).copy() for i in ids[250:]])
    assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_the_profile_counts_every_op_and_changes_nothing(package: Path) -> None:
    with Model(package, threads=2) as model:
        plain, measured = model.session(), model.session()
        plain.prefill(TOKENS[:40])
        measured.prefill(TOKENS[:40])
        wanted = plain.decode(TOKENS[40]).copy()
        model.profile = np.zeros((2, len(model.tape.ops)), np.int64)
        got = measured.decode(TOKENS[40]).copy()
        assert (model.profile[0] > 0).all()
    np.testing.assert_array_equal(got, wanted)


def test_no_more_threads_than_processors(package: Path) -> None:
    with Model(package, threads=64) as model:
        assert model.threads == default_threads()


def test_too_many_tokens_are_refused_before_anything_runs(package: Path) -> None:
    with Model(package, context=100) as model:
        session = model.session()
        session.prefill(TOKENS[:90])
        with pytest.raises(ContextError, match=r"11 tokens after the 90 in the session do not fit the context of 100"):
            session.prefill(TOKENS[:11])
        assert session.position == 90
        session.prefill(TOKENS[:10])
        with pytest.raises(ContextError):
            session.decode(1)
        with pytest.raises(
            ContextError, match=r"101 tokens do not fit the context of 100 tokens; load it with a larger"
        ):
            model.generate(TOKENS[:101])


@pytest.mark.parametrize("tokens", [[], [-1], [10**6], [[1, 2]]])
def test_tokens_that_make_no_sense_are_refused(model: Model, tokens: list[int]) -> None:
    with pytest.raises(OptionError):
        model.session().prefill(tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": 65},
        {"threads": 1.5},
        {"context": 0},
        {"context": 10**9},
        {"compute": "f8"},
        {"cache": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(package: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        edgerun.load(package, **options)  # type: ignore[arg-type]


def test_a_closed_model_says_so(package: Path) -> None:
    model = Model(package, threads=2)
    session = model.session()
    model.close()
    model.close()
    with pytest.raises(EdgerunError, match="closed"):
        session.prefill([1])


def test_more_threads_than_rows_and_processors(package: Path) -> None:
    with Model(package, threads=16) as model:
        session = model.session()
        for token in TOKENS[:5]:
            session.decode(token)


@pytest.mark.parametrize(("intermediate_size", "rows"), [(50, 256), (1536, 256), (4096, 128), (6912, 64), (14336, 64)])
def test_large_models_take_fewer_rows_at_once(intermediate_size: int, rows: int) -> None:
    assert prefill_rows(intermediate_size) == rows
