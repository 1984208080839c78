"""Chat templates: what transformers writes, within bounds, with one line for every way to fail."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgerun.errors import EdgerunError, OptionError
from edgerun.text import template as template_module
from edgerun.text.template import ChatTemplate, choose
from edgerun.text.tokenizer import Tokenizer
from tests.text.tokenizers_made import byte_level

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ "
    "raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if "
    "loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user'"
    " %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + "
    "content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You have access to the following functions.\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>
'  + message['content'] + eos_token }}{% endgeneration %}

{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA_2, "llama-3": LLAMA_3, "mistral": MISTRAL, "zephyr": ZEPHYR}
USER = {"role": "user", "content": "  What is <the> \"capital\" of 'France'?\n{{ 7*7 }} "}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [USER],
    "with system": [{"role": "system", "content": "Be brief. é🎉"}, USER],
    "several turns": [USER, {"role": "assistant", "content": " Paris. "}, {"role": "user", "content": "And of Spain?"}],
    "roles out of order": [USER, USER, {"role": "assistant", "content": "hm"}],
}
TOOLS = [{"type": "function", "function": {"name": "wx", "description": "<b>é</b>", "parameters": {"a": [1, None]}}}]


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    folder = byte_level(tmp_path_factory.mktemp("model"), chat_template=TEMPLATES[request.param])
    return Tokenizer(folder), transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_same_text_as_transformers(pair: tuple[Tokenizer, Any], name: str, generation: bool, tools: Any) -> None:
    ours, theirs = pair
    messages = CONVERSATIONS[name]
    try:
        expected = theirs.apply_chat_template(messages, tools, tokenize=False, add_generation_prompt=generation)
    except Exception as error:  # a template that refuses: ours must, with its own words
        with pytest.raises(EdgerunError) as caught:
            ours.apply_chat_template(messages, generation, tools=tools)
        assert str(error) in str(caught.value)
        return
    assert ours.apply_chat_template(messages, generation, tools=tools) == expected


def render(source: str, messages: list[dict[str, Any]] | None = None, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, "config").render(messages or [USER], **variables)


def test_environment() -> None:
    assert render("{{ bos_token }}{{ x }}", x=3) == "<s>3"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert render("{{ {'é': '<'} | tojson }}") == '{"é": "<"}'
    assert render("  {% if true %}\n  a\n  {% endif %}\n") == "  a\n"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ namespace(__class__=1) }}",
        "{{ messages[0].content.undefined.deeper }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'aaaaaaaaaa' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ range(10 ** 9) }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% for i in range(9999) %}{{ 'a' * 1000000 }}{% endfor %}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(EdgerunError, match=r"config: the chat template cannot write this conversation: .") as caught:
        render(source)
    assert "\n" not in str(caught.value)


def test_endless_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(999) %}{% endfor %}{% endfor %}"
    with pytest.raises(EdgerunError, match=r"more than 0\.2 seconds"):
        render(loop)


def test_syntax_errors_name_file_and_line() -> None:
    with pytest.raises(EdgerunError, match=r"config: the chat template isn't valid Jinja2, line 2"):
        render("a\n{% for %}")
    with pytest.raises(EdgerunError, match="at most"):
        render("a" * (template_module.MAX_SOURCE + 1))


@pytest.mark.parametrize("messages", ["hi", None, [1], [{}], [{"role": 1, "content": "x"}], {"role": "user"}])
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(OptionError, match="messages"):
        ChatTemplate("x", {}, "config").render(messages)


def test_objects_do_not_reach_the_template() -> None:
    with pytest.raises(OptionError, match=r"PosixPath|WindowsPath"):
        render("x", [{"role": "user", "content": Path("x")}])


def test_named_templates() -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    assert choose(named, "default", "f") == "D" and choose(named, "tool_use", "f") == "T"
    assert choose("S", "tool_use", "f") == "S" and choose(None, "default", "f") is None
    assert choose(named[:1], "tool_use", "f") == "D"
    with pytest.raises(EdgerunError, match="only tool_use"):
        choose(named[1:], "default", "f")
    with pytest.raises(EdgerunError, match="f: chat_template has no template"):
        choose({"a": 1}, "default", "f")


def test_a_model_without_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level(tmp_path))
    assert not tokenizer.has_chat_template
    with pytest.raises(EdgerunError, match="no chat template"):
        tokenizer.apply_chat_template([USER])


def test_special_tokens_reach_the_template(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, chat_template="{{ bos_token }}{{ eos_token }}{{ additional_special_tokens[0] }}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = [{"content": "<x>"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(folder).apply_chat_template([USER]) == "<|im_start|><|im_end|><x>"
