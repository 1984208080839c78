"""A model package as a checkpoint: its dequantised weights, by Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError
from edgerun.package import layout
from edgerun.program.open import open_package

from ..checkpoint import Checkpoint, Rows, TensorInfo

_NAMES = {"embedding": "model.embed_tokens", "output": "lm_head", "final_norm": "model.norm"}


class PackageCheckpoint(Checkpoint):
    """An open package, not of a BitNet, whose weights are those of its checkpoint, bit for bit."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._package = package = open_package(path)
        config = package.config
        if config.family == "bitnet" or any(
            "requantised" in str(note) for note in config.quantisation.get("notes", ())
        ):
            raise CheckpointError(
                f"{path}: a package whose weights are not those that its model was trained with; give the checkpoint "
                "that it was made from"
            )
        self.architecture = config.family
        self.inv_freq: npt.NDArray[np.float32] = np.array(package.tensor("rope.inv_freq"))
        self.metadata = {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context_length,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": config.tied_embeddings,
        }
        self._stored: dict[str, tuple[str, str, dict[str, layout.Array]]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        sizes = _sizes(self.metadata)
        parts: dict[str, dict[str, layout.Array]] = {}
        for tensor in package.graph.initializer:
            stem, _, suffix = tensor.name.rpartition(".")
            if stem.endswith(".weight"):
                parts.setdefault(stem, {})[suffix] = package.tensor(tensor.name)
            elif tensor.name != "rope.inv_freq":
                values = package.tensor(tensor.name)
                name = _huggingface(tensor.name)
                self._stored[name] = tensor.name, "vector", {"w": values}
                self.tensors[name] = TensorInfo(name, values.shape, "F32", 32)
        for ours, tensors in parts.items():
            name, kind = _huggingface(ours), _format(tensors)
            role = ours.removesuffix(".weight").rpartition(".")[2]
            self._stored[name] = ours, kind, tensors
            self.tensors[name] = TensorInfo(name, sizes[role], layout.public_name(kind).upper(), 32)

    def rows(self, name: str, start: int, stop: int) -> Rows:
        _, kind, tensors = self._stored[name]
        if kind == "vector":
            return tensors["w"].reshape(1, -1)
        n, k = self.tensors[name].shape
        first, last = start // layout.ROWS, -(-stop // layout.ROWS)
        some = {suffix: tensor[first:last] for suffix, tensor in tensors.items()}
        begin = first * layout.ROWS
        return layout.dequantise(kind, some, min(n, last * layout.ROWS) - begin, k)[start - begin : stop - begin]

    def sha256(self) -> str:
        return str(self._package.config.source.get("sha256", ""))

    @property
    def folder(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.path


def _sizes(metadata: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The shape of every kind of matrix by the last part of its name."""
    hidden, middle, vocab = (int(metadata[key]) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    q, kv = (int(metadata[key]) * int(metadata["head_dim"]) for key in ("num_attention_heads", "num_key_value_heads"))
    return {
        "embedding": (vocab, hidden),
        "output": (vocab, hidden),
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "gate_proj": (middle, hidden),
        "up_proj": (middle, hidden),
        "down_proj": (hidden, middle),
    }


def _huggingface(name: str) -> str:
    """layers.0.attention.q_proj.weight -> model.layers.0.self_attn.q_proj.weight"""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    stem = stem.replace(".attention.", ".self_attn.").replace(".input_norm", ".input_layernorm")
    return f"model.{stem.replace('.post_attention_norm', '.post_attention_layernorm')}.{kind}"


def _format(tensors: dict[str, layout.Array]) -> str:
    """The format of a matrix, by which tensors it has."""
    if "w" in tensors:
        return "f32"
    if "m" in tensors:
        return "q4m"
    if "s" in tensors:
        return "q6k"
    return "q8" if tensors["q"].dtype == np.int8 else "q4"
