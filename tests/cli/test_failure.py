"""Every failure is one line on standard error and a status that isn't 0."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgerun.cli import main as main_module
from edgerun.cli.failure import explain, one_line, report
from edgerun.errors import ContextError, EdgerunError

from .conftest import Run, environment


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (EdgerunError("a.gguf: cut off;\n  fetch it again"), 1, "error: a.gguf: cut off; fetch it again"),
        (ContextError("too long"), 1, "error: too long"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 1, "error: No such file or directory: x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (click.UsageError("No such option: -x"), 2, "error: No such option: -x (see 'edgerun --help')"),
        (MemoryError(), 1, "error: out of memory; a smaller model or a smaller --ctx needs less"),
    ],
)
def test_known_errors(error: BaseException, status: int, line: str) -> None:
    assert explain(error) == (status, line)


def test_a_full_disk_says_what_to_do() -> None:
    status, line = explain(OSError(errno.ENOSPC, "No space left on device", "/big"))
    assert status == 1
    assert "the disk is full (/big)" in line and "EDGERUN_CACHE" in line


def test_a_bug_is_one_line_that_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyError("x\ny"), debug=False) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("edgerun: error: internal error: KeyError: ") and "--debug" in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main_module.main(["eval", "smollm2", "--text", str(tmp_path / "none.txt"), "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("none.txt does not exist; give a text file\n")


@pytest.mark.parametrize("before", [True, False])
def test_debug_may_stand_before_or_after_the_command(
    before: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["eval", "smollm2", "--text", str(tmp_path / "none.txt")]
    assert main_module.main(["--debug", *line] if before else [*line, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_one_line() -> None:
    assert one_line(" a\n\tb  c\r\n") == "a b c"


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu"],
        ["run"],
        ["run", "smollm2"],
        ["run", "smollm2", "x", "--compute", "int4"],
        ["run", "smollm2", "x", "--nonsense"],
        ["run", "smollm2", "x", "--logprobs", "2"],
        ["run", "smollm2", "x", "--raw", "--system", "y"],
        ["bench", "smollm2", "--depth", "0,x"],
        ["bench", "smollm2", "--threads", "0"],
        ["cache", "list", "smollm2"],
        ["--nonsense"],
    ],
)
def test_misuse_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_module.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edgerun: error: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize(
    "arguments", [["--temperature", "-1"], ["--top-p", "0"], ["-n", "-1"], ["--seed", "-1"], ["--stop", ""]]
)
def test_bad_sampling_options_are_named_before_anything_is_fetched(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_module.main(["run", "no-such-model", "Hello", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("edgerun: error: ") and "no-such-model" not in err


@pytest.mark.parametrize("command", ["run", "chat", "info", "bench", "pull"])
def test_no_such_model(command: str, edgerun: Run, tmp_path: Path) -> None:
    model = tmp_path / "none.gguf"
    result = edgerun(command, model, *(["Hello"] if command == "run" else []))
    assert result.returncode == 1
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("edgerun: error: ") and "none.gguf" in result.stderr


def test_a_reader_that_leaves_is_no_news() -> None:
    # The pipe is closed before the process writes, as by `edgerun --help | true`.
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "edgerun", "--help"], stdout=write, stderr=subprocess.PIPE, env=environment()
    )
    os.close(write)
    assert result.returncode == 128 + signal.SIGPIPE
    assert result.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "edgerun", "--help"], stdout=full, stderr=subprocess.PIPE, env=environment()
        )
    assert result.returncode == 1
    assert result.stderr.decode().startswith("edgerun: error: the disk is full")
    assert result.stderr.count(b"\n") == 1


def test_invalid_utf8(edgerun: Run) -> None:
    result = edgerun("run", "smollm2", "-", input=b"caf\xe9")
    assert result.returncode == 1
    assert (
        result.stderr
        == "edgerun: error: standard input is not UTF-8 text (byte 3); convert it, for example with iconv\n"
    )
    bad = subprocess.run(
        [sys.executable, "-m", "edgerun", "run", "smollm2", b"caf\xe9"], capture_output=True, env=environment()
    )
    assert bad.returncode == 1 and b"PROMPT is not UTF-8" in bad.stderr
