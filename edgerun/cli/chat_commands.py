"""What a line that starts with a slash does in a chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from edgerun.cli.conversation import Conversation
from edgerun.errors import EdgerunError
from edgerun.variants.library import listed

if TYPE_CHECKING:
    from edgerun.generation.generation import Timings
    from edgerun.session import Session


class Leave(Exception):
    """The user is done."""


class Turn(NamedTuple):
    """How many tokens an answer has, and how long they took."""

    tokens: int
    timings: Timings


@dataclass
class Chat:
    """What the commands act on."""

    conversation: Conversation
    session: Session
    context: int
    turns: list[Turn] = field(default_factory=list)


class Entry(NamedTuple):
    """One command: the argument it wants (empty: none), a line for /help, and what it does (returning what to say)."""

    argument: str
    help: str
    act: Callable[[Chat, str], str]


def find(line: str) -> tuple[Entry, str] | None:
    """The command that the line starts with, and the rest of the line; None if it starts with none."""
    name, _, argument = line.strip().partition(" ")
    entry = COMMANDS.get(name)
    return None if entry is None else (entry, argument.strip())


def perform(chat: Chat, name: str, entry: Entry, argument: str) -> str:
    """Runs a command. Raises `EdgerunError` if it fails or its argument is wrong, `Leave` if it ends the chat."""
    if argument and not entry.argument:
        raise EdgerunError(f"{name} takes no argument")
    try:
        return entry.act(chat, argument)
    except OSError as error:
        raise EdgerunError(f"{name}: {error.strerror or error}: {argument}") from None


def _reset(chat: Chat, _: str) -> str:
    chat.conversation.reset()
    chat.session.reset()
    return "The conversation starts afresh."


def _system(chat: Chat, text: str) -> str:
    if not text:
        system = chat.conversation.system
        return "There are no instructions." if system is None else f"The instructions: {system}"
    chat.conversation.set_system("" if text == '""' else text)
    return "The instructions are removed." if text == '""' else "The instructions are set."


def _save(chat: Chat, name: str) -> str:
    chat.conversation.save(_path(name, "/save"))
    return f"Saved to {name}."


def _load(chat: Chat, name: str) -> str:
    loaded = Conversation.load(_path(name, "/load"))
    was = "" if loaded.model == chat.conversation.model else f" It was held with {loaded.model}."
    chat.conversation.messages = loaded.messages
    chat.conversation.options = loaded.options
    return f"Loaded {len(loaded.messages)} messages from {name}.{was}"


def _path(name: str, command: str) -> Path:
    if not name:
        raise EdgerunError(f"{command} needs a file's name: {command} FILE")
    return Path(name).expanduser()


def _variant(chat: Chat, text: str) -> str:
    """NAME, or NAME keep."""
    spec, _, how = text.partition(" ")
    if not spec:
        known = ", ".join(listed()) or "no variants with a name"
        return f"The variant: {chat.session.variant}. There are {known}."
    if how.strip() not in ("", "keep"):
        raise EdgerunError(f"/variant takes a variant and, if the cache is to stay, keep; not {how.strip()!r}")
    start = perf_counter()
    held = chat.session.position
    chat.session.use(spec, keep=bool(how))
    took = f"after {1e3 * (perf_counter() - start):.0f} ms"
    kept = f"the cache of {held} tokens is {'kept' if how else 'dropped'}" if held else "the cache is empty"
    return f"The variant is {spec}, {took}; {kept}."


def _stats(chat: Chat, _: str) -> str:
    used = chat.session.position
    lines = [f"context        {used} of {chat.context} tokens used"]
    if chat.turns:
        last = chat.turns[-1].timings
        lines += [
            f"last question  {last.prompt_tokens} tokens, {last.cached_tokens} of them already in the cache, "
            f"read in {last.prefill_s:.2f} s",
            f"last answer    {speed(chat.turns[-1])}",
            f"all turns      {len(chat.turns)}, {sum(turn.tokens for turn in chat.turns)} tokens generated",
        ]
    return "\n".join(lines)


def speed(turn: Turn) -> str:
    """'34 tokens, 61.2 tokens/s, first after 0.21 s'."""
    timings = turn.timings
    rate = f", {timings.decode_tokens_per_s:.1f} tokens/s" if timings.decode_tokens else ""
    plural = "" if turn.tokens == 1 else "s"
    return f"{turn.tokens} token{plural}{rate}, first after {timings.first_token_s:.2f} s"


def _help(_: Chat, __: str) -> str:
    rows = [(f"{name} {entry.argument}".strip(), entry.help) for name, entry in COMMANDS.items() if entry.help]
    rows += [
        ('"""', 'start a text of several lines; another """ ends it'),
        ("Alt-Enter", "a new line; so does a backslash at a line's end"),
        ("Ctrl-C", "stop the answer"),
        ("Ctrl-D", "leave"),
    ]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)


def _leave(_: Chat, __: str) -> str:
    raise Leave


COMMANDS = {
    "/reset": Entry("", "start afresh; the instructions stay", _reset),
    "/system": Entry("TEXT", 'set the instructions ("" removes them); alone: show them', _system),
    "/save": Entry("FILE", "write the conversation as JSON", _save),
    "/load": Entry("FILE", "go on with a saved conversation", _load),
    "/variant": Entry("NAME [keep]", "go on with a variant or none, and keep the cache; alone: show it", _variant),
    "/stats": Entry("", "tokens, times and how full the context is", _stats),
    "/help": Entry("", "show this", _help),
    "/exit": Entry("", "leave; so does /bye", _leave),
    "/bye": Entry("", "", _leave),
    "/quit": Entry("", "", _leave),
    "/?": Entry("", "", _help),
}
