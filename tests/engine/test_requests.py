"""Requests together: threads, event loops, cancels, interrupts, several answers, many prompts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from edgerun import ContextError, EdgerunError, Generation, Model, OptionError

TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 90, 400)]
PROMPTS = [TOKENS[7 * i : 9 * i + 12] for i in range(12)]
SAMPLED = {"temperature": 1.0, "seed": 11, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(package: Path):
    with Model(package, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def wanted(model: Model) -> list[list[int]]:
    """What each prompt gives alone."""
    found = []
    for prompt in PROMPTS:
        generation = model.generate(prompt, **SAMPLED)
        generation.read()
        found.append(generation.token_ids)
    return found


def test_generations_in_turns_are_decoded_together(model: Model, wanted: list[list[int]]) -> None:
    """Whoever is asked, all that are waited for go on: there are fewer runs than tokens."""
    runs, run = [], model.runner.run
    generations = [model.generate(prompt, **SAMPLED) for prompt in PROMPTS]
    model.runner.run = lambda batch, *rest: (runs.append(len(batch)), run(batch, *rest))[1]  # type: ignore[method-assign]
    try:
        alive = list(generations)
        while alive:
            alive = [generation for generation in alive if next(generation, None) is not None]
    finally:
        del model.runner.run
    assert [generation.token_ids for generation in generations] == wanted
    assert max(runs) == len(PROMPTS) and len(runs) < sum(map(len, wanted)) / 4


def test_threads(model: Model, wanted: list[list[int]]) -> None:
    got: dict[int, list[int]] = {}

    def work(i: int) -> None:
        for _ in range(3):
            generation = model.generate(PROMPTS[i], **SAMPLED)
            generation.read()
            got[i] = generation.token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(PROMPTS))] == wanted


def test_event_loops(model: Model, wanted: list[list[int]]) -> None:
    """Many generations on one loop, which goes on meanwhile, with one thread for all of them."""
    ticks = 0

    async def read(prompt: list[int]) -> list[int]:
        generation = model.generate(prompt, **SAMPLED)
        return [token async for piece in generation for token in piece.token_ids]

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def main() -> list[list[int]]:
        ticking = asyncio.create_task(tick())
        try:
            return await asyncio.gather(*(read(prompt) for prompt in PROMPTS))
        finally:
            ticking.cancel()

    before = threading.active_count()
    assert asyncio.run(main()) == wanted
    assert ticks > 50 and threading.active_count() <= before + 1


def test_an_event_loop_may_stop_waiting(model: Model, wanted: list[list[int]]) -> None:
    async def main() -> list[int]:
        generation = model.generate(PROMPTS[3], **SAMPLED)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(generation.__anext__(), 0)
        return [token async for piece in generation for token in piece.token_ids]

    assert asyncio.run(main()) == wanted[3]


def test_what_no_event_loop_waits_for_any_more_is_not_computed(model: Model, wanted: list[list[int]]) -> None:
    """Tasks are cancelled and loops closed while the engine reads for them; what they dropped is gone."""
    dropped: list[weakref.ref[Generation]] = []

    async def give_up() -> None:
        generation = model.generate(TOKENS, **SAMPLED)
        dropped.append(weakref.ref(generation))
        await asyncio.wait_for(generation.__anext__(), 0.0001)

    for _ in range(5):
        with contextlib.suppress(asyncio.TimeoutError):
            asyncio.run(give_up())
    loop = asyncio.new_event_loop()
    future = model.engine.wait_for(model.generate(PROMPTS[1], **SAMPLED), loop)
    loop.close()
    generation = model.generate(PROMPTS[2], **SAMPLED)
    generation.read()
    assert generation.token_ids == wanted[2] and not future.done()
    gc.collect()
    assert not any(ref() for ref in dropped) and not model.engine._waiters


def test_cancelling_leaves_the_others_alone(model: Model, wanted: list[list[int]]) -> None:
    generations = [model.generate(prompt, **SAMPLED) for prompt in PROMPTS]
    for generation in generations:
        next(generation)
    for i, generation in enumerate(generations):
        if i % 3 == 0:
            generation.stop()
    for i, generation in enumerate(generations):
        generation.read()
        if i % 3 == 0:
            assert generation.finish_reason == "cancelled"
            assert generation.token_ids == wanted[i][: len(generation.token_ids)] != wanted[i]
        else:
            assert generation.token_ids == wanted[i]


def test_an_interrupt_in_whoever_makes_a_step_is_his_alone(
    model: Model, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    generations = [model.generate(prompt, **SAMPLED) for prompt in PROMPTS[:4]]
    for generation in generations:
        next(generation)
    run = model.runner.run

    def interrupted(*arguments: object) -> None:
        run(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generations[0].read()
    for generation, tokens in zip(generations, wanted, strict=False):
        generation.read()
        assert generation.token_ids == tokens


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that interrupt")
def test_interrupts_at_any_moment_change_no_text(package: Path, wanted: list[list[int]]) -> None:
    """Ctrl-C again and again, of whoever makes the steps, as other threads read."""
    others: list[list[int]] = []
    stopping = threading.Event()
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    with Model(package, threads=1) as model:

        def read() -> None:
            while not stopping.is_set():
                generation = model.generate(PROMPTS[1], **SAMPLED)
                generation.read()
                others.append(generation.token_ids)

        threads = [threading.Thread(target=read, daemon=True) for _ in range(2)]
        old = signal.signal(signal.SIGALRM, interrupt)
        interrupts, end, seconds = 0, time.perf_counter() + 1, random.Random(0)
        try:
            for thread in threads:
                thread.start()
            while time.perf_counter() < end:
                generation = model.generate(PROMPTS[2], **SAMPLED)
                while not generation.ended:
                    try:
                        armed = True
                        signal.setitimer(signal.ITIMER_REAL, seconds.uniform(0.0001, 0.003))
                        generation.read()
                        armed = False
                    except KeyboardInterrupt:
                        armed = False
                        interrupts += 1
                assert generation.token_ids == wanted[2]
                assert generation.text == model.tokenizer.decode(wanted[2])
        finally:
            stopping.set()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert interrupts > 20 and others and all(tokens == wanted[1] for tokens in others)


@pytest.mark.parametrize("attention", ["full", "deltallm:theta=1.3", "delta:budget=64,recent=32,select=0"])
def test_two_threads_on_one_session_are_told(package: Path, attention: str) -> None:
    told: list[EdgerunError] = []
    other: list[BaseException] = []
    with Model(package, threads=1) as model:
        session = model.session(attention=attention)

        def use(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(100):
                try:
                    match rng.randrange(4):
                        case 0:
                            session.prefill(TOKENS[: rng.randrange(1, 200)])
                        case 1:
                            session.decode(5)
                        case 2:
                            session.reset()
                        case 3:
                            session.fork().decode(3)
                except ContextError:
                    pass
                except EdgerunError as error:
                    told.append(error)
                except BaseException as error:
                    other.append(error)

        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told and "another thread uses this session" in str(told[0]) and not other
        session.reset()
        wanted = model.session(attention=attention).prefill(TOKENS[:99])
        np.testing.assert_array_equal(session.prefill(TOKENS[:99]), wanted)


def test_what_changes_a_session_ends_its_generation(model: Model) -> None:
    for change in (
        lambda s: s.generate(PROMPTS[1]), lambda s: s.rewind(3), lambda s: s.prefill([1]), lambda s: s.use("none")
    ):  # fmt: skip
        session = model.session()
        generation = session.generate(PROMPTS[5], **SAMPLED)
        next(generation)
        change(session)
        assert generation.finish_reason == "cancelled"
        assert next(generation, None) is None


def test_who_is_waited_for_may_be_withdrawn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads read a generation that a third ends: neither runs anything on its session from then on."""
    withdraw = model.engine.withdraw

    def slowly(request: Generation) -> None:  # type: ignore[override]
        withdraw(request)
        held = request.sequence.position
        time.sleep(0.05)
        assert request.sequence.position == held

    monkeypatch.setattr(model.engine, "withdraw", slowly)
    fresh = model.session().prefill(TOKENS[:40]).copy()
    session = model.session()
    generation = session.generate(PROMPTS[1], **{**SAMPLED, "max_tokens": 300})
    reading = [threading.Thread(target=generation.read) for _ in range(2)]
    for thread in reading:
        thread.start()
    while not generation.token_ids:
        time.sleep(0.001)
    session.reset()
    assert generation.finish_reason == "cancelled"
    np.testing.assert_array_equal(session.prefill(TOKENS[:40]), fresh)
    for thread in reading:
        thread.join()
    assert session.tokens == TOKENS[:40]


def test_who_drops_a_generation_gives_its_memory_back(model: Model) -> None:
    generations = [model.generate(prompt, **SAMPLED) for prompt in PROMPTS[:3]]
    for generation in generations:
        next(generation)
    known = [weakref.ref(generation) for generation in generations]
    del generations, generation
    gc.collect()
    assert not any(ref() for ref in known)
    assert model.generate(PROMPTS[0], **SAMPLED).read() is not None


def test_several_answers_share_their_prompt(model: Model) -> None:
    prompt = TOKENS[:300]
    seeds = []
    for i in range(4):
        generation = model.generate(prompt, **{**SAMPLED, "seed": 40 + i})
        generation.read()
        seeds.append(generation.token_ids)
    model.kv_cache.prefixes.clear()
    gc.collect()
    before = model.kv_cache.pool.bytes
    several = model.generate_several(prompt, 4, **{**SAMPLED, "seed": 40})
    for generation in several:
        next(generation)
    page = model.kv_cache.pool.page_bytes
    assert model.kv_cache.pool.bytes - before <= 6 * page  # the whole page once, the begun one each, and as it was kept
    for generation in reversed(several):
        generation.read()
    assert [generation.token_ids for generation in several] == seeds
    several = model.generate_several(prompt, 4, **{**SAMPLED, "seed": 40})
    several[3].withdraw()
    for generation in several[2::-1]:  # the first comes last
        generation.read()
    assert [generation.token_ids for generation in several] == [*seeds[:3], []]
    with pytest.raises(OptionError, match="n is 0"):
        model.generate_several(prompt, 0)


def test_many_prompts_in_order(model: Model, wanted: list[list[int]]) -> None:
    done: list[tuple[int, int]] = []
    got = model.generate_many(
        PROMPTS, parallel=5, progress=lambda at, of, what: done.append((at, of)), **SAMPLED
    )  # fmt: skip
    assert [generation.token_ids for generation in got] == wanted
    assert done[0] == (0, 12) and done[-1] == (12, 12) and done == sorted(done)
    assert model.generate_many([]) == []
    with pytest.raises(OptionError):
        model.generate_many([[10**6]])
    with pytest.raises(OptionError, match="parallel is 0"):
        model.generate_many(PROMPTS, parallel=0)


def test_conversations_and_texts_may_be_many(model: Model) -> None:
    messages = [{"role": "user", "content": "hello"}]
    one, two = model.generate_many([messages, "hello"], **SAMPLED)
    assert one.text == model.chat(messages, **SAMPLED).read()
    assert two.text == model.generate("hello", **SAMPLED).read()


def test_higher_priorities_are_served_first(model: Model) -> None:
    low, high = (model.generate(TOKENS[i : i + 300], **SAMPLED) for i in (0, 50))
    high.priority = 1
    low.eager = high.eager = True
    order: list[str] = []
    for name, generation in (("low", low), ("high", high)):
        ran = generation.ran
        generation.ran = lambda *a, name=name, ran=ran: (order.append(name), ran(*a))[1]  # type: ignore[method-assign]
    model.engine.step_with([low, high])
    assert order[0] == "high"
    low.withdraw()
    high.withdraw()


def test_scores_are_those_of_a_session(model: Model) -> None:
    """Continuations of shared and of other prompts, across runs and pages, in the order in which they were given."""
    pairs = [(TOKENS[:250], [1, 2, 3]), (TOKENS[:250], [4]), (TOKENS[:250], TOKENS[5:25]), (TOKENS[3:9], TOKENS[:300])]
    pairs += [(prompt, [i, 7]) for i, prompt in enumerate(PROMPTS)]
    done: list[int] = []
    got = model.score_many(pairs, progress=lambda at, of, what: done.append(at))
    assert done[-1] == len(pairs)
    for (prompt, continuation), scores in zip(pairs, got, strict=True):
        rows = np.concatenate([r.copy() for r in model.session().score([*prompt, *continuation])]).astype(np.float64)
        rows = rows[len(prompt) - 1 : -1]
        logs = (
            rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
        )
        np.testing.assert_allclose(scores, logs[np.arange(len(continuation)), continuation], atol=1e-4)
    with pytest.raises(OptionError, match="no tokens"):
        model.score_many([("hello", "")])


def test_a_prefix_of_all_prompts_is_read_once(model: Model) -> None:
    model.kv_cache.prefixes.clear()
    prompts = [[*TOKENS[:300], i, i + 1] for i in range(6)]
    got = model.generate_many(prompts, temperature=0, max_tokens=3, ignore_eos=True)
    assert [generation.timings.cached_tokens for generation in got] == [300] * 6
    for generation, prompt in zip(got, prompts, strict=True):
        alone = model.generate(prompt, temperature=0, max_tokens=3, ignore_eos=True)
        alone.read()
        assert generation.token_ids == alone.token_ids
