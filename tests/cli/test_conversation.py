"""Conversations: what is kept, what a file must look like, and the commands that act on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerun.cli.chat_commands import COMMANDS, Chat, Leave, find, perform
from edgerun.cli.conversation import Conversation
from edgerun.errors import EdgerunError
from edgerun.generation.options import SamplingOptions

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Héllo\n😀"},
    {"role": "assistant", "content": "Hi."},
]


def conversation() -> Conversation:
    options = SamplingOptions(temperature=0.0, stop=("END",), logit_bias={7: -1.5}, seed=3)
    return Conversation("smollm2", options, [dict(message) for message in MESSAGES])


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    conversation().save(path)
    assert Conversation.load(path) == conversation()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text("utf-8"))["messages"] == MESSAGES


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError):
        conversation().save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "not a saved conversation"),
        ("[]", "no model"),
        ('{"model": "m"}', "messages"),
        ('{"model": "m", "messages": [{"role": "king", "content": "x"}]}', "messages[0]"),
        ('{"model": "m", "messages": [{"role": "user"}]}', "messages[0]"),
        ('{"model": "m", "messages": ["x"]}', "messages[0]"),
        (
            '{"model": "m", "messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}',
            "messages[1]",
        ),
        ('{"model": "m", "messages": [], "options": 3}', "options"),
        ('{"model": "m", "messages": [], "options": {"temperature": -3}}', "temperature"),
        ('{"model": "m", "messages": [], "options": {"logit_bias": {"x": 1}}}', "logit_bias"),
    ],
)
def test_a_bad_file_is_named(text: str, names: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(EdgerunError) as caught:
        Conversation.load(path)
    assert names in str(caught.value)


def test_instructions_and_reset() -> None:
    talk = conversation()
    talk.reset()
    assert talk.messages == MESSAGES[:1]
    talk.set_system("Be verbose.")
    assert talk.messages == [{"role": "system", "content": "Be verbose."}]
    talk.set_system("")
    assert talk.messages == [] and talk.system is None
    talk.reset()
    assert talk.messages == []


class Session:
    """The part of a session that the commands use."""

    position = 5

    def reset(self) -> None:
        self.position = 0


@pytest.fixture
def chat() -> Chat:
    return Chat(conversation(), Session(), 128)  # type: ignore[arg-type]


def say(chat: Chat, line: str) -> str:
    found = find(line)
    assert found is not None
    return perform(chat, line.split()[0], *found)


def test_commands(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "my talk.json"
    assert say(chat, "/system") == "The instructions: Be brief."
    assert say(chat, f"/save {path}") == f"Saved to {path}."
    assert say(chat, "/reset") == "The conversation starts afresh."
    assert chat.conversation.messages == MESSAGES[:1] and chat.session.position == 0
    assert say(chat, '/system ""') == "The instructions are removed."
    assert say(chat, "/system") == "There are no instructions."
    assert say(chat, "/system Answer in verse.") == "The instructions are set."
    assert chat.conversation.system == "Answer in verse."
    assert say(chat, f"/load {path}") == f"Loaded 3 messages from {path}."
    assert chat.conversation.messages == MESSAGES
    assert "0 of 128 tokens" in say(chat, "/stats")


def test_help_names_every_command_once(chat: Chat) -> None:
    text = say(chat, "/help")
    assert all(name in text for name, entry in COMMANDS.items() if entry.help)
    assert say(chat, "/?") == text


@pytest.mark.parametrize("name", ["/exit", "/bye", "/quit"])
def test_leave(name: str, chat: Chat) -> None:
    with pytest.raises(Leave):
        say(chat, name)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("/save", "/save FILE"),
        ("/load", "/load FILE"),
        ("/load /no/such/file", "does not exist"),
        ("/save /no/such/folder/file", "No such file or directory"),
        ("/reset now", "takes no argument"),
    ],
)
def test_commands_that_fail(line: str, names: str, chat: Chat) -> None:
    with pytest.raises(EdgerunError) as caught:
        say(chat, line)
    assert names in str(caught.value)


@pytest.mark.parametrize("line", ["hello", "/etc/hosts is a file", "/resetx", "", " "])
def test_what_is_no_command(line: str) -> None:
    assert find(line) is None
