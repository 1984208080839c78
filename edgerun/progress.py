"""How long work reports how far it is: one small protocol, so that whoever shows it need not know who works."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called now and then by a download, a hash or an export, from the thread that does the work (a download may
    use several). The callee decides whether and where to show it."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """`done` of `total` units (bytes or tensors) of `what` are through; `total` 0 means that it isn't known."""


def silent(done: int, total: int, what: str) -> None:
    """The `Progress` that shows nothing."""
