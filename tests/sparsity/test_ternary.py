"""Sparsity of ternary layers: zeros change no bit, small inputs are left out, and what cannot be is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgerun.sparsity.policy as sparse_policy
from edgerun import Model, OptionError
from edgerun.calibration import activations as calibration
from edgerun.calibration.inputs import row_values
from edgerun.sparsity.projections import projections
from edgerun_exporters import export
from edgerun_kernels import reference
from edgerun_kernels.layouts import Head, Input
from edgerun_kernels.registry import Op
from tests.exporters.bitnet_made import ODD_SIZES, random_bitnet, write

from .test_sessions import TOKENS, logits

SPARSE = "threshold:keep=0.4"


@pytest.fixture(scope="module", params=["plain", "compact", "odd"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ternary")
    model = random_bitnet(**(ODD_SIZES if request.param == "odd" else {}))
    export(write(model, "master", folder / "source"), folder / "package", compact=request.param == "compact")
    return folder / "package"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))


def columns_pay(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    for module in (sparse_policy, calibration):
        monkeypatch.setattr(module, "most_columns", lambda projection, method=None: int(projection.k * share))


@pytest.mark.parametrize("spec", ["zero", "threshold:at=0"])
def test_zeros_change_no_bit(package: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether columns are read one by one or all together, at every number of threads."""
    with Model(package, threads=1) as model:
        dense = logits(model, "none")
    for share in (1.0, 0.6):
        columns_pay(monkeypatch, share)
        for threads in (1, 2):
            with Model(package, threads=threads) as model:
                np.testing.assert_array_equal(logits(model, spec), dense)


def test_small_inputs_are_left_out_at_decode_only(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns_pay(monkeypatch, 0.6)
    found = []
    for threads in (1, 2):
        with Model(package, threads=threads) as model:
            dense = logits(model, "none")
            found.append(logits(model, SPARSE))
            errors = [np.square(logits(model, f"threshold:keep={keep}") - dense)[30:].mean() for keep in (0.5, 0.1)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0][:30], dense[:30])
    assert 0 < errors[0] < errors[1]


def test_layers_that_skip_zeros_already_read_less(package: Path) -> None:
    """The down projections, whose columns the package has."""
    with Model(package, threads=2) as model:
        session = model.session(sparsity=f"{SPARSE},qkv=1,attention_output=1,gate_up=1")
        codes = [Op(code) for code in model.tape.ops[:, Head.CODE]]
        assert session.policy is not None and len(session.policy.chosen) == model.package.config.n_layers
        assert {one.projection.fmt for one in session.policy.chosen.values()} == {"ternary_columns"}
        session.prefill(TOKENS[:20])
        measured = np.zeros((2, len(codes)), np.int64)
        model.profile = measured
        session.decode(TOKENS[20])
        model.profile = None
        for code, op, columns in zip(codes, model.tape.ops, measured[1], strict=True):
            if code == Op.LINEAR_TERNARY_COLUMNS:
                assert columns <= 0.45 * op[Input.K]


def test_delta_is_not_for_ternary_layers(package: Path) -> None:
    with Model(package) as model, pytest.raises(OptionError, match="choose threshold or zero") as error:
        model.session(sparsity="delta:at=0.5")
    assert "\n" not in str(error.value)


def test_it_is_calibrated_with_thresholds(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns_pay(monkeypatch, 1.0)
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 90, 160)]
    with Model(package, threads=2) as model:
        (point,) = calibration.calibrate(model, tokens, (0.5,))["points"]
        names = {projection.name for projection in projections(model.tape)}
    assert point["methods"] and set(point["methods"]) <= names
    assert {method for method, _ in point["methods"].values()} == {"threshold"}
    assert point["weight_time_saved"] > 0


def test_values_of_a_row_with_one_scale() -> None:
    x = reference.quantize_rows(np.random.default_rng(1).standard_normal((1, 70)).astype(np.float32))
    got = row_values(reference.row_tiles(x)[0][0], 70)
    np.testing.assert_array_equal(got, x.ints[0, :70] * x.scales[0])
