"""Random histories of one model: whatever other sessions and requests do, each gives what it gives alone.

Hypothesis invents operations on one model, and what each session did is kept as its history. Of exact sessions
and of DeltaLLM the logits are those of one fresh prefill of all tokens. What DELTA and activation sparsity leave out
depends on which tokens were decoded, so there the history itself is replayed. Both by another model with one thread and
no index of prefixes.

Runs for some seconds; EDGERUN_STATEFUL_MINUTES=60 (``make soak``) for so many minutes, each time from another seed.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgerun import CacheFullError, ContextError, Generation, Model, Session
from tests.variants.made import write

MINUTES = float(os.environ.get("EDGERUN_STATEFUL_MINUTES", "0"))
ATTENTION = ("full", "deltallm:theta=1.3", "delta:budget=64,recent=32,select=0")
BOTH = "deltallm:theta=1.3+delta:budget=64,recent=32,select=0"
SPARSITY = ("none", "none", "none", "zero", "threshold:keep=0.5")
TEXT = [int(t) for t in np.random.default_rng(8).integers(0, 90, 600)]
EXPECTED = (ContextError, CacheFullError)
tokens = st.one_of(
    st.builds(
        lambda start, n: TEXT[start : start + n], st.integers(0, 3), st.sampled_from([1, 2, 17, 100, 255, 256, 300])
    ),
    st.lists(st.integers(0, 299), min_size=1, max_size=20),
)
options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 1.0]),
        "seed": st.integers(0, 3),
        "max_tokens": st.sampled_from([1, 2, 7, 30]),
        "ignore_eos": st.just(True),
        "stop": st.sampled_from([(), ("a",), ("the", "zz")]),
    }
)


@dataclass
class Made:
    """A session, how it was opened, and what has been done to it: tokens in one go, one by one, or a shorter length."""

    session: Session
    kind: tuple[str, str, str]
    history: list[tuple[str, Any]] = field(default_factory=list)
    known: bool = True  # whether the history says what the cache holds, where that matters

    @property
    def exact(self) -> bool:
        """Whether what it holds depends on its tokens alone."""
        return "delta:" not in self.kind[1] and self.kind[2] == "none"


@dataclass
class Asked:
    """A generation, its session if that is known, and what it was asked for."""

    generation: Generation
    made: Made | None
    kind: tuple[str, str, str]
    prompt: list[int]
    options: dict[str, Any]


class Machine(RuleBasedStateMachine):
    package: Path
    variants: list[str]
    references: ClassVar[dict[str, Model]] = {}

    @initialize(cache=st.sampled_from(["f16", "q8"]), threads=st.integers(1, 3), pages=st.sampled_from([None, 3, 5, 9]))
    def load(self, cache: Any, threads: int, pages: int | None) -> None:
        if cache not in self.references:
            self.references[cache] = Model(self.package, threads=1, cache=cache)
        self.reference = self.references[cache]
        self.page = self.reference.kv_cache.pool.page_bytes
        self.limit = None if pages is None else pages * self.page
        self.model = Model(self.package, threads=threads, cache=cache, cache_bytes=self.limit)
        self.sessions: list[Made] = []
        self.asked: list[Asked] = []
        self.folder = tempfile.TemporaryDirectory()

    # --- alone ----------------------------------------------------------------------------------------------------

    def alone(self, kind: tuple[str, str, str]) -> Session:
        """A fresh session of the reference, which finds nothing that was computed before."""
        self.reference.kv_cache.prefixes.clear()
        return self.reference.session(*kind)

    def replayed(self, made: Made, last: list[int]) -> np.ndarray:
        """The logits after all that a session did and these tokens."""
        session = self.alone(made.kind)
        if made.exact:
            return session.prefill([*self.text(made), *last]).copy()
        for what, value in made.history:
            getattr(session, what)(value)
        return session.prefill(last).copy()

    @staticmethod
    def text(made: Made) -> list[int]:
        held: list[int] = []
        for what, value in made.history:
            if what == "rewind":
                del held[value:]
            else:
                held.extend(value)
        return held

    def attempt(self, made: Made | None, act: Callable[[], Any]) -> Any:
        """None where the context or the cache is full: what the session holds then is what it says."""
        try:
            return act()
        except EXPECTED:
            if made is not None:
                self.look(made)
            return None

    def look(self, made: Made) -> None:
        """Takes the session's word for what it holds."""
        held = made.session.tokens
        made.known = made.exact or not held
        made.history = [("prefill", held)] if held else []

    def check(self, asked: Asked) -> None:
        """A generation that is over has given what its prompt alone gives, or begins like it where it was ended."""
        generation = asked.generation
        approximates = "delta:" in asked.kind[1] or asked.kind[2] != "none"
        if generation.finish_reason is None or (approximates and (self.limit is not None or asked.made is not None)):
            return
        wanted = self.alone(asked.kind).generate(asked.prompt, **asked.options)
        wanted.read()
        if generation.finish_reason == "cancelled":
            assert wanted.token_ids[: len(generation.token_ids)] == generation.token_ids
            assert wanted.text.startswith(generation.text.rstrip("\ufffd"))
        else:
            assert generation.token_ids == wanted.token_ids
            assert (generation.text, generation.finish_reason) == (wanted.text, wanted.finish_reason)

    # --- sessions -------------------------------------------------------------------------------------------------

    @rule(
        variant=st.integers(0, 2),
        attention=st.sampled_from([*ATTENTION, "full", BOTH]),
        sparsity=st.sampled_from(SPARSITY),
    )
    def open(self, variant: int, attention: str, sparsity: str) -> None:
        kind = ["none", *self.variants][variant], attention, sparsity
        self.sessions.append(Made(self.model.session(*kind), kind))

    def chosen(self, data: st.DataObject) -> Made:
        return data.draw(st.sampled_from(self.sessions))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), part=tokens)
    def prefill(self, data: st.DataObject, part: list[int]) -> None:
        made = self.chosen(data)
        self.settle(made)
        got = self.attempt(made, lambda: made.session.prefill(part).copy())
        if got is None:
            return
        if made.known:
            np.testing.assert_array_equal(got, self.replayed(made, part))
        made.history.append(("prefill", part))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), several=st.lists(st.integers(0, 299), min_size=1, max_size=9))
    def decode(self, data: st.DataObject, several: list[int]) -> None:
        made = self.chosen(data)
        for token in several:
            self.settle(made)
            got = self.attempt(made, lambda token=token: made.session.decode(token).copy())
            if got is None:
                return
            if made.known and token == several[-1]:
                np.testing.assert_array_equal(got, self.replayed(made, [token]))
            made.history.append(("prefill", [token]))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        made = self.chosen(data)
        self.settle(made)
        n = data.draw(st.integers(0, made.session.position))
        if self.attempt(made, lambda: made.session.rewind(n)) is not None:
            made.history.append(("rewind", n))
            if n == 0:
                made.history, made.known = [], True

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), saved=st.booleans())
    def fork(self, data: st.DataObject, saved: bool) -> None:
        made = self.chosen(data)
        self.settle(made)
        if saved:
            path = Path(self.folder.name) / "saved"
            made.session.save(path)
            other = self.attempt(None, lambda: self.model.restore(path))
        else:
            other = made.session.fork()
        if other is not None:
            assert other.tokens == made.session.tokens
            self.sessions.append(Made(other, made.kind, list(made.history), made.known))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), variant=st.integers(0, 2))
    def use(self, data: st.DataObject, variant: int) -> None:
        made = self.chosen(data)
        self.settle(made)
        name = ["none", *self.variants][variant]
        made.session.use(name)
        made.kind = name, *made.kind[1:]
        made.history, made.known = [], True

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.sessions.remove(self.chosen(data))

    # --- requests -------------------------------------------------------------------------------------------------

    def settle(self, made: Made) -> None:
        """Before a session is changed: its generations end, and what it holds is what it says."""
        mine = [asked for asked in self.asked if asked.made is made]
        if mine:
            self.asked = [asked for asked in self.asked if asked.made is not made]
            for asked in mine:
                asked.generation.withdraw()
                self.check(asked)
            self.look(made)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), prompt=tokens, wanted=options)
    def ask(self, data: st.DataObject, prompt: list[int], wanted: dict[str, Any]) -> None:
        made = self.chosen(data)
        self.settle(made)
        prompt = [*made.session.tokens, *prompt] if data.draw(st.booleans()) else prompt
        generation = self.attempt(None, lambda: made.session.generate(prompt, **wanted))
        if generation is not None:
            self.asked.append(Asked(generation, made, made.kind, prompt, wanted))

    @rule(prompt=tokens, n=st.integers(1, 4), wanted=options)
    def ask_several(self, prompt: list[int], n: int, wanted: dict[str, Any]) -> None:
        for i, generation in enumerate(self.model.generate_several(prompt, n, **wanted)):
            own = {**wanted, "seed": wanted["seed"] + i}
            self.asked.append(Asked(generation, None, ("none", "full", "none"), prompt, own))

    @rule(
        prompts=st.lists(tokens, max_size=4),
        attention=st.sampled_from(ATTENTION),
        parallel=st.integers(1, 4),
        wanted=options,
    )
    def ask_many(self, prompts: list[list[int]], attention: str, parallel: int, wanted: dict[str, Any]) -> None:
        kind = "none", attention, "none"
        made = self.attempt(
            None, lambda: self.model.generate_many(prompts, parallel=parallel, attention=attention, **wanted)
        )
        for prompt, generation in zip(prompts, made or [], strict=False):
            assert generation.finish_reason in ("stop", "length")
            self.check(Asked(generation, None, kind, prompt, wanted))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), pieces=st.integers(1, 9))
    def advance(self, data: st.DataObject, pieces: int) -> None:
        """Some requests in turns."""
        several = data.draw(st.lists(st.sampled_from(self.asked), min_size=1, max_size=4))
        for _ in range(pieces):
            for asked in several:
                self.attempt(None, lambda asked=asked: next(asked.generation, None))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), how=st.sampled_from(["read", "stop", "withdraw", "drop"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        self.asked.remove(asked)
        if how == "withdraw":
            asked.generation.withdraw()
        elif how == "stop":
            asked.generation.stop()
        if how != "drop":
            self.attempt(None, asked.generation.read)
            self.check(asked)
        elif asked.made is not None:
            asked.made.session._end_generation()
        if asked.made is not None:
            self.look(asked.made)

    @rule()
    def clear(self) -> None:
        self.model.kv_cache.prefixes.clear()

    # --- what holds always ----------------------------------------------------------------------------------------

    def pages(self) -> int:
        """Distinct pages that sessions, requests and the index hold."""
        held = {id(node.page) for node in self.model.kv_cache.prefixes._nodes}
        sequences = [made.session.sequence for made in self.sessions] + [a.generation.sequence for a in self.asked]
        sequences += [s.sequence for a in self.asked for s in a.generation._siblings]
        return len(held | {id(page) for sequence in sequences for page in sequence.pages if page is not None})

    @invariant()
    def pages_are_counted(self) -> None:
        if not hasattr(self, "model"):
            return
        gc.collect()
        pool = self.model.kv_cache.pool
        assert pool.bytes == self.pages() * self.page
        assert self.limit is None or pool.bytes <= self.limit

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.sessions, self.asked = [], []
        self.model.kv_cache.prefixes.clear()
        gc.collect()
        assert self.model.kv_cache.pool.bytes == 0
        self.model.close()
        self.folder.cleanup()


@pytest.fixture(scope="module")
def machine(two_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Machine]]:
    folder = tmp_path_factory.mktemp("variants")
    files = [
        str(write(two_layers, folder / f"{i}.safetensors", kind, i)) for i, kind in ((1, "dare 0.9"), (2, "magnitude"))
    ]
    gc.collect()
    gc.freeze()  # what torch and others have made is not looked through after every step
    yield type("Machine", (Machine,), {"package": two_layers, "variants": files, "references": {}})
    gc.unfreeze()


def test_any_history_gives_what_each_request_gives_alone(machine: type[Machine]) -> None:
    how = settings(
        max_examples=30,
        stateful_step_count=60 if MINUTES else 20,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate] if not MINUTES else list(Phase),
        print_blob=True,
    )
    end = time.monotonic() + 60 * MINUTES
    run_state_machine_as_test(machine, settings=how)
    round_ = 0
    while time.monotonic() < end:
        round_ += 1
        run_state_machine_as_test(seed(time.time_ns() + round_)(machine), settings=how)
