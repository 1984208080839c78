"""What users write for sparsity."""

from __future__ import annotations

import pytest

from edgerun.errors import OptionError, PackageError
from edgerun.sparsity.delta_activations import DeltaActivations
from edgerun.sparsity.projections import KINDS
from edgerun.sparsity.spec import Setting, parse
from edgerun.sparsity.threshold import Threshold
from edgerun.sparsity.zero import Zero


def test_what_is_meant() -> None:
    assert parse("none") is None
    assert parse("zero") == Setting(dict.fromkeys(KINDS, Zero()))
    assert parse("threshold:keep=0.6") == Setting(dict.fromkeys(KINDS, Threshold(keep=0.6)))
    assert parse(" threshold:at=0.5, down=0.7 ") == Setting(
        dict.fromkeys(KINDS, Threshold(at=0.5)) | {"down": Threshold(at=0.7)}
    )
    assert parse("threshold:keep=0.5,qkv=1") == Setting({kind: Threshold(keep=0.5) for kind in KINDS if kind != "qkv"})


def test_what_delta_means() -> None:
    assert parse("delta:at=0.5") == Setting(dict.fromkeys(KINDS, DeltaActivations(0.5)))
    assert parse("delta:at=0.5,refresh=64,down=1") == Setting(
        dict.fromkeys(KINDS, DeltaActivations(0.5, 64)) | {"down": DeltaActivations(1.0, 64)}
    )


POINTS = {
    "points": [
        {"kl": 0.01, "weight_time_saved": 0.1, "methods": {"layers.0.qkv": ["threshold", 0.2]}},
        {"kl": 0.03, "weight_time_saved": 0.2, "methods": {"layers.0.down": ["delta", 0.5]}},
    ]
}


def test_what_was_calibrated() -> None:
    calibration = {"activations": POINTS}
    assert parse("calibrated:kl=0.02", calibration) == Setting({"layers.0.qkv": Threshold(at=0.2)})
    assert parse("calibrated:kl=0.03", calibration) == Setting({"layers.0.down": DeltaActivations(0.5)})
    with pytest.raises(OptionError, match=r"the least is 0\.01"):
        parse("calibrated:kl=0.001", calibration, "folder")
    with pytest.raises(OptionError, match="folder: the package has no calibration"):
        parse("calibrated:kl=0.001", {}, "folder")


@pytest.mark.parametrize(
    "found",
    [
        [],
        {},
        {"points": 3},
        {"points": [{"kl": 0.01}]},
        {"points": [{"kl": "a", "weight_time_saved": 0.1, "methods": {}}]},
        {"points": [{"kl": 0.01, "weight_time_saved": 0.1, "methods": {"x": ["teal", 0.1]}}]},
        {"points": [{"kl": 0.01, "weight_time_saved": 0.1, "methods": {"x": ["delta", -1]}}]},
        {"points": [{"kl": 0.01, "weight_time_saved": 0.1, "methods": {"x": "delta"}}]},
        {"points": [{"kl": 0.01, "weight_time_saved": 0.1, "methods": []}]},
    ],
)
def test_a_damaged_calibration_is_one_line(found: object) -> None:
    with pytest.raises(PackageError, match="folder: its calibration of activations is damaged") as error:
        parse("calibrated:kl=0.1", {"activations": found}, "folder")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("", "no policy"),
        ("teal", "choose from zero, threshold, delta, calibrated, none"),
        ("delta", "how far"),
        ("delta:at=-1", "negative"),
        ("delta:at=1,refresh=1.5", "whole number"),
        ("delta:at=1,refresh=-1", "whole number"),
        ("calibrated", "how far from exact"),
        ("none:x=1", "no policy 'none'"),
        ("threshold", "either keep or at"),
        ("threshold:keep=0.5,at=1", "either keep or at"),
        ("threshold:keep=0", "share"),
        ("threshold:keep=1.5", "share"),
        ("threshold:at=-1", "negative"),
        ("threshold:keep", "no NAME=NUMBER"),
        ("threshold:keep=", "no NAME=NUMBER"),
        ("threshold:keep=nan", "no NAME=NUMBER"),
        ("threshold:keep=0.5,keep=0.5", "twice"),
        ("threshold:keep=0.5,mlp=0.5", "has no mlp"),
        ("zero:at=1", "has no at; it has no parameters"),
    ],
)
def test_what_is_refused(spec: str, why: str) -> None:
    with pytest.raises(OptionError, match="sparsity") as error:
        parse(spec)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
