"""`edgerun chat`: questions from the terminal, or one a line from a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from edgerun.cli.chat_commands import COMMANDS, Chat, Leave, Turn, find, perform, speed
from edgerun.cli.chat_turn import answer
from edgerun.cli.command import command as command_
from edgerun.cli.command import option
from edgerun.cli.conversation import Conversation
from edgerun.cli.options import RuntimeOptions, runtime_options, sampling_options
from edgerun.cli.terminal import dim, is_interactive, silent_ctrl_c, visible, write_answer
from edgerun.cli.text_input import checked, decoded
from edgerun.errors import EdgerunError

if TYPE_CHECKING:
    from edgerun.generation.options import SamplingOptions
    from edgerun.model import Model

DEFAULT_MODEL = "smollm2"


@command_("chat", "Talk with a model.")
@click.argument("model", default=DEFAULT_MODEL)
@option("--system", metavar="TEXT", help="Instructions that the conversation starts with.")
@runtime_options
@sampling_options
def command(model: str, system: str | None, runtime: RuntimeOptions, sampling: SamplingOptions) -> None:
    """Talk with MODEL (default: smollm2).

    At a terminal, /help lists what it knows beside talking. From a pipe, every line is a question, and standard
    output gets the answers and nothing else.
    """
    conversation = Conversation(model, sampling)
    if system is not None:
        conversation.set_system(checked(system, "--system"))
    with runtime.load(model) as loaded:
        if not loaded.tokenizer.has_chat_template:
            raise EdgerunError(f"{model} has no chat template, so it can't chat; use: edgerun run {model} PROMPT")
        chat = Chat(conversation, loaded.session(), loaded.context)
        try:
            if is_interactive():
                _talk(chat, loaded)
            else:
                _answer_lines(chat)
        except Leave:
            pass


def _answer_lines(chat: Chat) -> None:
    """Every line of standard input is a question, or one of the chat's commands, whose words go to standard error."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        question = decoded(line, f"line {number} of standard input").strip()
        if not question:
            continue
        found = find(question)
        if found is not None:
            click.echo(perform(chat, question.split()[0], *found), err=True)
            continue
        generation = answer(chat.session, chat.conversation, question, write_answer, interruptible=False)
        chat.turns.append(Turn(len(generation.token_ids), generation.timings))
        write_answer("\n")


def _talk(chat: Chat, model: Model) -> None:
    from edgerun.cli.chat_editor import Editor
    from edgerun.sources.cache import cache_root

    editor = Editor(cache_root() / "chat_history", (name for name, entry in COMMANDS.items() if entry.help))
    threads = "1 thread" if model.threads == 1 else f"{model.threads} threads"
    click.echo(
        dim(f"{visible(chat.conversation.model)}, context of {model.context} tokens, {threads}. /help for help.")
    )
    while True:
        try:
            question = editor.ask()
        except KeyboardInterrupt:
            click.echo(dim("Ctrl-D or /exit leaves."))
            continue
        except EOFError:
            return
        if not question:
            continue
        try:
            _take_turn(chat, question)
        except EdgerunError as error:
            click.echo(f"{click.style('error:', fg='red')} {visible(str(error))}\n", err=True)


def _take_turn(chat: Chat, question: str) -> None:
    name = question.split()[0]
    found = find(question)
    if found is not None:
        click.echo(dim(visible(perform(chat, name, *found))) + "\n")
        return
    if name.startswith("/") and "/" not in name[1:]:
        raise EdgerunError(f"there is no command {name}; /help lists them")
    with silent_ctrl_c():
        generation = answer(chat.session, chat.conversation, question, write_answer, interruptible=True)
    turn = Turn(len(generation.token_ids), generation.timings)
    chat.turns.append(turn)
    note = {"cancelled": ", stopped", "length": ", cut off at the limit"}.get(generation.finish_reason or "", "")
    click.echo("\n" + dim(f"{speed(turn)}{note}") + "\n")
