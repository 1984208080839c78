"""The cache's pages: shared, copied before they are written, found again by what they hold, within a budget."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from edgerun import CacheFullError, Model, Session
from edgerun.engine.pages import PagePool
from edgerun.engine.prefixes import Prefixes
from edgerun_kernels.record import PAGE
from tests.variants.made import write

TOKENS = [int(t) for t in np.random.default_rng(4).integers(0, 90, 480)]
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture
def model(package: Path):
    with Model(package, threads=2) as model:
        yield model


def answer(session: Session, prompt: list[int], n: int = 6) -> tuple[list[int], int]:
    generation = session.generate(prompt, max_tokens=n, **GREEDY)
    generation.read()
    return generation.token_ids, generation.timings.cached_tokens


def test_a_second_request_reads_what_the_first_has_computed(model: Model) -> None:
    pool, prompt = model.kv_cache.pool, TOKENS[:300]
    first = model.session()
    wanted, cached = answer(first, prompt)
    assert cached == 0
    held = pool.bytes
    second = model.session()
    got, cached = answer(second, prompt)
    assert (got, cached) == (wanted, len(prompt) - 1)
    assert pool.bytes == held + pool.page_bytes  # the whole page is shared, the begun one is its own
    assert second.sequence.pages[0] is first.sequence.pages[0]
    got, cached = answer(model.session(), [*prompt[:290], 3, 4, 5])
    assert cached == 290
    with Model(model.package.folder, threads=1) as other:
        assert got == answer(other.session(), [*prompt[:290], 3, 4, 5])[0]


def test_what_a_session_leaves_is_found_by_others(model: Model) -> None:
    answer(model.session(), TOKENS[:300])
    gc.collect()
    assert model.kv_cache.pool.bytes == 2 * model.kv_cache.pool.page_bytes
    assert answer(model.session(), TOKENS[:300])[1] == 299
    model.kv_cache.prefixes.clear()
    gc.collect()
    assert model.kv_cache.pool.bytes == 0
    assert answer(model.session(), TOKENS[:300])[1] == 0


def test_only_those_share_who_compute_alike(model: Model) -> None:
    answer(model.session(), TOKENS[:100])
    assert answer(model.session(attention="delta:budget=64,recent=32,select=0"), TOKENS[:100])[1] == 0
    assert answer(model.session(sparsity="zero"), TOKENS[:100])[1] == 0
    assert answer(model.session(attention="deltallm:theta=0.5"), TOKENS[:100])[1] == 0


def test_a_fork_copies_nothing_until_it_is_written(model: Model) -> None:
    session = model.session()
    session.prefill(TOKENS[:300])
    pool = model.kv_cache.pool
    held = pool.bytes
    forks = [session.fork() for _ in range(5)]
    assert pool.bytes == held
    wanted = session.decode(7).copy()
    assert pool.bytes == held + pool.page_bytes
    for fork in forks:
        np.testing.assert_array_equal(fork.decode(7), wanted)
    assert pool.bytes == held + 5 * pool.page_bytes  # the last of them has what is left
    del forks, fork
    gc.collect()
    assert pool.bytes == held
    session.rewind(200)
    assert pool.bytes == held - pool.page_bytes


def test_what_was_promised_is_not_overwritten(model: Model) -> None:
    session = model.session()
    wanted, _ = answer(session, TOKENS[:300], 4)
    session.rewind(10)
    session.prefill([1, 2, 3] * 50)
    got, cached = answer(model.session(), TOKENS[:300], 4)
    assert (got, cached) == (wanted, 299)


def test_a_full_cache_says_so(package: Path) -> None:
    with Model(package, threads=1) as model:
        page = model.kv_cache.pool.page_bytes
    with Model(package, threads=1, cache_bytes=2 * page) as model:
        one, two = model.session(), model.session()
        one.prefill(TOKENS[:100])
        two.prefill(TOKENS[:100])
        with pytest.raises(CacheFullError, match=r"cache_bytes, or close sessions"):
            model.session().prefill(TOKENS[:10])
        two.reset()
        model.session().prefill(TOKENS[:10])


def test_who_comes_first_goes_on_where_the_cache_is_full(package: Path) -> None:
    """Requests that have to begin again give the same texts."""
    prompts = [TOKENS[20 * i : 20 * i + 230] for i in range(6)]
    with Model(package, threads=2) as model:
        page = model.kv_cache.pool.page_bytes
        wanted = [answer(model.session(), prompt, 60)[0] for prompt in prompts]
    with Model(package, threads=2, cache_bytes=4 * page) as model:
        generations = model.generate_many(prompts, max_tokens=60, **GREEDY)
        assert [generation.token_ids for generation in generations] == wanted
        assert model.kv_cache.pool.bytes <= 4 * page


@pytest.mark.parametrize("sparsity", ["none", "zero"])
def test_who_made_room_in_a_step_begins_again_after_it(package: Path, sparsity: str) -> None:
    """The first needs a second page as the other, which has two, decodes in the same step; three are all there are."""
    prompts = [TOKENS[:190], TOKENS[100:400]]
    with Model(package, threads=1, sparsity=sparsity) as model:
        page = model.kv_cache.pool.page_bytes
        wanted = [answer(model.session(), prompt, 120)[0] for prompt in prompts]
    with Model(package, threads=1, cache_bytes=3 * page, sparsity=sparsity) as model:
        generations = model.generate_many(prompts, max_tokens=120, **GREEDY)
        assert [generation.token_ids for generation in generations] == wanted


def test_who_has_ended_keeps_what_its_session_holds(package: Path) -> None:
    """One ends in the step in which another, that decodes by itself, finds the cache full."""
    with Model(package, threads=1) as model:
        page = model.kv_cache.pool.page_bytes
    with Model(package, threads=1, cache_bytes=3 * page) as model:
        one, two = model.session(), model.session(sparsity="zero")
        ending, going = one.generate(TOKENS[:300], max_tokens=7, **GREEDY), two.generate(TOKENS[:251], **GREEDY)
        next(ending), next(going)
        ending.eager = going.eager = True
        with pytest.raises(CacheFullError):
            going.read()
        ending.read()
        assert len(one.tokens) == 306


def test_what_several_variants_have_made_is_nobody_elses(package: Path, tmp_path: Path) -> None:
    """Nor is it once it has been saved and restored."""
    variant = str(write(package, tmp_path / "one.safetensors"))
    with Model(package, threads=1) as model:
        wanted = answer(model.session(), TOKENS[:100])
        model.kv_cache.prefixes.clear()
        session = model.session(variant)
        session.prefill(TOKENS[:90])
        session.use("none", keep=True)
        session.save(tmp_path / "saved")
        for mixed in (session, session.fork(), model.restore(tmp_path / "saved")):
            answer(mixed, TOKENS[:100])
            assert answer(model.session(), TOKENS[:100]) == wanted
            model.kv_cache.prefixes.clear()


def test_a_prompt_that_is_known_is_computed_where_there_is_no_room_for_a_copy(package: Path) -> None:
    with Model(package, threads=1) as model:
        page = model.kv_cache.pool.page_bytes
    with Model(package, threads=1, cache_bytes=2 * page) as model:
        session = model.session()
        wanted = answer(session, TOKENS[:300])[0]
        other = model.session()
        with pytest.raises(CacheFullError):
            answer(other, TOKENS[:300])
        assert other.position == PAGE  # what it shares
        del session
        gc.collect()
        assert answer(other, TOKENS[:300])[0] == wanted


def test_the_index_forgets_what_was_used_longest_ago() -> None:
    pool = PagePool(64, None)
    prefixes = Prefixes(pool, 3 * 64)
    for i in range(5):
        page = pool.new()
        prefixes.keep("key", [i] * PAGE, [page])
        pool.release(page)
        found, _, _ = prefixes.find("key", [0] * PAGE)
        for one in found:
            pool.release(one)
    assert pool.bytes == 3 * 64
    known = [i for i in range(5) if prefixes.find("key", [i] * PAGE)[0]]
    assert known == [0, 3, 4]


def test_a_begun_page_is_found_as_far_as_it_goes() -> None:
    pool = PagePool(64, None)
    prefixes = Prefixes(pool, 1 << 20)
    pages = [pool.new(), pool.new()]
    tokens = list(range(PAGE + 40))
    prefixes.keep("key", tokens, pages)
    assert not pool.may_write(pages[0], 255) and not pool.may_write(pages[1], 39) and pool.may_write(pages[1], 40)
    whole, begun, n = prefixes.find("key", [*tokens[: PAGE + 30], 7])
    assert (whole, begun, n) == ([pages[0]], pages[1], 30)
    assert prefixes.find("other", tokens) == ([], None, 0)
    assert prefixes.find("key", [1, *tokens[1:]]) == ([], None, 0)
    prefixes.keep("key", list(range(PAGE + 60)), pages)
    assert prefixes.find("key", list(range(PAGE + 60)))[2] == 60
