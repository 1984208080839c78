"""Writing to a terminal: what may be coloured, and what a model may not do to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A model's text may hold escape sequences that move the cursor or rename the window; on a terminal they are shown, not
# obeyed: C0 controls (but tab and newline) as ^[ and the like, DEL as ^?, C1 controls as U+FFFD.
_SHOWN = (
    {code: f"^{chr(code + 64)}" for code in range(32) if chr(code) not in "\t\n"}
    | {127: "^?"}
    | dict.fromkeys(range(128, 160), "�")
)


def visible(text: str) -> str:
    """The text with control characters made visible, safe to write to a terminal."""
    return text.translate(_SHOWN)


def is_interactive() -> bool:
    """Whether a person sits at both ends: standard input and standard output are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def write_answer(text: str) -> None:
    """Writes a piece of a model's answer to standard output at once."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


@contextmanager
def silent_ctrl_c() -> Iterator[None]:
    """Keeps the terminal from writing ^C into an answer that ctrl-C stops. Standard input must be a terminal."""
    import termios

    before = termios.tcgetattr(sys.stdin)
    changed = [*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def dim(text: str) -> str:
    """The text in a terminal's faint style."""
    return f"\x1b[2m{text}\x1b[0m"


def human_bytes(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of the files in a folder and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
