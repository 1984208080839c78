"""Qwen2.5-Coder-0.5B-Instruct, a real Q4_K_M file, on ordinary prose and in conversation, against transformers.

The file mixes Q4_K, Q5_0, Q6_K and Q8_0; what has no kernel of its own is requantised, so that there are two questions:
what the runtime does to the weights that the package holds, and what requantising did to those of the file.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edgerun
from edgerun.sources.hub import resolve
from tests.exporters.made import load_dequantised, logits_of

from .oracles import log_softmax, transformers_from_gguf

POSITIONS = 256
Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def package(qwen_coder: Path) -> Path:
    return resolve(qwen_coder)


@pytest.fixture(scope="module")
def ids(package: Path, prose: str) -> list[int]:
    with edgerun.load(package) as model:
        return model.tokenizer.encode(prose)[:POSITIONS]


@pytest.fixture(scope="module")
def exact(qwen_coder: Path, package: Path, ids: list[int]) -> tuple[Logits, Logits]:
    """transformers' logits in float32 with the file's weights, and with those of the package."""
    model = transformers_from_gguf(qwen_coder)
    of_file = logits_of(model, ids)
    load_dequantised(model, package)
    return of_file, logits_of(model, ids)


def divergence(exact: Logits, ours: Logits) -> float:
    """Mean KL divergence in nats; some rows at a time, for a vocabulary is 150,000 tokens."""
    total = 0.0
    for start in range(0, len(exact), 64):
        p, q = (log_softmax(logits[start : start + 64]) for logits in (exact, ours))
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(exact)


def scored(package: Path, ids: list[int], **options: str) -> Logits:
    with edgerun.load(package, threads=2, **options) as model:  # type: ignore[arg-type]
        return np.concatenate([part.copy() for part in model.session().score(ids)])


def test_float32_compute_equals_transformers(package: Path, ids: list[int], exact: tuple[Logits, Logits]) -> None:
    assert divergence(exact[1], scored(package, ids, compute="float32", cache="f32")) < 1e-9


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 1e-3), ({"compute": "int8"}, 2e-3), ({"compute": "int16", "cache": "f32"}, 1e-7)],
    ids=["default", "int8", "int16"],
)
def test_other_compute_is_near_transformers(
    package: Path, ids: list[int], exact: tuple[Logits, Logits], options: dict[str, str], most: float
) -> None:
    assert divergence(exact[1], scored(package, ids, **options)) < most


def test_what_requantising_costs(exact: tuple[Logits, Logits]) -> None:
    """Most of it because five bits become four."""
    assert divergence(*exact) < 0.06


def test_it_answers_and_ends(package: Path) -> None:
    with edgerun.load(package, threads=2) as model:
        session = model.session()
        question = "Write a Python function `factorial(n)`. Only code, no explanation."
        generation = session.chat([{"role": "user", "content": question}], temperature=0, max_tokens=400)
        answer = generation.read()
        assert generation.finish_reason == "stop"
    assert "<|" not in answer
    (function,) = ast.parse(answer.split("```")[1].removeprefix("python\n")).body  # it is never run
    assert isinstance(function, ast.FunctionDef) and function.name == "factorial"
    assert [argument.arg for argument in function.args.args] == ["n"]
    assert any(isinstance(node, ast.Mult) for node in ast.walk(function))


def test_the_tokenizer_is_qwens(package: Path) -> None:
    with edgerun.load(package) as model:
        t = model.tokenizer
        assert t.eos_ids == {151643, 151645} and not t.adds_bos
        assert t.encode("<|im_start|>user\nHi 12<|im_end|>") == [151644, 872, 198, 13048, 220, 16, 17, 151645]
        written = t.apply_chat_template([{"role": "user", "content": "Hi"}])
        assert written.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
