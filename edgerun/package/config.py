"""edgerun.json: what a package says about itself, checked field by field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from edgerun.errors import PackageError
from edgerun.package.problem import damaged, shown

FORMAT_VERSION = 1
FAMILIES = ("llama", "bitnet", "qwen2", "qwen3")

# Far above any model, and small enough that no product of a few of them overflows an int64.
_LIMITS = {
    "n_layers": 4096,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "n_heads": 1 << 14,
    "n_kv_heads": 1 << 14,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,
    "context_length": 1 << 28,
}
_MOST_SETTINGS = 1000


@dataclass(frozen=True)
class Config:
    """The fields of edgerun.json. source: {"file" or "repo", "format", "sha256"}.

    quantisation: {"linear", "embedding": GGUF's names of the formats, "notes": list of str}.
    """

    format_version: int
    family: str
    name: str
    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    tied_embeddings: bool
    source: dict[str, Any]
    quantisation: dict[str, Any]
    tool: str
    calibration: dict[str, Any]


def read_config(path: Path) -> Config:
    """Read and check edgerun.json. Raises PackageError; a newer format version says so before anything else."""

    def no_number(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    try:
        found = json.loads(path.read_bytes(), parse_constant=no_number)
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise damaged(path, "holds no JSON object")
    _check_version(path, found.get("format_version"))
    values = {field.name: _field(path, found, field.name, str(field.type)) for field in fields(Config)}
    config = Config(**values)
    _check_values(path, config)
    return config


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise damaged(path, f"field format_version is {shown(version)}, expected {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise PackageError(
            f"{path}: the package has format version {shown(version)}, this edgerun reads up to {FORMAT_VERSION}; "
            "upgrade edgerun (pip install --upgrade edgerun)"
        )


def _field(path: Path, found: dict[str, Any], name: str, kind: str) -> Any:
    if name not in found:
        raise damaged(path, f"field {name} is missing")
    value = found[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "int": number and isinstance(value, int),
        "float": number,
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }.get(kind, isinstance(value, dict))
    if not fits:
        raise damaged(path, f"field {name} is {shown(value)}, expected {_KINDS.get(kind, 'an object')}")
    limit = _LIMITS.get(name)
    if limit is not None and not 1 <= value <= limit:
        raise damaged(path, f"field {name} is {shown(value)}, expected 1 to {limit}")
    return value


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def _check_values(path: Path, config: Config) -> None:
    if config.family not in FAMILIES:
        raise damaged(path, f"field family is {shown(config.family)}, expected one of {', '.join(FAMILIES)}")
    if config.head_dim % 2:
        raise damaged(path, f"field head_dim is {config.head_dim}, expected an even number")
    if config.n_heads % config.n_kv_heads:
        raise damaged(path, f"field n_heads is {config.n_heads}, no multiple of n_kv_heads {config.n_kv_heads}")
    if not (_finite(config.rope_theta) and config.rope_theta > 0):
        raise damaged(path, f"field rope_theta is {shown(config.rope_theta)}, expected a positive number")
    if not (_finite(config.rms_norm_eps) and 0 <= config.rms_norm_eps < 1):
        raise damaged(path, f"field rms_norm_eps is {shown(config.rms_norm_eps)}, expected 0 to 1")
    for group, name in (("source", "format"), ("source", "sha256"), ("quantisation", "linear")):
        if not isinstance(getattr(config, group).get(name), str):
            raise damaged(path, f"field {group}.{name} is no text")
    if not any(isinstance(config.source.get(name), str) for name in ("file", "repo")):
        raise damaged(path, "field source names neither a file nor a repo")
    if not isinstance(config.quantisation.get("embedding"), str):
        raise damaged(path, "field quantisation.embedding is no text")
    notes = config.quantisation.get("notes")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise damaged(path, "field quantisation.notes is no list of texts")
    check_calibration(path, config)


def weights(config: Config) -> str:
    """What says for which weights a calibration was made."""
    return str(config.source.get("fingerprint", config.source["sha256"]))


def check_calibration(path: Path, config: Config) -> None:
    """Raises PackageError for a calibration of other weights, or one whose settings are no list.

    ``{"weights": fingerprint, "settings": [...], "activations": {...}}``; what the settings say is read where it is
    used: see ``edgerun.attention.settings`` and ``edgerun.sparsity.calibrated``.
    """
    found = config.calibration
    if not found:
        return
    if found.get("weights") != weights(config):
        raise wrong_calibration(path, "field calibration was made for another model")
    settings = found.get("settings")
    if not isinstance(settings, list) or len(settings) > _MOST_SETTINGS:
        raise wrong_calibration(path, f"field calibration.settings is {shown(settings)}, expected a list")


def wrong_calibration(path: Path, what: str) -> PackageError:
    """The error for a calibration that cannot be used."""
    return damaged(path, what, "set that field to {} and run `edgerun calibrate`")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
