"""`edgerun eval --task` and what is asked of its options, on a package with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerun.cli.main import main
from tests.measure.tasks.made import lines

from .test_packages import PROSE, report

CITIES = {"question": "Where is the tower?", "choices": ["in Rome", "in Paris"], "answer": 1}
BOOLQ = {"passage": PROSE[:75], "question": "was it cold", "answer": True}
ANN = {"passage": "Ann went to Rome.", "question": "Who went?", "answers": ["Ann"]}


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    status = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert status in (1, 2) and out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("against", ["full", "exact"])
def test_needles(against: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, plot = tmp_path / "prose.txt", tmp_path / "needles.png"
    text.write_text(PROSE)
    asked = ("--task", "needle", "--lengths", "60,90", "--depths", "2", "--repeat", "2", "--against", against)
    found = report(capsys, "eval", package, "--text", text, "--plot", plot, *asked)
    assert found["task"] == "needle" and found["needles"] == 8 and found["attention_sparsity"] == 0
    assert [(cell["length"], cell["depth"]) for cell in found["cells"]] == [
        (60, 0.25),
        (60, 0.75),
        (90, 0.25),
        (90, 0.75),
    ]
    assert found["metrics"]["logprob"]["mean"] < 0
    assert found["kept"] is None and found["kept_of"] == 0  # random weights find nothing
    if against == "full":
        assert found["metrics"]["logprob"]["difference"] == 0 == found["metrics"]["logprob"]["difference_stderr"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["eval", str(package), *asked]) == 0
    assert "needles found" in capsys.readouterr().out


def test_choice(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines(tmp_path / "a.jsonl", [CITIES, BOOLQ, CITIES])
    asked = ("--task", "choice", "--data", data, "--shots", "1", "--against", "full")
    found = report(capsys, "eval", package, *asked)
    assert found["questions"] == 2 and found["shots"] == 1 and found["attention"] == "full"
    assert found["metrics"]["accuracy"]["mean"] in (0, 0.5, 1)
    assert found["metrics"]["accuracy"]["difference"] == 0
    assert main(["eval", str(package), *map(str, asked)]) == 0
    assert "difference +0.0000 ± 0.0000" in capsys.readouterr().out


def test_qa(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines(tmp_path / "a.jsonl", [ANN] * 3)
    found = report(capsys, "eval", package, "--task", "qa", "--data", data, "--limit", "2")
    assert found["questions"] == 2 and found["metrics"]["f1"]["against"] is None
    assert found["metrics"]["logprob"]["mean"] < 0 and found["metrics"]["logprob"]["stderr"] == 0


def test_text_by_position(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, plot = tmp_path / "prose.txt", tmp_path / "kl.svg"
    text.write_text(PROSE)
    asked = ("--text", text, "--context", "64", "--tokens", "130", "--against", "full", "--plot", plot)
    found = report(capsys, "eval", package, *asked)
    assert found["tokens"] == 62 and found["kl_mean"] == 0 == found["kl_stderr"]
    assert found["attention"] == "full" and found["attention_sparsity"] == 0
    assert found["reference_perplexity"] == found["perplexity"] and found["perplexity_stderr"] > 0
    assert plot.read_bytes().startswith(b"<?xml")


def test_options_that_do_not_fit(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines(tmp_path / "a.jsonl", [ANN])
    assert "give a text to predict (--text FILE), or a task" in failure(capsys, "eval", package)
    assert "--data is not for a text" in failure(capsys, "eval", package, "--text", data, "--data", data)
    assert "--lengths is not for --task qa" in failure(capsys, "eval", package, "--task", "qa", "--lengths", "60")
    assert "--context is not for --task needle" in failure(capsys, "eval", package, "--task", "needle", "--ctx", "60")
    assert "is for --task qa" in failure(capsys, "eval", package, "--task", "choice", "--data", "disflqa")
    assert "neither a file nor one of boolq" in failure(capsys, "eval", package, "--task", "qa", "--data", "squad")
    assert "line 1: choices must be" in failure(capsys, "eval", package, "--task", "choice", "--data", data)
    onnxruntime = ("--task", "qa", "--data", data, "--against", "onnxruntime")
    assert "cannot be run in onnxruntime" in failure(capsys, "eval", package, *onnxruntime)
    assert "but the context has 512" in failure(capsys, "eval", package, "--task", "needle", "--lengths", "600")
    assert "written as .png or .svg" in failure(capsys, "eval", package, "--task", "needle", "--plot", "a.pdf")
    assert "no policy 'sparse'" in failure(
        capsys, "eval", package, "--task", "qa", "--data", data, "--attention", "sparse"
    )


def test_text_with_policies(two_layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "prose.txt"
    text.write_text(PROSE)
    asked = ("--text", text, "--context", "400", "--tokens", "400", "--against", "full")
    exact = report(capsys, "eval", two_layers, *asked, "--attention", "deltallm:theta=0")
    assert exact["kl_mean"] < 1e-9 and exact["sparsity_outside_window"] == 0
    runs = report(capsys, "eval", two_layers, *asked, "--attention", "deltallm:theta=9,window=1")
    assert runs["kl_mean"] > 1e-9 and runs["sparsity_outside_window"] > 0.9 and 0 < runs["attention_sparsity"] < 1
    everything = report(capsys, "eval", two_layers, *asked, "--attention", "delta:budget=512,select=0,full=0")
    assert everything["kl_mean"] == 0 == everything["attention_sparsity"]
    pages = report(capsys, "eval", two_layers, *asked, "--attention", "delta:budget=32,recent=16,select=0,full=0")
    assert pages["kl_mean"] > 1e-9 and pages["sparsity_outside_window"] is None and pages["attention_sparsity"] > 0.2
    assert main(["eval", str(two_layers), *map(str, asked), "--attention", "deltallm:theta=9,window=1"]) == 0
    out = capsys.readouterr().out
    assert "keys not read" in out and "of those behind the window" in out


def test_tasks_with_policies(two_layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = lines(tmp_path / "a.jsonl", [ANN | {"passage": PROSE[:300]}, ANN])
    asked = ("--task", "qa", "--data", data, "--against", "full")
    for policy in ("delta:budget=32,recent=16,select=0,full=0", "deltallm:theta=9,window=1"):
        found = report(capsys, "eval", two_layers, *asked, "--attention", policy)
        assert found["attention"] == policy and found["attention_sparsity"] > 0
        assert found["metrics"]["logprob"]["difference"] != 0
