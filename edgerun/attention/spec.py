"""What a user writes for an attention policy: "full", "deltallm:theta=0.5,window=128", "delta:budget=512,select=2/8",
or both, joined by "+": DELTA choosing pages in its sparse layers, DeltaLLM's runs in all others.

Calibrated settings need no parameters: "deltallm:kl=0.01" is the one that reads least and cost at most 0.01 nats a
token when it was calibrated ("deltallm" alone: at most DEFAULT_KL), and "quality:kl=0.01" the one of any policy; where
a session says nothing of sparsity, that budget is for both (see ``edgerun.quality``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgerun.attention.delta import SPAN, Delta
from edgerun.attention.deltallm import DeltaLLM
from edgerun.attention.settings import read_settings
from edgerun.errors import OptionError
from edgerun.package.config import Config

FULL = "full"
QUALITY = "quality"
DEFAULT_KL = 0.02
"""Nats a token that a calibrated setting may cost where the user states nothing."""
CALIBRATED = ("deltallm", "delta", "deltallm+delta")
"""The policies whose settings a budget chooses among."""
TYPICAL = 4096
"""Tokens at which settings are compared by the bytes that they read."""
T = TypeVar("T")
PUBLISHED = (2 / 28, 14 / 28, 22 / 28)
"""Which layers select in the paper's models of 28."""
HELP = f"{FULL}, deltallm:theta=X, delta:budget=TOKENS, or deltallm:…+delta:…; calibrated: deltallm:kl=X, delta:kl=X"


@dataclass(frozen=True)
class Attention:
    """A session's policies; without any it is exact. name: what the user wrote."""

    name: str = FULL
    deltallm: DeltaLLM | None = None
    delta: Delta | None = None


def parse(text: str, config: Config) -> Attention:
    """The policies of a text for a model. Raises OptionError, which says what is wrong with it."""
    if text == FULL:
        return Attention()
    calibrated = _calibrated(text, config)
    if calibrated is not None:
        return calibrated
    found: dict[str, Any] = {}
    for part in text.split("+"):
        name, _, rest = part.strip().partition(":")
        if name not in _MAKERS:
            raise OptionError(f"attention {text!r}: there is no policy {name!r}; write {HELP}")
        if name in found:
            raise OptionError(f"attention {text!r}: {name} is there twice; write it once")
        values = _Values(text, name, rest)
        found[name] = _MAKERS[name](values, config)
        values.finish()
    return Attention(text, found.get("deltallm"), found.get("delta"))


def quality(kl: float) -> str:
    """What to write for the calibrated setting of any policy that reads least and costs at most ``kl``."""
    return f"{QUALITY}:kl={kl}"


def budget(text: str) -> float | None:
    """Nats a token, of "quality:kl=0.01"; None for other texts, and for what ``parse`` refuses."""
    name, _, rest = text.partition(":")
    key, _, written = rest.partition("=")
    if name.strip() != QUALITY or (rest and key.strip() != "kl"):
        return None
    return _limit(text, QUALITY, written.strip()) if rest else DEFAULT_KL


def _calibrated(text: str, config: Config) -> Attention | None:
    """The calibrated setting that a text asks for; None if it gives parameters, or asks for nothing calibrated."""
    names, limits = [], []
    for part in text.split("+"):
        name, _, rest = part.strip().partition(":")
        items = {key.strip(): value.strip() for key, _, value in (i.partition("=") for i in rest.split(",") if i)}
        element = name == "deltallm" and items.get("form") == "element"
        if element:
            del items["form"]
        if set(items) - {"kl"}:
            return None
        names.append(f"{name}-element" if element else name)
        if "kl" in items:
            limits.append(_limit(text, name, items["kl"]))
    asked = bool(limits) or names == [QUALITY]
    limit = min(limits, default=DEFAULT_KL)
    policy = "+".join(sorted(names, reverse=True))
    if policy not in (QUALITY, *CALIBRATED, "deltallm-element"):
        return None
    policies = CALIBRATED if policy == QUALITY else (policy,)
    settings = [s for s in read_settings(config) if s.policy in policies]
    if not settings and asked:
        raise OptionError(
            f"attention {text!r}: this model has no calibrated {' or '.join(policies)}; run `edgerun calibrate` first"
        )
    within = [s for s in settings if s.kl <= limit]
    if not within and policy == QUALITY:
        return Attention(text)  # exact attention costs nothing
    if not within and settings:
        least = min(s.kl for s in settings)
        raise OptionError(
            f"attention {text!r}: no calibrated setting costs at most {limit:g}; the best has kl={least:.4g}"
        )
    if not within:
        return None
    best = min(within, key=lambda s: (s.bytes_share(TYPICAL, config.n_layers), s.kl))
    return Attention(text, best.deltallm, best.delta)


def _limit(text: str, name: str, written: str) -> float:
    try:
        limit = float(written)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise OptionError(f"attention {text!r}: {name}: kl is {written}; it must be a number of at least 0")
    return limit


class _Values:
    """The parameters of one policy, each taken once."""

    def __init__(self, text: str, name: str, rest: str) -> None:
        self._text, self._name = text, name
        self._left: dict[str, str] = {}
        for item in filter(None, rest.split(",")):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or not value or key in self._left:
                raise self.wrong(f"{item!r} is no parameter=value that stands there once")
            self._left[key] = value

    def wrong(self, why: str) -> OptionError:
        return OptionError(f"attention {self._text!r}: {self._name}: {why}")

    def take(self, key: str, read: Callable[[str], T], default: T, wanted: str, right: Callable[[T], bool]) -> T:
        """A parameter; ``wanted`` says in words what ``right`` asks of it."""
        if key not in self._left:
            return default
        written = self._left.pop(key)
        try:
            value = read(written)
            fits = right(value)
        except ValueError:
            fits = False
        if not fits:
            raise self.wrong(f"{key} is {written}; it must be {wanted}")
        return value

    def finish(self) -> None:
        if self._left:
            raise self.wrong(f"it has no parameter {', '.join(self._left)}")


def _whole(values: _Values, key: str, default: int, least: int) -> int:
    return values.take(key, int, default, f"a whole number of at least {least}", lambda n: least <= n < 1 << 40)


def _deltallm(values: _Values, config: Config) -> DeltaLLM:
    form = values.take("form", str, "key", "key or element", lambda name: name in ("key", "element"))
    theta = values.take("theta", float, math.nan, "a number of at least 0", lambda x: 0 <= x < math.inf)
    if math.isnan(theta):
        raise values.wrong(
            "give theta, how near to its reference a key must be (0: exact; 0.5: half of its length), or find one for "
            "every head with `edgerun calibrate`"
        )
    heads = (config.n_layers, config.n_kv_heads)
    return DeltaLLM(
        theta=np.full(heads, theta, np.float32),
        window=_whole(values, "window", 128, 1),
        sinks=_whole(values, "sinks", 4, 0),
        form="element" if form == "element" else "key",
        spread=np.ones((*heads, config.head_dim), np.float32) if form == "element" else None,
    )


def _delta(values: _Values, config: Config) -> Delta:
    n = config.n_layers

    def layers(written: str) -> tuple[int, ...]:
        return tuple(sorted({int(part) for part in written.split("/")}))

    def exist(chosen: tuple[int, ...]) -> bool:
        return all(0 <= layer < n for layer in chosen)

    wanted = f"layers from 0 to {n - 1}, as in 2/8/14"
    select = values.take("select", layers, tuple(sorted({int(n * part) for part in PUBLISHED})), wanted, exist)
    full = values.take("full", layers, tuple(range(select[0])), wanted, exist)
    budget, recent = _whole(values, "budget", 512, SPAN), _whole(values, "recent", 128, 1)
    pages = -(-budget // SPAN), -(-recent // SPAN)
    if pages[1] > pages[0]:
        raise values.wrong(f"recent is {recent}, more than the budget of {budget}")
    refresh = _whole(values, "refresh", 1, 1)
    delta = Delta(tuple(sorted(set(full) - set(select))), select, *pages, refresh)
    unfed = delta.unfed(n)
    if unfed is not None:
        raise values.wrong(f"layer {unfed} would be sparse, but no layer below it selects; add it to full or select")
    return delta


_MAKERS: Mapping[str, Callable[[_Values, Config], Any]] = {"deltallm": _deltallm, "delta": _delta}
