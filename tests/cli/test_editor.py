"""The line editor, typed at through prompt_toolkit's pipe."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from edgerun.cli.chat_editor import Editor, is_open, plain

ENTER, ALT_ENTER, UP, CTRL_C, CTRL_D, TAB = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04", "\t"


def typed(keys: str, history: Path, times: int = 1) -> list[str]:
    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        editor = Editor(history, ["/reset", "/save"], input=pipe, output=DummyOutput())
        return [editor.ask() for _ in range(times)]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (f"Hello{ENTER}", "Hello"),
        (f"  Hello {ENTER}", "Hello"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f"one\\{ENTER}two{ENTER}", "one\ntwo"),
        (f'"""one{ENTER}{ENTER}two"""{ENTER}', "one\n\ntwo"),
        (f'"""{ENTER}one\\{ENTER}"""{ENTER}', "one\\"),
        (f"\x1b[200~pasted\nlines\x1b[201~{ENTER}", "pasted\nlines"),
        (f"日本 😀{ENTER}", "日本 😀"),
        (ENTER, ""),
    ],
)
def test_what_is_typed(keys: str, text: str, tmp_path: Path) -> None:
    assert typed(keys, tmp_path / "history") == [text]


def test_tab_completes_commands(tmp_path: Path) -> None:
    with create_pipe_input() as pipe:
        editor = Editor(tmp_path / "history", ["/reset", "/save"], input=pipe, output=DummyOutput())
        pipe.send_text(f"/res{TAB}")
        threading.Timer(0.5, pipe.send_text, [ENTER]).start()  # the completion comes a little later than the key
        assert editor.ask() == "/reset"


def test_ctrl_c_and_ctrl_d(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed(f"half a thought{CTRL_C}", tmp_path / "history")
    with pytest.raises(EOFError):
        typed(CTRL_D, tmp_path / "history")


def test_history_outlives_the_editor_and_is_private(tmp_path: Path) -> None:
    history = tmp_path / "new" / "history"
    assert typed(f"first{ENTER}second{ENTER}", history, times=2) == ["first", "second"]
    assert typed(f"third{ENTER}", history) == ["third"]
    assert [line for line in history.read_text().splitlines() if line.startswith("+")] == [
        "+first",
        "+second",
        "+third",
    ]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_kept_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert typed(f"Hello{ENTER}", tmp_path / "file" / "history") == ["Hello"]


def test_open_texts() -> None:
    assert is_open('"""a') and is_open("a\\") and is_open('"""a\\')
    assert not is_open('"""a"""') and not is_open("a") and not is_open('say """')
    assert plain('say """') == 'say """'
