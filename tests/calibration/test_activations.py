"""Calibration: inputs as they are, error curves, budgets that are kept, and what is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgerun.sparsity.policy as sparse_policy
from edgerun import Model, OptionError, PackageError
from edgerun.attention.deltallm import DeltaLLM
from edgerun.attention.settings import Setting, read_settings
from edgerun.calibration import activations as calibration
from edgerun.calibration.inputs import capture, values
from edgerun.calibration.store import write_activations, write_settings
from edgerun.package.config import read_config
from edgerun.package.reader import CONFIG
from edgerun.sparsity.projections import projections
from edgerun_exporters import export
from edgerun_kernels import reference
from tests.conftest import checkpoint

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 160)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    export(checkpoint(folder / "checkpoint"), folder / "package", quant="q8")
    return folder / "package"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small layers' columns never do."""
    for module in (sparse_policy, calibration):
        monkeypatch.setattr(module, "most_columns", lambda projection, method=None: projection.k * 9 // 10)


@pytest.mark.parametrize("threshold", [np.inf, 2.0, 0.0])
def test_values_of_a_quantised_row(threshold: float) -> None:
    rng = np.random.default_rng(1)
    x = reference.quantize(rng.standard_normal((1, 70)).astype(np.float32), threshold)
    tile = reference.activation_tiles(x)[0][0]
    np.testing.assert_allclose(values(tile, 70), x.values()[0, :70], rtol=1e-6)


def test_inputs_are_those_of_the_layers(package: Path) -> None:
    """The first projection's are the normalised embeddings; none are disturbed by looking at them."""
    with Model(package, threads=2) as model:
        found = capture(model, TOKENS[:40], 10)
        assert [x.shape for x in found] == [(30, p.k) for p in projections(model.tape)]
        assert all(np.isfinite(x).all() and x.any() for x in found)
        again = capture(model, TOKENS[:40], 10)
        for x, y in zip(found, again, strict=True):
            np.testing.assert_array_equal(x, y)


def test_budgets_are_kept_and_more_budget_skips_more(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    with Model(folder, threads=2) as model:
        result = calibration.calibrate(model, TOKENS, (0.001, 0.01, 0.1))
    points = result["points"]
    assert len(points) >= 2
    for point, budget in zip(points[::-1], (0.1, 0.01, 0.001), strict=False):
        assert point["kl"] <= budget
    skipped = [point["weight_bytes_skipped"] for point in points]
    assert skipped == sorted(skipped)
    assert skipped[-1] > 0.05
    write_activations(folder, json.loads(json.dumps(result)))
    with Model(folder, threads=2) as model:
        session = model.session(sparsity="calibrated:kl=0.1")
        session.prefill(TOKENS[:20])
        assert np.isfinite(session.decode(TOKENS[20])).all()
        with pytest.raises(OptionError, match="nothing was calibrated"):
            model.session(sparsity="calibrated:kl=0")


def test_too_short_a_text_is_refused(package: Path) -> None:
    with Model(package) as model, pytest.raises(OptionError, match="at least 128"):
        calibration.calibrate(model, TOKENS[:100])


def test_what_the_package_has_of_attention_stays(package: Path, tmp_path: Path) -> None:
    """And the other way round: neither calibration drops the other's."""
    folder = tmp_path / "package"
    shutil.copytree(package, folder)
    config = read_config(folder / CONFIG)
    heads = (config.n_layers, config.n_kv_heads)
    setting = Setting(DeltaLLM(np.ones(heads, np.float32)), None, 64, 0.01, 2.0, 2.0, 0.5, 0.6)
    write_settings(folder, [setting])
    points = {"points": [{"kl": 0.01, "weight_time_saved": 0.1, "methods": {}}]}
    write_activations(folder, points)
    write_settings(folder, [setting])
    found = read_config(folder / CONFIG)
    assert [one.kl for one in read_settings(found)] == [0.01]
    assert found.calibration["activations"] == points


def test_a_package_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be read"):
        write_activations(tmp_path / "nowhere", {"points": []})
