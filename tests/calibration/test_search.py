"""The whole search on a tiny model: what it finds, that it goes on where it was, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun import Model, OptionError
from edgerun.attention.delta import Delta
from edgerun.attention.deltallm import DeltaLLM
from edgerun.attention.settings import as_json, read_settings
from edgerun.attention.spec import Attention
from edgerun.calibration import calibrate as module
from edgerun.calibration.calibrate import JOURNAL, calibrate
from edgerun.calibration.measure import Reference
from edgerun.calibration.search import Search, _around
from edgerun.measure.evaluate import kl, log_softmax
from edgerun.package.config import read_config

CONTEXT = 384
TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, CONTEXT)]


@pytest.fixture(scope="module")
def copy(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that may be changed."""
    return shutil.copytree(deep, tmp_path_factory.mktemp("copy") / "package")


@pytest.fixture(scope="module")
def model(deep: Path) -> Iterator[Model]:
    with Model(deep, threads=1, compute="int16") as model:
        yield model


@pytest.fixture(scope="module")
def text(prose: str) -> str:
    return prose[:4000]


KEYS = DeltaLLM(np.array([[1.2, 1.2], [0, 1.3], [1.3, 0], [0, 0]], np.float32))
PAGES = Delta((1,), (0,), 12)
POLICIES = [Attention("a", KEYS), Attention("b", delta=PAGES), Attention("c", KEYS, PAGES)]


@pytest.mark.parametrize("policy", POLICIES, ids=["deltallm", "delta", "both"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_cost_is_what_scoring_gives(
    model: Model, policy: Attention, one_by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = 300
    if not one_by_one:  # every third position
        monkeypatch.setattr(
            "edgerun.calibration.measure._MOST_BYTES", (CONTEXT - 1 - first) * model.vocab_size * 4 // 3 + 1
        )
    reference = Reference(model, TOKENS, first, one_by_one=one_by_one)
    cost = reference.cost(policy)
    chunk, step = (1, 1) if one_by_one else (64, 3)

    def scored(session: edgerun.Session) -> np.ndarray:
        session.prefill(TOKENS[:first])
        rows = np.concatenate([rows.copy() for rows in session.score(TOKENS[first:-1], chunk=chunk)])
        return log_softmax(rows)[::step]

    exact, other = scored(model.session("none", "full")), scored(model.open_session(attention=policy))
    targets = np.array(TOKENS[first + 1 :])[::step]
    assert cost.kl == pytest.approx(kl(exact, other).mean(), abs=1e-9)
    assert cost.perplexity == pytest.approx(np.exp(-other[np.arange(len(targets)), targets].mean()))
    assert reference.perplexity == pytest.approx(np.exp(-exact[np.arange(len(targets)), targets].mean()))
    assert (cost.sparsity > 0) == (policy.deltallm is not None)
    assert cost.read_share < 1 or (policy.deltallm is None and not one_by_one), "DELTA acts when tokens are decoded"
    assert reference.cost(policy) == cost


def test_it_finds_settings_and_keeps_them(copy: Path, text: str) -> None:
    budget = 0.05
    found = calibrate(copy, text, budget_kl=budget, context=CONTEXT, policies=("deltallm", "delta", "both"), threads=1)
    assert {one.policy for one in found} >= {"deltallm", "delta"}
    assert not (copy / JOURNAL).exists()
    kept = read_settings(read_config(copy / "edgerun.json"))
    assert [as_json(one) for one in kept] == [as_json(one) for one in found]
    for one in found:
        assert one.context == CONTEXT and one.kl < 3 * budget and one.read_share < 1
        assert one.perplexity == pytest.approx(one.exact_perplexity, rel=0.2)
    with edgerun.load(copy, threads=1, quality=1.0) as model:
        session = model.session()
        assert session.attention.deltallm is not None or session.attention.delta is not None
        session.prefill(TOKENS)
        assert session.attended.read < session.attended.exact or session.attention.delta is not None
    with pytest.raises(OptionError, match="give one of them"):
        edgerun.load(copy, attention="full", quality=1.0)


def test_the_element_form(copy: Path, text: str) -> None:
    (found,) = calibrate(copy, text, budget_kl=0.05, context=CONTEXT, policies=("deltallm-element",), threads=1)
    assert found.deltallm is not None and found.deltallm.spread is not None and found.sparsity > 0.1
    with edgerun.load(copy, threads=1, attention="deltallm:form=element,kl=1") as model:
        model.session().prefill(TOKENS)


class Interrupted(Exception):
    pass


def test_an_interrupted_search_goes_on(deep: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds, to the bit, what one that was left alone finds; what it has found already is not computed again."""
    alone, other = (shutil.copytree(deep, tmp_path / name) for name in ("alone", "other"))
    wanted = calibrate(alone, text, budget_kl=0.05, context=CONTEXT, policies=("deltallm", "delta"), threads=1)
    counted: list[Attention] = []
    cost = Reference.cost

    def stop_after(limit: int):  # type: ignore[no-untyped-def]
        def counting(self: Reference, attention: Attention):  # type: ignore[no-untyped-def]
            if len(counted) == limit:
                raise Interrupted
            counted.append(attention)
            return cost(self, attention)

        return counting

    monkeypatch.setattr(Reference, "cost", stop_after(1 << 30))
    again = shutil.copytree(deep, tmp_path / "again")
    calibrate(again, text, budget_kl=0.05, context=CONTEXT, policies=("deltallm", "delta"), threads=1)
    total = len(counted)
    counted.clear()
    monkeypatch.setattr(Reference, "cost", stop_after(total // 2))
    with pytest.raises(Interrupted):
        calibrate(other, text, budget_kl=0.05, context=CONTEXT, policies=("deltallm", "delta"), threads=1)
    assert (other / JOURNAL).exists() and read_config(other / "edgerun.json").calibration == {}
    monkeypatch.setattr(Reference, "cost", stop_after(1 << 30))
    found = calibrate(other, text, budget_kl=0.05, context=CONTEXT, policies=("deltallm", "delta"), threads=1)
    assert [as_json(one) for one in found] == [as_json(one) for one in wanted]
    assert len(counted) == total


def test_texts_are_not_shared(copy: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is searched ends before what is held out begins."""
    seen: list[tuple[list[int], list[int]]] = []

    class Nothing(Search):
        def __init__(self, model: Model, searched: list[int], held: list[int], *rest: object) -> None:
            seen.append((searched, held))

        def settings(self, policy: object, budget: float) -> list[object]:  # type: ignore[override]
            return []

    monkeypatch.setattr(module, "Search", Nothing)
    calibrate(copy, text, budget_kl=0.1, context=200, threads=1)
    with Model(copy) as model:
        tokens = model.tokenizer.encode(text, parse_special=False)
    searched, held = seen[0]
    assert searched[1:] == tokens[1:200] and held[1:] == tokens[len(tokens) // 2 + 1 :][:199]


def test_prices_around_a_budget() -> None:
    for limit in (0.3, 1.0, 5.0, 100.0):
        low, high = _around(lambda price, limit=limit: price <= limit, 1.0)  # type: ignore[misc]
        assert low <= limit < high == 2 * low
    assert _around(lambda price: False, 1.0) == (0.0, 2.0**-7)
    assert _around(lambda price: True, 1.0) == (2.0**7, np.inf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_kl": 0}, "the budget is 0 nats"),
        ({"budget_kl": float("nan")}, "the budget is nan nats"),
        ({"context": 10}, "the context is 10; it must be 64 to 512"),
        ({"context": 513}, "the context is 513; it must be 64 to 512"),
        ({"text": "too short"}, "are needed, half to search and half to measure"),
    ],
)
def test_what_makes_no_sense(copy: Path, text: str, changes: dict[str, object], message: str) -> None:
    arguments = {"text": text, "budget_kl": 0.1, "context": CONTEXT} | changes
    with pytest.raises(OptionError) as caught:
        calibrate(copy, threads=1, **arguments)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)
    json.loads((copy / "edgerun.json").read_bytes())
