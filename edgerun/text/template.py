"""Chat templates: a conversation as the text that the model was trained on.

A template is a Jinja2 program out of a file that came from the net, so it runs in Jinja's immutable sandbox, with
bounds on its size, its loops and its output. The environment is that of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from edgerun.errors import EdgerunError, OptionError

MAX_SOURCE = 1 << 20  # characters; the longest in use have about 20 thousand
MAX_TEXT = 1 << 26  # characters of output, or of one intermediate text
MAX_SECONDS = 10.0


def choose(templates: object, name: str, where: str) -> str | None:
    """The source of the template called `name`, out of tokenizer_config.json's `chat_template`: one source, or a list
    of {"name", "template"}, where "default" stands in for a name that isn't there. None: the model has none.

    Raises `EdgerunError` for any other value."""
    if not templates:
        return None
    if isinstance(templates, str):
        return templates
    named: dict[str, str] = {}
    for entry in templates if isinstance(templates, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            named[entry["name"]] = entry["template"]
    source = named.get(name) or named.get("default")
    if source is not None:
        return source
    found = f"only {', '.join(named)}" if named else f"a {type(templates).__name__} that holds none"
    raise EdgerunError(f"{where}: chat_template has no template called default ({found}); put one text there")


class ChatTemplate:
    """A compiled chat template. `tokens`: special tokens by the names that templates use (`bos_token`, ...)."""

    def __init__(self, source: str, tokens: Mapping[str, Any], where: str) -> None:
        if len(source) > MAX_SOURCE:
            raise EdgerunError(
                f"{where}: the chat template has {len(source)} characters (at most {MAX_SOURCE} are read); "
                "put a shorter one there"
            )
        self._where = where
        self._tokens = dict(tokens)
        self._clock = _Clock()
        import jinja2

        self._errors: tuple[type[Exception], ...] = (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            AttributeError,
            RecursionError,
            MemoryError,
        )
        try:
            self._template = _environment(self._clock).from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise EdgerunError(
                f"{where}: the chat template isn't valid Jinja2{line} ({_reason(error)}); correct chat_template there"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text. Raises `OptionError` for messages that are none, `EdgerunError` if the template
        refuses them, fails, or takes too long."""
        values = {
            **self._tokens,
            "documents": None,
            **variables,
            "messages": _plain(_checked(messages)),
            "tools": _plain(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        length = 0
        self._clock.start()
        try:
            for piece in self._template.generate(values):
                length += len(piece)
                self._clock.check(length)
                pieces.append(piece)
        except self._errors as error:
            raise EdgerunError(
                f"{self._where}: the chat template cannot write this conversation: {_reason(error)}"
            ) from error
        return "".join(pieces)


class _Clock:
    """Bounds the work of one rendering. A conversation is rendered by one thread at a time, but several threads may
    share a template: they then share the latest deadline, which is all that a bound needs."""

    def __init__(self) -> None:
        self._deadline = 0.0

    def start(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS

    def check(self, length: int = 0) -> None:
        if length > MAX_TEXT:
            raise ValueError(f"it makes a text of more than {MAX_TEXT} characters")
        if time.monotonic() > self._deadline:
            raise ValueError(f"it runs for more than {MAX_SECONDS:g} seconds")


def _environment(clock: _Clock) -> Any:
    """The environment of transformers' `apply_chat_template`, with `clock` asked at every step that can repeat."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
    from jinja2 import nodes
    from jinja2.utils import Namespace

    class GenerationBlocks(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant said, for training; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "+"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                if abs(left) > 1 << 16 or abs(right) > 64:
                    raise ValueError(f"it raises {left} to the power of {right}")
            elif operator == "*":
                # Only a product of a text or a list with a number can be large out of proportion.
                for factor, other in ((left, right), (right, left)):
                    if hasattr(factor, "__len__") and isinstance(other, int):
                        clock.check(len(factor) * max(other, 0))
            elif hasattr(left, "__len__"):
                clock.check(len(left))
            return super().call_binop(context, operator, left, right)

        def call(self, *arguments: Any, **named: Any) -> Any:
            clock.check()
            return super().call(*arguments, **named)

    class SafeNamespace(Namespace):
        """Jinja's `namespace`, without names that lead into Python's own objects."""

        def __init__(*arguments: Any, **named: Any) -> None:
            values = dict(*arguments[1:], **named)
            for name in values:
                _public(name)
            Namespace.__init__(arguments[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            _public(name)
            clock.check(len(value) if isinstance(value, str) else 0)
            super().__setitem__(name, value)

    def _public(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.TemplateError(f"it stores {name} in a namespace")

    def make_dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=make_dict, namespace=SafeNamespace
    )
    return environment


def _checked(messages: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise OptionError(f"messages is a {type(messages).__name__}; it must be a list of {{role, content}}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise OptionError(f"messages[{i}] has no role; every message must be {{role: text, content: text}}")
    return messages


def _plain(value: Any) -> Any:
    """A copy out of plain JSON types: the sandbox cannot know which methods of other objects are dangerous."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise OptionError(
        f"a message holds a {type(value).__name__}; only texts, numbers, lists and mappings can be written"
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
