"""The smallest Llama checkpoints that can be exported, made with numpy: safetensors and GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.text.tokenizers_made import byte_level

HIDDEN, HEADS, HEAD_DIM, INNER = 32, 2, 16, 64


def _tensors(vocab: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.1, (rows, columns)).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": matrix(vocab, HIDDEN),
        "model.norm.weight": ones,
        layer + "input_layernorm.weight": ones,
        layer + "post_attention_layernorm.weight": ones,
        **{f"{layer}self_attn.{p}_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN) for p in "qkv"},
        layer + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
        layer + "mlp.gate_proj.weight": matrix(INNER, HIDDEN),
        layer + "mlp.up_proj.weight": matrix(INNER, HIDDEN),
        layer + "mlp.down_proj.weight": matrix(HIDDEN, INNER),
    }


def safetensors_folder(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder: one layer, tied embeddings, a byte-level tokenizer."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer

    byte_level(folder, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_tensors(vocab, seed), str(folder / "model.safetensors"))
    return folder


def gguf_file(path: Path, seed: int = 0) -> Path:
    """A GGUF file of the same shape, in F32, with a byte-level vocabulary."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    for name, tensor in _tensors(len(tokens), seed).items():
        stem = name.removesuffix(".weight")
        key = stem.removeprefix("model.layers.0.")
        writer.add_tensor(("blk.0." if key != stem else "") + names[key] + ".weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
