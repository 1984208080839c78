"""`edgerun chat`, from a pipe and at a (pseudo) terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgerun.sources.cache import cache_root

from .conftest import Run, environment

FIXED = ("--temperature", "0", "-n", "8")


def test_piped(package: Path, edgerun: Run) -> None:
    result = edgerun("chat", package, *FIXED, input="Hello\n\nAgain")
    assert (result.returncode, result.stderr) == (0, "")
    first = edgerun("run", package, "Hello", *FIXED).stdout
    assert result.stdout.startswith(first) and len(result.stdout) > len(first)


def test_piped_commands_speak_on_standard_error(package: Path, edgerun: Run, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    lines = f"Hello\n/reset\nHello\n/save {path}\n/bye\nnever asked\n"
    result = edgerun("chat", package, *FIXED, input=lines)
    first = edgerun("run", package, "Hello", *FIXED).stdout
    assert result.returncode == 0 and result.stdout == first * 2
    assert result.stderr == f"The conversation starts afresh.\nSaved to {path}.\n"
    saved = json.loads(path.read_text("utf-8"))
    assert [message["content"] for message in saved["messages"]] == ["Hello", first[:-1]]
    assert saved["options"]["max_tokens"] == 8


def test_a_conversation_that_outgrows_the_context(package: Path, edgerun: Run) -> None:
    result = edgerun("chat", package, "--ctx", "64", "-n", "4", input="word " * 100)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("edgerun: error: ") and result.stderr.count("\n") == 1


def test_a_model_without_a_chat_template(package: Path, edgerun: Run, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in package.iterdir():
        (bare / path.name).write_bytes(path.read_bytes())
    config = json.loads((bare / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    result = edgerun("chat", bare, input="Hello")
    assert result.returncode == 1 and "no chat template" in result.stderr
    assert edgerun("run", bare, "Hello", *FIXED).returncode == 0


class Terminal:
    """A process at a pseudo terminal."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self.fd, theirs = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgerun", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment() | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | env,
        )
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def interrupt(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)

    def wait_for(self, pattern: str, timeout: float = 60) -> str:
        """Reads until the pattern comes; gives what came up to its end, without escape sequences."""
        end = time.monotonic() + timeout
        while (found := re.search(pattern, self.seen)) is None:
            if time.monotonic() > end or not select.select([self.fd], [], [], end - time.monotonic())[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # the process has left
                raise AssertionError(f"no {pattern!r} in {self.seen!r}") from None
            self.seen += re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", data.decode("utf-8", "replace"))
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(package: Path, tmp_path: Path) -> Iterator[Terminal]:
    # A cache of this test's own, for the history; the compiled kernels are those of everybody.
    (tmp_path / "kernels").symlink_to(cache_root() / "kernels")
    process = Terminal("chat", str(package), "--temperature", "1", env={"EDGERUN_CACHE": str(tmp_path)})
    try:
        process.wait_for("/help for help")
        process.wait_for(">>> ")
        yield process
    finally:
        process.close()


def test_a_turn_at_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("Hello\r")
    assert "Hello" in terminal.wait_for(r"\d+ tokens?, [\d.]+ tokens/s, first after [\d.]+ s")
    terminal.wait_for(">>> ")
    terminal.type("/stats\r")
    terminal.wait_for(r"all turns +1")
    terminal.wait_for(">>> ")
    terminal.type("/nonsense\r")
    terminal.wait_for("error: there is no command /nonsense; /help lists them")
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=30) == 0
    assert "+Hello" in (tmp_path / "chat_history").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.type("Hello\r")
    terminal.wait_for(r"Hello\r+\n.")
    terminal.interrupt()
    terminal.wait_for("tokens?(, [\\d.]+ tokens/s)?, first after [\\d.]+ s(, stopped)?")
    terminal.wait_for(">>> ")
    terminal.type("half\x03")
    terminal.wait_for("Ctrl-D or /exit leaves.")
    terminal.wait_for(">>> ")
    terminal.type("/exit\r")
    assert terminal.process.wait(timeout=30) == 0


def test_a_question_too_long_costs_only_itself(terminal: Terminal) -> None:
    terminal.type("word " * 400 + "\r")
    terminal.wait_for("error: .* do not fit the context of 512 tokens")
    terminal.wait_for(">>> ")
    terminal.type("/bye\r")
    assert terminal.process.wait(timeout=30) == 0
