"""Random checkpoints of every form of Llama, exported and run by edgerun in float32, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edgerun
from edgerun_exporters import export
from tests.exporters.made import VOCAB, load_dequantised, logits_of, random_model, relative_error, save, write_gguf
from tests.exporters.test_variations import VARIATIONS

IDS = [int(i) for i in np.random.default_rng(7).integers(2, VOCAB, 75)]
PROMPT = 61
TOLERANCE = 2e-3


def run(folder: Path, threads: int = 2, **options: Any) -> npt.NDArray[np.float32]:
    """Logits of IDS: all but the last twenty at once, with a row of logits each, then one by one."""
    with edgerun.load(folder, threads=threads, compute="float32", cache="f32", **options) as model:
        session = model.session()
        rows = [session.prefill(IDS[: PROMPT - 20]).copy()]
        rows += [row for part in session.score(IDS[PROMPT - 20 : PROMPT], chunk=7) for row in part.copy()]
        rows += [session.decode(token).copy() for token in IDS[PROMPT:]]
        assert session.tokens == IDS
    return np.stack(rows)


def wanted(model: Any) -> npt.NDArray[np.float32]:
    return logits_of(model, IDS)[PROMPT - 21 :]


@pytest.mark.parametrize("name", VARIATIONS)
def test_float32_weights(name: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run(tmp_path / "pkg"), wanted(model)) < TOLERANCE


@pytest.mark.parametrize("quant", ["q4", "q8"])
@pytest.mark.parametrize("name", VARIATIONS)
def test_quantised_weights(name: str, quant: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant=quant)
    load_dequantised(model, tmp_path / "pkg")
    assert relative_error(run(tmp_path / "pkg"), wanted(model)) < TOLERANCE


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("name", ["grouped-query", "tied", "biases", "rope-llama3"])
def test_gguf_blocks(name: str, kind: str, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS[name])
    write_gguf(model, tmp_path / "m.gguf", {"": kind})  # and gives the model the file's values
    export(tmp_path / "m.gguf", tmp_path / "pkg")
    assert relative_error(run(tmp_path / "pkg"), wanted(model)) < TOLERANCE


def test_mistral(tmp_path: Path) -> None:
    model = random_model("mistral", sliding_window=None)
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run(tmp_path / "pkg"), wanted(model)) < TOLERANCE


@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads(threads: int, tmp_path: Path) -> None:
    model = random_model(**VARIATIONS["odd-sizes"])
    save(model, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", quant="f32")
    assert relative_error(run(tmp_path / "pkg", threads), wanted(model)) < TOLERANCE
