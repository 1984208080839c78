"""One turn of a chat: the question goes in, the answer streams out, and ctrl-C stops it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from edgerun.cli.conversation import Conversation

if TYPE_CHECKING:
    from edgerun.generation.generation import Generation
    from edgerun.session import Session


def answer(
    session: Session, conversation: Conversation, question: str, write: Callable[[str], None], *, interruptible: bool
) -> Generation:
    """Asks, hands each piece of the answer to `write`, and adds both to the conversation.

    If `interruptible`, ctrl-C ends the answer (finish reason "cancelled", what was said so far stays in the
    conversation); else it ends the program. A question that fails, or is stopped before the first word, leaves the
    conversation as it was.
    """
    messages = [*conversation.messages, {"role": "user", "content": question}]
    if not interruptible:
        generation = session.chat(messages, options=conversation.options)
        for piece in generation:
            write(piece.text)
    else:
        with _interrupts() as stopper:
            generation = session.chat(messages, options=conversation.options)
            stopper.attach(generation)
            for piece in generation:
                write(piece.text)
    if generation.text or generation.finish_reason != "cancelled":
        conversation.messages = [*messages, {"role": "assistant", "content": generation.text}]
    return generation


class _Stopper:
    """Stops the generation between two tokens, where the cache is whole, instead of raising at any instruction."""

    def __init__(self) -> None:
        self._wanted = False
        self._generation: Generation | None = None

    def attach(self, generation: Generation) -> None:
        self._generation = generation
        if self._wanted:
            generation.stop()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._wanted = True
        if self._generation is not None:
            self._generation.stop()


@contextmanager
def _interrupts() -> Iterator[_Stopper]:
    stopper = _Stopper()
    before = signal.signal(signal.SIGINT, stopper)
    try:
        yield stopper
    finally:
        signal.signal(signal.SIGINT, before)
