"""Random Qwen2 and Qwen3 checkpoints, exported and run in onnxruntime, against transformers; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun_exporters import export, fingerprint
from edgerun_exporters.families import describe
from edgerun_exporters.original import describe_original, open_original
from edgerun_exporters.readers.open import open_checkpoint

from .made import Package, load_dequantised, logits_of, random_model, relative_error, save, write_gguf
from .test_bad_input import edit, message, rewrite
from .test_variations import IDS, run_in_parts

VARIATIONS: dict[str, dict[str, Any]] = {
    "qwen2": {"kind": "qwen2"},
    "qwen2-tied": {"kind": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "qwen3": {"kind": "qwen3", "head_dim": 24},  # no hidden_size / num_attention_heads
    "qwen3-tied": {"kind": "qwen3", "head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-2},
    "qwen3-odd": {"kind": "qwen3", "head_dim": 10, "hidden_size": 42, "intermediate_size": 77},
}


def plain(kind: str, **changes: Any) -> Any:
    """The first variation of a family."""
    return random_model(**{**VARIATIONS[kind], **changes})


@pytest.mark.parametrize("name", VARIATIONS)
def test_folder(name: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5
    assert Package(tmp_path / "pkg").config["family"] == VARIATIONS[name]["kind"]


@pytest.mark.parametrize("name", [name for name in VARIATIONS if not name.endswith("odd")])
def test_gguf(name: str, tmp_path: Path) -> None:
    """Rows of q and k are stored as they are used, unlike Llama's."""
    model = random_model(**VARIATIONS[name])
    write_gguf(model, tmp_path / "m.gguf")
    export(tmp_path / "m.gguf", tmp_path / "pkg", quant="f32")
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5


@pytest.mark.parametrize("format", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_gguf_blocks_are_kept(kind: str, format: str, tmp_path: Path) -> None:
    model, other = plain(kind, head_dim=16), plain(kind, head_dim=16)
    write_gguf(model, tmp_path / "m.gguf", {"": format, "token_embd": "Q8_0"})
    report = export(tmp_path / "m.gguf", tmp_path / "pkg")
    assert not any("requantised" in note for note in report.notes)
    load_dequantised(other, tmp_path / "pkg")
    stored = dict(other.named_parameters())
    assert all(bool((stored[key] == value).all()) for key, value in model.named_parameters())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_both_files_hold_the_same_model(kind: str, tmp_path: Path) -> None:
    model = plain(kind, head_dim=16)
    save(model, tmp_path / "hf")
    write_gguf(model, tmp_path / "m.gguf")
    both = [describe(open_checkpoint(tmp_path / name)) for name in ("hf", "m.gguf")]
    assert [name for name, _ in both[0].vectors()] == [name for name, _ in both[1].vectors()]
    for (name, one), (_, other) in zip(both[0].vectors(), both[1].vectors(), strict=True):
        assert np.array_equal(one, other), name
    assert len({(d.head_dim, d.context_length, d.rope_theta, d.family) for d in both}) == 1


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_package_as_a_checkpoint(kind: str, tmp_path: Path) -> None:
    """What a variant is made against, where a model exists as a package only."""
    model = plain(kind, head_dim=16)
    export(save(model, tmp_path / "hf"), tmp_path / "pkg", quant="f32")
    original, package = open_original(tmp_path / "hf"), open_original(tmp_path / "pkg")
    assert fingerprint(package, describe_original(package)) == fingerprint(original, describe_original(original))


def without(path: Path, name: str) -> None:
    """Renames a tensor of a safetensors file, so that it is missing and another has no place."""

    def change(directory: dict[str, Any], payload: bytes) -> bytes:
        directory["model.layers.0.self_attn.g_proj.bias"] = directory.pop(name)
        return payload

    rewrite(path, change)


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        *(("qwen2", f"model.layers.1.self_attn.{role}_proj.bias") for role in "qkv"),
        *(("qwen3", f"model.layers.1.self_attn.{role}_norm.weight") for role in "qk"),
    ],
)
def test_what_must_be_there(kind: str, tensor: str, tmp_path: Path) -> None:
    folder = save(plain(kind), tmp_path / "hf")
    without(folder / "model.safetensors", tensor)
    assert f"tensor {tensor} is missing" in message(folder, tmp_path)


@pytest.mark.parametrize(
    ("kind", "claimed", "words"),
    [
        ("qwen3", "qwen2", "q_proj.bias is missing"),
        ("qwen2", "qwen3", "q_norm.weight is missing"),
        ("qwen3", "llama", "self_attn.k_norm.weight has no place in a Llama"),
    ],
)
def test_one_family_is_not_taken_for_another(kind: str, claimed: str, words: str, tmp_path: Path) -> None:
    folder = save(plain(kind, head_dim=16), tmp_path / "hf")
    edit(folder, model_type=claimed)
    assert words in message(folder, tmp_path)


@pytest.mark.parametrize(("kind", "role"), [("qwen2", "mlp.up_proj"), ("qwen3", "self_attn.q_proj")])
def test_biases_that_the_family_has_not(kind: str, role: str, tmp_path: Path) -> None:
    folder = save(plain(kind), tmp_path / "hf")
    name = f"model.layers.0.{role}.bias"

    def change(directory: dict[str, Any], payload: bytes) -> bytes:
        rows = directory[f"model.layers.0.{role}.weight"]["shape"][0]
        directory[name] = {"dtype": "F32", "shape": [rows], "data_offsets": [len(payload), len(payload) + 4 * rows]}
        return payload + bytes(4 * rows)

    rewrite(folder / "model.safetensors", change)
    assert f"tensor {name} has no place in a {kind.title()} of 2 layers" in message(folder, tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias is True, which is not supported (only False is)"),
        ("qwen2", {"use_mrope": True}, "use_mrope is True"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "'yarn'"),
    ],
)
def test_configurations_that_are_refused(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(plain(kind), tmp_path / "hf")
    edit(folder, **changes)
    assert words in message(folder, tmp_path)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}, 32),
        ({"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}, 256),  # no layer is left
        ({"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 0}, 256),
    ],
)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("types", [True, False])
def test_it_is_exact_within_its_window(
    kind: str, changes: dict[str, Any], context: int, types: bool, tmp_path: Path
) -> None:
    """By `layer_types`, as transformers 5 writes it, and by `max_window_layers` alone, as models are published."""
    model = plain(kind, **changes)
    folder = save(model, tmp_path / "hf")
    written = json.loads((folder / "config.json").read_text())
    assert "layer_types" in written
    written = {key: value for key, value in written.items() if types or key != "layer_types"}
    (folder / "config.json").write_text(json.dumps({**written, **changes}))
    report = export(folder, tmp_path / "pkg", quant="f32")
    assert any("sliding window" in note for note in report.notes) == (context == 32)
    assert Package(tmp_path / "pkg").config["context_length"] == context
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5


def test_a_silent_configuration_means_what_transformers_takes_it_for(tmp_path: Path) -> None:
    folder = save(random_model("qwen3", head_dim=128, num_hidden_layers=1), tmp_path / "hf")
    written = json.loads((folder / "config.json").read_text())
    for key in ("head_dim", "max_position_embeddings", "layer_types"):
        written.pop(key)
    (folder / "config.json").write_text(json.dumps(written))
    description = describe(open_checkpoint(folder))
    assert (description.head_dim, description.context_length) == (128, 32768)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_the_forward_pass_of_variants(kind: str, tmp_path: Path) -> None:
    from edgerun_exporters.variants.forward import forward

    model = plain(kind)
    checkpoint = open_checkpoint(save(model, tmp_path / "hf"))
    description = describe(checkpoint)

    class One:
        def embed(self, matrix: Any, tokens: Any) -> Any:
            return matrix.floats(checkpoint, 0, matrix.rows)[tokens][None]

        def linear(self, matrix: Any, x: Any) -> Any:
            return x @ matrix.floats(checkpoint, 0, matrix.rows).T

        def vector(self, name: str, base: Any) -> Any:
            assert np.array_equal(dict(description.vectors())[name], base)
            return base[None, None]

    hidden = forward(description, One(), np.array([IDS]), np.arange(len(IDS)))[0]
    assert description.output is not None
    logits = hidden @ description.output.floats(checkpoint, 0, description.vocab_size).T
    assert relative_error(logits, logits_of(model, IDS)) < 2e-5
