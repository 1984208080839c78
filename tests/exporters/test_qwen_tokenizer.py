"""The tokenizer and the chat format of Qwen2.5 and Qwen3, through both file formats, against transformers' class."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.text.tokenizer import Tokenizer
from edgerun_exporters.readers.open import open_checkpoint
from edgerun_exporters.tokenizer import write_tokenizer

from .made import random_model, save
from .test_tokenizers import TEXTS, gguf_of

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CORPUS = [
    *TEXTS,
    "the quick brown fox doesn't jump over 1234 lazy dogs\n\n    return x",
    "Übergröße, naïve café — 日本語のテスト",
]
# In short what Qwen3's does: thoughts of past turns are dropped, and an empty one says "do not think".
TEMPLATE = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = message.reasoning_content if message.reasoning_content is defined else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and thought %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
USER = {"role": "user", "content": "What is 2 + 2?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "é": "<2>"}}}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}, USER],
    [USER, {"role": "assistant", "content": "4", "reasoning_content": "\nhm"}],
    [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {**USER, "content": "<tool_response>4"}],
]


@functools.cache
def original() -> Any:
    """transformers' Qwen2Tokenizer with a small vocabulary, learnt from a few lines."""
    import transformers
    from tokenizers import AddedToken, pre_tokenizers, trainers

    trained = transformers.Qwen2Tokenizer()._tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab, merges = dict(model["vocab"]), [tuple(merge) for merge in model["merges"]]
    for token in (*CONTROL, *USER_DEFINED):
        vocab[token] = len(vocab)
    assert sorted(vocab.values()) == list(range(len(vocab)))
    tokenizer = transformers.Qwen2Tokenizer(vocab, merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in USER_DEFINED])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def fill(writer: Any) -> None:
    """The keys that llama.cpp's converter writes."""
    model = json.loads(original()._tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    padded = [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), len(tokens) + 3))]  # rows without a token
    kinds = {**dict.fromkeys(CONTROL, 3), **dict.fromkeys(USER_DEFINED, 4), **dict.fromkeys(padded[len(tokens) :], 5)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(padded)
    writer.add_token_types([kinds.get(token, 1) for token in padded])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module", params=["gguf", "folder"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    place = tmp_path_factory.mktemp("qwen")
    if request.param == "gguf":
        checkpoint = gguf_of(place / "t.gguf", fill)
    else:
        folder = save(random_model("qwen2", num_hidden_layers=1), place / "hf")
        (folder / "tokenizer_config.json").unlink()
        original().save_pretrained(folder)
        checkpoint = open_checkpoint(folder)
    (place / "out").mkdir()
    write_tokenizer(checkpoint, place / "out", 128)
    return Tokenizer(place / "out")


def same(ours: Tokenizer, text: str) -> None:
    wanted = original().encode(text)
    assert ours.encode(text) == wanted
    for skip in (True, False):
        assert ours.decode(wanted, skip_special=skip) == original().decode(
            wanted, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize(
    "text", [*CORPUS, "a\u0301 \ufb01 e\u0301\u0323", "<think>\nx</think><|im_end|>\n<tool_call>[PAD3]"]
)
def test_texts(ours: Tokenizer, text: str) -> None:
    same(ours, text)


PIECES = st.sampled_from(
    [*CONTROL, *USER_DEFINED, " ", "\n", "\r\n", "'s", "'LL", "12", "a\u0301", "é", "日本", "🙂", "the"]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(PIECES, st.text(st.characters(exclude_categories=["Cs"]), max_size=6)), max_size=8))
def test_generated_texts(ours: Tokenizer, parts: list[str]) -> None:
    same(ours, "".join(parts))


def test_a_turn_and_a_text_end_an_answer(ours: Tokenizer) -> None:
    assert ours.eos_ids == {ours.token_id("<|im_end|>"), ours.token_id("<|endoftext|>")}
    assert not ours.adds_bos
    assert [ours.is_special(i) for i in ours.encode("<think><|im_end|><tool_call>")] == [False, True, False]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_chat(ours: Tokenizer, conversation: list[dict[str, Any]], options: dict[str, bool]) -> None:
    text = ours.apply_chat_template(conversation, **options)
    assert text == original().apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **options)
    assert text.startswith("<|im_start|>") and ours.encode(text, add_bos=False) == original().encode(text)
