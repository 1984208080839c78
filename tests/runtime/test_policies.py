"""Attention policies end to end: exact where nothing is left out, and rewound, forked, saved sessions as if nothing had
been."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgerun import EdgerunError, Model, OptionError
from edgerun.session import Session
from tests.exporters.made import random_model, save

TOKENS = [int(t) for t in np.random.default_rng(0).integers(3, 50, 700)]
POLICIES = (
    "deltallm:theta=1.3",
    "deltallm:theta=1.3,form=element",
    "delta:budget=64,recent=32,select=0",
    "deltallm:theta=1.3+delta:budget=64,recent=32,select=0",
    "delta:budget=64,recent=32,select=0/1,refresh=5",
    "deltallm:theta=1.3+delta:budget=64,recent=32,select=0/1,refresh=5",
)
every_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, six query heads on two key/value heads, a context of 1,024 tokens."""
    from edgerun_exporters import export

    folder = tmp_path_factory.mktemp("three")
    changes = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96, "head_dim": 16}
    save(random_model(num_hidden_layers=3, max_position_embeddings=1024, **changes), folder / "checkpoint")
    export(folder / "checkpoint", folder / "package")
    return folder / "package"


@pytest.fixture(scope="module", params=["f16", "q8"])
def model(request: pytest.FixtureRequest, package: Path):
    with Model(package, threads=2, cache=request.param) as model:
        yield model


def goes_on(session: Session, n: int = 20) -> np.ndarray:
    return np.stack([session.decode(token).copy() for token in TOKENS[-n:]])


def filled(model: Model, policy: str, n: int = 600) -> Session:
    session = model.session(attention=policy)
    session.prefill(TOKENS[:n])
    goes_on(session)
    return session


@pytest.mark.parametrize(
    "policy",
    [
        "deltallm:theta=0",
        "deltallm:theta=0,form=element",
        "delta:budget=100000,select=0",
        "deltallm:theta=0+delta:budget=100000,select=0",
    ],
)
def test_nothing_left_out_is_exact_to_the_bit(model: Model, policy: str) -> None:
    exact, session = filled(model, "full"), filled(model, policy)
    assert session.attended.sparsity == 0
    np.testing.assert_array_equal(goes_on(session), goes_on(exact))


@every_policy
def test_policies_leave_out_something(model: Model, policy: str) -> None:
    session = filled(model, policy)
    if "element" not in policy:
        assert 0 < session.attended.sparsity < 1
    if "deltallm" in policy:
        assert 0 < session.runs.sparsity < 1
    pages, beside = session.cache_bytes
    assert pages > 0
    assert beside > 0
    assert np.isfinite(goes_on(session)).all()


@every_policy
def test_every_number_of_threads_gives_the_same_bits(package: Path, policy: str) -> None:
    got = []
    for threads in (1, 2, 3):
        with Model(package, threads=threads) as model:
            got.append(goes_on(filled(model, policy)))
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], got[2])


@every_policy
def test_a_prompt_in_pieces_is_the_same_prompt(model: Model, policy: str) -> None:
    """What a token sees depends on its position, not on how the prompt was cut; but for float rounding."""
    whole, pieces = model.session(attention=policy), model.session(attention=policy)
    wanted = whole.prefill(TOKENS[:500]).copy()
    for start in range(0, 500, 50):
        got = pieces.prefill(TOKENS[start : start + 50])
    assert pieces.runs == whole.runs
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


@every_policy
@pytest.mark.parametrize("back", [1, 30, 200])
def test_a_rewound_session_goes_on_as_one_that_never_went_further(model: Model, policy: str, back: int) -> None:
    """Across a step of DeltaLLM too, without computing anything again."""
    session, other = (model.session(attention=policy) for _ in range(2))
    session.prefill(TOKENS[:520])
    other.prefill(TOKENS[:520])
    for token in TOKENS[:back]:
        session.decode(token)
    assert session.rewind(520) == 520
    assert session.tokens == other.tokens
    assert session.runs == other.runs
    np.testing.assert_array_equal(goes_on(session), goes_on(other))


@every_policy
@pytest.mark.parametrize("ran", [False, True])
def test_an_interrupted_run_is_taken_back(
    model: Model, policy: str, ran: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ctrl-C before or after the kernels have made runs."""
    session, other = (model.session(attention=policy) for _ in range(2))
    session.prefill(TOKENS[:512])
    other.prefill(TOKENS[:512])
    run = model.runner.run

    def interrupted(*arguments: object) -> None:
        if ran:
            run(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.decode(TOKENS[0])
    assert session.runs == other.runs
    np.testing.assert_array_equal(goes_on(session), goes_on(other))


@every_policy
def test_rewinding_far_back_computes_again(model: Model, policy: str) -> None:
    session, other = (model.session(attention=policy) for _ in range(2))
    session.prefill(TOKENS)
    other.prefill(TOKENS[:100])
    kept = session.rewind(100)
    assert kept == (0 if "deltallm" in policy else 100)
    assert session.tokens == other.tokens
    np.testing.assert_allclose(goes_on(session), goes_on(other), rtol=0, atol=1e-2)


@every_policy
def test_a_fork_goes_its_own_way(model: Model, policy: str) -> None:
    session = filled(model, policy)
    fork, other = session.fork(), filled(model, policy)
    for token in TOKENS[:150]:
        fork.decode(token)
    wanted = goes_on(other)
    np.testing.assert_array_equal(goes_on(session), wanted)
    again = filled(model, policy).fork()
    assert again.attended == filled(model, policy).attended
    np.testing.assert_array_equal(goes_on(again), wanted)


@pytest.mark.parametrize("policy", ["full", *POLICIES])
def test_a_saved_session_goes_on(model: Model, policy: str, tmp_path: Path) -> None:
    session = filled(model, policy)
    session.save(tmp_path / "s.edgerun")
    assert [path.name for path in tmp_path.iterdir()] == ["s.edgerun"]
    restored = model.restore(tmp_path / "s.edgerun")
    assert restored.tokens == session.tokens
    assert restored.attention.name == policy
    for token in TOKENS[:150]:
        session.decode(token)
        restored.decode(token)
    assert restored.runs == session.runs
    np.testing.assert_array_equal(goes_on(restored), goes_on(session))


@every_policy
def test_with_columns_left_out(model: Model, policy: str) -> None:
    """Activation sparsity beside it: of inputs that are zero, which changes nothing but roundings."""
    wanted = goes_on(filled(model, policy))
    session = model.session(attention=policy, sparsity="zero")
    session.prefill(TOKENS[:600])
    goes_on(session)
    np.testing.assert_allclose(goes_on(session), wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


def test_an_empty_session_can_be_saved(model: Model, tmp_path: Path) -> None:
    for policy in ("full", POLICIES[0]):
        model.session(attention=policy).save(tmp_path / "empty")
        assert model.restore(tmp_path / "empty").position == 0


def test_damaged_and_foreign_files_are_refused(model: Model, package: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.edgerun"
    filled(model, POLICIES[5]).save(path)
    with pytest.raises(EdgerunError, match="cannot be read"):
        model.restore(tmp_path / "nothing")
    good = path.read_bytes()
    for bad in (b"", b"PK", good[:1000], good[: len(good) // 2]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(EdgerunError, match="bad: "):
            model.restore(tmp_path / "bad")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays["header"].tobytes())

    def refused(changes: dict[str, np.ndarray | None], match: str) -> None:
        with (tmp_path / "bad").open("wb") as file:
            np.savez(file, **{key: value for key, value in (arrays | changes).items() if value is not None})
        with pytest.raises(EdgerunError, match=match):
            model.restore(tmp_path / "bad")

    def told(**changes: object) -> np.ndarray:
        return np.frombuffer(json.dumps(header | changes).encode(), np.uint8)

    refused({"header": told(model="0" * 64)}, "another model")
    refused({"header": told(cache="f32")}, "another cache")
    refused({"header": told(version=1)}, "expected")
    refused({"header": np.zeros(3, np.uint8)}, "no saved session")
    for part, change, match in (
        ("delta", {"select": [99]}, "a list of layers from 0 to 2"),
        ("deltallm", {"theta": [[-1.0] * 2] * 3}, "numbers of at least 0"),
    ):
        policies = header["attention"]["parameters"]
        changed = policies | {part: policies[part] | change}
        refused({"header": told(attention={"name": "", "parameters": changed})}, match)
    refused({"header": told(attention={"name": ""})}, "no saved session")
    refused({"tokens": arrays["tokens"] + 10**6}, "vocabulary")
    refused({"tokens": arrays["tokens"][:-400]}, "exact|starts|counts|page")
    refused({"tokens": np.concatenate([arrays["tokens"]] * 2000)}, "context")
    refused({"page.1": None}, "missing")
    refused({"page.1": arrays["page.1"][:-1]}, "bytes")
    refused({"runs.counts": arrays["runs.counts"] + 1}, "counts|starts")
    refused({"runs.starts": arrays["runs.starts"][::-1].copy()}, "starts")
    refused({"runs.blocks": arrays["runs.blocks"][1:]}, "blocks")
    refused({"runs.exact": np.array([10**9])}, "exact")
    refused({"runs.exact": np.array([], np.int64)}, "damaged")
    refused({"selection.past": arrays["selection.past"] + 1}, "chosen")
    refused({"selection.begun": None}, "begun")


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ("delty", "no policy 'delty'"),
        ("deltallm", "give theta"),
        ("deltallm:theta=-1", "theta is -1"),
        ("deltallm:theta=nan", "theta is nan"),
        ("deltallm:theta=x", "theta is x"),
        ("deltallm:theta=1,window=-5", "window is -5"),
        ("deltallm:theta=1,form=row", "form is row"),
        ("deltallm:theta=1,theta=2", "stands there once"),
        ("deltallm:theta=1,size=2", "no parameter size"),
        ("deltallm:theta=1+deltallm:theta=1", "twice"),
        ("delta:budget=0", "budget is 0"),
        ("delta:refresh=0", "refresh is 0"),
        ("delta:budget=64,recent=128", "more than the budget"),
        ("delta:select=99", "select is 99"),
        ("delta:select=1,full=0/77", "full is 0/77"),
        ("delta:select=1,full=1", "layer 0 would be sparse"),
    ],
)
def test_bad_parameters_are_one_clear_error(model: Model, policy: str, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        model.session(attention=policy)
