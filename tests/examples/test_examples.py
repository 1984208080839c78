"""Each example runs, as a program, on a model with random weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgerun.program.open import open_package
from tests.cli.conftest import ROOT, environment

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: object, input: str = "") -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        input=input,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=environment() | {"PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_streaming_answer(package: Path) -> None:
    last = run("streaming_answer.py", package, "Hello?").splitlines()[-1]
    assert last.startswith(("stop, ", "length, ")) and last.endswith(" tokens/s")


def test_chat_loop(package: Path) -> None:
    out = run("chat_loop.py", package, input="a\n")
    assert "[0 of " in out and "prompt tokens were in the cache]" in out


def test_sessions_on_threads(package: Path) -> None:
    out = run("sessions_on_threads.py", package)
    places = [out.index(question) for question in ("colour", "river", "flies", "two plus two")]
    assert places == sorted(places)
    assert out == run("sessions_on_threads.py", package)


@pytest.mark.parametrize("name", ["classify_logprobs.py"])
def test_classify_logprobs(name: str, package: Path) -> None:
    lines = run(name, package).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(("positive (", "negative (")) for line in lines)


def test_train_bitnet(tmp_path: Path) -> None:
    """Two steps of training; both checkpoints are of one model, and edgerun runs it."""
    from edgerun_exporters import export
    from tests.exporters.test_bitnet import ternary_tensors

    out = run("train_bitnet.py", "--out", tmp_path, "--minutes", 0.02)
    assert "4.4 million ternary weights" in out and "of the unigram entropy" in out
    packages = []
    for form in ("packed", "master"):
        export(tmp_path / form, tmp_path / f"{form}.pkg")
        packages.append(ternary_tensors(open_package(tmp_path / f"{form}.pkg")))
    assert packages[0] == packages[1]


def test_finetune(tmp_path: Path) -> None:
    """Two steps, in two pieces, change the linear layers and nothing else; the result makes a variant of its base."""
    from edgerun.variants.store import open_variant
    from edgerun_exporters.variants import create
    from tests.conftest import checkpoint

    base = checkpoint(tmp_path / "base")
    options = ("dates", tmp_path / "tuned", "--base", base, "--steps", 2, "--batch", 1, "--decay", 0.01)
    assert "is written" not in run("finetune.py", *options, "--seconds", 0)
    assert run("finetune.py", *options, "--seconds", 0).endswith("is written\n")
    report = create(base, tmp_path / "tuned", tmp_path / "v", method="dare")
    assert report.kept and all(name.endswith("_proj.weight") for name in open_variant(tmp_path / "v").names())


def test_the_tasks_keep_their_words_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    tasks = __import__("finetune_tasks")
    for task in tasks.TASKS:
        train, test = (tasks.examples(task, 500, split) for split in ("train", "test"))
        assert not {example.answer for example in train} & {example.answer for example in test}
        assert train == tasks.examples(task, 500, "train")


def test_adamr_without_decay_is_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with it the weights stay nearer to where they began; never beyond."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    adamr = __import__("adamr").AdamR
    start, target = torch.randn(5, 7), torch.randn(5, 7)

    def trained(make: Callable[[list[Any]], Any]) -> Any:
        theta = torch.nn.Parameter(start.clone())
        optimizer = make([theta])
        for _ in range(50):
            optimizer.zero_grad()
            ((theta - target) ** 2).sum().backward()
            optimizer.step()
        return theta.detach()

    adam = trained(lambda p: torch.optim.Adam(p, lr=1e-2))
    assert torch.allclose(trained(lambda p: adamr(p, lr=1e-2, decay=0.0)), adam, atol=1e-6)
    near = trained(lambda p: adamr(p, lr=1e-2, decay=10.0))
    assert (near - start).norm() < 0.7 * (adam - start).norm()
    assert torch.allclose(trained(lambda p: adamr(p, lr=1e-2, decay=1e9)), start, atol=0.02)


def test_no_example_is_forgotten() -> None:
    text = Path(__file__).read_text("utf-8")
    parts = {"adamr.py", "finetune_tasks.py"}  # of finetune.py
    assert EXAMPLES and all(f'"{path.name}"' in text for path in EXAMPLES if path.name not in parts)
