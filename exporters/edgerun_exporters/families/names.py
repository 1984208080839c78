"""What tensors are called, in GGUF files and in Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """Tensor names of one file format; `{i}` stands for the layer."""

    embedding: str
    output: str
    final_norm: str
    input_norm: str
    post_attention_norm: str
    matrices: dict[str, str]  # without ".weight" and ".bias"
    head_norms: dict[str, str]  # of every head of q and k
    own_norms: dict[str, tuple[str, ...]]  # of a matrix's input, by whatever name


GGUF = Names(
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "blk.{i}.attn_norm.weight",
    "blk.{i}.ffn_norm.weight",
    {
        "q_proj": "blk.{i}.attn_q",
        "k_proj": "blk.{i}.attn_k",
        "v_proj": "blk.{i}.attn_v",
        "o_proj": "blk.{i}.attn_output",
        "gate_proj": "blk.{i}.ffn_gate",
        "up_proj": "blk.{i}.ffn_up",
        "down_proj": "blk.{i}.ffn_down",
    },
    {"q_norm": "blk.{i}.attn_q_norm.weight", "k_norm": "blk.{i}.attn_k_norm.weight"},
    {"o_proj": ("blk.{i}.attn_sub_norm.weight",), "down_proj": ("blk.{i}.ffn_sub_norm.weight",)},
)
HUGGINGFACE = Names(
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.{i}.input_layernorm.weight",
    "model.layers.{i}.post_attention_layernorm.weight",
    {
        **{name: f"model.layers.{{i}}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        **{name: f"model.layers.{{i}}.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    },
    {name: f"model.layers.{{i}}.self_attn.{name}.weight" for name in ("q_norm", "k_norm")},
    {
        "o_proj": (
            "model.layers.{i}.self_attn.attn_sub_norm.weight",
            "model.layers.{i}.self_attn.inner_attn_ln.weight",
        ),
        "down_proj": ("model.layers.{i}.mlp.ffn_sub_norm.weight", "model.layers.{i}.mlp.ffn_layernorm.weight"),
    },
)


def own_norms(names: Names, role: str, i: int) -> list[str]:
    """The names that a norm of this matrix's own input may have; the last is that inside transformers' BitLinear."""
    templates = (*names.own_norms.get(role, ()), names.matrices[role] + ".rms_norm.weight")
    return [template.format(i=i) for template in templates]
