"""Rotary position embedding: the inverse frequencies of a checkpoint, all scaling folded in.

inv_freq float32 [head_dim / 2]. Computed in float32 in the order of transformers' modeling_rope_utils, so that the
angles agree to the last bit. Scalings: none, linear (github.com/kaiokendev), llama3 (Llama 3.1), and the frequency
factors that a GGUF file carries in rope_freqs.weight (llama3's, already computed by its converter).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint

Frequencies = npt.NDArray[np.float32]
_PLAIN = (None, "default", "none")


def plain(theta: float, head_dim: int) -> Frequencies:
    """1 / theta ** (2i / head_dim)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers: Frequencies = np.power(np.float32(theta), exponents)
    return np.reciprocal(powers)


def from_huggingface(config: Mapping[str, Any], head_dim: int, where: str) -> tuple[float, Frequencies]:
    """(theta, inv_freq) from `rope_theta` + `rope_scaling`, or from the `rope_parameters` of newer configurations."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        raise CheckpointError(f"{where}: rope_parameters differ from layer to layer, which is not supported")
    theta = _positive(parameters.get("rope_theta", config.get("rope_theta", 10000.0)), "rope_theta", where)
    if parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError(f"{where}: partial_rotary_factor is not 1: partial rotary embeddings are not supported")
    kind = parameters.get("rope_type", parameters.get("type"))
    base = plain(theta, head_dim)
    if kind in _PLAIN:
        return theta, base
    if kind == "linear":
        return theta, base / np.float32(_positive(parameters.get("factor"), "factor", where))
    if kind == "llama3":
        original = parameters.get("original_max_position_embeddings", config.get("max_position_embeddings"))
        return theta, _llama3(
            base,
            _positive(parameters.get("factor"), "factor", where),
            _positive(parameters.get("low_freq_factor"), "low_freq_factor", where),
            _positive(parameters.get("high_freq_factor"), "high_freq_factor", where),
            _positive(original, "original_max_position_embeddings", where),
        )
    raise CheckpointError(f"{where}: rope scaling type {kind!r} is not supported (supported: linear, llama3)")


def from_gguf(checkpoint: Checkpoint, head_dim: int, factors: Frequencies | None) -> tuple[float, Frequencies]:
    """(theta, inv_freq) from `*.rope.freq_base`, `*.rope.scaling.*` and rope_freqs.weight (`factors`)."""
    key = f"{checkpoint.architecture}.rope."
    rotated = checkpoint.number(key + "dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(
            f"{checkpoint.path}: {key}dimension_count is {rotated:g} of {head_dim}: "
            "partial rotary embeddings are not supported"
        )
    theta = _positive(checkpoint.number(key + "freq_base", 10000.0), key + "freq_base", str(checkpoint.path))
    inv_freq = plain(theta, head_dim)
    if factors is not None:
        if not (factors > 0).all():
            raise CheckpointError(f"{checkpoint.path}: tensor rope_freqs.weight has values that are not positive")
        inv_freq = inv_freq / factors
    kind = checkpoint.metadata.get(key + "scaling.type", "linear")
    factor = checkpoint.number(key + "scaling.factor", checkpoint.number(key + "scale_linear", 1.0))
    if kind == "linear":
        inv_freq = inv_freq / np.float32(_positive(factor or 1.0, key + "scaling.factor", str(checkpoint.path)))
    elif kind not in _PLAIN:
        raise CheckpointError(
            f"{checkpoint.path}: {key}scaling.type {kind!r} is not supported (supported: none, linear)"
        )
    return theta, inv_freq


def _llama3(inv_freq: Frequencies, factor: float, low: float, high: float, original: float) -> Frequencies:
    wavelength = np.float32(2 * math.pi) / inv_freq
    scaled = np.where(wavelength > np.float32(original / low), inv_freq / np.float32(factor), inv_freq)
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    smoothed = (1 - smooth) * scaled / np.float32(factor) + smooth * scaled
    medium = (wavelength >= np.float32(original / high)) & (wavelength <= np.float32(original / low))
    return np.where(medium, smoothed, scaled).astype(np.float32)


def _positive(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointError(f"{where}: rotary embedding: {key} is {value!r}, not a positive number")
    return float(value)
