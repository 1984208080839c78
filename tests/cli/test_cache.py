from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerun.cli.main import main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "tiny.auto.0123456789ab.r1"
    folder.mkdir(parents=True)
    (folder / "edgerun.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"x" * 2046)
    return tmp_path


def test_list(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["models", "tiny.auto.0123456789ab.r1", "2.0", "KiB"]
    assert last.split() == [str(cache), "2.0", "KiB"]


def test_list_as_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(cache)
    assert [(entry["label"], entry["bytes"]) for entry in report["entries"]] == [("tiny", 2048)]


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path), "0", "bytes"]


def test_clear(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "tiny", "--yes"]) == 0
    assert capsys.readouterr().out == "2.0 KiB freed\n"
    assert list((cache / "models").iterdir()) == []


def test_clear_asks(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert main(["cache", "clear"]) == 130
    assert capsys.readouterr().out == "" and (cache / "models" / "tiny.auto.0123456789ab.r1").exists()


def test_clear_what_is_not_there(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "clear", "huge", "--yes"]) == 1
    assert capsys.readouterr().err.startswith("edgerun: error: ")
