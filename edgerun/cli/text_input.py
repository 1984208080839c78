"""Text from outside: standard input, files and arguments, which may not be UTF-8."""

from __future__ import annotations

import sys
from pathlib import Path

from edgerun.errors import EdgerunError, OptionError


def read_stdin() -> str:
    """All of standard input. Raises `EdgerunError` if it isn't UTF-8."""
    return decoded(sys.stdin.buffer.read(), "standard input")


def read_text(path: Path) -> str:
    """A text file. Raises `EdgerunError` if it can't be read or isn't UTF-8."""
    try:
        return decoded(path.read_bytes(), str(path))
    except IsADirectoryError:
        raise EdgerunError(f"{path} is a folder; give a text file") from None
    except FileNotFoundError:
        raise EdgerunError(f"{path} does not exist; give a text file") from None


def decoded(data: bytes, where: str) -> str:
    """The bytes as text. Raises `EdgerunError` that names the place if they aren't UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgerunError(
            f"{where} is not UTF-8 text (byte {error.start}); convert it, for example with iconv"
        ) from None


def checked(text: str, name: str) -> str:
    """An argument as text. Raises `OptionError` if the shell passed bytes that aren't UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise OptionError(f"{name} is not UTF-8 text; convert it, for example with iconv") from None
    return text
