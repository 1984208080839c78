"""Settings in edgerun.json: what is written is read, what is wrong is refused, and the choice among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun import EdgerunError, OptionError, PackageError
from edgerun.attention.settings import as_json, read_settings
from edgerun.attention.spec import parse, quality
from edgerun.calibration.store import write_settings
from edgerun.package.config import Config, read_config
from tests.calibration.made import SETTINGS, SHAPE, calibration, elements, keys, pages, setting
from tests.package import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("package"), SHAPE)


@pytest.fixture
def config(folder: Path) -> Config:
    return replace(read_config(folder / "edgerun.json"), calibration=calibration(*SETTINGS))


def same(first: Any, second: Any) -> bool:
    return json.dumps(as_json(first)) == json.dumps(as_json(second))


def test_what_is_written_is_read(folder: Path) -> None:
    path = folder / "edgerun.json"
    before = path.read_bytes()
    write_settings(folder, SETTINGS[:2])
    write_settings(folder, SETTINGS[2:])
    assert all(map(same, read_settings(read_config(path)), SETTINGS))
    new = setting(keys(0.9), None, 0.3)
    write_settings(folder, [new])
    found = read_settings(read_config(path))
    assert len(found) == 4 and same(found[-1], new), "it took the place of those of its policy and context"
    assert json.loads(before) == json.loads(path.read_bytes()) | {"calibration": {}}
    assert [file.name for file in folder.iterdir() if "partial" in file.name] == []
    path.write_bytes(before)


def test_arrays_keep_their_bits(config: Config) -> None:
    theta = np.random.default_rng(0).uniform(0, 1, (4, 2)).astype(np.float32)
    one = setting(keys(), None, 0.1)
    one = replace(one, deltallm=replace(one.deltallm, theta=theta))
    found = read_settings(replace(config, calibration=json.loads(json.dumps(calibration(one)))))[0].deltallm
    assert found is not None
    np.testing.assert_array_equal(found.theta, theta)


Change = Callable[[dict[str, Any]], object]
WRONG: list[tuple[Change, str]] = [
    (lambda c: c.update(weights="1" * 64), "field calibration was made for another model"),
    (lambda c: c.pop("weights"), "made for another model"),
    (lambda c: c.update(settings={}), "field calibration.settings is {}, expected a list"),
    (lambda c: c.update(settings=[{}] * 1001), "expected a list"),
    (lambda c: c["settings"].append(7), "settings.5.parameters is 7, expected an object"),
    (lambda c: c["settings"][0].update(policy="delta"), "settings.0.policy is 'delta', expected deltallm"),
    (lambda c: c["settings"][0].update(kl=math.inf), "settings.0.kl is inf, expected a number of at least 0"),
    (lambda c: c["settings"][0].update(kl=-0.1), "kl is -0.1"),
    (lambda c: c["settings"][0].update(kl=10**400), "settings.0.kl is 1"),
    (lambda c: c["settings"][0].update(sparsity=1.5), "sparsity is 1.5, expected a number of at least 0, at most 1"),
    (lambda c: c["settings"][0].update(context=0), "context is 0, expected a whole number of at least 1"),
    (lambda c: c["settings"][0].update(parameters={}), "settings.0.parameters is {}, expected deltallm, delta or both"),
    (lambda c: c["settings"][0]["parameters"].update(window={}), "expected deltallm, delta or both"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(window=0), "window is 0"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(sinks=True), "sinks is True"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(form="row"), "form is 'row', expected key or element"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[[0.5] * 2] * 3), "expected [4, 2] numbers"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[[0.5]] * 4), "expected [4, 2] numbers"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[[-1, 0]] * 4), "expected [4, 2] numbers"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[[math.nan, 0]] * 4), "expected [4, 2] numbers"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[["a", 0]] * 4), "expected [4, 2] numbers"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[[10**400, 0]] * 4), "expected [4, 2] numbers"),
    (lambda c: c["settings"][0]["parameters"]["deltallm"].update(theta=[[0], [0, 0]]), "expected [4, 2] numbers"),
    (lambda c: c["settings"][2]["parameters"]["deltallm"].pop("spread"), "spread is None, expected [4, 2, 2] numbers"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(select=[]), "select is []"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(select=[1, 4]), "select is [1, 4], expected a list of l"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(select=[3, 1]), "expected ascending layers"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(select=[0, 1]), "expected layers that are not in full"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(full=[]), "expected layers that are not in full"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(budget=4), "recent is 8, expected at most the budget of"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(budget=1 << 60), "budget is 1152921504606846976"),
    (lambda c: c["settings"][3]["parameters"]["delta"].update(recent=0), "recent is 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong(folder: Path, change: Change, message: str) -> None:
    path = folder / "edgerun.json"
    found = calibration(*SETTINGS)
    change(found)
    with pytest.raises(PackageError) as caught:
        read_settings(replace(read_config(path), calibration=found), path)
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert str(path) in text and "edgerun calibrate" in text


def test_a_package_with_a_foreign_calibration_does_not_open(folder: Path) -> None:
    path = folder / "edgerun.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"calibration": calibration() | {"weights": "x"}}))
    with pytest.raises(PackageError, match="made for another model"):
        read_config(path)
    path.write_bytes(before)


def test_a_damaged_setting_is_refused_where_it_is_asked_for(folder: Path) -> None:
    path = folder / "edgerun.json"
    before = path.read_bytes()
    damaged = calibration(*SETTINGS)
    damaged["settings"][0]["kl"] = -1
    path.write_text(json.dumps(json.loads(before) | {"calibration": damaged}))
    found = read_config(path)
    path.write_bytes(before)
    assert parse("full", found).deltallm is None
    with pytest.raises(PackageError, match=r"settings\.0\.kl is -1"):
        parse(quality(0.1), found)


CHOICES = [
    ("deltallm", SETTINGS[0]),
    ("deltallm:kl=0.02", SETTINGS[0]),
    ("deltallm:kl=0.019", SETTINGS[1]),
    ("deltallm: kl = 1 ", SETTINGS[0]),
    ("deltallm:form=element,kl=0.1", SETTINGS[2]),
    ("delta:kl=0.03", SETTINGS[3]),
    ("deltallm:kl=0.1+delta:kl=0.04", SETTINGS[4]),
    ("delta+deltallm:kl=0.04", SETTINGS[4]),
    (quality(0.01), SETTINGS[1]),
    (quality(0.02), SETTINGS[0]),
    (quality(0.03), SETTINGS[0]),
    (quality(1), SETTINGS[4]),
]


@pytest.mark.parametrize(("text", "wanted"), CHOICES)
def test_choice(config: Config, text: str, wanted: Any) -> None:
    found = parse(text, config)
    assert found.name == text
    assert same(replace(wanted, deltallm=found.deltallm, delta=found.delta), wanted)


def test_exact_attention_is_within_every_budget(config: Config) -> None:
    found = parse(quality(0.001), config)
    assert found.deltallm is None and found.delta is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deltallm:kl=0.001", "no calibrated setting costs at most 0.001; the best has kl=0.01"),
        ("delta", "no calibrated setting costs at most 0.02; the best has kl=0.03"),
        ("deltallm:kl=x", "kl is x; it must be a number of at least 0"),
        ("deltallm:kl=-1", "kl is -1"),
        ("deltallm:kl=inf", "kl is inf"),
        ("deltallm:kl=nan", "kl is nan"),
        ("deltallm:kl=0.1,theta=1", "it has no parameter kl"),
        ("quality:theta=1", "there is no policy 'quality'"),
        ("quality:kl=1+delta", "there is no policy 'quality'"),
    ],
)
def test_a_choice_that_is_not_there(config: Config, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(text, config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_calibration(folder: Path) -> None:
    config = read_config(folder / "edgerun.json")
    for text in (quality(0.1), "deltallm:kl=1", "deltallm:kl=1+delta:kl=1"):
        with pytest.raises(OptionError, match="run `edgerun calibrate` first"):
            parse(text, config)
    assert parse("delta", config).delta is not None, "the layers of the paper's models"
    with pytest.raises(OptionError, match="give theta"):
        parse("deltallm", config)


def test_parameters_stay_parameters(config: Config) -> None:
    found = parse("deltallm:theta=0.125+delta:budget=512,select=1/3,full=0", config)
    assert found.deltallm is not None and found.delta is not None
    assert (found.deltallm.theta == 0.125).all() and found.delta.select == (1, 3)


def test_bytes_that_are_read() -> None:
    assert setting(keys(), None, 0, 0.5).bytes_share(4096, 4) == pytest.approx(1 - 0.5 * (4096 - 128) / 4096)
    assert setting(elements(), None, 0, 0.5).bytes_share(4096, 4) == 1
    assert setting(None, pages(32), 0, 0).bytes_share(4096, 4) == pytest.approx(0.75 + 0.25 * 512 / 4096)
    assert setting(None, pages(32), 0, 0).bytes_share(128, 4) == 1
    both = setting(keys(), pages(32), 0, 1).bytes_share(4096, 4)
    assert both == pytest.approx(0.75 * 128 / 4096 + 0.25 * 512 / 4096)


def test_a_package_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(EdgerunError, match=r"edgerun.json: cannot be written \(No space left on device\)"):
        write_settings(folder, SETTINGS)
    assert [file.name for file in folder.iterdir() if "partial" in file.name] == []
