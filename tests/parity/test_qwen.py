"""Random Qwen2 and Qwen3 checkpoints, exported and run by edgerun, against transformers and onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgerun
from edgerun.calibration.capture import Capture
from edgerun.variants.store import open_variant
from edgerun_exporters import export
from edgerun_exporters.variants import create
from tests.exporters.made import Package, load_dequantised, logits_of, random_model, relative_error, save, write_gguf
from tests.exporters.test_qwen import VARIATIONS

from .oracles import greedy
from .test_variations import IDS, PROMPT, TOLERANCE, run, wanted


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", VARIATIONS)
def test_float32_weights(name: str, threads: int, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run(tmp_path / "pkg", threads), wanted(model)) < TOLERANCE


@pytest.mark.parametrize("name", VARIATIONS)
def test_greedy_tokens_are_identical(name: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    tokens, _ = greedy(model, IDS, 64)
    with edgerun.load(tmp_path / "pkg", threads=2, compute="float32", cache="f32") as loaded:
        generation = loaded.generate(IDS, temperature=0.0, max_tokens=len(tokens), ignore_eos=True)
        generation.read()
        assert generation.token_ids == tokens


@pytest.mark.parametrize("name", VARIATIONS)
@pytest.mark.parametrize("quant", ["q4", "q8"])
def test_quantised_weights(name: str, quant: str, tmp_path: Path) -> None:
    """What a user has by default: quantised weights, activations in 8 and 16 bits, a cache in float16."""
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant=quant)
    load_dequantised(model, tmp_path / "pkg")
    assert relative_error(run(tmp_path / "pkg"), wanted(model)) < TOLERANCE


@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", [name for name in VARIATIONS if not name.endswith("odd")])
def test_gguf(name: str, kind: str, tmp_path: Path) -> None:
    sizes = {"head_dim": 16} if kind != "F32" else {}  # rows of whole blocks
    model = random_model(**{**VARIATIONS[name], **sizes})
    write_gguf(model, tmp_path / "m.gguf", {"": kind})  # and gives the model the file's values
    export(tmp_path / "m.gguf", tmp_path / "pkg", quant="f32" if kind == "F32" else "auto")
    assert relative_error(run(tmp_path / "pkg"), wanted(model)) < TOLERANCE


@pytest.mark.parametrize("name", VARIATIONS)
def test_onnxruntime_on_the_same_package(name: str, tmp_path: Path) -> None:
    save(random_model(**VARIATIONS[name]), tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg")
    assert relative_error(run(tmp_path / "pkg"), Package(tmp_path / "pkg").run(IDS)[PROMPT - 21 :]) < TOLERANCE


@pytest.mark.parametrize("cache", ["f16", "q8"])
def test_other_caches(cache: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS["qwen3"])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    with edgerun.load(tmp_path / "pkg", threads=2, compute="float32", cache=cache) as loaded:  # type: ignore[arg-type]
        logits = np.concatenate([part.copy() for part in loaded.session().score(IDS)])[PROMPT - 21 :]
    assert relative_error(logits, wanted(model)) < {"f16": 5e-3, "q8": 5e-2}[cache]


def test_a_variant_may_change_the_norms_of_heads(tmp_path: Path) -> None:
    """The base with the difference of two models is the second, at run time and merged."""
    model = random_model(**VARIATIONS["qwen3"])
    save(model, tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_norm.weight.mul_(1.5)
        model.model.layers[1].self_attn.k_norm.weight.add_(0.25)
    save(model, tmp_path / "tuned")
    export(tmp_path / "base", tmp_path / "pkg", quant="f32")
    create(tmp_path / "base", tmp_path / "tuned", tmp_path / "v.safetensors", method="dare", drop=0.5)
    with edgerun.load(tmp_path / "pkg", threads=2, compute="float32", cache="f32") as loaded:
        logits = [
            np.concatenate([part.copy() for part in loaded.session(variant=variant).score(IDS)])
            for variant in ("none", tmp_path / "v.safetensors")
        ]
    tuned = logits_of(model, IDS)
    assert relative_error(logits[0], tuned) > 0.05
    assert relative_error(logits[1], tuned) < 5e-3
    variant = open_variant(tmp_path / "v.safetensors")
    deltas = {name: variant.delta(name) for name in variant.names()}
    export(tmp_path / "base", tmp_path / "merged", quant="f32", deltas=deltas)
    assert relative_error(run(tmp_path / "merged"), wanted(model)) < 5e-3


def test_queries_that_calibration_records(tmp_path: Path) -> None:
    """Their scores with the cache's keys, through a softmax, give the attention that transformers computes."""
    model = random_model(**VARIATIONS["qwen3"])
    model.set_attn_implementation("eager")
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    with torch.no_grad():
        exact = model(torch.tensor([IDS]), output_attentions=True).attentions
    with edgerun.load(tmp_path / "pkg", threads=1, compute="float32", cache="f32") as loaded:
        capture = Capture(loaded, IDS, np.array([len(IDS) - 1]))
        for layer in range(2):
            queries, (keys, _) = capture.queries(layer)[0], capture.keys_values(layer)
            scores = np.einsum("hd,htd->ht", queries, np.repeat(keys, 2, axis=0))
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            np.testing.assert_allclose(
                weights / weights.sum(axis=1, keepdims=True), exact[layer][0, :, -1].numpy(), atol=1e-4
            )
