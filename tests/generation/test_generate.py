"""Generation: pieces, reasons to end, seeds, stop strings, log-probabilities, stopping from another thread."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from edgerun import Model, OptionError

PROMPT = list(range(10, 30))


@pytest.fixture(scope="module")
def model(package: Path):
    with Model(package, threads=2) as model:
        yield model


def test_greedy_takes_the_likeliest_token_each_time(model: Model) -> None:
    session = model.session()
    logits = session.prefill(PROMPT)
    wanted = []
    for _ in range(12):
        wanted.append(int(np.argmax(logits)))
        logits = session.decode(wanted[-1])
    generation = model.generate(PROMPT, temperature=0, max_tokens=12, ignore_eos=True)
    pieces = list(generation)
    assert generation.token_ids == wanted
    assert [t for p in pieces for t in p.token_ids] == wanted
    assert "".join(p.text for p in pieces) == generation.text
    assert generation.finish_reason == "length"
    assert generation.timings.prompt_tokens == len(PROMPT)
    assert generation.timings.decode_tokens == 11


def test_same_seed_same_text_at_every_number_of_threads(package: Path) -> None:
    texts = set()
    for threads in (1, 2, 3):
        with Model(package, threads=threads) as model:
            for _ in range(2):
                texts.add(tuple(_tokens(model, seed=7)))
    assert len(texts) == 1
    with Model(package, threads=2) as model:
        assert len({tuple(_tokens(model, seed=seed)) for seed in range(5)}) > 1


def _tokens(model: Model, **options: object) -> list[int]:
    generation = model.generate(PROMPT, temperature=1.0, max_tokens=24, ignore_eos=True, **options)
    generation.read()
    return generation.token_ids


def test_sampling_follows_the_distribution(model: Model) -> None:
    logits = model.session().prefill(PROMPT).astype(np.float64)
    wanted = np.exp(logits - logits.max())
    wanted /= wanted.sum()
    session, counts, n = model.session(), np.zeros(len(wanted)), 1500
    for seed in range(n):
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed, "max_tokens": 1}
        generation = session.generate(PROMPT, ignore_eos=True, **options)
        generation.read()
        counts[generation.token_ids[0]] += 1
    likely = wanted * n >= 5
    error = np.abs(counts - n * wanted)[likely] / np.sqrt(n * wanted * (1 - wanted))[likely]
    assert error.max() < 5


def test_the_cache_is_used_again_and_changes_nothing(model: Model) -> None:
    session = model.session()
    first = session.generate(PROMPT, temperature=0, max_tokens=8, ignore_eos=True)
    first.read()
    longer = [*PROMPT, *first.token_ids, 3, 4]
    second = session.generate(longer, temperature=0, max_tokens=8, ignore_eos=True)
    second.read()
    assert second.timings.cached_tokens == len(PROMPT) + 7  # the last token generated was never run
    fresh = model.generate(longer, temperature=0, max_tokens=8, ignore_eos=True)
    fresh.read()
    assert fresh.token_ids == second.token_ids
    again = session.generate(longer, temperature=0, max_tokens=8, ignore_eos=True)
    again.read()
    assert again.token_ids == fresh.token_ids


def test_end_tokens_and_stop_strings(model: Model) -> None:
    reference = model.generate(PROMPT, temperature=0, max_tokens=30, ignore_eos=True)
    text = reference.read()
    if len(text) > 4:
        stop = text[2:5]
        stopped = model.generate(PROMPT, temperature=0, max_tokens=30, ignore_eos=True, stop=[stop])
        assert stopped.read() == text[: text.index(stop)]
        assert stopped.finish_reason == "stop"
    eos = next(iter(model.tokenizer.eos_ids))
    ended = model.generate(PROMPT, temperature=0, max_tokens=5, logit_bias={eos: 100.0})
    assert ended.read() == ""
    assert ended.finish_reason == "stop"
    assert eos not in ended.token_ids


def test_bias_and_penalties_reach_the_choice(model: Model) -> None:
    forced = model.generate(PROMPT, temperature=0, max_tokens=3, logit_bias={42: 100.0}, ignore_eos=True)
    forced.read()
    assert forced.token_ids == [42, 42, 42]
    penalised = model.generate(
        PROMPT, temperature=0, max_tokens=6, logit_bias={42: 90.0}, presence_penalty=100.0, ignore_eos=True
    )
    penalised.read()
    assert penalised.token_ids.count(42) == 1


def test_log_probabilities_are_those_of_the_model(model: Model) -> None:
    generation = model.generate(PROMPT, temperature=0.7, seed=1, max_tokens=6, logprobs=3, ignore_eos=True)
    pieces = list(generation)
    session = model.session()
    logits = session.prefill(PROMPT)
    position = 0
    for piece in pieces:
        for token in piece.token_ids:
            row = logits.astype(np.float64)
            logprobs = row - row.max() - math.log(np.exp(row - row.max()).sum())
            position += 1
            if token == piece.token_ids[-1]:
                assert piece.logprob == pytest.approx(logprobs[token], abs=1e-4)
                assert piece.top_logprobs is not None
                best = np.argsort(-logprobs, kind="stable")[:3]
                assert [i for i, _ in piece.top_logprobs] == best.tolist()
            logits = session.decode(token)
    assert position == 6


def test_stop_from_another_thread(model: Model) -> None:
    generation = model.generate(PROMPT, temperature=0, ignore_eos=True)
    next(generation)
    thread = threading.Thread(target=generation.stop)
    thread.start()
    thread.join()
    assert len(list(generation)) <= 1
    assert generation.finish_reason == "cancelled"


def test_a_new_generation_ends_the_old_one(model: Model) -> None:
    session = model.session()
    old = session.generate(PROMPT, temperature=0, ignore_eos=True)
    next(old)
    session.generate(PROMPT, temperature=0, max_tokens=2, ignore_eos=True).read()
    list(old)
    assert old.finish_reason == "cancelled"


def test_text_ends_where_the_context_ends(package: Path) -> None:
    with Model(package, context=25) as model:
        generation = model.generate(PROMPT, temperature=0, ignore_eos=True)
        generation.read()
        assert generation.finish_reason == "length"
        assert len(generation.token_ids) == 25 - len(PROMPT) + 1


def test_options_are_checked_before_anything_runs(model: Model) -> None:
    for options in ({"temperature": -1}, {"top_p": 0}, {"nonsense": 1}, {"logit_bias": {10**6: 1.0}}):
        with pytest.raises(OptionError):
            model.generate(PROMPT, **options)
    with pytest.raises(OptionError, match="empty"):
        model.generate([])


def test_chat_uses_the_template(model: Model) -> None:
    messages = [{"role": "user", "content": "hello"}]
    text = model.tokenizer.apply_chat_template(messages)
    chat = model.chat(messages, temperature=0, max_tokens=4, ignore_eos=True)
    plain = model.generate(model.tokenizer.encode(text, add_bos=False), temperature=0, max_tokens=4, ignore_eos=True)
    assert chat.read() == plain.read()
    assert chat.prompt == plain.prompt
