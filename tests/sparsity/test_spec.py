"""What users write for sparsity."""

from __future__ import annotations

import pytest

from edgerun.errors import OptionError
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


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("", "no policy"),
        ("teal", "choose from zero, threshold"),
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
