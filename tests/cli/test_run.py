"""`edgerun run`, on a package with random weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgerun.cli.main import main

from .conftest import Run, environment

FIXED = ("--temperature", "0", "-n", "8")


def test_an_answer_and_nothing_else(package: Path, edgerun: Run) -> None:
    result = edgerun("run", package, "Hello", *FIXED)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("\n") and len(result.stdout) > 1


def test_the_prompt_may_come_from_standard_input(package: Path, edgerun: Run) -> None:
    assert edgerun("run", package, "-", *FIXED, input="Hello").stdout == edgerun("run", package, "Hello", *FIXED).stdout


def report(capsys: pytest.CaptureFixture[str], package: Path, *arguments: str) -> dict[str, object]:
    assert main(["run", str(package), *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_json(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, package, "Hello", *FIXED)
    assert found["model"] == str(package)
    assert found["finish_reason"] in ("length", "stop")
    assert isinstance(found["token_ids"], list) and len(found["token_ids"]) <= 8
    for name in ("prompt_tokens", "cached_tokens", "decode_tokens"):
        assert isinstance(found[name], int)
    for name in ("load_s", "prefill_s", "first_token_s", "decode_s", "prefill_tokens_per_s", "decode_tokens_per_s"):
        assert isinstance(found[name], float), name
    assert "logprobs" not in found


def test_the_text_is_the_same_as_json_and_as_text(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report(capsys, package, "Hello", *FIXED)["text"]
    assert main(["run", str(package), "Hello", *FIXED]) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_logprobs(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, package, "Hello", *FIXED, "--logprobs", "3")
    entries = found["logprobs"]
    assert isinstance(entries, list) and entries
    for entry in entries:
        assert len(entry["top"]) == 3 and entry["logprob"] <= 0
        assert entry["top"][0]["token_id"] == entry["token_ids"][-1]  # at temperature 0 the likeliest is chosen
        assert [top["logprob"] for top in entry["top"]] == sorted(
            (top["logprob"] for top in entry["top"]), reverse=True
        )


def test_a_seed_fixes_the_text_at_every_thread_count(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("Hello", "-n", "20", "--seed", "7", "--temperature", "1.5")
    one = report(capsys, package, *arguments, "--threads", "1")["text"]
    assert report(capsys, package, *arguments, "--threads", "2")["text"] == one
    assert report(capsys, package, "Hello", "-n", "20", "--seed", "8", "--temperature", "1.5")["text"] != one


def test_raw_leaves_the_template_out(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_system = report(capsys, package, "Hello", "--system", "Be brief.", *FIXED)
    raw = report(capsys, package, "Hello", "--raw", *FIXED)
    assert int(str(with_system["prompt_tokens"])) > int(str(raw["prompt_tokens"]))


def test_stop_strings(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(report(capsys, package, "Hello", "-n", "30", "--temperature", "0")["text"])
    letter = text[len(text) // 2]
    found = report(capsys, package, "Hello", "-n", "30", "--temperature", "0", "--stop", letter)
    assert found["text"] == text[: text.index(letter)] and found["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "arguments", [["--compute", "float32"], ["--compute", "int8"], ["--cache-type", "f32"], ["--ctx", "64"]]
)
def test_machine_options(arguments: list[str], package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(capsys, package, "Hello", *FIXED, *arguments)["finish_reason"] in ("length", "stop")


def test_a_prompt_longer_than_the_context(package: Path, edgerun: Run) -> None:
    result = edgerun("run", package, "word " * 500)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("edgerun: error: ") and result.stderr.count("\n") == 1
    assert "512 tokens" in result.stderr


def test_ctrl_c_stops_without_a_traceback(package: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgerun", "run", str(package), "Hello", "--temperature", "1", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.read(1)  # it is answering; 512 tokens of a tiny model take a moment, but only a moment
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) in ((130, b"edgerun: interrupted\n"), (0, b""))
    assert out.endswith(b"\n")


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.5])
def test_ctrl_c_at_any_moment(delay: float, package: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, "run", str(package), "Hello"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    time.sleep(delay)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"edgerun: interrupted\n"


# As `python -m edgerun`, again and again, so that the signal always finds it at work; a signal that comes while
# Python itself still starts is Python's own.
BUSY = """
import io, sys
from edgerun.cli.main import main
status = 0
while not status:
    sys.stdout = io.StringIO()
    status = main(sys.argv[1:])
sys.exit(status)
"""
