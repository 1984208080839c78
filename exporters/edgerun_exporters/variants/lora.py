"""PEFT's LoRA adapters (adapter_config.json, adapter_model.safetensors): the delta of a matrix is B A alpha / r.

Hu et al., arXiv 2106.09685; the files are those of huggingface.co/docs/peft.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from ..families import Description, Matrix
from ..readers.safetensors import SafetensorsFiles, read_json

Float = npt.NDArray[np.float32]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "megatron_config",
    "use_qalora",
    "alora_invocation_tokens",
    "trainable_token_indices",
)


def is_adapter(path: Path) -> bool:
    """Whether a path is the folder of a PEFT adapter."""
    return (path / _CONFIG).is_file() and not (path / "config.json").is_file()


class LoraAdapter:
    """An open adapter, checked against the base that it is for."""

    def __init__(self, folder: Path, description: Description) -> None:
        self.path = folder / _WEIGHTS
        config = self._config = read_json(folder / _CONFIG)
        where = folder / _CONFIG
        if config.get("peft_type") != "LORA":
            raise CheckpointError(f"{where}: peft_type is {config.get('peft_type')!r}; only LORA adapters are read")
        for option in _UNSUPPORTED:
            if config.get(option):
                raise CheckpointError(
                    f"{where}: {option} is not supported; merge the adapter into its base model first"
                )
        if config.get("bias", "none") != "none":
            raise CheckpointError(f"{where}: trained biases are not supported; merge the adapter into its base first")
        self._files = SafetensorsFiles(self.path)
        self._sides: dict[str, dict[str, str]] = {}  # package name -> side -> tensor
        self._modules: dict[str, str] = {}
        matrices = {matrix.name: matrix for matrix in description.matrices()}
        for name in self._files.tensors:
            match = _TENSOR.fullmatch(name)
            ours = _package_name(match["module"]) if match else None
            if match is None or ours not in matrices:
                raise CheckpointError(f"{self.path}: tensor {name} has no place in the base model; give its own base")
            self._sides.setdefault(ours, {})[match["side"]] = name
            self._modules[ours] = match["module"]
        for ours, sides in self._sides.items():
            self._check(matrices[ours], sides)
        if not self._sides:
            raise CheckpointError(f"{self.path}: holds no LoRA tensors; give another adapter")

    def _check(self, matrix: Matrix, sides: dict[str, str]) -> None:
        shapes = {side: self._files.tensors[name].shape for side, name in sides.items()}
        a, b = shapes.get("A", ()), shapes.get("B", ())
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != (matrix.rows, matrix.columns):
            raise CheckpointError(
                f"{self.path}: lora_A {list(a)} and lora_B {list(b)} of {self._modules[matrix.name]} do not make a "
                f"{matrix.rows} x {matrix.columns} matrix: the adapter belongs to another base"
            )

    def _scale(self, module: str, rank: int) -> np.float32:
        alpha = self._pattern("alpha_pattern", module, self._config.get("lora_alpha", 8))
        return np.float32(alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank))

    def _pattern(self, key: str, module: str, default: Any) -> float:
        """PEFT's rule: the first pattern that the module's name ends with."""
        value = default
        for pattern, given in (self._config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                value = given
                break
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CheckpointError(f"{self.path.with_name(_CONFIG)}: {key} of {module} is {value!r}, not a number")
        return float(value)

    def delta(self, matrix: Matrix, start: int, stop: int) -> Float | None:
        sides = self._sides.get(matrix.name)
        if sides is None:
            return None
        rank = self._files.tensors[sides["A"]].shape[0]
        a, b = self._files.floats(sides["A"], 0, rank), self._files.floats(sides["B"], start, stop)
        return np.asarray((b @ a) * self._scale(self._modules[matrix.name], rank), np.float32)

    def vectors(self) -> dict[str, Float]:
        return {}


def _package_name(module: str) -> str:
    """model.layers.0.self_attn.q_proj -> layers.0.attention.q_proj.weight"""
    if module == "lm_head":
        return "output.weight"
    return module.removeprefix("model.").replace(".self_attn.", ".attention.") + ".weight"
