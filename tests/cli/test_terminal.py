from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from edgerun.cli.progress import WIDTH, ProgressBar, _plain
from edgerun.cli.terminal import dim, folder_bytes, human_bytes, visible


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert visible("a\x1b[2J\tb\n\r\x07\x7f\x9b") == "a^[[2J\tb\n^M^G^?�"
    assert visible("naïve 日本 😀") == "naïve 日本 😀"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_folder_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"4567")
    assert folder_bytes(tmp_path) == 7


def test_dim() -> None:
    assert dim("x") == "\x1b[2mx\x1b[0m"


def test_no_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar() as progress:
        progress(1, 2, "work")
    assert stream.getvalue() == ""


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar() as progress:
        progress(0, 0, "waiting [for it]")
        progress(5, 10, "layers.0.q")
        progress(10, 10, "layers.1.q")
    assert "waiting [for it]" in stream.getvalue() and "100%" in stream.getvalue()


def test_descriptions_keep_their_width() -> None:
    assert len(_plain("x")) == WIDTH
    assert len(_plain("x" * 100)) == WIDTH and _plain("a" * 99 + "end").endswith("end")
