"""The package as a whole: what is in it, that it is deterministic, and that it appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import CheckpointError
from edgerun_exporters import ExportReport, export, fingerprint
from edgerun_exporters.weights import Weights

from .made import random_model, save, write_gguf


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(random_model(tie_word_embeddings=True), tmp_path_factory.mktemp("gguf") / "m.gguf", {"": "Q4_1"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_in_it(gguf_file: Path, tmp_path: Path) -> None:
    import onnx

    seen: list[tuple[int, int, str]] = []
    report = export(gguf_file, tmp_path / "pkg", progress=lambda *step: seen.append(step))
    assert isinstance(report, ExportReport) and report.bytes == (tmp_path / "pkg/model.onnx.data").stat().st_size
    assert sorted(contents(tmp_path / "pkg")) == [
        "edgerun.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "pkg/edgerun.json").read_text())
    assert config["format_version"] == 1 and config["family"] == "llama" and config["name"] == "tiny"
    assert config["source"] == {
        "file": "m.gguf",
        "format": "gguf",
        "sha256": hashlib.sha256(gguf_file.read_bytes()).hexdigest(),
        "fingerprint": fingerprint(gguf_file),
    }
    assert config["quantisation"] == {"linear": "q4_1", "embedding": "q4_1", "notes": report.notes}
    assert config["tied_embeddings"] is True and config["n_layers"] == 2 and config["head_dim"] == 16
    done = [step[0] for step in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1]
    model = onnx.load(tmp_path / "pkg/model.onnx", load_external_data=False)
    assert len(model.graph.initializer) == report.tensors
    ends = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "model.onnx.data"
        assert int(place["offset"]) % 64 == 0
        ends[tensor.name] = int(place["offset"]), int(place["offset"]) + int(place["length"])
    matrices = [name.removesuffix(".q") for name in ends if name.endswith(".q")]
    for first, second in itertools.pairwise(matrices):  # one stream of codes, one of scales, one of minima
        for part in "qdm":
            assert 0 <= ends[f"{second}.{part}"][0] - ends[f"{first}.{part}"][1] < 64


def test_source_of_a_repository(tmp_path: Path) -> None:
    save(random_model(), tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "pkg", source_name="owner/model")
    config = json.loads((tmp_path / "pkg/edgerun.json").read_text())
    assert config["name"] == "model" and config["source"]["repo"] == "owner/model"
    export(tmp_path / "hf", tmp_path / "pkg2", source_name=str(tmp_path / "hf"))
    assert json.loads((tmp_path / "pkg2/edgerun.json").read_text())["source"]["file"] == "hf"
    digest = hashlib.sha256((tmp_path / "hf/model.safetensors").read_bytes()).hexdigest()
    assert config["source"]["sha256"] == digest


@pytest.mark.parametrize("quant", ["auto", "q4", "q8", "f32"])
def test_the_runtime_takes_it(quant: str, gguf_file: Path, tmp_path: Path) -> None:
    from edgerun.program.open import open_package

    export(gguf_file, tmp_path / "pkg", quant=quant)
    package = open_package(tmp_path / "pkg")
    assert package.config.n_layers == 2


def test_same_bytes_every_time(gguf_file: Path, tmp_path: Path) -> None:
    for quant in ("auto", "q4", "f32"):
        export(gguf_file, tmp_path / "a", quant=quant)
        export(gguf_file, tmp_path / "b", quant=quant)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt()])
def test_interrupted(error: BaseException, gguf_file: Path, tmp_path: Path) -> None:
    export(gguf_file, tmp_path / "pkg")
    before = contents(tmp_path / "pkg")

    def stop(done: int, total: int, name: str) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(type(error)):
        export(gguf_file, tmp_path / "pkg", quant="f32", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["pkg"]
    assert contents(tmp_path / "pkg") == before


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_full_disk(call: str, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(gguf_file, tmp_path / "pkg")
    before = contents(tmp_path / "pkg")

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match="no space left on the disk"):
        export(gguf_file, tmp_path / "pkg", quant="f32")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["pkg"]
    assert contents(tmp_path / "pkg") == before


def test_replaces_only_packages(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="not a model package; it is left alone"):
        export(gguf_file, tmp_path / "mine")
    with pytest.raises(CheckpointError, match="not a folder"):
        export(gguf_file, tmp_path / "mine/letter.txt")
    with pytest.raises(CheckpointError, match="cannot be written"):
        export(gguf_file, tmp_path / "mine/letter.txt/pkg")
    (tmp_path / "empty").mkdir()
    export(gguf_file, tmp_path / "empty")
    export(gguf_file, tmp_path / "deep/er")
    assert (tmp_path / "deep/er/model.onnx").exists()


@pytest.mark.parametrize("kind", ["q8", "q4m", "f32"])
def test_memory_stays_small(kind: str, tmp_path: Path) -> None:
    """A matrix of 64 MB passes through in less than half its size."""
    from edgerun_exporters.families import Matrix
    from edgerun_exporters.readers.open import open_checkpoint

    rows, columns = 16384, 1024
    head = json.dumps({"w": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head.encode())
        np.random.default_rng(0).standard_normal((rows, columns), np.float32).tofile(file)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    weights = Weights()
    weights.add_matrix(Matrix("w", checkpoint.tensors["w"], rows, columns), kind)
    weights.arrange()
    tracemalloc.start()
    weights.write(checkpoint, tmp_path / "data", lambda count, name: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20
