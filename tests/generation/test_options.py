"""Sampling options: what is refused is refused by name, with the value and the range."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from edgerun.errors import OptionError
from edgerun.generation.options import SamplingOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(f, math.nan) for f in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")],
        *[(f, math.inf) for f in ("temperature", "top_p", "frequency_penalty")],
        *[("temperature", v) for v in (-0.1, 101, "hot", None, True, 10**400)],
        *[("top_k", v) for v in (-1, 1.5, "3", None, True)],
        *[("top_p", v) for v in (0, -1, 1.01)],
        *[("min_p", v) for v in (-0.01, 1.01)],
        *[("repetition_penalty", v) for v in (0, -1, 101)],
        *[("max_tokens", v) for v in (-1, 2.0)],
        *[("seed", v) for v in (-1, 2**64, 1.0)],
        *[("stop", v) for v in ("", [""], ["a", 3], 3, b"x", None, {"a"})],
        *[("logprobs", v) for v in (-1, 1001, True)],
        *[("logit_bias", v) for v in ({-1: 1}, {"a": 1}, {1: math.nan}, {1: math.inf}, {1: 101}, {1: "x"}, [1], None)],
        ("ignore_eos", 1),
    ],
)
def test_refused(field: str, value: Any) -> None:
    with pytest.raises(OptionError, match=field) as caught:
        SamplingOptions(**{field: value})
    assert "\n" not in str(caught.value)


def test_messages_name_value_and_range() -> None:
    with pytest.raises(OptionError, match=r"top_p is 1\.5; it must be a number above 0 and at most 1"):
        SamplingOptions(top_p=1.5)
    with pytest.raises(OptionError, match="max_tokens is -3; it must be an integer of at least 0"):
        SamplingOptions(max_tokens=-3)


def test_values_are_made_plain() -> None:
    options = SamplingOptions(
        temperature=0, top_k=np.int64(3), top_p=np.float32(0.5), stop="end", logit_bias={np.int32(5): -math.inf}
    )  # fmt: skip
    assert type(options.top_k) is int and type(options.top_p) is float and type(options.temperature) is float
    assert options.stop == ("end",)
    assert options.logit_bias == {5: -math.inf}


def test_defaults_are_valid_and_frozen() -> None:
    options = SamplingOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.top_k = 1  # type: ignore[misc]
    assert options == SamplingOptions()


def test_merged() -> None:
    base = SamplingOptions(seed=3)
    assert SamplingOptions.merged(base, {"top_k": 1}) == SamplingOptions(seed=3, top_k=1)
    assert SamplingOptions.merged(None, {}) == SamplingOptions()
    with pytest.raises(OptionError, match="did you mean temperature"):
        SamplingOptions.merged(base, {"temprature": 1})
    with pytest.raises(OptionError, match="top_k is -1"):
        SamplingOptions.merged(base, {"top_k": -1})


def test_vocabulary() -> None:
    SamplingOptions(logit_bias={9: 1}).check_vocabulary(10)
    with pytest.raises(OptionError, match=r"token 10; this model's tokens are 0 to 9"):
        SamplingOptions(logit_bias={10: 1}).check_vocabulary(10)
