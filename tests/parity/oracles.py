"""Real models in transformers, their weights dequantised from the GGUF file by the gguf package alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def transformers_from_gguf(path: Path) -> Any:
    """A LlamaForCausalLM or Qwen2ForCausalLM in float32, whichever the file's architecture asks for. Nothing of edgerun
    has a part in it."""
    import gguf
    import torch
    import transformers

    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tied = "output.weight" not in stored

    def field(name: str) -> Any:
        return reader.fields[f"{architecture}.{name}"].contents()

    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[architecture]
    config = config_class(
        vocab_size=int(stored["token_embd.weight"].shape[1]),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=tied,
    )
    # A Llama's GGUF holds the two numbers that RoPE rotates side by side, transformers half a head apart.
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    state = {}
    for tensor in stored.values():
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = names.get(tensor.name)
        if name is None:
            _, layer, part, suffix = tensor.name.split(".")
            name = f"model.layers.{layer}.{PARTS[part]}.{suffix}"
            if part in heads and architecture == "llama":
                values = values.reshape(heads[part], -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    model = model_class(config).float().eval()
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] * tied and not missing.unexpected_keys
    model.tie_weights()
    return model


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities of logits [n, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """transformers' own loop: the tokens, and the logits that each was chosen from [count, vocab]."""
    import torch

    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).numpy()
