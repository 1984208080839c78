"""Random checkpoints of every form of Llama, exported and run in onnxruntime, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgerun_exporters import export
from edgerun_exporters.families import describe
from edgerun_exporters.readers.open import open_checkpoint

from .made import Package, load_dequantised, logits_of, random_model, relative_error, save, write_gguf

IDS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "multi-query": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "head_dim": {"head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope-llama3": {"rope_parameters": LLAMA3},
    "odd-sizes": {"hidden_size": 42, "intermediate_size": 77, "num_attention_heads": 3, "num_key_value_heads": 3},
    "one-layer": {"num_hidden_layers": 1, "rms_norm_eps": 1e-3},
}


def run_in_parts(folder: Path) -> Any:
    """Logits of IDS: seven as a prompt, three as a second one, the last as a single step."""
    import numpy as np

    package = Package(folder)
    return np.concatenate([package.run(IDS[:7]), package.run(IDS[7:10]), package.run(IDS[10:])])


@pytest.mark.parametrize("name", VARIATIONS)
def test_huggingface_f32(name: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5


@pytest.mark.parametrize("quant", ["auto", "q4", "q8"])
@pytest.mark.parametrize("name", ["grouped-query", "odd-sizes", "tied"])
def test_huggingface_quantised(name: str, quant: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    report = export(tmp_path / "hf", tmp_path / "pkg", quant=quant)
    assert any("requantised from F32 to q8_0" in note for note in report.notes)
    got = run_in_parts(tmp_path / "pkg")
    load_dequantised(model, tmp_path / "pkg")
    assert relative_error(got, logits_of(model, IDS)) < 2e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_shards(dtype: str, tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path / "hf", dtype=dtype, shard="30KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5


def test_mistral_is_exact_within_its_window(tmp_path: Path) -> None:
    model = random_model("mistral", sliding_window=32)
    save(model, tmp_path / "hf")
    report = export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5
    assert Package(tmp_path / "pkg").config["context_length"] == 32
    assert any("sliding window" in note for note in report.notes)


@pytest.mark.parametrize("name", [n for n in VARIATIONS if n != "odd-sizes"])
def test_gguf_f32(name: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    write_gguf(model, tmp_path / "m.gguf")
    export(tmp_path / "m.gguf", tmp_path / "pkg", quant="f32")
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q6_K", "Q8_0"])
def test_gguf_blocks_are_kept(kind: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512} if kind == "Q6_K" else {}
    model = random_model(attention_bias=True, **sizes)
    write_gguf(model, tmp_path / "m.gguf", {"": kind, "token_embd": "Q8_0", "output": kind})
    report = export(tmp_path / "m.gguf", tmp_path / "pkg")
    assert not any("requantised" in note for note in report.notes)
    # `model` holds the GGUF file's values; what the package holds must be the same, bit for bit.
    other = random_model(attention_bias=True, **sizes)
    load_dequantised(other, tmp_path / "pkg")
    stored = dict(other.named_parameters())
    for key, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert bool((stored[key] == parameter).all()), key
    assert relative_error(run_in_parts(tmp_path / "pkg"), logits_of(model, IDS)) < 2e-5


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        *((kind, "q8_0") for kind in ("F16", "BF16")),
        *((kind, "q4_1") for kind in ("Q5_0", "Q5_1", "TQ2_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS")),
    ],
)
def test_gguf_other_formats_are_requantised(kind: str, becomes: str, tmp_path: Path) -> None:
    model = random_model(hidden_size=256, intermediate_size=256)
    write_gguf(model, tmp_path / "m.gguf", {"": kind, "token_embd": "Q8_0"})
    report = export(tmp_path / "m.gguf", tmp_path / "pkg")
    assert any(f"from {kind} to {becomes}" in note for note in report.notes)
    got = run_in_parts(tmp_path / "pkg")
    load_dequantised(model, tmp_path / "pkg")
    assert relative_error(got, logits_of(model, IDS)) < 2e-5


def test_old_and_new_rope_configurations_agree(tmp_path: Path) -> None:
    import json

    import numpy as np

    folder = save(random_model(rope_parameters=LLAMA3), tmp_path / "hf")
    new = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in new
    wanted = describe(open_checkpoint(folder)).inv_freq
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old["rope_theta"] = LLAMA3["rope_theta"]
    old["rope_scaling"] = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    (folder / "config.json").write_text(json.dumps(old))
    assert np.array_equal(describe(open_checkpoint(folder)).inv_freq, wanted)


@pytest.mark.parametrize("name", ["grouped-query", "rope-linear", "rope-llama3"])
def test_inverse_frequencies_are_transformers_own(name: str, tmp_path: Path) -> None:
    import numpy as np

    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    got = describe(open_checkpoint(tmp_path / "hf")).inv_freq
    np.testing.assert_allclose(got, model.model.rotary_emb.inv_freq.numpy(), rtol=3e-7)
