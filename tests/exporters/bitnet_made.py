"""Small BitNet models with random weights, in every form in which such models are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BitNetConfig
from transformers.integrations.bitnet import pack_weights

from .made import VOCAB, add_byte_level_vocabulary, byte_level

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ODD_SIZES = {**SIZES, "hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 6, "num_key_value_heads": 3}
"""No multiple of a group or block; rows are packed by four, so those they must be a multiple of."""
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
SCALE = 2.0**-4
"""Of every ternary layer: its inverse is a bfloat16, too, so that no published form rounds it."""


class Bitnet(NamedTuple):
    """A model: master weights and norms by their names in transformers, bfloat16 values."""

    config: BitNetConfig
    state: dict[str, torch.Tensor]

    def linear(self) -> list[str]:
        """The names of the ternary layers, without ".weight"."""
        return [name.removesuffix(".weight") for name in self.state if name.endswith("_proj.weight")]


def random_bitnet(seed: int = 0, **changes: Any) -> Bitnet:
    config = BitNetConfig(**{**SIZES, "tie_word_embeddings": True, **changes})
    torch.manual_seed(seed)
    head = config.hidden_size // config.num_attention_heads
    kv = config.num_key_value_heads * head
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (inner, hidden), (inner, hidden)]
    state = {"model.embed_tokens.weight": torch.randn(config.vocab_size, hidden)}
    if not config.tie_word_embeddings:
        state["lm_head.weight"] = torch.randn(config.vocab_size, hidden)
    state["model.norm.weight"] = torch.rand(hidden) + 0.5
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        for name in NORMS:
            state[f"{at}{name}.weight"] = torch.rand(inner if name == "mlp.ffn_sub_norm" else hidden) + 0.5
        for name, shape in zip(PARTS, [*shapes, (hidden, inner)], strict=True):
            weight = torch.randn(shape)
            state[f"{at}{name}.weight"] = weight * (SCALE / weight.abs().mean())
    return Bitnet(config, {name: values.bfloat16() for name, values in state.items()})


def trits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-1, 0, 1 and the scale, as transformers' WeightQuant finds them in a master weight."""
    inverse = 1.0 / weight.float().abs().mean().clamp(min=1e-5)
    return (weight.float() * inverse).round().clamp(-1, 1), (1.0 / inverse).to(weight.dtype)


FOLDERS = ("packed", "packed for BitLinear", "trits and scale", "master")
GGUFS = ("F32", "F16", "BF16", "TQ1_0", "TQ2_0", "I2_S")


def write(model: Bitnet, form: str, path: Path) -> Path:
    """A checkpoint in a form of FOLDERS or GGUFS."""
    return write_gguf(model, form, path) if form in GGUFS else write_folder(model, form, path)


def write_folder(model: Bitnet, form: str, folder: Path) -> Path:
    folder.mkdir()
    state = dict(model.state)
    for name in model.linear() if form != "master" else ():
        values, scale = trits(state[f"{name}.weight"])
        inverse = form == "packed for BitLinear"
        state[f"{name}.weight_scale"] = (1 / scale if inverse else scale).reshape(1)
        state[f"{name}.weight"] = values.bfloat16() if form == "trits and scale" else pack_weights(values)
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    if form == "master":
        quantization["quantization_mode"] = "online"
    if form == "packed for BitLinear":
        quantization["linear_class"] = "bitlinear"
    config = {**model.config.to_dict(), "quantization_config": quantization, "dtype": "bfloat16"}
    save_file({name: values.contiguous() for name, values in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ 1 }}"}))
    return folder


def write_gguf(model: Bitnet, form: str, path: Path, architecture: str = "bitnet-b1.58") -> Path:
    """As the converters write it: q and k are not permuted, and values are -scale, 0 or scale."""
    c = model.config
    writer = gguf.GGUFWriter(path, architecture)
    head = c.hidden_size // c.num_attention_heads
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    add_byte_level_vocabulary(writer, byte_level())
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, values in model.state.items():
        stem = name.removesuffix(".weight")
        if stem in names:
            writer.add_tensor(f"{names[stem]}.weight", values.float().numpy())
            continue
        _, _, layer, part = stem.split(".", 3)
        if part in NORMS:
            writer.add_tensor(f"blk.{layer}.{NORMS[part]}.weight", values.float().numpy())
        else:
            _add_ternary(writer, f"blk.{layer}.{PARTS[part]}.weight", values, form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


I2_S = 36
"""Its number in bitnet.cpp; the gguf package does not know it."""


def _add_ternary(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, form: str) -> None:
    values, scale = trits(weight)
    if form == "I2_S":
        writer.add_tensor(name, i2_s(values.numpy(), float(scale)), raw_shape=tuple(values.shape), raw_dtype=I2_S)
        return
    kind = gguf.GGMLQuantizationType[form]
    dense = (values * scale.float()).numpy()
    writer.add_tensor(name, gguf.quants.quantize(dense, kind), raw_dtype=kind)


def i2_s(values: np.ndarray[Any, Any], scale: float) -> np.ndarray[Any, Any]:
    """What bitnet.cpp's quantize_to_i2_s writes."""
    blocks = (values.reshape(-1, 4, 32) + 1).astype(np.uint8)
    packed = blocks[:, 0] << 6 | blocks[:, 1] << 4 | blocks[:, 2] << 2 | blocks[:, 3]
    tail = np.zeros(8, np.float32)
    tail[0] = scale
    return np.concatenate([packed.reshape(-1), tail.view(np.uint8)]).view(np.int8)
