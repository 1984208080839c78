"""The line editor of a chat: prompt_toolkit, with several lines and a history. Imported only at a terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

FENCE = '"""'


def is_open(text: str) -> bool:
    """Whether Enter continues the text instead of sending it: after a backslash, or within \"\"\" … \"\"\"."""
    if text.lstrip().startswith(FENCE):
        return text.count(FENCE) < 2
    return text.endswith("\\")


def plain(text: str) -> str:
    """The question that was typed: without fences, and without the backslashes that continue lines."""
    stripped = text.strip()
    if stripped.startswith(FENCE):
        return stripped.removeprefix(FENCE).removesuffix(FENCE).strip("\n")
    return text.replace("\\\n", "\n").strip()


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.document.text_before_cursor):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


class _PersistentHistory(FileHistory):
    """A history in a file; a full disk costs the history, not the chat."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)


def _history(path: Path) -> History:
    """A history that only its owner can read; in memory if the file can't be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return _PersistentHistory(str(path))


class Editor:
    """Asks for questions at a terminal.

    history: the file that keeps the questions; commands: words to complete with Tab at a line's start; input, output:
    the terminal, where it isn't the process's own.
    """

    def __init__(
        self, history: Path, commands: Iterable[str], *, input: Input | None = None, output: Output | None = None
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(history),
            multiline=True,
            key_bindings=_bindings(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            prompt_continuation=HTML("<ansibrightblack>... </ansibrightblack>"),
            placeholder=HTML("<ansibrightblack>Ask something (/help for help)</ansibrightblack>"),
            input=input,
            output=output,
        )

    def ask(self) -> str:
        """The next question, without white space around it; may be empty.

        Raises `EOFError` on ctrl-D and `KeyboardInterrupt` on ctrl-C.
        """
        return plain(self._session.prompt(HTML("<ansigreen><b>>>> </b></ansigreen>")))
