"""A progress bar on standard error: only on a terminal, and only once there is progress to show."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


WIDTH = 40


class ProgressBar:
    """An `edgerun.progress.Progress`, drawn by rich (imported by the first report); may be called from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bar: RichProgress | None = None
        self._drawn = 0.0
        # One bar for each amount of work, not for each `what`: an export names the tensor it is at.
        self._tasks: dict[int | str, TaskID] = {}

    def __call__(self, done: int, total: int, what: str) -> None:
        if not sys.stderr.isatty():
            return
        with self._lock:
            if self._bar is None:
                self._bar = _start()
            work = total or what
            if work not in self._tasks:
                self._tasks[work] = self._bar.add_task("", total=total or None)
            self._bar.update(self._tasks[work], completed=done, description=_plain(what))
            now = time.monotonic()
            if now - self._drawn >= 0.1 or done == total:
                self._drawn = now
                self._bar.refresh()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
                self._tasks = {}


def _start() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # no thread of its own beside a benchmark
    )
    bar.start()
    return bar


def _plain(what: str) -> str:
    """At a width that stays, so that the bar does."""
    from rich.markup import escape

    return escape(f"{what:<{WIDTH}}" if len(what) <= WIDTH else f"…{what[1 - WIDTH :]}")


def resolve(model: str) -> Path:
    """`edgerun.sources.hub.resolve` under a progress bar."""
    from edgerun.sources import hub

    with ProgressBar() as progress:
        return hub.resolve(model, progress=progress)
