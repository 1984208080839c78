"""What an encoded package computes is what onnxruntime computes from the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tokenizers

import edgerun
from edgerun.program.encode import Compute
from tests.package import tiny
from tests.package.tiny import BITNET, Shape

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
PROMPT = 6
SHAPES = {
    "4 bits": Shape(),
    "6 bits": Shape(linear="q6k", embedding="q6k", hidden_size=300),
    "6 bits, a head of its own": Shape(linear="q6k", embedding="q6k", tied=False, biases=True),
    "squared ReLU": Shape(gate="SquaredReLU"),
    "sub-norms, biases": Shape(sub_norms=True, biases=True),
    "norms of heads": Shape(head_norms=True),
    "norms of heads, biases": Shape(head_norms=True, biases=True, n_heads=6, n_kv_heads=2, head_dim=16),
    "ternary": BITNET,
    "ternary, biases": replace(BITNET, biases=True),
    "ternary without sub-norms": replace(BITNET, sub_norms=False, gate="SwiGLU", embedding="q4m", down=None),
    "ternary, compact": replace(BITNET, linear="ternary_triples", biases=True),
    "ternary, all by columns": replace(BITNET, linear="ternary_columns", biases=True),
}


def onnxruntime_logits(folder: Path, shape: Shape) -> np.ndarray:
    """Of all IDS at once: [ids, vocabulary]. Without extended fusions: onnxruntime 1.32 adds a bias behind a BitLinear
    before it multiplies by the rows' scales."""
    empty = np.zeros((1, shape.n_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{part}": empty for i in range(shape.n_layers) for part in ("key", "value")}
    given = {"input_ids": np.array([IDS]), "position_ids": np.arange(len(IDS))[None], **past}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    logits: np.ndarray = ort.InferenceSession(str(folder / "model.onnx"), options).run(["logits"], given)[0][0]
    return logits


def edgerun_logits(folder: Path, shape: Shape, compute: Compute, threads: int) -> np.ndarray:
    """The same: prefill, then token by token."""
    words = {str(i): i for i in range(shape.vocab_size)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "0")).save(str(folder / "tokenizer.json"))
    with edgerun.load(folder, threads=threads, compute=compute, cache="f32") as model:
        session = model.session()
        rows = [row for part in session.score(IDS[:PROMPT]) for row in part.copy()]
        return np.stack(rows + [session.decode(token).copy() for token in IDS[PROMPT:]])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compute", ["float32", "int16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits(tmp_path: Path, shape: Shape, compute: Compute, threads: int) -> None:
    """Ternary layers round activations to 8 bits: where a sum's last bit decides, by a whole step, so for them only
    nearly all numbers must agree closely."""
    folder = tiny.make(tmp_path, shape)
    wanted = onnxruntime_logits(folder, shape)
    got = edgerun_logits(folder, shape, compute, threads)
    error = np.abs(got - wanted) / np.abs(wanted).max()
    assert np.quantile(error, 0.9) < (2e-5 if compute == "float32" else 2e-3)
    assert error.max() < (0.05 if shape.linear.startswith("ternary") else 2e-5 if compute == "float32" else 5e-3)
