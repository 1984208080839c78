"""Small checkpoints with random weights, and plain onnxruntime to run what becomes of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def random_model(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A causal model in float32 whose every parameter is random, norms and biases too. kind: its `model_type`."""
    import torch
    import transformers

    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    config_class, model_class = classes[kind]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.2)
    return model


def save(model: Any, folder: Path, *, dtype: str = "float32", shard: str = "5GB") -> Path:
    """A Hugging Face folder with a tokenizer. The model itself is rounded to `dtype` as well."""
    import copy

    import torch

    # A copy, because half() would round the rotary buffers as well.
    stored = copy.deepcopy(model).to(getattr(torch, dtype))
    stored.save_pretrained(folder, max_shard_size=shard)
    rounded = dict(stored.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(rounded[name].float())
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ 1 }}"}))
    return folder


@functools.cache
def byte_level() -> Any:
    """A byte-level BPE tokenizer with the letters and a few merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("e", "r"), ("Ġ", "Ġ"), ("1", "2"), ("12", "3")]
    tokens = ["<|end|>", "<|start|>", *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|end|>", "<|start|>")])
    return tokenizer


_HALVES = {
    "Q2_K": {80: 0.02, 82: 0.02},
    "Q3_K": {108: 0.003},
    "Q4_K": {0: 0.0005, 2: 0.0005},
    "Q5_K": {0: 0.0003, 2: 0.0003},
    "Q6_K": {208: 0.0002},
    "IQ4_NL": {0: 0.003},
    "IQ4_XS": {0: 0.0003},
}
"""Where the float16 scales of a block lie, by format: the only bytes of it that must not be random."""


class Package:
    """A package in plain onnxruntime."""

    def __init__(self, folder: Path) -> None:
        import onnx
        import onnxruntime

        onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.config = json.loads((folder / "edgerun.json").read_text())
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        c = self.config
        empty = np.zeros((1, c["n_kv_heads"], 0, c["head_dim"]), np.float32)
        self.past = {f"past_key_values.{i}.{p}": empty for i in range(c["n_layers"]) for p in ("key", "value")}
        self.position = 0

    def run(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """Logits [len(ids), vocab] of the next tokens of the sequence."""
        positions = np.arange(self.position, self.position + len(ids), dtype=np.int64)[None]
        feeds = {"input_ids": np.array([ids], np.int64), "position_ids": positions, **self.past}
        logits, *present = self.session.run(self.outputs, feeds)
        names = [name.replace("present.", "past_key_values.") for name in self.outputs[1:]]
        self.past = dict(zip(names, present, strict=True))
        self.position += len(ids)
        return logits[0]


def logits_of(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """transformers' logits [len(ids), vocab]."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def relative_error(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def load_dequantised(model: Any, package: Path) -> None:
    """Puts the weights that a package holds, dequantised, into a transformers model."""
    import onnx
    import torch
    from onnx.external_data_helper import load_external_data_for_model

    from edgerun.package import layout

    proto = onnx.load(package / "model.onnx", load_external_data=False)
    load_external_data_for_model(proto, str(package))
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    suffixes: dict[str, set[str]] = {}
    for name in arrays:
        stem, _, suffix = name.rpartition(".")
        suffixes.setdefault(stem, set()).add(suffix)
    state = model.state_dict()
    names = {"embedding.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    for layer in range(model.config.num_hidden_layers):
        for name in state:
            if name.startswith(f"model.layers.{layer}.") and "proj" in name:
                ours = name.removeprefix("model.").replace("self_attn", "attention")
                names[ours] = name
    for ours, theirs in names.items():
        found = suffixes.get(ours)
        if found is None:
            continue
        signed = "q" in found and arrays[ours + ".q"].dtype == np.int8
        fmt = "f32" if "w" in found else "q4m" if "m" in found else "q6k" if "s" in found else "q8" if signed else "q4"
        tensors = {s: arrays[f"{ours}.{s}"] for s in found}
        n, k = state[theirs].shape
        state[theirs].copy_(torch.from_numpy(layout.dequantise(fmt, tensors, n, k)))
    model.load_state_dict(state)
    model.tie_weights()


def write_gguf(model: Any, path: Path, formats: dict[str, str] | None = None, **extra: Any) -> Path:
    """The GGUF file that llama.cpp's converter would write: q and k rows of a Llama permuted, weights quantised as
    `formats` says (by the last part of the GGUF name, "" for all others; default F32). The model gets the quantised
    values."""
    import gguf
    import torch

    formats = formats or {}
    c = model.config
    architecture = c.model_type if c.model_type.startswith("qwen") else "llama"
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    for key, value in extra.items():
        writer.add_string(key, value)
    add_byte_level_vocabulary(writer, byte_level())
    if rope.get("rope_type") == "llama3":
        plain = 1 / rope["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        factors = plain / model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[architecture], c.num_hidden_layers)
    permuted = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads} if architecture == "llama" else {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        heads = permuted.get(name.split(".")[-2])
        if values.ndim == 1:
            writer.add_tensor(gguf_name, _interleaved(values, heads) if heads else values)
            continue
        part = gguf_name.split(".")[-2]
        kind = gguf.GGMLQuantizationType[formats.get(part, formats.get("", "F32"))]
        stored = _stored(_interleaved(values, heads) if heads else values, kind)
        writer.add_tensor(gguf_name, stored, raw_dtype=kind)
        rounded = gguf.quants.dequantize(stored, kind).reshape(values.shape)
        if heads:
            rounded = rounded.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stored(values: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Blocks of a GGUF format; random ones of the right size where the gguf package cannot quantise to it."""
    import gguf

    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = np.random.default_rng(0).integers(0, 256, (values.size // block, size), dtype=np.uint8)
        for at, scale in _HALVES[kind.name].items():
            blocks[:, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        return blocks.reshape(len(values), -1)


def add_byte_level_vocabulary(writer: Any, tokenizer: Any, pre: str = "smollm") -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)


def _interleaved(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's LlamaModel.permute."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
