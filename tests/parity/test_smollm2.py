"""The real model on 512 positions of ordinary prose, against transformers, onnxruntime and llama.cpp's perplexity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edgerun
from edgerun.sources.catalog import CATALOGUE, fetch
from tests.exporters.made import Package, logits_of

from .oracles import log_softmax, transformers_from_gguf

POSITIONS = 512
LLAMA_CPP_PERPLEXITY = 26.6325
"""llama-perplexity (llama.cpp 0c1e570) -m SmolLM2-135M-Instruct.Q4_1.gguf -f tests/data/prose.txt -c 512"""


def scored(folder: Path, ids: list[int], compute: str, cache: str) -> npt.NDArray[np.float32]:
    """Logits [len(ids), vocab] of a new session."""
    with edgerun.load(folder, compute=compute, cache=cache) as model:
        return np.concatenate([part.copy() for part in model.session().score(ids)])


@pytest.fixture(scope="module")
def ids(smollm2: Path, prose: str) -> list[int]:
    with edgerun.load(smollm2) as model:
        tokens = model.tokenizer.encode(prose)
    assert len(tokens) >= 1600
    return tokens[:POSITIONS]


@pytest.fixture(scope="module")
def exact(smollm2: Path, ids: list[int]) -> npt.NDArray[np.float64]:
    """transformers' log-probabilities [512, vocab] in float32."""
    return log_softmax(logits_of(transformers_from_gguf(fetch(CATALOGUE["smollm2"])), ids))


def test_default_compute_is_close_to_transformers(
    smollm2: Path, ids: list[int], exact: npt.NDArray[np.float64]
) -> None:
    with edgerun.load(smollm2) as model:  # as a user has it: no option given
        ours = log_softmax(np.concatenate([part.copy() for part in model.session().score(ids)]))
    divergence = (np.exp(exact) * (exact - ours)).sum(axis=1)
    assert divergence.mean() <= 0.002
    assert (exact.argmax(axis=1) == ours.argmax(axis=1)).mean() >= 0.98


def test_int8_compute_is_near_transformers(smollm2: Path, ids: list[int], exact: npt.NDArray[np.float64]) -> None:
    ours = log_softmax(scored(smollm2, ids, "int8", "f16"))
    # What rounding each group of 32 activations to eight bits costs this model: as much as it costs llama.cpp.
    assert (np.exp(exact) * (exact - ours)).sum(axis=1).mean() <= 0.004


def test_q8_cache_is_near_transformers(smollm2: Path, ids: list[int], exact: npt.NDArray[np.float64]) -> None:
    ours = log_softmax(scored(smollm2, ids, "int16", "q8"))
    assert (np.exp(exact) * (exact - ours)).sum(axis=1).mean() <= 0.0005


def test_float32_compute_equals_transformers(smollm2: Path, ids: list[int], exact: npt.NDArray[np.float64]) -> None:
    assert np.abs(log_softmax(scored(smollm2, ids, "float32", "f32")) - exact).max() < 1e-3


def test_float32_compute_equals_onnxruntime(smollm2: Path, ids: list[int]) -> None:
    wanted = Package(smollm2).run(ids)
    assert np.abs(scored(smollm2, ids, "float32", "f32") - wanted).max() < 1e-3


def test_perplexity_is_that_of_llama_cpp(smollm2: Path, prose: str) -> None:
    from edgerun.measure.evaluate import ModelScorer, evaluate

    with ModelScorer(edgerun.load(smollm2)) as scorer:
        result = evaluate(scorer, scorer.encode(prose), window=512)
    assert result.tokens == 4 * 255
    assert abs(result.perplexity / LLAMA_CPP_PERPLEXITY - 1) < 0.005
