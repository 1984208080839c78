"""``calibration.settings`` of edgerun.json: attention settings with their measured cost, checked before they are used.

``[{"policy", "parameters", "context", "kl", "perplexity", "exact_perplexity", "sparsity", "read_share"}]``;
``parameters`` has an object for each policy, with the fields of ``DeltaLLM`` and ``Delta``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.delta import Delta
from edgerun.attention.deltallm import DeltaLLM
from edgerun.errors import EdgerunError
from edgerun.package.config import Config, check_calibration, wrong_calibration
from edgerun.package.problem import shown

_MOST = float(1 << 28)


@dataclass(frozen=True)
class Setting:
    """One setting and what it cost on held-out text.

    context: tokens of that text.  kl: mean divergence from exact attention, nats a token.  perplexity,
    exact_perplexity: of the same tokens.  sparsity: share of the keys (form "element": of their elements) that left the
    window and were not kept, in layers that are not sparse; 0 without DeltaLLM.  read_share: keys read over those that
    exact attention reads.
    """

    deltallm: DeltaLLM | None
    delta: Delta | None
    context: int
    kl: float
    perplexity: float
    exact_perplexity: float
    sparsity: float
    read_share: float

    @property
    def policy(self) -> str:
        """ "deltallm", "delta" or "deltallm+delta"; "deltallm-element" is the form that saves no bytes."""
        parts = []
        if self.deltallm is not None:
            parts.append("deltallm" if self.deltallm.form == "key" else "deltallm-element")
        if self.delta is not None:
            parts.append("delta")
        return "+".join(parts)

    def bytes_share(self, n_tokens: int, n_layers: int) -> float:
        """Bytes of keys and values that the token at position ``n_tokens`` reads, over those of exact attention."""
        saved = 0.0
        if self.deltallm is not None and self.deltallm.form == "key":
            saved = self.sparsity * self.deltallm.exact_from(n_tokens) / n_tokens
        if self.delta is None:
            return 1 - saved
        return self.delta.share_read(n_layers, n_tokens, 1 - saved)


def read_settings(config: Config, path: Path = Path("edgerun.json")) -> tuple[Setting, ...]:
    """The settings of a package whose edgerun.json is ``path``. Raises PackageError for those that are damaged or were
    made for another model."""
    check_calibration(path, config)
    settings = config.calibration.get("settings", [])
    wrong = partial(wrong_calibration, path)
    return tuple(_Reader(config, f"calibration.settings.{i}", wrong).setting(entry) for i, entry in enumerate(settings))


def as_json(setting: Setting) -> dict[str, Any]:
    """What ``read_settings`` reads."""
    measured = {name: getattr(setting, name) for name in ("context", *_MEASURED)}
    return {"policy": setting.policy, "parameters": parameters(setting.deltallm, setting.delta), **measured}


def parameters(deltallm: DeltaLLM | None, delta: Delta | None) -> dict[str, Any]:
    """The policies' fields as JSON."""
    found: dict[str, Any] = {}
    for name, policy in (("deltallm", deltallm), ("delta", delta)):
        if policy is not None:
            values = {field.name: getattr(policy, field.name) for field in fields(policy)}
            found[name] = {key: _plain(value) for key, value in values.items() if value is not None}
    return found


def read_parameters(
    found: Any, config: Config, where: str, wrong: Callable[[str], EdgerunError]
) -> tuple[DeltaLLM | None, Delta | None]:
    """The policies that ``parameters`` wrote into the field ``where``. Raises what ``wrong`` makes of what is wrong."""
    return _Reader(config, where, wrong).policies(found)


_MEASURED = {
    "kl": _MOST,
    "perplexity": math.inf,
    "exact_perplexity": math.inf,
    "sparsity": 1.0,
    "read_share": 1.0,
}
"""What a setting says that was measured, and the most that it can be."""


def _plain(value: Any) -> Any:
    """Arrays and tuples as nested lists, of the shortest numbers that are the same float32."""
    if isinstance(value, np.floating):
        return float(str(value))
    return [_plain(item) for item in value] if isinstance(value, np.ndarray | tuple) else value


class _Reader:
    """Reads one setting; every number is checked."""

    def __init__(self, config: Config, where: str, wrong: Callable[[str], EdgerunError]) -> None:
        self._config, self._where, self._error = config, where, wrong

    def setting(self, entry: Any) -> Setting:
        parameters = self._object(entry, "parameters")
        if not parameters:
            raise self._wrong("parameters", parameters, "deltallm, delta or both")
        keys, pages = self.policies(parameters)
        measured = {name: self._number(entry, name, most) for name, most in _MEASURED.items()}
        setting = Setting(keys, pages, self._whole(entry, "context", 1), **measured)
        if entry.get("policy") != setting.policy:
            raise self._wrong("policy", entry.get("policy"), setting.policy)
        return setting

    def policies(self, parameters: Any) -> tuple[DeltaLLM | None, Delta | None]:
        if not isinstance(parameters, dict) or set(parameters) - {"deltallm", "delta"}:
            raise self._wrong("parameters", parameters, "deltallm, delta or both")
        keys = self._keys(self._object(parameters, "deltallm")) if "deltallm" in parameters else None
        pages = self._pages(self._object(parameters, "delta")) if "delta" in parameters else None
        return keys, pages

    def _keys(self, found: dict[str, Any]) -> DeltaLLM:
        c = self._config
        form = found.get("form")
        if form not in ("key", "element"):
            raise self._wrong("form", form, "key or element")
        spread = self._array(found, "spread", (c.n_layers, c.n_kv_heads, c.head_dim)) if form == "element" else None
        theta = self._array(found, "theta", (c.n_layers, c.n_kv_heads))
        return DeltaLLM(theta, self._whole(found, "window", 1), self._whole(found, "sinks", 0), form, spread)

    def _pages(self, found: dict[str, Any]) -> Delta:
        full, select = self._layers(found, "full"), self._layers(found, "select")
        refresh = self._whole({"refresh": 1, **found}, "refresh", 1)
        delta = Delta(full, select, self._whole(found, "budget", 1), self._whole(found, "recent", 1), refresh)
        if set(full) & set(select) or delta.unfed(self._config.n_layers) is not None:
            raise self._wrong("select", found["select"], "layers that are not in full, the first below all others")
        if delta.recent > delta.budget:
            raise self._wrong("recent", delta.recent, f"at most the budget of {delta.budget}")
        return delta

    def _layers(self, found: dict[str, Any], name: str) -> tuple[int, ...]:
        value = found.get(name)
        n = self._config.n_layers
        if not isinstance(value, list) or not all(type(layer) is int and 0 <= layer < n for layer in value):
            raise self._wrong(name, value, f"a list of layers from 0 to {n - 1}")
        if value != sorted(set(value)):
            raise self._wrong(name, value, "ascending layers")
        return tuple(value)

    def _array(self, found: dict[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        try:
            array = np.array(found.get(name), np.float64)
        except (ValueError, TypeError, OverflowError):
            array = np.empty(0)
        if array.shape != shape or not np.isfinite(array).all() or array.min() < 0 or array.max() > _MOST:
            raise self._wrong(name, found.get(name), f"{list(shape)} numbers of at least 0")
        return array.astype(np.float32)

    def _object(self, found: Any, name: str) -> dict[str, Any]:
        value = found.get(name) if isinstance(found, dict) else found
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def _number(self, found: dict[str, Any], name: str, most: float) -> float:
        value = found.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= min(most, 1e300):
            raise self._wrong(name, value, "a number of at least 0" + (f", at most {most:g}" if most <= 1 else ""))
        return float(value)

    def _whole(self, found: dict[str, Any], name: str, least: int) -> int:
        value = found.get(name)
        if type(value) is not int or not least <= value <= _MOST:
            raise self._wrong(name, value, f"a whole number of at least {least}")
        return value

    def _wrong(self, name: str, value: object, wanted: str) -> EdgerunError:
        return self._error(f"field {self._where}.{name} is {shown(value)}, expected {wanted}")
