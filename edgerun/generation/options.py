"""How the next token is chosen, checked before anything runs."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgerun.errors import OptionError

MAX_SEED = 2**64 - 1
MAX_LOGPROBS = 1000


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of one generation. Every field is checked when the object is made; `OptionError` names the field, the
    value and what is allowed. The defaults are those of llama.cpp.

    max_tokens: most tokens to generate; None means up to the end of the context.
    temperature: logits are divided by it; 0 always takes the most likely token.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the fewest tokens whose probabilities sum to at least p; 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
    repetition_penalty: logits of tokens already seen are divided (if positive) or multiplied by it; 1 is off.
    presence_penalty, frequency_penalty: subtracted from a seen token's logit once, or once per occurrence; 0 is off.
    seed: the same seed gives the same text; None draws one.
    logit_bias: token id -> number added to its logit; -inf forbids the token.
    stop: strings that end the text; they are not part of it. A single string is taken as one stop string.
    logprobs: how many of the likeliest tokens to report beside the chosen one's log-probability; None reports nothing.
    ignore_eos: go on after an end-of-text token.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if self.max_tokens is not None:
            put("max_tokens", _integer("max_tokens", self.max_tokens, 0, None))
        put("temperature", _number("temperature", self.temperature, 0, 100))
        put("top_k", _integer("top_k", self.top_k, 0, None))
        put("top_p", _number("top_p", self.top_p, 0, 1, open_low=True))
        put("min_p", _number("min_p", self.min_p, 0, 1))
        put("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0, 100, open_low=True))
        put("presence_penalty", _number("presence_penalty", self.presence_penalty, -100, 100))
        put("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -100, 100))
        if self.seed is not None:
            put("seed", _integer("seed", self.seed, 0, MAX_SEED))
        put("logit_bias", _biases(self.logit_bias))
        put("stop", _stop_strings(self.stop))
        if self.logprobs is not None:
            put("logprobs", _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS))
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(f"ignore_eos is {self.ignore_eos!r}; it must be True or False")

    @classmethod
    def merged(cls, options: SamplingOptions | None, changes: Mapping[str, Any]) -> SamplingOptions:
        """`options` (None: the defaults) with some fields changed; an unknown field raises `OptionError`."""
        known = [f.name for f in fields(cls)]
        for name in changes:
            if name not in known:
                from difflib import get_close_matches

                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(known)}"
                raise OptionError(f"no sampling option is called {name}; {hint}")
        return replace(options if options is not None else cls(), **changes)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `OptionError` if `logit_bias` names a token that a vocabulary of `vocab_size` tokens doesn't have."""
        for token_id in self.logit_bias:
            if token_id >= vocab_size:
                raise OptionError(
                    f"logit_bias has token {token_id}; this model's tokens are 0 to {vocab_size - 1}: take ids from "
                    "its own tokenizer"
                )


def _integer(name: str, value: object, low: int, high: int | None) -> int:
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; it must be {allowed}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name} is {value!r}; it must be {allowed}") from None
    if number < low or (high is not None and number > high):
        raise OptionError(f"{name} is {number}; it must be {allowed}")
    return number


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    allowed = f"a number {'above' if open_low else 'from'} {low} {'and at most' if open_low else 'to'} {high}"
    number = _float(value)
    # Written so that NaN fails: every comparison with it is false.
    if number is None or not ((low < number if open_low else low <= number) and number <= high):
        raise OptionError(f"{name} is {value!r}; it must be {allowed}")
    return number


def _float(value: object) -> float | None:
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias is {value!r}; it must map token ids to numbers")
    biases = {}
    for key, bias in value.items():
        token_id = _integer("a token id of logit_bias", key, 0, None)
        number = _float(bias)
        if number is None or not (-100 <= number <= 100 or number == -math.inf):
            raise OptionError(
                f"logit_bias of token {token_id} is {bias!r}; it must be a number from -100 to 100, or -inf to forbid "
                "the token"
            )
        biases[token_id] = number
    return biases


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or isinstance(strings, (bytes, bytearray)):
        raise OptionError(f"stop is {value!r}; it must be a string or a list of strings")
    for string in strings:
        if not isinstance(string, str) or not string:
            raise OptionError(f"stop has {string!r}; every stop string must be a text of at least one character")
    return tuple(strings)
