"""A conversation: messages and options, kept in a JSON file if the user wants it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgerun.cli.text_input import read_text
from edgerun.errors import EdgerunError
from edgerun.generation.options import SamplingOptions

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


@dataclass
class Conversation:
    """What was said so far, with which model and options. A system message, if any, is the first one."""

    model: str
    options: SamplingOptions
    messages: list[Message] = field(default_factory=list)

    @property
    def system(self) -> str | None:
        """The instructions that the conversation starts with."""
        if self.messages and self.messages[0]["role"] == "system":
            return self.messages[0]["content"]
        return None

    def set_system(self, text: str) -> None:
        """Replaces the instructions; empty text removes them."""
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def reset(self) -> None:
        """Forgets what was said; the instructions stay."""
        del self.messages[0 if self.system is None else 1 :]

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON, beside `path` first and then renamed."""
        options = {name: value for name, value in asdict(self.options).items() if value is not None}
        content = {"model": self.model, "options": options, "messages": self.messages}
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads what `save` wrote. Raises `EdgerunError` that names the field that is wrong."""
        try:
            content = json.loads(read_text(path))
        except ValueError as error:
            raise EdgerunError(f"{path} is not a saved conversation: {error}; give a file that /save wrote") from None
        if not isinstance(content, dict) or not isinstance(content.get("model"), str):
            raise EdgerunError(f"{path} is not a saved conversation: no model; give a file that /save wrote")
        return cls(
            content["model"], _options(content.get("options", {}), path), _messages(content.get("messages"), path)
        )


def _options(values: Any, path: Path) -> SamplingOptions:
    if not isinstance(values, dict):
        raise EdgerunError(f"{path}: options is no object; give a file that /save wrote")
    known = {f.name for f in fields(SamplingOptions)}
    values = {name: value for name, value in values.items() if name in known}
    if isinstance(values.get("logit_bias"), dict):  # JSON has no integer keys
        try:
            values["logit_bias"] = {int(token_id): bias for token_id, bias in values["logit_bias"].items()}
        except ValueError:
            raise EdgerunError(f"{path}: options.logit_bias has a key that is no token id; correct it") from None
    return SamplingOptions(**values)


def _messages(values: Any, path: Path) -> list[Message]:
    if not isinstance(values, list):
        raise EdgerunError(f"{path}: messages is no list; give a file that /save wrote")
    messages: list[Message] = []
    for i, value in enumerate(values):
        role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str) or (role == "system" and i > 0):
            raise EdgerunError(
                f"{path}: messages[{i}] needs a role (user or assistant; the first may be system) and a content; "
                "correct it"
            )
        messages.append({"role": role, "content": content})
    return messages
