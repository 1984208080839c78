"""Sessions that skip columns: what they compute, side by side with others, with variants, and what is refused."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

import edgerun.sparsity.policy as sparse_policy
from edgerun import Model, OptionError
from edgerun.errors import HubError
from edgerun.sparsity.projections import projections
from edgerun_exporters import export
from edgerun_kernels.record import Keep, Skip
from tests.conftest import checkpoint
from tests.variants.made import write

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 60)]
Array = np.ndarray


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("source") / "checkpoint")


@pytest.fixture(scope="module", params=["q4", "q8"])
def package(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "package"
    export(source, folder, quant=request.param)
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where columns go."""
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "columns"


@pytest.fixture(autouse=True)
def columns_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 60 % of them: such small layers' hardly do."""
    monkeypatch.setattr(sparse_policy, "most_columns", lambda projection, method=None: projection.k * 6 // 10)


def logits(model: Model, sparsity: str, variant: str | Path | None = None) -> Array:
    """After each token: of the first by prefill, of the others one by one."""
    session = model.session(variant, sparsity=sparsity)
    first = np.concatenate([rows.copy() for rows in session.score(TOKENS[:30])])
    return np.concatenate([first, np.stack([session.decode(token).copy() for token in TOKENS[30:]])])


def test_without_zeros_the_columns_are_the_rows(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All columns one by one give the dense layers' sums in another order, after which an input now and then falls to
    the other of two integers; where too many are wanted, the same bits."""
    with Model(package, threads=2) as model:
        dense = logits(model, "none")
        np.testing.assert_array_equal(logits(model, "zero"), dense)
    monkeypatch.setattr(sparse_policy, "most_columns", lambda projection, method=None: projection.k)
    with Model(package, threads=2) as model:
        got = logits(model, "zero")
    np.testing.assert_array_equal(got[:30], dense[:30])
    errors = np.abs(got - dense).max(1) / np.abs(dense).max()
    assert 0 < errors.max() < 1e-2
    assert (errors > 1e-6).sum() <= 2


def test_small_inputs_are_left_out_at_decode_only(package: Path) -> None:
    with Model(package, threads=2) as model:
        dense = logits(model, "none")
        errors = []
        for keep in (0.9, 0.3, 0.1):
            got = logits(model, f"threshold:keep={keep}")
            np.testing.assert_array_equal(got[:30], dense[:30])
            errors.append(np.square(got[30:] - dense[30:]).mean())
        assert errors == sorted(errors)
        assert errors[0] == 0 < errors[1]  # so many columns are cheaper all together
        np.testing.assert_array_equal(logits(model, "threshold:at=0"), dense)


@pytest.mark.parametrize("spec", ["threshold:keep=0.4", "threshold:at=1,down=0.3"])
def test_every_number_of_threads_gives_the_same_bits(package: Path, spec: str) -> None:
    found = []
    for threads in (1, 2):
        with Model(package, threads=threads) as model:
            found.append(logits(model, spec))
    np.testing.assert_array_equal(*found)


def test_sessions_run_side_by_side(package: Path) -> None:
    specs = ["none", "threshold:keep=0.4", "zero", "threshold:keep=0.3"]
    with Model(package, threads=2, sparsity="threshold:keep=0.3") as model:
        assert model.session().sparsity == "threshold:keep=0.3"
        wanted = {spec: logits(model, spec) for spec in specs}
        found: dict[str, Array] = {}
        threads = [threading.Thread(target=lambda s=s: found.update({s: logits(model, s)})) for s in specs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for spec in specs:
        np.testing.assert_array_equal(found[spec], wanted[spec])


def test_with_a_variant(source: Path, tmp_path: Path) -> None:
    """Its delta takes all inputs; swapping it keeps the sparsity."""
    export(source, tmp_path / "package", quant="q8")
    path = write(tmp_path / "package", tmp_path / "x", "dare 0.9", 1)
    with Model(tmp_path / "package", threads=2) as model:
        dense = logits(model, "none", path)
        got = logits(model, "threshold:keep=0.3", path)
        assert 0 < np.abs(got - dense).max() < np.abs(dense).max()
        session = model.session(sparsity="threshold:keep=0.3")
        session.use(path)
        session.prefill(TOKENS[:30])
        np.testing.assert_allclose(session.decode(TOKENS[30]), got[30], rtol=0, atol=1e-3)


def test_layers_of_one_input_are_stacked(package: Path) -> None:
    with Model(package) as model:
        found = projections(model.tape)
        layers = model.package.config.n_layers
        assert [p.name for p in found[:4]] == [
            f"layers.0.{kind}" for kind in ("qkv", "attention_output", "gate_up", "down")
        ]
        assert len(found) == 4 * layers
        assert [len(p.records) for p in found[:4]] == [3, 1, 2, 1]
        session = model.session(sparsity="zero")
        assert session.policy is not None
        assert [session.policy.chosen[i + 1].projection for i in range(4 * layers)] == found
        assert (session.policy.table[1:, Skip.KEEP] == Keep.NONZERO).all() and not session.policy.table[0].any()
        assert model.session(sparsity="zero").policy is session.policy


def test_all_sessions_run_one_tape(package: Path) -> None:
    """And take no more room than they need: that of columns only once one of them is skipped."""
    with Model(package, threads=2) as model:
        dense = model.session(sparsity="none")
        assert dense.policy is None
        for spec in ("zero", "threshold:keep=0.4", "delta:at=0.5"):
            session = model.session(sparsity=spec)
            assert session.policy is not None and session.policy.arena_bytes > model.tape.arena_bytes
            assert (session.policy.state_bytes > 0) == spec.startswith("delta")


def test_the_columns_are_a_file_in_the_cache(package: Path, own_cache: Path) -> None:
    """Made once; made again when it is cut short or the package is another."""
    from edgerun.sources import cache

    def files() -> list[Path]:
        return sorted(own_cache.iterdir())

    with Model(package) as model:
        wanted = logits(model, "threshold:keep=0.4")
        (path,) = files()
        assert [entry.path for entry in cache.entries()] == [path]
        before = path.stat()
        del model
    gc.collect()
    with Model(package) as model:
        logits(model, "zero")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1])
    with Model(package) as model:
        np.testing.assert_array_equal(logits(model, "threshold:keep=0.4"), wanted)
    assert files() == [path]
    assert path.stat().st_size == before.st_size
    data = next(package.glob("*.data"))
    data.touch()
    with Model(package) as model:
        logits(model, "zero")
    assert len(files()) == 2
    assert len(cache.clear()) == 2
    assert not files()


def test_a_cache_that_cannot_be_written_is_one_line(package: Path, own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text("")
    with Model(package) as model, pytest.raises(HubError, match="cannot be written") as error:
        model.session(sparsity="zero")
    assert "\n" not in str(error.value)


def test_float32_has_nothing_to_skip(package: Path) -> None:
    with Model(package, compute="float32") as model, pytest.raises(OptionError, match="compute float32"):
        model.session(sparsity="zero")


def test_delta_without_a_threshold_is_near_and_does_not_drift(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All changes are sent: what differs from dense is the rounding to steps, however long it runs."""
    monkeypatch.setattr(sparse_policy, "most_columns", lambda projection, method=None: projection.k)
    with Model(package, threads=2) as model:
        dense, got = logits(model, "none"), logits(model, "delta:at=0")
        np.testing.assert_array_equal(got[:30], dense[:30])
        errors = np.abs(got - dense).max(axis=1)[30:]
        assert 0 < errors.max() < 0.1 * np.abs(dense).max()
        session = model.session(sparsity="delta:at=0.3,refresh=10")
        session.prefill(TOKENS[:30])
        for token in TOKENS[30:]:
            session.decode(token)


@pytest.mark.parametrize("spec", ["delta:at=0.2", "delta:at=0.8,refresh=7"])
def test_delta_gives_the_same_bits_at_every_number_of_threads(package: Path, spec: str) -> None:
    found = []
    for threads in (1, 2):
        with Model(package, threads=threads) as model:
            found.append(logits(model, spec))
    np.testing.assert_array_equal(*found)


def test_delta_starts_afresh_after_a_rewind_and_a_prefill(package: Path) -> None:
    """A session that went another way before computes what a new one does."""
    with Model(package, threads=2) as model:
        fresh, other = (model.session(sparsity="delta:at=0.5") for _ in range(2))
        fresh.prefill(TOKENS[:20])
        wanted = np.stack([fresh.decode(token).copy() for token in TOKENS[20:30]])
        other.prefill(TOKENS[:20])
        for token in TOKENS[40:50]:
            other.decode(token)
        other.rewind(20)
        np.testing.assert_array_equal([other.decode(token).copy() for token in TOKENS[20:30]], wanted)
        other.rewind(10)
        other.prefill(TOKENS[10:20])
        np.testing.assert_array_equal([other.decode(token).copy() for token in TOKENS[20:30]], wanted)
        other.use("none", keep=True)
        fresh.rewind(30)
        np.testing.assert_array_equal(other.decode(TOKENS[30]), fresh.decode(TOKENS[30]))


def test_delta_states_belong_to_sessions(package: Path) -> None:
    with Model(package, threads=2) as model:
        wanted = logits(model, "delta:at=0.5")[30:]
        one, two = (model.session(sparsity="delta:at=0.5") for _ in range(2))
        one.prefill(TOKENS[:30])
        two.prefill(TOKENS[5:35])
        found = []
        for token, theirs in zip(TOKENS[30:], reversed(TOKENS), strict=False):
            found.append(one.decode(token).copy())
            two.decode(theirs)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("spec", ["threshold:keep=0.4", "delta:at=0.5"])
def test_forks_and_saved_sessions_go_on_as_after_a_rewind(package: Path, tmp_path: Path, spec: str) -> None:
    """Running sums are not taken along: they are computed afresh."""
    with Model(package, threads=2) as model:
        session = model.session(sparsity=spec)
        session.prefill(TOKENS[:20])
        for token in TOKENS[20:30]:
            session.decode(token)
        session.save(tmp_path / "saved")
        others = [session.fork(), model.restore(tmp_path / "saved")]
        session.rewind(30)
        wanted = [session.decode(token).copy() for token in TOKENS[30:40]]
        for other in others:
            assert other.sparsity == spec
            np.testing.assert_array_equal([other.decode(token).copy() for token in TOKENS[30:40]], wanted)
