"""BitNet against transformers' BitNetForCausalLM, against onnxruntime on the same package, and as text.

The ternary sums are integers and equal bit for bit (tests/kernels). What differs is rounding in float32: norms,
attention, scales, by a few units in the last place, so that logits agree to TOLERANCE of their largest. Now and then
such a difference meets an activation half-way between two integers and moves it by one step, 1/127 of its row's
largest; its key and value then differ for all later tokens, and logits by up to STEP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun_exporters import export
from tests.exporters.bitnet_made import ODD_SIZES, SIZES, random_bitnet, write
from tests.exporters.made import Package

from .bitnet_reference import load_bitnet
from .oracles import greedy, log_softmax

IDS = [int(i) for i in np.random.default_rng(3).integers(2, SIZES["vocab_size"], 60)]
TOLERANCE, STEP = 2e-6, 5e-2
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd sizes": ODD_SIZES,
    "untied": {"tie_word_embeddings": False},
    "multi-query": {"num_key_value_heads": 1},
    "one head, wide": {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 1028},
    "silu": {"hidden_act": "silu"},
}


def follow(folder: Path, prompt: list[int], tokens: list[int], threads: int) -> np.ndarray[Any, Any]:
    """edgerun's logits at the same places [len(tokens), vocab]."""
    with edgerun.load(folder, threads=threads, compute="float32", cache="f32") as model:
        session = model.session()
        rows = [session.prefill(prompt).copy()]
        rows += [session.decode(token).copy() for token in tokens[:-1]]
    return np.stack(rows)


def agree(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """The winners are the same but where two are nearer than a step; the first logits have seen few steps, if any."""
    size = np.abs(wanted).max()
    errors = np.abs(got - wanted).max(axis=1) / size
    assert errors.max() < STEP, errors
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    clear = (first - second) / size > 2 * errors
    np.testing.assert_array_equal(got.argmax(axis=1)[clear], wanted.argmax(axis=1)[clear])
    assert clear.mean() > 0.5


@pytest.mark.parametrize("form", ["packed", "packed for BitLinear", "master"])
@pytest.mark.parametrize("case", CASES)
def test_random_models(case: str, form: str, tmp_path: Path) -> None:
    write(random_bitnet(**CASES[case]), form, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    tokens, wanted = greedy(load_bitnet(tmp_path / "hf"), IDS, 24)
    agree(follow(tmp_path / "pkg", IDS, tokens, 2), wanted)


@pytest.mark.parametrize("case", ["plain", "odd sizes"])
def test_greedy_tokens_are_identical(case: str, tmp_path: Path) -> None:
    """256 of them, chosen by either runtime on its own; and where no activation moved, float rounding is all."""
    write(random_bitnet(**CASES[case]), "packed", tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    tokens, wanted = greedy(load_bitnet(tmp_path / "hf"), IDS, 256)
    with edgerun.load(tmp_path / "pkg", threads=2, compute="float32", cache="f32") as model:
        generation = model.generate(IDS, temperature=0.0, max_tokens=256, ignore_eos=True)
        generation.read()
        assert generation.token_ids == tokens
    errors = np.abs(follow(tmp_path / "pkg", IDS, tokens, 1) - wanted).max(axis=1) / np.abs(wanted).max()
    assert np.median(errors) < TOLERANCE


@pytest.mark.parametrize("case", ["plain", "odd sizes", "silu"])
def test_onnxruntime_on_the_same_package(case: str, tmp_path: Path) -> None:
    """Default formats: a 6-bit embedding and head."""
    write(random_bitnet(**CASES[case]), "packed", tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg")
    tokens = IDS[::-1]
    oracle = Package(tmp_path / "pkg")
    wanted = np.concatenate([oracle.run(IDS)[-1:], *(oracle.run([token]) for token in tokens[:-1])])
    agree(follow(tmp_path / "pkg", IDS, tokens, 2), wanted)


# --- a model that was trained (examples/train_bitnet.py), as it would be published -----------------------------------

FIXTURE = Path(__file__).parents[1] / "data" / "bitnet"
TEXT = """Return a copy of the string with all occurrences of the substring replaced. If the optional argument is given,
only the first occurrences are replaced. The method raises an exception if the object does not support the operation.
A class can define a method that is called when an instance is created, and the arguments are passed to it unchanged."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages auto and f32."""
    folder = tmp_path_factory.mktemp("trained")
    for quant in ("auto", "f32"):
        export(FIXTURE, folder / quant, quant=quant)
    return folder


@pytest.mark.parametrize("prompt", ["If the object is", "Return a new"])
def test_the_trained_model_writes_what_transformers_writes(prompt: str, trained: Path) -> None:
    with edgerun.load(trained / "f32", threads=2, compute="float32", cache="f32") as model:
        ids = model.tokenizer.encode(prompt)
        tokens, wanted = greedy(load_bitnet(FIXTURE), ids, 256)
        generation = model.generate(ids, temperature=0.0, max_tokens=256, ignore_eos=True)
        generation.read()
    assert generation.token_ids == tokens
    agree(follow(trained / "f32", ids, tokens, 1), wanted)


def test_the_trained_model_has_learnt(trained: Path) -> None:
    """Text that it has not seen costs far less than the 5.98 nats a token that the tokens' own frequencies give."""
    with edgerun.load(trained / "auto", threads=2) as model:
        ids = model.tokenizer.encode(TEXT)
        logits = np.concatenate([part.copy() for part in model.session().score(ids)])
    losses = -log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
    assert losses.mean() < 4.0


def test_the_trained_model_in_onnxruntime(trained: Path) -> None:
    """The same package, with its 6-bit embedding and head."""
    with edgerun.load(trained / "auto", threads=2) as model:
        ids = model.tokenizer.encode(TEXT)[:100]
    oracle = Package(trained / "auto")
    wanted = np.concatenate([oracle.run(ids[:60])[-1:], *(oracle.run([token]) for token in ids[60:-1])])
    agree(follow(trained / "auto", ids[:60], ids[60:], 2), wanted)


def test_what_the_six_bit_head_costs(trained: Path) -> None:
    """Mean KL divergence from the exact head and embedding, in nats."""
    rows = []
    for quant in ("f32", "auto"):
        with edgerun.load(trained / quant, threads=2, compute="float32", cache="f32") as model:
            ids = model.tokenizer.encode(TEXT)
            rows.append(log_softmax(np.concatenate([part.copy() for part in model.session().score(ids)])))
    exact, ours = rows
    assert (np.exp(exact) * (exact - ours)).sum(axis=1).mean() < 0.003
