"""`edgerun variant create` as a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from edgerun.cli import variant_create
from edgerun.variants.store import open_variant
from edgerun_exporters.variants import METHODS
from tests.cli.conftest import Run
from tests.conftest import checkpoint


def pair(tmp_path: Path) -> tuple[Path, Path]:
    return checkpoint(tmp_path / "base", seed=0), checkpoint(tmp_path / "tuned", seed=1)


def test_methods_are_those_of_the_library() -> None:
    assert variant_create.METHODS == METHODS


def test_create(edgerun: Run, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"prompt": "a b", "answer": "c"}\n')
    out = tmp_path / "v.safetensors"
    options = ("--method", "darex-q", "--drop", "0.9", "--labels", labels, "--quality", "exact_match=0.5")
    result = edgerun("variant", "create", base, tuned, out, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{out}: darex-q, ") and "note: q = " in result.stdout and result.stderr == ""
    variant = open_variant(out)
    assert variant.method == "darex-q" and variant.parameters["q_chosen_by"] == "labels"
    assert variant.quality["exact_match"] == 0.5 and "labelled_exact" in variant.quality


def test_json_says_what_was_chosen(edgerun: Run, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    result = edgerun("variant", "create", base, tuned, tmp_path / "v", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["method"] == "wanda" and "deltas are large" in said["notes"][0]  # random models have little in common
    assert said["bytes"] == (tmp_path / "v").stat().st_size and 0 < said["kept"] < said["elements"]


def test_errors_are_one_line(edgerun: Run, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for arguments, message in (
        ((base, tmp_path / "nothing", "v"), "nothing"),
        ((base, tuned, "v", "--drop", "1.5"), "drop is 1.5"),
        ((base, tuned, "v", "--quality", "good"), "must be NAME=VALUE"),
    ):
        result = edgerun("variant", "create", *arguments)
        assert result.returncode != 0 and result.stdout == ""
        assert message in result.stderr and len(result.stderr.splitlines()) == 1
