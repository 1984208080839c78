"""One budget for attention and activations: the pair that reads least, of those whose KLs sum to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun.attention.deltallm import DeltaLLM
from edgerun.attention.settings import Setting
from edgerun.attention.spec import budget, quality
from edgerun.calibration.store import write_activations, write_settings
from edgerun.errors import OptionError, PackageError
from edgerun.package.config import read_config
from edgerun.quality import split
from edgerun.sparsity.projections import projections
from edgerun.sparsity.traffic import bytes_a_token
from edgerun_exporters import export
from tests.conftest import checkpoint

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 24)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    export(checkpoint(folder / "checkpoint"), folder / "package", quant="q8")
    return folder / "package"


@pytest.fixture
def folder(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "package")
    return tmp_path / "package"


ATTENTION = ((0.01, 0.1), (0.03, 0.9))
ACTIVATIONS = ((0.01, 0.15), (0.02, 0.3))


def with_attention(folder: Path) -> None:
    config = read_config(folder / "edgerun.json")
    keys = DeltaLLM(np.ones((config.n_layers, config.n_kv_heads), np.float32))
    write_settings(folder, [Setting(keys, None, 64, kl, 11.0, 10.5, left, 0.7) for kl, left in ATTENTION])


def with_activations(folder: Path) -> None:
    with edgerun.load(folder, threads=1) as model:
        names = [projection.name for projection in projections(model.tape)]
    made = [
        {"kl": kl, "weight_time_saved": saved, "methods": {name: ["threshold", kl] for name in names}}
        for kl, saved in ACTIVATIONS
    ]
    write_activations(folder, {"points": made})


@pytest.mark.parametrize("limit", [0.0, 0.005, 0.01, 0.02, 0.029, 0.03, 0.04, 0.05, 1.0])
def test_the_pair_that_reads_least(folder: Path, limit: float) -> None:
    with_attention(folder)
    with_activations(folder)
    with edgerun.load(folder, threads=1) as model:
        weights, cache = bytes_a_token(model.tape, model.context)
        window = 1 - 128 / model.context  # what is behind it
        pairs = {
            (f"deltallm:kl={a}" if a else "full", f"calibrated:kl={s}" if s else "none"): (
                cache * (1 - left * window) + weights * (1 - saved)
            )
            for a, left in ((0.0, 0.0), *ATTENTION)
            for s, saved in ((0.0, 0.0), *ACTIVATIONS)
            if a + s <= limit
        }
        found = split(limit, model.package, model.tape)
        assert pairs[found] == min(pairs.values())


def test_a_session_runs_both(folder: Path) -> None:
    with_attention(folder)
    with_activations(folder)
    with edgerun.load(folder, threads=1, quality=1.0) as model:
        session = model.session()
        assert session.attention.deltallm is not None
        assert session.sparsity == "calibrated:kl=0.02"
        session.prefill(TOKENS)
        assert np.isfinite(session.decode(TOKENS[0])).all()
        only = model.session(attention=quality(1.0), sparsity="none")
        assert only.sparsity == "none" and only.attention.deltallm is not None, "said by the user"
        assert model.session(attention=quality(0.0)).sparsity == "none"
    with edgerun.load(folder, threads=1, quality=1.0, compute="float32") as model:
        assert model.session().sparsity == "none", "no columns are skipped in float32"


def test_what_was_not_calibrated_stays_exact(folder: Path) -> None:
    with pytest.raises(OptionError, match="run `edgerun calibrate` first"):
        edgerun.load(folder, quality=1.0)
    with_activations(folder)
    with edgerun.load(folder, threads=1, quality=1.0) as model:
        assert (model.attention, model.sparsity) == ("full", "calibrated:kl=0.02")


def test_a_damaged_calibration_is_one_line(folder: Path) -> None:
    with_attention(folder)
    write_activations(folder, {"points": [{"kl": 0.1}]})
    with pytest.raises(PackageError, match="its calibration of activations is damaged") as error:
        edgerun.load(folder, quality=1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("quality:kl=0.5", 0.5), (" quality", 0.02), ("full", None), ("delta:kl=0.5", None), ("quality:theta=1", None)],
)
def test_budgets(text: str, wanted: float | None) -> None:
    assert budget(text) == wanted
