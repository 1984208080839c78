"""From two random checkpoints to a variant file, against dense numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgerun.errors import CheckpointError, OptionError
from edgerun.variants.store import DenseDelta, open_variant
from edgerun_exporters import export, fingerprint
from edgerun_exporters.variants import METHODS, create
from edgerun_exporters.variants.batch import labelled_batch, read_examples, text_batch
from edgerun_exporters.variants.calibrate import Candidate, _Candidates, compare, record
from edgerun_exporters.variants.choose import LARGE, method_for
from edgerun_exporters.variants.forward import forward
from edgerun_exporters.variants.pair import open_pair
from edgerun_exporters.variants.sparsify import by_chance
from tests.exporters.made import byte_level, logits_of, random_model, save, write_gguf
from tests.exporters.test_variations import LLAMA3, VARIATIONS

TEXT = "the inner 123 " * 20
SMALL = {"vocab_size": 300}


def pair_of(tmp_path: Path, change: float = 0.01, **changes: Any) -> tuple[Any, Any]:
    """A base and a model that is near it, as folders `base` and `tuned`."""
    base = random_model(**SMALL, **changes)
    save(base, tmp_path / "base")
    tuned = random_model(**SMALL, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "embed" not in name and "lm_head" not in name:
                parameter.add_(torch.randn_like(parameter) * change)
    save(tuned, tmp_path / "tuned")
    return base, tuned


def huggingface(name: str) -> str:
    ours = {"embedding.weight": "embed_tokens.weight", "final_norm.weight": "norm.weight"}.get(name, name)
    ours = ours.replace("attention.", "self_attn.", 1) if ".attention." in ours else ours
    return "model." + ours.replace("input_norm", "input_layernorm").replace(
        "post_attention_norm", "post_attention_layernorm"
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_the_delta(method: str, tmp_path: Path) -> None:
    base, tuned = pair_of(tmp_path)
    report = create(tmp_path / "base", tmp_path / "tuned", tmp_path / "v", method=method, drop=0.75, text=TEXT, bits=8)
    variant = open_variant(tmp_path / "v")
    assert variant.base == fingerprint(tmp_path / "base")
    assert variant.parameters["drop"] == 0.75 and report.bytes == (tmp_path / "v").stat().st_size
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    assert not any("embedding" in name for name in variant.names())
    q = variant.parameters.get("q", 0.25)
    for name in variant.names():
        delta = (after[huggingface(name)] - before[huggingface(name)]).detach().numpy()
        found = variant.delta(name)
        if isinstance(found, DenseDelta):
            assert np.allclose(found.values, delta, atol=1e-7)
            continue
        kept = found.dense() != 0
        share = 1.0 if report.method in ("magnitude", "wanda") else 1 / (q[name] if isinstance(q, dict) else q)
        error = np.abs(found.dense() - np.where(kept, delta * share, 0)).max(axis=1)
        assert (error <= np.abs(delta).max(axis=1) * share / 127).all()  # half a step of 8 bits
        assert kept.mean() == pytest.approx(0.25, abs=0.05)
    assert report.elements == sum(after[n].numel() for n in after if n.endswith("_proj.weight"))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    pair_of(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        create(tmp_path / "base", tmp_path / "tuned", tmp_path / name, method="dare", seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_package_of_the_base_and_a_gguf_file_are_the_same_base(tmp_path: Path) -> None:
    base, _ = pair_of(tmp_path, rope_parameters=LLAMA3)
    export(tmp_path / "base", tmp_path / "package", quant="f32")
    write_gguf(base, tmp_path / "base.gguf")
    for name in ("base", "package", "base.gguf"):
        create(tmp_path / name, tmp_path / "tuned", tmp_path / f"{name}.v", method="dare")
    one, two, three = ((tmp_path / f"{name}.v").read_bytes() for name in ("base", "package", "base.gguf"))
    assert one == two == three


def test_the_base_of_a_quantised_package_is_what_it_dequantises_to(tmp_path: Path) -> None:
    base, _ = pair_of(tmp_path)
    write_gguf(base, tmp_path / "base.gguf", {"": "Q8_0", "attn_norm": "F32"})
    export(tmp_path / "base.gguf", tmp_path / "package")
    for name in ("base.gguf", "package"):
        create(tmp_path / name, tmp_path / "tuned", tmp_path / f"{name}.v", method="magnitude")
    assert (tmp_path / "base.gguf.v").read_bytes() == (tmp_path / "package.v").read_bytes()


def test_a_requantised_package_is_no_base(tmp_path: Path) -> None:
    pair_of(tmp_path)
    export(tmp_path / "base", tmp_path / "package", quant="q8")
    with pytest.raises(CheckpointError, match="not those that its model was trained with"):
        create(tmp_path / "package", tmp_path / "tuned", tmp_path / "v")


def test_a_model_of_another_shape_is_no_fine_tune(tmp_path: Path) -> None:
    save(random_model(**SMALL), tmp_path / "base")
    save(random_model(**SMALL, intermediate_size=128), tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=r"intermediate_size is 128, .* is 96"):
        create(tmp_path / "base", tmp_path / "tuned", tmp_path / "v")
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 1.0}, "drop is 1.0"),
        ({"method": "best"}, "method 'best' is unknown"),
        ({"method": "dare", "q": 0.1}, "q does not go with"),
        ({"method": "darex-q", "q": 2.0}, "q is 2.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        create(tmp_path / "base", tmp_path / "tuned", tmp_path / "v", **options)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_forward_pass_is_that_of_transformers(variation: str, tmp_path: Path) -> None:
    """Base, fine-tuned and a candidate that keeps everything, on two texts of different lengths."""
    _, tuned = pair_of(tmp_path, **VARIATIONS[variation])
    pair = open_pair(tmp_path / "base", tmp_path / "tuned")
    ids = [[3, 14, 15, 92, 65, 35, 89], [79, 32, 38, 46, 7, 0, 0]]
    models = _Candidates(pair, [Candidate(by_chance(0.0, 0, 1.0))])
    hidden = forward(pair.description, models, np.array(ids), np.arange(14))
    logits = models.linear(pair.description.output or pair.description.embedding, hidden)
    for row, model in zip(logits, (tuned, tuned), strict=True):
        for text, wanted in zip(row.reshape(2, 7, -1), ids, strict=True):
            theirs = logits_of(model, wanted)
            assert np.abs(text - theirs).max() < 2e-4 * np.abs(theirs).max()


def test_candidates_are_measured_against_the_fine_tuned_model(tmp_path: Path) -> None:
    """Nothing dropped changes nothing; scale 0 is the base with the fine-tuned norms."""
    pair_of(tmp_path, change=0.05)
    pair = open_pair(tmp_path / "base", tmp_path / "tuned")
    batch = labelled_batch(Words(), [("the inner", "123"), ("in", "the 12")])
    whole = by_chance(0.0, 0, 1.0)
    all_, none = compare(pair, batch, [Candidate(whole), Candidate(whole, 0.0)], lambda done, total: None)
    assert all_.kl < 1e-6 < none.kl
    assert 0 <= all_.exact <= 1 and all_.logprob < 0
    inputs = record(pair, batch, lambda done, total: None)
    assert {m.name for m in pair.description.matrices()} - set(inputs.norms) == {"embedding.weight"}
    assert all((norms > 0).any() and np.isfinite(norms).all() for norms in inputs.norms.values())


class Words:
    """As much of a tokenizer as a batch needs."""

    has_chat_template = False
    eos_ids = frozenset({0})

    def encode(self, text: str, **_: Any) -> list[int]:
        return byte_level().encode(text).ids


def test_batches() -> None:
    batch = labelled_batch(Words(), [("the", "in"), ("the inner", "12 the")])  # type: ignore[arg-type]
    flat = batch.tokens.reshape(-1)
    assert (flat[batch.at + 1] == batch.targets).all() and batch.valid.reshape(-1)[batch.at + 1].all()
    assert [t for t, e in zip(batch.targets, batch.example, strict=True) if e == 0] == [*Words().encode("in"), 0]
    batch = text_batch(Words(), TEXT)  # type: ignore[arg-type]
    assert (batch.tokens.reshape(-1)[batch.at + 1] == batch.targets).all()
    with pytest.raises(OptionError, match="less than two tokens"):
        text_batch(Words(), "")  # type: ignore[arg-type]


def test_the_tree_looks_at_the_size_of_deltas(tmp_path: Path) -> None:
    for change, drop, method in ((0.001, 0.9, "dare"), (0.001, 0.95, "darex-q"), (3 * LARGE, 0.95, "wanda")):
        pair_of(tmp_path, change=change)
        pair = open_pair(tmp_path / "base", tmp_path / "tuned")
        assert method_for(pair, drop, lambda done, total, what: None)[0] == method


def lora(folder: Path, model: Any, **changes: Any) -> dict[str, np.ndarray]:
    """A PEFT adapter of rank 3; gives B A by transformers' names."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    tensors, products = {}, {}
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "down_proj" in name:
            stem = "base_model.model." + name.removesuffix(".weight")
            a, b = torch.randn(3, parameter.shape[1]), torch.randn(parameter.shape[0], 3)
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a, b
            products[name] = (b @ a).numpy()
    save_file(tensors, folder / "adapter_model.safetensors")
    return products


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / 3**0.5),
        ({"alpha_pattern": {"down_proj": 3}}, {"down_proj": 1.0, "q_proj": 2.0}),
    ],
)
def test_lora(changes: dict[str, Any], scale: Any, tmp_path: Path) -> None:
    """Also to a GGUF base, whose rows of q are stored in another order."""
    base = random_model(**SMALL)
    write_gguf(base, tmp_path / "base.gguf")
    products = lora(tmp_path / "lora", base, **changes)
    create(tmp_path / "base.gguf", tmp_path / "lora", tmp_path / "v", method="dare", drop=0.0, bits=8)
    variant = open_variant(tmp_path / "v")
    assert {huggingface(name) for name in variant.names()} == set(products)
    for name in variant.names():
        part = name.split(".")[-2]
        wanted = products[huggingface(name)] * (scale[part] if isinstance(scale, dict) else scale)
        assert np.abs(variant.delta(name).dense() - wanted).max() <= np.abs(wanted).max() / 127  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_alpha": "six"}, "not a number"),
    ],
)
def test_adapters_that_are_not_read(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = random_model(**SMALL)
    save(base, tmp_path / "base")
    lora(tmp_path / "lora", base, **changes)
    with pytest.raises(CheckpointError, match=message):
        create(tmp_path / "base", tmp_path / "lora", tmp_path / "v")


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    save(random_model(**SMALL), tmp_path / "base")
    lora(tmp_path / "lora", random_model(**SMALL, intermediate_size=128))
    with pytest.raises(CheckpointError, match="belongs to another base"):
        create(tmp_path / "base", tmp_path / "lora", tmp_path / "v")


def test_examples_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text('{"prompt": "a", "answer": "b"}\n\n{"prompt": "c"}\n')
    with pytest.raises(OptionError, match="line 3 is no JSON object"):
        read_examples(path)
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    assert read_examples(path) == [("a", "b")]


def test_equal_models_make_an_empty_variant(tmp_path: Path) -> None:
    save(random_model(**SMALL), tmp_path / "base")
    report = create(tmp_path / "base", tmp_path / "base", tmp_path / "v", method="dare")
    assert report.kept == report.elements == 0 and not open_variant(tmp_path / "v").names()


def test_by_magnitude_of_a_block_is_that_of_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are worked on some at a time."""
    pair_of(tmp_path)
    create(tmp_path / "base", tmp_path / "tuned", tmp_path / "whole", method="magnitude")
    monkeypatch.setattr("edgerun_exporters.variants.pair.ROWS_AT_ONCE", 1000)
    create(tmp_path / "base", tmp_path / "tuned", tmp_path / "parts", method="magnitude")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
