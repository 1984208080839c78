"""How a damaged package is reported: one line, whatever the file contains."""

from __future__ import annotations

from pathlib import Path

from edgerun.errors import PackageError


def damaged(path: Path, what: str, remedy: str = "export it again with `edgerun export`") -> PackageError:
    """The error for a file of a package: which file, what is wrong with it, and what to do."""
    return PackageError(f"{_one_line(str(path), 400)}: {_one_line(what, 400)}; {remedy}")


def quoted(name: str) -> str:
    """A name that came from a file, fit for a message."""
    return repr(_one_line(name, 100))


def shown(value: object) -> str:
    """A value that came from a file, fit for a message."""
    try:
        return _one_line(repr(value), 60)
    except ValueError:  # Python prints no integer of thousands of digits
        return "a huge number"


def _one_line(text: str, limit: int) -> str:
    plain = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= limit else plain[:limit] + "…"
