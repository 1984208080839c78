"""Many requests, some at a time: as one ends, the next begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgerun.engine.engine import Engine, Request
from edgerun.progress import Progress

PARALLEL = 32
"""Requests that are worked on at a time: more would hardly be faster together, and each takes a page or more."""
R = TypeVar("R", bound=Request)


def run_many(engine: Engine, starts: Sequence[Callable[[], R]], parallel: int, progress: Progress) -> list[R]:
    """Starts the requests in order and runs them to their ends, at most ``parallel`` at a time; gives them in order.
    progress(done, in all, "prompts")."""
    made: list[R] = []
    working: list[R] = []
    done = 0
    try:
        while done < len(starts):
            while len(working) < parallel and len(made) < len(starts):
                request = starts[len(made)]()
                made.append(request)
                working.append(request)
            progress(done, len(starts), "prompts")
            engine.step_with(working)
            ended = [request for request in working if request.ended]
            for request in ended:
                request.close()
            done += len(ended)
            working = [request for request in working if not request.ended]
    except BaseException:
        for request in working:
            engine.withdraw(request)
        raise
    progress(done, len(starts), "prompts")
    return made
