"""Local paths: what is a package, what a checkpoint, and one line for what is neither."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

import edgerun_exporters
from edgerun.errors import CheckpointError, EdgerunError, HubError, OptionError
from edgerun.sources import hub, local
from tests.sources.checkpoints_made import gguf_file, safetensors_folder


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that were exported, by the real exporter."""
    seen: list[str] = []
    real = edgerun_exporters.export

    def counting(checkpoint: Path, *arguments: object, **named: object) -> object:
        seen.append(checkpoint.name)
        return real(checkpoint, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(edgerun_exporters, "export", counting)
    return seen


def test_a_gguf_file_is_exported_once_per_content(tmp_path: Path, exports: list[str]) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    first = hub.resolve(file)
    assert (first / "model.onnx").is_file() and hub.resolve(str(file)) == first and hub.resolve("m.gguf") == first
    os.utime(file, (1, 1))
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "moved" / "m.gguf"))
    assert hub.resolve(file) == first and hub.resolve(moved) == first
    assert exports == ["m.gguf"]
    gguf_file(file, seed=1)
    assert hub.resolve(file) != first
    assert hub.resolve(file, quant="q8") != hub.resolve(file)
    assert len(exports) == 3
    assert json.loads((first / "edgerun.json").read_text())["source"]["file"] == "m.gguf"


def test_a_safetensors_folder(tmp_path: Path, exports: list[str]) -> None:
    folder = safetensors_folder(tmp_path / "checkpoint")
    package = hub.resolve(folder)
    assert hub.resolve(folder / "model.safetensors") == package == hub.resolve("./checkpoint")
    (folder / "tokenizer_config.json").write_text("{}")
    assert hub.resolve(folder) != package, "another tokenizer is another model"
    assert len(exports) == 2


def test_packages_are_used_in_place(tmp_path: Path) -> None:
    package = hub.resolve(gguf_file(tmp_path / "m.gguf"))
    copy = shutil.copytree(package, tmp_path / "mine")
    assert hub.resolve(copy) == copy and hub.resolve("mine") == Path("mine")
    assert hub.resolve(copy / "model.onnx") == copy


def test_two_threads_export_once(tmp_path: Path, exports: list[str]) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(hub.resolve(file))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and len(set(found)) == 1 and exports == ["m.gguf"]


def test_a_failed_export_leaves_nothing(tmp_path: Path, root: Path) -> None:
    file = gguf_file(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(EdgerunError) as caught:
        hub.resolve(file)
    assert "\n" not in str(caught.value)
    assert not list((root / "models").glob("*")) if (root / "models").exists() else True


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"PK\x03\x04aaaa", "zip archive"),
        (b"\x80\x02}", "pickle"),
        (b'{"a": 1}', "JSON"),
        (b"hello", "something else"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, what: str) -> None:
    for name in ("x.gguf", "x.safetensors", "x"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=what):
            hub.resolve(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ([], "neither a model package"),
        (["model.safetensors"], "without a config.json"),
        (["adapter_model.safetensors", "adapter_config.json"], "LoRA"),
        (["a.gguf", "b.gguf"], "several GGUF files \\(a.gguf, b.gguf\\)"),
        (["pytorch_model.bin", "config.json"], "pickled"),
    ],
)
def test_folders_that_are_no_checkpoint(tmp_path: Path, files: list[str], what: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=what):
        hub.resolve(folder)


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    gguf_file(tmp_path / "folder" / "m.gguf")
    (tmp_path / "folder" / "mmproj-m.gguf").write_bytes(b"x")
    assert local.recognise(tmp_path / "folder") == (tmp_path / "folder" / "m.gguf", False)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    for path in ("./nothing", "nothing.gguf", "folder/nothing.gguf", "/no/such/path", "~/nothing", "a/", "a b/c/d/e"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            hub.resolve(path)
    with pytest.raises(HubError, match=r"smolm2: no such model; did you mean smollm2\?"):
        hub.resolve("smolm2")
    with pytest.raises(HubError, match="the catalogue has smollm2"):
        hub.resolve("zzz")
    for empty in ("", "a\0b"):
        with pytest.raises(HubError, match="name"):
            hub.resolve(empty)
    with pytest.raises(OptionError, match="quant is 'q3'"):
        hub.resolve("smollm2", quant="q3")


def test_the_original_is_the_checkpoint_not_what_was_made_of_it(
    tmp_path: Path, exports: list[str], package: Path
) -> None:
    gguf, folder = gguf_file(tmp_path / "a.gguf"), safetensors_folder(tmp_path / "b")
    assert hub.original(str(gguf)) == gguf and hub.original(folder) == folder
    assert hub.original(package) == package
    assert exports == []
    with pytest.raises(HubError, match="no-such"):
        hub.original("no-such-model")
